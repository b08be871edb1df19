"""What can be said about promoting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..store.config import StepConfig, option


@dataclass(frozen=True, kw_only=True)
class PromoteConfig(StepConfig):
    """The gate's rule."""

    PARENTS: ClassVar[tuple[str, ...]] = ("evaluation",)

    evaluation: str = option("", "URI of the challenger's evaluation", counts=False)
    champion_evaluation: str = option("", "URI of the champion's evaluation on the same test split", counts=False)
    min_gain: float = option(0.005, "the challenger must beat the champion's macro-F1 by so much", low=0, high=1)
    promote: str = option(
        "auto", "auto: if it is better; always; never: compare and report only", choices=("auto", "always", "never")
    )
