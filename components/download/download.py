"""Download: reads any source into raw parts, and an index of the images that the source has now.

Files that are as the last snapshot of the same name has them keep their place in its parts; only new and changed ones
are read, in the order of a hash of their names, into parts of some 64 MB. A file that is gone, or has another label,
changes the index alone. What was read of a source that can be listed is recorded under the listing of those files, so
that a killed download reads only what it had not finished. In memory an image costs some 300 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.index import RAW_INDEX, list_part_rows, read_index, read_part_rows, write_index
from ..dataset.kinds import FileList, RawExtra
from ..dataset.manifest import (
    Dataset,
    Manifest,
    Part,
    Totals,
    commit,
    count_values,
    digest,
    find_intact_dataset,
)
from ..dataset.parts import PART_BYTES, PART_ROWS, PartFolder, PartRecord, make_part_key
from ..step.progress import Progress, format_size
from ..step.step import CACHED, RAN, Context, Outcome
from ..storage import uri as uris
from ..storage.errors import DatasetError, UserError
from .archives import PATH_LIMIT, Member, Skipped
from .config import VERSION, DownloadConfig
from .dataset_kinds import Labeller, Labels, open_dataset
from .listing import SourceFiles, find_last_snapshot, make_file_keys, store_listing
from .rows import (
    RAW,
    FileCounter,
    Row,
    describe_content,
    fingerprint_rows,
    hash_id,
    make_index_rows,
    make_row,
    refuse_duplicate_ids,
    write_part,
    write_parts,
)
from .sources import DemoSource, Source

Numbers = npt.NDArray[np.int64]
MAX_SMALL_PARTS = 16
"""Number of small parts from which on they are moved into new ones; one is small below a quarter of a full one."""


def download(config: DownloadConfig, context: Context) -> Outcome:
    """Find the raw dataset of the source's listing, or read what is new in the source and commit one."""
    source, labeller = open_dataset(config)
    key = _make_listing_key(source, labeller, config, context)
    if key and config.verify == "listing" and (dataset := _find_known_dataset(context, key)):
        _print_missing_masks(RawExtra.of(dataset.manifest).missing_masks, context)
        return _report(dataset, CACHED, config, context)
    context.refuse_if_only_cached(source.where)
    context.say(f"reading {source.where}" + (f", {source.total:,} files" if source.total else ""))
    snapshot = _read_snapshot(source, labeller, config, context, key)
    index = snapshot.make_index()
    skipped, missing_masks = snapshot.skipped.freeze(), snapshot.missing_masks.freeze()
    if not index.num_rows:
        raise UserError(f"source: expected images in {source.where}, found none ({skipped.count} other files)")
    _print_missing_masks(missing_masks, context)
    refuse_duplicate_ids(index)
    uri = context.workspace.dataset_uri("raw", fingerprint_rows(index))
    existing = find_intact_dataset(uri)
    dataset = existing or commit(uri, _make_manifest(snapshot, index, uri, source, config))
    if snapshot.files is not None:
        store_listing(context.workspace, config, snapshot.files, dataset)
    is_certain = source.checks_reads or not snapshot.has_read
    if key and (is_certain or _make_listing_key(source, labeller, config, context) == key):
        record = {"raw": context.workspace.relative(uri), "source": source.where}
        context.workspace.add_source_record(key, record)
        if context.rerun or config.verify == "content":  # later runs, which trust the listing, shall find what was read
            context.workspace.replace_source_record(_make_listing_key(source, labeller, config), record)
    return _report(dataset, CACHED if existing and not context.rerun else RAN, config, context)


def _make_listing_key(
    source: Source, labeller: Labeller, config: DownloadConfig, context: Context | None = None
) -> str:
    """Return a key of the source's listing under this config; empty where a change could go unnoticed."""
    files, labels = source.listing(), labeller.listing()
    if files is None or labels is None:
        return ""
    attempt = context.rerun_salt() if context else {}
    return digest({"version": VERSION, "dataset": config.dataset, "files": files, "labels": labels} | attempt)


