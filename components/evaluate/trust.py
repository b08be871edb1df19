"""Losses and calibration: what the probabilities are worth, before the model's temperature and with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..store.calibration import Reliability

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float64]


@dataclass
class Trust:
    """Sums over images, of a model that was trained for such targets. `before` is without the temperature; the losses
    are in nats. Brier's score is the mean over images of the squared distance from the label, summed over the classes
    of one-label images (Brier, "Verification of Forecasts", 1950) and a mean over the classes of others."""

    before: Reliability = field(default_factory=Reliability)
    after: Reliability = field(default_factory=Reliability)
    loss: float = 0.0
    nll: float = 0.0
    brier: float = 0.0
    images: int = 0
    with_loss: int = 0

    def add_single(self, logits: torch.Tensor, calibrated: torch.Tensor, target: npt.NDArray[np.int64]) -> Floats:
        """A batch of logits float [B, C] and the model's id of each label, -1 for a class that it has never seen and
        that has no loss. The losses of the calibrated ones, float64 [B], NaN where there is none."""
        import torch

        known = target >= 0
        rows, wanted = np.flatnonzero(known), torch.from_numpy(target[known]).to(logits.device)
        losses = []
        for given, counted in ((logits, self.before), (calibrated, self.after)):
            log_p = given.double().log_softmax(1)
            sure, said = (v.cpu().numpy() for v in log_p.exp().max(1))
            counted.add(sure, said == target)
            found = np.full(len(target), np.nan)
            found[rows] = -log_p[torch.from_numpy(rows).to(logits.device), wanted].cpu().numpy()
            losses.append(found)
        p = log_p.exp().cpu().numpy()
        squared = (p * p).sum(axis=1) + 1 - 2 * np.where(known, p[np.arange(len(p)), target], 0)
        return self._summed(losses, squared)

    def add_multi(self, logits: torch.Tensor, calibrated: torch.Tensor, labels: npt.NDArray[np.uint8]) -> Floats:
        """A batch of logits float [B, C] and labels [B, C] of zeros and ones; every (image, class) pair is a case."""
        import torch
        from torch.nn import functional

        targets, losses = torch.from_numpy(labels).to(logits.device).double(), []
        for given, counted in ((logits, self.before), (calibrated, self.after)):
            p = given.double().sigmoid()
            counted.add(p.cpu().numpy(), labels)
            found = functional.binary_cross_entropy_with_logits(given.double(), targets, reduction="none")
            losses.append(found.mean(1).cpu().numpy())
        return self._summed(losses, ((p - targets) ** 2).mean(1).cpu().numpy())

    def _summed(self, losses: list[Floats], squared: Floats) -> Floats:
        self.loss += float(np.nansum(losses[0]))
        self.nll += float(np.nansum(losses[1]))
        self.brier += float(squared.sum())
        self.images += len(squared)
        self.with_loss += int(np.isfinite(losses[0]).sum())
        return losses[1]

    def metrics(self) -> dict[str, float]:
        """`loss` and `ece_uncalibrated` of the logits as they are, `nll`, `brier` and `ece` with the temperature."""
        if not self.images:
            return {}
        found = {"ece": self.after.ece, "ece_uncalibrated": self.before.ece, "brier": self.brier / self.images}
        if self.with_loss:
            found |= {"loss": self.loss / self.with_loss, "nll": self.nll / self.with_loss}
        return found

    def described(self, temperature: float) -> dict[str, Any]:
        """What an evaluation keeps: the temperature and both reliability curves."""
        if not self.images:
            return {}
        curves = {"before": self.before.curve(), "after": self.after.curve()}
        rounded = {k: [{n: round(v, 6) for n, v in one.items()} for one in found] for k, found in curves.items()}
        return {"temperature": temperature, "bins": self.after.bins} | rounded
