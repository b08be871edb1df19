"""The time that a training may take: the epochs that fit, and the end in the middle of one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .history import EpochRow


class OutOfTime(Exception):
    """Raised between two batches when the time is spent; the epochs so far count."""


def count_epochs(epochs: int, seconds: float, history: Sequence[EpochRow]) -> int:
    """Return how many of `epochs` fit into `seconds`, by the first row of the history that took optimizer steps.

    A function of the history alone, so that a training that was interrupted has the same schedule.
    """
    if math.isinf(seconds):
        return epochs
    for number, row in enumerate(history, 1):
        if row["updates"]:
            left = seconds - sum_seconds(history[:number])
            return max(number, min(epochs, number + int(left // max(row["seconds"], 1e-3))))
    return epochs


def sum_seconds(history: Sequence[EpochRow]) -> float:
    """Return the seconds of all epochs."""
    return sum(float(row["seconds"]) for row in history)
