"""Configuration of the promote step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..step.config import METRIC_HELP, METRICS, StepConfig, option
from .registry import check_registry


@dataclass(frozen=True, kw_only=True)
class PromoteConfig(StepConfig):
    """Options of the gate and the registry."""

    PARENTS: ClassVar[tuple[str, ...]] = ("evaluation",)

    evaluation: str = option("", "URI of the challenger's evaluation", in_fingerprint=False)
    champion_evaluation: str = option(
        "", "URI of the champion's evaluation on the same test split", in_fingerprint=False
    )
    min_gain: float = option(
        0.005, "the challenger must gain significantly more than this on the champion's score", low=0, high=1
    )
    promote: str = option(
        "auto", "auto: if it is better; always; never: compare and report only", choices=("auto", "always", "never")
    )
    metric: str = option(
        "macro_f1",
        METRIC_HELP,
        choices=METRICS,
    )
    level: float = option(
        0.05,
        "family-wise error rate: probability that any of about 52 weekly challengers which gain at most min_gain is "
        "promoted, on unchanged test images; each comparison gets a shrinking share of it",
        low=1e-6,
        high=0.5,
    )
    max_class_drop: float = option(
        0.1, "no class may lose more of its recall, as far as its images can show it", low=0, high=1
    )
    max_ece_rise: float = option(0.05, "the calibration error may not rise by more", low=0, high=1)
    max_slowdown: float = option(
        0.0, "an image may not take so many times as long, as measured by evaluate; 0 is any", low=0, high=1000
    )
    min_test_images: int = option(30, "test images that neither model has seen, to compare on", low=1, high=10**9)
    registry: str = option(
        "",
        "where champions are registered: mlflow+https://… or kubeflow+http://… (default: MLFLOW_TRACKING_URI, where it "
        "is an address)",
        in_fingerprint=False,
    )

    def check(self) -> None:
        super().check()
        check_registry(self.registry)
