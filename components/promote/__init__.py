"""Promote a better model to champion, and write the run's report."""

from ..step.step import Step
from .config import PromoteConfig

STEP = Step(
    "promote",
    PromoteConfig,
    "imagemill.components.promote.promote:promote",
    "Compare challenger and champion, append to the promotions log if the challenger is better, write the report.",
    needs=("jinja2", "matplotlib"),
)
