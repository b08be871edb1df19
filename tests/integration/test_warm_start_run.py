"""A second week that starts from the champion of the first, through the whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import mill
import numpy as np

if TYPE_CHECKING:
    from conftest import Finished


def test_the_second_week_starts_from_the_champion_of_the_first(finished: Finished) -> None:
    champion = Path(finished.result.json["model"]).name
    for number in range(4):
        mill.add_photo(finished.photos / "red" / f"new{number}.jpg", "red", np.random.default_rng(number))
    arguments = [*finished.arguments, "--start", "champion", "--shrink", "0.5", "--perturb", "0.1"]
    result = mill.run(*arguments)
    assert result.rc == 0, result.stderr
    assert f"from the champion {champion}" in result.stderr
    model = mill.dataset_of(result, "model")
    assert model.manifest.extra.start.model == f"model/{champion}"
    assert model.parent_uri("model") == str(finished.workspace / "model" / champion)
    assert mill.dataset_of(result, "evaluation").manifest.extra.seen.to_dict() == {"images": 0, "unknown": []}
    assert f"trained from the champion {champion}" in Path(result.json["report"]).read_text()
    log = finished.workspace / "names" / "photos" / "promotions" / "2.json"
    assert json.loads(log.read_text())["model"] == f"model/{model.fingerprint}"

    again = mill.run(*arguments)
    assert again.rc == 0, again.stderr
    assert set(again.states.values()) == {"cached"}, "it is the champion's own training, which is done"
    assert again.json["model"] == result.json["model"]
