"""The unit of cleaning's work: some row groups of a raw shard, a function of the shard alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..store.manifest import Dataset, File
from ..store.shards import open_parquet

SLICE_BYTES = 32 * 2**20
"""Images in a slice: what one process holds of one, so a share of memory, and of the work, that is not too large."""


@dataclass(frozen=True)
class Slice:
    """The row groups `first` to `last` (without it) of a raw shard; `rows` of them, `bytes` in all."""

    file: File
    first: int
    last: int
    rows: int
    bytes: int

    @property
    def key(self) -> str:
        """What the finished work is recorded under."""
        return f"{self.file.sha256[:16]}-{self.first:04d}"

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Slice:
        return cls(**{**record, "file": File(**record["file"])})


def slices(raw: Dataset) -> list[Slice]:
    """The slices of a raw dataset, in its order; only the footers of its files are read."""
    found: list[Slice] = []
    for file in raw.files():
        first = rows = size = 0
        with open_parquet(raw.locate(file)) as parquet:
            last = parquet.num_row_groups
            for index in range(last):
                group = parquet.metadata.row_group(index)
                if size and size + group.total_byte_size > SLICE_BYTES:
                    found.append(Slice(file, first, index, rows, size))
                    first, rows, size = index, 0, 0
                rows += group.num_rows
                size += group.total_byte_size
        if rows:
            found.append(Slice(file, first, last, rows, size))
    return found
