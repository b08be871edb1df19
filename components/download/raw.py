"""Download: reads any source into raw Parquet shards, named by their content.

The fingerprint is known only at the end, so shards are written beside the datasets, in `raw/_shards/`; the manifest
points there, and datasets share the shards that are equal. Of a source that grew, the last snapshot's shards are
listed again, and files that did not change are not read. In memory an image costs 40 bytes (its digest and the hash of
its id), whatever its size; compared with the last snapshot some 250 (`listing.py`, `reuse.py`).
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..dataset.kinds import FileList, RawExtra
from ..dataset.manifest import Dataset, File, Manifest, Totals, commit, digest, find_intact_dataset
from ..dataset.shards import Layout, ShardWriter, read_columns
from ..step.progress import Progress, format_size
from ..step.step import CACHED, RAN, Context, Outcome
from ..storage import uri as uris
from ..storage.errors import DatasetError, UserError
from ..storage.store import get_store
from .archives import Member, Skipped
from .config import VERSION, DownloadConfig
from .contents import RAW, Contents, hash_id
from .dataset_kinds import Labeller, Labels, open_dataset
from .listing import SourceFiles, find_last_snapshot, store_listing
from .reuse import EarlierRows, list_shards
from .sources import DemoSource, Source

SHARD_BYTES = 128 * 2**20


def download(config: DownloadConfig, context: Context) -> Outcome:
    """Find the raw dataset of the source's listing, or read the whole source into one."""
    source, labeller = open_dataset(config)
    key = _make_listing_key(source, labeller, config, context)
    if key and config.verify == "listing" and (dataset := _find_known_dataset(context, key)):
        _print_missing_masks(RawExtra.of(dataset.manifest).missing_masks, context)
        return _report(dataset, CACHED, config, context)
    context.refuse_if_only_cached(source.where)
    context.say(f"reading {source.where}" + (f", {source.total:,} files" if source.total else ""))
    snapshot = _compare_source(source, labeller, config, context, key)
    contents = _read_source(source, labeller, context, key, snapshot)
    if not contents.rows:
        raise UserError(f"source: expected images in {source.where}, found none ({contents.skipped.count} other files)")
    _print_missing_masks(contents.missing_masks.freeze(), context)
    uri = context.workspace.dataset_uri("raw", contents.fingerprint())
    manifest = _make_manifest(contents, snapshot.earlier, uri, source, config, context)
    _refuse_duplicate_ids(contents, Dataset(uri, manifest, ""))
    existing = find_intact_dataset(uri)
    dataset = existing or commit(uri, manifest)
    if snapshot.files is not None:
        store_listing(context.workspace, config, snapshot.files, dataset)
    if key and (source.checks_reads or _make_listing_key(source, labeller, config, context) == key):
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
    metrics = {"name": config.dataset_name(), "rows": totals.rows, "bytes": totals.bytes, "skipped": skipped.count}
    return Outcome(dataset.uri, dataset.fingerprint, state, metrics)


@dataclass
class _Snapshot:
    """Inputs of one raw dataset, read and reused: the source's files (None: it is read as a whole), rows of earlier
    shards, and the number of shards that earlier attempts under the same listing recorded."""

    files: SourceFiles | None
    earlier: EarlierRows
    num_attempted: int = 0


def _compare_source(
    source: Source, labeller: Labeller, config: DownloadConfig, context: Context, key: str
) -> _Snapshot:
    """List the source's files, and find those whose rows are in shards of the last snapshot or of a killed attempt."""
    table = source.list_files() if key else None
    last, listing = find_last_snapshot(context.workspace, config, with_listing=table is not None)
    trusts_listing = config.verify == "listing" and not context.rerun
    shared_shards = context.workspace.at("raw", "_shards")
    attempt = _list_attempted(shared_shards, context, key)
    try:
        files = None if table is None else SourceFiles.compare(table, listing if trusts_listing else None)
        earlier = EarlierRows.read(
            list_shards(attempt, shared_shards, last), files, labeller, config.verify == "listing"
        )
    except DatasetError as error:
        context.say(f"the last snapshot can't be used, so that the source is read as a whole: {error}")
        files, earlier, last = None if table is None else SourceFiles.compare(table, None), EarlierRows(), None
    if rows := earlier.count_of_attempt():
        context.say(f"resuming after {rows:,} files that an earlier attempt finished")
    if last and listing is not None and trusts_listing and files:
        relabeled = f", {earlier.num_relabeled:,} with other labels" if earlier.num_relabeled else ""
        context.say(files.describe(context.workspace.relative(last.uri)) + relabeled)
    return _Snapshot(files, earlier, len(attempt))


def _list_attempted(shared_shards: str, context: Context, key: str) -> list[File]:
    """Return the shards that earlier attempts under this listing recorded, up to the first that is gone or damaged."""
    files: list[File] = []
    while key and (record := context.workspace.read_work_record(shared_shards, f"{key}/{len(files):06d}")):
        file = File(**record["file"])
        uri = uris.join(shared_shards, file.uri)
        entry = get_store(uri).stat(uri)
        if entry is None or entry.size != file.bytes:
            break
        files.append(file)
    return files


