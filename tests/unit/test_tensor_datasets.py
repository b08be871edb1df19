"""Tensors in external training loops: batches, single images, and plain DataLoaders with worker processes."""

from __future__ import annotations

import gc
import pickle
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from stored import SHAPE, numbered, rows_of
from torch.utils.data import DataLoader

from imagemill.components.dataset.manifest import Dataset
from imagemill.components.storage.errors import UserError
from imagemill.components.train.data import loader
from imagemill.components.train.data.batches import BufferPool
from imagemill.components.train.data.cache import PartCache
from imagemill.components.train.data.loader import Batch, iter_batches


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return numbered(tmp_path_factory.mktemp("hundred"), rows=100, group=7, files=6)


def test_batches_of_torch_tensors(hundred: Dataset) -> None:
    dataset = loader.TensorBatches(hundred.uri, "train", 32, seed=5)
    tensor_batches = list(dataset)
    assert len(dataset) == len(tensor_batches) == 4
    images, labels = tensor_batches[0]
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert images.shape == (32, 3, 4, 4) and images.is_contiguous(memory_format=torch.channels_last)
    assert sorted(torch.cat([b[1] for b in tensor_batches]).tolist()) == list(range(100))
    for images, labels in tensor_batches:
        assert (images[:, 0, 0, 0] == labels).all()


def test_each_pass_is_the_next_epoch_unless_set(hundred: Dataset) -> None:
    dataset = loader.TensorBatches(hundred.uri, "train", 100, seed=5)
    first, second = next(iter(dataset))[1], next(iter(dataset))[1]
    assert not torch.equal(first, second)
    dataset.set_epoch(0)
    assert torch.equal(next(iter(dataset))[1], first)
    assert first.tolist() == rows_of(iter_batches(hundred, "train", 100, 5, 0))


def test_pass_starts_at_a_batch_of_an_epoch(hundred: Dataset) -> None:
    dataset = loader.TensorBatches(hundred.uri, "train", 16, seed=1)
    whole = [labels.tolist() for _, labels in dataset]
    for start in range(len(whole)):
        dataset.set_epoch(0, start)
        assert [labels.tolist() for _, labels in dataset] == whole[start:]


def test_rows_are_in_stored_order_without_shuffling(hundred: Dataset) -> None:
    dataset = loader.TensorBatches(hundred.uri, "train", 30, shuffle=False)
    assert torch.cat([labels for _, labels in dataset]).tolist() == [n for s in range(6) for n in range(s, 100, 6)]


@pytest.mark.parametrize("workers", [0, 2])
def test_worker_processes_give_the_same_batches(hundred: Dataset, workers: int) -> None:
    alone = [labels.tolist() for _, labels in loader.TensorBatches(hundred.uri, "train", 16, seed=1)]
    data = DataLoader(
        loader.TensorBatches(hundred.uri, "train", 16, seed=1),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
    )
    assert [labels.tolist() for _, labels in data] == alone
    data.dataset.set_epoch(3)  # type: ignore[attr-defined]
    third = loader.TensorBatches(hundred.uri, "train", 16, seed=1)
    third.set_epoch(3)
    assert [labels.tolist() for _, labels in data] == [labels.tolist() for _, labels in third] != alone


def test_single_images_in_a_plain_dataloader(hundred: Dataset) -> None:
    dataset = loader.TensorImages(hundred.uri, "train")
    assert len(dataset) == 100
    stored = [n for s in range(6) for n in range(s, 100, 6)]
    assert [int(dataset[n][1]) for n in range(100)] == stored and int(dataset[-1][1]) == stored[-1]
    with pytest.raises(IndexError):
        dataset[100]
    seen_labels: list[int] = []
    for images, labels in DataLoader(
        dataset, batch_size=8, shuffle=True, num_workers=2, multiprocessing_context="fork"
    ):
        assert images.shape[1:] == (3, 4, 4) and images.dtype == torch.uint8
        assert (images[:, 2, 3, 3] == labels).all()
        seen_labels += labels.tolist()
    assert sorted(seen_labels) == list(range(100))


