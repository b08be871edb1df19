"""What the decisions about all images together need of each, as columns in memory: 83 bytes an image.

Names and thumbnails stay in the files, and are read for the few rows that a decision is about.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from ..store import uri as uris
from ..store.manifest import File
from ..store.shards import open_parquet, read_row_group
from .schema import MEASURES
from .splits import SPLITS, TRAINVAL, UNDECLARED

Rows = npt.NDArray[np.int64]
_DECLARED = {**{name: code for code, name in enumerate(SPLITS)}, "trainval": TRAINVAL}
_COLUMNS = ("pixel_hash", "sha256", "phash", "label", "split", "declared_split", "group", "shuffle_index", *MEASURES)


class Name(NamedTuple):
    """What is said of a row where people read it."""

    image_id: str
    sha256: str
    label: str
    split: str


@dataclass
class Table:
    """One entry a candidate row, in the order of `files`. `N` rows.

    `pixels` uint64 [N, 2] and `content` uint64 [N] are hashes of the pixels and of the source's bytes, `phash`
    uint64 [N] the perceptual one; `label` int64 [N] a hash of the label's text; `split` and `declared` uint8 [N]
    codes; `group` uint64 [N], 0 for none; `order` int64 [N] the shuffle index; `measures` float32 [N] by name,
    and `measured` says whether there are any.
    """

    uri: str = ""
    files: Sequence[File] = ()
    starts: Rows = field(default_factory=lambda: np.zeros(1, np.int64))
    pixels: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty((0, 2), np.uint64))
    content: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    phash: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    label: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    split: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    declared: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    group: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    order: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    measures: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    measured: bool = False

    def __len__(self) -> int:
        return len(self.content)

    def file_of(self, rows: Rows) -> Rows:
        """The number of the file that each row is in."""
        return np.searchsorted(self.starts, rows, side="right").astype(np.int64) - 1

    def names(self, rows: Rows) -> dict[int, Name]:
        """Names of some rows, by row; about 500 bytes each."""
        found: dict[int, Name] = {}
        for place, table in self._read(rows, ["image_id", "sha256", "label", "split"]):
            columns = (table.column(name).to_pylist() for name in Name._fields)
            found.update(zip(place.tolist(), map(Name, *columns), strict=True))
        return found

    def thumbnails(self, rows: Rows) -> npt.NDArray[np.uint8]:
        """uint8 [len(rows), T] of ascending rows; in a temporary file, not in memory."""
        found: npt.NDArray[np.uint8] | None = None
        done = 0
        for _, table in self._read(rows, ["thumbnail"]):
            values = np.frombuffer(b"".join(table.column("thumbnail").to_pylist()), np.uint8)
            values = values.reshape(table.num_rows, -1)
            if found is None:
                with tempfile.TemporaryFile() as file:
                    file.truncate(len(rows) * values.shape[1])
                    found = np.memmap(file, np.uint8, "r+", shape=(len(rows), values.shape[1]))
            found[done : done + len(values)] = values
            done += len(values)
        return np.empty((0, 0), np.uint8) if found is None else found

    def _read(self, rows: Rows, columns: list[str]) -> Iterator[tuple[Rows, pa.Table]]:
        """(rows, their columns), in ascending order, from the row groups that hold some of them."""
        rows = np.unique(rows)
        owners = self.file_of(rows)
        for number in np.unique(owners):
            wanted = rows[owners == number]
            begin = int(self.starts[number])
            for table in columns_of(self.uri, self.files[number], columns):
                inside = wanted[(wanted >= begin) & (wanted < begin + table.num_rows)]
                if len(inside):
                    yield inside, table.take(pa.array(inside - begin))
                begin += table.num_rows


def read_table(uri: str, files: Sequence[File]) -> Table:
    """The table of candidate files below the dataset `uri`."""
    parts: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    starts = [0]
    measured = False
    for file in files:
        rows = 0
        for table in columns_of(uri, file, list(_COLUMNS)):
            for name in _COLUMNS:
                parts[name].append(_CONVERT[name](table.column(name)))
            measured = measured or table.column("phash").null_count < table.num_rows
            rows += table.num_rows
        starts.append(starts[-1] + rows)
    if starts[-1] == 0:
        return Table(uri, files, np.array(starts, np.int64))
    columns = {name: np.concatenate(parts.pop(name)) for name in _COLUMNS}
    return Table(
        uri, files, np.array(starts, np.int64),
        pixels=columns["pixel_hash"], content=columns["sha256"], phash=columns["phash"], label=columns["label"],
        split=columns["split"], declared=columns["declared_split"], group=columns["group"],
        order=columns["shuffle_index"], measures={name: columns[name] for name in MEASURES}, measured=measured,
    )  # fmt: skip


def columns_of(uri: str, file: File, columns: list[str] | None) -> Iterator[pa.Table]:
    """Some columns of one file below the dataset `uri`, a row group at a time."""
    where = uris.join(uri, file.uri)
    with open_parquet(where) as parquet:
        for index in range(parquet.num_row_groups):
            yield read_row_group(parquet, index, where, columns)


def _hex(words: int) -> Any:
    """Hexadecimal text → so many 64-bit words."""

    def convert(column: pa.ChunkedArray) -> Any:
        data = bytes.fromhex("".join(text[: 16 * words] for text in column.to_pylist()))
        found = np.frombuffer(data, ">u8").astype(np.uint64)
        return found.reshape(-1, words) if words > 1 else found

    return convert


def _codes(known: dict[str, int], other: int) -> Any:
    def convert(column: pa.ChunkedArray) -> Any:
        values = pc.index_in(column, pa.array(list(known))).combine_chunks().fill_null(-1).to_numpy()
        return np.array([*known.values(), other], np.uint8)[values]

    return convert


def _hashed(kind: type[Any]) -> Any:
    """Text → 63 bits of its hash, 0 for none; each distinct text is hashed once."""

    def convert(column: pa.ChunkedArray) -> Any:
        coded = column.combine_chunks().dictionary_encode()
        coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
        hashes = [
            xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogateescape")) >> 1
            for text in coded.dictionary.to_pylist()
        ]
        return np.array([*hashes, 0], kind)[coded.indices.fill_null(len(hashes)).to_numpy()]

    return convert


def _numbers(kind: type[Any]) -> Any:
    def convert(column: pa.ChunkedArray) -> Any:
        return column.combine_chunks().fill_null(0).to_numpy().astype(kind, copy=False)

    return convert


_CONVERT: dict[str, Any] = {
    "pixel_hash": _hex(2),
    "sha256": _hex(1),
    "phash": _numbers(np.uint64),
    "label": _hashed(np.int64),
    "split": _codes({name: code for code, name in enumerate(SPLITS)}, UNDECLARED),
    "declared_split": _codes(_DECLARED, UNDECLARED),
    "group": _hashed(np.uint64),
    "shuffle_index": _numbers(np.int64),
    **dict.fromkeys(MEASURES, _numbers(np.float32)),
}
