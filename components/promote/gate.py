"""The gate's rule as a pure function of two evaluations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..store.labels import SINGLE
from ..store.manifest import Dataset

METRIC = "macro_f1"


@dataclass(frozen=True)
class Verdict:
    """`verdict` in one or two words, `reason` with the numbers. `champion` is None where there is none to compare."""

    verdict: str
    reason: str
    promoted: bool
    challenger: float
    champion: float | None
    min_gain: float
    metric: str = METRIC

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(challenger: Dataset, champion: Dataset | None, min_gain: float, policy: str, reigning: int = 0) -> Verdict:
    """Whether the challenger shall reign. Both evaluations must be of the same clean dataset's test split.

    `reigning` is the number of the promotion that reigns, 0 for none: it may be there although its model is gone.
    Models with different class lists are not comparable, nor are a single-label and a multi-label one: the champion
    stays, unless the policy is `always`. Who reigns without being better than chance has a reason that says so.
    """
    new = float(challenger.manifest.extra["metrics"][METRIC])
    old = float(champion.manifest.extra["metrics"][METRIC]) if champion else None

    def verdict(word: str, reason: str, promoted: bool) -> Verdict:
        doubt = challenger.manifest.extra.get("chance", {}).get("why", "")
        return Verdict(word, f"{reason}; {doubt}" if promoted and doubt else reason, promoted, new, old, min_gain)

    if champion is None or old is None:
        nobody = f"the model of promotion {reigning} is gone" if reigning else "there was no champion"
        if policy == "never":
            return verdict("never", f"{METRIC} {new:.4f}; {nobody}, and promote is never", False)
        return verdict("promoted" if reigning else "first", f"{METRIC} {new:.4f}; {nobody}", True)
    numbers = f"{METRIC} {new:.4f} against {old:.4f}, {new - old:+.4f} (needs +{min_gain:g}){_chance(challenger, old)}"
    if policy == "always":
        return verdict("promoted", f"{numbers}; promote is always", True)
    if _task(challenger) != _task(champion):
        reason = f"this model is {_task(challenger)}-label, the champion {_task(champion)}-label; the champion stays"
        return verdict("not comparable", reason, False)
    if _classes(challenger) != _classes(champion):
        return verdict("not comparable", "the models have different class lists; the champion stays", False)
    if policy == "never":
        return verdict("never", f"{numbers}; promote is never", False)
    # Rounded, so that a gain of just min_gain counts in spite of binary fractions; and no gain at all never does.
    better = new > old and round(new - old, 9) >= min_gain
    return verdict("promoted" if better else "kept", numbers, better)


def _chance(challenger: Dataset, old: float) -> str:
    """Whether the difference is within what chance in the choice of test images makes of the challenger's score."""
    between = challenger.manifest.extra.get("intervals", {}).get(METRIC)
    if not between:
        return ""
    where = "within" if between[0] <= old <= between[1] else "beyond"
    return f", {where} its 95% interval of {between[0]:.4f} to {between[1]:.4f}"


def _classes(evaluation: Dataset) -> list[str]:
    """The class list of the evaluated model, as its evaluation recorded it."""
    return list(evaluation.manifest.extra["model_classes"])


def _task(evaluation: Dataset) -> str:
    """The task of the evaluated model; evaluations of earlier releases, which say nothing, are of single-label ones."""
    return str(evaluation.manifest.extra.get("model_task", SINGLE))