def _find_known_dataset(context: Context, key: str) -> Dataset | None:
    record = context.workspace.read_source_record(key)
    return find_intact_dataset(context.workspace.absolute(str(record["raw"]))) if record else None


def _read_snapshot(source: Source, labeller: Labeller, config: DownloadConfig, context: Context, key: str) -> _Snapshot:
    """Compare the source with the last snapshot of its name, and read what is not in its parts."""
    table = source.list_files() if key else None
    last, listing = find_last_snapshot(context.workspace, config, with_listing=table is not None)
    folder = PartFolder.of(context.workspace, "raw")
    try:
        earlier = _EarlierRows(last, read_index(last).cast(RAW_INDEX)) if last else None
    except DatasetError as error:
        context.say(f"the last snapshot can't be used, so that the source is read as a whole: {error}")
        earlier = listing = None
    snapshot = _Snapshot(source, labeller, folder, earlier)
    if table is None:
        snapshot.read_stream()
    else:
        trusts_listing = config.verify == "listing" and not context.rerun
        snapshot.read_listed(table, listing if trusts_listing else None, trusts_listing, context)
    snapshot.move_rows(context)
    return snapshot


@dataclass
class _EarlierRows:
    """The last snapshot and its index, in the form of `RAW_INDEX`."""

    dataset: Dataset
    index: pa.Table

    @cached_property
    def rows_by_id(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.index.column("image_id").to_pylist())}

    def holds(self, number: int, row: Row) -> bool:
        """Return whether the index's row of this number is the image that `row` has, with the same annotations."""
        names = ("sha256", "split", "group", "annotations")
        return tuple(self.index.column(name)[number].as_py() for name in names) == describe_content(row)


