"""Tensors in a bucket: the same batches as from a disk, every file fetched once, a cache that is full, a lost store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stored import numbered, rows_of

from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.storage.errors import DatasetError
from imagemill.components.storage.store import get_store
from imagemill.components.train.data import loader
from imagemill.components.train.data.batches import OPEN_THREADS, iter_batches
from imagemill.components.train.data.cache import ShardCache


@pytest.fixture
def there(s3_workspace: str) -> Dataset:
    return numbered(s3_workspace, rows=300, group=7, files=12)


def test_batches_from_a_bucket_are_those_of_a_disk(there: Dataset, tmp_path: Path) -> None:
    here = numbered(tmp_path / "disk", rows=300, group=7, files=12)
    cache = ShardCache.create(str(tmp_path / "cache"))
    for epoch in (0, 1):
        found = list(iter_batches(there, "train", 32, 1, epoch, cache=cache))
        assert np.concatenate([b.labels for b in found]).tolist() == rows_of(iter_batches(here, "train", 32, 1, epoch))
        assert all((b.images[:, 0, 0, 0] == b.labels % 256).all() for b in found)
    assert len(list((tmp_path / "cache").glob("*.parquet"))) == 12


def test_the_second_epoch_comes_from_the_cache(there: Dataset, tmp_path: Path) -> None:
    cache = ShardCache.create(str(tmp_path / "cache"))
    first = rows_of(iter_batches(there, "train", 32, 1, 0, cache=cache))
    for file in there.files():
        get_store(there.uri).put(there.locate(file), b"no Parquet")
    assert rows_of(iter_batches(there, "train", 32, 1, 0, cache=cache)) == first
    with pytest.raises(DatasetError, match="expected content with sha256"):
        rows_of(iter_batches(there, "train", 32, 1, 0, cache=ShardCache.create(str(tmp_path / "other"))))


def test_a_cache_that_holds_two_files_of_twelve_changes_nothing_but_the_time(there: Dataset, tmp_path: Path) -> None:
    small = ShardCache.create(str(tmp_path / "cache"), max_bytes=2 * max(f.bytes for f in there.files()))
    for epoch in (0, 1):
        assert sorted(rows_of(iter_batches(there, "train", 32, 1, epoch, cache=small))) == list(range(300))
        assert len(list((tmp_path / "cache").glob("*.parquet"))) <= 2 + OPEN_THREADS


def test_a_dataset_by_its_uri(there: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dataset = loader.TensorBatches(there.uri, "train", 50)
    assert sorted(label for _, labels in dataset for label in labels.tolist()) == list(range(300))
    single = loader.TensorImages(there.uri, "train")
    monkeypatch.setattr("imagemill.components.train.data.loader.MAX_MAPPED_FILES", 3)
    assert sorted(int(single[n][1]) for n in range(len(single))) == list(range(300))
    assert len(single._shards) == 3, "what is mapped has its place on the disk"
    assert next(tmp_path.glob("imagemill-cache-*")).stat().st_mode & 0o777 == 0o700


def test_a_file_that_is_gone_is_named(there: Dataset, tmp_path: Path) -> None:
    gone = there.locate(there.files()[3])
    get_store(gone).discard(gone)
    with pytest.raises(DatasetError, match=f"{gone}: expected a file that the manifest lists, found none"):
        rows_of(iter_batches(read_dataset(there.uri), "train", 32, cache=ShardCache.create(str(tmp_path))))
