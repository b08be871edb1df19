"""Guards of the gate: a class, the calibration or the speed that got worse keeps a better score from promotion.

A class's drop counts if it is larger than the bound and significant: the sign test on the images that only one model
recognizes, at the given level for all classes together (Bonferroni). An equal model is stopped with that probability at
most; a drop is seen only in classes with images enough to show it (tests/benchmarks/README.md has the numbers).
"""

from __future__ import annotations

from ..dataset.kinds import EvaluationExtra
from ..dataset.manifest import Dataset
from ..metrics.calibration import ece
from .pairs import PairedPredictions
from .score_difference import ClassCounts
from .significance import compute_sign_test_p_value

MAX_NAMED = 3
"""Classes that a sentence names."""


def describe_recall_drops(pair: PairedPredictions, bound: float, level: float) -> str:
    """Return the classes whose recall has fallen by more than `bound`, and significantly; empty if none."""
    counts = ClassCounts.count(pair)
    columns = (counts.support, counts.only_champion, counts.only_challenger)
    rows = zip(pair.classes, *(column.tolist() for column in columns), strict=True)
    present = [(name, images, lost, won) for name, images, lost, won in rows if images]
    fallen = [
        (name, images, lost, won)
        for name, images, lost, won in present
        if lost - won > bound * images and compute_sign_test_p_value(lost, won) <= level / len(present)
    ]
    if not fallen:
        return ""
    fallen.sort(key=lambda row: (row[3] - row[2]) / row[1])
    classes = ", ".join(
        f"{name!r} by {(lost - won) / images:.3f} ({lost} images lost, {won} won of {images})"
        for name, images, lost, won in fallen[:MAX_NAMED]
    )
    more = f" and {len(fallen) - MAX_NAMED} more classes" if len(fallen) > MAX_NAMED else ""
    return f"recall has fallen by more than {bound:g} in {classes}{more}"


def describe_calibration_rise(pair: PairedPredictions, bound: float) -> str:
    """Return by how much the expected calibration error has risen, if by more than `bound`; else empty."""
    champion, challenger = (
        ece(confidence, is_right) for confidence, is_right in zip(pair.confidence, pair.is_right, strict=True)
    )
    if challenger - champion <= bound:
        return ""
    return f"the calibration error has risen from {champion:.3f} to {challenger:.3f}, by more than {bound:g}"


def describe_slowdown(challenger: Dataset, champion: Dataset, bound: float) -> str:
    """Return how much longer the challenger takes for an image, if more than `bound` times as long on the same kind of
    device, by the evaluations' measurements; empty if not, or where `bound` is 0 or one of them measured nothing."""
    throughput, champion_throughput = (_read_throughput(evaluation) for evaluation in (challenger, champion))
    if not bound or throughput is None or champion_throughput is None:
        return ""
    *setting, rate = throughput
    *champion_setting, champion_rate = champion_throughput
    if setting != champion_setting or champion_rate <= bound * rate:
        return ""
    times = champion_rate / rate
    return f"it takes {times:.1f} times as long for an image ({rate:,.0f} images/s, not {champion_rate:,.0f})"


def _read_throughput(evaluation: Dataset) -> tuple[str, int, float] | None:
    """Return (device, batch size, images/s of the network with one view)."""
    throughput = EvaluationExtra.of(evaluation.manifest).throughput
    if throughput is None or not throughput.network_one_view:
        return None
    return throughput.device, throughput.batch_size, throughput.network_one_view
