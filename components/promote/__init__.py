"""Promote: the gate that lets a better model reign, and the run's report."""

from imagemill.components.promote.config import PromoteConfig
from imagemill.components.store.step import Step

STEP = Step(
    "promote",
    PromoteConfig,
    "imagemill.components.promote.promote:promote",
    "Compare challenger and champion, append to the promotions log if the challenger is better, write the report.",
)
