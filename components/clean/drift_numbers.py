"""Compare a clean dataset with an earlier one: the class balance, sizes and measures, of all rows and of the new ones.

A comparison holds numbers, each with what chance makes of it, and no verdict; it depends on the two datasets alone.
Classes that only one of them has are listed, and have no part in the balance: a PSI would say no more of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.kinds import CleanExtra
from ..dataset.manifest import Dataset
from ..dataset.shards import read_columns
from ..imaging.pixel_options import StandardizeConfig
from ..metrics.two_sample import (
    ALL,
    NEW,
    Parts,
    Values,
    assign_bins,
    bound_ks,
    compare_counts,
    compare_shares,
    compute_ks,
)
from .labels import compare_class_lists, split_labels
from .schema import MEASURES

VERSION = 2
"""Raised when the same datasets must give another comparison."""
LEVEL = 0.01
"""The probability that, without any change, chance reaches any of a comparison's numbers at all."""
COMPARED = ("width", "height", *MEASURES)
MAX_BINS, LISTED_CLASSES = 1_000, 40
"""Bins of the class balance, the rarest classes being pooled; classes of which the shares are stored."""
HISTOGRAM_BINS = 24
REFERENCE = "then"
"""Key of the reference's values in a comparison, beside the scopes `all` and `new` (of the snapshot's)."""

_PIXEL_OPTIONS = {field.name for field in fields(StandardizeConfig)} - {"keep_masks", "max_pixels", "max_side"}
_LABEL_OPTIONS = {"label_separator", "rare_classes", "rare_below", "other_class"}

Mask = npt.NDArray[np.bool_]
Comparison = dict[str, Any]


@dataclass(frozen=True)
class SnapshotPair:
    """The rows of a snapshot and of its reference; bool [N] each: whether the other has an image of the same bytes."""

    snapshot: pa.Table
    reference: pa.Table
    is_common: Mask
    is_kept: Mask

    @classmethod
    def match(cls, snapshot: pa.Table, reference: pa.Table) -> SnapshotPair:
        """Match the rows of two tables by `sha256`."""
        hashes = snapshot.column("sha256"), reference.column("sha256")
        return cls(snapshot, reference, _is_in(*hashes), _is_in(*reversed(hashes)))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Return the number of rows that are common, removed and added."""
        common = int(self.is_common.sum())
        return common, int((~self.is_kept).sum()), len(self.is_common) - common

    @property
    def scopes(self) -> tuple[str, ...]:
        """Return the scopes: without common rows the new ones are all."""
        common, _, added = self.sizes
        return (ALL, NEW) if common and added else (ALL,)


def _read_table(dataset: Dataset) -> pa.Table:
    """Read the columns that are compared."""
    tables = list(read_columns(dataset, "data", ["sha256", "label", *COMPARED]))
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def _is_in(values: pa.ChunkedArray, others: pa.ChunkedArray) -> Mask:
    mask: Mask = pc.is_in(values, value_set=others, skip_nulls=True).to_numpy()
    return mask


def compare_datasets(snapshot: Dataset, reference: Dataset) -> Comparison:
    """Compare two clean datasets; what their options make incomparable is left out."""
    separator = str(snapshot.manifest.config.get("label_separator", ""))
    rows = SnapshotPair.match(_read_table(snapshot), _read_table(reference))
    datasets = {"snapshot": snapshot.fingerprint, "reference": reference.fingerprint}
    label_map = CleanExtra.of(snapshot.manifest).label_map
    return datasets | compare_rows(rows, find_changed_options(snapshot, reference), separator, label_map)


def compare_rows(
    rows: SnapshotPair,
    changed: Mapping[str, list[Any]],
    separator: str = "",
    label_map: Mapping[str, str] = MappingProxyType({}),
) -> Comparison:
    """Compare rows whose options of clean differ in `changed`.

    `separator`: of several labels of an image. `label_map`: new names, by old ones, of the reference's classes.
    """
    measures = {} if _PIXEL_OPTIONS & changed.keys() else _read_measures(rows)
    has_classes = not _LABEL_OPTIONS & changed.keys()
    level = LEVEL / max(1, len(rows.scopes) * (len(measures) + has_classes))
    common, removed, added = rows.sizes
    return {
        "rows": len(rows.is_common),
        "reference_rows": len(rows.is_kept),
        "common": common,
        "removed": removed,
        "added": added,
        "changed_options": changed,
        "level": level,
        "measures": {name: _compare_measure(parts, rows.scopes, level) for name, parts in measures.items()},
        "classes": _compare_classes(rows, separator, level, label_map) if has_classes else {},
    }


def find_changed_options(snapshot: Dataset, reference: Dataset) -> dict[str, list[Any]]:
    """Return the options of clean that differ, by name: the reference's value and the snapshot's.

    With other pixel options the measures would be of other pictures of the same images.
    """
    earlier, config = reference.manifest.config, snapshot.manifest.config
    shared = sorted(earlier.keys() & config.keys())  # another version may have more
    return {name: [earlier[name], config[name]] for name in shared if earlier[name] != config[name]}


@dataclass(frozen=True)
class MeasureParts:
    """The finite values of a measure, float [N] each, of the rows that are common, removed and added."""

    common: Values
    removed: Values
    added: Values

    def to_samples(self) -> dict[str, Values]:
        """Return the values of the reference and of each scope's sample that has any."""
        samples = {
            REFERENCE: np.concatenate([self.common, self.removed]), ALL: np.concatenate([self.common, self.added]),
            NEW: self.added,
        }  # fmt: skip
        return {name: values for name, values in samples.items() if len(values)}


