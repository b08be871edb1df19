"""Are probabilities worth what they say? One temperature that mends them, and the curve that shows it.

A temperature divides all logits: it changes no order, only how sure a model says it is (Guo et al., "On Calibration of
Modern Neural Networks", 2017). It is fitted on validation images, never on those that are reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .errors import MillError

COOLEST, HOTTEST = 0.05, 20.0
"""The bounds of a temperature."""
BINS = 15
_CHUNK = 1 << 20
"""Logits that are in memory as float64 at a time: 8 MB, some four times over."""
_STEPS = 100

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64] | npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """The temperature with the lowest negative log-likelihood of logits float [N, C], from 0.05 to 20.

    Labels int64 [N]: of the softmax; labels [N, C] of zeros and ones: of each class's sigmoid. In b = 1/T it is convex,
    so that its slope is followed to zero: Newton's steps, halving the bracket where they leave it. Where nothing is
    wrong, the likeliest model would be infinitely sure: as much doubt as one more image of an unknown label would
    bring is spread over the targets (after Platt, "Probabilistic Outputs for Support Vector Machines", 1999).
    1 where there are no images, or where no temperature makes a difference.
    """
    if logits.ndim != 2 or len(labels) != len(logits) or (labels.ndim == 2 and labels.shape != logits.shape):
        raise MillError(f"labels: expected one for each row of the logits {logits.shape}, found {labels.shape}")
    if labels.ndim == 1 and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise MillError(f"labels: expected ids below {logits.shape[1]}, found {labels.min()} to {labels.max()}")
    if not logits.size:
        return 1.0
    low, high, b = 1 / HOTTEST, 1 / COOLEST, 1.0
    for _ in range(_STEPS):
        slope, bend = _slope(logits, labels, b)
        if slope == 0:
            break
        low, high = (b, high) if slope < 0 else (low, b)
        step = b - slope / bend if bend > 0 else low
        following = step if low < step < high else (low + high) / 2
        if abs(following - b) <= 1e-9 * b:
            break
        b = following
    return float(min(HOTTEST, max(COOLEST, 1 / b)))


def _slope(logits: Logits, labels: Labels, b: float) -> tuple[float, float]:
    """First and second derivative by `b` of the mean negative log-likelihood of `b * logits`."""
    doubt = 1 / (len(logits) + 1)
    rows = max(1, _CHUNK // logits.shape[1])
    slope = bend = 0.0
    for start in range(0, len(logits), rows):
        z, y = logits[start : start + rows].astype(np.float64), labels[start : start + rows]
        found = _of_sigmoid(z, y, b, doubt) if labels.ndim == 2 else _of_softmax(z, y, b, doubt)
        slope, bend = slope + found[0], bend + found[1]
    return slope / logits.size, bend / logits.size


def _of_softmax(z: Numbers, labels: Labels, b: float, doubt: float) -> tuple[float, float]:
    z = z - z.max(axis=1, keepdims=True)  # a shift of a row changes nothing, and exponents stay below 0
    p = np.exp(b * z)
    p /= p.sum(axis=1, keepdims=True)
    mean = (p * z).sum(axis=1)
    target = (1 - doubt) * z[np.arange(len(z)), labels] + doubt * z.mean(axis=1)
    return float((mean - target).sum()), float((p * z * z).sum() - (mean * mean).sum())


def _of_sigmoid(z: Numbers, labels: Labels, b: float, doubt: float) -> tuple[float, float]:
    p = 0.5 * (1 + np.tanh(0.5 * b * z))  # the sigmoid, without overflow
    target = (1 - doubt) * labels + doubt / 2
    return float(((p - target) * z).sum()), float((p * (1 - p) * z * z).sum())


@dataclass
class Reliability:
    """Confidences against what came true, counted in bins of equal width: of each bin the images (int64 [bins]), the
    sum of their confidences and how many of them were right. Memory is that of the bins."""

    bins: int = BINS
    images: npt.NDArray[np.int64] = field(init=False)
    confidence: Numbers = field(init=False)
    right: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.images, self.right = np.zeros(self.bins, np.int64), np.zeros(self.bins, np.int64)
        self.confidence = np.zeros(self.bins)

    def add(self, confidence: npt.ArrayLike, right: npt.ArrayLike) -> None:
        """Confidences in [0, 1] and whether each was right; both flattened. Bin m of M holds ((m - 1)/M, m/M]."""
        sure, hit = np.asarray(confidence, np.float64).ravel(), np.asarray(right).astype(np.bool_).ravel()
        place = np.clip(np.ceil(sure * self.bins).astype(np.int64) - 1, 0, self.bins - 1)
        self.images += np.bincount(place, minlength=self.bins)
        self.confidence += np.bincount(place, sure, self.bins)
        self.right += np.bincount(place[hit], minlength=self.bins)

    @property
    def ece(self) -> float:
        """Expected calibration error in [0, 1]: how far a bin's mean confidence is from its share of right ones, as a
        mean over the images (Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015)."""
        total = int(self.images.sum())
        return float(np.abs(self.confidence - self.right).sum() / total) if total else 0.0

    def curve(self) -> list[dict[str, float]]:
        """Of each bin that has any, in order: `images`, mean `confidence` and `accuracy`, the share that was right."""
        return [
            {"images": int(n), "confidence": float(self.confidence[i] / n), "accuracy": float(self.right[i] / n)}
            for i, n in enumerate(self.images)
            if n
        ]


def reliability(
    confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int = BINS
) -> tuple[list[dict[str, float]], float]:
    """(`curve`, expected calibration error) of confidences in [0, 1] that are in memory."""
    counted = Reliability(bins)
    counted.add(confidence, right)
    return counted.curve(), counted.ece


def ece(confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int = BINS) -> float:
    """The expected calibration error of confidences in [0, 1] that are in memory."""
    return reliability(confidence, right, bins)[1]
