"""The facts of an audit: pure data, the same for the text, the page and (by field names) the JSON.

Facts that a dataset lacks (measures were off) are None or empty, and a `note` says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .audit_numbers import Distribution


@dataclass(frozen=True)
class ImageNote:
    """An image and a sentence about it."""

    image_id: str
    sentence: str


@dataclass(frozen=True)
class Reason:
    """A reason for rejection: how many images were rejected for it, and the first of them."""

    reason: str
    count: int
    examples: tuple[ImageNote, ...]


@dataclass(frozen=True)
class Ledger:
    """Numbers of rows: read, kept and rejected.

    `problems` are sentences about numbers that contradict each other; empty in a sound dataset.
    """

    rows_in: int
    kept: int
    rejected: int
    by_split: dict[str, int]
    reasons: tuple[Reason, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class ClassCount:
    """Numbers of images of a class, in all and by split. An image with several labels counts for each."""

    name: str
    total: int
    splits: dict[str, int]


@dataclass(frozen=True)
class Balance:
    """The balance of classes, the largest first. `ratio`: images of the largest class by those of the smallest that has
    any; `without`: names of the classes with no image at all (`any`), and with none in a split (by its name);
    `changes`: a sentence for each change of the class list since the dataset before."""

    classes: tuple[ClassCount, ...]
    ratio: float | None
    without: dict[str, tuple[str, ...]]
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """Sizes and formats of the stored images, and the decoder's warnings.

    `distributions` are of `width` and `height` (pixels), `aspect_ratio` (width by height) and `image_bytes`.
    """

    distributions: dict[str, Distribution]
    formats: dict[str, int]
    warnings: int
    warned: tuple[ImageNote, ...]


@dataclass(frozen=True)
class Extreme:
    """An image at one end of a measure."""

    image_id: str
    label: str
    split: str
    value: float


@dataclass(frozen=True)
class Extremes:
    """The images at one end of a measure."""

    title: str
    measure: str
    images: tuple[Extreme, ...]


@dataclass(frozen=True)
class Outlier:
    """The images far from the rest in a measure: how many, and the farthest (`score` in robust spreads)."""

    measure: str
    count: int
    median: float
    examples: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Quality:
    """The measures: their distributions, the images at their ends, and the outliers."""

    distributions: dict[str, Distribution]
    extremes: tuple[Extremes, ...]
    outliers: tuple[Outlier, ...]
    threshold: float | None
    policy: str
    note: str


@dataclass(frozen=True)
class Pair:
    """Two near-duplicates, as in the dataset's `twins` files (`schema.TWINS`)."""

    image_id: str
    twin_id: str
    distance: int
    difference: float
    label: str
    twin_label: str
    split: str
    twin_split: str
    dropped: str

    def describe_dropped(self) -> str:
        """Return which of the two was dropped, in words."""
        words = {
            "": "both kept",
            "both": "both dropped",
            self.image_id: "first dropped",
            self.twin_id: "second dropped",
        }
        return words.get(self.dropped, "")


@dataclass(frozen=True)
class ExactDuplicates:
    """The groups of images with equal pixels: their number, how many images were rejected as `copies`, groups with
    different labels (`conflicts`), and some of those as {image_id, label} of each image."""

    groups: int
    copies: int
    conflicts: int
    examples: tuple[tuple[dict[str, str], ...], ...]


@dataclass(frozen=True)
class NearDuplicates:
    """The verified pairs of near-duplicates: the manifest's numbers, the most similar pairs, those with different
    labels, and those of which one image is in test and the other is not (`leaking`). `note`: why there are none, or not
    all."""

    counts: dict[str, Any]
    closest: tuple[Pair, ...]
    conflicting: tuple[Pair, ...]
    leaking: tuple[Pair, ...]
    note: str


@dataclass(frozen=True)
class Leakage:
    """The test images that have duplicates in train or val: a sentence, and its numbers in `counts`.

    `declared`: kept images by the split that the source declares.
    """

    sentence: str
    counts: dict[str, Any]
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
    sizes: Sizes
    quality: Quality
    exact: ExactDuplicates
    near: NearDuplicates
    leakage: Leakage
    provenance: Provenance
