"""Resize in this process on small clean datasets, with and without masks, for the tests of copies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import photos
import pytest
from placed import place

from imagemill.components.clean.config import CleanConfig
from imagemill.components.clean.schema import make_clean_schema
from imagemill.components.dataset.index import make_clean_index, read_rows
from imagemill.components.dataset.kinds import CleanExtra, CleanImage
from imagemill.components.dataset.labels import label_column
from imagemill.components.dataset.manifest import Dataset, Manifest, Totals, commit, read_dataset
from imagemill.components.dataset.shards import Layout
from imagemill.components.dataset.splits import SPLITS
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.imaging.pixel_options import COLORS
from imagemill.components.resize import resize
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.step.step import Context

STEP = 2**40
"""Between two shuffle indices."""


@dataclass(frozen=True)
class Image:
    """An image of a clean dataset; its content depends on its number alone."""

    number: int
    split: str = "train"
    mask: bytes | None = None
    data: bytes = b""

    @property
    def name(self) -> str:
        return f"{self.split}/{self.number:03d}.png"

    @property
    def pixels(self) -> Any:
        """uint8 [H, W, 3]"""
        return photos.made(self.number, 60 + self.number % 7, 48 + self.number % 5)

    def row(self, multi: bool) -> dict[str, Any]:
        height, width = self.pixels.shape[:2]
        label: dict[str, Any] = {"label_ids": [0, 1] if self.number % 2 else [0]} if multi else {}
        return {
            "image_id": self.name, "image": {"bytes": self.data or photos.saved(self.pixels), "path": ""},
            "label": "a", **(label or {"label_id": self.number % 2}), "split": self.split, "declared_split": self.split,
            "split_position": 0.5, "shuffle_index": STEP * self.number, "width": width, "height": height,
            "mask": self.mask,
        }  # fmt: skip


def make_images(train: int, val: int = 3, test: int = 2) -> list[Image]:
    count_by_split = {"train": train, "val": val, "test": test}
    return [Image(number, split) for split, count in count_by_split.items() for number in range(1, count + 1)]


def clean_of(
    folder: Path, images: Sequence[Image], color: str = "rgb", masks: bool = False, multi: bool = False
) -> Dataset:
    """A committed clean dataset of these images in the workspace `folder`."""
    uri = f"{folder}/clean/01"
    ordered = sorted(images, key=lambda image: (SPLITS.index(image.split), image.number))
    rows = [image.row(multi) | {"source_row": number} for number, image in enumerate(ordered)]
    task = "multi" if multi else "single"
    placed = place(uri, rows, Layout(make_clean_schema(masks), row_group_rows=5), make_clean_index(task))
    odd = sum(image.number % 2 for image in images)
    totals = Totals(
        rows=len(images), bytes=placed["parts"][0].bytes,
        by_split={split: sum(image.split == split for image in images) for split in SPLITS},
        by_class={"a": len(images) if multi else len(images) - odd, "b": odd},
    )  # fmt: skip
    manifest = Manifest(
        "clean", "01", classes=("a", "b"), totals=totals, task=task, **placed,
        config=CleanConfig(keep_masks=masks).manifest_values(), image=CleanImage(color, COLORS[color]),
        extra=CleanExtra(dataset_name="x"),
    )  # fmt: skip
    return commit(uri, manifest)


def resized(clean: Dataset, **options: Any) -> Dataset:
    workspace = Workspace.open(clean.uri.rpartition("/clean/")[0])
    config = ResizeConfig(workspace=workspace.uri, clean=clean.uri, **({"image_size": 24} | options))
    config.check()
    return read_dataset(resize.resize(config, Context("resize", workspace, "r", False)).uri, "tensors")


def rows_of(tensors: Dataset, split: str | None = "train") -> list[dict[str, Any]]:
    """Rows in the index's order, their images as uint8 [H, W, C] where they are raw."""
    shape = tensors.manifest.image.shape
    copies = ["augmentation"] if tensors.manifest.config["copies"] else []
    columns = ["image", label_column(tensors.manifest.task), "image_id", "copy", "split", *copies]
    rows = [row for table in read_rows(tensors, columns, split) for row in table.to_pylist()]
    if tensors.manifest.image.encoding == "raw":
        for row in rows:
            row["image"] = np.frombuffer(row["image"], np.uint8).reshape(shape)
    return rows


def by_copy(tensors: Dataset) -> dict[tuple[str, int], Any]:
    """(image_id, copy) → (pixels, augmentation) of the training split."""
    return {(r["image_id"], r["copy"]): (r["image"], r["augmentation"]) for r in rows_of(tensors)}


class _ThisProcess:
    """Stands for a Ray session: Ray itself is tested elsewhere."""

    step = "resize"

    def __init__(self) -> None:
        self._results: list[dict[str, Any]] = []

    def count_slots(self) -> int:
        return 2

    def submit(self, work: Callable[..., dict[str, Any]], task: Any, arguments: tuple[Any, ...]) -> int:
        self._results.append(json.loads(json.dumps(work(task, *arguments))))
        return len(self._results) - 1

    def wait(self, handles: Sequence[int]) -> Sequence[int]:
        return list(reversed(handles))

    def get_result(self, handle: int) -> dict[str, Any]:
        return self._results[handle]


@contextmanager
def open_this_process(*_: object, **__: object) -> Iterator[_ThisProcess]:
    yield _ThisProcess()


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace Ray by this process."""
    monkeypatch.setattr(resize, "open_ray_session", open_this_process)
