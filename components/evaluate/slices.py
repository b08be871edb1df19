"""Score slices of the test images: by size, brightness, sharpness, source or any other column of the clean dataset."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.index import read_rows
from ..dataset.kinds import SliceScores
from ..dataset.labels import MULTI, multi_hot
from ..dataset.manifest import Dataset
from ..dataset.shards import open_parquet, read_columns
from ..metrics.classification import ConfusionCounts, LabelCounts
from ..storage.errors import wrong
from .intervals import compute_wilson_interval

SIZE = "size"
"""The longer side in pixels, computed from `width` and `height`."""
DEFAULT_COLUMNS = (SIZE, "brightness", "sharpness", "source")
AUTO, NONE = "auto", "none"
MAX_VALUES = 20
"""Text values of a column that get a slice of their own."""
OTHERS, UNKNOWN = "(others)", "(unknown)"
_NOT_SLICED = ("part", "row", "source_row", "split_position", "problem", "detail")
"""Columns that say nothing of an image."""


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


def _find_columns(clean: Dataset) -> list[str]:
    """Return the columns of the index and of the parts that can be sliced."""
    types: dict[str, pa.DataType] = {}
    locations = [clean.locate(file) for file in clean.files("index")[:1]]
    for uri in [*locations, *(clean.locate_part(part) for part in clean.manifest.parts[:1])]:
        with open_parquet(uri) as parquet:
            types |= {column.name: column.type for column in parquet.schema_arrow}
    tests = pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean
    return [SIZE] * ({"width", "height"} <= set(types)) + [
        name for name, kind in types.items() if name not in _NOT_SLICED and any(test(kind) for test in tests)
    ]


def score_slices(
    predictions: Dataset, clean: Dataset, names: tuple[str, ...], task: str, classes: int, top1: float
) -> list[SliceScores]:
    """Return, of every slice that has images, its `images`, `top1` with its interval, `macro_f1` over the classes that
    it has, and whether its top-1 is significantly `below` that of all images, `top1`.

    Intervals hold for all slices together. Columns whose images are all in one slice are left out.
    """
    columns = ["label_ids", "predicted_ids", "top_id"] if task == MULTI else ["label_id", "predicted_id"]
    predicted = pa.concat_tables(read_columns(predictions, "data", ["image_id", *columns]))
    stored = [c for name in names for c in (("width", "height") if name == SIZE else (name,))]
    tables = read_rows(clean, list(dict.fromkeys(["image_id", *stored])), "test")
    images = pa.concat_tables(tables) if names else pa.table({})
    slices: list[tuple[str, str, npt.NDArray[np.bool_]]] = []
    for name in names:
        values = pc.max_element_wise(images["width"], images["height"]) if name == SIZE else images[name]
        order = pc.index_in(predicted["image_id"], value_set=images["image_id"].combine_chunks())
        codes, slice_names = cut(values.take(order))
        present = np.unique(codes)
        slices += [(name, slice_names[code], codes == code) for code in present if len(present) > 1]
    scores = []
    for name, slice_name, is_in in slices:
        summary, number = _count(predicted.filter(pa.array(is_in)), classes).summary(), int(is_in.sum())
        low, high = compute_wilson_interval(round(summary["top1"] * number), number, len(slices))
        scores.append(
            SliceScores(
                name, slice_name, number, round(summary["top1"], 6), round(low, 6), round(high, 6),
                round(summary["macro_f1"], 6), below=high < top1,
            )
        )  # fmt: skip
    return scores


def cut(values: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return the slice of each value, and the slices' names: quarters of numbers, up to and including an edge; of texts
    the most frequent ones, and all others. The last slice is of what has no value."""
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        numbers = np.asarray(values.cast(pa.float64(), safe=False).to_numpy(), np.float64)
        finite = numbers[np.isfinite(numbers)]
        edges = np.unique(np.quantile(finite, [0.25, 0.5, 0.75], method="lower")) if len(finite) else finite
        edges = edges[edges < finite.max(initial=-np.inf)]
        texts = [f"{edge:,.6g}" if abs(edge) >= 1000 else f"{edge:.4g}" for edge in edges]
        between = [f"{low} to {high}" for low, high in pairwise(texts)]
        names = [f"up to {texts[0]}", *between, f"above {texts[-1]}"] if texts else ["all"]
        return np.where(np.isnan(numbers), len(names), np.searchsorted(edges, numbers)), [*names, UNKNOWN]
    words = [None if value is None else str(value) for value in values.to_pylist()]
    counts = Counter(word for word in words if word is not None)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))[:MAX_VALUES]
    codes = {word: code for code, word in enumerate(frequent)} | {None: len(frequent) + 1}
    return np.array([codes.get(word, len(frequent)) for word in words]), [*frequent, OTHERS, UNKNOWN]


def _count(predicted: pa.Table, classes: int) -> ConfusionCounts | LabelCounts:
    rows: dict[str, list[Any]] = predicted.to_pydict()
    if "label_ids" in rows:
        counts = LabelCounts(classes)
        labels, predictions = (multi_hot(rows[name], classes) for name in ("label_ids", "predicted_ids"))
        counts.add(labels, predictions, rows["top_id"])
        return counts
    pairs = ConfusionCounts(classes)
    pairs.add(rows["label_id"], rows["predicted_id"])
    return pairs
