"""Train: tensors in, a classifier out."""

from ..step.step import Step
from .config import TrainConfig

STEP = Step(
    "train",
    TrainConfig,
    "imagemill.components.train.train:train",
    "Train a torchvision backbone on tensors and keep the epoch with the best validation macro-F1.",
    needs=("torch", "torchvision", "safetensors", "tensorboard", "sklearn", "scipy"),
)
