"""Is a model better than a guess? What can be scored without a look at the images, and whether the scores show more.

Two ways to see it, of which one is enough. Top-1 lies surely above the share of the most frequent class, which is the
best that whoever says the same of every image can have. Or the score that counts classes alike (balanced accuracy; of
images with several labels macro-F1) lies above what it would be if labels had nothing to do with predictions: its mean
and spread over all permutations (Hoeffding, "A Combinatorial Central Limit Theorem", 1951).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.labels import MULTI
from .intervals import LEVEL, wilson

_NAMED = {"balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1"}
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Of `images`: how many have each class (`there`) and how many are said to (`said`), [classes] each."""

    there: npt.ArrayLike
    said: npt.ArrayLike
    images: int

    def present(self) -> tuple[Numbers, Numbers]:
        """(`there`, `said`) of the classes that are there at all."""
        there, said = np.asarray(self.there, np.float64), np.asarray(self.said, np.float64)
        return there[there > 0], said[there > 0]


def recall_by_chance(counts: Counts) -> tuple[float, float]:
    """Mean and spread of balanced accuracy over all permutations of the labels, one an image."""
    there, said = counts.present()
    images, classes, told = counts.images, len(there), said.sum()
    squares = (said / there).sum() - told / images - (said**2 / there).sum() / images + (told / images) ** 2
    return told / images / classes, float(np.sqrt(max(0.0, squares) / max(1, images - 1)) / classes)


def f1_by_chance(counts: Counts) -> tuple[float, float]:
    """Mean of macro-F1 over all permutations of the images' labels, and its spread if all classes went together, which
    is the most that it can be."""
    there, said = counts.present()
    images = counts.images
    variance = there * said * (images - there) * (images - said) / (images**2 * max(1, images - 1))
    each = 2 / (there + said)
    return float((each * there * said / images).mean()), float((each * np.sqrt(variance)).mean())


@dataclass(frozen=True)
class Chance:
    """Whether scores are `better` than chance. `most` is the class with the most images, `share` of them, and `top1`
    the interval of top-1 (Wilson's); the score `other` reaches `limit` by chance."""

    better: bool
    most: int
    share: float
    top1: tuple[float, float]
    other: str
    limit: float

    @classmethod
    def of(cls, counts: Counts, task: str, metrics: Mapping[str, float], strict: int = 1) -> Chance | None:
        """None where no class is there, so that nothing can be scored. By chance one guess in 40, or in 40 times
        `strict`, seems to be better in one of the two ways."""
        there, images = np.asarray(counts.there, np.float64), counts.images
        if not there.any() or not images:
            return None
        other, by_chance = ("macro_f1", f1_by_chance) if task == MULTI else ("balanced_accuracy", recall_by_chance)
        mean, spread = by_chance(counts)
        top1, share = wilson(round(metrics["top1"] * images), images, strict), there.max() / images
        limit = mean + NormalDist().inv_cdf(1 - (1 - LEVEL) / (2 * strict)) * spread
        better = top1[0] > share or metrics[other] > limit + 1e-9
        return cls(bool(better), int(there.argmax()), float(share), top1, other, float(limit))

    def described(self, classes: Sequence[str], images: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """What an evaluation keeps: `better`, the scores to beat, and `why` in words where it is not."""
        limits = {"top1": round(self.share, 6), self.other: round(self.limit, 6)}
        why = "" if self.better else self._why(classes[self.most], images, metrics)
        return {"better": self.better, "class": classes[self.most], "limits": limits, "why": why}

    def _why(self, most: str, images: int, metrics: Mapping[str, float]) -> str:
        number = f"{images:,} test image{'s' if images != 1 else ''}"
        top1 = f"{metrics['top1']:.3f} ({self.top1[0]:.3f} to {self.top1[1]:.3f})"
        return (
            f"no better than chance, as far as {number} can tell: top-1 is {top1}, and {self.share:.3f} for {most!r} "
            f"every time; {_NAMED[self.other]} is {metrics[self.other]:.3f}, and up to {self.limit:.3f} by chance"
        )
