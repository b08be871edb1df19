"""The columns of all candidate rows that the decisions about all images together need: 83 bytes an image in memory.

Names and thumbnails stay in the files, and are read for the few rows that a decision is about.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from ..dataset.manifest import File
from ..dataset.shards import open_parquet, read_row_group
from ..storage import uri as uris
from .schema import MEASURES
from .splits import SPLITS, TRAINVAL, UNDECLARED

Rows = npt.NDArray[np.int64]
"""Row numbers."""
_SPLIT_CODES = {name: code for code, name in enumerate(SPLITS)}
_COLUMNS = ("pixel_hash", "sha256", "phash", "label", "split", "declared_split", "group", "shuffle_index", *MEASURES)


class CandidateInfo(NamedTuple):
    """The text columns by which messages, examples and rejects name a row."""

    image_id: str
    sha256: str
    label: str
    split: str


@dataclass
class Candidates:
    """Columns of the N candidate rows, in the order of `files`.

    Attributes:
        uri: dataset that the files are part of.
        files: the candidate files.
        starts: int64 [len(files) + 1], first row of each file.
        pixels: uint64 [N, 2], hash of the standardized pixels.
        content: uint64 [N], first 64 bits of the source bytes' SHA-256.
        phash: uint64 [N], perceptual hash.
        label: int64 [N], hash of the label's text.
        split, declared: uint8 [N], split codes.
        group: uint64 [N], hash of the group, 0 for none.
        order: int64 [N], shuffle index.
        measures: float32 [N] by name.
        has_measures: whether the rows were measured.
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
    has_measures: bool = False

    def __len__(self) -> int:
        return len(self.content)

    def find_files(self, rows: Rows) -> Rows:
        """Return the index of the file that each row is in."""
        return np.searchsorted(self.starts, rows, side="right").astype(np.int64) - 1

    def read_infos(self, rows: Rows) -> dict[int, CandidateInfo]:
        """Read the infos of some rows, by row; about 500 bytes each."""
        infos: dict[int, CandidateInfo] = {}
        for indices, table in self._read(rows, ["image_id", "sha256", "label", "split"]):
            columns = (table.column(name).to_pylist() for name in CandidateInfo._fields)
            infos.update(zip(indices.tolist(), map(CandidateInfo, *columns), strict=True))
        return infos

    def read_thumbnails(self, rows: Rows) -> npt.NDArray[np.uint8]:
        """Read the thumbnails of ascending rows: uint8 [len(rows), T], in a temporary file, not in memory."""
        thumbnails: npt.NDArray[np.uint8] | None = None
        start = 0
        for _, table in self._read(rows, ["thumbnail"]):
            values = np.frombuffer(b"".join(table.column("thumbnail").to_pylist()), np.uint8)
            values = values.reshape(table.num_rows, -1)
            if thumbnails is None:
                with tempfile.TemporaryFile() as file:
                    file.truncate(len(rows) * values.shape[1])
                    thumbnails = np.memmap(file, np.uint8, "r+", shape=(len(rows), values.shape[1]))
            thumbnails[start : start + len(values)] = values
            start += len(values)
        return np.empty((0, 0), np.uint8) if thumbnails is None else thumbnails

    def _read(self, rows: Rows, columns: list[str]) -> Iterator[tuple[Rows, pa.Table]]:
        """Yield (rows, their columns) in ascending order, from the row groups that hold some of them."""
        rows = np.unique(rows)
        file_numbers = self.find_files(rows)
        for number in np.unique(file_numbers):
            rows_of_file = rows[file_numbers == number]
            start = int(self.starts[number])
            for table in read_file_columns(self.uri, self.files[number], columns):
                selected = rows_of_file[(rows_of_file >= start) & (rows_of_file < start + table.num_rows)]
                if len(selected):
                    yield selected, table.take(pa.array(selected - start))
                start += table.num_rows


