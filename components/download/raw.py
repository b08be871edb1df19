"""Download: reads any source into raw Parquet shards, named by their content.

The fingerprint is known only at the end, so shards are written beside the datasets, in `raw/_shards/`; the manifest
points there, and datasets share the shards that are equal. In memory an image costs 40 bytes (its digest and the hash
of its id), whatever its size.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from ..dataset.fingerprint import canonical_json, digest
from ..dataset.manifest import Dataset, File, Manifest, Totals, commit, find_intact_dataset
from ..dataset.shards import Layout, ShardWriter, open_parquet, read_row_group
from ..step.progress import Progress, format_size
from ..step.step import CACHED, RAN, Context, Outcome
from ..storage import uri as uris
from ..storage.errors import UserError
from ..storage.filesystem import get_store
from .archives import Member, Skipped
from .config import VERSION, DownloadConfig
from .labels import Labeller, Labels, open_dataset
from .sources import DemoSource, Source

BOX = pa.struct([("name", pa.string())] + [(side, pa.float32()) for side in ("xmin", "ymin", "xmax", "ymax")])
RAW = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.binary()),  # null: named by the source, but not there
        pa.field("sha256", pa.string()),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("group", pa.string()),  # rows of one group go to one split
        pa.field("boxes", pa.list_(BOX)),
        pa.field("mask", pa.binary()),
    ]
)
SHARD_BYTES = 128 * 2**20
SKIPPED_NAMES = 10_000
"""Maximum number of skipped files, and of missing masks, that are named in the manifest; all are counted."""


@dataclass
class _FileList:
    """A list of files in the form of the manifest: all are counted, up to `SKIPPED_NAMES` are named."""

    count: int = 0
    files: list[dict[str, str]] = field(default_factory=list)

    def add(self, **description: str) -> None:
        self.count += 1
        if len(self.files) < SKIPPED_NAMES:
            self.files.append(description)

    def get_position(self) -> tuple[int, int]:
        return self.count, len(self.files)

    def make_record(self, position: tuple[int, int]) -> dict[str, Any]:
        """Return the files added after `position`, as a record from which a retry goes on."""
        return {"count": self.count - position[0], "files": self.files[position[1] :]}

    def extend(self, record: dict[str, Any]) -> None:
        self.count += int(record["count"])
        self.files += record["files"][: SKIPPED_NAMES - len(self.files)]


@dataclass
class _Contents:
    """The rows read so far: a digest of each (40 bytes with the hash of its id), and counts."""

    digests: bytearray = field(default_factory=bytearray)
    id_hashes: array[int] = field(default_factory=lambda: array("Q"))
    labels: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    skipped: _FileList = field(default_factory=_FileList)
    missing_masks: _FileList = field(default_factory=_FileList)
    files: list[File] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        values = [row["image_id"], row["sha256"], row["label"], row["split"], _hash_annotations(row)]
        if group := row.get("group"):  # only then, so that sources without groups keep their fingerprints
            values.append(group)
        self.digests += hashlib.sha256(canonical_json(values)).digest()
        self.id_hashes.append(xxhash.xxh3_64_intdigest(row["image_id"].encode()))
        self.labels[row["label"] or ""] += 1
        self.splits[row["split"] or ""] += 1

    @property
    def rows(self) -> int:
        return len(self.id_hashes)

    def fingerprint(self) -> str:
        """Return the fingerprint of the sorted rows: neither the order of reading nor the sharding changes it."""
        rows = _sort_digests(self.digests)
        return digest({"kind": "raw", "version": VERSION, "rows": hashlib.sha256(rows).hexdigest()})


def download(config: DownloadConfig, context: Context) -> Outcome:
    """Find the raw dataset of the source's listing, or read the whole source into one."""
    source, labeller = open_dataset(config)
    key = _make_listing_key(source, labeller, config, context)
    if key and (dataset := _find_known_dataset(context, key)):
        _print_missing_masks(dataset.manifest.extra.get("missing_masks", {}), context)
        return _report(dataset, CACHED, config, context)
    context.refuse_if_only_cached(source.where)
    context.say(f"reading {source.where}" + (f", {source.total:,} files" if source.total else ""))
    contents = _read_source(source, labeller, context, key)
    if not contents.rows:
        raise UserError(f"source: expected images in {source.where}, found none ({contents.skipped.count} other files)")
    _refuse_duplicate_ids(contents, context)
    _print_missing_masks(asdict(contents.missing_masks), context)
    uri = context.workspace.dataset("raw", contents.fingerprint())
    existing = find_intact_dataset(uri)
    dataset = existing or commit(uri, _make_manifest(contents, uri, source, config, context))
    if key and _make_listing_key(source, labeller, config, context) == key:  # not changed while it was read
        record = {"raw": context.workspace.relative(uri), "source": source.where}
        context.workspace.add_source_record(key, record)
        if context.rerun:  # later runs, which trust the listing, shall find what was read now
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


