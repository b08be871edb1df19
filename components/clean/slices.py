"""Cleaning of one slice of a raw shard: clean files (one per split, in shuffled order) and the rejected rows.

A row depends only on its raw row, the config and the ids of its labels, so that a slice can be cleaned alone, again,
or by another process, with the same bytes as its result, and for every snapshot that has it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import xxhash

from ..dataset.manifest import Dataset, File, locate_file
from ..dataset.shards import READ_THREADS, Layout, ShardWriter, open_parquet, read_file, read_row_group
from ..imaging.decoder import ImageRejected, Pixels
from ..imaging.standardize import standardize
from ..storage.parallel import map_ordered
from .config import CleanConfig
from .labels import LabelRules
from .measures import Measures, ReducedPicture, measure_reduced, reduce_picture
from .schema import REJECTED, make_candidates_layout, make_clean_layout, make_clean_schema
from .splits import choose_split, compute_shuffle_index

SLICE_BYTES = 32 * 2**20
"""Bytes of raw row groups in a slice: bounds a process's memory, and the work that is done again after a failure."""
BATCH_BYTES = 2**20
"""Bytes of the image files that are decoded before they are measured."""
MAX_HELD_BYTES = 2**20
"""Largest reduced picture that is held until then; a photograph's of a megapixel has 0.4 MB."""
UNSPLIT = ""
"""Split of candidates whose split is assigned only when all candidates are known."""


@dataclass(frozen=True)
class Slice:
    """The unit of cleaning's work: the row groups `first` (inclusive) to `last` (exclusive) of one raw shard, of
    `bytes` uncompressed. `labels`: the label texts that occur, sorted; empty text for rows without one."""

    file: File
    first: int
    last: int
    rows: int
    bytes: int
    labels: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name of the slice among those of its dataset."""
        return f"{self.file.sha256[:16]}-{self.first:04d}"


def plan_slices(raw: Dataset) -> list[Slice]:
    """Divide a raw dataset into slices, in its order; reads only the footers and the labels of its files.

    A slice covers all rows of its row groups, those that have left the source too: so it stays the same.
    """
    planned = map_ordered(raw.files(), lambda file: _plan_file(raw, file), READ_THREADS, lambda _: 0)
    return [slice_ for slices in planned for slice_ in slices]


def _plan_file(raw: Dataset, file: File) -> list[Slice]:
    uri = raw.locate(file)
    slices: list[Slice] = []
    first = rows = size = 0
    labels: set[str] = set()
    with open_parquet(uri) as parquet:
        last = parquet.num_row_groups
        for index in range(last):
            group = parquet.metadata.row_group(index)
            if size and size + group.total_byte_size > SLICE_BYTES:
                slices.append(Slice(file, first, index, rows, size, tuple(sorted(labels))))
                first, rows, size, labels = index, 0, 0, set()
            rows += group.num_rows
            size += group.total_byte_size
            texts = read_row_group(parquet, index, uri, ["label"]).column("label").unique().to_pylist()
            labels.update(text or "" for text in texts)
    if rows:
        slices.append(Slice(file, first, last, rows, size, tuple(sorted(labels))))
    return slices


@dataclass(frozen=True)
class CleanedSlice:
    """The files that one slice resulted in, with URIs relative to the folder that it was cleaned into: the valid rows
    (a file per split), the same rows without images, in that order, and the rejected ones; none for no rows."""

    candidates: tuple[File, ...]
    data: tuple[File, ...]
    rejected: tuple[File, ...]

    @property
    def required_files(self) -> tuple[File, ...]:
        """The files without which the slice has to be cleaned again."""
        return self.candidates + self.rejected

    def to_record(self) -> dict[str, Any]:
        return {name: [asdict(file) for file in files] for name, files in vars(self).items()}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> CleanedSlice:
        return cls(**{field.name: tuple(File(**file) for file in record[field.name]) for field in fields(cls)})


@dataclass(frozen=True)
class RowRules:
    """Everything besides a raw row that its clean row depends on."""

    config: CleanConfig
    labels: LabelRules

    def select_row_options(self) -> RowRules:
        """Return the rules without what only the decision on all images reads: no row can depend on that."""
        return replace(self, config=self.config.select_row_options())

    @property
    def is_one_hot(self) -> bool:
        return self.config.label_encoding == "one_hot"

    @property
    def layout(self) -> Layout:
        schema = make_clean_schema(self.labels.is_multi_label, self.is_one_hot, self.config.keep_masks)
        return make_clean_layout(schema)


def clean_slice(slice_: Slice, raw_uri: str, uri: str, rules: RowRules, threads: int) -> dict[str, Any]:
    """Clean one slice of the raw dataset on `threads` threads into files below the folder `uri`, in alphabetical order
    of their splits; return the record of its `CleanedSlice`. Holds the slice's cleaned rows, about 64 MB."""
    kept: dict[str, list[dict[str, Any]]] = {}
    rejected: list[dict[str, Any]] = []
    for row in _clean_rows(slice_, raw_uri, rules, threads):
        if "reason" in row:
            rejected.append(row)
        else:
            kept.setdefault(UNSPLIT if rules.config.split == "exact" else row["split"], []).append(row)
    kept = {split: sort_rows(kept[split]) for split in sorted(kept)}
    data = tuple(write_rows(uri, split, rows, rules.layout) for split, rows in kept.items())
    candidates = (write_candidates(uri, list(itertools.chain(*kept.values())), rules.layout),) if kept else ()
    return CleanedSlice(candidates, data, (write_rejected(uri, rejected),) if rejected else ()).to_record()


