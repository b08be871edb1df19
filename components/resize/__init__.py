"""Resize: every clean image to one fixed shape, stored as bytes that a trainer can take as they are."""

from ..store.step import Step
from .config import ResizeConfig

STEP = Step(
    "resize",
    ResizeConfig,
    "imagemill.components.resize.resize:resize",
    "Decode and resize every clean image with Ray and store the pixels in shuffled order.",
    needs=("torch", "ray"),
)
