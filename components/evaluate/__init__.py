"""Evaluate the challenger, and the champion beside it, on the same current test split."""

from ..step.step import Step
from .config import EvaluateConfig

STEP = Step(
    "evaluate",
    EvaluateConfig,
    "imagemill.components.evaluate.evaluate:evaluate",
    "Run a model over the test split once, and the champion over the same images.",
    needs=("torch", "torchvision", "safetensors", "cleanlab", "sklearn"),
)