def _read_source(source: Source, labeller: Labeller, context: Context, key: str, snapshot: _Snapshot) -> Contents:
    """Read every file that is not in an earlier shard once, into shards of about `SHARD_BYTES`."""
    shared_shards = context.workspace.at("raw", "_shards")
    contents = Contents()
    rows = _read_rows(source, labeller, context, snapshot, contents)
    for number, shard in enumerate(_write_shards(rows, shared_shards, contents), snapshot.num_attempted):
        if key:
            context.workspace.write_work_record(shared_shards, f"{key}/{number:06d}", {"file": shard.to_dict()})
    snapshot.earlier.add_kept_rows(contents)
    return contents


def _read_rows(
    source: Source, labeller: Labeller, context: Context, snapshot: _Snapshot, contents: Contents
) -> Iterator[dict[str, Any]]:
    """Yield the rows that new shards are to hold: those of files that are read, then those copied from old shards."""
    files, earlier = snapshot.files, snapshot.earlier
    unread = None if files is None else files.list_unread()
    if files is not None:
        files.report(contents)
    progress = Progress("download", total=source.total if unread is None else len(unread))
    num_bytes = 0
    for number, member in zip(itertools.count() if unread is None else unread, source.members(unread), strict=False):
        if isinstance(member, Skipped):
            contents.skipped.add(path=member.path, why=member.why)
            if files is not None:
                files.skipped[int(number)] = member.why
        else:
            row = _make_row(member, labeller.labels(member.path, int(number)))
            num_bytes += len(row["image"] or b"")
            if mask := member.missing_mask:
                contents.missing_masks.add(path=member.path, mask=mask.path, why=mask.why)
            if not earlier.take(row):
                yield row
        progress.add(1, f"{format_size(num_bytes)} · {format_size(num_bytes / progress.age())}/s")
    if copied := earlier.choose_rewritten(SHARD_BYTES):
        context.say(f"copying {copied:,} rows of earlier shards to new ones")
        yield from earlier.copy_rows(labeller)


def _write_shards(rows: Iterator[dict[str, Any]], shared_shards: str, contents: Contents) -> Iterator[File]:
    """Write the rows to shards; yield each when it is published."""
    has_more = True
    while has_more:
        has_more = False
        with ShardWriter(shared_shards, Layout(RAW)) as writer:
            for row in rows:
                writer.add(row, len(row["image"] or b"") + len(row["mask"] or b""))
                contents.add(row)
                contents.bytes += len(row["image"] or b"")
                if writer.image_bytes >= SHARD_BYTES:
                    has_more = True
                    break
            if writer.rows:
                contents.files.append(writer.publish("."))
                yield contents.files[-1]


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


def _refuse_duplicate_ids(contents: Contents, dataset: Dataset) -> None:
    """Raise UserError for files of the same normalized name; equal hashes are checked against the names."""
    hashes, counts = np.unique(np.frombuffer(contents.id_hashes, dtype=np.uint64), return_counts=True)
    suspects = {int(h) for h in hashes[counts > 1]}
    occurrences: Counter[str] = Counter()
    for table in read_columns(dataset, "data", ["image_id"]) if suspects else ():
        occurrences.update(i for i in table.column("image_id").to_pylist() if hash_id(i) in suspects)
    if duplicates := sorted(name for name, number in occurrences.items() if number > 1):
        name = duplicates[0]
        more = f" and {len(duplicates) - 1} more" if len(duplicates) > 1 else ""
        raise UserError(f"image_id: expected every path once, found {name!r} {occurrences[name]} times{more}")


def _make_manifest(
    contents: Contents, earlier: EarlierRows, uri: str, source: Source, config: DownloadConfig, context: Context
) -> Manifest:
    shared_shards = context.workspace.at("raw", "_shards")
    files, removed = [], {}
    for shard, lost in earlier.list_files():
        files.append(replace(shard.file, uri=uris.relpath(shard.uri, uri)))
        if lost:
            removed[files[-1].uri] = lost
    files += [replace(file, uri=uris.relpath(uris.join(shared_shards, file.uri), uri)) for file in contents.files]
    labels = {name: number for name, number in sorted(contents.labels.items()) if name}
    extra = RawExtra(
        source=source.where,
        dataset_name=config.dataset_name(),
        skipped=contents.skipped.freeze(),
        removed=removed or None,
        missing_masks=contents.missing_masks.freeze() if contents.missing_masks.count else None,
        planted=source.list_faults() if isinstance(source, DemoSource) else None,
        image_size=source.IMAGE_SIZE if isinstance(source, DemoSource) else None,
        epochs=source.EPOCHS if isinstance(source, DemoSource) else None,
    )
    return Manifest(
        kind="raw",
        fingerprint=uris.basename(uri),
        config={
            "dataset": config.dataset,
            "label_pattern": config.label_pattern if config.dataset == "filename" else "",
        },
        classes=tuple(labels),
        files=tuple(files),
        totals=Totals(
            rows=contents.rows,
            bytes=contents.bytes,
            by_split={name or "undeclared": number for name, number in sorted(contents.splits.items())},
            by_class=labels | ({"": contents.labels[""]} if contents.labels[""] else {}),
        ),
        extra=extra,
    )
