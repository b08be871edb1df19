"""Out-of-distribution scores: their error rate, and the way from training to predict's column and the report's line."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import photos
import pyarrow.parquet as pq
import pytest
from chain import clean_photos, evaluated, one_core, resized, trained

from imagemill.components.dataset.kinds import EvaluationExtra
from imagemill.components.dataset.manifest import Dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.models.features import OodDetector
from imagemill.components.predict.config import PredictConfig
from imagemill.components.predict.predict import predict
from imagemill.components.report.page import Paragraph
from imagemill.components.report.scores import describe_scores
from imagemill.components.storage.errors import DatasetError

RATE = 0.1


def draw(rng: np.random.Generator, rows: int, distance: float = 3.0) -> npt.NDArray[np.float32]:
    """Features of four classes, `distance` from the center."""
    centers = distance * np.eye(4, 16)[rng.integers(0, 4, rows)]
    return (centers + rng.normal(size=(rows, 16))).astype(np.float32)


def test_the_rate_of_false_alarms_is_the_stated_one_whatever_the_number_of_images() -> None:
    """The mean over 200 detectors of the share of alarms, at 1% and 10%: within 4 standard errors, which fails once in
    15,000 such tests."""
    rng = np.random.default_rng(3)
    for rate, number in ((0.01, 199), (0.1, 19), (0.01, 19)):
        alarms = []
        for _ in range(200):
            detector = OodDetector.fit(draw(rng, 60), draw(rng, number), rate)
            alarms.append(float((detector.score(draw(rng, 200)) > 1).mean()))
        expected = rate if number != 19 or rate == 0.1 else 0.05
        assert detector.rate == pytest.approx(expected)
        assert abs(np.mean(alarms) - expected) < 4 * np.std(alarms) / np.sqrt(200)


def test_images_of_no_class_are_beyond_the_threshold() -> None:
    rng = np.random.default_rng(4)
    detector = OodDetector.fit(draw(rng, 500, 8), draw(rng, 300, 8), 0.01)
    assert (detector.score(-draw(rng, 100, 8)) > 1).mean() > 0.9
    assert detector.score(np.zeros((2, 16), np.float32)).shape == (2,) and len(detector.score(draw(rng, 0))) == 0


class Fitted(NamedTuple):
    workspace: Workspace
    clean: Dataset
    model: Dataset
    evaluation: Dataset
    files: Path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    workspace = Workspace(str(tmp_path_factory.mktemp("fitted")))
    clean = clean_photos(workspace)
    files = tmp_path_factory.mktemp("files")
    for number in range(3):
        (files / f"{number}.png").write_bytes(photos.saved(photos.made(number, 80, 70)))
    (files / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with one_core():
        model = trained(workspace, resized(workspace, clean, image_size=32), ood_rate=RATE)
        return Fitted(workspace, clean, model, evaluated(workspace, model, clean)[0], files)


def run(fitted: Fitted, model: Dataset, output: str = "", **values: Any) -> PredictConfig:
    config = PredictConfig((str(fitted.files),), model.uri, device="cpu", output=output, top=2, **values)
    predict(config)
    return config


def test_predict_has_a_column_of_scores(
    fitted: Fitted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    run(fitted, fitted.model, str(tmp_path / "out.parquet"))
    table = pq.read_table(tmp_path / "out.parquet")
    rows = {Path(row["image"]).name: row["ood_score"] for row in table.to_pylist()}
    assert rows["broken.png"] is None and all(rows[f"{n}.png"] >= 0 for n in range(3))
    unlike = sum(score > 1 for score in rows.values() if score is not None)
    assert f"{unlike} of 3 images are unlike the training images (ood_score above 1" in capsys.readouterr().err
    run(fitted, fitted.model, str(tmp_path / "out.csv"))
    with (tmp_path / "out.csv").open() as file:
        cells = {Path(row["image"]).name: row["ood_score"] for row in csv.DictReader(file)}
    assert cells["broken.png"] == "" and float(cells["1.png"]) == pytest.approx(rows["1.png"], abs=1e-5)
    capsys.readouterr()
    run(fitted, fitted.model, json=True)
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry.get("ood_score") for entry in entries[:3]] == pytest.approx([rows[f"{n}.png"] for n in range(3)])


def test_the_evaluation_counts_the_test_images_beyond_it(
    fitted: Fitted, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    unlike = EvaluationExtra.of(fitted.evaluation.manifest).unlike
    assert unlike is not None and unlike.rate == RATE and 0 <= unlike.images <= 9, "of 9 validation images, 1 in 10"
    notes = [block.text for block in describe_scores(fitted.evaluation.manifest.extra) if isinstance(block, Paragraph)]
    assert any(
        "unlike the training images (ood_score above 1); of images like the validation images 10.0%" in note
        for note in notes
    )
    evaluated(fitted.workspace, fitted.model, fitted.clean)
    assert f"{unlike.images} of 9 test images are unlike the training images" in capsys.readouterr().err


def test_without_the_option_nothing_changes(fitted: Fitted, tmp_path: Path) -> None:
    files = tuple(file for file in fitted.model.manifest.files if file.role != "ood")
    assert len(files) == len(fitted.model.manifest.files) - 1
    plain = dataclasses.replace(fitted.model, manifest=dataclasses.replace(fitted.model.manifest, files=files))
    assert OodDetector.read(plain) is None and OodDetector.read(fitted.model) is not None
    manifest = fitted.evaluation.manifest
    without = dataclasses.replace(EvaluationExtra.of(manifest), unlike=None)
    assert "unlike" not in without.to_dict() and "unlike" in EvaluationExtra.of(manifest).to_dict()


def test_a_broken_detector_is_named(fitted: Fitted, tmp_path: Path) -> None:
    [file] = fitted.model.files("ood")
    path = Path(fitted.model.locate(file))
    data = path.read_bytes()
    path.write_bytes(data[:20])
    try:
        with pytest.raises(DatasetError, match="expected an out-of-distribution detector"):
            OodDetector.read(fitted.model)
    finally:
        path.write_bytes(data)
