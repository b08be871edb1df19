"""Sentences on what has changed since an earlier dataset: its class list and the drift of its images."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..dataset.kinds import ClassChanges
from .words import pluralize

MAX_CHANGES = 8
"""Classes of each kind of change that are named; the others are counted."""


def describe_class_changes(
    changes: ClassChanges, images: Mapping[str, int], earlier: Mapping[str, int] = MappingProxyType({})
) -> list[str]:
    """Return a sentence for each change. `images`, `earlier`: images of each class, now and, if known, then."""
    then = {name: f": {pluralize(earlier[name], 'image')} then" for name in changes.removed if name in earlier}
    sentences = {
        "new": [f"class {name!r} is new: {pluralize(images.get(name, 0), 'image')}" for name in changes.added],
        "gone": [f"class {name!r} is gone{then.get(name, '')}" for name in changes.removed],
        "renamed": [f"class {old!r} is called {new!r} now" for old, new in changes.renamed.items()],
        "merged": [
            f"classes {', '.join(map(repr, olds))} are one now: {new!r}" for new, olds in changes.merged.items()
        ],
    }
    lines = []
    for kind, texts in sentences.items():
        lines += texts[:MAX_CHANGES]
        if len(texts) > MAX_CHANGES:
            lines.append(f"{len(texts) - MAX_CHANGES:,} more classes are {kind}")
    return lines
