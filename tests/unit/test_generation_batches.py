"""Batches of tensors with rows that were added later: ranks, threads, worker processes and a resume agree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from stored import numbered, rows_of

from imagemill.components.dataset.manifest import Dataset
from imagemill.components.train.data import batches as batches_module
from imagemill.components.train.data import loader, order
from imagemill.components.train.data.loader import Batch, iter_batches
from imagemill.components.train.data.tensor_shards import Shard, TensorSplit

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
