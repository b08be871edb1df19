"""What can be said about training."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from ..store import presets
from ..store import uri as uris
from ..store.backbones import check_backbone, check_named_weights
from ..store.config import DEVICE, StepConfig, option
from ..store.errors import wrong

VERSION = 1
"""Raised when the same tensors and config must give another model."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(StepConfig):
    """The network, the schedule, and what is random at load time."""

    PARENTS: ClassVar[tuple[str, ...]] = ("tensors",)

    tensors: str = option("", "URI of the tensors", counts=False)
    preset: str = option("photo", presets.HELP, counts=False, pipeline=True, choices=presets.NAMES)
    backbone: str = option("resnet18", "a torchvision classification model by name", pipeline=True)
    weights: str = option(
        "",
        "pretrained weights: a torchvision name (DEFAULT, IMAGENET1K_V2), the URI of a .safetensors file or of a model "
        "(default: none)",
        counts=False,  # by its content, see train.py
        pipeline=True,
    )
    epochs: int = option(8, "passes over the training images", pipeline=True, low=1, high=100_000)
    batch_size: int = option(32, "images a step", pipeline=True, low=2, high=65_536)
    learning_rate: float = option(0.001, "AdamW's peak learning rate", pipeline=True, low=1e-8, high=10)
    seed: int = option(0, "what everything random in training is drawn from", pipeline=True, low=0, high=2**31 - 1)
    weight_decay: float = option(0.01, "AdamW's decoupled weight decay", low=0, high=10)
    warmup: float = option(0.1, "share of all steps in which the learning rate rises, linearly", low=0, high=0.9)
    label_smoothing: float = option(0.05, "share of the target spread over the other classes", low=0, high=0.9)
    clip_norm: float = option(1.0, "gradients are clipped to this norm; 0 leaves them", low=0)
    crop_scale: float = option(
        0.0,
        "random resized crop: smallest share of the area; 1 turns it off, 0 leaves it to the preset (0.6)",
        low=0.01,
        high=1,
        by_preset=True,
    )
    flip: str = option(
        "auto",
        "mirror half of the images; never for text, digits or arrows (default: by the preset; true)",
        choices=("auto", "true", "false"),
        by_preset=True,
    )
    device: str = option("auto", DEVICE, counts=False, choices=("auto", "cpu", "cuda"))
    precision: str = option(
        "auto",
        "arithmetic: bfloat16 where the device is fast at it, else float32",
        choices=("auto", "float32", "bfloat16"),
    )

    def check(self) -> None:
        super().check()
        check_backbone(self.backbone)
        if self.weights_are_named:
            check_named_weights(self.backbone, self.weights)
        elif self.weights and uris.scheme(self.weights) not in ("", "file", "s3"):
            raise wrong(
                "weights", "a torchvision name, or the URI of a .safetensors file or model", uris.safe(self.weights)
            )

    @property
    def flips(self) -> bool:
        """Half of the images are mirrored."""
        return self.flip == "true"

    @property
    def weights_are_named(self) -> bool:
        """A torchvision name rather than a URI."""
        return bool(re.fullmatch(r"[A-Z][A-Z0-9_]*", self.weights))
