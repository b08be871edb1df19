"""Losses, Brier score and calibration of probabilities, before and after temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..dataset.kinds import Calibration
from ..metrics.calibration import Reliability

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]


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

    def add_single(self, logits: torch.Tensor, calibrated: torch.Tensor, target: npt.NDArray[np.int64]) -> Floats:
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

    def add_multi(self, logits: torch.Tensor, calibrated: torch.Tensor, labels: npt.NDArray[np.uint8]) -> Floats:
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

    def _add_sums(self, losses: list[Floats], squared: Floats) -> Floats:
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
