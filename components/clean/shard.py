"""A slice of a raw shard → clean files (one a split, in shuffled order) and its rejects.

A row depends only on its raw row, the config and the class list, so a slice can be done alone, again, or
by another process, with the same bytes as its result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import xxhash

from ..store.images import ImageRejected, Pixels
from ..store.manifest import Dataset, File
from ..store.parallel import map_ordered
from ..store.shards import Layout, ShardWriter, row_groups
from ..store.standardize import StandardizedImage, standardize
from .config import CleanConfig
from .labels import LabelRules
from .measures import Measures, measure
from .schema import MEASURES, REJECTED, clean_layout, clean_schema
from .slices import Slice
from .splits import choose_split, shuffle_index

UNSPLIT = ""
"""The split of candidates that get theirs only when all are known."""


@dataclass(frozen=True)
class CleanedShard:
    """What one slice gave: the files of its kept rows, and of its rejected ones if there are any."""

    data: tuple[File, ...]
    rejected: tuple[File, ...]

    def to_record(self) -> dict[str, Any]:
        return {"data": [asdict(f) for f in self.data], "rejected": [asdict(f) for f in self.rejected]}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> CleanedShard:
        return cls(tuple(File(**f) for f in record["data"]), tuple(File(**f) for f in record["rejected"]))


@dataclass(frozen=True)
class RowRules:
    """What decides about a row besides the row itself."""

    config: CleanConfig
    labels: LabelRules

    @property
    def one_hot(self) -> bool:
        return self.config.label_encoding == "one_hot"

    def layout(self) -> Layout:
        return clean_layout(clean_schema(self.labels.multi, self.one_hot, self.config.keep_masks))


@dataclass
class CleanedRows:
    """The rows of one slice, in memory: about its size, 64 MB."""

    kept: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    rejected: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any], folder: str) -> None:
        if "reason" in row:
            self.rejected.append(row)
        else:
            self.kept.setdefault(folder, []).append(row)


def clean_shard(
    raw: Dataset, part: Slice, uri: str, rules: RowRules, count: Callable[[int], None], turn: threading.Lock,
    threads: int,
) -> CleanedShard:  # fmt: skip
    """Clean one slice into files below the dataset `uri`; `count` is told of finished images.

    Slices of one process take turns at decoding: `turn` is given on when this one is only written.
    """
    with turn:
        rows = clean_rows(raw, part, rules, count, threads)
    return write_shard(rows, uri, rules)


def clean_rows(raw: Dataset, part: Slice, rules: RowRules, count: Callable[[int], None], threads: int) -> CleanedRows:
    """Every row of one slice, on so many threads."""
    rows = CleanedRows()
    unsplit = rules.config.split == "exact"
    read = _rows(raw, part, rules.config)
    if threads == 1:
        done: Iterable[dict[str, Any]] = (clean_row(row, rules) for row in read)
    else:
        done = map_ordered(read, lambda r: clean_row(r, rules), threads, lambda r: len(r["image"] or b""))
    for row in done:
        rows.add(row, UNSPLIT if unsplit else row.get("split", ""))
        count(1)
    return rows


def write_shard(rows: CleanedRows, uri: str, rules: RowRules) -> CleanedShard:
    """The files of one slice, in the order of their splits' names."""
    data = tuple(write_rows(uri, split, rows.kept[split], rules.layout()) for split in sorted(rows.kept))
    return CleanedShard(data, (write_rejected(uri, rows.rejected),) if rows.rejected else ())


def _rows(raw: Dataset, part: Slice, config: CleanConfig) -> Iterator[dict[str, Any]]:
    """Raw rows with the columns that this config needs; a shard may lack `group`, if it is an old one."""
    columns = ["image_id", "image", "sha256", "label", "split", "group"]
    columns += ["boxes"] if config.roi != "off" else []
    columns += ["mask"] if config.background != "off" or config.keep_masks else []
    for table in row_groups(raw, part.file, columns, range(part.first, part.last)):
        yield from table.to_pylist()