def _read_measures(rows: SnapshotPair) -> dict[str, MeasureParts]:
    """Return the values by measure; a measure that either dataset lacks is left out."""
    measures = {}
    for name in COMPARED:
        values, earlier = _read_numbers(rows.snapshot, name), _read_numbers(rows.reference, name)
        is_common, is_added = rows.is_common & np.isfinite(values), ~rows.is_common & np.isfinite(values)
        parts = MeasureParts(values[is_common], earlier[~rows.is_kept & np.isfinite(earlier)], values[is_added])
        if {REFERENCE, ALL} <= parts.to_samples().keys():
            measures[name] = parts
    return measures


def _read_numbers(table: pa.Table, name: str) -> Values:
    """Return a column as float [N], NaN for null; the aspect ratio is known without measures, too."""
    if name == "aspect_ratio":
        return _read_numbers(table, "width") / np.maximum(1, _read_numbers(table, "height"))
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    values: Values = pc.fill_null(table.column(name).cast(pa.float64()), np.nan).to_numpy()
    return values


def _compare_measure(values: MeasureParts, scopes: tuple[str, ...], level: float) -> dict[str, Any]:
    parts = (values.common, values.removed, values.added)
    sizes = (len(parts[0]), len(parts[1]), len(parts[2]))
    pooled = np.concatenate(parts)
    bins = assign_bins(pooled)
    number = int(bins.max()) + 1
    counts = (np.bincount(part, minlength=number).astype(np.int64) for part in np.split(bins, np.cumsum(sizes)[:2]))
    samples = values.to_samples()
    scopes = tuple(scope for scope in scopes if scope in samples)
    shifts = compare_counts(Parts(*counts), scopes, level)
    quartiles = {name: [_round(q) for q in np.percentile(sample, (25, 50, 75))] for name, sample in samples.items()}
    return {"bins": number, "quartiles": quartiles, "histogram": _make_histograms(samples, pooled)} | {
        scope: shifts[scope].to_dict()
        | {"ks": _round(compute_ks(*parts, scope)), "ks_chance": _round(bound_ks(sizes, scope, level))}
        for scope in scopes
    }


def _make_histograms(samples: dict[str, Values], pooled: Values) -> dict[str, Any]:
    """Count each sample in equal bins between the 1st and 99th percentiles; the values beyond are in the end bins."""
    low, high = (float(value) for value in np.percentile(pooled, (1, 99)))
    high = high if high > low else low + max(1.0, abs(low) / 100)
    counts = {
        name: np.histogram(np.clip(sample, low, high), HISTOGRAM_BINS, (low, high))[0].tolist()
        for name, sample in samples.items()
    }
    return {"low": _round(low), "high": _round(high), "counts": counts}


