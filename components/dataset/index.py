"""The index: one row for each image that a dataset holds, and where its images lie.

Whatever is decided by looking at all images stands here and only here: labels, splits, the order, and which rows of the
parts the dataset holds. So removing, relabeling or another rule rewrites an index, of 15 to 50 bytes an image, and no
image. Rows are in the order of the manifest's parts and, within a part, of its rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..storage.errors import DatasetError
from ..storage.parallel import map_ordered
from .labels import MULTI, label_column
from .manifest import Dataset, File, Part
from .shards import INDEX_LAYOUT_COLUMNS, Layout, ShardWriter, open_parquet, read_row_group, read_table

INDEX_ROWS = 5_000_000
"""Most rows of one file of an index."""
BATCH_ROWS = 100_000
"""Rows of a table that is yielded from an index alone."""
_PLACE = [("part", pa.string()), ("row", pa.int32())]

RAW_INDEX = pa.schema([
    ("image_id", pa.string()), *_PLACE, ("sha256", pa.string()), ("label", pa.string()), ("split", pa.string()),
    ("group", pa.string()), ("annotations", pa.string()), ("bytes", pa.int64()),
])  # fmt: skip
"""`split`: as the source declares it; `annotations`: digest of boxes and mask, null without any; `bytes`: of the
image."""


def make_clean_index(task: str, one_hot: bool = False) -> pa.Schema:
    """Return the schema of a clean index: `label` as text, `label_id` int32, or `label_ids` list<int32> of a
    multi-label dataset, with `one_hot` also `label_one_hot`, list<uint8> [classes]."""
    return pa.schema([
        ("image_id", pa.string()), *_PLACE, ("label", pa.string()), *_label_fields(task),
        *([("label_one_hot", pa.list_(pa.uint8()))] if one_hot else []), ("split", pa.string()),
        ("shuffle_index", pa.int64()),
    ])  # fmt: skip


def make_tensors_index(task: str) -> pa.Schema:
    """Return the schema of a tensors index. `copy`: 0 for an image itself, n for its n-th augmented copy; `row` counts
    the rows of the file that `part` names, which holds one split."""
    return pa.schema([
        ("image_id", pa.string()), *_PLACE, ("copy", pa.int32()), *_label_fields(task), ("split", pa.string()),
    ])  # fmt: skip


def _label_fields(task: str) -> list[tuple[str, pa.DataType]]:
    return [(label_column(task), pa.list_(pa.int32()) if task == MULTI else pa.int32())]


def write_index(uri: str, table: pa.Table) -> list[File]:
    """Write the index of the dataset at `uri`, in files of at most `INDEX_ROWS` rows; return their entries."""
    files = []
    for start in range(0, max(1, table.num_rows), INDEX_ROWS):
        with ShardWriter(uri, Layout(table.schema, is_index=True)) as writer:
            for first in range(start, min(start + INDEX_ROWS, table.num_rows), BATCH_ROWS):
                writer.add_table(table.slice(first, min(BATCH_ROWS, start + INDEX_ROWS - first)))
            files.append(writer.publish("index", "index"))
    return files


def read_index(dataset: Dataset, columns: Sequence[str] | None = None, split: str | None = None) -> pa.Table:
    """Read columns (default: all) of a dataset's index, the rows of one split unless `split` is None.

    `part` and other texts that repeat come as dictionaries.
    """
    names = None if columns is None else list(dict.fromkeys([*columns, *(["split"] if split else [])]))
    tables = [read_table(dataset.locate(file), names, INDEX_LAYOUT_COLUMNS) for file in dataset.files("index")]
    if not tables:
        raise DatasetError(f"{dataset.uri}: expected a dataset with an index, found none")
    table = pa.concat_tables(tables).unify_dictionaries()
    if split:
        table = table.filter(pc.equal(pc.cast(table.column("split"), pa.string()), split))
    return table if columns is None else table.select(list(columns))


def locate_rows(dataset: Dataset, table: pa.Table) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return int32 [N] each: the positions in `manifest.parts` and the rows of the images of an index's table."""
    numbers = {part.key: number for number, part in enumerate(dataset.manifest.parts)}
    column = table.column("part").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], pa.string())
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    try:
        positions = np.array([numbers[key] for key in column.dictionary.to_pylist()] or [0], np.int32)
    except KeyError as error:
        raise DatasetError(f"{dataset.uri}: its index names the part {error}, which its manifest does not") from None
    codes = np.asarray(column.indices)
    return positions[codes] if len(codes) else np.zeros(0, np.int32), np.asarray(table.column("row")).astype(np.int32)


@dataclass(frozen=True)
class PartRows:
    """The rows of one part that are read, ascending, and the index's columns of them."""

    part: Part
    rows: npt.NDArray[np.int32]
    index: pa.Table


def list_part_rows(dataset: Dataset, table: pa.Table) -> Iterator[PartRows]:
    """Yield the rows of an index's table part by part; the table is in an index's order."""
    positions, rows = locate_rows(dataset, table)
    edges = [0, *(np.flatnonzero(np.diff(positions)) + 1).tolist(), len(positions)]
    for start, end in itertools.pairwise(edges):
        if end > start:
            part = dataset.manifest.parts[int(positions[start])]
            yield PartRows(part, rows[start:end], table.slice(start, end - start))


def read_rows(
    dataset: Dataset, columns: Sequence[str], split: str | None = None, threads: int = 1
) -> Iterator[pa.Table]:
    """Yield tables with `columns` of the rows that a dataset holds, from its index and its parts, in the index's order.

    Holds a row group of a part at a time. `split`: of the rows; None for all. `threads`: parts that are read at a time,
    each as a whole, for small columns.
    """
    in_index = {name for file in dataset.files("index")[:1] for name in _list_columns(dataset.locate(file))}
    own = [name for name in columns if name in in_index]
    stored = [name for name in columns if name not in in_index]
    names = list(dict.fromkeys(name.partition(".")[0] for name in columns))
    if not stored:
        table = read_index(dataset, own, split)
        for start in range(0, table.num_rows, BATCH_ROWS):
            yield table.slice(start, BATCH_ROWS).select(names)
        return
    index = read_index(dataset, list(dict.fromkeys(["part", "row", *own])), split)
    selected = list_part_rows(dataset, index)
    if threads > 1:
        parts = map_ordered(
            selected, lambda rows: list(read_part_rows(dataset, rows, stored, own)), threads, lambda _: 0
        )
        for tables in parts:
            yield from (table.select(names) for table in tables)
        return
    for rows in selected:
        yield from (table.select(names) for table in read_part_rows(dataset, rows, stored, own))


def read_part_rows(
    dataset: Dataset, selected: PartRows, stored: Sequence[str], own: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """Yield columns `stored` of the rows of one part, with columns `own` of the index, a row group at a time."""
    uri = dataset.locate_part(selected.part)
    with open_parquet(uri) as parquet:
        first = 0
        for group in range(parquet.num_row_groups):
            last = first + parquet.metadata.row_group(group).num_rows
            low, high = np.searchsorted(selected.rows, [first, last]).tolist()
            if low < high:
                table = read_row_group(parquet, group, uri, list(stored))
                if high - low < table.num_rows:
                    table = table.take(pa.array(selected.rows[low:high] - first))
                for name in own:
                    table = table.append_column(name, selected.index.column(name).slice(low, high - low))
                yield table
            first = last


def _list_columns(uri: str) -> list[str]:
    with open_parquet(uri) as parquet:
        return list(parquet.schema_arrow.names)