def _clean_rows(slice_: Slice, raw_uri: str, rules: RowRules, threads: int) -> Iterator[dict[str, Any]]:
    """Yield the clean or rejected row of every row of one slice."""
    batches = _read_batches(slice_, raw_uri, rules.config)
    cleaned: Iterable[list[dict[str, Any]]]
    if threads == 1:
        cleaned = (clean_batch(batch, rules) for batch in batches)
    else:
        cleaned = map_ordered(batches, lambda batch: clean_batch(batch, rules), threads, _count_bytes)
    return itertools.chain.from_iterable(cleaned)


def _count_bytes(rows: list[dict[str, Any]]) -> int:
    return sum(len(row["image"] or b"") for row in rows)


def _read_batches(slice_: Slice, raw_uri: str, config: CleanConfig) -> Iterator[list[dict[str, Any]]]:
    """Yield raw rows with the columns that the config needs, about `BATCH_BYTES` at a time."""
    columns = ["image_id", "image", "sha256", "label", "split", "group"]
    columns += ["boxes"] if config.roi != "off" else []
    columns += ["mask"] if config.background != "off" or config.keep_masks else []
    for table in read_file(locate_file(raw_uri, slice_.file), columns, range(slice_.first, slice_.last)):
        batch, size = [], 0
        for row in table.to_pylist():
            batch.append(row)
            size += len(row["image"] or b"")
            if size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch


def clean_batch(rows: list[dict[str, Any]], rules: RowRules) -> list[dict[str, Any]]:
    """Return the clean row of each raw row, or its rejected row, which has a `reason`.

    All are decoded before the first is measured: a decode empties a core's caches, and right after it Python and small
    functions take two to three times as long as in a loop of their own.
    """
    images = [_decode_row(row, rules) for row in rows]
    held = [(i, i.measures) for i in images if isinstance(i, _RowImage) and isinstance(i.measures, ReducedPicture)]
    for (image, _), measures in zip(held, measure_reduced([picture for _, picture in held]), strict=True):
        image.measures = measures
    return [_make_row(row, image, rules) for row, image in zip(rows, images, strict=True)]


@dataclass
class _RowImage:
    """A row's standardized image without its pixels; its measures, or what they are computed from, if it has some."""

    labels: list[str]
    columns: dict[str, Any]
    measures: Measures | ReducedPicture | None


def _decode_row(row: dict[str, Any], rules: RowRules) -> _RowImage | ImageRejected:
    """Standardize the image of a raw row; return why where it is rejected."""
    config = rules.config
    try:
        if row["image"] is None:
            raise ImageRejected("missing_file", "the source names it but it is not there")
        labels = rules.labels.parse(row["label"])
        image = standardize(row["image"], config, row.get("boxes"), row.get("mask"))
        height, width = image.pixels.shape[:2]
        _check_sides(width, height, config)
    except ImageRejected as error:
        return error
    columns: dict[str, Any] = {
        "image": {"bytes": image.data, "path": row["image_id"].rpartition("/")[2]},
        "width": width,
        "height": height,
        "format": image.format,
        "image_bytes": len(image.data),
        "pixel_hash": hash_pixels(image.pixels),
        "decoder_warning": image.warning or None,
    }
    if config.keep_masks:
        columns["mask"] = image.mask
    if not config.measures:
        return _RowImage(labels, columns, None)
    columns["aspect_ratio"] = width / height
    columns["bytes_per_pixel"] = len(row["image"]) / (image.source_width * image.source_height)
    picture = reduce_picture(image.pixels)
    return _RowImage(labels, columns, picture if picture.nbytes <= MAX_HELD_BYTES else measure_reduced([picture])[0])