def _compare_classes(rows: SnapshotPair, separator: str, level: float, label_map: Mapping[str, str]) -> dict[str, Any]:
    """Compare the balance of the classes that both have; where images have several labels, by their sets of labels, as
    they are together."""
    labels, earlier = (pc.fill_null(table.column("label"), "") for table in (rows.snapshot, rows.reference))
    then_counts = _split(_count(earlier), separator)
    earlier, labels = _rename(earlier, label_map, separator), _rename(labels, {}, separator)
    now, then_renamed = (_split(_count(texts), separator) for texts in (labels, earlier))
    is_shared, was_shared = (
        _has_only(texts, now.keys() & then_renamed.keys(), separator) for texts in (labels, earlier)
    )
    keys = [
        pc.binary_join_element_wise(table.column("sha256"), texts, "/")
        for table, texts in ((rows.snapshot, labels), (rows.reference, earlier))
    ]
    # An image that has another label now is no common row of the class balance.
    is_common, is_kept = _is_in(*keys), _is_in(*reversed(keys))
    masks = {
        ALL: (is_shared & is_common, was_shared & ~is_kept, is_shared & ~is_common),
        NEW: (was_shared & rows.is_kept, was_shared & ~rows.is_kept, is_shared & ~rows.is_common),
    }
    columns = {ALL: (labels, earlier, labels), NEW: (earlier, earlier, labels)}
    samples = {ALL: is_shared, NEW: is_shared & ~rows.is_common}
    scopes = [scope for scope in rows.scopes if was_shared.any() and samples[scope].any()]
    class_changes = compare_class_lists(sorted(then_counts), sorted(now), label_map)
    result: dict[str, Any] = {
        "relabelled": int((rows.is_common & ~is_common).sum()),
        "changes": class_changes.to_dict(),
        "images": {name: now[name] for name in class_changes.added},
        "earlier_images": {name: then_counts[name] for name in class_changes.removed},
        "unshared": [int((~is_shared).sum()), int((~was_shared).sum())],
    }
    classes: dict[str, dict[str, Any]] = {}
    for scope in scopes:
        texts = [column.filter(mask) for column, mask in zip(columns[scope], masks[scope], strict=True)]
        counts = [_count(part) for part in texts]
        result[scope] = compare_counts(_make_parts(counts, MAX_BINS)[1], (scope,), level)[scope].to_dict()
        names, parts = _make_parts([_split(part, separator) for part in counts])
        sizes = (len(texts[0]), len(texts[1]), len(texts[2]))
        changes, errors = compare_shares(parts, sizes, scope)
        then = parts.reference / max(1, sizes[0] + sizes[1])
        for index, name in enumerate(names):
            entry = classes.setdefault(name, {"class": name, REFERENCE: _round(then[index])})
            share, change, error = then[index] + changes[index], changes[index], errors[index]
            entry[scope] = {"share": _round(share), "change": _round(change), "error": _round(error)}
    ordered = sorted(
        classes.values(), key=lambda entry: -max(abs(entry[scope]["change"]) for scope in entry.keys() & {*scopes})
    )
    return result | {"number": len(ordered), "classes": ordered[:LISTED_CLASSES]}


def _count(texts: pa.ChunkedArray) -> Counter[str]:
    """Count each label text."""
    return Counter({entry["values"]: entry["counts"] for entry in pc.value_counts(texts).to_pylist()})


def _map_texts(texts: pa.ChunkedArray, convert: Callable[[str], Any]) -> pa.ChunkedArray:
    """Convert each text; each distinct one is converted once."""
    encoded = texts.combine_chunks().dictionary_encode()
    values = pa.array([convert(text) for text in encoded.dictionary.to_pylist()])
    return pa.chunked_array([values.take(encoded.indices)])


def _rename(texts: pa.ChunkedArray, label_map: Mapping[str, str], separator: str) -> pa.ChunkedArray:
    """Rename the classes in label texts; several labels are sorted, so that the same ones are the same text."""
    if not (label_map or separator) or not len(texts):
        return texts

    def rename(text: str) -> str:
        return separator.join(sorted({label_map.get(name, name) for name in split_labels(text, separator)}))

    return _map_texts(texts, rename)


def _has_only(texts: pa.ChunkedArray, classes: Set[str], separator: str) -> Mask:
    """Return whether all labels of each text are among `classes`."""
    if not len(texts):
        return np.empty(0, np.bool_)
    mask: Mask = _map_texts(texts, lambda text: classes >= {*split_labels(text, separator)}).to_numpy()
    return mask


def _split(counts: Counter[str], separator: str) -> Counter[str]:
    """Count each class of label texts that name several."""
    split: Counter[str] = Counter()
    for text, number in counts.items():
        for name in split_labels(text, separator):
            split[name] += number
    return split


def _make_parts(counts: list[Counter[str]], limit: int = 0) -> tuple[list[str], Parts]:
    """Return names, the most frequent first, and their counts by part; of more than `limit` the last are one bin."""
    pooled = sum(counts, Counter[str]())
    names = sorted(pooled, key=lambda name: (-pooled[name], name))
    table = np.array([[part[name] for name in names] for part in counts], np.int64).reshape(len(counts), len(names))
    if limit and len(names) > limit:
        rest = table[:, limit - 1 :].sum(1, keepdims=True)
        names, table = names[:limit], np.hstack([table[:, : limit - 1], rest])
    return names, Parts(*table)


def _round(value: float) -> float:
    return float(f"{value:.6g}")
