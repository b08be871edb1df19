"""Resize in this process on small clean datasets, with and without masks, for the tests of copies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import photos
import pytest

from imagemill.components.clean.schema import make_clean_schema
from imagemill.components.dataset.kinds import CleanExtra, CleanImage
from imagemill.components.dataset.manifest import Dataset, File, Manifest, Totals, commit, read_dataset
from imagemill.components.dataset.shards import Layout, ShardWriter, read_columns
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
            "label": "a", **(label or {"label_id": self.number % 2}), "split": self.split,
            "shuffle_index": STEP * self.number, "width": width, "height": height, "mask": self.mask,
        }  # fmt: skip


def make_images(train: int, val: int = 3, test: int = 2) -> list[Image]:
    count_by_split = {"train": train, "val": val, "test": test}
    return [Image(number, split) for split, count in count_by_split.items() for number in range(1, count + 1)]


def clean_of(
    folder: Path, images: Sequence[Image], color: str = "rgb", masks: bool = False, multi: bool = False
) -> Dataset:
    """A committed clean dataset of these images in the workspace `folder`."""
    uri = f"{folder}/clean/01"
    schema = make_clean_schema(multi, masks=masks)
    files: list[File] = []
    for split in ("train", "val", "test"):
        chosen = sorted((image for image in images if image.split == split), key=lambda image: image.number)
        if not chosen:
            continue
        with ShardWriter(uri, Layout(schema, row_group_rows=5)) as writer:
            for image in chosen:
                row = image.row(multi)
                writer.add({name: row.get(name) for name in schema.names}, 1)
            files.append(writer.publish(f"data/{split}", "data", split))
    odd = sum(image.number % 2 for image in images)
    totals = Totals(
        rows=len(images), bytes=sum(f.bytes for f in files), by_split={f.split: f.rows for f in files},
        by_class={"a": len(images) if multi else len(images) - odd, "b": odd},
    )  # fmt: skip
    manifest = Manifest(
        "clean", "01", classes=("a", "b"), files=tuple(files), totals=totals, task="multi" if multi else "single",
        config={"keep_masks": True} if masks else {}, image=CleanImage(color, COLORS[color]),
        extra=CleanExtra(dataset_name="x"),
    )  # fmt: skip
    return commit(uri, manifest)


def resized(clean: Dataset, **options: Any) -> Dataset:
    workspace = Workspace.open(clean.uri.rpartition("/clean/")[0])
    config = ResizeConfig(workspace=workspace.uri, clean=clean.uri, **({"image_size": 24} | options))
    config.check()
    return read_dataset(resize.resize(config, Context("resize", workspace, "r", False)).uri, "tensors")


def rows_of(tensors: Dataset, split: str | None = "train") -> list[dict[str, Any]]:
    """Rows in the files' order, their images as uint8 [H, W, C] where they are raw."""
    shape = tensors.manifest.image.shape
    rows = [row for table in read_columns(tensors, "data", None, split) for row in table.to_pylist()]  # type: ignore[arg-type]
    if tensors.manifest.image.encoding == "raw":
        for row in rows:
            row["image"] = np.frombuffer(row["image"], np.uint8).reshape(shape)
    return rows


def by_copy(tensors: Dataset) -> dict[tuple[str, int], Any]:
    """(image_id, copy) → (pixels, augmentation) of the training split."""
    return {(r["image_id"], r["copy"]): (r["image"], r["augmentation"]) for r in rows_of(tensors)}


@contextmanager
def no_session(*_: object) -> Iterator[int]:
    yield 1


def run_in_this_process(
    jobs: Iterable[Any], work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], slots: Any
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Run jobs in this process, the last first: Ray itself is tested elsewhere."""
    for job in reversed(list(jobs)):
        yield job, json.loads(json.dumps(work(job, *arguments)))


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace Ray by `run_in_this_process`."""
    monkeypatch.setattr(resize, "open_ray_session", no_session)
    monkeypatch.setattr(resize, "run_tasks", run_in_this_process)
