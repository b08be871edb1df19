"""Drift: what has changed since the data that the champion was trained on, said before time is spent on training.

A change is named if it is both more than chance gives and large, and classes that only one of the two has are always
named. The comparison itself is made once for two datasets, and stored under the name, beside the gate's verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..dataset.kinds import ClassChanges
from ..dataset.manifest import Dataset, read_dataset
from ..metrics.two_sample import ALL, NEW
from ..step.step import Context
from ..storage import uri as uris
from ..storage.errors import DatasetError, UserError
from .audit_layout import format_number
from .config import CleanConfig
from .drift_numbers import REFERENCE, VERSION, Comparison, compare_datasets
from .labels import describe_class_changes

_STOPPING_SCOPES: dict[str, tuple[str, ...]] = {"false": (), "true": (ALL,), "new": (ALL, NEW)}
"""The scopes in which drift ends a run, by `stop_on_drift`."""
_DIRECTIONS = {
    "width": ("narrower", "wider"),
    "height": ("lower", "higher"),
    "aspect_ratio": ("more upright", "more oblong"),
    "bytes_per_pixel": ("more compressed", "less compressed"),
    "brightness": ("darker", "brighter"),
    "contrast": ("flatter", "richer in contrast"),
    "sharpness": ("less sharp", "sharper"),
    "entropy": ("plainer", "busier"),
    "colorfulness": ("less colorful", "more colorful"),
}
"""A lower and a higher median of each measure, in words."""
NOTED_SHIFT, NOTED_SPREAD = 0.1, 1.25
"""In quartile distances: from this change of the median on, and else of the distance itself, it is put into words."""
MAX_NAMED, MAX_CLASSES = 4, 2


@dataclass(frozen=True)
class Finding:
    """A number of a comparison that is drift: of a measure or of the class balance, in one scope."""

    title: str
    scope: str
    psi: float
    error: float
    detail: str

    def __str__(self) -> str:
        return f"{self.title} PSI {self.psi:.2f} ± {self.error:.2f} ({self.detail})"


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
        comparison = context.workspace.drift(name, key) or _compare(dataset, reference, name, key, context)
    except (UserError, DatasetError) as error:
        context.say(f"drift is not checked: the data of the champion (promotion {promotion.n}) is gone: {error}")
        return {}
    findings = list(find_drift(comparison, config.drift_warning))
    context.say(f"{_describe_rows(comparison)} since the data of the champion (promotion {promotion.n})")
    for line in _describe(comparison, findings):
        context.say(line)
    _stop(findings, comparison, config)
    return {
        "drift": describe_changes(comparison)
        + [f"{_name_scope(finding.scope, comparison)}: {finding}" for finding in findings],
        "drift_comparison": key,
        "drift_promotion": promotion.n,
        "drift_warning": config.drift_warning,
    }


def _compare(dataset: Dataset, reference: Dataset, name: str, key: str, context: Context) -> Comparison:
    """Compare the datasets, and store the comparison; DatasetError where the reference is damaged."""
    context.refuse_if_only_cached(f"a comparison with {reference.uri}")
    if missing := reference.missing():
        raise DatasetError(missing[0])
    comparison = compare_datasets(dataset, reference)
    context.workspace.add_drift(name, key, comparison)
    return comparison


def _find_reference(model: str, dataset: Dataset) -> Dataset | None:
    """Return the clean dataset that the model was trained on; None where it is `dataset`. UserError where it, or the
    tensors between, are gone."""
    tensors = read_dataset(read_dataset(model, "model").parent_uri("tensors"), "tensors")
    uri = tensors.parent_uri("clean")
    if uris.basename(uri) == dataset.fingerprint:
        return None
    return read_dataset(uri, "clean")


def find_drift(comparison: Comparison, threshold: float) -> Iterator[Finding]:
    """Yield the numbers that are above `threshold` and above what chance gives, by scope, the largest first."""
    titles = {"class balance": comparison["classes"], **comparison["measures"]}
    for scope in (ALL, NEW):
        findings = [
            Finding(
                title.replace("_", " "), scope, numbers[scope]["psi"], numbers[scope]["error"],
                _describe_classes(numbers, scope) if "classes" in numbers else _describe_measure(title, numbers, scope),
            )
            for title, numbers in titles.items()
            if scope in numbers and numbers[scope]["is_significant"] and numbers[scope]["psi"] > threshold
        ]  # fmt: skip
        yield from sorted(findings, key=lambda finding: -finding.psi)


def _describe_measure(name: str, numbers: dict[str, Any], scope: str) -> str:
    """Return the change of a measure in words, with its medians: `darker: median 0.52 to 0.31`."""
    (low, median, high), (low_now, median_now, high_now) = numbers["quartiles"][REFERENCE], numbers["quartiles"][scope]
    spread, spread_now = high - low, high_now - low_now
    medians = f"median {format_number(median)} to {format_number(median_now)}"
    if abs(median_now - median) > NOTED_SHIFT * max(spread, spread_now):
        return f"{_DIRECTIONS[name][median_now > median]}: {medians}"
    if spread_now > NOTED_SPREAD * spread:
        return f"more varied: {medians}"
    return f"less varied: {medians}" if spread > NOTED_SPREAD * spread_now else f"another distribution: {medians}"


def describe_changes(comparison: Comparison) -> list[str]:
    """Return a sentence for each class that is new, gone or renamed since the champion's data."""
    if not (classes := comparison["classes"]):
        return []
    changes = ClassChanges.from_dict(classes["changes"], "the comparison's class changes")
    return describe_class_changes(changes, classes["images"], classes["earlier_images"])


