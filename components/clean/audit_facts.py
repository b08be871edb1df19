"""What an audit says: pure data, the same for the text, the page and the JSON.

What a dataset does not say (measures were off, an older version made it) is None or empty, and a `note` says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .audit_numbers import Distribution


@dataclass(frozen=True)
class Named:
    """One image and what is said of it."""

    image_id: str
    said: str


@dataclass(frozen=True)
class Reason:
    """A reason for rejection, how many images it met, and the first of them."""

    reason: str
    count: int
    examples: tuple[Named, ...]


@dataclass(frozen=True)
class Ledger:
    """`problems` are sentences about what does not add up; empty is what it should be."""

    rows_in: int | None
    kept: int
    rejected: int
    by_split: dict[str, int]
    reasons: tuple[Reason, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class ClassCount:
    """Images of a class by split. An image with several labels counts for each."""

    name: str
    total: int
    splits: dict[str, int]


@dataclass(frozen=True)
class Balance:
    """`classes`, the largest first; `ratio` of the largest to the smallest that has images; `without` names the
    classes with no image at all (`any`) or none in a split."""

    classes: tuple[ClassCount, ...]
    ratio: float | None
    without: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Sizes:
    """`distributions` of `width` and `height` (pixels), `aspect_ratio` (width by height) and `image_bytes`."""

    distributions: dict[str, Distribution]
    formats: dict[str, int]
    warnings: int
    warned: tuple[Named, ...]


@dataclass(frozen=True)
class Extreme:
    """An image at one end of a measure."""

    image_id: str
    label: str
    split: str
    value: float


@dataclass(frozen=True)
class Extremes:
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
    """`distributions` by measure."""

    distributions: dict[str, Distribution]
    extremes: tuple[Extremes, ...]
    outliers: tuple[Outlier, ...]
    threshold: float | None
    policy: str
    note: str


@dataclass(frozen=True)
class Pair:
    """Two near twins: `distance` in bits of their hashes, `difference` of their thumbnails, `dropped`: who went."""

    image_id: str
    twin_id: str
    distance: int
    difference: float
    label: str
    twin_label: str
    split: str
    twin_split: str
    dropped: str

    def went(self) -> str:
        """Who was dropped, in words."""
        words = {
            "": "both kept",
            "both": "both dropped",
            self.image_id: "first dropped",
            self.twin_id: "second dropped",
        }
        return words.get(self.dropped, "")


@dataclass(frozen=True)
class Exact:
    """Groups of images with equal pixels: `copies` were rejected; `conflicts` had different labels, and some are
    named as groups of {image_id, label}."""

    groups: int | None
    copies: int
    conflicts: int
    examples: tuple[tuple[dict[str, str], ...], ...]


@dataclass(frozen=True)
class Near:
    """Near twins that were found and verified. `closest`: the pairs most alike; `conflicting`: with different labels;
    `leaking`: with one side in test and the other not."""

    found: dict[str, Any]
    closest: tuple[Pair, ...]
    conflicting: tuple[Pair, ...]
    leaking: tuple[Pair, ...]
    note: str


@dataclass(frozen=True)
class Leakage:
    """`sentence` says it all; `found` holds its numbers."""

    sentence: str
    found: dict[str, Any]
    declared: dict[str, int]


@dataclass(frozen=True)
class Provenance:
    """`settings` are the config's values that differ from the defaults, with those; `parents` by relative URI."""

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
    """Everything. `name` is the source dataset's."""

    name: str
    ledger: Ledger
    balance: Balance
    sizes: Sizes
    quality: Quality
    exact: Exact
    near: Near
    leakage: Leakage
    provenance: Provenance
