"""In-memory columns of the candidates, which are the valid images of the raw index, and the decisions on them: kept or
dropped, why, and in which split.

A candidate costs about 150 bytes, with its row of the raw index about 400. Thumbnails and pictures stay in the parts,
and are read for the few rows that a decision is about.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.index import PartRows, list_part_rows
from ..dataset.manifest import Dataset, Part
from ..dataset.parts import PartFolder
from ..dataset.shards import READ_THREADS, open_parquet, read_file, read_row_group
from ..dataset.splits import SPLITS, UNDECLARED, Codes, choose_splits, encode_splits
from ..imaging.decoder import ImageRejected
from ..storage.parallel import map_ordered
from .config import CleanConfig
from .labels import LabelRules
from .schema import MEASURES

Int64Array = npt.NDArray[np.int64]
RowNumbers = Int64Array


class CandidateInfo(NamedTuple):
    """Text columns that identify a row in messages, examples and rejects."""

    image_id: str
    sha256: str
    label: str


class Reject(NamedTuple):
    """A row of the raw index that is no candidate, and why."""

    raw_row: int
    reason: str
    detail: str


@dataclass
class Candidates:
    """Columns of the N candidates, in the order of the clean parts and of their rows.

    Attributes:
        raw: the raw index.
        raw_rows: int64 [N], row of each candidate in `raw`.
        folder, parts, starts: the clean parts, and the first candidate of each, int64 [parts + 1].
        rows: int32 [N], row in its part.
        labels, label_ids: label text and class ids, by label code.
        label_codes: int32 [N].
        pixel_hash: uint64 [N, 2], hash of the standardized pixels.
        phash: uint64 [N], perceptual hash.
        declared: uint8 [N], code of the split that the source declares.
        has_groups: whether a row belongs to a group.
        shuffle_index: int64 [N].
        split_position: float64 [N], in [0, 1), the same for all rows of a group.
        measures: float32 [N] by name.
        width, height, image_bytes: int32, int32, int64 [N].
        has_warning: bool [N], of the decoder.
        has_measures: whether the rows were measured.
    """

    raw: pa.Table
    folder: PartFolder
    parts: Sequence[Part]
    starts: Int64Array
    raw_rows: Int64Array
    rows: npt.NDArray[np.int32]
    labels: list[str]
    label_ids: list[list[int]]
    label_codes: npt.NDArray[np.int32]
    pixel_hash: npt.NDArray[np.uint64]
    phash: npt.NDArray[np.uint64]
    declared: Codes
    has_groups: bool
    shuffle_index: Int64Array
    split_position: npt.NDArray[np.float64]
    measures: dict[str, npt.NDArray[np.float32]]
    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]
    image_bytes: Int64Array
    has_warning: npt.NDArray[np.bool_]
    has_measures: bool

    def __len__(self) -> int:
        return len(self.raw_rows)

    def get_declared_splits(self, config: CleanConfig) -> Codes:
        """Return `declared`; undeclared for all rows where the config does not respect it."""
        return self.declared if config.respects_declared_splits else np.full(len(self), UNDECLARED, np.uint8)

    def read_infos(self, rows: RowNumbers) -> dict[int, CandidateInfo]:
        """Return the infos of some rows, by row; about 500 bytes each."""
        numbers = np.unique(rows)
        table = self.raw.select(["image_id", "sha256"]).take(pa.array(self.raw_rows[numbers]))
        ids, hashes = (table.column(name).to_pylist() for name in ("image_id", "sha256"))
        labels = [self.labels[code] for code in self.label_codes[numbers].tolist()]
        return dict(zip(numbers.tolist(), map(CandidateInfo, ids, hashes, labels), strict=True))

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

    def find_rows(self, image_ids: Collection[str]) -> dict[str, int]:
        """Return row numbers by image_id; ids that are no candidates are absent."""
        raw_ids = self.raw.column("image_id")
        raw_rows = pc.indices_nonzero(pc.is_in(raw_ids, pa.array(sorted(set(image_ids)), pa.string()))).to_numpy()
        order = np.argsort(self.raw_rows)
        positions = np.searchsorted(self.raw_rows[order], raw_rows)
        numbers: dict[str, int] = {}
        for raw_row, position in zip(raw_rows.tolist(), positions.tolist(), strict=True):
            if position < len(order) and self.raw_rows[order[position]] == raw_row:
                numbers[raw_ids[raw_row].as_py()] = int(order[position])
        return numbers

    def read(self, rows: RowNumbers, columns: list[str]) -> Iterator[tuple[RowNumbers, pa.Table]]:
        """Yield (rows, their columns in the clean parts), a row group at a time; `rows` are sorted and deduplicated."""
        rows = np.unique(rows)
        ranges = np.searchsorted(rows, self.starts)

        def read_part(number: int) -> list[tuple[RowNumbers, pa.Table]]:
            wanted = rows[ranges[number] : ranges[number + 1]]
            return list(self._read_part(self.parts[number], wanted, columns))

        # The memory that is planned for: 1,000 bytes per row, those of a thumbnail.
        numbers = np.flatnonzero(np.diff(ranges)).tolist()
        for selected in map_ordered(numbers, read_part, READ_THREADS, lambda n: 1000 * int(ranges[n + 1] - ranges[n])):
            yield from selected

    def _read_part(self, part: Part, wanted: RowNumbers, columns: list[str]) -> Iterator[tuple[RowNumbers, pa.Table]]:
        uri, positions = self.folder.locate(part.key), self.rows[wanted]
        first = 0
        with open_parquet(uri) as parquet:
            for group in range(parquet.num_row_groups):
                last = first + parquet.metadata.row_group(group).num_rows
                low, high = np.searchsorted(positions, [first, last]).tolist()
                if low < high:
                    table = read_row_group(parquet, group, uri, columns)
                    yield wanted[low:high], table.take(pa.array(positions[low:high] - first))
                first = last


def read_candidates(
    raw: Dataset, index: pa.Table, parts: Sequence[Part], folder: PartFolder, rules: LabelRules, config: CleanConfig
) -> tuple[Candidates, list[Reject]]:
    """Read the small columns of the clean `parts`, one for each part of `raw` that its index names, in that order.

    `index`: raw's. Rows that the index does not name have left the source, and are neither candidates nor rejects.
    """
    labels = _LabelTable.of(index, rules)
    selected = list(list_part_rows(raw, index))
    first_rows = np.cumsum([0, *(len(rows.rows) for rows in selected)]).tolist()
    read = partial(_read_columns, folder)
    tables = map_ordered(parts, read, READ_THREADS, lambda part: 300 * part.rows)
    columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in (*_CONVERTERS, "raw_rows", "rows")}
    rejects: list[Reject] = []
    has_measures, counts = False, [0]
    for rows, first, table in zip(selected, first_rows[:-1], tables, strict=True):
        raw_rows = _locate_in_index(rows, first, table)
        is_valid = _reject_rows(table, raw_rows, labels, config, rejects)
        valid = table.filter(pa.array(is_valid))
        for name, convert in _CONVERTERS.items():
            columns[name].append(convert(valid.column(name)))
        columns["raw_rows"].append(raw_rows[is_valid])
        columns["rows"].append(np.flatnonzero(is_valid).astype(np.int32))
        has_measures |= valid.column("phash").null_count < valid.num_rows
        counts.append(valid.num_rows)
    # Popped, so that no column is in memory twice for longer than it takes to join it.
    joined = {name: np.concatenate(columns.pop(name)) for name in list(columns)}
    measures = {name: joined.pop(name) for name in MEASURES}
    raw_rows = joined["raw_rows"]
    candidates = Candidates(
        raw=index, folder=folder, parts=parts, starts=np.cumsum(counts, dtype=np.int64), labels=labels.texts,
        label_ids=labels.ids, label_codes=labels.codes[raw_rows], has_groups=bool(joined.pop("group").any()),
        declared=joined.pop("declared_split"), has_warning=joined.pop("decoder_warning"), measures=measures,
        has_measures=has_measures, **joined,
    )  # fmt: skip
    return candidates, rejects


def _read_columns(folder: PartFolder, part: Part) -> pa.Table:
    return pa.concat_tables(read_file(folder.locate(part.key), [*_CONVERTERS, "source_row", "problem", "detail"]))


def _locate_in_index(rows: PartRows, first: int, table: pa.Table) -> Int64Array:
    """Return int64 [rows], for each row of a clean part its row in the raw index, -1 where it has none."""
    places = np.full(rows.part.rows, -1, np.int64)
    places[rows.rows] = np.arange(first, first + len(rows.rows))
    located: Int64Array = places[np.asarray(table.column("source_row"))]
    return located


@dataclass(frozen=True)
class _LabelTable:
    """The labels of a raw index: `codes` int32 [rows] of `texts` and `ids`, below 0 for a label that is rejected, for
    the reason in `refused[-code - 1]`."""

    codes: npt.NDArray[np.int32]
    texts: list[str]
    ids: list[list[int]]
    refused: list[ImageRejected]

    @classmethod
    def of(cls, index: pa.Table, rules: LabelRules) -> _LabelTable:
        column = index.column("label").combine_chunks()
        column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        codes: dict[str, int] = {}
        ids: list[list[int]] = []
        refused: list[ImageRejected] = []
        by_text = []
        for text in [*column.dictionary.to_pylist(), None]:
            try:
                names = rules.parse(text)
            except ImageRejected as error:
                refused.append(error)
                by_text.append(-len(refused))
                continue
            label = rules.separator.join(names) if rules.is_multi_label else names[0]
            if label not in codes:
                codes[label] = len(ids)
                ids.append([rules.ids[name] for name in names])
            by_text.append(codes[label])
        indices = np.asarray(column.indices.fill_null(len(by_text) - 1))
        return cls(np.array(by_text, np.int32)[indices], list(codes), ids, refused)


def _reject_rows(
    table: pa.Table, raw_rows: Int64Array, labels: _LabelTable, config: CleanConfig, rejects: list[Reject]
) -> npt.NDArray[np.bool_]:
    """Add the rows of a part that can't be kept to `rejects`; return bool [rows], which are candidates."""
    is_living = raw_rows >= 0
    problems = table.column("problem").combine_chunks()
    has_problem = np.asarray(problems.is_valid())
    codes = np.where(is_living, labels.codes[np.maximum(raw_rows, 0)], 0) if len(labels.codes) else raw_rows
    width, height, contrast = (_CONVERTERS[name](table.column(name)) for name in ("width", "height", "contrast"))
    short, long = np.minimum(width, height), np.maximum(width, height)
    is_refused = has_problem | (codes < 0) | (short < config.min_side)
    if config.max_aspect:
        is_refused |= long > config.max_aspect * short
    if config.min_contrast:
        is_refused |= contrast < config.min_contrast
    details = table.column("detail")
    for row in np.flatnonzero(is_living & is_refused).tolist():
        problem = problems[row].as_py()
        if codes[row] < 0 and problem != "missing_file":
            error = labels.refused[-int(codes[row]) - 1]
            reason, detail = error.reason, error.detail
        elif problem:
            reason, detail = problem, details[row].as_py()
        elif short[row] < config.min_side:
            reason = "too_small"
            detail = f"{width[row]:,} x {height[row]:,} pixels, at least {config.min_side:,} a side"
        elif config.max_aspect and long[row] > config.max_aspect * short[row]:
            reason = "extreme_aspect"
            detail = f"{width[row]:,} x {height[row]:,} pixels, sides of at most {config.max_aspect:g}:1"
        else:
            reason, detail = "blank", f"contrast {contrast[row]:.4f}, at least {config.min_contrast:g}"
        rejects.append(Reject(int(raw_rows[row]), reason, detail))
    return is_living & ~is_refused


