"""The listing of a source, file by file, and its comparison with that of the last snapshot of the same name.

A listing is kept as `names/<name>/latest/listing.parquet`, beside the other hints about a name's newest datasets, and
replaced by the next one. It holds some 20 to 40 bytes a file. Where it is missing, the source is read as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..dataset.manifest import Dataset, find_intact_dataset
from ..dataset.workspace import Workspace
from ..storage.errors import DatasetError, UserError
from ..storage.store import get_store
from .config import VERSION, DownloadConfig

LISTING = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.binary(), nullable=False),  # names on disk need not be UTF-8
        pa.field("size", pa.int64()),  # null: not there
        pa.field("validator", pa.string()),
        pa.field("mask_uri", pa.binary()),
        pa.field("mask_size", pa.int64()),
        pa.field("mask_validator", pa.string()),
        pa.field("missing_mask", pa.string()),
        pa.field("missing_mask_why", pa.string()),
    ]
)
"""One row a file of the source, in the order of reading."""
_ANNOTATIONS = pa.field("annotations", pa.string())
"""What the source declares of the file beside its label: split, group, boxes."""
_COMPARED = [*LISTING.names[:7], "annotations"]
_SKIPPED = pa.field("skipped", pa.string())
"""Why the file became no row; null for those that did. Only in stored listings."""
_BATCH = 10_000


class SourceFile(NamedTuple):
    """One file of a source, in the columns of `LISTING`."""

    image_id: str
    uri: bytes
    size: int | None
    validator: str | None
    mask_uri: bytes | None = None
    mask_size: int | None = None
    mask_validator: str | None = None
    missing_mask: str | None = None
    missing_mask_why: str | None = None


def make_listing(files: Iterable[SourceFile]) -> pa.Table:
    """Return the files as a table of `LISTING`, with some 100 bytes of memory a file."""
    files, batches = iter(files), []
    while batch := list(islice(files, _BATCH)):
        batches.append(pa.record_batch([list(column) for column in zip(*batch, strict=True)], schema=LISTING))
    return pa.Table.from_batches(batches, LISTING)


@dataclass
class SourceFiles:
    """The files of a source, and what is known of each without reading it.

    Attributes:
        table: of `LISTING`, [N], and the column `annotations`.
        unchanged: bool [N], the same in the listing of the last snapshot.
        skipped: the reason by number, for files that become no row.
        num_new, num_changed, num_removed: of files, compared with the last snapshot.
    """

    table: pa.Table
    unchanged: npt.NDArray[np.bool_]
    skipped: dict[int, str] = field(default_factory=dict)
    num_new: int = 0
    num_changed: int = 0
    num_removed: int = 0

    @classmethod
    def compare(cls, table: pa.Table, annotations: list[str | None], last: pa.Table | None) -> SourceFiles:
        """Compare a listing with the last snapshot's; `last` is None where all files are to be read."""
        table = table.append_column(_ANNOTATIONS, pa.array(annotations, pa.string()))
        number = table.num_rows
        if last is None:
            return cls(table, np.zeros(number, bool), num_new=number)
        positions = pc.index_in(make_file_keys(table), value_set=make_file_keys(last))
        unchanged = np.asarray(positions.is_valid())
        reasons = last.column("skipped").take(positions)
        skipped = {int(n): reasons[int(n)].as_py() for n in np.flatnonzero(np.asarray(reasons.is_valid()))}
        ids, last_ids = table.column("image_id").combine_chunks(), last.column("image_id").combine_chunks()
        num_known = pc.sum(pc.is_in(ids, last_ids)).as_py() or 0
        return cls(
            table, unchanged, skipped,
            num_new=number - num_known, num_changed=num_known - int(unchanged.sum()),
            num_removed=len(last_ids) - (pc.sum(pc.is_in(last_ids, ids)).as_py() or 0),
        )  # fmt: skip

    def describe(self, last: str) -> str:
        """Return a line for people. `last`: the last snapshot's URI in the workspace."""
        return (
            f"{self.table.num_rows:,} files: {int(self.unchanged.sum()):,} as in {last}, {self.num_new:,} new, "
            f"{self.num_changed:,} changed, {self.num_removed:,} removed"
        )


def make_file_keys(table: pa.Table) -> pa.Array:
    """Return what identifies the content of each file of a listing, as large_binary [N]."""
    columns = []
    for name in _COMPARED:
        column = table.column(name).combine_chunks()
        column = column.cast(pa.string()) if pa.types.is_integer(column.type) else column
        columns.append(column.cast(pa.binary()).cast(pa.large_binary()))
    return pc.binary_join_element_wise(
        *columns, pa.scalar(b"\0", pa.large_binary()), null_handling="replace", null_replacement="\1"
    )


def store_listing(workspace: Workspace, config: DownloadConfig, files: SourceFiles, raw: Dataset) -> None:
    """Keep the listing that `raw` was read from, for the next snapshot of its name."""
    reasons = pa.array((files.skipped.get(number) for number in range(files.table.num_rows)), pa.string())
    table = files.table.select(_COMPARED).append_column(_SKIPPED, reasons)
    sink, plain = pa.BufferOutputStream(), ("image_id", "uri", "validator", "mask_uri", "mask_validator")
    pq.write_table(
        table.replace_schema_metadata(_make_metadata(workspace, config, raw.uri)), sink, compression="zstd",
        use_dictionary=["skipped", "annotations"], column_encoding=dict.fromkeys(plain, "DELTA_BYTE_ARRAY"),
        write_statistics=False,
    )  # fmt: skip
    uri = workspace.listing_uri(config.dataset_name())
    get_store(uri).put(uri, sink.getvalue().to_pybytes())


def _make_metadata(workspace: Workspace, config: DownloadConfig, raw: str) -> dict[str, str]:
    return {"raw": workspace.relative(raw), "dataset": config.dataset, "version": str(VERSION)}


def find_last_snapshot(
    workspace: Workspace, config: DownloadConfig, with_listing: bool
) -> tuple[Dataset | None, pa.Table | None]:
    """Return the last raw dataset of the config's name and the listing it was read from; None where there is none.

    A dataset that is damaged or gone is none. `with_listing`: whether the source has listings.
    """
    if with_listing and (listing := _read_listing(workspace, config)) is not None:
        metadata: dict[bytes, bytes] = listing.schema.metadata
        if dataset := _find_intact(workspace.absolute(metadata[b"raw"].decode())):
            return dataset, listing
    latest = workspace.latest_uri(config.dataset_name(), "raw")
    return (_find_intact(latest) if latest else None), None


def _find_intact(uri: str) -> Dataset | None:
    try:
        return find_intact_dataset(uri)
    except (UserError, DatasetError):  # a manifest that is none
        return None


def _read_listing(workspace: Workspace, config: DownloadConfig) -> Any:
    """Return the stored listing; None if there is none that fits the config, or it can't be read."""
    uri = workspace.listing_uri(config.dataset_name())
    try:
        table = pq.read_table(pa.BufferReader(get_store(uri).read(uri)))
    except (FileNotFoundError, pa.ArrowException):
        return None
    metadata = table.schema.metadata or {}
    expected = {k.encode(): v.encode() for k, v in _make_metadata(workspace, config, "").items() if k != "raw"}
    is_usable = table.column_names == [*_COMPARED, "skipped"] and expected.items() <= metadata.items()
    return table if is_usable and b"raw" in metadata else None
