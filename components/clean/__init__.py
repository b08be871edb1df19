"""Clean: every image decoded once; what is kept is valid, labelled, split and shuffled, the rest has a reason."""

from imagemill.components.clean.config import CleanConfig
from imagemill.components.store.step import Step

STEP = Step(
    "clean",
    CleanConfig,
    "imagemill.components.clean.clean:clean",
    "Decode every image, reject what is broken or double, encode labels, split and shuffle.",
)
