"""Drift by features: the test's error rate, and what evaluate says of two datasets of features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from cleaned import Row, draft
from drifting import draw_features
from test_drift import render

from imagemill.components.clean.drift_numbers import SnapshotPair, compare_rows
from imagemill.components.dataset.kinds import FeaturesExtra
from imagemill.components.dataset.manifest import Dataset, Manifest, Totals, commit
from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.shards import Layout, ShardWriter
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate.feature_drift import check_feature_drift, compare_means, list_findings, whiten
from imagemill.components.metrics.two_sample import ALL, NEW
from imagemill.components.models.features import make_schema, make_table
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
        with ShardWriter(uri("features"), Layout(make_schema(DIMENSIONS), plain=True)) as writer:
            writer.add_table(make_table(pa.array(rows), np.zeros(len(rows), np.int64), matrix))
            file = writer.publish("train", split="train")
        features = commit(uri("features"), Manifest(
            "features", name.zfill(16), (tensors.as_parent(uri("features")),),
            config={"backbone": "net", "weights": weights}, files=(file,), totals=Totals(rows=len(rows)),
            extra=FeaturesExtra("toy", DIMENSIONS),
        ))  # fmt: skip
        parents = (tensors.as_parent(uri("model")), features.as_parent(uri("model")))
        return commit(uri("model"), Manifest("model", name.zfill(16), parents))

    def check(self, model: Dataset, champion: Dataset, only_cached: bool = False) -> dict[str, Any]:
        context = Context("evaluate", self.workspace, "run-1", False, only_cached)
        return check_feature_drift(model, champion, 1, "toy", 0.1, context)


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
    assert line.startswith("the 40 new images: features of net, distance ")
    assert f"warning: drift of {line}" in weeks.out()
    assert weeks.check(model, champion, only_cached=True) == metrics
    comparison = weeks.workspace.drift("toy", metrics["feature_drift_comparison"]) or {}
    assert (comparison["rows"], comparison["added"], comparison["removed"]) == (340, 40, 0)
    assert list_findings(comparison, 99.0) == []


def test_more_of_the_same_is_no_drift_and_gone_images_can_be(weeks: Weeks) -> None:
    champion = weeks.model("a1", FIRST_WEEK | draw(300, 100, shift=3))
    same = weeks.model("a2", FIRST_WEEK | draw(300, 100, shift=3) | draw(400, 60))
    assert not any("all " in line for line in weeks.check(same, champion)["feature_drift"])
    [line] = weeks.check(weeks.model("a3", FIRST_WEEK), champion)["feature_drift"]
    assert line.startswith("all 300 images: features of net")
    assert weeks.check(weeks.model("a4", draw(500, 50)), weeks.model("a5", FIRST_WEEK))["feature_drift"] == []
    assert "no drift of the features of net since the data of the champion (promotion 1)" in weeks.out()


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


def test_images_are_matched_by_their_bytes(weeks: Weeks) -> None:
    """The same images in another order are common rows, whose features cancel exactly."""
    champion = weeks.model("a1", FIRST_WEEK)
    model = weeks.model("a2", dict(reversed(FIRST_WEEK.items())))
    metrics = weeks.check(model, champion)
    comparison = weeks.workspace.drift("toy", metrics["feature_drift_comparison"]) or {}
    assert comparison["all"]["psi"] == 0 == comparison["added"] and not comparison["all"]["is_significant"]


def test_the_distance_is_mahalanobis() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(400, 5)) @ rng.normal(size=(5, 5)) + 50
    rows[300:] += rows.std(0)
    white = whiten(lambda: np.array_split(rows.astype(np.float32), 7))
    assert np.allclose(white.T @ white / 400, np.eye(5), atol=1e-3) and np.allclose(white.mean(0), 0, atol=1e-3)
    difference = rows[300:].mean(0) - rows[:300].mean(0)
    expected = difference @ np.linalg.inv(np.cov(rows.T, bias=True)) @ difference
    shift = compare_means(white, (300, 0, 100), (ALL, NEW), 0.005)[NEW]
    null_mean = 5 * (1 / 300 + 1 / 100)
    assert shift.psi == pytest.approx(expected - null_mean, rel=0.01) and shift.is_significant
    assert shift.error < expected


def test_constant_features_are_no_drift() -> None:
    white = whiten(lambda: [np.ones((30, 4), np.float32)])
    assert white.shape == (30, 0)
    assert not compare_means(white, (20, 0, 10), (NEW,), 0.005)[NEW].is_significant


def test_equal_features_hardly_ever_warn_and_others_do() -> None:
    """300 weeks without change warn in at most 1% each: more than 11 of them do in one of 5,000 correct programs, and
    the seed is fixed. Larger weeks and smaller changes are in tests/benchmarks."""
    warned = 0
    rng = np.random.default_rng(5)
    for week in range(310):
        added = draw_features(rng, 10, 0 if week < 300 else 8, DIMENSIONS)
        rows = np.concatenate([draw_features(rng, 120, 0, DIMENSIONS), added])
        shifts = compare_means(whiten(lambda rows=rows: [rows]), (100, 20, 10), (ALL, NEW), 0.005)
        warned += week < 300 and any(shift.is_significant for shift in shifts.values())
        assert week < 300 or shifts[NEW].is_significant
    assert warned <= 11


def test_the_report_has_a_row_of_features(weeks: Weeks) -> None:
    table = pa.table({"sha256": [str(n) for n in range(90)], "label": ["cat"] * 90, "width": [1] * 90,
                      "height": [1] * 90})  # fmt: skip
    comparison = compare_rows(SnapshotPair.match(table, table.slice(30)), {})
    assert "features of net" not in render(weeks.workspace, comparison).text
    shift = {"psi": 1.5, "error": 0.25, "is_significant": True}
    weeks.workspace.add_drift("tiny", "features-key", {"backbone": "net", ALL: shift | {"psi": 0.01}, NEW: shift})
    metrics = {"feature_drift": ["the 30 new images: <b>features"], "feature_drift_comparison": "features-key"}
    record = StepRecord(state="ran", seconds=0.25, metrics=metrics)
    weeks.workspace.write_step_record("r", "evaluate", record)
    text = render(weeks.workspace, comparison).text
    assert "features of net, distance 0.01 ± 0.25 1.50 ± 0.25" in text and "the 30 new images: <b>features" in text