def read_candidates(uri: str, files: Sequence[File]) -> Candidates:
    """Read the columns of candidate files below the dataset `uri`."""
    chunks: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    starts = [0]
    has_measures = False
    for file in files:
        rows = 0
        for table in read_file_columns(uri, file, list(_COLUMNS)):
            for name in _COLUMNS:
                chunks[name].append(_CONVERTERS[name](table.column(name)))
            has_measures = has_measures or table.column("phash").null_count < table.num_rows
            rows += table.num_rows
        starts.append(starts[-1] + rows)
    if starts[-1] == 0:
        return Candidates(uri, files, np.array(starts, np.int64))
    columns = {name: np.concatenate(chunks.pop(name)) for name in _COLUMNS}
    return Candidates(
        uri, files, np.array(starts, np.int64),
        pixels=columns["pixel_hash"], content=columns["sha256"], phash=columns["phash"], label=columns["label"],
        split=columns["split"], declared=columns["declared_split"], group=columns["group"],
        order=columns["shuffle_index"], measures={name: columns[name] for name in MEASURES}, has_measures=has_measures,
    )  # fmt: skip


def read_file_columns(uri: str, file: File, columns: list[str] | None) -> Iterator[pa.Table]:
    """Yield the row groups of one file below the dataset `uri`, with some columns or (None) all."""
    file_uri = uris.join(uri, file.uri)
    with open_parquet(file_uri) as parquet:
        for index in range(parquet.num_row_groups):
            yield read_row_group(parquet, index, file_uri, columns)


_Converter = Callable[[pa.ChunkedArray], npt.NDArray[Any]]


def _make_hex_converter(words: int) -> _Converter:
    """Convert the first 16 * `words` hexadecimal digits to uint64 [N, words], or [N] for one word."""

    def convert(column: pa.ChunkedArray) -> npt.NDArray[Any]:
        data = bytes.fromhex("".join(text[: 16 * words] for text in column.to_pylist()))
        numbers = np.frombuffer(data, ">u8").astype(np.uint64)
        return numbers.reshape(-1, words) if words > 1 else numbers

    return convert


def _make_code_converter(codes: dict[str, int], default: int) -> _Converter:
    """Convert text to uint8 codes, `default` for other text and nulls."""

    def convert(column: pa.ChunkedArray) -> npt.NDArray[Any]:
        indices = pc.index_in(column, pa.array(list(codes))).combine_chunks().fill_null(-1).to_numpy()
        values: npt.NDArray[Any] = np.array([*codes.values(), default], np.uint8)[indices]
        return values

    return convert


def _make_text_hasher(dtype: type[Any]) -> _Converter:
    """Convert text to 63 bits of its hash, null to 0; each distinct text is hashed once."""

    def convert(column: pa.ChunkedArray) -> npt.NDArray[Any]:
        encoded = column.combine_chunks().dictionary_encode()
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        hashes = [
            xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogateescape")) >> 1
            for text in encoded.dictionary.to_pylist()
        ]
        values: npt.NDArray[Any] = np.array([*hashes, 0], dtype)[encoded.indices.fill_null(len(hashes)).to_numpy()]
        return values

    return convert


def _make_number_converter(dtype: type[Any]) -> _Converter:
    """Convert numbers to `dtype`, null to 0."""

    def convert(column: pa.ChunkedArray) -> npt.NDArray[Any]:
        numbers: npt.NDArray[Any] = column.combine_chunks().fill_null(0).to_numpy().astype(dtype, copy=False)
        return numbers

    return convert


_CONVERTERS: dict[str, _Converter] = {
    "pixel_hash": _make_hex_converter(2),
    "sha256": _make_hex_converter(1),
    "phash": _make_number_converter(np.uint64),
    "label": _make_text_hasher(np.int64),
    "split": _make_code_converter(_SPLIT_CODES, UNDECLARED),
    "declared_split": _make_code_converter(_SPLIT_CODES | {"trainval": TRAINVAL}, UNDECLARED),
    "group": _make_text_hasher(np.uint64),
    "shuffle_index": _make_number_converter(np.int64),
    **dict.fromkeys(MEASURES, _make_number_converter(np.float32)),
}
