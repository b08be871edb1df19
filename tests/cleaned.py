"""Small clean datasets that are made without the step: their files are real, what they say is up to the test."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import photos
from PIL import Image
from placed import place

from imagemill.components.clean.config import CleanConfig
from imagemill.components.clean.schema import MEASURES, REJECTED, TWINS, make_clean_schema
from imagemill.components.dataset.index import RAW_INDEX, make_clean_index
from imagemill.components.dataset.kinds import CleanExtra, CleanImage, RawExtra
from imagemill.components.dataset.manifest import Dataset, File, Manifest, Totals, commit, count_values
from imagemill.components.dataset.shards import Layout, ShardWriter
from imagemill.components.dataset.splits import SPLITS, compute_shuffle_index
from imagemill.components.download.rows import RAW

SIZE = (40, 30)


@dataclass
class Row:
    """A kept image; what is not given is made up from its name."""

    image_id: str
    label: str = "cat"
    split: str = "train"
    data: bytes = b""
    declared: str | None = None
    warning: str | None = None
    measures: dict[str, float] | None = field(default_factory=dict)
    thumbnail: bytes | None = None

    def columns(self, classes: Sequence[str]) -> dict[str, Any]:
        data = self.data or picture(self.image_id)
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            width, height = Image.open(io.BytesIO(data)).size
        except OSError:
            width, height = 1, 1
        measured: dict[str, Any] = {}
        if self.measures is not None:
            ratio = {"aspect_ratio": width / height}
            measured = {"phash": 1, "thumbnail": self.thumbnail or bytes([100]) * 864}
            measured |= dict.fromkeys(MEASURES, 0.5) | ratio | self.measures
        return {
            "image_id": self.image_id, "image": {"bytes": data, "path": self.image_id}, "label": self.label,
            "label_id": classes.index(self.label) if self.label in classes else 0, "split": self.split,
            "declared_split": self.declared, "group": None, "shuffle_index": compute_shuffle_index(sha256),
            "split_position": {"val": 0.0, "test": 1.0}.get(self.split, 0.5),
            "width": width, "height": height, "sha256": sha256, "format": "JPEG", "image_bytes": len(data),
            "pixel_hash": sha256[:32], **measured, "decoder_warning": self.warning,
        }  # fmt: skip


def picture(seed: str, size: tuple[int, int] = SIZE, kind: str = "JPEG") -> bytes:
    random = np.random.default_rng([*seed.encode()])
    color = random.integers(0, 256, 3)
    pixels = np.clip(color + random.normal(0, 20, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    return photos.saved(pixels, kind)


NONE_FOUND: dict[str, Any] = {
    "duplicates": {
        "groups": 0, "conflicts": 0, "conflict_examples": [], "declared_test_images_in_declared_train": 0,
    },
    "near_duplicates": {
        "radius": 3, "candidates": 0, "complete": True, "pairs": 0, "images": 0, "by_splits": {}, "dropped": 0,
        "conflicts": 0, "conflict_examples": [],
    },
    "leakage": {
        "declared_test_images_with_twin_in_declared_train": 0, "test_images_with_twin_in_train": 0,
        "test_images_with_twin_in_val": 0, "policy": "auto", "dropped": 0, "kept": 0,
    },
    "outliers": {},
}  # fmt: skip
"""What a step that looked at everything and found nothing says."""


def raw_dataset(
    workspace: Path | str, rows: list[dict[str, Any]], parts: int = 2, name: str = "00", row_group_rows: int = 0
) -> Dataset:
    """A raw dataset of rows as `raw_row` makes them, dealt out to so many parts."""
    uri = f"{workspace}/raw/{name}"
    layout = Layout(RAW, row_group_rows=row_group_rows) if row_group_rows else Layout(RAW)
    by_class, by_split = (count_values(row[column] or "" for row in rows) for column in ("label", "split"))
    totals, extra = (
        Totals(rows=len(rows), by_class=by_class, by_split=by_split),
        RawExtra(source="here", dataset_name="toy"),
    )
    placed = place(uri, rows, layout, RAW_INDEX, parts=parts)
    return commit(uri, Manifest("raw", name, totals=totals, extra=extra, **placed))


def raw_row(image_id: str, data: bytes | None, label: str | None, split: str | None = None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(RAW.names) | {"bytes": len(data or b"")}
    sha256 = hashlib.sha256(data).hexdigest() if data is not None else None
    return row | {"image_id": image_id, "image": data, "sha256": sha256, "label": label, "split": split}


def twin(first: str, second: str, distance: int = 2, difference: float = 0.01, **more: str) -> dict[str, Any]:
    """A row of the `twins` file; labels are `cat`, splits `train`, and none was dropped, unless `more` says so."""
    row = {"image_id": first, "twin_id": second, "distance": distance, "difference": difference}
    return row | {"label": "cat", "twin_label": "cat", "split": "train", "twin_split": "train", "dropped": ""} | more


def reject(image_id: str, reason: str, detail: str = "broken") -> dict[str, Any]:
    return {"image_id": image_id, "sha256": "0" * 64, "reason": reason, "detail": detail}


def draft(
    uri: str,
    rows: Sequence[Row],
    rejected: Sequence[dict[str, Any]] = (),
    twins: Sequence[dict[str, Any]] = (),
    found: dict[str, Any] | None = NONE_FOUND,
    classes: Sequence[str] = (),
    config: CleanConfig | None = None,
    row_group_rows: int = 7,
    parts: int = 1,
    **more: Any,
) -> Dataset:
    """The files, and the manifest that `ledger.make_manifest` would write for them, not committed."""
    names = tuple(classes) or tuple(sorted({row.label for row in rows}))
    layout = Layout(make_clean_schema(), row_group_rows=row_group_rows)
    ordered = [row for split in SPLITS for row in rows if row.split == split]
    columns = [row.columns(names) | {"source_row": number} for number, row in enumerate(ordered)]
    placed = place(uri, columns, layout, make_clean_index("single"), parts=parts)
    files: list[File] = list(placed["files"])
    for role, schema, records in (("rejected", REJECTED, rejected), ("twins", TWINS, twins)):
        if records:
            with ShardWriter(uri, Layout(schema, row_group_rows=row_group_rows)) as writer:
                for record in records:
                    writer.add(record, 0)
                files.append(writer.publish(role, role))
    by_class_split = {s: Counter(row.label for row in rows if row.split == s) for s in SPLITS}
    totals = Totals(
        rows=len(rows), bytes=sum(len(row.data or picture(row.image_id)) for row in rows), rejected=len(rejected),
        by_split={s: by_class_split[s].total() for s in SPLITS},
        by_class={name: sum(by_class_split[s][name] for s in SPLITS) for name in names},
        by_reason=dict(sorted(Counter(row["reason"] for row in rejected).items())),
    )  # fmt: skip
    extra = CleanExtra(
        dataset_name="toy",
        by_class_and_split={s: {c: by_class_split[s][c] for c in names} for s in SPLITS},
        decoder_warnings=sum(row.warning is not None for row in rows),
        rows_in=len(rows) + len(rejected),
        found=found or {},
    )
    manifest = Manifest(
        "clean", uri.rpartition("/")[2], config=(config or CleanConfig()).manifest_values(), classes=names,
        parts=placed["parts"], files=tuple(files), totals=totals,
        **({"image": CleanImage("rgb", 3), "extra": extra} | more),
    )  # fmt: skip
    return Dataset(uri, manifest, "")


def cleaned(uri: str, rows: Sequence[Row], *args: Any, **more: Any) -> Dataset:
    return commit(uri, draft(uri, rows, *args, **more).manifest)
