"""The facts of an audit: pure data, the same for the text, the page and (by field names) the JSON.

Facts that a dataset lacks (measures were off) are empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Distribution:
    """The distribution of a number over `count` images.

    `quantiles` are by percent; `bins` are counts of equal bins from the first to the last of them, so that a few
    extremes don't flatten the histogram.
    """

    count: int
    minimum: float
    maximum: float
    quantiles: dict[str, float]
    bins: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """An image that is named, and why: `note`."""

    image_id: str
    note: str
    label: str = ""
    split: str = ""


@dataclass(frozen=True)
class Group:
    """Images that have something in common: what, how many, and some of them."""

    name: str
    count: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Ledger:
    """Numbers of rows: read, kept and rejected.

    `problems` are sentences about numbers that contradict each other; empty in a sound dataset.
    """

    rows_in: int
    kept: int
    rejected: int
    by_split: dict[str, int]
    reasons: tuple[Group, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Balance:
    """Images by class and split, the largest class first (an image with several labels counts for each), and a
    sentence for each change of the class list since the dataset before."""

    classes: dict[str, dict[str, int]]
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """Sizes and measures of the kept images.

    Attributes:
        sizes: distributions of `width` and `height` (pixels), `aspect_ratio` (width by height) and `image_bytes`.
        measures: distributions of clean's measures; empty where measures was off.
        formats: images by format.
        warned: images that were kept though a decoder warned.
        extremes: images at the ends of a measure.
        outliers: images far from the rest in a measure, farther than `outlier_threshold` robust spreads.
    """

    sizes: dict[str, Distribution]
    measures: dict[str, Distribution]
    formats: dict[str, int]
    warned: Group
    extremes: tuple[Group, ...]
    outliers: tuple[Group, ...]
    outlier_threshold: float | None
    outlier_policy: str


@dataclass(frozen=True)
class Pair:
    """Two near-duplicates, as in the dataset's `twins` files (`clean.schema.TWINS`)."""

    image_id: str
    twin_id: str
    distance: int
    difference: float
    label: str
    twin_label: str
    split: str
    twin_split: str
    dropped: str


@dataclass(frozen=True)
class Duplicates:
    """Exact and near-duplicates, and leaks into the test split.

    Attributes:
        exact: numbers of `groups` of equal pixels, rejected `copies`, and groups with different labels (`conflicts`).
        conflicts: some of these groups: (image_id, label) of each image.
        near: the manifest's numbers; empty where none were looked for, and `why_not` says why.
        closest, conflicting, leaking: the most similar pairs, those with different labels, and those of which one
            image is in test and the other is not.
        leakage: the manifest's numbers.
        declared: kept images by the split that the source declares.
    """

    exact: dict[str, int]
    conflicts: tuple[tuple[tuple[str, str], ...], ...]
    near: dict[str, Any]
    why_not: str
    closest: tuple[Pair, ...]
    conflicting: tuple[Pair, ...]
    leaking: tuple[Pair, ...]
    leakage: dict[str, Any]
    declared: dict[str, int]


@dataclass(frozen=True)
class Provenance:
    """The origin of the dataset; `parents` are relative URIs, `bytes` is the size of all images, and `settings` has
    `value` and `default` of the options that differ from their defaults."""

    fingerprint: str
    parents: tuple[str, ...]
    task: str
    color: str
    bytes: int
    settings: dict[str, dict[str, Any]]
    code_version: str
    created: str


@dataclass(frozen=True)
class Audit:
    """The audit of the clean dataset made of the source `name`."""

    name: str
    ledger: Ledger
    balance: Balance
    measured: Measured
    duplicates: Duplicates
    provenance: Provenance
