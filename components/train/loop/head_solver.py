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
from ...metrics.logistic_regression import DEFAULT_PENALTY, ProbeFitter, Split, score_logits, select_penalty
from ...models.blocks import head_modules
from ...models.features import Labels, LinearProbe, read_features

if TYPE_CHECKING:
    import torch

VERSION = 3
"""Of the solver, in fingerprints of models whose head is solved: 3 is scikit-learn's."""
MAX_IMAGES = 50_000
"""Images of a split whose features are used, at most: the first ones as they are stored, in random order. Each
takes 4 bytes a feature and solving some times as much, so 2,048 features of all of them 2 GB."""
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


def solve_head(dataset: Dataset, is_final: bool = False, metric: str = "macro_f1") -> HeadSolution:
    """Solve the head on the training images of a features dataset, for the best `metric`.

    `is_final`: no epoch follows, so that nothing is to be compared on the validation images. Few images are then all
    fitted to, and penalty, scores and temperature come from cross-validation.
    """
    (features, labels), validation = (read_features(dataset, split, MAX_IMAGES) for split in ("train", "val"))
    classes, images = len(dataset.manifest.classes), len(labels) + len(validation[1])
    both = np.concatenate([features, validation[0]]), np.concatenate([labels, validation[1]])
    out_of_fold, score, penalty = None, None, DEFAULT_PENALTY
    if is_final and 2 * FOLDS <= images <= MAX_CROSS_VALIDATED:
        features, labels = both
        selected = select_penalty(features, labels, _split_into_folds(labels), classes, metric)
        metrics = {f"val_{name}": selected.scores[name] for name in ("loss", "top1", "macro_f1")}
        out_of_fold = OutOfFold(metrics, fit_temperature(selected.logits, selected.labels))
        penalty, score = selected.penalty, selected.scores["macro_f1"]
    elif len(validation[1]):
        split = np.arange(len(labels)), np.arange(len(labels), images)
        selected = select_penalty(*both, [split], classes, metric)
        penalty, score = selected.penalty, selected.scores["macro_f1"]
    probe = ProbeFitter(features, labels, classes, metric).fit(penalty)
    return HeadSolution(probe, penalty, score_logits(probe(features), labels)["loss"], len(labels), score, out_of_fold)


def get_linear_head(network: torch.nn.Module) -> torch.nn.Linear | None:
    """Return the layer that makes the logits if it is one linear layer with biases, None for other heads."""
    import torch

    names = head_modules(network)
    layer = network.get_submodule(names[0]) if len(names) == 1 else None
    return layer if isinstance(layer, torch.nn.Linear) and layer.bias is not None else None


def _split_into_folds(labels: Labels) -> list[Split]:
    """Return the splits of `FOLDS`-fold cross-validation, stratified by class in the order of the images."""
    folds = np.empty(len(labels), np.int64)
    folds[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % FOLDS
    return [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(FOLDS)]