def _print_missing_masks(missing: dict[str, Any], context: Context) -> None:
    if missing.get("count"):
        shown = [f"{file['mask']} ({file['why']})" for file in missing["files"][:3]]
        more = missing["count"] - len(shown)
        context.say(
            f"masks that the source names but does not have: {missing['count']:,}; their images go without one: "
            f"{', '.join(shown)}{f' and {more:,} more' if more else ''}"
        )


def _report(dataset: Dataset, state: str, config: DownloadConfig, context: Context) -> Outcome:
    context.note_latest(config.dataset_name(), dataset)
    totals, skipped = dataset.manifest.totals, dataset.manifest.extra.get("skipped", {})
    context.say(
        f"{totals.rows:,} images · {format_size(totals.bytes)} · {len(totals.by_class)} labels · "
        f"{skipped.get('count', 0)} other files skipped"
    )
    shown = [f"{label or 'none'} {number:,}" for label, number in list(totals.by_class.items())[:8]]
    more = len(totals.by_class) - len(shown)
    context.say(f"labels: {', '.join(shown)}{f' and {more} more' if more else ''}")
    metrics = {
        "name": config.dataset_name(),
        "rows": totals.rows,
        "bytes": totals.bytes,
        "skipped": skipped.get("count", 0),
    }
    return Outcome(dataset.uri, dataset.fingerprint, state, metrics)


def _read_source(source: Source, labeller: Labeller, context: Context, key: str) -> _Contents:
    """Read every file once, into shards of about `SHARD_BYTES`; shards that an earlier attempt finished are reused."""
    pool = context.workspace.at("raw", "_shards")
    contents = _Contents()
    done = _resume(contents, pool, context, key)
    progress = Progress("download", total=source.total, done=done)
    members = enumerate(source.members(done), done)
    shards = _write_shards(members, labeller, pool, contents, progress)
    for number, shard in enumerate(shards, len(contents.files)):
        if key:
            context.workspace.write_work_record(pool, f"{key}/{number:06d}", asdict(shard))
    return contents


@dataclass(frozen=True)
class _ShardRecord:
    """A finished shard, as a retry reuses it; `members` counts its rows and the files skipped among them."""

    file: File
    members: int
    skipped: dict[str, Any]
    missing_masks: dict[str, Any]


def _write_shards(
    members: Iterator[tuple[int, Member | Skipped]],
    labeller: Labeller,
    pool: str,
    contents: _Contents,
    progress: Progress,
) -> Iterator[_ShardRecord]:
    """Write the members to shards; yield each when it is published."""
    has_more = True
    while has_more:
        has_more, consumed = False, 0
        skipped, missing_masks = contents.skipped.get_position(), contents.missing_masks.get_position()
        with ShardWriter(pool, Layout(RAW)) as writer:
            for number, member in members:
                consumed += 1
                if isinstance(member, Skipped):
                    contents.skipped.add(path=member.path, why=member.why)
                else:
                    row = _make_row(member, labeller.labels(member.path, number))
                    writer.add(row, len(row["image"] or b"") + len(row["mask"] or b""))
                    contents.add(row)
                    contents.bytes += len(row["image"] or b"")
                    if mask := member.missing_mask:
                        contents.missing_masks.add(path=member.path, mask=mask.path, why=mask.why)
                progress.add(1, f"{format_size(contents.bytes)} · {format_size(contents.bytes / progress.age())}/s")
                if writer.image_bytes >= SHARD_BYTES:
                    has_more = True
                    break
            if writer.rows:
                contents.files.append(writer.publish("."))
                yield _ShardRecord(
                    contents.files[-1], consumed,
                    contents.skipped.make_record(skipped), contents.missing_masks.make_record(missing_masks),
                )  # fmt: skip


