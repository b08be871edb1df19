"""Resize: decode every clean image to one fixed shape and store the pixels, ready for a trainer."""

from ..step.step import Step
from .config import ResizeConfig

STEP = Step(
    "resize",
    ResizeConfig,
    "imagemill.components.resize.resize:resize",
    "Decode and resize every clean image with Ray and store the pixels in shuffled order.",
    needs=("torch", "ray"),
)
