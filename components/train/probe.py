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

from ..store.blocks import head_modules
from ..store.labels import MULTI
from ..store.metrics import confusion, summary
from .losses import inverse_frequency
from .validation import Validation

if TYPE_CHECKING:
    import torch

MOST_IMAGES = 50_000
"""Training images whose features are used, at most: the first ones as they are stored, in random order. Each
takes 4 bytes a feature, so 2,048 features of all of them 400 MB."""
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)
"""Tried one after the other, each from the solution before. Features are standardized, the loss is a mean."""
USUAL_PENALTY = 0.03
"""Without validation images."""
ITERATIONS = 100
SMALLEST_SPREAD = 1e-3
"""Of the median feature's standard deviation: features that vary less are noise, or no feature at all."""


@dataclass(frozen=True)
class Solved:
    """A solved head: its penalty, and the mean loss of the training images, unweighted."""

    penalty: float
    loss: float
    images: int


@dataclass(frozen=True)
class Probe:
    """A network whose head is to be solved on the images of `validation`'s dataset.

    `between` is called before each batch, and may raise.
    """

    network: torch.nn.Module
    validation: Validation
    between: Callable[[], None]

    def solve(self) -> Solved:
        """Set the head's weights and biases. The network's modes and all its other weights stay as they are."""
        import torch

        layer = head_layer(self.network)
        assert layer is not None
        features, labels = self._features(layer, "train")
        mean, spread = features.mean(0), features.std(0)
        spread = spread.clamp_min(SMALLEST_SPREAD * float(spread.median().clamp_min(1e-12)))
        scaled = (features - mean) / spread
        held_out = None
        if self.validation.there:
            features, others = self._features(layer, "val")
            held_out = (features - mean) / spread, others
        weights, penalty = self._best(scaled, labels, held_out)
        with torch.no_grad():
            matrix, bias = weights[:, :-1], weights[:, -1]
            layer.weight.copy_(matrix / spread)
            layer.bias.copy_(bias - (matrix / spread) @ mean)
            loss = float(torch.nn.functional.cross_entropy(scaled @ matrix.T + bias, labels))
        return Solved(penalty, loss, len(labels))

    def _features(self, layer: torch.nn.Linear, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [N, features] and int64 [N] on the device: what the head is given of the images of a split."""
        import torch

        features: list[torch.Tensor] = []
        labels: list[Any] = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].float().clone()))
        try:
            with contextlib.closing(self.validation.logits(self.network, self.between, split)) as passes:
                for _, some in passes:
                    labels.append(some)
                    if sum(map(len, labels)) >= MOST_IMAGES:
                        break
        finally:
            hook.remove()
        return torch.cat(features), torch.from_numpy(np.concatenate(labels)).to(self.validation.device)

    def _best(
        self, features: torch.Tensor, labels: torch.Tensor, held_out: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, float]:
        """(weights float32 [classes, features + 1] with the biases last, penalty): of the best macro-F1 on the images
        held out, of several the one with the lowest loss."""
        import torch

        classes = len(self.validation.tensors.manifest.classes)
        counts = np.bincount(labels.cpu().numpy(), minlength=classes)
        balance = torch.tensor(inverse_frequency(counts), dtype=torch.float32, device=features.device)
        weights = torch.zeros(classes, features.shape[1] + 1, device=features.device)
        if held_out is None:
            return solve(features, labels, balance, USUAL_PENALTY, weights), USUAL_PENALTY
        best: tuple[float, float] | None = None
        chosen, penalty = weights, USUAL_PENALTY
        for tried in PENALTIES:
            weights = solve(features, labels, balance, tried, weights)
            logits = held_out[0] @ weights[:, :-1].T + weights[:, -1]
            score = summary(confusion(held_out[1].cpu().numpy(), logits.argmax(1).cpu().numpy(), classes))["macro_f1"]
            loss = float(torch.nn.functional.cross_entropy(logits, held_out[1]))
            if best is None or (score, -loss) > best:
                best, chosen, penalty = (score, -loss), weights, tried
        return chosen, penalty


def head_layer(network: torch.nn.Module) -> torch.nn.Linear | None:
    """The layer that makes the logits, where it is one linear layer with biases; None for other heads."""
    import torch

    names = head_modules(network)
    layer = network.get_submodule(names[0]) if len(names) == 1 else None
    return layer if isinstance(layer, torch.nn.Linear) and layer.bias is not None else None


def can_solve(network: torch.nn.Module, task: str) -> bool:
    """Whether the head is of a form that is solved: linear, for images of one label each."""
    return task != MULTI and head_layer(network) is not None


def solve(
    features: torch.Tensor, labels: torch.Tensor, balance: torch.Tensor, penalty: float, start: torch.Tensor
) -> torch.Tensor:
    """Minimize the weighted mean cross-entropy plus penalty/2 · the squared norm of the weights, biases left out.

    Args:
        features: float32 [N, D].
        labels: int64 [N].
        balance: float32 [classes], the weight of an image of each class, 1 on average of the images.
        start: float32 [classes, D + 1], with the biases last; not changed.

    Returns:
        float32 [classes, D + 1].
    """
    import torch

    weights = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=ITERATIONS, tolerance_grad=1e-5, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = features @ weights[:, :-1].T + weights[:, -1]
        terms = torch.nn.functional.cross_entropy(logits, labels, balance, reduction="sum") / len(labels)
        value: torch.Tensor = terms + penalty / 2 * weights[:, :-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[arg-type, no-untyped-call]
    return weights.detach()
