"""Tensors in a bucket: the same batches as from disk, each file fetched once, and a full cache."""

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
from imagemill.components.train.data.cache import PartCache


@pytest.fixture
def remote(s3_workspace: str) -> Dataset:
    return numbered(s3_workspace, rows=300, group=7, files=12)


def test_batches_from_a_bucket_equal_those_from_disk(remote: Dataset, tmp_path: Path) -> None:
    local = numbered(tmp_path / "disk", rows=300, group=7, files=12)
    cache = PartCache.create(str(tmp_path / "cache"))
    for epoch in (0, 1):
        batches = list(iter_batches(remote, "train", 32, 1, epoch, cache=cache))
        assert np.concatenate([b.labels for b in batches]).tolist() == rows_of(
            iter_batches(local, "train", 32, 1, epoch)
        )
        assert all((b.images[:, 0, 0, 0] == b.labels % 256).all() for b in batches)
    assert len(list((tmp_path / "cache").glob("*.parquet"))) == 12


def test_second_epoch_is_read_from_the_cache(remote: Dataset, tmp_path: Path) -> None:
    cache = PartCache.create(str(tmp_path / "cache"))
    first = rows_of(iter_batches(remote, "train", 32, 1, 0, cache=cache))
    for part in remote.manifest.parts:
        get_store(remote.uri).put(remote.locate_part(part), b"no Parquet")
    assert rows_of(iter_batches(remote, "train", 32, 1, 0, cache=cache)) == first
    with pytest.raises(DatasetError, match="expected content with sha256"):
        rows_of(iter_batches(remote, "train", 32, 1, 0, cache=PartCache.create(str(tmp_path / "other"))))


def test_small_cache_does_not_change_batches(remote: Dataset, tmp_path: Path) -> None:
    small = PartCache.create(str(tmp_path / "cache"), max_bytes=2 * max(part.bytes for part in remote.manifest.parts))
    for epoch in (0, 1):
        assert sorted(rows_of(iter_batches(remote, "train", 32, 1, epoch, cache=small))) == list(range(300))
        assert len(list((tmp_path / "cache").glob("*.parquet"))) <= 2 + OPEN_THREADS


def test_dataset_is_opened_by_its_uri(remote: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dataset = loader.TensorBatches(remote.uri, "train", 50)
    assert sorted(label for _, labels in dataset for label in labels.tolist()) == list(range(300))
    single = loader.TensorImages(remote.uri, "train")
    monkeypatch.setattr("imagemill.components.train.data.loader.MAX_OPEN_PARTS", 3)
    assert sorted(int(single[n][1]) for n in range(len(single))) == list(range(300))
    assert len(single._parts) == 3, "what is mapped has its place on the disk"
    assert next(tmp_path.glob("imagemill-cache-*")).stat().st_mode & 0o777 == 0o700


def test_missing_file_is_named(remote: Dataset, tmp_path: Path) -> None:
    missing_uri = remote.locate_part(remote.manifest.parts[3])
    get_store(missing_uri).discard(missing_uri)
    with pytest.raises(DatasetError, match=f"{missing_uri}: expected a file that the manifest lists, found none"):
        rows_of(iter_batches(read_dataset(remote.uri), "train", 32, cache=PartCache.create(str(tmp_path))))