def test_datasets_can_be_pickled_for_spawned_workers(hundred: Dataset, tmp_path: Path) -> None:
    """As pickle, also from S3, with the cache of its files; what is mapped stays behind."""
    whole, single = loader.TensorBatches(hundred.uri, "train", 16, seed=1), loader.TensorImages(hundred.uri, "train")
    first = single[7]
    single._split = replace(single._split, cache=PartCache.create(str(tmp_path / "cache")))
    unpickled_batches, unpickled_images = pickle.loads(pickle.dumps(whole)), pickle.loads(pickle.dumps(single))
    assert [b[1].tolist() for b in unpickled_batches] == [b[1].tolist() for b in whole]
    assert all(torch.equal(a, b) for a, b in zip(unpickled_images[7], first, strict=True))


def test_invalid_split_or_uri_is_named(hundred: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split: expected one of train, found 'training'"):
        loader.TensorBatches(hundred.uri, "training", 8)
    with pytest.raises(UserError, match="expected the URI of a tensors dataset"):
        loader.TensorImages(str(tmp_path), "train")


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_every_batch_of_one_order(hundred: Dataset, ranks: int) -> None:
    alone: list[Batch] = list(iter_batches(hundred, "train", 16, 2, 1))
    shares = [list(iter_batches(hundred, "train", 16, 2, 1, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert len(alone) == 7 and len(shares[0]) == (7 if ranks == 2 else 6), "the last four rows are too few for three"
    for whole, *parts in zip(alone[: len(shares[0])], *shares, strict=True):
        assert np.concatenate([p.labels for p in parts]).tolist() == whole.labels.tolist()
        assert [p.first for p in parts] == [sum(len(q.labels) for q in parts[:n]) for n in range(ranks)]
        assert {p.total for p in parts} == {whole.total} == {len(whole.labels)}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_number_of_threads_does_not_change_batches(hundred: Dataset, threads: int) -> None:
    expected = rows_of(iter_batches(hundred, "train", 7, 3, 4, threads=1))
    assert rows_of(iter_batches(hundred, "train", 7, 3, 4, threads=threads)) == expected


def test_views_of_released_batches_keep_their_pixels(hundred: Dataset) -> None:
    views = [(b.images[1:3], b.labels[1:3]) for b in iter_batches(hundred, "train", 5, 0, 0)]  # views of batches let go
    gc.collect()
    for images, labels in views:
        assert (images == labels[:, None, None, None]).all()
    tensors = [(torch.from_numpy(b.images)[2:], b.labels[2:]) for b in iter_batches(hundred, "train", 5, 0, 0)]
    for tensor, labels in tensors:
        assert (tensor.numpy() == labels[:, None, None, None]).all()


def test_released_buffers_are_reused() -> None:
    pool = BufferPool((4, *SHAPE), max_free=2)
    first = pool.acquire()
    address = first.ctypes.data
    part = torch.from_numpy(first[1:])[0]
    del first
    assert pool.acquire().ctypes.data != address, "a view of a view of it is alive"
    del part
    assert address in {pool.acquire().ctypes.data, pool.acquire().ctypes.data}


def test_transform_runs_ahead_and_its_results_are_in_order(hundred: Dataset) -> None:
    transformed: list[int] = []
    results = iter_batches(
        hundred, "train", 4, 0, 0, threads=2, transform=lambda b: transformed.append(b.number) or b.number
    )
    assert list(islice(results, 3)) == [0, 1, 2]
    assert len(transformed) <= 3 + 4
    results.close()  # type: ignore[attr-defined]


def test_error_of_the_transform_is_raised(hundred: Dataset) -> None:
    def fail(batch: Batch) -> int:
        if batch.number == 3:
            raise ValueError("broken")
        return batch.number

    results = iter_batches(hundred, "train", 4, 0, 0, transform=fail)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(results)


def test_balanced_sampling_shows_rare_classes_more_often(tmp_path: Path) -> None:
    dataset = numbered(tmp_path, rows=10, group=5)
    weights = np.ones(10)
    weights[3] = 9
    rows = [
        label for batch in iter_batches(dataset, "train", 5, 0, 0, balance=weights) for label in batch.labels.tolist()
    ]
    assert len(rows) == 10 and rows.count(3) in (5, 6)
