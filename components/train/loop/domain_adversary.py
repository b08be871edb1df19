"""Domain-adversarial training: features by which a classifier cannot tell the training images from unlabeled ones.

Ganin et al., "Domain-Adversarial Training of Neural Networks", 2016 (DANN). A domain classifier on what enters the
network's head learns to tell the two datasets apart; on the way back to the network its gradient is reversed. Its
weight rises with the share p of the optimizer steps taken as 2 / (1 + exp(-10p)) - 1. Batches of both go through the
network together, so that batch normalization has the statistics of both, in training as in use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from ...dataset.kinds import ImageSpec
from ...dataset.manifest import Dataset
from ...models.blocks import evaluation_mode, head_modules
from ...step.step import Context
from ...storage.errors import UserError
from ..config import TrainConfig
from .distributed import Communicator
from .training_batches import TrainingBatch, TrainingBatches

if TYPE_CHECKING:
    import torch

FIELD = "domain_adversarial"
GAMMA = 10.0
"""How fast the weight rises (section 5.2.2 of the paper)."""
HIDDEN = 1024
"""Units of the domain classifier's hidden layer, as of the paper's for photographs (appendix A.2)."""
_FREE_FIELDS = ("mean", "std", "encoding")
"""Fields of `ImageSpec` that may differ: the network normalizes all images by the source's."""


def open_target(config: TrainConfig, tensors: Dataset, context: Context) -> Dataset | None:
    """Return the dataset of `domain_adversarial`, None without one; UserError unless its images are made as those of
    `tensors` are."""
    if not config.domain_adversarial:
        return None
    target = context.parent(FIELD, config.domain_adversarial, "tensors")
    source_image, target_image = tensors.manifest.image_spec, target.manifest.image_spec
    names = [field.name for field in fields(ImageSpec) if field.name not in _FREE_FIELDS]
    if differing := [name for name in names if getattr(source_image, name) != getattr(target_image, name)]:
        expected, actual = (
            ", ".join(f"{name} {getattr(image, name)}" for name in differing) for image in (source_image, target_image)
        )
        raise UserError(
            f"{FIELD}: expected images made as those of {tensors.uri} ({expected}), found {target.uri} ({actual}): "
            "make both with the same options of clean and resize"
        )
    return target


def describe_target(target: Dataset) -> str:
    """Return a line for log, card and report."""
    rows = target.manifest.totals.by_split.get("train", 0)
    return f"domain-adversarial: {rows:,} images of {target.name or target.uri} without their labels"


def compute_strength(progress: float) -> float:
    """Return the weight of the reversed gradient after a share `progress` of the optimizer steps: 0 to nearly 1."""
    return 2.0 / (1.0 + math.exp(-GAMMA * progress)) - 1.0


