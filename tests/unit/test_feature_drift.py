"""Drift by features: the test's error rate, and what evaluate says of two datasets of features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cleaned import Row, draft
from drifting import draw_features
from placed import place

from imagemill.components.dataset.index import make_tensors_index
from imagemill.components.dataset.kinds import FeaturesExtra
from imagemill.components.dataset.manifest import Dataset, Manifest, Totals, commit
from imagemill.components.dataset.shards import Layout
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate.feature_drift import check_feature_drift
from imagemill.components.metrics.drift import ALL, LEVEL, NEW, Comparison, compare_features
from imagemill.components.models.features import make_schema
from imagemill.components.step.step import Context, NotCached

DIMENSIONS = 24


def draw(start: int, number: int, shift: float = 0.0) -> dict[str, npt.NDArray[np.float32]]:
    """Features by the names of images, which count up from `start`."""
    features = draw_features(np.random.default_rng(start), number, shift, DIMENSIONS)
    return {f"{start + n}.jpg": row for n, row in enumerate(features)}


FIRST_WEEK = draw(0, 300)


@dataclass
class Weeks:
    """Models in a workspace, each with features; `out` holds what the checks have printed."""

    workspace: Workspace
    out: Callable[[], str]

    def model(self, name: str, rows: dict[str, npt.NDArray[np.float32]], weights: str = "w") -> Dataset:
        def uri(kind: str) -> str:
            return self.workspace.dataset_uri(kind, name.zfill(16))

        drafted = draft(uri("clean"), [Row(image, "cat", data=image.encode()) for image in rows], classes=("cat",))
        clean = commit(drafted.uri, drafted.manifest)
        tensors = commit(uri("tensors"), Manifest("tensors", name.zfill(16), (clean.as_parent(uri("tensors")),)))
        matrix = np.stack(list(rows.values()))
        records = [
            {"image_id": image_id, "split": "train", "label_id": 0, "copy": 0, "features": row.astype("<f4").tobytes()}
            for image_id, row in zip(rows, matrix, strict=True)
        ]
        placed = place(uri("features"), records, Layout(make_schema(DIMENSIONS)), make_tensors_index("single"), True)
        features = commit(uri("features"), Manifest(
            "features", name.zfill(16), (tensors.as_parent(uri("features")),),
            config={"backbone": "net", "weights": weights}, totals=Totals(rows=len(rows)), **placed,
            extra=FeaturesExtra("toy", DIMENSIONS),
        ))  # fmt: skip
        parents = (tensors.as_parent(uri("model")), features.as_parent(uri("model")))
        return commit(uri("model"), Manifest("model", name.zfill(16), parents))

    def check(self, model: Dataset, champion: Dataset, only_cached: bool = False) -> dict[str, Any]:
        context = Context("evaluate", self.workspace, "run-1", False, only_cached)
        return check_feature_drift(model, champion, 1, "toy", context)


@pytest.fixture
def weeks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Weeks:
    return Weeks(Workspace.open(str(tmp_path / "ws")), lambda: capsys.readouterr().err)


def test_other_new_images_are_named_and_the_comparison_is_made_once(weeks: Weeks) -> None:
    champion = weeks.model("a1", FIRST_WEEK)
    model = weeks.model("a2", draw(300, 40, shift=2) | FIRST_WEEK)
    with pytest.raises(NotCached):
        weeks.check(model, champion, only_cached=True)
    metrics = weeks.check(model, champion)
    [line] = metrics["feature_drift"]
    assert line.startswith("the 40 new images: features of net (distance ")
    assert f"warning: drift of {line}" in weeks.out()
    assert weeks.check(model, champion, only_cached=True) == metrics
    comparison = Comparison.from_dict(weeks.workspace.drift("toy", metrics["feature_drift_comparison"]), "test")
    assert (comparison.rows, comparison.added, comparison.removed) == (340, 40, 0)


def test_more_of_the_same_is_no_drift_and_gone_images_can_be(weeks: Weeks) -> None:
    champion = weeks.model("a1", FIRST_WEEK | draw(300, 100, shift=3))
    same = weeks.model("a2", FIRST_WEEK | draw(300, 100, shift=3) | draw(400, 60))
    assert not any("all " in line for line in weeks.check(same, champion)["feature_drift"])
    [line] = weeks.check(weeks.model("a3", FIRST_WEEK), champion)["feature_drift"]
    assert line.startswith("all 300 images: features of net")
    assert weeks.check(weeks.model("a4", draw(500, 50)), weeks.model("a5", FIRST_WEEK))["feature_drift"] == []
    assert "no drift of features of net since the data of the champion (promotion 1)" in weeks.out()


def test_features_of_other_weights_or_none_are_not_compared(weeks: Weeks) -> None:
    champion, other = weeks.model("a1", FIRST_WEEK), weeks.model("a2", FIRST_WEEK, weights="x")
    assert weeks.check(champion, champion) == {} and weeks.out() == ""
    assert weeks.check(other, champion) == {}
    assert "drift of features is not checked: there are none of this network" in weeks.out()
    Path(champion.parent_uri("features"), "_manifest.json").unlink()
    assert weeks.check(other, champion) == {} and "not checked" in weeks.out()
    assert weeks.check(champion, other) == {} and weeks.out() == ""
    later = weeks.model("a3", FIRST_WEEK | draw(300, 9), weights="x")
    Path(weeks.workspace.dataset_uri("clean", "a2".zfill(16)), "_manifest.json").unlink()
    assert weeks.check(later, other) == {} and "drift of features is not checked: " in weeks.out()


def test_equal_features_hardly_ever_warn_and_others_do() -> None:
    """100 weeks without change reach chance's limit in at most 1% each: more than 6 of them do in one of 10,000 correct
    programs, and the seed is fixed. Larger weeks and smaller changes are in tests/benchmarks."""
    num_significant = 0
    rng = np.random.default_rng(5)
    for week in range(110):
        then = draw_features(rng, 120, 0, DIMENSIONS)
        added = draw_features(rng, 20, 0 if week < 100 else 8, DIMENSIONS)
        changes = compare_features("features", then, {ALL: np.concatenate([then, added]), NEW: added}, 16, LEVEL)
        num_significant += week < 100 and any(change.is_significant for change in changes)
        assert week < 100 or changes[1].is_drift
    assert num_significant <= 6
