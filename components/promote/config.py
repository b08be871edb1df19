"""Configuration of the promote step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..step.config import METRIC_HELP, METRICS, StepConfig, option
from .registry import check_registry

UNLESS_WORSE, SIGNIFICANTLY_BETTER, ALWAYS, NEVER = POLICIES = ("unless-worse", "better", "always", "never")
DEFAULT_LEVELS = {SIGNIFICANTLY_BETTER: 0.05}


@dataclass(frozen=True, kw_only=True)
class PromoteConfig(StepConfig):
    """Options of the gate and the registry."""

    PARENTS: ClassVar[tuple[str, ...]] = ("evaluation",)

    evaluation: str = option("", "URI of the challenger's evaluation", in_fingerprint=False)
    champion_evaluation: str = option(
        "", "URI of the champion's evaluation on the same test split", in_fingerprint=False
    )
    promote: str = option(
        UNLESS_WORSE,
        "unless-worse: unless it is credibly worse, or of a changed configuration and not better; better: if it is "
        "credibly better by more than min_gain; always; never: compare and report only",
        choices=POLICIES,
    )
    level: float | None = option(
        None,
        "one-sided level at which a difference is credible, a probability of error (default: 0.2 for unless-worse, "
        "0.05 for better)",
        low=1e-6,
        high=0.5,
    )
    min_gain: float = option(0.005, "what the challenger has to gain where promote is better", low=0, high=1)
    metric: str = option(
        "macro_f1",
        METRIC_HELP,
        choices=METRICS,
    )
    max_class_drop: float | None = option(
        None,
        "a challenger of which a class loses more of its recall, as far as its images can show it, is refused "
        "(default: a warning from 0.1)",
        low=0,
        high=1,
    )
    max_ece_rise: float | None = option(
        None,
        "a challenger whose calibration error rises by more is refused (default: a warning from 0.05)",
        low=0,
        high=1,
    )
    max_slowdown: float | None = option(
        None,
        "a challenger that takes so many times as long for an image, as measured by evaluate, is refused (default: a "
        "warning from 2)",
        low=1,
        high=1000,
    )
    min_test_images: int = option(
        30, "test images that neither model has seen; with fewer, the validation scores decide", low=1, high=10**9
    )
    registry: str = option(
        "",
        "where champions are registered: mlflow+https://… or kubeflow+http://… (default: MLFLOW_TRACKING_URI, where it "
        "is an address)",
        in_fingerprint=False,
    )

    def check(self) -> None:
        super().check()
        check_registry(self.registry)

    @property
    def resolved_level(self) -> float:
        """Return the level, by default that of the policy."""
        return DEFAULT_LEVELS.get(self.promote, 0.2) if self.level is None else self.level
