"""Calibration of probabilities: temperature scaling, reliability diagrams, losses and the Brier score.

A temperature divides all logits: it changes no order, only the confidence (Guo et al., "On Calibration of
Modern Neural Networks", 2017). It is fitted on validation images, never on those that are reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..dataset.kinds import Calibration
from ..storage.errors import MillError

if TYPE_CHECKING:
    import torch

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Bounds of a temperature."""
BINS = 15
_CHUNK = 1 << 20
"""Logits that are converted to float64 at a time: 8 MB, in some four arrays."""

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64] | npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float64]


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature with the lowest negative log-likelihood of logits float [N, C], from 0.05 to 20.

    Labels int64 [N]: of the softmax; labels [N, C] of zeros and ones: of each class's sigmoid. It is convex in
    b = 1/T, so that Brent's method finds the zero of its slope. If no prediction is wrong, the likelihood grows without
    bound: label smoothing by as much as one more image of an unknown label would bring prevents that (after Platt,
    "Probabilistic Outputs for Support Vector Machines", 1999). 1 where there are no images, or where no temperature
    makes a difference.
    """
    from scipy.optimize import brentq

    if logits.ndim != 2 or len(labels) != len(logits) or (labels.ndim == 2 and labels.shape != logits.shape):
        raise MillError(f"labels: expected one for each row of the logits {logits.shape}, found {labels.shape}")
    if labels.ndim == 1 and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise MillError(f"labels: expected ids below {logits.shape[1]}, found {labels.min()} to {labels.max()}")
    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if not logits.size or (low_slope := _compute_slope(low, logits, labels)) == 0:
        return 1.0
    if low_slope > 0 or _compute_slope(high, logits, labels) < 0:
        return MAX_TEMPERATURE if low_slope > 0 else MIN_TEMPERATURE
    return float(1 / brentq(_compute_slope, low, high, args=(logits, labels), rtol=1e-9))


def _compute_slope(b: float, logits: Logits, labels: Labels) -> float:
    """Return the derivative by `b` of the mean negative log-likelihood of `b * logits`."""
    from scipy.special import expit, softmax

    smoothing, rows, slope = 1 / (len(logits) + 1), max(1, _CHUNK // logits.shape[1]), 0.0
    for start in range(0, len(logits), rows):
        z, y = logits[start : start + rows].astype(np.float64), labels[start : start + rows]
        if labels.ndim == 2:
            slope += float(((expit(b * z) - (1 - smoothing) * y - smoothing / 2) * z).sum())
        else:
            z -= z.max(axis=1, keepdims=True)  # a shift of a row changes nothing but the rounding
            targets = (1 - smoothing) * z[np.arange(len(z)), y] + smoothing * z.mean(axis=1)
            slope += float((softmax(b * z, axis=1) * z).sum() - targets.sum())
    return slope / logits.size


@dataclass
class Reliability:
    """A reliability diagram: confidences against accuracy, in bins of equal width.

    Each bin holds its number of images (int64 [bins]), the sum of their confidences and how many of them were right.
    """

    bins: int = BINS
    images: npt.NDArray[np.int64] = field(init=False)
    confidence: Numbers = field(init=False)
    right: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.images, self.right = np.zeros(self.bins, np.int64), np.zeros(self.bins, np.int64)
        self.confidence = np.zeros(self.bins)

    def add(self, confidence: npt.ArrayLike, right: npt.ArrayLike) -> None:
        """Add confidences in [0, 1] and whether each is right, flattened. Bin m of M holds ((m - 1)/M, m/M]."""
        values, is_right = np.asarray(confidence, np.float64).ravel(), np.asarray(right).astype(np.bool_).ravel()
        index = np.clip(np.ceil(values * self.bins).astype(np.int64) - 1, 0, self.bins - 1)
        self.images += np.bincount(index, minlength=self.bins)
        self.confidence += np.bincount(index, values, self.bins)
        self.right += np.bincount(index[is_right], minlength=self.bins)

    @property
    def ece(self) -> float:
        """Expected calibration error in [0, 1]: the distance of a bin's mean confidence from its accuracy, as a mean
        over the images (Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015)."""
        total = int(self.images.sum())
        return float(np.abs(self.confidence - self.right).sum() / total) if total else 0.0

    def curve(self) -> list[dict[str, float]]:
        """Return `images`, mean `confidence` and `accuracy` (the share that is right) of each bin that has images."""
        return [
            {"images": int(n), "confidence": float(self.confidence[i] / n), "accuracy": float(self.right[i] / n)}
            for i, n in enumerate(self.images)
            if n
        ]


def ece(confidence: npt.ArrayLike, right: npt.ArrayLike, bins: int = BINS) -> float:
    """Return the expected calibration error of confidences in [0, 1] that are in memory."""
    reliability = Reliability(bins)
    reliability.add(confidence, right)
    return reliability.ece


@dataclass
class ProbabilityMetrics:
    """Sums over images of `loss` (of the logits) and `nll` (of the calibrated logits), in nats, and `brier`.

    Brier's score is the mean over images of the squared distance from the label, summed over the classes of one-label
    images (Brier, "Verification of Forecasts", 1950) and a mean over the classes of others. `images_with_loss`: those
    whose class the model knows.
    """

    uncalibrated: Reliability = field(default_factory=Reliability)
    calibrated: Reliability = field(default_factory=Reliability)
    loss: float = 0.0
    nll: float = 0.0
    brier: float = 0.0
    images: int = 0
    images_with_loss: int = 0

    def add_single(self, logits: torch.Tensor, calibrated: torch.Tensor, target: npt.NDArray[np.int64]) -> Numbers:
        """Add a batch of images with one label, and return their calibrated losses, float64 [B], NaN where unknown.

        `logits`, `calibrated`: float [B, C]; `target`: the model's ids of the labels, -1 for a class that it does not
        know, which has no loss.
        """
        import torch

        is_known = target >= 0
        rows = np.flatnonzero(is_known)
        row_index, label_index = (torch.from_numpy(index).to(logits.device) for index in (rows, target[is_known]))
        losses = []
        for values, reliability in ((logits, self.uncalibrated), (calibrated, self.calibrated)):
            log_p = values.double().log_softmax(1)
            confidence, predicted = (v.cpu().numpy() for v in log_p.exp().max(1))
            reliability.add(confidence, predicted == target)
            loss = np.full(len(target), np.nan)
            loss[rows] = -log_p[row_index, label_index].cpu().numpy()
            losses.append(loss)
        p = log_p.exp().cpu().numpy()
        squared = (p * p).sum(axis=1) + 1 - 2 * np.where(is_known, p[np.arange(len(p)), target], 0)
        return self._add_sums(losses, squared)

    def add_multi(self, logits: torch.Tensor, calibrated: torch.Tensor, labels: npt.NDArray[np.uint8]) -> Numbers:
        """Add a batch of logits float [B, C] and multi-hot labels [B, C], and return the calibrated losses, float64
        [B]; every (image, class) pair counts for the calibration."""
        import torch
        from torch.nn import functional

        targets, losses = torch.from_numpy(labels).to(logits.device).double(), []
        for values, reliability in ((logits, self.uncalibrated), (calibrated, self.calibrated)):
            p = values.double().sigmoid()
            reliability.add(p.cpu().numpy(), labels)
            loss = functional.binary_cross_entropy_with_logits(values.double(), targets, reduction="none")
            losses.append(loss.mean(1).cpu().numpy())
        return self._add_sums(losses, ((p - targets) ** 2).mean(1).cpu().numpy())

    def _add_sums(self, losses: list[Numbers], squared: Numbers) -> Numbers:
        loss, nll = losses
        self.loss += float(np.nansum(loss))
        self.nll += float(np.nansum(nll))
        self.brier += float(squared.sum())
        self.images += len(squared)
        self.images_with_loss += int(np.isfinite(loss).sum())
        return nll

    def compute_metrics(self) -> dict[str, float]:
        """Return `loss` and `ece_uncalibrated` of the logits, and `nll`, `brier` and `ece` of the calibrated ones."""
        if not self.images:
            return {}
        metrics = {
            "ece": self.calibrated.ece,
            "ece_uncalibrated": self.uncalibrated.ece,
            "brier": self.brier / self.images,
        }
        if self.images_with_loss:
            metrics |= {"loss": self.loss / self.images_with_loss, "nll": self.nll / self.images_with_loss}
        return metrics

    def summarize(self, temperature: float) -> Calibration | None:
        """Return the temperature and both reliability curves; None without images."""
        if not self.images:
            return None
        curves = (
            [{key: round(value, 6) for key, value in point.items()} for point in reliability.curve()]
            for reliability in (self.uncalibrated, self.calibrated)
        )
        return Calibration(temperature, self.calibrated.bins, *curves)
