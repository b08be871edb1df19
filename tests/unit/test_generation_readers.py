"""Readers of tensors whose shards lie in several datasets: training, evaluation, export, inspect."""

from __future__ import annotations

import shutil
from pathlib import Path

import chain
import numpy as np
import pytest
from grown import clean_of, content, generations, relabelled, resized, several

from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate.inference import find_tensors, read_test_batches
from imagemill.components.export.config import ExportConfig
from imagemill.components.export.export import export
from imagemill.components.imaging.geometry import Geometry
from imagemill.components.train.artifact.publish import read_samples
from imagemill.components.train.loop.losses import count_labels
from imagemill.pipelines.cli import inspection

PHOTOS = several(40)
GROWN = {name: photo for name, photo in PHOTOS.items() if name != "p004"} | several(6, "new", "emu")
GROWN["p006"] = relabelled(GROWN["p006"])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(str(tmp_path_factory.mktemp("mill")))


@pytest.fixture(scope="module")
def clean(workspace: Workspace) -> Dataset:
    resized(clean_of(workspace, PHOTOS), image_size=32)
    return clean_of(workspace, GROWN)


@pytest.fixture(scope="module")
def tensors(clean: Dataset) -> Dataset:
    tensors = resized(clean, image_size=32)
    assert set(generations(tensors)) == {0, 1} and len({file.uri.split("/")[1] for file in tensors.files()}) > 1
    return tensors


def test_models_are_trained_and_evaluated_on_several_generations(
    workspace: Workspace, clean: Dataset, tensors: Dataset
) -> None:
    with chain.one_core():
        model = chain.trained(workspace, tensors)
        assert find_tensors(model, clean) == tensors
        evaluation, _ = chain.evaluated(workspace, model, clean)
    tested = sum(photo.split == "test" for photo in GROWN.values())
    assert sum(file.rows for file in evaluation.files()) == tested
    assert count_labels(tensors).sum() == sum(photo.split == "train" for photo in GROWN.values())
    samples = read_samples(tensors)
    assert samples is not None and samples.shape[1:] == (32, 32, 3)


def test_test_images_are_those_that_a_decoder_gives(clean: Dataset, tensors: Dataset) -> None:
    geometry = Geometry(32)
    stored, decoded = (
        {image_id: (image.tobytes(), int(label)) for batch in read_test_batches(source, clean, geometry, 4)
         for image_id, image, label in zip(batch.ids, batch.images, batch.labels, strict=True)}
        for source in (tensors, None)
    )  # fmt: skip
    assert stored == decoded and len(stored) == sum(photo.split == "test" for photo in GROWN.values())


def test_tensors_of_several_generations_are_exported(tensors: Dataset, tmp_path: Path) -> None:
    from PIL import Image

    export(ExportConfig(tensors.uri, "imagefolder", str(tmp_path / "out")))
    files = {path.stem: path for path in (tmp_path / "out").rglob("*.png")}
    expected = content(tensors)
    assert set(files) == set(expected) == set(GROWN)
    for name, path in files.items():
        assert np.asarray(Image.open(path)).tobytes() == expected[name][2]
        assert path.parent.name == GROWN[name].label and path.parent.parent.name == GROWN[name].split


def test_tensors_of_several_generations_are_inspected(tensors: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    inspection.inspect(tensors.uri, as_json=False)
    text = capsys.readouterr().out
    rows = generations(tensors)
    assert "Rows by generation" in text
    for name, count in (("built", rows[0]), ("added 1", rows[1])):
        assert any(name in line and f" {count}" in line for line in text.splitlines())


def test_a_workspace_that_was_moved_is_read(tensors: Dataset, workspace: Workspace, tmp_path: Path) -> None:
    shutil.copytree(workspace.uri, tmp_path / "moved")
    moved = read_dataset(str(tmp_path / "moved" / "tensors" / tensors.fingerprint))
    assert not moved.missing() and content(moved) == content(tensors)
    assert all(str(moved.locate(file)).startswith(str(tmp_path)) for file in moved.files())
