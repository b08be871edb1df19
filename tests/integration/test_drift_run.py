"""Second week's run on drifted data is stopped before resize where the user asked for that."""

from __future__ import annotations

import mill
import numpy as np
from conftest import Finished
from PIL import Image

from imagemill.components.dataset.workspace import Workspace


def test_drift_stops_the_run_before_resize(finished: Finished) -> None:
    rng = np.random.default_rng(1)
    for number in range(60):  # as many as there are, and almost black
        pixels = rng.integers(0, 30, (*rng.integers(40, 90, 2), 3)).astype(np.uint8)
        Image.fromarray(pixels).save(finished.photos / "red" / f"night{number}.png")
    before = mill.manifests(finished.workspace)
    workspace = Workspace(str(finished.workspace))
    latest = workspace.latest_uri("photos", "clean")

    stopped = mill.run(*finished.arguments, "--stop-on-drift")
    assert stopped.rc == 2
    assert "stop_on_drift: expected data like the champion's" in stopped.error and "brightness darker" in stopped.error
    assert "60 of 120 images are new since the data of the champion (promotion 1)" in stopped.stderr
    after = mill.manifests(finished.workspace)
    assert [len(after[kind]) - len(before[kind]) for kind in mill.PRODUCTS] == [1, 1, 0, 0, 0]
    assert workspace.latest_uri("photos", "clean") == latest  # what was not accepted is no base of later class lists
