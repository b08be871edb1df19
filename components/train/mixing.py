"""MixUp and CutMix: two images of a batch made into one, and their labels mixed in the same proportion.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018; Yun et al., "CutMix: Regularization Strategy to Train
Strong Classifiers with Localizable Features", 2019. A batch is mixed by one of them or not at all; within it every
image has a proportion of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..store.labels import MULTI
from .config import TrainConfig
from .feed import put

if TYPE_CHECKING:
    import torch

NONE, MIXUP, CUTMIX = "none", "mixup", "cutmix"
_STREAM = 0x6D6978
"""Keeps these random numbers apart from those of the augmentation of the same batch."""


@dataclass(frozen=True)
class Mix:
    """Drawn for B images: `partner` int64 [B], which image each is mixed with; `share` float64 [B], how much of itself
    an image keeps, in CutMix as pixels; `box` int64 [B, 4], CutMix's top, left, bottom, right."""

    kind: str
    partner: npt.NDArray[np.int64]
    share: npt.NDArray[np.float64]
    box: npt.NDArray[np.int64]


class Mixing:
    """What to mix is a function of (seed, epoch, number, first) alone, whatever the device. Probabilities that add up
    to more than 1 are scaled down to it; an alpha of 0 turns a method off."""

    def __init__(self, config: TrainConfig, classes: int, task: str) -> None:
        self._seed, self._classes, self._multi = config.seed, classes, task == MULTI
        self._alphas = {MIXUP: config.mixup, CUTMIX: config.cutmix}
        chances = [
            max(0.0, chance) if alpha > 0 else 0.0
            for alpha, chance in ((config.mixup, config.mixup_probability), (config.cutmix, config.cutmix_probability))
        ]
        self._mixup, self._cutmix = (chance / max(1.0, sum(chances)) for chance in chances)

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, epoch: int, number: int, first: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Float [B, C, H, W] and int64 [B] or uint8 [B, classes] → the mixed images and float32 [B, classes] that add
        up to 1 (to the mean number of labels where there are several); both as they were where nothing is mixed.

        `first` is the index of the first row in the global batch, where several devices share one: all mix by the same
        method, each among its own images.
        """
        mix = self.draw(len(images), images.shape[2], images.shape[3], epoch, number, first)
        if mix.kind == NONE:
            return images, labels
        partner = put(mix.partner, images.device)
        share = put(mix.share.astype(np.float32), images.device)
        targets = self._targets(labels)
        targets = share[:, None] * targets + (1 - share[:, None]) * targets[partner]
        if mix.kind == CUTMIX:
            return _cut(images, partner, put(mix.box, images.device)), targets
        kept = share[:, None, None, None]
        return (kept * images + (1 - kept) * images[partner]).to(images.dtype), targets

    def draw(self, count: int, height: int, width: int, epoch: int, number: int, first: int = 0) -> Mix:
        """What is done with the `count` images of a batch. One image alone has no partner."""
        kind = self._kind(epoch, number)
        random = np.random.default_rng([self._seed, epoch, number, _STREAM, first])
        order = random.permutation(count)
        partner = np.empty(count, np.int64)
        partner[order] = np.roll(order, -1)  # one circle through all of them, so none meets itself
        box = np.zeros((count, 4), np.int64)
        if kind == NONE or count < 2:
            return Mix(NONE, partner, np.ones(count), box)
        share = random.beta(self._alphas[kind], self._alphas[kind], count)
        if kind == CUTMIX:
            box = _boxes(random, share, height, width)
            share = 1 - (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / (height * width)
        return Mix(kind, partner, share, box)

    def _kind(self, epoch: int, number: int) -> str:
        chance = np.random.default_rng([self._seed, epoch, number, _STREAM]).random()
        if chance < self._mixup:
            return MIXUP
        return CUTMIX if chance < self._mixup + self._cutmix else NONE

    def _targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Float32 [B, classes], 1 at every label of an image."""
        import torch

        if self._multi:
            return labels.float()
        hot = torch.zeros(len(labels), self._classes, device=labels.device)
        return hot.scatter_(1, labels[:, None], 1.0)


def _boxes(
    random: np.random.Generator, share: npt.NDArray[np.float64], height: int, width: int
) -> npt.NDArray[np.int64]:
    """int64 [B, 4]: a box of the image's shape with an area of 1 - share, about a pixel drawn anywhere, clipped."""
    side = np.sqrt(1 - share)
    high, wide = (height * side).astype(np.int64), (width * side).astype(np.int64)
    y, x = random.integers(height, size=len(share)), random.integers(width, size=len(share))
    top, left = y - high // 2, x - wide // 2
    edges = (np.clip(top, 0, height), np.clip(left, 0, width))
    return np.stack([*edges, np.clip(top + high, 0, height), np.clip(left + wide, 0, width)], 1)


def _cut(images: torch.Tensor, partner: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """The partner's pixels within the box."""
    import torch

    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    within = ((rows >= box[:, :1]) & (rows < box[:, 2:3]))[:, :, None]
    within = within & ((columns >= box[:, 1:2]) & (columns < box[:, 3:]))[:, None, :]
    return torch.where(within[:, None], images[partner], images)
