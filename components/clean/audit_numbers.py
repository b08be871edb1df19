"""The numbers of all kept images, in one pass over the files: 44 bytes an image, and then what they look like.

Names are not held: they are read afterwards, for the few rows that somebody wants to see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..store.manifest import Dataset, File
from ..store.shards import open_parquet, read_row_group, row_groups
from .schema import MEASURES

QUANTILES = (1, 5, 25, 50, 75, 95, 99)
"""Percent."""
BINS = 20
WARNED = 5
"""So many images with a decoder's warning are named; all are counted."""

_SIZES: dict[str, Any] = {"width": np.int32, "height": np.int32, "image_bytes": np.int64}
_KINDS: dict[str, Any] = {**_SIZES, **dict.fromkeys(MEASURES, np.float32)}
_COUNTED = ("format", "declared_split")
_COLUMNS = [*_KINDS, *_COUNTED, "decoder_warning"]


@dataclass(frozen=True)
class Histogram:
    """`counts` of equal bins from `low` to `high`, and how many lie `below` and `above`."""

    low: float
    high: float
    counts: tuple[int, ...]
    below: int
    above: int


@dataclass(frozen=True)
class Distribution:
    """How one number is spread over `count` images. `quantiles` by percent; the histogram's bins go from the first
    to the last of them, so that a few extremes don't flatten it."""

    count: int
    minimum: float
    maximum: float
    quantiles: dict[str, float]
    histogram: Histogram


class Label(NamedTuple):
    """What is said of a row where people read it."""

    image_id: str
    label: str
    split: str


@dataclass
class Scan:
    """What one pass over the kept rows gives, in the order of the rows. [N] arrays by column, NaN where a measure is
    missing; columns that the files lack (an older dataset) are absent."""

    dataset: Dataset
    rows: int = 0
    by_split: Counter[str] = field(default_factory=Counter)
    values: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    counted: dict[str, Counter[str]] = field(default_factory=dict)
    warnings: int = 0
    warned: list[tuple[int, str]] = field(default_factory=list)
    _groups: list[tuple[File, int]] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, dataset: Dataset) -> Scan:
        scan = cls(dataset, counted={name: Counter() for name in _COUNTED})
        found: dict[str, bytearray] = {}
        for file in dataset.files():
            for index, table in enumerate(row_groups(dataset, file, _COLUMNS)):
                scan._add(file, index, table, found)
        scan.values = {name: np.frombuffer(data, _KINDS[name]) for name, data in found.items()}
        return scan

    def _add(self, file: File, index: int, table: pa.Table, found: dict[str, bytearray]) -> None:
        self._groups.append((file, index))
        self._starts.append(self.rows)
        for name in table.column_names:
            column = table.column(name)
            if name in _KINDS:
                found.setdefault(name, bytearray()).extend(_numbers(column, _KINDS[name]).tobytes())
            elif name in self.counted:
                for one in pc.value_counts(column).to_pylist():
                    self.counted[name][one["values"] or ""] += one["counts"]
        if "decoder_warning" in table.column_names:
            self._add_warnings(table.column("decoder_warning"))
        self.rows += table.num_rows
        self.by_split[file.split] += table.num_rows

    def _add_warnings(self, column: pa.ChunkedArray) -> None:
        self.warnings += len(column) - column.null_count
        if column.null_count < len(column) and len(self.warned) < WARNED:
            said = [(self.rows + row, text) for row, text in enumerate(column.to_pylist()) if text is not None]
            self.warned += said[: WARNED - len(self.warned)]

    def whole(self, name: str) -> npt.NDArray[Any] | None:
        """The column [N], or None where rows lack it."""
        found = self.values.get(name)
        return found if found is not None and len(found) == self.rows else None

    def names(self, rows: Iterable[int]) -> dict[int, Label]:
        """The names of some rows; reads the row groups that they are in."""
        wanted = np.unique(np.fromiter(rows, np.int64))
        owners = np.searchsorted(np.array(self._starts, np.int64), wanted, side="right") - 1
        found: dict[int, Label] = {}
        for owner in np.unique(owners).tolist():
            file, index = self._groups[owner]
            uri = self.dataset.locate(file)
            with open_parquet(uri) as parquet:
                table = read_row_group(parquet, index, uri, list(Label._fields))
            for row in wanted[owners == owner].tolist():
                at = row - self._starts[owner]
                found[row] = Label(*(table.column(name)[at].as_py() for name in Label._fields))
        return found

    def extremes(self, name: str, number: int, largest: bool) -> list[int]:
        """The rows with the smallest, or the largest, values of a column; ties in the order of the rows."""
        values = self.whole(name)
        if values is None:
            return []
        known = np.flatnonzero(np.isfinite(values))
        signed = -values[known] if largest else values[known]
        if len(known) > number:  # only those up to the last value that can be among them
            near = signed <= np.partition(signed, number - 1)[number - 1]
            known, signed = known[near], signed[near]
        return [int(row) for row in known[np.argsort(signed, kind="stable")[:number]]]


def _numbers(column: pa.ChunkedArray, kind: Any) -> npt.NDArray[Any]:
    """A column as an array; what is missing is NaN, or 0 in whole numbers."""
    missing = 0 if np.issubdtype(kind, np.integer) else float("nan")
    found: npt.NDArray[Any] = pc.fill_null(column, missing).to_numpy().astype(kind, copy=False)
    return found


def describe(values: npt.NDArray[Any] | None) -> Distribution | None:
    """The distribution of [N] numbers; None when there are none. Quantiles are interpolated linearly, from float64."""
    if values is None:
        return None
    known = values[np.isfinite(values)].astype(np.float64)
    if not len(known):
        return None
    found = np.percentile(known, QUANTILES)
    low, high = float(found[0]), float(found[-1])
    inside = known[(known >= low) & (known <= high)]
    counts = np.histogram(inside, BINS, (low, high))[0] if high > low else np.array([len(inside)])
    histogram = Histogram(
        _short(low), _short(high), tuple(counts.tolist()), int((known < low).sum()), int((known > high).sum())
    )
    quantiles = {str(percent): _short(value) for percent, value in zip(QUANTILES, found.tolist(), strict=True)}
    return Distribution(len(known), _short(known.min()), _short(known.max()), quantiles, histogram)


def _short(value: float) -> float:
    """Nine digits, as many as a float32 can mean."""
    return float(f"{value:.9g}")
