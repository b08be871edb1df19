"""Score slices of the test images: by size, brightness, sharpness, source or any other column of the clean dataset.

An image's slices are looked up by its id, because tensors need not be in the order of the clean files. That costs 8
bytes an image, and one more for each column.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataset.kinds import SliceScores
from ..dataset.labels import MULTI, multi_hot
from ..dataset.manifest import Dataset
from ..dataset.shards import open_parquet, read_columns
from ..metrics.classification import ConfusionCounts, LabelCounts
from ..storage.errors import wrong
from .intervals import compute_wilson_interval
from .overlap import hash_ids, locate_ids

SIZE = "size"
"""The longer side in pixels, computed from `width` and `height`."""
DEFAULT_COLUMNS = (SIZE, "brightness", "sharpness", "source")
AUTO, NONE = "auto", "none"
SAMPLE_ROWS = 100_000
"""Values that the edges are computed from, evenly spaced over the test split."""
MAX_VALUES = 20
"""Text values of a column that get a slice of their own."""
OTHERS, UNKNOWN = "(others)", "(unknown)"

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SliceColumn:
    """A column and its slices. Of numbers: those up to and including each of `edges`, and those above. Of texts: one
    for each of `values`, and all others. The last slice is of images without a value."""

    name: str
    is_numeric: bool
    edges: tuple[float, ...] = ()
    values: tuple[str, ...] = ()

    @property
    def slice_names(self) -> list[str]:
        """The names of the slices, in the order of their codes."""
        if not self.is_numeric:
            return [*self.values, OTHERS, UNKNOWN]
        if not self.edges:
            return ["all", UNKNOWN]
        edges = [f"{edge:,.6g}" if abs(edge) >= 1000 else f"{edge:.4g}" for edge in self.edges]
        between = [f"{low} to {high}" for low, high in pairwise(edges)]
        return [f"up to {edges[0]}", *between, f"above {edges[-1]}", UNKNOWN]

    def encode(self, values: npt.NDArray[Any]) -> Codes:
        """Return the number of each value's slice. `values`: float64 with NaN, or objects with None."""
        last = len(self.slice_names) - 1
        if self.is_numeric:
            codes = np.searchsorted(np.array(self.edges), values, side="left")
            return np.where(np.isnan(values), last, codes).astype(np.uint8)
        code_of = {value: number for number, value in enumerate(self.values)} | {None: last}
        return np.array([code_of.get(value, last - 1) for value in values], np.uint8)


def parse_columns(option: str, clean: Dataset) -> tuple[str, ...]:
    """Return the columns that the option `slices` names; UserError for one that is missing or can't be sliced."""
    if option.strip() in ("", NONE):
        return ()
    columns = _find_columns(clean)
    if option.strip() == AUTO:
        return tuple(name for name in DEFAULT_COLUMNS if name in columns)
    names = list(dict.fromkeys(name.strip() for name in option.split(",") if name.strip()))
    for name in names:
        if name not in columns:
            raise wrong("slices", f"some of {', '.join(columns)}", name)
    return tuple(names)


def _find_columns(clean: Dataset) -> dict[str, bool]:
    """Return the columns of the first test file that can be sliced, and whether each is numeric."""
    files = clean.files("data", "test")
    if not files:
        return {}
    with open_parquet(clean.locate(files[0])) as parquet:
        types = {column.name: column.type for column in parquet.schema_arrow}
    columns = {SIZE: True} if {"width", "height"} <= set(types) else {}
    for name, data_type in types.items():
        if pa.types.is_integer(data_type) or pa.types.is_floating(data_type):
            columns[name] = True
        elif pa.types.is_string(data_type) or pa.types.is_large_string(data_type) or pa.types.is_boolean(data_type):
            columns[name] = False
    return columns


def _read_values(table: pa.Table, name: str, is_numeric: bool) -> npt.NDArray[Any]:
    """Return a column as float64 with NaN, or as texts with None."""
    if name == SIZE:
        longer: Floats = np.maximum(*(_read_values(table, side, True) for side in ("width", "height")))
        return longer
    column = table.column(name)
    if is_numeric:
        numbers: Floats = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return numbers
    return np.array([None if value is None else str(value) for value in column.to_pylist()], object)


def _read_tables(clean: Dataset, names: Sequence[str]) -> Iterator[pa.Table]:
    needed = [c for name in names for c in (("width", "height") if name == SIZE else (name,))]
    yield from read_columns(clean, "data", list(dict.fromkeys(["image_id", *needed])), "test")