def _describe_classes(numbers: dict[str, Any], scope: str) -> str:
    """Return the classes that changed most: `dog 12% to 31%`."""
    ordered = sorted(numbers["classes"], key=lambda entry: -abs(entry[scope]["change"]))
    return ", ".join(
        f"{entry['class']} {_format_share(entry[REFERENCE])} to {_format_share(entry[scope]['share'])}"
        for entry in ordered[:MAX_CLASSES]
    )


def _format_share(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f}%" if percent >= 9.95 or not percent else f"{percent:.1f}%" if percent >= 0.05 else "<0.1%"


def _describe_rows(comparison: Comparison) -> str:
    rows, added, removed = comparison["rows"], comparison["added"], comparison["removed"]
    relabeled = comparison["classes"].get("relabelled", 0)
    parts = [f"{added:,} of {rows:,} images are new"]
    parts += [f"{removed:,} are gone"] if removed else []
    return ", ".join(parts + ([f"{relabeled:,} have another label"] if relabeled else []))


def _describe(comparison: Comparison, findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the lines about changed classes and drift, and about what could not be compared."""
    yield from (changes := describe_changes(comparison))
    if changed := comparison["changed_options"]:
        options = ", ".join(f"{name} {then!r} then, {now!r} now" for name, (then, now) in changed.items())
        missing = [name for name in ("measures", "classes") if not comparison[name]]
        left_out = f"; {' and '.join(missing)} are not compared" if missing else ""
        yield f"warning: clean had other options then ({options}){left_out}"
    for line in _join_scopes(findings, comparison):
        yield f"warning: drift of {line}"
    if not findings:
        yield f"no {'other ' if changes else ''}drift: nothing has changed more than chance and drift_warning allow"


def _name_scope(scope: str, comparison: Comparison) -> str:
    return f"the {comparison['added']:,} new images" if scope == NEW else f"all {comparison['rows']:,} images"


def _join_scopes(findings: Sequence[Finding], comparison: Comparison) -> list[str]:
    """Return a line for each scope that has findings, which names the largest of them."""
    lines = []
    for scope in (ALL, NEW):
        texts = [str(finding) for finding in findings if finding.scope == scope]
        more = f" and {len(texts) - MAX_NAMED} more" if len(texts) > MAX_NAMED else ""
        lines += [f"{_name_scope(scope, comparison)}: {' · '.join(texts[:MAX_NAMED])}{more}"] if texts else []
    return lines


def _stop(findings: Sequence[Finding], comparison: Comparison, config: CleanConfig) -> None:
    """Raise UserError for drift above `max_drift` in a scope that `stop_on_drift` names, or a larger share of images
    of classes that only one of the two has."""
    scopes = _STOPPING_SCOPES[config.stop_on_drift]
    sizes = (comparison["rows"], comparison["reference_rows"])
    unshared = zip(comparison["classes"].get("unshared", ()), sizes, strict=False)
    share = max((number / max(1, size) for number, size in unshared), default=0.0)
    if scopes and share > config.max_drift:
        raise UserError(
            "stop_on_drift: expected the classes of the champion's data, and others with at most "
            f"{config.max_drift:.0%} (max_drift) of the images, found {_format_share(share)}: "
            f"{'; '.join(describe_changes(comparison))}; where classes only have other names, map_labels names "
            "them; if the change is right, run without stop_on_drift, and the model is trained on it"
        )
    stopping = [finding for finding in findings if finding.scope in scopes and finding.psi > config.max_drift]
    if not stopping:
        return
    enough = math.ceil(20 * max(finding.psi for finding in stopping) + 0.01) / 20
    raise UserError(
        f"stop_on_drift: expected data like the champion's, with a PSI of at most {config.max_drift:g} (max_drift), "
        f"found drift of {'; '.join(_join_scopes(stopping, comparison))}; if the change is right, run without "
        f"stop_on_drift or with max_drift {enough:g}, and the model is trained on it"
    )