_Array = npt.NDArray[Any]


def _convert_hex(column: pa.ChunkedArray) -> _Array:
    """Convert 32 hexadecimal digits to uint64 [N, 2]; null to 0."""
    data = bytes.fromhex("".join(text or "0" * 32 for text in column.to_pylist()))
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2)


def _convert_numbers(column: pa.ChunkedArray, dtype: type[Any]) -> _Array:
    """Convert numbers to `dtype`, null to 0."""
    numbers: _Array = column.combine_chunks().fill_null(0).to_numpy().astype(dtype, copy=False)
    return numbers


def _is_set(column: pa.ChunkedArray) -> _Array:
    return np.asarray(column.is_valid())


_CONVERTERS: dict[str, Callable[[pa.ChunkedArray], _Array]] = {
    "pixel_hash": _convert_hex,
    "phash": partial(_convert_numbers, dtype=np.uint64),
    "declared_split": encode_splits,
    "group": _is_set,
    "shuffle_index": partial(_convert_numbers, dtype=np.int64),
    "split_position": partial(_convert_numbers, dtype=np.float64),
    "width": partial(_convert_numbers, dtype=np.int32),
    "height": partial(_convert_numbers, dtype=np.int32),
    "image_bytes": partial(_convert_numbers, dtype=np.int64),
    "decoder_warning": _is_set,
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
    """State of all candidates while they are judged: bool and split codes [N], and the reason by dropped row, some
    300 bytes each. `findings` goes to the manifest as `found`."""

    candidates: Candidates
    is_kept: npt.NDArray[np.bool_]
    splits: Codes
    dropped: dict[int, DropReason] = field(default_factory=dict)
    findings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, candidates: Candidates, config: CleanConfig) -> RowDecisions:
        """Keep all rows, in the stable splits."""
        declared, positions = candidates.get_declared_splits(config), candidates.split_position
        splits = choose_splits(declared, positions, config.val_fraction, config.test_fraction)
        return cls(candidates, np.ones(len(candidates), bool), splits)

    def drop(self, row: int, drop_reason: DropReason) -> None:
        """Drop a row; the first reason stands."""
        self.dropped.setdefault(row, drop_reason)
        self.is_kept[row] = False

    def list_rejects(self) -> Iterator[Reject]:
        """Yield the dropped rows."""
        others = np.fromiter((v.other for v in self.dropped.values() if v.other >= 0), np.int64)
        infos = self.candidates.read_infos(np.concatenate([np.fromiter(self.dropped, np.int64), others]))
        for row, drop_reason in self.dropped.items():
            detail = drop_reason.detail
            if drop_reason.other >= 0:
                info, other = infos[row], infos[drop_reason.other]
                detail += f" {other.image_id} ({SPLITS[self.splits[drop_reason.other]]})"
                if info.label != other.label:
                    detail += f"; labeled {info.label} here, {other.label} there"
            yield Reject(int(self.candidates.raw_rows[row]), drop_reason.reason, detail)

    def sort_by_priority(self, rows: RowNumbers) -> RowNumbers:
        """Sort rows so that the one to keep comes first: by split, then by a hash of their content."""
        return rows[np.lexsort((self.candidates.shuffle_index[rows], KEEP_PRIORITY[self.splits[rows]]))]
