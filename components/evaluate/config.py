"""What can be said about evaluating."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..store.config import DEVICE, StepConfig, option

VERSION = 1
"""Raised when the same model and images must give other predictions."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(StepConfig):
    """Nothing here counts: an evaluation is a function of the model and the test images."""

    PARENTS: ClassVar[tuple[str, ...]] = ("model", "clean")

    model: str = option("", "URI of the model", counts=False)
    clean: str = option("", "URI of the clean dataset whose test split counts", counts=False)
    device: str = option("auto", DEVICE, counts=False, choices=("auto", "cpu", "cuda"))
    eval_batch_size: int = option(128, "images a batch", counts=False, low=1, high=65_536)