@dataclass
class _Snapshot:
    """The images of a source as it is now, while it is read.

    Attributes:
        kept, kept_labels: rows of the earlier index that stay in their parts, and the labels that they have now.
        tables: further rows of the index, of parts that were written.
        parts: those parts, by key.
        has_read: whether files of the source were read.
    """

    source: Source
    labeller: Labeller
    folder: PartFolder
    earlier: _EarlierRows | None
    files: SourceFiles | None = None
    kept: list[int] = field(default_factory=list)
    kept_labels: list[str | None] = field(default_factory=list)
    tables: list[pa.Table] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    skipped: FileCounter = field(default_factory=FileCounter)
    missing_masks: FileCounter = field(default_factory=FileCounter)
    has_read: bool = True

    def read_stream(self) -> None:
        """Read a source that can't be listed file by file, as a whole; rows that an earlier part has stay there."""
        progress = _ReadProgress(self.source.total)

        def iterate_rows() -> Iterator[Row]:
            for number, member in enumerate(self.source.members()):
                if isinstance(member, Skipped):
                    self.skipped.add(path=member.path, why=member.why)
                    progress.add(0)
                    continue
                row = make_row(member, self.labeller.labels(member.path, number))
                progress.add(row["bytes"])
                if mask := member.missing_mask:
                    self.missing_masks.add(path=member.path, mask=mask.path, why=mask.why)
                place = self.earlier.rows_by_id.get(row["image_id"], -1) if self.earlier else -1
                if not self._keep(place, row):
                    yield row

        for part, labels in write_parts(self.folder, iterate_rows()):
            self._add_part(part, labels)

    def _keep(self, place: int, row: Row) -> bool:
        """Keep an image where an earlier part has it, as row `place` of the earlier index; return whether it has."""
        is_kept = self.earlier is not None and place >= 0 and self.earlier.holds(place, row)
        if is_kept:
            self.kept.append(place)
            self.kept_labels.append(row["label"])
        return is_kept

    def _add_part(self, part: Part, labels: Iterable[str | None] | None) -> None:
        self.tables.append(make_index_rows(self.folder, part, labels))
        self.parts[part.key] = part

    def read_listed(self, table: pa.Table, listing: pa.Table | None, is_trusted: bool, context: Context) -> None:
        """Read the new and changed files of a listing.

        `listing`: the last snapshot's, None where every file is read. `is_trusted`: what an earlier attempt read of the
        same files need not be read again.
        """
        ids = table.column("image_id")
        described = [self.labeller.labels(i, n) for n, i in enumerate(ids.to_pylist())]
        labels = [description.label for description in described]
        files = SourceFiles.compare(table, [_describe(description) for description in described], listing)
        self.files, unread = files, np.ones(table.num_rows, bool)
        places = np.full(table.num_rows, -1, np.int64)
        if self.earlier:
            found = pc.index_in(ids.combine_chunks(), value_set=self.earlier.index.column("image_id").combine_chunks())
            places = np.asarray(found.fill_null(-1)).astype(np.int64)
            unread &= ~(files.unchanged & (places >= 0))
            self.kept = places[~unread].tolist()
            self.kept_labels = [labels[number] for number in np.flatnonzero(~unread).tolist()]
            if listing is not None:
                context.say(files.describe(context.workspace.relative(self.earlier.dataset.uri)))
        unread[list(files.skipped)] = False
        self._read_chunks(_deal_files(table, np.flatnonzero(unread)), labels, places, is_trusted, context)
        for number, why in sorted(files.skipped.items()):
            self.skipped.add(path=ids[number].as_py()[:PATH_LIMIT], why=why)
        has_missing_mask = np.asarray(table.column("missing_mask").is_valid())
        has_missing_mask[list(files.skipped)] = False
        for file in table.filter(pa.array(has_missing_mask)).to_pylist():
            self.missing_masks.add(path=file["image_id"], mask=file["missing_mask"], why=file["missing_mask_why"])

    def _read_chunks(
        self, chunks: Sequence[Numbers], labels: Sequence[str | None], places: Numbers, is_trusted: bool,
        context: Context,
    ) -> None:  # fmt: skip
        """Read files, by their numbers, into a part for each chunk; those that an earlier attempt read are left out."""
        assert self.files is not None
        file_keys, ids = make_file_keys(self.files.table), self.files.table.column("image_id")
        last = self.earlier.dataset.fingerprint if self.earlier else ""
        keys = [make_part_key("read", VERSION, last, {"files": _hash(file_keys.take(chunk))}) for chunk in chunks]
        records = self.folder.find(keys) if is_trusted else {}
        missing = [chunk for key, chunk in zip(keys, chunks, strict=True) if key not in records]
        self.has_read = bool(missing)
        if done := sum(map(len, chunks)) - sum(map(len, missing)):
            context.say(f"resuming after {done:,} files that an earlier attempt finished")
        progress = _ReadProgress(sum(map(len, missing)))
        members = self.source.members(np.concatenate(missing) if missing else [])
        for key, chunk in zip(keys, chunks, strict=True):
            numbers = {ids[number].as_py(): number for number in chunk.tolist()}
            record = records.get(key)
            if record is None:
                record = self._read_chunk(key, chunk, members, places, progress)
                if is_trusted:
                    self.folder.add(record)
            for number, why in record.facts["skipped"]:
                self.files.skipped[number] = why
            self.kept += [int(places[number]) for number in record.facts["kept"]]
            self.kept_labels += [labels[number] for number in record.facts["kept"]]
            for part in record.files:
                table = make_index_rows(self.folder, part)
                column = [labels[numbers[image_id]] for image_id in table.column("image_id").to_pylist()]
                self._add_part(part, column)

    def _read_chunk(
        self, key: str, chunk: Numbers, members: Iterator[Member | Skipped], places: Numbers, progress: _ReadProgress
    ) -> PartRecord:
        """Read the next files into a part; the record's facts are the numbers of files that are `skipped`, each with
        the reason, and of those that are `kept` in an earlier part."""
        skipped: list[tuple[int, str]] = []
        kept: list[int] = []

        def iterate_rows() -> Iterator[Row]:
            for number, member in zip(chunk.tolist(), members, strict=False):
                if isinstance(member, Skipped):
                    skipped.append((number, member.why))
                    progress.add(0)
                    continue
                row = make_row(member, self.labeller.labels(member.path, number))
                progress.add(row["bytes"])
                if self.earlier is not None and places[number] >= 0 and self.earlier.holds(int(places[number]), row):
                    kept.append(number)
                else:
                    yield row

        written = write_part(self.folder, iterate_rows())
        files = (written[0],) if written else ()
        return PartRecord(key, files, {"skipped": skipped, "kept": kept})

    def move_rows(self, context: Context) -> None:
        """Move the living rows of parts that have few, or that are many and small, into new parts."""
        if self.earlier is None or not self.kept:
            return
        order = np.argsort(np.array(self.kept), kind="stable").tolist()
        table = self.earlier.index.take(pa.array([self.kept[n] for n in order]))
        labels = pa.array([self.kept_labels[n] for n in order], pa.string())
        table = table.set_column(table.schema.get_field_index("label"), RAW_INDEX.field("label"), labels)
        selected = list(list_part_rows(self.earlier.dataset, table))
        living = {rows.part.key: len(rows.rows) for rows in selected}
        moved = choose_moved_parts([rows.part for rows in selected], living)
        stays = [rows.index for rows in selected if rows.part.key not in moved]
        self.tables += stays
        self.parts |= {rows.part.key: rows.part for rows in selected if rows.part.key not in moved}
        if not moved:
            return
        context.say(f"moving {sum(living[key] for key in moved):,} images of {len(moved):,} parts into new ones")
        earlier = self.earlier.dataset

        def iterate_rows() -> Iterator[Row]:
            for rows in selected:
                if rows.part.key in moved:
                    for part_table in read_part_rows(earlier, rows, RAW.names, ["label"]):
                        for row in part_table.to_pylist():
                            _check_image(row, earlier.locate_part(rows.part))
                            yield row

        for part, moved_labels in write_parts(self.folder, iterate_rows()):
            self._add_part(part, moved_labels)

    def make_index(self) -> pa.Table:
        """Return the index of all rows, in the order of the parts' keys."""
        tables = self.tables or [RAW_INDEX.empty_table()]
        return pa.concat_tables(tables).sort_by([("part", "ascending"), ("row", "ascending")]).combine_chunks()