def _check_sides(width: int, height: int, config: CleanConfig) -> None:
    """Raise ImageRejected for an image whose sides violate a limit."""
    short, long = sorted((width, height))
    if short < config.min_side:
        raise ImageRejected("too_small", f"{width:,} x {height:,} pixels, at least {config.min_side:,} a side")
    if config.max_aspect and long > config.max_aspect * short:
        raise ImageRejected(
            "extreme_aspect", f"{width:,} x {height:,} pixels, sides of at most {config.max_aspect:g}:1"
        )


def _make_row(row: dict[str, Any], image: _RowImage | ImageRejected, rules: RowRules) -> dict[str, Any]:
    """Return the clean row of a raw row, whose image has been measured, or its rejected row."""
    config = rules.config
    measures: dict[str, Any] = {}
    if isinstance(image, _RowImage) and isinstance(image.measures, Measures):
        measures = vars(image.measures)
        if measures["contrast"] < config.min_contrast:
            detail = f"contrast {measures['contrast']:.4f}, at least {config.min_contrast:g}"
            image = ImageRejected("blank", detail)
    if isinstance(image, ImageRejected):
        return {k: row[k] for k in ("image_id", "sha256")} | {"reason": image.reason, "detail": image.detail}
    declared = row["split"] if config.declared_splits == "respect" else None
    split = choose_split(row["sha256"], declared, config.val_fraction, config.test_fraction, row.get("group"))
    return {
        "image_id": row["image_id"],
        **_encode_labels(image.labels, rules),
        "split": split,
        "declared_split": row["split"],
        "group": row.get("group"),
        "shuffle_index": compute_shuffle_index(row["sha256"]),
        "sha256": row["sha256"],
        **image.columns,
        **measures,
    }


def _encode_labels(labels: list[str], rules: RowRules) -> dict[str, Any]:
    """Return the label columns: text, ids and, with `label_encoding` one_hot, a list of ones and zeros."""
    ids = [rules.labels.ids[name] for name in labels]
    if rules.labels.is_multi_label:
        columns: dict[str, Any] = {"label": rules.labels.separator.join(labels), "label_ids": ids}
    else:
        columns = {"label": labels[0], "label_id": ids[0]}
    if rules.is_one_hot:
        columns["label_one_hot"] = [int(number in ids) for number in range(len(rules.labels.ids))]
    return columns


def hash_pixels(pixels: Pixels) -> str:
    """Return xxh3-128 of the upright pixels and their shape: equal pixels in whatever format and orientation."""
    digest = xxhash.xxh3_128(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def sort_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort rows in shuffled order (ties, which only copies can have, by image_id)."""
    return sorted(rows, key=lambda r: (r["shuffle_index"], r["image_id"]))


def write_rows(uri: str, split: str, rows: list[dict[str, Any]], layout: Layout) -> File:
    """Write one clean file, its rows in shuffled order."""
    with ShardWriter(uri, layout) as writer:
        for row in sort_rows(rows):
            writer.add(row, len(row["image"]["bytes"]))
        return writer.publish(f"data/{split or 'unsplit'}", "data", split)


def write_candidates(uri: str, rows: list[dict[str, Any]], layout: Layout) -> File:
    """Write the columns of rows without their images, in the order of `rows`: about 1.3 kB a row.

    The decision on all images reads one such file of a slice instead of many row groups of images.
    """
    with ShardWriter(uri, make_candidates_layout(layout)) as writer:
        for row in rows:
            writer.add(row, 0)
        return writer.publish("candidates", "candidates")


def write_rejected(uri: str, rows: list[dict[str, Any]]) -> File:
    """Write one file of rejected rows, sorted by image_id."""
    with ShardWriter(uri, Layout(REJECTED)) as writer:
        for row in sorted(rows, key=lambda r: r["image_id"]):
            writer.add(row, 0)
        return writer.publish("rejected", "rejected")
