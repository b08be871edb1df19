"""From candidate files to the files of the dataset: without the dropped rows, and each row in its split."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..store.manifest import File
from ..store.parallel import cores, map_ordered
from ..store.shards import Layout, ShardWriter
from .splits import SPLITS
from .table import columns_of
from .verdicts import Verdicts


def final_files(uri: str, verdicts: Verdicts, layout: Layout) -> list[File]:
    """Every candidate file as it is, or written again where rows go or change sides; by split and name."""
    table = verdicts.table

    def final(number: int) -> list[File]:
        file = table.files[number]
        rows = slice(int(table.starts[number]), int(table.starts[number + 1]))
        alive, splits = verdicts.alive[rows], verdicts.splits[rows]
        if file.split in SPLITS and alive.all() and (splits == SPLITS.index(file.split)).all():
            return [file]
        return list(rewritten(uri, file, alive, splits, layout))

    # Most of it is copying and hashing in Arrow and OpenSSL, which threads can do at a time; one row group each.
    files = [f for done in map_ordered(range(len(table.files)), final, cores(), lambda _: 0) for f in done]
    return sorted(files, key=lambda f: (SPLITS.index(f.split), f.uri))


def rewritten(
    uri: str, file: File, alive: npt.NDArray[np.bool_], splits: npt.NDArray[np.uint8], layout: Layout
) -> Iterator[File]:
    """The rows of one file that are alive, as one file for each split; their order stays. Holds one row group."""
    for code, split in enumerate(SPLITS):
        wanted = alive & (splits == code)
        if wanted.any():
            with ShardWriter(uri, layout) as writer:
                for part in _parts(uri, file, wanted, split, layout.schema):
                    writer.add_table(part)
                yield writer.publish(f"data/{split}", "data", split)


def _parts(uri: str, file: File, wanted: npt.NDArray[np.bool_], split: str, schema: pa.Schema) -> Iterator[pa.Table]:
    begin = 0
    for table in columns_of(uri, file, None):
        part = table.filter(pa.array(wanted[begin : begin + table.num_rows]))
        begin += table.num_rows
        if part.num_rows:
            place = part.schema.get_field_index("split")
            part = part.set_column(place, "split", pa.array([split] * part.num_rows, pa.string()))
            yield part.cast(schema)
