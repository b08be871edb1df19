"""Random augmentation of a batch: of each image with parameters of its own, in the loader's threads; and of two images
combined into one, with their labels mixed in the same proportion (MixUp, CutMix), where the network runs.

The parameters of a batch are a function of (seed, epoch, number of the batch) alone, see params.py; cpu_engine.py
computes pixels by them. A pipeline of another library instead is in external.py.

Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018; Yun et al., "CutMix: Regularization Strategy to Train
Strong Classifiers with Localizable Features", 2019. A batch is mixed by one of them or not at all; within it every
image has a proportion of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...dataset.kinds import ImageSpec
from ...dataset.labels import MULTI
from ...imaging.decoder import Pixels
from ...imaging.pixel_options import COLORS
from ..config import TrainConfig
from ..data.prefetcher import copy_to_device
from .cpu_engine import CpuEngine
from .external import ExternalEngine, Pipeline
from .params import AugmentParams, InputSpec, make_params, make_seed_params

if TYPE_CHECKING:
    import torch

NONE, MIXUP, CUTMIX = "none", "mixup", "cutmix"
_SEED_STREAM = 0x6D6978
"""Separates these random numbers from those of the augmentation of the same batch."""


class Augmentation:
    """The augmentation of a config that a recipe has filled in, for images as a tensors manifest's `image` describes
    them.

    Of images that are stored larger than the model's input, crops are taken of all that is stored; without crops, the
    window is shifted from the center as far as the stored margin allows.

    Args:
        pipeline: an object or a function, as in external.py, that replaces the config's augmentation.
    """

    def __init__(self, config: TrainConfig, image: ImageSpec, pipeline: Pipeline | Any = None) -> None:
        height, width, channels = image.shape
        self.size = image.side
        pipeline = config.augment_pipeline if pipeline is None else pipeline
        self._external = ExternalEngine(pipeline, (height, width, channels), self.size) if pipeline else None
        self._config = config
        self._spec = InputSpec(height, width, self.size, image.color)
        erase_value = np.clip(np.round(255 * np.asarray(image.mean, np.float64)), 0, 255).astype(np.uint8)
        self._cpu_engine = CpuEngine(self.size, min(COLORS[image.color], channels), erase_value)

    def make_params(self, epoch: int, number: int, count: int) -> AugmentParams:
        """Sample parameters for all `count` images of the global batch `number`."""
        if self._external:
            return make_seed_params(self._config.seed, epoch, number, count)
        return make_params(self._config, self._spec, epoch, number, count)

    def apply(self, images: Pixels, params: AugmentParams) -> Pixels:
        """Augment uint8 [B, H, W, C] → uint8 [B, S, S, C] in this thread; safe to call from any number of threads."""
        return (self._external or self._cpu_engine)(images, params)


@dataclass(frozen=True)
class MixParams:
    """Sampled parameters of B images: `method` is NONE, MIXUP or CUTMIX; `partner` int64 [B], the index of the image
    that each is mixed with; `lam` float64 [B], the share that an image keeps of itself, in CutMix of its pixels; `box`
    int64 [B, 4], CutMix's top, left, bottom, right."""

    method: str
    partner: npt.NDArray[np.int64]
    lam: npt.NDArray[np.float64]
    box: npt.NDArray[np.int64]


