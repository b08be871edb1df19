"""Solve a head instead of training it: balanced logistic regression on the features of the frozen network.

On few images it is better than a head trained by steps, and takes one pass over them. Fine-tuning that starts from it
distorts the pretrained layers less (Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", 2022: LP-FT). Classes weigh alike, however many images they have, since macro-F1 is what a model
is kept for. The penalty on the weights is chosen by the validation images.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...dataset.labels import MULTI
from ...metrics.classification import confusion, summarize_confusion
from ...models.blocks import head_modules
from .losses import compute_inverse_frequencies
from .validation import Validator

if TYPE_CHECKING:
    import torch

MAX_IMAGES = 50_000
"""Images of a split whose features are used, at most: the first ones as they are stored, in random order. Each
takes 4 bytes a feature, so 2,048 features of all of them 400 MB."""
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)
"""Tried in this order, each from the solution of the one before. Features are standardized, the loss is a mean."""
DEFAULT_PENALTY = 0.03
"""Without validation images."""
MAX_ITERATIONS = 100
MIN_RELATIVE_STD = 1e-3
"""Of the median feature's standard deviation: features that vary less are noise, or no feature at all."""


@dataclass(frozen=True)
class HeadSolution:
    """The chosen penalty, and the unweighted mean loss of the training images under the solved head."""

    penalty: float
    loss: float
    images: int


def solve_head(network: torch.nn.Module, validator: Validator, before_batch: Callable[[], None]) -> HeadSolution:
    """Set weights and biases of the head to the solution on the training images of `validator`'s dataset.

    The network's modes and all its other weights stay as they are. `before_batch` is called before each batch, and may
    raise.
    """
    import torch

    layer = get_linear_head(network)
    assert layer is not None
    features, labels = _extract_features(network, layer, validator, before_batch, "train")
    mean, std = features.mean(0), features.std(0)
    std = std.clamp_min(MIN_RELATIVE_STD * float(std.median().clamp_min(1e-12)))
    standardized = (features - mean) / std
    held_out = None
    if validator.has_images:
        features, val_labels = _extract_features(network, layer, validator, before_batch, "val")
        held_out = (features - mean) / std, val_labels
    weights, penalty = _select_penalty(standardized, labels, held_out, len(validator.tensors.manifest.classes))
    with torch.no_grad():
        matrix, bias = weights[:, :-1], weights[:, -1]
        layer.weight.copy_(matrix / std)
        layer.bias.copy_(bias - (matrix / std) @ mean)
        loss = float(torch.nn.functional.cross_entropy(standardized @ matrix.T + bias, labels))
    return HeadSolution(penalty, loss, len(labels))


def get_linear_head(network: torch.nn.Module) -> torch.nn.Linear | None:
    """Return the layer that makes the logits if it is one linear layer with biases, None for other heads."""
    import torch

    names = head_modules(network)
    layer = network.get_submodule(names[0]) if len(names) == 1 else None
    return layer if isinstance(layer, torch.nn.Linear) and layer.bias is not None else None


def can_solve_head(network: torch.nn.Module, task: str) -> bool:
    """Return whether the head can be solved: it is linear, and images have one label each."""
    return task != MULTI and get_linear_head(network) is not None


def _extract_features(
    network: torch.nn.Module,
    layer: torch.nn.Linear,
    validator: Validator,
    before_batch: Callable[[], None],
    split: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the head's inputs float32 [N, D] and the labels int64 [N] of a split, on the device."""
    import torch

    features: list[torch.Tensor] = []
    labels: list[Any] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].float().clone()))
    try:
        with contextlib.closing(validator.predict(network, before_batch, split)) as predictions:
            for _, batch_labels in predictions:
                labels.append(batch_labels)
                if sum(map(len, labels)) >= MAX_IMAGES:
                    break
    finally:
        hook.remove()
    return torch.cat(features), torch.from_numpy(np.concatenate(labels)).to(validator.device)


def _select_penalty(
    features: torch.Tensor, labels: torch.Tensor, held_out: tuple[torch.Tensor, torch.Tensor] | None, classes: int
) -> tuple[torch.Tensor, float]:
    """Return (weights float32 [classes, D + 1] with the biases last, penalty) with the best macro-F1 on `held_out`
    features and labels; of several the one with the lowest loss."""
    import torch

    counts = np.bincount(labels.cpu().numpy(), minlength=classes)
    class_weights = torch.tensor(compute_inverse_frequencies(counts), dtype=torch.float32, device=features.device)
    weights = torch.zeros(classes, features.shape[1] + 1, device=features.device)
    if held_out is None:
        return fit_logistic_regression(features, labels, class_weights, DEFAULT_PENALTY, weights), DEFAULT_PENALTY
    best: tuple[float, float] | None = None
    best_weights, best_penalty = weights, DEFAULT_PENALTY
    for penalty in PENALTIES:
        weights = fit_logistic_regression(features, labels, class_weights, penalty, weights)
        logits = held_out[0] @ weights[:, :-1].T + weights[:, -1]
        matrix = confusion(held_out[1].cpu().numpy(), logits.argmax(1).cpu().numpy(), classes)
        loss = float(torch.nn.functional.cross_entropy(logits, held_out[1]))
        score = (summarize_confusion(matrix)["macro_f1"], -loss)
        if best is None or score > best:
            best, best_weights, best_penalty = score, weights, penalty
    return best_weights, best_penalty


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
