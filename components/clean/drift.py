"""Drift: what has changed since the data that the champion was trained on, said before time is spent on training.

Compared are the class shares, width, height and every measure, of all images and of the new ones alone. The comparison
is made once for two datasets, and stored under the name, beside the gate's verdicts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.index import read_rows
from ..dataset.kinds import CleanExtra
from ..dataset.manifest import Dataset, read_dataset
from ..dataset.shards import READ_THREADS
from ..imaging.pixel_options import StandardizeConfig
from ..metrics.drift import ALL, LEVEL, NEW, Comparison, Values, compare_numbers, compare_shares
from ..report.drift import describe_changed_classes, describe_comparison, list_drift
from ..step.step import Context
from ..storage import uri as uris
from ..storage.errors import DatasetError, UserError
from .config import CleanConfig
from .labels import compare_class_lists, split_labels
from .schema import MEASURES

VERSION = 3
"""Raised when the same datasets must give another comparison."""
COMPARED = ("width", "height", *MEASURES)
_STOPPING_SCOPES: dict[str, tuple[str, ...]] = {"false": (), "true": (ALL,), "new": (ALL, NEW)}
"""The scopes in which drift ends a run, by `stop_on_drift`."""
_PIXEL_OPTIONS = {field.name for field in fields(StandardizeConfig)} - {"keep_masks", "max_pixels", "max_side"}
_LABEL_OPTIONS = {"label_separator", "rare_classes", "rare_below", "other_class"}


def check_drift(dataset: Dataset, name: str, config: CleanConfig, context: Context) -> dict[str, Any]:
    """Compare a dataset with the one of the champion of `name`, print what drifted, and return metrics of the step.

    Empty without a champion, and where the champion was trained on this very dataset. UserError where `stop_on_drift`
    says so.
    """
    promotion = context.workspace.last_promotion(name)
    if promotion is None:
        return {}
    try:
        reference = _find_reference(context.workspace.absolute(promotion.model), dataset)
        if reference is None:
            return {}
        key = f"{VERSION}-{reference.fingerprint}-{dataset.fingerprint}"
        stored = context.workspace.drift(name, key)
        comparison = Comparison.from_dict(stored, key) if stored else _compare(dataset, reference, name, key, context)
    except (UserError, DatasetError) as error:
        context.say(f"drift is not checked: the data of the champion (promotion {promotion.n}) is gone: {error}")
        return {}
    for line in describe_comparison(comparison, promotion.n):
        context.say(line)
    _stop(comparison, config)
    lines = describe_changed_classes(comparison) + list_drift(comparison.drift, comparison)
    return {"drift": lines, "drift_comparison": key, "drift_promotion": promotion.n}


def _find_reference(model: str, dataset: Dataset) -> Dataset | None:
    """Return the clean dataset that the model was trained on; None where it is `dataset`. UserError where it, or the
    tensors between, are gone."""
    tensors = read_dataset(read_dataset(model, "model").parent_uri("tensors"), "tensors")
    uri = tensors.parent_uri("clean")
    return None if uris.basename(uri) == dataset.fingerprint else read_dataset(uri, "clean")


def _compare(dataset: Dataset, reference: Dataset, name: str, key: str, context: Context) -> Comparison:
    """Compare the datasets, and store the comparison; DatasetError where the reference is damaged."""
    context.refuse_if_only_cached(f"a comparison with {reference.uri}")
    if missing := reference.missing():
        raise DatasetError(missing[0])
    extra, config, earlier = CleanExtra.of(dataset.manifest), dataset.manifest.config, reference.manifest.config
    shared = sorted(earlier.keys() & config.keys())  # another version may have more
    changed = {option: [earlier[option], config[option]] for option in shared if earlier[option] != config[option]}
    separator = str(config.get("label_separator", ""))
    comparison = compare_rows(_read_table(dataset), _read_table(reference), changed, separator, extra.label_map)
    context.workspace.add_drift(name, key, comparison.to_dict())
    return comparison


def _read_table(dataset: Dataset) -> pa.Table:
    """Read the columns that are compared."""
    tables = list(read_rows(dataset, ["sha256", "label", *COMPARED], threads=READ_THREADS))
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def compare_rows(
    now: pa.Table, then: pa.Table, changed: Mapping[str, list[Any]], separator: str = "",
    label_map: Mapping[str, str] | None = None,
) -> Comparison:  # fmt: skip
    """Compare rows whose options of clean differ in `changed`: with other pixel options the measures would be of other
    pictures of the same images.

    `separator`: of several labels of an image. `label_map`: new names, by old ones, of the classes of then.
    """
    is_new = pc.invert(pc.is_in(now.column("sha256"), value_set=then.column("sha256")))
    is_gone = pc.invert(pc.is_in(then.column("sha256"), value_set=now.column("sha256")))
    added, removed = pc.sum(is_new).as_py() or 0, pc.sum(is_gone).as_py() or 0
    samples = {ALL: now} | ({NEW: now.filter(is_new)} if 0 < added < now.num_rows else {})
    measures = [] if _PIXEL_OPTIONS & changed.keys() else [
        name for name in COMPARED if all(len(_read_numbers(table, name)) for table in (now, then))
    ]  # fmt: skip
    has_classes = not _LABEL_OPTIONS & changed.keys()
    level = LEVEL / max(1, len(samples) * (len(measures) + has_classes))
    earlier = _count_classes(then, separator, {})
    renamed = _count_classes(then, separator, label_map or {})
    classes = {scope: _count_classes(sample, separator, {}) for scope, sample in samples.items()}
    changes = [
        compare_numbers(name, scope, _read_numbers(then, name), numbers, level)
        for name in measures
        for scope, sample in samples.items()
        if len(numbers := _read_numbers(sample, name))
    ]
    fields_: dict[str, Any] = {}
    if has_classes:
        changes += [compare_shares("classes", scope, renamed, counts, level) for scope, counts in classes.items()]
        class_changes = compare_class_lists(sorted(earlier), sorted(classes[ALL]), label_map or {})
        fields_ = {
            "class_changes": class_changes,
            "images": {name: classes[ALL][name] for name in class_changes.added},
            "earlier_images": {name: earlier[name] for name in class_changes.removed},
            "relabeled": _count_relabeled(now, then, label_map or {}, separator),
        }
    return Comparison(
        rows=now.num_rows, added=added, removed=removed, changes=changes, reference_rows=then.num_rows,
        changed_options={option: [repr(value) for value in values] for option, values in changed.items()},
        left_out=[name for name, is_there in (("measures", measures), ("classes", has_classes)) if not is_there],
        **fields_,
    )  # fmt: skip


def _read_numbers(table: pa.Table, name: str) -> Values:
    """Return the finite values of a column, float [N]; the aspect ratio is known without measures, too."""
    if name == "aspect_ratio":
        return np.asarray(
            pc.divide(table.column("width").cast("float64"), pc.max_element_wise(table.column("height"), 1))
        )
    if name not in table.column_names:
        return np.empty(0)
    values = table.column(name).cast("float64").drop_null().to_numpy()
    return np.asarray(values[np.isfinite(values)])


def _parse(text: str | None, separator: str, label_map: Mapping[str, str]) -> frozenset[str]:
    return frozenset(label_map.get(name, name) for name in split_labels(text or "", separator))


def _count_classes(table: pa.Table, separator: str, label_map: Mapping[str, str]) -> Counter[str]:
    """Count the images of each class."""
    counts: Counter[str] = Counter()
    for entry in pc.value_counts(table.column("label")).to_pylist():
        for name in _parse(entry["values"], separator, label_map):
            counts[name] += entry["counts"]
    return counts


def _count_relabeled(now: pa.Table, then: pa.Table, label_map: Mapping[str, str], separator: str) -> int:
    """Count the images that have other labels than then."""
    earlier = dict(zip(then.column("sha256").to_pylist(), then.column("label").to_pylist(), strict=True))
    labels = zip(now.column("sha256").to_pylist(), now.column("label").to_pylist(), strict=True)
    return sum(
        _parse(label, separator, {}) != _parse(earlier[sha256], separator, label_map)
        for sha256, label in labels
        if sha256 in earlier and (label_map or label != earlier[sha256])
    )


def _stop(comparison: Comparison, config: CleanConfig) -> None:
    """Raise UserError for drift above `max_drift` in a scope that `stop_on_drift` names."""
    scopes = _STOPPING_SCOPES[config.stop_on_drift]
    stopping = [change for change in comparison.drift if change.scope in scopes and change.distance > config.max_drift]
    if not stopping:
        return
    enough = math.ceil(20 * max(change.distance for change in stopping) + 0.01) / 20
    changes = "; ".join([*list_drift(stopping, comparison), *describe_changed_classes(comparison)])
    raise UserError(
        "stop_on_drift: expected data like the champion's, with a distance of at most "
        f"{config.max_drift:g} (max_drift), found drift of {changes}; where classes only have other names, map_labels "
        "names them; if the change is right, run without stop_on_drift or with max_drift "
        f"{min(1.0, enough):g}, and the model is trained on it"
    )
