"""Download: from any source straight into raw Parquet shards, named by what was read.

The fingerprint is known only at the end, so shards lie beside the datasets, in `raw/_shards/`, under the hash
of their content; the manifest points there. A shard that an earlier download wrote is thereby shared.
In memory an image costs 40 bytes (its digest and the hash of its id), whatever its size.
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

from ..store import uri as uris
from ..store.errors import UserError
from ..store.filesystem import get_store
from ..store.fingerprint import canonical_json, digest
from ..store.manifest import Dataset, File, Manifest, Totals, commit, find_intact_dataset
from ..store.progress import Progress, format_size
from ..store.shards import Layout, ShardWriter, open_parquet, read_row_group
from ..store.step import CACHED, RAN, Context, Outcome
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
"""So many skipped files and missing masks are named in the manifest; all are counted."""


@dataclass
class _Named:
    """Files that are counted, and named up to a limit, as the manifest has them."""

    count: int = 0
    files: list[dict[str, str]] = field(default_factory=list)

    def add(self, **words: str) -> None:
        self.count += 1
        if len(self.files) < SKIPPED_NAMES:
            self.files.append(words)

    def mark(self) -> tuple[int, int]:
        return self.count, len(self.files)

    def since(self, mark: tuple[int, int]) -> dict[str, Any]:
        """What was added after a mark: a record for a retry, which takes it over."""
        return {"count": self.count - mark[0], "files": self.files[mark[1] :]}

    def take(self, record: dict[str, Any]) -> None:
        self.count += int(record["count"])
        self.files += record["files"][: SKIPPED_NAMES - len(self.files)]


@dataclass
class _Read:
    """What is kept of the rows that were read: 40 bytes each, and counts."""

    digests: bytearray = field(default_factory=bytearray)
    id_hashes: array[int] = field(default_factory=lambda: array("Q"))
    labels: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    skipped: _Named = field(default_factory=_Named)
    missing_masks: _Named = field(default_factory=_Named)
    files: list[File] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        said = [row["image_id"], row["sha256"], row["label"], row["split"], _annotation_digest(row)]
        if group := row.get("group"):  # only then, so that sources without groups keep their names
            said.append(group)
        self.digests += hashlib.sha256(canonical_json(said)).digest()
        self.id_hashes.append(xxhash.xxh3_64_intdigest(row["image_id"].encode()))
        self.labels[row["label"] or ""] += 1
        self.splits[row["split"] or ""] += 1

    @property
    def rows(self) -> int:
        return len(self.id_hashes)

    def fingerprint(self) -> str:
        """Over the sorted rows, so that neither the order of reading nor the sharding counts."""
        ordered = _sorted_rows(self.digests)
        return digest({"kind": "raw", "version": VERSION, "rows": hashlib.sha256(ordered).hexdigest()})


def download(config: DownloadConfig, context: Context) -> Outcome:
    """List the source; if that listing gave a raw dataset before, that is it; else read it all."""
    source, labeller = open_dataset(config)
    key = _listing_key(source, labeller, config, context)
    if key and (dataset := _known(context, key)):
        _say_missing_masks(dataset.manifest.extra.get("missing_masks", {}), context)
        return _outcome(dataset, CACHED, config, context)
    context.require_work(source.where)
    context.say(f"reading {source.where}" + (f", {source.total:,} files" if source.total else ""))
    read = _read_source(source, labeller, context, key)
    if not read.rows:
        raise UserError(f"source: expected images in {source.where}, found none ({read.skipped.count} other files)")
    _refuse_duplicate_ids(read, context)
    _say_missing_masks(asdict(read.missing_masks), context)
    uri = context.workspace.dataset("raw", read.fingerprint())
    there = find_intact_dataset(uri)
    dataset = there or commit(uri, _manifest(read, uri, source, config, context))
    if key and _listing_key(source, labeller, config, context) == key:  # not changed while it was read
        record = {"raw": context.workspace.relative(uri), "source": source.where}
        context.workspace.write_source_record(key, record)
        if context.rerun:  # what was read now holds from now on, also for runs that trust the listing
            context.workspace.replace_source_record(_listing_key(source, labeller, config), record)
    return _outcome(dataset, CACHED if there and not context.rerun else RAN, config, context)


def _listing_key(source: Source, labeller: Labeller, config: DownloadConfig, context: Context | None = None) -> str:
    """A name for this listing under this config, or nothing where a change could go unseen."""
    files, labels = source.listing(), labeller.listing()
    if files is None or labels is None:
        return ""
    attempt = context.attempt() if context else {}
    return digest({"version": VERSION, "dataset": config.dataset, "files": files, "labels": labels} | attempt)


def _known(context: Context, key: str) -> Dataset | None:
    record = context.workspace.read_source_record(key)
    return find_intact_dataset(context.workspace.absolute(str(record["raw"]))) if record else None


def _say_missing_masks(missing: dict[str, Any], context: Context) -> None:
    if missing.get("count"):
        shown = [f"{one['mask']} ({one['why']})" for one in missing["files"][:3]]
        more = missing["count"] - len(shown)
        context.say(
            f"masks that the source names but does not have: {missing['count']:,}; their images go without one: "
            f"{', '.join(shown)}{f' and {more:,} more' if more else ''}"
        )


def _outcome(dataset: Dataset, state: str, config: DownloadConfig, context: Context) -> Outcome:
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


def _read_source(source: Source, labeller: Labeller, context: Context, key: str) -> _Read:
    """Every file once, into shards of about `SHARD_BYTES`; shards that an earlier try finished are not made again."""
    pool = context.workspace.at("raw", "_shards")
    read = _Read()
    done = _resume(read, pool, context, key)
    number = len(read.files)
    progress = Progress("download", total=source.total, done=done)
    members = enumerate(source.members(done), done)
    for shard in _shards(members, labeller, pool, read, progress):
        if key:
            context.workspace.write_work_record(pool, f"{key}/{number:06d}", asdict(shard))
        number += 1
    return read


@dataclass(frozen=True)
class _Shard:
    """What a retry takes over: the shard, how many members it and the skipped ones are, and what to name."""

    file: File
    members: int
    skipped: dict[str, Any]
    missing_masks: dict[str, Any]


def _shards(
    members: Iterator[tuple[int, Member | Skipped]], labeller: Labeller, pool: str, read: _Read, progress: Progress
) -> Iterator[_Shard]:
    """Consume the members; yield whenever a shard is full and published."""
    more = True
    while more:
        more, consumed, marks = False, 0, (read.skipped.mark(), read.missing_masks.mark())
        with ShardWriter(pool, Layout(RAW)) as writer:
            for number, member in members:
                consumed += 1
                if isinstance(member, Skipped):
                    read.skipped.add(path=member.path, why=member.why)
                else:
                    row = _row(member, labeller.labels(member.path, number))
                    writer.add(row, len(row["image"] or b"") + len(row["mask"] or b""))
                    read.add(row)
                    read.bytes += len(row["image"] or b"")
                    if gone := member.missing_mask:
                        read.missing_masks.add(path=member.path, mask=gone.path, why=gone.why)
                progress.add(1, f"{format_size(read.bytes)} · {format_size(read.bytes / progress.age())}/s")
                if writer.image_bytes >= SHARD_BYTES:
                    more = True
                    break
            if writer.rows:
                read.files.append(writer.publish("."))
                named = read.skipped.since(marks[0]), read.missing_masks.since(marks[1])
                yield _Shard(read.files[-1], consumed, *named)


def _row(member: Member, labels: Labels) -> dict[str, Any]:
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


def _annotation_digest(row: dict[str, Any]) -> str:
    if not row["boxes"] and row["mask"] is None:
        return ""
    mask = hashlib.sha256(row["mask"]).hexdigest() if row["mask"] is not None else ""
    return digest({"boxes": row["boxes"], "mask": mask})


def _sorted_rows(digests: bytearray) -> bytes:
    """The 32-byte digests in ascending order, as one byte string; sorted in place of one copy."""
    keys = np.frombuffer(bytes(digests), dtype=">u8").reshape(-1, 4)
    order = np.lexsort((keys[:, 3], keys[:, 2], keys[:, 1], keys[:, 0]))
    return keys[order].tobytes()


def _resume(read: _Read, pool: str, context: Context, key: str) -> int:
    """Take over the shards an earlier try recorded; the number of source files they and their skips cover."""
    members = 0
    while key and (record := context.workspace.read_work_record(pool, f"{key}/{len(read.files):06d}")):
        file = File(**record["file"])
        uri = uris.join(pool, file.uri)
        entry = get_store(uri).stat(uri)
        if entry is None or entry.size != file.bytes:
            break
        with open_parquet(uri) as parquet:
            for index in range(parquet.num_row_groups):
                table = read_row_group(parquet, index, uri)
                for row in table.to_pylist():
                    read.add(row)
                    read.bytes += len(row["image"] or b"")
        read.skipped.take(record["skipped"])
        read.missing_masks.take(record["missing_masks"])
        read.files.append(file)
        members += int(record["members"])
    if members:
        context.say(f"going on after {members:,} files that an earlier try finished")
    return members


def _refuse_duplicate_ids(read: _Read, context: Context) -> None:
    """Two files of one normal name can't be told apart: UserError names them, exactly (hashes only hint)."""
    hashes, counts = np.unique(np.frombuffer(read.id_hashes, dtype=np.uint64), return_counts=True)
    suspects = {int(h) for h in hashes[counts > 1]}
    if not suspects:
        return
    seen: Counter[str] = Counter()
    for file in read.files:
        uri = uris.join(context.workspace.at("raw", "_shards"), file.uri)
        with open_parquet(uri) as parquet:
            for index in range(parquet.num_row_groups):
                ids = read_row_group(parquet, index, uri, ["image_id"]).column("image_id").to_pylist()
                seen.update(i for i in ids if xxhash.xxh3_64_intdigest(i.encode()) in suspects)
    twice = sorted(name for name, number in seen.items() if number > 1)
    if twice:
        more = f" and {len(twice) - 1} more" if len(twice) > 1 else ""
        raise UserError(f"image_id: expected every path once, found {twice[0]!r} {seen[twice[0]]} times{more}")


def _manifest(read: _Read, uri: str, source: Source, config: DownloadConfig, context: Context) -> Manifest:
    pool = uris.relpath(context.workspace.at("raw", "_shards"), uri)
    files = tuple(File(f"{pool}/{f.uri.removeprefix('./')}", f.role, "", f.rows, f.bytes, f.sha256) for f in read.files)
    labels = {name: number for name, number in sorted(read.labels.items()) if name}
    extra: dict[str, Any] = {
        "source": source.where,
        "dataset_name": config.dataset_name(),
        "skipped": asdict(read.skipped),
    }
    if read.missing_masks.count:
        extra["missing_masks"] = asdict(read.missing_masks)
    if isinstance(source, DemoSource):
        extra |= {"planted": source.planted(), "image_size": source.IMAGE_SIZE}
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
            rows=read.rows,
            bytes=read.bytes,
            by_split={name or "undeclared": number for name, number in sorted(read.splits.items())},
            by_class=labels | ({"": read.labels[""]} if read.labels[""] else {}),
        ),
        extra=extra,
    )
