"""Clean datasets that grow and change, in files as clean leaves them, and the tensors that are made of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cleaned import NONE_FOUND, Row, picture

from imagemill.components.clean.config import CleanConfig
from imagemill.components.clean.schema import make_clean_layout, make_clean_schema
from imagemill.components.clean.splits import SPLITS
from imagemill.components.dataset.kinds import CleanExtra, CleanImage
from imagemill.components.dataset.manifest import Dataset, Manifest, Totals, commit, digest, read_dataset
from imagemill.components.dataset.shards import Layout, ShardWriter, row_groups
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.resize import resize as resize_module
from imagemill.components.resize import tensor_shards
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.step.step import Context

CLASSES = ("cat", "dog", "emu")
BUCKETS = 6
"""Files of a clean dataset, by the image_ids' hash: those of buckets without a change stay the same."""


@dataclass(frozen=True)
class Photo:
    """An image of the source: its content depends on the name and the version."""

    label: str = "cat"
    split: str = "train"
    version: int = 0


Photos = Mapping[str, Photo]


def several(number: int, prefix: str = "p", label: str = "") -> dict[str, Photo]:
    """Make `number` photos of three classes, three of five in train."""
    return {
        f"{prefix}{n:03d}": Photo(label or CLASSES[n % 2], ("train", "val", "train", "test", "train")[n % 5])
        for n in range(number)
    }


@cache
def _columns(name: str, photo: Photo) -> dict[str, Any]:
    data = picture(f"{name}-{photo.version}")
    return Row(name, photo.label, photo.split, data).columns(CLASSES)


def clean_of(workspace: Workspace, photos: Photos, buckets: int = BUCKETS, **config: Any) -> Dataset:
    """The clean dataset of some photos; in `buckets` files a split, each in shuffled order."""
    name = digest([sorted((key, *vars(photo).values()) for key, photo in photos.items()), buckets, config])
    uri = workspace.dataset_uri("clean", name)
    layout = Layout(make_clean_layout(make_clean_schema()).schema, row_group_rows=3)
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for key, photo in photos.items():
        bucket = hashlib.sha256(key.encode()).digest()[0] % buckets
        rows.setdefault((photo.split, bucket), []).append(_columns(key, photo))
    files = []
    for split, bucket in sorted(rows, key=lambda key: (SPLITS.index(key[0]), key[1])):
        with ShardWriter(uri, layout) as writer:
            for row in sorted(rows[split, bucket], key=lambda row: (row["shuffle_index"], row["image_id"])):
                writer.add(row, 0)
            files.append(writer.publish(f"data/{split}", "data", split))
    splits, labels = (Counter(getattr(photo, field) for photo in photos.values()) for field in ("split", "label"))
    totals = Totals(
        rows=len(photos), bytes=sum(row["image_bytes"] for part in rows.values() for row in part),
        by_split={split: splits[split] for split in SPLITS}, by_class={label: labels[label] for label in CLASSES},
    )  # fmt: skip
    manifest = Manifest(
        "clean", name, config=CleanConfig(**config).manifest_values(), classes=CLASSES, files=tuple(files),
        totals=totals, image=CleanImage("rgb", 3), extra=CleanExtra(dataset_name="zoo", found=NONE_FOUND),
    )  # fmt: skip
    return commit(uri, manifest)


def make_config(clean: Dataset, **options: Any) -> ResizeConfig:
    workspace = clean.uri.rpartition("/clean/")[0]
    values = {"workspace": workspace, "clean": clean.uri, "image_size": 16, "executor": "threads", "device": "cpu"}
    return ResizeConfig.from_values(values | options)


def resized(clean: Dataset, rerun: bool = False, **options: Any) -> Dataset:
    """The tensors of a clean dataset, made by threads of this process."""
    config = make_config(clean, **options)
    context = Context("resize", Workspace.open(config.workspace), "r", rerun)
    return read_dataset(resize_module.resize(config, context).uri, "tensors")


Tensor = tuple[str, int, bytes]


def content(tensors: Dataset) -> dict[str, Tensor]:
    """(split, label_id, pixels) by image_id; AssertionError for one that is there twice."""
    tensors_by_id: dict[str, Tensor] = {}
    for file in tensors.files():
        rows = 0
        for table in row_groups(tensors, file):
            rows += table.num_rows
            for row in table.to_pylist():
                assert row["image_id"] not in tensors_by_id
                tensors_by_id[row["image_id"]] = (file.split, row["label_id"], row["image"])
        assert rows == file.rows
    return tensors_by_id


def generations(tensors: Dataset, split: str | None = None) -> dict[int, int]:
    """Rows by generation."""
    rows: Counter[int] = Counter()
    for file in tensors.files("data", split):
        rows[tensors.manifest.extra.generation(file.uri)] += file.rows
    return dict(sorted(rows.items()))


def relabeled(photo: Photo) -> Photo:
    return replace(photo, label=CLASSES[(CLASSES.index(photo.label) + 1) % 3])


def replaced(photo: Photo) -> Photo:
    return replace(photo, version=photo.version + 1)


@contextmanager
def decoded() -> Iterator[list[int]]:
    """The number of images that are decoded meanwhile."""
    count, decode = [0], tensor_shards.decode_and_resize
    with pytest.MonkeyPatch.context() as patch:

        def counted(*arguments: Any) -> Any:
            count[0] += 1
            return decode(*arguments)

        patch.setattr(tensor_shards, "decode_and_resize", counted)
        yield count


def from_nothing(photos: Photos, folder: Path, **options: Any) -> Dataset:
    """The tensors of the same photos in a workspace of their own."""
    return resized(clean_of(Workspace.open(str(folder)), photos), **options)


def assert_equal(tensors: Dataset, expected: Dataset) -> None:
    assert tensors.fingerprint == expected.fingerprint
    assert content(tensors) == content(expected)
    assert tensors.manifest.totals == expected.manifest.totals
    assert tensors.manifest.image == expected.manifest.image
    assert tensors.manifest.classes == expected.manifest.classes and not tensors.missing()
