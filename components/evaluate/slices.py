"""Results by what is known of the images: their size, their brightness, where they come from, or any other column.

What slice an image is in is looked up by its id, because tensors need not be in the order of the clean files. That
costs 8 bytes an image, and one more for each column.
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

from ..store.errors import DatasetError, wrong
from ..store.labels import MULTI, multi_hot
from ..store.manifest import Dataset
from ..store.metrics import ConfusionCounts, LabelCounts
from ..store.shards import open_parquet, read_columns
from .intervals import wilson
from .seen import id_hashes

SIZE = "size"
"""The longer side in pixels, which is no column of its own."""
USUAL = (SIZE, "brightness", "sharpness", "source")
AUTO, NONE = "auto", "none"
SAMPLE, VALUES = 100_000, 20
"""Values that the edges are taken from, evenly over the test split; so many texts get a slice of their own."""
OTHERS, UNKNOWN = "(others)", "(unknown)"

Codes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Column:
    """How a column is cut. Numbers: at `edges`, the lower part with the edge itself. Texts: by `values`, then all
    others. What has no value comes last."""

    name: str
    numeric: bool
    edges: tuple[float, ...] = ()
    values: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of the slices, in the order of their codes."""
        if not self.numeric:
            return [*self.values, OTHERS, UNKNOWN]
        said = [f"{edge:,.6g}" if abs(edge) >= 1000 else f"{edge:.4g}" for edge in self.edges]
        between = [f"{low} to {high}" for low, high in pairwise(said)]
        ends = [[f"up to {said[0]}"], [f"above {said[-1]}"]] if said else [["all"], []]
        return [*ends[0], *between, *ends[1], UNKNOWN]

    def codes(self, values: npt.NDArray[Any]) -> Codes:
        """The number of each value's slice; float64 with NaN, or objects with None, for what is unknown."""
        last = len(self.names) - 1
        if self.numeric:
            found = np.searchsorted(np.array(self.edges), values, side="left")
            return np.where(np.isnan(values), last, found).astype(np.uint8)
        known = {value: number for number, value in enumerate(self.values)} | {None: last}
        return np.array([known.get(value, last - 1) for value in values], np.uint8)


def check_columns(wanted: str, clean: Dataset) -> tuple[str, ...]:
    """The columns that `slices` names; UserError for one that is not there, or that has no plain values."""
    if wanted.strip() in ("", NONE):
        return ()
    there = _plain_columns(clean)
    if wanted.strip() == AUTO:
        return tuple(name for name in USUAL if name in there)
    names = list(dict.fromkeys(name.strip() for name in wanted.split(",") if name.strip()))
    for name in names:
        if name not in there:
            raise wrong("slices", f"some of {', '.join(there)}", name)
    return tuple(names)


def _plain_columns(clean: Dataset) -> dict[str, bool]:
    """The columns that can be cut, whether they are numbers, of the first test file."""
    files = clean.files("data", "test")
    if not files:
        return {}
    with open_parquet(clean.locate(files[0])) as parquet:
        schema = parquet.schema_arrow
    kinds = {one.name: one.type for one in schema}
    found = {SIZE: True} if {"width", "height"} <= set(kinds) else {}
    for name, kind in kinds.items():
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            found[name] = True
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_boolean(kind):
            found[name] = False
    return found


def _values(table: pa.Table, name: str, numeric: bool) -> npt.NDArray[Any]:
    """A column as float64 with NaN, or as texts with None."""
    if name == SIZE:
        sides = [_values(table, side, True) for side in ("width", "height")]
        longer: Numbers = np.maximum(*sides)
        return longer
    column = table.column(name)
    if numeric:
        numbers: Numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return numbers
    return np.array([None if value is None else str(value) for value in column.to_pylist()], object)


def _read(clean: Dataset, names: Sequence[str]) -> Iterator[pa.Table]:
    needed = [c for name in names for c in (("width", "height") if name == SIZE else (name,))]
    yield from read_columns(clean, "data", list(dict.fromkeys(["image_id", *needed])), "test")


def _cut(name: str, numeric: bool, sample: npt.NDArray[Any]) -> Column:
    """Quarters of numbers, the most frequent texts."""
    if numeric:
        known = sample[np.isfinite(sample)]
        edges = np.unique(np.quantile(known, [0.25, 0.5, 0.75], method="lower")) if len(known) else known
        return Column(name, True, tuple(float(e) for e in edges if e < known.max()))
    counted = Counter(value for value in sample if value is not None)
    ordered = sorted(counted.items(), key=lambda one: (-one[1], one[0]))
    return Column(name, False, values=tuple(value for value, _ in ordered[:VALUES]))


