"""Guards of the gate: a class, the calibration or the speed that got worse stops a better score. Each gives a sentence.

A class's fall counts if it is larger than the bound and not chance: the sign test on the images that only one model
recognizes, at the given level for all classes together (Bonferroni). An equal model is stopped with that probability at
most; a fall is seen only in classes with images enough to show it (tests/benchmarks/README.md has the numbers).
"""

from __future__ import annotations

from typing import Any

from ..store.calibration import ece
from ..store.manifest import Dataset
from .difference import ClassCounts
from .paired import Pair
from .sign_flip import sign_test

NAMED = 3
"""Classes that a sentence names."""


def fallen_classes(pair: Pair, bound: float, level: float) -> str:
    """Return which classes' recall has fallen by more than `bound`, and not by chance."""
    counts = ClassCounts.of(pair)
    judged = [
        (name, int(images), int(lost), int(won))
        for name, images, lost, won in zip(
            pair.classes, counts.support, counts.only_champion, counts.only_challenger, strict=True
        )
        if images
    ]
    fallen = [
        (name, images, lost, won)
        for name, images, lost, won in judged
        if lost - won > bound * images and sign_test(lost, won) <= level / len(judged)
    ]
    if not fallen:
        return ""
    fallen.sort(key=lambda row: (row[3] - row[2]) / row[1])
    named = ", ".join(
        f"{name!r} by {(lost - won) / images:.3f} ({lost} images lost, {won} won of {images})"
        for name, images, lost, won in fallen[:NAMED]
    )
    more = f" and {len(fallen) - NAMED} more classes" if len(fallen) > NAMED else ""
    return f"recall has fallen by more than {bound:g} in {named}{more}"


def worse_calibration(pair: Pair, bound: float) -> str:
    """Return by how much the expected calibration error has risen, if by more than `bound`."""
    champion, challenger = (
        ece(confidence, right) for confidence, right in zip(pair.confidence, pair.right, strict=True)
    )
    if challenger - champion <= bound:
        return ""
    return f"the calibration error has risen from {champion:.3f} to {challenger:.3f}, by more than {bound:g}"


def slower(challenger: Dataset, champion: Dataset, bound: float) -> str:
    """Return how much longer the challenger takes for an image, if more than `bound` times as long, by the evaluations'
    own measurements on the same kind of device; never where `bound` is 0 or one of them measured nothing."""
    ours, theirs = (_speed(evaluation) for evaluation in (challenger, champion))
    if not bound or not ours or not theirs or ours[:2] != theirs[:2] or theirs[2] <= bound * ours[2]:
        return ""
    times = theirs[2] / ours[2]
    return f"it takes {times:.1f} times as long for an image ({ours[2]:,.0f} images/s, not {theirs[2]:,.0f})"


def _speed(evaluation: Dataset) -> tuple[str, int, float] | None:
    """Device, batch size and images/s of the network with one view."""
    said: dict[str, Any] = evaluation.manifest.extra.get("throughput") or {}
    rate = said.get("network_one_view")
    return (str(said["device"]), int(said["batch_size"]), float(rate)) if rate else None
