"""Second week's run on drifted data: stopped before resize, or accepted and shown in the report."""

from __future__ import annotations

import json
from pathlib import Path

import mill
import numpy as np
from conftest import Finished
from PIL import Image

from imagemill.components.dataset.workspace import Workspace


def test_drift_stops_the_run_before_resize_and_an_accepted_run_starts_from_the_champion(finished: Finished) -> None:
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

    arguments = [*finished.arguments, "--start", "champion"]
    accepted = mill.run(*arguments)
    assert accepted.rc == 0 and "warning: drift of all 120 images: " in accepted.stderr
    assert accepted.states["clean"] == "cached" and accepted.states["train"] == "ran"
    record = workspace.step_record(accepted.json["run"], "clean")
    assert record and any("red 33.3% to 66.7%, " in line for line in record.metrics["drift"])
    page = workspace.store.read(accepted.json["report"]).decode()
    assert 'id="drift"' in page and "brightness darker" in page

    # The new champion was trained on this data: the same run has nothing to do, and nothing to stop for.
    repeated = mill.run(*arguments, "--stop-on-drift")
    assert repeated.rc == 0 and set(repeated.states.values()) == {"cached"} and "since the data" not in repeated.stderr
    assert json.loads(repeated.stdout.splitlines()[-1])["status"] == accepted.json["status"]

    # It was trained from the first one, once.
    champion = Path(finished.result.json["model"]).name
    assert f"from the champion {champion}" in accepted.stderr and f"trained from the champion {champion}" in page
    model = mill.dataset_of(accepted, "model")
    assert model.manifest.extra.start.model == f"model/{champion}"
    assert model.parent_uri("model") == str(finished.workspace / "model" / champion)
    assert mill.dataset_of(accepted, "evaluation").manifest.extra.seen.to_dict() == {"images": 0, "unknown": []}
    log = finished.workspace / "names" / "photos" / "promotions" / "2.json"
    assert json.loads(log.read_text())["model"] == f"model/{model.fingerprint}"
    assert repeated.json["model"] == accepted.json["model"], "it is the champion's own training, which is done"
