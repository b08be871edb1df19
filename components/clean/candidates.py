"""In-memory columns of all candidate rows, 94 bytes per image, and the decisions on them: kept or dropped, why, and in
which split.

Names and thumbnails stay in the files, and are read for the few rows that a decision is about.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from ..dataset.manifest import File
from ..dataset.shards import READ_THREADS, read_file
from ..storage import uri as uris
from ..storage.parallel import map_ordered
from .config import CleanConfig
from .schema import MEASURES
from .splits import SPLITS, TRAINVAL, UNDECLARED

Int64Array = npt.NDArray[np.int64]
RowNumbers = Int64Array


class CandidateInfo(NamedTuple):
    """Text columns that identify a row in messages, examples and rejects."""

    image_id: str
    sha256: str
    label: str
    split: str


@dataclass
class Candidates:
    """Columns of the N candidate rows. `candidate_files` and `data_files` hold the same rows in the same order.

    Attributes:
        uri: folder that the files are below.
        candidate_files: the files that the columns are read from.
        data_files: the files of the same rows with their images.
        candidate_file_starts, data_file_starts: int64 [files + 1], position of the first row of each file.
        positions: int64 [N], position of each row among those of all files, ascending; gaps are rows whose image is no
            longer in the source.
        pixel_hash: uint64 [N, 2], hash of the standardized pixels.
        sha256_prefix: uint64 [N], first 64 bits of the source bytes' SHA-256.
        phash: uint64 [N], perceptual hash.
        label_hash: int64 [N], hash of the label's text.
        split, declared: uint8 [N], codes of the split and of the one that the source declares.
        group_hash: uint64 [N], 0 for no group.
        shuffle_index: int64 [N].
        measures: float32 [N] by name.
        has_measures: whether the rows were measured.
    """

    uri: str = ""
    candidate_files: Sequence[File] = ()
    data_files: Sequence[File] = ()
    candidate_file_starts: Int64Array = field(default_factory=lambda: np.zeros(1, np.int64))
    data_file_starts: Int64Array = field(default_factory=lambda: np.zeros(1, np.int64))
    positions: Int64Array = field(default_factory=lambda: np.empty(0, np.int64))
    pixel_hash: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty((0, 2), np.uint64))
    sha256_prefix: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    phash: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    label_hash: Int64Array = field(default_factory=lambda: np.empty(0, np.int64))
    split: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    declared: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    group_hash: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    shuffle_index: Int64Array = field(default_factory=lambda: np.empty(0, np.int64))
    measures: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    has_measures: bool = False

    def __len__(self) -> int:
        return len(self.sha256_prefix)

    @property
    def group_or_content_hash(self) -> npt.NDArray[np.uint64]:
        """uint64 [N], 63 bits: the hash of the group, of a row without one that of its content."""
        return np.where(self.group_hash != 0, self.group_hash, self.shuffle_index.astype(np.uint64))

    def get_declared_splits(self, config: CleanConfig) -> npt.NDArray[np.uint8]:
        """Return `declared`; undeclared for all rows where the config does not respect it."""
        return self.declared if config.respects_declared_splits else np.full(len(self), UNDECLARED, np.uint8)

    def read_infos(self, rows: RowNumbers) -> dict[int, CandidateInfo]:
        """Read the infos of some rows, by row; about 500 bytes each."""
        infos: dict[int, CandidateInfo] = {}
        for indices, table in self.read(rows, ["image_id", "sha256", "label", "split"]):
            columns = (table.column(name).to_pylist() for name in CandidateInfo._fields)
            infos.update(zip(indices.tolist(), map(CandidateInfo, *columns), strict=True))
        return infos

    def read_thumbnails(self, rows: RowNumbers) -> npt.NDArray[np.uint8]:
        """Read the thumbnails of ascending rows: uint8 [len(rows), T], memory-mapped from an unlinked temporary file.

        T is the size of a thumbnail in bytes.
        """
        thumbnails: npt.NDArray[np.uint8] | None = None
        start = 0
        for _, table in self.read(rows, ["thumbnail"]):
            values = np.frombuffer(b"".join(table.column("thumbnail").to_pylist()), np.uint8)
            values = values.reshape(table.num_rows, -1)
            if thumbnails is None:
                with tempfile.TemporaryFile() as file:
                    file.truncate(len(rows) * values.shape[1])
                    thumbnails = np.memmap(file, np.uint8, "r+", shape=(len(rows), values.shape[1]))
            thumbnails[start : start + len(values)] = values
            start += len(values)
        return np.empty((0, 0), np.uint8) if thumbnails is None else thumbnails

    def find_candidate_file(self, row: int) -> int:
        """Return the index of the candidate file that a row is in."""
        return int(np.searchsorted(self.candidate_file_starts, self.positions[row], side="right")) - 1

    def find_rows(self, image_ids: Collection[str]) -> dict[str, int]:
        """Return row numbers by image_id; ids that are no candidates are absent."""
        names = pa.array(sorted(set(image_ids)), pa.string())
        row_numbers: dict[str, int] = {}
        for rows, table in self.read(np.arange(len(self)), ["image_id"]) if len(names) else ():
            column = table.column("image_id")
            indices = pc.indices_nonzero(pc.is_in(column, names))
            row_numbers.update(zip(column.take(indices).to_pylist(), rows[indices.to_numpy()].tolist(), strict=True))
        return row_numbers

    def read(self, rows: RowNumbers, columns: list[str]) -> Iterator[tuple[RowNumbers, pa.Table]]:
        """Yield (rows, their columns), a file or a row group of it at a time; `rows` are sorted and deduplicated."""
        rows = np.unique(rows)
        positions = self.positions[rows]
        row_ranges = np.searchsorted(positions, self.candidate_file_starts)
        row_counts = np.diff(row_ranges)

        def read_table(number: int) -> list[tuple[RowNumbers, pa.Table]]:
            selection = slice(row_ranges[number], row_ranges[number + 1])
            wanted_rows, wanted_positions = rows[selection], positions[selection]
            start = int(self.candidate_file_starts[number])
            selected = []
            for table in read_file(uris.join(self.uri, self.candidate_files[number].uri), columns):
                is_inside = (wanted_positions >= start) & (wanted_positions < start + table.num_rows)
                if is_inside.any():
                    taken = table.take(pa.array(wanted_positions[is_inside] - start))
                    selected.append((wanted_rows[is_inside], taken))
                start += table.num_rows
            return selected

        # The memory that is planned for: 1,000 bytes per row, those of a thumbnail.
        numbers = np.flatnonzero(row_counts).tolist()
        for selected in map_ordered(numbers, read_table, READ_THREADS, lambda number: 1000 * int(row_counts[number])):
            yield from selected


def read_candidates(
    uri: str,
    candidate_files: Sequence[File],
    data_files: Sequence[File] = (),
    removed: Mapping[int, Collection[str]] | None = None,
) -> Candidates:
    """Read the columns of candidate rows from files below the folder `uri`.

    `data_files`: the files of the same rows, in the same order, with their images, by default the same. `removed`: ids
    of images that are no longer in the source, by index of the candidate file.
    """
    data_files, removed = data_files or candidate_files, removed or {}
    candidate_file_starts, data_file_starts = (
        np.cumsum([0, *(file.rows for file in files)], dtype=np.int64) for files in (candidate_files, data_files)
    )

    def read_table(number: int) -> tuple[Int64Array, dict[str, npt.NDArray[Any]], bool]:
        """Return positions, columns and whether any row was measured."""
        ids = removed.get(number, ())
        names = [*_CONVERTERS, *(["image_id"] if ids else [])]
        table = pa.concat_tables(read_file(uris.join(uri, candidate_files[number].uri), names))
        positions = np.arange(table.num_rows) + candidate_file_starts[number]
        if ids:
            is_removed = pc.is_in(table.column("image_id"), pa.array(sorted(ids), pa.string()))
            positions, table = positions[~is_removed.to_numpy()], table.filter(pc.invert(is_removed))
        arrays = {name: convert(table.column(name)) for name, convert in _CONVERTERS.items()}
        return positions, arrays, table.column("phash").null_count < table.num_rows

    tables = map_ordered(
        range(len(candidate_files)), read_table, READ_THREADS, lambda number: 100 * candidate_files[number].rows
    )
    parts = [part for part in tables if len(part[0])]
    if not parts:
        return Candidates(uri, candidate_files, data_files, candidate_file_starts, data_file_starts)
    # Popped, so that no column is in memory twice for longer than it takes to join it.
    columns = {name: np.concatenate([arrays.pop(name) for _, arrays, _ in parts]) for name in _CONVERTERS}
    return Candidates(
        uri, candidate_files, data_files, candidate_file_starts, data_file_starts,
        np.concatenate([positions for positions, _, _ in parts]),
        pixel_hash=columns["pixel_hash"], sha256_prefix=columns["sha256"], phash=columns["phash"],
        label_hash=columns["label"], split=columns["split"], declared=columns["declared_split"],
        group_hash=columns["group"], shuffle_index=columns["shuffle_index"],
        measures={name: columns[name] for name in MEASURES},
        has_measures=any(has_measures for _, _, has_measures in parts),
    )  # fmt: skip


_Array = npt.NDArray[Any]


def _convert_hex(column: pa.ChunkedArray, words: int) -> _Array:
    """Convert the first 16 * `words` hexadecimal digits to uint64 [N, words] ([N] for one)."""
    data = bytes.fromhex("".join(text[: 16 * words] for text in column.to_pylist()))
    numbers = np.frombuffer(data, ">u8").astype(np.uint64)
    return numbers.reshape(-1, words) if words > 1 else numbers


def _convert_splits(column: pa.ChunkedArray, *others: str) -> _Array:
    """Convert the names of splits, and of `others` after them, to uint8 codes; other text and nulls are undeclared."""
    indices = pc.index_in(column, pa.array([*SPLITS, *others])).combine_chunks().fill_null(-1).to_numpy()
    codes = [*range(len(SPLITS)), *([TRAINVAL] if others else []), UNDECLARED]
    values: _Array = np.array(codes, np.uint8)[indices]
    return values


def _hash_text(column: pa.ChunkedArray, dtype: type[Any]) -> _Array:
    """Convert text to 63 bits of its hash, null to 0; each distinct text is hashed once."""
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    texts = (text.encode("utf-8", "surrogateescape") for text in encoded.dictionary.to_pylist())
    hashes = [*(xxhash.xxh3_64_intdigest(text) >> 1 for text in texts), 0]
    values: _Array = np.array(hashes, dtype)[encoded.indices.fill_null(len(hashes) - 1).to_numpy()]
    return values


def _convert_numbers(column: pa.ChunkedArray, dtype: type[Any]) -> _Array:
    """Convert numbers to `dtype`, null to 0."""
    numbers: _Array = column.combine_chunks().fill_null(0).to_numpy().astype(dtype, copy=False)
    return numbers


_CONVERTERS: dict[str, Callable[[pa.ChunkedArray], _Array]] = {
    "pixel_hash": partial(_convert_hex, words=2),
    "sha256": partial(_convert_hex, words=1),
    "phash": partial(_convert_numbers, dtype=np.uint64),
    "label": partial(_hash_text, dtype=np.int64),
    "split": _convert_splits,
    "declared_split": lambda column: _convert_splits(column, "trainval"),
    "group": partial(_hash_text, dtype=np.uint64),
    "shuffle_index": partial(_convert_numbers, dtype=np.int64),
    **dict.fromkeys(MEASURES, partial(_convert_numbers, dtype=np.float32)),
}


KEEP_PRIORITY = np.array([2, 1, 0, 3], np.uint8)
"""By split code, lowest first: of several copies the one in test is kept before val before train, because a test image
must not be trained on, and test should not shrink."""
EXAMPLES = 50
"""Maximum number of examples of a finding in the manifest; all are counted."""


class DropReason(NamedTuple):
    """Reason for dropping a row: `detail`, followed by the name of row `other` where another row is the cause."""

    reason: str
    detail: str
    other: int = -1


@dataclass
class RowDecisions:
    """State of all candidate rows while they are judged: bool and split codes [N], and the reason by dropped row, some
    300 bytes each. `findings` goes to the manifest as `found`."""

    candidates: Candidates
    is_kept: npt.NDArray[np.bool_]
    splits: npt.NDArray[np.uint8]
    dropped: dict[int, DropReason] = field(default_factory=dict)
    findings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, candidates: Candidates) -> RowDecisions:
        return cls(candidates, np.ones(len(candidates), bool), candidates.split.copy())

    def drop(self, row: int, drop_reason: DropReason) -> None:
        """Drop a row; the first reason stands."""
        self.dropped.setdefault(row, drop_reason)
        self.is_kept[row] = False

    def iterate_rejected(self) -> Iterator[dict[str, Any]]:
        """Yield the dropped rows in the form of `schema.REJECTED`."""
        rows = np.fromiter(self.dropped, np.int64, len(self.dropped))
        others = np.fromiter((v.other for v in self.dropped.values() if v.other >= 0), np.int64)
        infos = self.candidates.read_infos(np.concatenate([rows, others]))
        for row, drop_reason in self.dropped.items():
            info, detail = infos[row], drop_reason.detail
            if drop_reason.other >= 0:
                other = infos[drop_reason.other]
                detail += f" {other.image_id} ({SPLITS[self.splits[drop_reason.other]]})"
                if info.label != other.label:
                    detail += f"; labeled {info.label} here, {other.label} there"
            yield {"image_id": info.image_id, "sha256": info.sha256, "reason": drop_reason.reason, "detail": detail}

    def sort_by_priority(self, rows: RowNumbers) -> RowNumbers:
        """Sort rows so that the one to keep comes first: by split, then by a hash of their content."""
        return rows[np.lexsort((self.candidates.shuffle_index[rows], KEEP_PRIORITY[self.splits[rows]]))]
