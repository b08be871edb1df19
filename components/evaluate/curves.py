"""Precision-recall and ROC curves of each class against the rest, from histograms of scores.

A class's scores are counted in bins of its log-odds, so that memory does not grow with the images: 32 KB a class with
4,096 bins, and fewer bins where there are more than 2,000 classes, 64 MB in all at most. The bins are of equal width in
the inverse hyperbolic sine of the log-odds: 0.002 wide at a probability of one half, 0.02 at 0.00005. Scores of one bin
count as ties, as equal scores do in scikit-learn: an area under the ROC curve is off by at most half the share of
(positive, negative) pairs that fall into one bin; tests hold both areas to 0.003. Average precision is the sum over the
thresholds of precision times the gain in recall, without interpolation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

MOST_BINS, FEWEST_BINS, BYTES = 4096, 64, 64 * 2**20
LIMIT = 24.0
"""Log-odds beyond which (4e-11 from 0 or 1) all scores count as one."""
POINTS, SHOWN, _AT_A_TIME = 51, 5, 64
"""Of a curve that is kept; the hardest classes whose curves are kept; the classes that are worked on at a time."""

Counts = npt.NDArray[np.uint32]
Numbers = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
RECALL = np.linspace(0, 1, POINTS)
FALSE = np.linspace(0, 1, POINTS) ** 2
"""Denser near 0, where a good model's curve rises."""


