"""The numbers of all kept images, read in one pass over the parts (60 bytes an image), and their distributions."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.index import read_index, read_rows
from ..dataset.manifest import Dataset
from ..dataset.shards import READ_THREADS
from ..dataset.splits import SPLITS
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


@dataclass
class Scan:
    """The numbers of the N kept rows, in the index's order.

    Attributes:
        index: their columns of `ImageInfo`.
        values: [N] array by column, NaN where a measure is missing; columns that some parts lack are absent.
        counted: rows by value, by column.
        warnings, warned: number of rows with a decoder's warning, and the first of them: row and warning.
    """

    index: pa.Table
    rows: int = 0
    by_split: Counter[str] = field(default_factory=Counter)
    values: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    counted: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in COUNTED})
    warnings: int = 0
    warned: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def of(cls, dataset: Dataset) -> Scan:
        """Read all columns but the images."""
        scan = cls(read_index(dataset, ImageInfo._fields))
        scan.by_split.update(dict.fromkeys(SPLITS, 0) | count_texts(scan.index.column("split")))
        chunks: dict[str, list[npt.NDArray[Any]]] = {}
        for table in read_rows(dataset, COLUMNS, threads=READ_THREADS):
            for name in table.column_names:
                column = table.column(name)
                if name in _DTYPES:
                    chunks.setdefault(name, []).append(_to_array(column, _DTYPES[name]))
                elif name in scan.counted:
                    scan.counted[name].update(count_texts(column))
            scan._add_warnings(scan.rows + np.arange(table.num_rows), table.column("decoder_warning"))
            scan.rows += table.num_rows
        scan.values = {name: np.concatenate(chunks.pop(name)) for name in list(chunks)}
        return scan

    def read_infos(self, rows: Iterable[int]) -> dict[int, ImageInfo]:
        """Return the infos of some rows, by row."""
        return {row: ImageInfo(*(self.index.column(name)[row].as_py() for name in ImageInfo._fields)) for row in rows}

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


def count_texts(column: pa.ChunkedArray) -> dict[str, int]:
    """Return the number of rows of each text; an empty text for null."""
    return {entry["values"] or "": entry["counts"] for entry in pc.value_counts(column).to_pylist()}


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
