"""Clean: every image decoded once; what is kept is valid, labeled, split and shuffled, the rest has a reason."""

from ..step.step import Step
from .config import CleanConfig

STEP = Step(
    "clean",
    CleanConfig,
    "imagemill.components.clean.clean:clean",
    "Decode every image once: standardize, measure, reject what is broken, double or leaking, encode labels, split.",
    needs=("jinja2", "scipy"),
)