def _make_row(member: Member, labels: Labels) -> dict[str, Any]:
    return {
        "image_id": member.path,
        "image": member.data,
        "sha256": None if member.data is None else hashlib.sha256(member.data).hexdigest(),
        "label": labels.label,
        "split": labels.split,
        "group": labels.group,
        "boxes": labels.boxes,
        "mask": labels.mask if labels.mask is not None else member.mask,
    }


def _hash_annotations(row: dict[str, Any]) -> str:
    if not row["boxes"] and row["mask"] is None:
        return ""
    mask = hashlib.sha256(row["mask"]).hexdigest() if row["mask"] is not None else ""
    return digest({"boxes": row["boxes"], "mask": mask})


def _sort_digests(digests: bytearray) -> bytes:
    """Return the 32-byte digests in ascending order, as one byte string."""
    keys = np.frombuffer(bytes(digests), dtype=">u8").reshape(-1, 4)
    order = np.lexsort((keys[:, 3], keys[:, 2], keys[:, 1], keys[:, 0]))
    return keys[order].tobytes()


def _resume(contents: _Contents, pool: str, context: Context, key: str) -> int:
    """Add the shards that an earlier attempt recorded; return the number of source files that they cover."""
    members = 0
    while key and (record := context.workspace.read_work_record(pool, f"{key}/{len(contents.files):06d}")):
        file = File(**record["file"])
        uri = uris.join(pool, file.uri)
        entry = get_store(uri).stat(uri)
        if entry is None or entry.size != file.bytes:
            break
        with open_parquet(uri) as parquet:
            for index in range(parquet.num_row_groups):
                table = read_row_group(parquet, index, uri)
                for row in table.to_pylist():
                    contents.add(row)
                    contents.bytes += len(row["image"] or b"")
        contents.skipped.extend(record["skipped"])
        contents.missing_masks.extend(record["missing_masks"])
        contents.files.append(file)
        members += int(record["members"])
    if members:
        context.say(f"going on after {members:,} files that an earlier try finished")
    return members


def _refuse_duplicate_ids(contents: _Contents, context: Context) -> None:
    """Raise UserError for files of the same normalized name; equal hashes are checked against the names."""
    hashes, counts = np.unique(np.frombuffer(contents.id_hashes, dtype=np.uint64), return_counts=True)
    suspects = {int(h) for h in hashes[counts > 1]}
    if not suspects:
        return
    occurrences: Counter[str] = Counter()
    for file in contents.files:
        uri = uris.join(context.workspace.at("raw", "_shards"), file.uri)
        with open_parquet(uri) as parquet:
            for index in range(parquet.num_row_groups):
                ids = read_row_group(parquet, index, uri, ["image_id"]).column("image_id").to_pylist()
                occurrences.update(i for i in ids if xxhash.xxh3_64_intdigest(i.encode()) in suspects)
    duplicates = sorted(name for name, number in occurrences.items() if number > 1)
    if duplicates:
        name = duplicates[0]
        more = f" and {len(duplicates) - 1} more" if len(duplicates) > 1 else ""
        raise UserError(f"image_id: expected every path once, found {name!r} {occurrences[name]} times{more}")


def _make_manifest(contents: _Contents, uri: str, source: Source, config: DownloadConfig, context: Context) -> Manifest:
    pool = uris.relpath(context.workspace.at("raw", "_shards"), uri)
    files = tuple(
        File(f"{pool}/{f.uri.removeprefix('./')}", f.role, "", f.rows, f.bytes, f.sha256) for f in contents.files
    )
    labels = {name: number for name, number in sorted(contents.labels.items()) if name}
    extra: dict[str, Any] = {
        "source": source.where,
        "dataset_name": config.dataset_name(),
        "skipped": asdict(contents.skipped),
    }
    if contents.missing_masks.count:
        extra["missing_masks"] = asdict(contents.missing_masks)
    if isinstance(source, DemoSource):
        extra |= {"planted": source.list_faults(), "image_size": source.IMAGE_SIZE}
    return Manifest(
        kind="raw",
        fingerprint=uris.basename(uri),
        config={
            "dataset": config.dataset,
            "label_pattern": config.label_pattern if config.dataset == "filename" else "",
        },
        classes=tuple(labels),
        files=files,
        totals=Totals(
            rows=contents.rows,
            bytes=contents.bytes,
            by_split={name or "undeclared": number for name, number in sorted(contents.splits.items())},
            by_class=labels | ({"": contents.labels[""]} if contents.labels[""] else {}),
        ),
        extra=extra,
    )