def choose_moved_parts(parts: Sequence[Part], living: dict[str, int]) -> set[str]:
    """Return the keys of the parts whose rows are moved into new ones: those with less than half of their rows in the
    index, and, of more than `MAX_SMALL_PARTS` small ones, all. `living`: rows in the index by key."""
    moved = {part.key for part in parts if 2 * living[part.key] < part.rows}
    small = [part for part in parts if 4 * part.rows < PART_ROWS and 4 * part.bytes < PART_BYTES]
    small = [part for part in small if part.key not in moved]
    return moved | ({part.key for part in small} if len(small) > MAX_SMALL_PARTS else set())


def _check_image(row: Row, uri: str) -> None:
    if row["image"] is not None and hashlib.sha256(row["image"]).hexdigest() != row["sha256"]:
        raise DatasetError(
            f"{uri}: expected the image of {row['image_id']!r} with sha256 {row['sha256']}, found other bytes; "
            "remove that file and run again, which reads the source as a whole"
        )


def _deal_files(table: pa.Table, numbers: Numbers) -> list[Numbers]:
    """Deal files, by their numbers, into parts, in the order of a hash of their ids: each is a random sample."""
    ids = table.column("image_id").take(pa.array(numbers)).to_pylist()
    hashes = np.fromiter(map(hash_id, ids), np.uint64, len(ids))
    ordered = numbers[np.argsort(hashes, kind="stable")]
    sizes = np.asarray(table.column("size").fill_null(0))[ordered]
    chunks, start, size = [], 0, 0
    for end, file_size in enumerate(sizes.tolist()):
        if end > start and (size + file_size > PART_BYTES or end - start == PART_ROWS):
            chunks.append(ordered[start:end])
            start, size = end, 0
        size += file_size
    return [*chunks, ordered[start:]] if len(ordered) else []


