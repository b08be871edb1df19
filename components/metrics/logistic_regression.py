"""Logistic regression on features, by which a head is solved and a probe is cross-validated.

Classes weigh alike, however many images they have, unless all images do. Features are standardized, the loss is a mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .classification import summarize_predictions

if TYPE_CHECKING:
    import torch

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)
"""Tried in this order, each from the solution of the one before."""
DEFAULT_PENALTY = 0.03
"""Without validation images."""
MAX_ITERATIONS = 100
MIN_RELATIVE_STD = 1e-3
"""Of the median feature's standard deviation: features that vary less are noise, or no feature at all."""
Weights = npt.NDArray[np.float64]


def compute_scales(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (mean, standard deviation) of features [N, D], by which they are standardized."""
    mean, std = features.mean(0), features.std(0)
    return mean, std.clamp_min(MIN_RELATIVE_STD * float(std.median().clamp_min(1e-12)))


def compute_inverse_frequencies(counts: npt.NDArray[np.int64]) -> Weights:
    """Return a weight for each class in inverse proportion to its images, float64 [classes].

    1 on average of the images; 0 for a class without images.
    """
    present = counts > 0
    inverses: Weights = np.divide(1.0, counts, out=np.zeros(len(counts)), where=present)
    weights: Weights = inverses * (counts.sum() / max(1, int(present.sum())))
    return weights


def fit_classes(
    features: torch.Tensor, labels: torch.Tensor, penalty: float, start: torch.Tensor, metric: str = "macro_f1"
) -> torch.Tensor:
    """Return `fit_logistic_regression` with classes that weigh alike, as in `metric`, or for top1 images that do.

    A class without images is left out.
    """
    import torch

    counts = np.bincount(labels.cpu().numpy(), minlength=len(start))
    weights = (counts > 0).astype(np.float64) if metric == "top1" else compute_inverse_frequencies(counts)
    class_weights = torch.tensor(weights, dtype=torch.float32, device=features.device)
    return fit_logistic_regression(features, labels, class_weights, penalty, start)


def score_logits(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return `loss`, `top1`, `macro_f1` and `balanced_accuracy` of logits [N, classes]."""
    import torch

    scores = summarize_predictions(labels.cpu().numpy(), logits.argmax(1).cpu().numpy(), logits.shape[1])
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    return {"loss": loss, **scores}


def select_penalty(
    features: torch.Tensor,
    labels: torch.Tensor,
    held_out: tuple[torch.Tensor, torch.Tensor] | None,
    classes: int,
    metric: str = "macro_f1",
) -> tuple[torch.Tensor, float, float | None]:
    """Return (weights float32 [classes, D + 1] with the biases last, penalty, macro-F1) with the best `metric` on
    `held_out` features and labels; of several the one with the lowest loss."""
    import torch

    weights = torch.zeros(classes, features.shape[1] + 1, device=features.device)
    if held_out is None:
        return fit_classes(features, labels, DEFAULT_PENALTY, weights, metric), DEFAULT_PENALTY, None
    best: tuple[float, float] | None = None
    best_weights, best_penalty, macro_f1 = weights, DEFAULT_PENALTY, 0.0
    for penalty in PENALTIES:
        weights = fit_classes(features, labels, penalty, weights, metric)
        scores = score_logits(held_out[0] @ weights[:, :-1].T + weights[:, -1], held_out[1])
        rank = scores[metric], -scores["loss"]
        if best is None or rank > best:
            best, best_weights, best_penalty, macro_f1 = rank, weights, penalty, scores["macro_f1"]
    return best_weights, best_penalty, macro_f1


def predict_out_of_fold(
    features: torch.Tensor, labels: torch.Tensor, folds: npt.NDArray[np.int64], classes: int
) -> torch.Tensor:
    """Return logits float32 [N, classes] of each image by weights that were fitted to the other folds, from 0, without
    gaps.

    The penalty is chosen among these by the fold that follows, so that an image has no part in it either.
    """
    import torch

    numbers = int(folds.max()) + 1
    logits = torch.empty(len(labels), classes, device=features.device)
    for fold in range(numbers):
        out, tuning = (torch.from_numpy(folds == n).to(features.device) for n in (fold, (fold + 1) % numbers))
        mean, std = compute_scales(features[~out])
        x, fitted = (features - mean) / std, ~(out | tuning)
        _, penalty, _ = select_penalty(x[fitted], labels[fitted], (x[tuning], labels[tuning]), classes)
        start = torch.zeros(classes, features.shape[1] + 1, device=features.device)
        weights = fit_classes(x[~out], labels[~out], penalty, start)
        logits[out] = x[out] @ weights[:, :-1].T + weights[:, -1]
    return logits


def fit_logistic_regression(
    features: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor, penalty: float, start: torch.Tensor
) -> torch.Tensor:
    """Minimize the weighted mean cross-entropy plus penalty/2 · the squared norm of the weights, biases left out.

    Args:
        features: float32 [N, D].
        labels: int64 [N].
        class_weights: float32 [classes], the weight of an image of each class, 1 on average of the images.
        start: float32 [classes, D + 1], with the biases last; not changed.

    Returns:
        float32 [classes, D + 1].
    """
    import torch

    weights = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=MAX_ITERATIONS, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def compute_loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = features @ weights[:, :-1].T + weights[:, -1]
        terms = torch.nn.functional.cross_entropy(logits, labels, class_weights, reduction="sum") / len(labels)
        loss: torch.Tensor = terms + penalty / 2 * weights[:, :-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(compute_loss)  # type: ignore[arg-type, no-untyped-call]
    return weights.detach()