def _choose_slices(name: str, is_numeric: bool, sample: npt.NDArray[Any]) -> SliceColumn:
    """Return the quarters of numbers, or the most frequent texts."""
    if is_numeric:
        finite = sample[np.isfinite(sample)]
        edges = np.unique(np.quantile(finite, [0.25, 0.5, 0.75], method="lower")) if len(finite) else finite
        return SliceColumn(name, True, tuple(float(edge) for edge in edges if edge < finite.max()))
    counts = Counter(value for value in sample if value is not None)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return SliceColumn(name, False, values=tuple(value for value, _ in ordered[:MAX_VALUES]))


@dataclass
class Slices:
    """Counts of predictions in every slice of some columns. `id_hashes` uint64 [images], ascending; `codes` uint8
    [columns, images], the slice of each image."""

    columns: tuple[SliceColumn, ...]
    task: str
    classes: int
    id_hashes: npt.NDArray[np.uint64]
    codes: Codes
    counts: dict[tuple[int, int], ConfusionCounts | LabelCounts] = field(default_factory=dict)

    @classmethod
    def read(cls, clean: Dataset, names: Sequence[str], task: str, classes: int) -> Slices:
        """Read the columns of the test split twice: once for the edges, once for every image's slices."""
        is_numeric = _find_columns(clean) if names else {}
        total = clean.manifest.totals.by_split.get("test", 0)
        step, first = max(1, -(-total // SAMPLE_ROWS)), 0
        samples: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
        for table in _read_tables(clean, names) if names else ():
            for name in names:
                samples[name].append(_read_values(table, name, is_numeric[name])[-first % step :: step])
            first += table.num_rows
        columns = tuple(
            _choose_slices(name, is_numeric[name], np.concatenate(samples[name])) for name in names if samples[name]
        )
        hashes, codes = [np.empty(0, np.uint64)], [np.empty((len(columns), 0), np.uint8)]
        for table in _read_tables(clean, names) if columns else ():
            hashes.append(hash_ids(table.column("image_id").to_pylist()))
            codes.append(np.stack([c.encode(_read_values(table, c.name, c.is_numeric)) for c in columns]))
        id_hashes = np.concatenate(hashes)
        order = np.argsort(id_hashes, kind="stable")
        return cls(columns, task, classes, id_hashes[order], np.concatenate(codes, axis=1)[:, order])

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Count a batch of predictions, in any order."""
        if not self.columns or not rows:
            return
        index = locate_ids(self.id_hashes, [row["image_id"] for row in rows])
        for column, codes in enumerate(self.codes[:, index]):
            for code in np.unique(codes).tolist():
                self._count((column, code), [rows[i] for i in np.flatnonzero(codes == code).tolist()])

    def _count(self, key: tuple[int, int], rows: list[dict[str, Any]]) -> None:
        if self.task == MULTI:
            counts = self.counts.setdefault(key, LabelCounts(self.classes))
            assert isinstance(counts, LabelCounts)
            labels, predicted = (
                multi_hot([row[name] for row in rows], self.classes) for name in ("label_ids", "predicted_ids")
            )
            counts.add(labels, predicted, [row["top_id"] for row in rows])
        else:
            pairs = self.counts.setdefault(key, ConfusionCounts(self.classes))
            assert isinstance(pairs, ConfusionCounts)
            pairs.add([row["label_id"] for row in rows], [row["predicted_id"] for row in rows])

    def score(self, top1: float) -> list[SliceScores]:
        """Return, of every slice that has images, its `images`, `top1` with its interval, `macro_f1` over the classes
        that it has, and whether its top-1 is significantly `below` that of all images, `top1`.

        Intervals hold for all slices together. Columns whose images are all in one slice are left out.
        """
        is_split = {n for n in range(len(self.columns)) if sum(key[0] == n for key in self.counts) > 1}
        keys = [key for key in sorted(self.counts) if key[0] in is_split]
        return [self._score_slice(key, top1, len(keys)) for key in keys]

    def _score_slice(self, key: tuple[int, int], top1: float, comparisons: int) -> SliceScores:
        counts, column = self.counts[key], self.columns[key[0]]
        scores = counts.summary()
        images = counts.images if isinstance(counts, LabelCounts) else int(counts.cells()[2].sum())
        low, high = compute_wilson_interval(round(scores["top1"] * images), images, comparisons)
        return SliceScores(
            column=column.name,
            slice=column.slice_names[key[1]],
            images=images,
            top1=round(scores["top1"], 6),
            low=round(low, 6),
            high=round(high, 6),
            macro_f1=round(scores["macro_f1"], 6),
            below=high < top1,
        )