def bins_for(classes: int) -> int:
    """How many bins each of so many classes gets."""
    return max(FEWEST_BINS, min(MOST_BINS, BYTES // (8 * max(1, classes))))


def log_odds(logits: torch.Tensor, several: bool) -> torch.Tensor:
    """log p - log(1 - p), float64 [B, C], of the softmax of logits [B, C], or of each one's sigmoid. Of logits and not
    of probabilities, which are 1 to the last digit for many images of a good model."""
    import torch

    if several:
        return logits.double()
    p = logits.double().log_softmax(1)
    return p - torch.log(-torch.expm1(p))


class Areas(NamedTuple):
    """Under the curves of each class, float64 [classes]; NaN where a class has no positives, or no negatives."""

    pr: Numbers
    roc: Numbers


@dataclass
class ScoreHistograms:
    """Of each class the scores of the images that have it (`positive`) and of all images, uint32 [classes, bins]."""

    classes: int
    positive: Counts = field(init=False)
    all: Counts = field(init=False)

    def __post_init__(self) -> None:
        self.bins = bins_for(self.classes)
        self.positive, self.all = (np.zeros((self.classes, self.bins), np.uint32) for _ in range(2))

    def add(self, odds: torch.Tensor, columns: Ids, there: npt.NDArray[np.bool_]) -> None:
        """A batch: log-odds float64 [B, those the model knows], the class of each of its columns, and which image has
        which class, [B, classes]. Classes that the model does not know have the lowest score there is."""
        end = math.asinh(LIMIT)
        scaled = ((odds.asinh() + end) * (self.bins / (2 * end))).nan_to_num(0.0)
        place = scaled.clamp(0, self.bins - 1).long().cpu().numpy()
        bins = np.zeros(there.shape, np.int64)
        bins[:, columns] = place
        bins += np.arange(self.classes) * self.bins
        np.add.at(self.all.reshape(-1), bins.reshape(-1), np.uint32(1))
        np.add.at(self.positive.reshape(-1), bins[there], np.uint32(1))

    def areas(self) -> Areas:
        parts = [_areas(*self._falling(slice(n, n + _AT_A_TIME))) for n in range(0, self.classes, _AT_A_TIME)]
        return Areas(*(np.concatenate([part[i] for part in parts]) if parts else np.empty(0) for i in range(2)))

    def micro(self) -> Areas:
        """Over all (image, class) pairs together."""
        positive, every = (a.sum(axis=0, dtype=np.int64)[None, ::-1] for a in (self.positive, self.all))
        return _areas(*np.cumsum([positive, every - positive], axis=2))

    def macro(self) -> tuple[Numbers, Numbers]:
        """(precision at `RECALL`, share of true positives at `FALSE`): means over the classes that have both."""
        total, known = np.zeros((2, POINTS)), 0
        for n in range(0, self.classes, _AT_A_TIME):
            for true, false in zip(*self._falling(slice(n, n + _AT_A_TIME)), strict=True):
                if true[-1] and false[-1]:
                    total += _at_points(true, false)
                    known += 1
        return total[0] / max(1, known), total[1] / max(1, known)

    def curve(self, class_id: int) -> tuple[Numbers, Numbers]:
        """The same of one class that has both."""
        true, false = self._falling(slice(class_id, class_id + 1))
        return _at_points(true[0], false[0])

    def roc(self, class_id: int, points: int = 101) -> dict[str, list[float]]:
        """(`fpr`, `tpr`, `threshold`), the last as probabilities from 1 down, of one class: for KFP's UI."""
        (true,), (false,) = self._falling(slice(class_id, class_id + 1))
        end = math.asinh(LIMIT)
        edges = np.sinh(np.linspace(end, -end, self.bins + 1))[1:]  # the lower edge of each bin, from the highest on
        used = np.flatnonzero(np.diff(true + false, prepend=0))
        used = used[np.unique(np.linspace(0, len(used) - 1, min(points - 1, len(used))).astype(np.int64))]
        found = false[used] / max(1, false[-1]), true[used] / max(1, true[-1]), 1 / (1 + np.exp(-edges[used]))
        names = ("fpr", "tpr", "threshold")
        return {n: [first, *map(_rounded, v)] for n, v, first in zip(names, found, (0.0, 0.0, 1.0), strict=True)}

    def _falling(self, which: slice) -> tuple[Ids, Ids]:
        """True and false positives at every threshold, from the highest on, int64 [some classes, bins]."""
        positive, every = (a[which, ::-1].astype(np.int64) for a in (self.positive, self.all))
        return positive.cumsum(axis=1), (every - positive).cumsum(axis=1)


def _areas(true: Ids, false: Ids) -> Areas:
    positives, negatives = true[:, -1:].astype(np.float64), false[:, -1:].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.nan_to_num(true / (true + false))
        recall, fall_out = true / positives, false / negatives
        pr = (np.diff(recall, axis=1, prepend=0) * precision).sum(axis=1)
        heights = recall + np.pad(recall[:, :-1], ((0, 0), (1, 0)))
        roc = (np.diff(fall_out, axis=1, prepend=0) * heights).sum(axis=1) / 2
    return Areas(pr, roc)


def _at_points(true: Ids, false: Ids) -> tuple[Numbers, Numbers]:
    """Precision at the first threshold with each of `RECALL`, and the true positives' share at each of `FALSE`."""
    used = np.flatnonzero(true + false)
    true, false = true[used], false[used]
    first = np.searchsorted(true, np.maximum(1, np.ceil(RECALL * true[-1] - 1e-9)))
    precision = true[first] / (true[first] + false[first])
    fall_out, recall = np.r_[0, false / false[-1]], np.r_[0, true / true[-1]]
    return precision, np.interp(FALSE, fall_out, recall)


def described(found: ScoreHistograms, names: tuple[str, ...], areas: Areas) -> dict[str, Any]:
    """What an evaluation keeps of the curves: the macro ones and those of the classes with the lowest area."""
    if not np.isfinite(areas.roc).any():
        return {}
    hardest = [int(c) for c in np.argsort(areas.pr, kind="stable") if np.isfinite(areas.roc[c])][:SHOWN]

    def both(curves: tuple[Numbers, Numbers]) -> dict[str, list[float]]:
        return {
            name: [_rounded(v) for v in values]
            for name, values in zip(("precision", "true_positive_rate"), curves, strict=True)
        }

    about = [
        {"class": names[c], "pr_auc": _rounded(areas.pr[c]), "roc_auc": _rounded(areas.roc[c])} | both(found.curve(c))
        for c in hardest
    ]
    axes = {"recall": [_rounded(v) for v in RECALL], "false_positive_rate": [_rounded(v) for v in FALSE]}
    return axes | {"macro": both(found.macro()), "classes": about}


def _rounded(value: float) -> float:
    return round(float(value), 5)