@dataclass
class Slices:
    """Counts of right and wrong in every slice of some columns. `ids` uint64 [images], ascending; `codes` uint8
    [columns, images]."""

    columns: tuple[Column, ...]
    task: str
    classes: int
    ids: npt.NDArray[np.uint64]
    codes: Codes
    counts: dict[tuple[int, int], ConfusionCounts | LabelCounts] = field(default_factory=dict)

    @classmethod
    def of(cls, clean: Dataset, names: Sequence[str], task: str, classes: int) -> Slices:
        """Two passes over the columns of the test split: one for the edges, one for every image's slices."""
        numeric = _plain_columns(clean) if names else {}
        total = clean.manifest.totals.by_split.get("test", 0)
        every, first = max(1, -(-total // SAMPLE)), 0
        samples: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
        for table in _read(clean, names) if names else ():
            for name in names:
                samples[name].append(_values(table, name, numeric[name])[-first % every :: every])
            first += table.num_rows
        columns = tuple(_cut(name, numeric[name], np.concatenate(samples[name])) for name in names if samples[name])
        ids, codes = [np.empty(0, np.uint64)], [np.empty((len(columns), 0), np.uint8)]
        for table in _read(clean, names) if columns else ():
            ids.append(id_hashes(table.column("image_id").to_pylist()))
            codes.append(np.stack([c.codes(_values(table, c.name, c.numeric)) for c in columns]))
        hashed = np.concatenate(ids)
        order = np.argsort(hashed, kind="stable")
        return cls(columns, task, classes, hashed[order], np.concatenate(codes, axis=1)[:, order])

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """A batch of predictions, in any order."""
        if not self.columns or not rows:
            return
        wanted = id_hashes([row["image_id"] for row in rows])
        place = np.minimum(np.searchsorted(self.ids, wanted), max(0, len(self.ids) - 1))
        if not len(self.ids) or (self.ids[place] != wanted).any():
            raise DatasetError("a test image of the tensors is not among those of the clean dataset")
        for number, codes in enumerate(self.codes[:, place]):
            for code in np.unique(codes).tolist():
                self._count((number, code), [rows[i] for i in np.flatnonzero(codes == code).tolist()])

    def _count(self, key: tuple[int, int], rows: list[dict[str, Any]]) -> None:
        if self.task == MULTI:
            counts = self.counts.setdefault(key, LabelCounts(self.classes))
            assert isinstance(counts, LabelCounts)
            there, said = (multi_hot([r[name] for r in rows], self.classes) for name in ("label_ids", "predicted_ids"))
            counts.add(there, said, [row["top_id"] for row in rows])
        else:
            pairs = self.counts.setdefault(key, ConfusionCounts(self.classes))
            assert isinstance(pairs, ConfusionCounts)
            pairs.add([row["label_id"] for row in rows], [row["predicted_id"] for row in rows])

    def described(self, top1: float) -> list[dict[str, Any]]:
        """Of every slice that has images: its `images`, `top1` with the interval of it, `macro_f1` (over the classes
        that it has), and whether it is surely `below` the whole's `top1`. Intervals hold for all of them together.
        Columns that are not cut by anything are left out."""
        cut = {n for n in range(len(self.columns)) if sum(key[0] == n for key in self.counts) > 1}
        keys = [key for key in sorted(self.counts) if key[0] in cut]
        return [self._row(key, top1, len(keys)) for key in keys]

    def _row(self, key: tuple[int, int], top1: float, comparisons: int) -> dict[str, Any]:
        counts, column = self.counts[key], self.columns[key[0]]
        found = counts.summary()
        images = counts.images if isinstance(counts, LabelCounts) else int(counts.cells()[2].sum())
        low, high = wilson(round(found["top1"] * images), images, comparisons)
        about = {"column": column.name, "slice": column.names[key[1]], "images": images}
        numbers = {"top1": found["top1"], "low": low, "high": high, "macro_f1": found["macro_f1"]}
        return about | {name: round(value, 6) for name, value in numbers.items()} | {"below": high < top1}
