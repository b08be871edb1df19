"""The numbers of all kept images, read in one pass over the files (60 bytes an image), and their distributions.

Names are not held: they are read afterwards, for the few rows that are shown.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.manifest import Dataset, File
from ..dataset.shards import open_parquet, read_row_group, row_groups
from ..report.audit_facts import Distribution
from .schema import MEASURES

QUANTILES = (1, 25, 50, 75, 99)
"""Percent."""
BINS = 20
WARNED = 5
"""Maximum number of images with a decoder's warning that are named; all are counted."""

_SIZES: dict[str, Any] = {"width": np.int32, "height": np.int32, "image_bytes": np.int64}
_DTYPES: dict[str, Any] = {**_SIZES, **dict.fromkeys(MEASURES, np.float32)}
COUNTED = ("format", "declared_split")
COLUMNS = (*_DTYPES, *COUNTED, "decoder_warning")
"""Columns that a scan reads."""
Ints = npt.NDArray[np.int64]


class ImageInfo(NamedTuple):
    """The text columns by which an image is shown."""

    image_id: str
    label: str
    split: str


ReadInfos = Callable[[Iterable[int]], dict[int, ImageInfo]]
"""Reads the infos of some rows, by row."""


@dataclass
class Scan:
    """The numbers of the N kept rows, in their order.

    Attributes:
        values: [N] array by column, NaN where a measure is missing; columns that some files lack are absent.
        counted: rows by value, by column.
        warnings, warned: number of rows with a decoder's warning, and the first of them: row and warning.
    """

    read_infos: ReadInfos
    rows: int = 0
    by_split: Counter[str] = field(default_factory=Counter)
    values: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    counted: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in COUNTED})
    warnings: int = 0
    warned: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def of(cls, dataset: Dataset) -> Scan:
        """Read all columns but the images, a row group at a time."""
        files = _DatasetRows(dataset)
        return cls.collect(files.read(), files.read_infos)

    @classmethod
    def collect(cls, tables: Iterable[tuple[Ints, Counter[str], pa.Table]], read_infos: ReadInfos) -> Scan:
        """Collect the numbers from tables of some rows each: (their row numbers, rows by split, their `COLUMNS`)."""
        scan = cls(read_infos)
        chunks: dict[str, list[tuple[Ints, npt.NDArray[Any]]]] = {}
        for rows, by_split, table in tables:
            scan.rows += len(rows)
            scan.by_split.update(by_split)
            for name in table.column_names:
                column = table.column(name)
                if name in _DTYPES:
                    chunks.setdefault(name, []).append((rows, _to_array(column, _DTYPES[name])))
                elif name in scan.counted:
                    for entry in pc.value_counts(column).to_pylist():
                        scan.counted[name][entry["values"] or ""] += entry["counts"]
            if "decoder_warning" in table.column_names:
                scan._add_warnings(rows, table.column("decoder_warning"))
        for name in list(chunks):
            parts = chunks.pop(name)
            if sum(len(rows) for rows, _ in parts) == scan.rows:
                scan.values[name] = np.empty(scan.rows, _DTYPES[name])
                for rows, values in parts:
                    scan.values[name][rows] = values
        return scan

    def _add_warnings(self, rows: Ints, column: pa.ChunkedArray) -> None:
        self.warnings += len(column) - column.null_count
        if column.null_count < len(column):
            texts = zip(rows.tolist(), column.to_pylist(), strict=True)
            self.warned = heapq.nsmallest(WARNED, [*self.warned, *(entry for entry in texts if entry[1] is not None)])

    def find_extremes(self, name: str, number: int, largest: bool) -> list[int]:
        """Return the rows with the smallest, or the largest, values of a column; ties in the order of the rows."""
        if name not in self.values:
            return []
        values = self.values[name]
        rows = np.flatnonzero(np.isfinite(values))
        keys = -values[rows] if largest else values[rows]
        if len(rows) > number:  # sort only the rows that can be among the first
            near = keys <= np.partition(keys, number - 1)[number - 1]
            rows, keys = rows[near], keys[near]
        return [int(row) for row in rows[np.argsort(keys, kind="stable")[:number]]]


@dataclass
class _DatasetRows:
    """The rows of a dataset's data files, in the order of the files."""

    dataset: Dataset
    _groups: list[tuple[File, int]] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)

    def read(self) -> Iterator[tuple[Ints, Counter[str], pa.Table]]:
        start = 0
        for file in self.dataset.files():
            for index, table in enumerate(row_groups(self.dataset, file, list(COLUMNS))):
                self._groups.append((file, index))
                self._starts.append(start)
                yield np.arange(start, start + table.num_rows), Counter({file.split: table.num_rows}), table
                start += table.num_rows

    def read_infos(self, rows: Iterable[int]) -> dict[int, ImageInfo]:
        """Read the infos of some rows, by row, from the row groups that they are in."""
        numbers = np.unique(np.fromiter(rows, np.int64))
        groups = np.searchsorted(np.array(self._starts, np.int64), numbers, side="right") - 1
        infos: dict[int, ImageInfo] = {}
        for group in np.unique(groups).tolist():
            file, index = self._groups[group]
            uri = self.dataset.locate(file)
            with open_parquet(uri) as parquet:
                table = read_row_group(parquet, index, uri, list(ImageInfo._fields))
            for row in numbers[groups == group].tolist():
                offset = row - self._starts[group]
                infos[row] = ImageInfo(*(table.column(name)[offset].as_py() for name in ImageInfo._fields))
        return infos


def _to_array(column: pa.ChunkedArray, dtype: Any) -> npt.NDArray[Any]:
    """Return a column as an array; nulls become NaN, or 0 in integers."""
    default = 0 if np.issubdtype(dtype, np.integer) else float("nan")
    array: npt.NDArray[Any] = pc.fill_null(column, default).to_numpy().astype(dtype, copy=False)
    return array


def describe_distribution(values: npt.NDArray[Any] | None) -> Distribution | None:
    """Return the distribution of the finite ones of [N] numbers, or None if there are none.

    Quantiles are interpolated linearly, in float64.
    """
    if values is None:
        return None
    finite = values[np.isfinite(values)].astype(np.float64)
    if not len(finite):
        return None
    percentiles = np.percentile(finite, QUANTILES)
    low, high = float(percentiles[0]), float(percentiles[-1])
    inside = finite[(finite >= low) & (finite <= high)]
    bins = np.histogram(inside, BINS, (low, high))[0] if high > low else np.array([len(inside)])
    quantiles = {str(percent): _round(value) for percent, value in zip(QUANTILES, percentiles.tolist(), strict=True)}
    return Distribution(len(finite), _round(finite.min()), _round(finite.max()), quantiles, tuple(bins.tolist()))


def _round(value: float) -> float:
    """Round to nine digits, as many as identify a float32."""
    return float(f"{value:.9g}")
