"""Random augmentation, each image with parameters of its own: sampled here, applied on the CPU or on the device.

The parameters of a batch are a function of (seed, epoch, number of the batch) alone, see params.py; the engines compute
pixels, see cpu_engine.py and device_engine.py. A pipeline of another library instead of both is in external.py.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...dataset.kinds import ImageSpec
from ...imaging.decoder import Pixels
from ...imaging.pixel_options import COLORS
from ..config import TrainConfig
from .cpu_engine import CpuEngine
from .external import ExternalEngine, Pipeline
from .params import AugmentParams, InputSpec, make_params, make_seed_params

if TYPE_CHECKING:
    import torch

    from .device_engine import DeviceEngine


class Augmentation:
    """The augmentation of a config that a recipe has filled in, for images as a tensors manifest's `image` describes
    them.

    Of images that are stored larger than the model's input, crops are taken of all that is stored; without crops, the
    window is shifted from the center as far as the stored margin allows.

    Args:
        device: where training runs, cpu or cuda.
        pipeline: an object or a function, as in external.py, that replaces the config's augmentation.
    """

    def __init__(self, config: TrainConfig, image: ImageSpec, device: str, pipeline: Pipeline | Any = None) -> None:
        height, width, channels = image.shape
        self.size = image.side
        pipeline = config.augment_pipeline if pipeline is None else pipeline
        self._external = ExternalEngine(pipeline, (height, width, channels), self.size) if pipeline else None
        self.runs_on_device = device.partition(":")[0] == "cuda" and self._external is None
        self._config, self._device = config, device
        self._spec = InputSpec(height, width, self.size, image.color)
        self._color_channels = min(COLORS[image.color], channels)
        self._erase_value = np.clip(np.round(255 * np.asarray(image.mean, np.float64)), 0, 255).astype(np.uint8)
        self._cpu_engine = CpuEngine(self.size, self._color_channels, self._erase_value)

    def make_params(self, epoch: int, number: int, count: int) -> AugmentParams:
        """Sample parameters for all `count` images of the global batch `number`."""
        if self._external:
            return make_seed_params(self._config.seed, epoch, number, count)
        return make_params(self._config, self._spec, epoch, number, count)

    def apply_on_cpu(self, images: Pixels, params: AugmentParams) -> Pixels:
        """Augment uint8 [B, H, W, C] → uint8 [B, S, S, C] in this thread; safe to call from any number of threads."""
        return (self._external or self._cpu_engine)(images, params)

    def apply_on_device(self, images: torch.Tensor, params: AugmentParams) -> torch.Tensor:
        """Augment uint8 [B, H, W, C] → uint8 [B, S, S, C], both on the device."""
        return self._device_engine(images, params)

    @cached_property
    def _device_engine(self) -> DeviceEngine:
        from .device_engine import DeviceEngine

        return DeviceEngine(self.size, self._color_channels, self._erase_value, self._device)