def clean_row(row: dict[str, Any], rules: RowRules) -> dict[str, Any]:
    """A raw row → a clean row, or a row of rejects (which has a `reason`)."""
    config = rules.config
    try:
        if row["image"] is None:
            raise ImageRejected("missing_file", "the source names it but it is not there")
        labels = rules.labels.read(row["label"])
        done = standardize(row["image"], config, row.get("boxes"), row.get("mask"))
        measured = _measured(done, len(row["image"]), config)
    except ImageRejected as error:
        return {k: row[k] for k in ("image_id", "sha256")} | {"reason": error.reason, "detail": error.detail}
    height, width = done.pixels.shape[:2]
    declared = row["split"] if config.declared_splits == "respect" else None
    split = choose_split(row["sha256"], declared, config.val_fraction, config.test_fraction, row.get("group"))
    return {
        "image_id": row["image_id"],
        "image": {"bytes": done.data, "path": row["image_id"].rpartition("/")[2]},
        **_encoded(labels, rules),
        "split": split,
        "declared_split": row["split"],
        "group": row.get("group"),
        "shuffle_index": shuffle_index(row["sha256"]),
        "width": width,
        "height": height,
        "sha256": row["sha256"],
        "format": done.format,
        "image_bytes": len(done.data),
        "pixel_hash": pixel_hash(done.pixels),
        **measured,
        "decoder_warning": done.warning or None,
    } | ({"mask": done.mask} if config.keep_masks else {})


def _encoded(labels: list[str], rules: RowRules) -> dict[str, Any]:
    """The label as text, as ids, and as ones and zeros where that is asked for."""
    ids = [rules.labels.ids[name] for name in labels]
    found: dict[str, Any] = {"label": rules.labels.separator.join(labels) if rules.labels.multi else labels[0]}
    found |= {"label_ids": ids} if rules.labels.multi else {"label_id": ids[0]}
    if rules.one_hot:
        found["label_one_hot"] = [int(number in ids) for number in range(len(rules.labels.ids))]
    return found


def _measured(done: StandardizedImage, source_bytes: int, config: CleanConfig) -> dict[str, Any]:
    """The measures of the picture as it is stored; ImageRejected for one that breaks a limit."""
    height, width = done.pixels.shape[:2]
    short, long = min(width, height), max(width, height)
    if short < config.min_side:
        raise ImageRejected("too_small", f"{width:,} x {height:,} pixels, at least {config.min_side:,} a side")
    if config.max_aspect and long > config.max_aspect * short:
        raise ImageRejected(
            "extreme_aspect", f"{width:,} x {height:,} pixels, sides of at most {config.max_aspect:g}:1"
        )
    if not config.measures:
        return {}
    found: Measures = measure(done.pixels)
    if found.contrast < config.min_contrast:
        raise ImageRejected("blank", f"contrast {found.contrast:.4f}, at least {config.min_contrast:g}")
    return {
        **{name: getattr(found, name) for name in MEASURES if hasattr(found, name)},
        "aspect_ratio": width / height,
        "bytes_per_pixel": source_bytes / (done.source_width * done.source_height),
        "phash": found.phash,
        "thumbnail": found.thumbnail,
    }


def pixel_hash(pixels: Pixels) -> str:
    """xxh3-128 of the upright pixels and their shape: equal pixels in whatever format and orientation."""
    found = xxhash.xxh3_128(str(pixels.shape).encode())
    found.update(np.ascontiguousarray(pixels).data)
    return found.hexdigest()


def write_rows(uri: str, split: str, rows: list[dict[str, Any]], layout: Layout) -> File:
    """One clean file, its rows in shuffled order (ties, which only copies can have, by image_id)."""
    with ShardWriter(uri, layout) as writer:
        for row in sorted(rows, key=lambda r: (r["shuffle_index"], r["image_id"])):
            writer.add(row, len(row["image"]["bytes"]))
        return writer.publish(f"data/{split or 'unsplit'}", "data", split)


def write_rejected(uri: str, rows: list[dict[str, Any]]) -> File:
    """One file of rejects, by image_id."""
    with ShardWriter(uri, Layout(REJECTED)) as writer:
        for row in sorted(rows, key=lambda r: r["image_id"]):
            writer.add(row, 0)
        return writer.publish("rejected", "rejected")
