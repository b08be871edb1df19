"""Solve a head instead of training it: logistic regression on the features of the frozen network.

On few images it is better than a head trained by steps, and takes one pass over them. Fine-tuning that starts from it
distorts the pretrained layers less (Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", 2022: LP-FT). Classes weigh alike, however many images they have, where they do in the metric that
models are compared by; with top-1 images do. The penalty on the weights is chosen by that metric on the validation
images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...dataset.kinds import ProbeFit
from ...dataset.manifest import Dataset
from ...metrics.calibration import fit_temperature
from ...metrics.logistic_regression import PENALTIES, compute_scales, fit_classes, score_logits, select_penalty
from ...models.blocks import head_modules
from ...models.features import LinearProbe, read_features

if TYPE_CHECKING:
    import torch

VERSION = 2
"""Of the solver, in fingerprints of models whose head is solved: 2 solves on stored features, tries more penalties."""
MAX_IMAGES = 50_000
"""Images of a split whose features are used, at most: the first ones as they are stored, in random order. Each
takes 4 bytes a feature, so 2,048 features of all of them 400 MB."""
FOLDS, MAX_CROSS_VALIDATED = 5, 5_000
"""Folds of cross-validation, and training and validation images up to which a head is cross-validated."""


@dataclass(frozen=True)
class OutOfFold:
    """Scores by logits of heads that were fitted without the image: `val_loss`, `val_top1` and `val_macro_f1` as the
    history has them, and the temperature that calibrates these logits."""

    metrics: dict[str, float]
    temperature: float


@dataclass(frozen=True)
class HeadSolution:
    """A linear probe, its penalty, the unweighted mean loss of the `images` that it was fitted to, and its macro-F1 on
    the validation images, None without any.

    `out_of_fold`: where the validation images were fitted to as well.
    """

    probe: LinearProbe
    penalty: float
    loss: float
    images: int
    val_macro_f1: float | None
    out_of_fold: OutOfFold | None = None

    def describe(self) -> str:
        """Return a line for the log and the report."""
        kind = "cross-validated" if self.out_of_fold else "validation"
        score = "" if self.val_macro_f1 is None else f", {kind} macro-F1 {self.val_macro_f1:.3f}"
        return f"baseline: a linear probe on the frozen features of {self.images:,} images{score}"

    def summarize(self) -> ProbeFit:
        """Return the model manifest's entry `probe`."""
        return ProbeFit(self.penalty, self.images, self.val_macro_f1)

    def apply(self, network: torch.nn.Module) -> None:
        """Set weights and biases of the network's head to the probe's."""
        import torch

        layer = get_linear_head(network)
        assert layer is not None
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self.probe.weight))
            layer.bias.copy_(torch.from_numpy(self.probe.bias))


def solve_head(
    dataset: Dataset, device: torch.device, is_final: bool = False, metric: str = "macro_f1"
) -> HeadSolution:
    """Solve the head on the training images of a features dataset, for the best `metric`.

    `is_final`: no epoch follows, so that nothing is to be compared on the validation images. Few images are then all
    fitted to, and penalty, scores and temperature come from cross-validation.
    """
    import torch

    def read(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        features, labels = read_features(dataset, split, MAX_IMAGES)
        return torch.from_numpy(features).to(device), torch.from_numpy(labels).to(device)

    classes = len(dataset.manifest.classes)
    (features, labels), (val_features, val_labels) = read("train"), read("val")
    is_refitted = is_final and 2 * FOLDS <= len(features) + len(val_features) <= MAX_CROSS_VALIDATED
    if is_refitted:
        features, labels = torch.cat([features, val_features]), torch.cat([labels, val_labels])
    mean, std = compute_scales(features)
    standardized = (features - mean) / std
    out_of_fold, score = None, None
    if is_refitted:
        penalty, out_of_fold = _cross_validate(standardized, labels, classes, metric)
        zeros = torch.zeros(classes, features.shape[1] + 1, device=device)
        weights = fit_classes(standardized, labels, penalty, zeros, metric)
        score = out_of_fold.metrics["val_macro_f1"]
    else:
        held_out = ((val_features - mean) / std, val_labels) if len(val_features) else None
        weights, penalty, score = select_penalty(standardized, labels, held_out, classes, metric)
    matrix, bias = weights[:, :-1], weights[:, -1]
    loss = float(torch.nn.functional.cross_entropy(standardized @ matrix.T + bias, labels))
    probe = LinearProbe((matrix / std).cpu().numpy(), (bias - (matrix / std) @ mean).cpu().numpy())
    return HeadSolution(probe, penalty, loss, len(labels), score, out_of_fold)


def get_linear_head(network: torch.nn.Module) -> torch.nn.Linear | None:
    """Return the layer that makes the logits if it is one linear layer with biases, None for other heads."""
    import torch

    names = head_modules(network)
    layer = network.get_submodule(names[0]) if len(names) == 1 else None
    return layer if isinstance(layer, torch.nn.Linear) and layer.bias is not None else None


def _cross_validate(features: torch.Tensor, labels: torch.Tensor, classes: int, metric: str) -> tuple[float, OutOfFold]:
    """Return the penalty with the best `metric` of `FOLDS`-fold cross-validation, of several the one with the lowest
    loss, and its out-of-fold scores. Folds are stratified by class, in the order of the images."""
    import torch

    ids = labels.cpu().numpy()
    folds = np.empty(len(ids), np.int64)
    folds[np.argsort(ids, kind="stable")] = np.arange(len(ids)) % FOLDS
    in_fold = [torch.from_numpy(folds == fold).to(features.device) for fold in range(FOLDS)]
    weights = [torch.zeros(classes, features.shape[1] + 1, device=features.device) for _ in range(FOLDS)]
    logits = torch.empty(len(ids), classes, device=features.device)
    best: tuple[tuple[float, float], float, dict[str, float], torch.Tensor] | None = None
    for penalty in PENALTIES:
        for fold, rows in enumerate(in_fold):
            weights[fold] = fit_classes(features[~rows], labels[~rows], penalty, weights[fold], metric)
            logits[rows] = features[rows] @ weights[fold][:, :-1].T + weights[fold][:, -1]
        scores = score_logits(logits, labels)
        rank = scores[metric], -scores["loss"]
        if best is None or rank > best[0]:
            metrics = {f"val_{name}": scores[name] for name in ("loss", "top1", "macro_f1")}
            best = rank, penalty, metrics, logits.clone()
    assert best is not None
    _, penalty, metrics, logits = best
    return penalty, OutOfFold(metrics, fit_temperature(logits.cpu().numpy(), ids))
