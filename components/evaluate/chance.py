"""Is a model better than a guess? What can be scored without a look at the images, and whether the scores show more.

Of images with one label each nobody who does not look has a top-1 above the share of the most frequent class in
expectation, nor a balanced accuracy above 1 / classes: each class is hit as often as it is said. Of images with several
labels the best is to say the most frequent class first, and all of them. A model is better where the interval of one of
its scores lies above that; of rare classes balanced accuracy tells more, of frequent ones top-1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.labels import MULTI
from .intervals import Intervals, wilson

NAMED = {"top1": "top-1", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}


@dataclass(frozen=True)
class Guess:
    """The best that can be scored without a look: `top1` by saying the class `most` of every image, and the score
    `other` (a metric's name) of at most `value`."""

    top1: float
    most: int
    other: str
    value: float

    @classmethod
    def of(cls, support: npt.ArrayLike, images: int, task: str) -> Guess | None:
        """From the images of each class; None where there are none, so that nothing can be scored."""
        counts = np.asarray(support, np.float64)
        shares = counts[counts > 0] / max(1, images)
        if not len(shares):
            return None
        most, top1 = int(counts.argmax()), float(shares.max())
        if task == MULTI:
            return cls(top1, most, "macro_f1", float((2 * shares / (1 + shares)).mean()))
        return cls(top1, most, "balanced_accuracy", 1 / len(shares))


@dataclass(frozen=True)
class Chance:
    """Whether scores are `better` than the `guess`, with the intervals that say so: top-1's by Wilson, since a
    bootstrap of a few images that are all right is sure of everything; the other's by the bootstrap, if there is one.
    """

    guess: Guess
    better: bool
    top1: tuple[float, float]
    other: tuple[float, float] | None

    @classmethod
    def of(
        cls, support: npt.ArrayLike, images: int, task: str, metrics: Mapping[str, float], known: Intervals
    ) -> Chance | None:
        """By the scores of `images` images and their intervals."""
        guess = Guess.of(support, images, task)
        if guess is None:
            return None
        top1, found = wilson(round(metrics["top1"] * images), images), known.get(guess.other)
        other = (found[0], found[1]) if found and metrics["top1"] < 1 else None
        better = top1[0] > guess.top1 or bool(other and other[0] > guess.value + 1e-9)
        return cls(guess, better, top1, other)

    def described(self, classes: Sequence[str], images: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """What an evaluation keeps: `better`, the scores of a guess, and `why` in words where it is not."""
        guess = self.guess
        kept = {"top1": guess.top1, guess.other: guess.value}
        said = "" if self.better else self._why(classes[guess.most], images, metrics)
        return {"better": self.better, "class": classes[guess.most], "guess": kept, "why": said}

    def _why(self, most: str, images: int, metrics: Mapping[str, float]) -> str:
        guess, number = self.guess, f"{images:,} test image{'s' if images != 1 else ''}"
        if guess.other == "balanced_accuracy" and guess.value == 1:
            return f"all test images are {most!r}: their scores can't tell a model from a guess"
        parts = [f"top-1 is {metrics['top1']:.3f} ({_range(self.top1)}), {guess.top1:.3f} for {most!r} every time"]
        if self.other:
            score = f"{NAMED[guess.other]} {metrics[guess.other]:.3f} ({_range(self.other)})"
            parts.append(f"{score}, {guess.value:.3f} for a guess")
        return f"no better than chance, as far as {number} can tell: {'; '.join(parts)}"


def _range(between: tuple[float, float]) -> str:
    return f"{between[0]:.3f} to {between[1]:.3f}"