class Mixing:
    """Mixes batches, on their device, by parameters that are a function of (seed, epoch, number, first) alone.

    Probabilities that add up to more than 1 are scaled down to it; an alpha of 0 turns a method off.
    """

    def __init__(self, config: TrainConfig, classes: int, task: str) -> None:
        self._seed, self._classes, self._is_multi_label = config.seed, classes, task == MULTI
        self._alphas = {MIXUP: config.mixup, CUTMIX: config.cutmix}
        mixup = max(0.0, config.mixup_probability) if config.mixup > 0 else 0.0
        cutmix = max(0.0, config.cutmix_probability) if config.cutmix > 0 else 0.0
        total = max(1.0, mixup + cutmix)
        self._mixup_probability, self._cutmix_probability = mixup / total, cutmix / total

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, epoch: int, number: int, first: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix float [B, C, H, W] and int64 [B] or uint8 [B, classes] → images and targets, float32 [B, classes] that
        add up to 1 (to the mean number of labels where there are several); both unchanged where nothing is mixed.

        `first` is the index of the first row in the global batch, where several devices share one: all mix by the same
        method, each among its own images.
        """
        params = self.make_params(len(images), images.shape[2], images.shape[3], epoch, number, first)
        if params.method == NONE:
            return images, labels
        partner = copy_to_device(params.partner, images.device)
        lam = copy_to_device(params.lam.astype(np.float32), images.device)
        targets = self._make_targets(labels)
        targets = lam[:, None] * targets + (1 - lam[:, None]) * targets[partner]
        if params.method == CUTMIX:
            return _paste_boxes(images, partner, copy_to_device(params.box, images.device)), targets
        weight = lam[:, None, None, None]
        return (weight * images + (1 - weight) * images[partner]).to(images.dtype), targets

    def make_params(self, count: int, height: int, width: int, epoch: int, number: int, first: int = 0) -> MixParams:
        """Sample parameters for the `count` images of a batch. One image alone has no partner."""
        method = self._choose_method(epoch, number)
        rng = np.random.default_rng([self._seed, epoch, number, _SEED_STREAM, first])
        order = rng.permutation(count)
        partner = np.empty(count, np.int64)
        partner[order] = np.roll(order, -1)  # one cycle through all of them, so that none is its own partner
        box = np.zeros((count, 4), np.int64)
        if method == NONE or count < 2:
            return MixParams(NONE, partner, np.ones(count), box)
        lam = rng.beta(self._alphas[method], self._alphas[method], count)
        if method == CUTMIX:
            box = _sample_boxes(rng, lam, height, width)
            lam = 1 - (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) / (height * width)
        return MixParams(method, partner, lam, box)

    def _choose_method(self, epoch: int, number: int) -> str:
        uniform = np.random.default_rng([self._seed, epoch, number, _SEED_STREAM]).random()
        if uniform < self._mixup_probability:
            return MIXUP
        return CUTMIX if uniform < self._mixup_probability + self._cutmix_probability else NONE

    def _make_targets(self, labels: torch.Tensor) -> torch.Tensor:
        """Return float32 [B, classes], 1 at every label of an image."""
        import torch

        if self._is_multi_label:
            return labels.float()
        targets = torch.zeros(len(labels), self._classes, device=labels.device)
        return targets.scatter_(1, labels[:, None], 1.0)


def _sample_boxes(
    rng: np.random.Generator, lam: npt.NDArray[np.float64], height: int, width: int
) -> npt.NDArray[np.int64]:
    """Sample boxes int64 [B, 4] of the image's shape with an area of 1 - lam, centered on any pixel and clipped."""
    side = np.sqrt(1 - lam)
    box_height, box_width = (height * side).astype(np.int64), (width * side).astype(np.int64)
    y, x = rng.integers(height, size=len(lam)), rng.integers(width, size=len(lam))
    top, left = y - box_height // 2, x - box_width // 2
    edges = (np.clip(top, 0, height), np.clip(left, 0, width))
    return np.stack([*edges, np.clip(top + box_height, 0, height), np.clip(left + box_width, 0, width)], 1)


def _paste_boxes(images: torch.Tensor, partner: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Replace the pixels within each box by the partner's."""
    import torch

    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    in_rows = (rows >= box[:, :1]) & (rows < box[:, 2:3])
    in_columns = (columns >= box[:, 1:2]) & (columns < box[:, 3:])
    in_box = in_rows[:, :, None] & in_columns[:, None, :]
    return torch.where(in_box[:, None], images[partner], images)