def reverse_gradient(values: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Return the values; on the way back their gradient is multiplied by -strength."""
    constant = values.detach()
    return constant - strength.to(values.dtype) * (values - constant)


def make_domain_network(network: torch.nn.Module, shape: tuple[int, int, int], device: torch.device) -> Any:
    """Return a module of `network` and a new domain classifier, so that DistributedDataParallel takes the gradients of
    both: images float [S + T, C, H, W] of source and target, number S of the first, strength → logits [S, classes] of
    the source, logits [S + T] of being of the source."""
    import torch
    from torch import nn

    class DomainNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self._inputs: list[torch.Tensor] = []
            head = network.get_submodule(head_modules(network)[0])
            self.hook = head.register_forward_pre_hook(lambda _, arguments: self._keep(arguments[0]))
            self.classifier = nn.Sequential(nn.Linear(self._count(), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
            self.classifier.to(device)

        def _keep(self, features: torch.Tensor) -> None:
            self._inputs[:] = [features]

        def _pool(self) -> torch.Tensor:
            features = self._inputs.pop()
            return features.flatten(2).mean(2) if features.ndim > 2 else features

        def _count(self) -> int:
            with evaluation_mode(network), torch.no_grad():
                network(torch.zeros(2, *shape, device=device))
            return self._pool().shape[1]

        def forward(
            self, images: torch.Tensor, sources: int, strength: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.network(images)
            return logits[:sources], self.classifier(reverse_gradient(self._pool(), strength))[:, 0]

    return DomainNetwork()


class DomainAdversary:
    """The domain classifier of one training, the images of the target, and how many of both it told apart.

    Args:
        image: of the source, by which the target's images are augmented and normalized.
        shape: [C, H, W] of an image of the network.

    Attributes:
        module: network and domain classifier; only the latter is part of the state.
        counts: float64 [2, 2], by domain the images that were told correctly, and all, of the current epoch.
    """

    def __init__(
        self, network: torch.nn.Module, target: Dataset, config: TrainConfig, image: ImageSpec,
        shape: tuple[int, int, int], device: torch.device, comm: Communicator,
    ) -> None:  # fmt: skip
        import torch

        rows = target.manifest.totals.by_split.get("train", 0)
        if rows < 2 * comm.world_size:
            expected = f"at least two training images for each of {comm.world_size} processes"
            raise UserError(f"{FIELD}: expected {expected}, found {rows} in {target.uri}")
        torch.manual_seed(config.seed)
        self.module = make_domain_network(network, shape, device)
        self.batches = TrainingBatches(target, config, image, device, comm)
        self.comm = comm
        self.counts = torch.zeros(2, 2, dtype=torch.float64, device=device)

    @property
    def classifier(self) -> torch.nn.Module:
        classifier: torch.nn.Module = self.module.classifier
        return classifier

    def add_to_optimizer(self, optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
        """Add the classifier's parameters, with the learning rate of the head."""
        parameters = list(self.classifier.parameters())
        optimizer.add_param_group({"params": parameters, "scale": 1.0, "weight_decay": weight_decay})

    def iter_epoch(self, source: TrainingBatches, epoch: int, start: int = 0) -> Generator[TrainingBatch]:
        """Yield the source's batches of an epoch from number `start` on, each with one of the target.

        The target is passed through again and again, in another order each time.
        """
        images = self._iter_images(epoch * len(source) + start)
        batches = source.iter_epoch(epoch, start)
        with closing(images), closing(batches):
            for batch in batches:
                domain_images = next(images)
                source.wait_seconds += self.batches.wait_seconds
                self.batches.wait_seconds = 0.0
                yield replace(batch, domain_images=domain_images)

    def _iter_images(self, first: int) -> Generator[torch.Tensor]:
        """Yield the images of the target's batches from number `first` on, counted over all passes."""
        epoch, start = divmod(first, len(self.batches))
        while True:
            with closing(self.batches.iter_epoch(epoch, start)) as batches:
                for batch in batches:
                    yield batch.images
            epoch, start = epoch + 1, 0

    def forward(self, forward: Callable[..., Any], batch: TrainingBatch, progress: float) -> tuple[Any, Any]:
        """Return the logits of the source's images, and the loss of the domain classifier: the sum of its mean over
        either domain, times the source's images, as the other loss is a sum over these.

        Args:
            forward: `module`, distributed or compiled.
            progress: share of the optimizer steps taken.
        """
        import torch
        from torch.nn import functional

        assert batch.domain_images is not None
        sources, device = len(batch.images), batch.images.device
        images = torch.cat([batch.images, batch.domain_images]).contiguous(memory_format=torch.channels_last)
        strength = torch.tensor(compute_strength(progress), device=device)
        logits, domain_logits = forward(images, sources, strength)
        losses = []
        for domain, part in enumerate((domain_logits[:sources].float(), domain_logits[sources:].float())):
            is_source = torch.full_like(part, 1.0 - domain)
            losses.append(functional.binary_cross_entropy_with_logits(part, is_source))
            self.counts[domain, 0] += ((part.detach() > 0) == (domain == 0)).sum()
            self.counts[domain, 1] += len(part)
        return logits, sum(losses) * sources

    def pop_accuracy(self) -> float:
        """Return the share of images that the epoch's classifiers told correctly, the mean over both domains (0.5: by
        chance), and set the counts to 0."""
        shares = [
            self.comm.sum(correct) / max(1.0, self.comm.sum(images))
            for correct, images in zip(*self.counts.T, strict=True)
        ]
        self.counts.zero_()
        return sum(shares) / 2

    def close(self) -> None:
        """Leave the network as it was."""
        self.module.hook.remove()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the tensors for a checkpoint."""
        return {**self.classifier.state_dict(), "counts": self.counts}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.counts.copy_(state.pop("counts"))
        self.classifier.load_state_dict(state)