def _describe(labels: Labels) -> str | None:
    """Return what a source declares of a file beside its label, as one text; None where that is nothing."""
    if not labels.boxes and labels.split is None and labels.group is None:
        return None
    boxes = digest(labels.boxes) if labels.boxes else ""
    return f"{labels.split or ''}\0{labels.group or ''}\0{boxes}"


def _hash(column: pa.Array) -> str:
    content = hashlib.sha256()
    for value in column:
        content.update(value.as_py() + b"\n")
    return content.hexdigest()


class _ReadProgress:
    """Progress in files, with the bytes that were read."""

    def __init__(self, total: int) -> None:
        self._progress, self._bytes = Progress("download", total=total), 0

    def add(self, size: int) -> None:
        self._bytes += size
        speed = self._bytes / self._progress.age()
        self._progress.add(1, f"{format_size(self._bytes)} · {format_size(speed)}/s")


def _make_manifest(snapshot: _Snapshot, index: pa.Table, uri: str, source: Source, config: DownloadConfig) -> Manifest:
    labels = count_values(label or "" for label in index.column("label").to_pylist())
    splits = count_values(split or "undeclared" for split in index.column("split").to_pylist())
    unlabeled = labels.pop("", 0)
    keys = index.column("part").unique().to_pylist()
    is_demo = isinstance(source, DemoSource)
    return Manifest(
        kind="raw",
        fingerprint=uris.basename(uri),
        config={
            "dataset": config.dataset,
            "label_pattern": config.label_pattern if config.dataset == "filename" else "",
        },
        classes=tuple(labels),
        parts=tuple(snapshot.parts[key] for key in keys),
        files=tuple(write_index(uri, index)),
        totals=Totals(
            rows=index.num_rows,
            bytes=pc.sum(index.column("bytes")).as_py(),
            by_split=splits,
            by_class=labels | ({"": unlabeled} if unlabeled else {}),
        ),
        extra=RawExtra(
            source=source.where,
            dataset_name=config.dataset_name(),
            skipped=snapshot.skipped.freeze(),
            missing_masks=snapshot.missing_masks.freeze() if snapshot.missing_masks.count else None,
            planted=source.list_faults() if isinstance(source, DemoSource) else None,
            image_size=DemoSource.IMAGE_SIZE if is_demo else None,
            epochs=DemoSource.EPOCHS if is_demo else None,
        ),
    )


def _print_missing_masks(missing: FileList | None, context: Context) -> None:
    if missing and missing.count:
        shown = [f"{file['mask']} ({file['why']})" for file in missing.files[:3]]
        more = missing.count - len(shown)
        context.say(
            f"masks that the source names but does not have: {missing.count:,}; their images go without one: "
            f"{', '.join(shown)}{f' and {more:,} more' if more else ''}"
        )


def _report(dataset: Dataset, state: str, config: DownloadConfig, context: Context) -> Outcome:
    context.note_latest(config.dataset_name(), dataset)
    totals, skipped = dataset.manifest.totals, RawExtra.of(dataset.manifest).skipped
    context.say(
        f"{totals.rows:,} images · {format_size(totals.bytes)} · {len(totals.by_class)} labels · "
        f"{skipped.count} other files skipped"
    )
    shown = [f"{label or 'none'} {number:,}" for label, number in list(totals.by_class.items())[:8]]
    more = len(totals.by_class) - len(shown)
    context.say(f"labels: {', '.join(shown)}{f' and {more} more' if more else ''}")
    metrics: dict[str, Any] = {"name": config.dataset_name(), "rows": totals.rows, "bytes": totals.bytes}
    return Outcome(dataset.uri, dataset.fingerprint, state, metrics | {"skipped": skipped.count})
