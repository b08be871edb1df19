"""What is random per epoch, each image with parameters of its own: drawn here, carried out on the CPU or on the device.

What is drawn for a batch is a function of (seed, epoch, number of the batch) alone, see drawing.py; the engines compute
pixels, see on_cpu.py and on_device.py. A pipeline of somebody else's instead of both is external.py's.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store.choices import COLORS
from ..store.images import Pixels
from ..store.tensors import input_size
from . import drawing
from .config import TrainConfig
from .drawing import Frame
from .drawn import Drawn
from .external import External, Pipeline
from .on_cpu import CpuEngine

if TYPE_CHECKING:
    import torch

    from .on_device import DeviceEngine


class Augmentation:
    """By a config that a recipe has filled in, for images as a tensors manifest's `image` describes them; `device` is
    where training runs, cpu or cuda.

    Of images that are stored larger than the model's input the crops are taken of all that is stored; without crops,
    of the centre and anywhere around it, as far as there is something. `pipeline`: instead of what the config says an
    object or a function, as external.py takes it.
    """

    def __init__(
        self, config: TrainConfig, image: dict[str, Any], device: str, pipeline: Pipeline | Any = None
    ) -> None:
        height, width, channels = image["shape"]
        self.size = input_size(image)
        chosen = config.augment_pipeline if pipeline is None else pipeline
        self._external = External(chosen, (height, width, channels), self.size) if chosen else None
        self.on_device = device.partition(":")[0] == "cuda" and self._external is None
        self._config, self._where = config, device
        self._frame = Frame(height, width, self.size, image["color"])
        self._colors = min(COLORS[image["color"]], channels)
        self._erase_value = np.clip(np.round(255 * np.asarray(image["mean"], np.float64)), 0, 255).astype(np.uint8)
        self._cpu = CpuEngine(self.size, self._colors, self._erase_value)

    def draw(self, epoch: int, number: int, count: int) -> Drawn:
        """For all `count` images of the global batch `number`."""
        if self._external:
            return drawing.plain(self._config.seed, epoch, number, count)
        return drawing.draw(self._config, self._frame, epoch, number, count)

    def host(self, images: Pixels, drawn: Drawn) -> Pixels:
        """uint8 [B, H, W, C] → uint8 [B, S, S, C] in this thread; any number of threads may be here."""
        return (self._external or self._cpu)(images, drawn)

    def device(self, images: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        """uint8 [B, H, W, C] → uint8 [B, S, S, C], both on the device."""
        return self._on_device(images, drawn)

    @cached_property
    def _on_device(self) -> DeviceEngine:
        from .on_device import DeviceEngine

        return DeviceEngine(self.size, self._colors, self._erase_value, self._where)
