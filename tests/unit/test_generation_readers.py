"""Readers of tensors whose shards lie in several datasets: training, evaluation, export, inspect."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import chain
import numpy as np
import pytest
from grown import clean_of, content, generations, relabeled, resized, several
from stored import numbered, rows_of

from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate.inference import find_tensors, read_test_batches
from imagemill.components.export.config import ExportConfig
from imagemill.components.export.export import export
from imagemill.components.imaging.geometry import Geometry
from imagemill.components.train.artifact.publish import read_samples
from imagemill.components.train.data import batches as batches_module
from imagemill.components.train.data import loader, order
from imagemill.components.train.data.loader import Batch, iter_batches
from imagemill.components.train.data.tensor_shards import Shard, TensorSplit
from imagemill.components.train.loop.losses import count_labels
from imagemill.pipelines.cli import inspection

PHOTOS = several(40)
GROWN = {name: photo for name, photo in PHOTOS.items() if name != "p004"} | several(6, "new", "emu")
GROWN["p006"] = relabeled(GROWN["p006"])


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


# Batches of tensors with rows that were added later: ranks, threads, worker processes and a resume agree.


GENERATIONS = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2]


@pytest.fixture
def grown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """220 rows in 11 files of 20: 160 of the first build, in four windows of two files, and 60 later ones."""
    monkeypatch.setattr(order, "WINDOW_FILES", 2)
    monkeypatch.setattr(order, "WINDOW_ROWS", 20)
    return numbered(tmp_path, rows=220, group=7, files=11, generations=GENERATIONS)


def test_every_image_comes_once_with_its_label(grown: Dataset) -> None:
    for epoch in range(3):
        batches = list(iter_batches(grown, "train", 16, 1, epoch))
        assert all((batch.images[:, 0, 0, 0] == batch.labels % 256).all() for batch in batches)
        assert sorted(label for batch in batches for label in batch.labels.tolist()) == list(range(220))
    stored = [row for first in range(11) for row in range(first, 220, 11)]
    assert rows_of(iter_batches(grown, "train", 16)) == stored, "validation is in stored order"


def test_later_rows_are_in_all_parts_of_an_epoch(grown: Dataset) -> None:
    rows = np.array(rows_of(iter_batches(grown, "train", 55, 1, 0))).reshape(4, 55)
    for part in rows:
        generations = Counter(GENERATIONS[row % 11] for row in part.tolist())
        assert generations == {0: 40, 1: 10, 2: 5}


def test_ranks_threads_and_a_resume_agree(grown: Dataset) -> None:
    expected: list[Batch] = list(iter_batches(grown, "train", 16, 2, 1))
    for ranks in (2, 3):
        shares = [list(iter_batches(grown, "train", 16, 2, 1, rank=rank, ranks=ranks)) for rank in range(ranks)]
        for batch, *parts in zip(expected[:13], *shares, strict=False):
            assert np.concatenate([part.labels for part in parts]).tolist() == batch.labels.tolist()
    for start in range(len(expected)):
        resumed = iter_batches(grown, "train", 16, 2, 1, start=start, threads=start % 3 + 1)
        assert rows_of(resumed) == [label for batch in expected[start:] for label in batch.labels.tolist()]
    every_third = [list(iter_batches(grown, "train", 16, 2, 1, start=first, step=3)) for first in range(3)]
    numbered_labels = sorted((batch.number, batch.labels.tolist()) for part in every_third for batch in part)
    assert numbered_labels == [(batch.number, batch.labels.tolist()) for batch in expected]


def test_a_file_is_opened_once_an_epoch(grown: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Counter[int] = Counter()
    open_shard = TensorSplit.open_shard

    def counted(split: TensorSplit, index: int) -> Shard:
        opened[index] += 1
        return open_shard(split, index)

    monkeypatch.setattr(batches_module.TensorSplit, "open_shard", counted)
    assert len(rows_of(iter_batches(grown, "train", 16, 2, 1))) == 220
    assert opened == dict.fromkeys(range(11), 1)


def test_balanced_sampling_spreads_repeated_rows(grown: Dataset) -> None:
    weights = np.array([50.0 if GENERATIONS[row % 11] == 2 else 1.0 for row in range(220)])
    rows = rows_of(iter_batches(grown, "train", 55, 1, 0, balance=weights))
    share = 50 * 20 / (50 * 20 + 200)
    counts = [sum(GENERATIONS[row % 11] == 2 for row in rows[at : at + 55]) for at in range(0, 220, 55)]
    assert len(rows) == 220 and sum(counts) == pytest.approx(220 * share, abs=2) and min(counts) > 0.6 * 55 * share


def test_single_images_are_those_of_all_generations(grown: Dataset) -> None:
    dataset = loader.TensorImages(grown.uri, "train")
    assert sorted(int(dataset[n][1]) for n in range(len(dataset))) == list(range(220))
