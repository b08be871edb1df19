"""The gate's rule: is the challenger credibly better than the champion on the same test images?

Both models are compared image by image on the test images that neither was trained or validated on, in the classes that
the champion knows. The challenger is **better** if

1. its score (`metric`, macro-F1 by default) is higher than the champion's by more than `min_gain`, by the sign-flip
   test (sign_flip.py) of the images' contributions (difference.py) at the level that earlier decisions on the same
   images have left (wear.py);
2. no class's recall has fallen by more than `max_class_drop`, its calibration error has not risen by more than
   `max_ece_rise`, and it is not slower by more than `max_slowdown` (guards.py).

It is **worse** if its score is lower at `level`, and otherwise **not shown to be better**. Simulated error rates and
power are in tests/benchmarks/README.md: with the default level of 5% an equal model passes in fewer than 2% of cases,
one that is a point worse in fewer than 1%. A first model becomes champion if it is better than naming the most frequent
class each time (evaluate's `chance`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ..store.labels import SINGLE
from ..store.manifest import Dataset
from .config import PromoteConfig
from .difference import NAMES, Difference, difference
from .guards import fallen_classes, slower, worse_calibration
from .paired import Hashes, Mask, Pair
from .sign_flip import mcnemar, tail_probability
from .wear import count_uses, level_left, sketch

BETTER, NOT_SHOWN_BETTER, WORSE, NOT_COMPARABLE = "better", "not_shown_better", "worse", "not_comparable"
TOO_FEW_IMAGES, ALREADY_CHAMPION, ROLLED_BACK = "too_few_images", "already_champion", "rolled_back"
FIRST, NO_BETTER_THAN_CHANCE = "first", "no_better_than_chance"


@dataclass(frozen=True)
class Verdict:
    """One of the words above, the sentence with its numbers, and whether the challenger shall be champion.

    `challenger` and `champion` are their scores on the images that count (of a first model on all test images, and
    None). `numbers` are those of the comparison, for the log: see `compare`.
    """

    verdict: str
    reason: str
    promoted: bool
    challenger: float
    champion: float | None
    min_gain: float
    metric: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        record = asdict(self)
        numbers: dict[str, Any] = record.pop("numbers")
        return numbers | record


@dataclass(frozen=True)
class Champion:
    """The reigning champion: its evaluation on the challenger's test images, the number of its promotion, the records
    of comparisons with it so far, and the content of the images on which it was promoted, if that is known."""

    evaluation: Dataset
    promotion: int
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    promoted_on: Hashes | None = None


def judge_first(challenger: Dataset, config: PromoteConfig, lost: int = 0) -> Verdict:
    """Judge a model that there is no champion to compare with. `lost`: the promotion whose model is gone, or 0."""
    score, chance = _score(challenger, config.metric), challenger.manifest.extra.get("chance", {})
    nobody = f"the model of promotion {lost} is gone" if lost else "there was no champion"
    reason = f"{NAMES[config.metric]} {score:.4f}; {nobody}"
    better = bool(chance.get("better", True))
    if not better:
        reason = f"{NAMES[config.metric]} {score:.4f}; {chance['why']}; {nobody}"
        if config.promote == "auto":
            reason += ", and this model becomes none"
    word = FIRST if better else NO_BETTER_THAN_CHANCE
    verdict = Verdict(word, reason, better, score, None, config.min_gain, config.metric)
    return _by_policy(verdict, config.promote)


def judge(challenger: Dataset, champion: Champion, config: PromoteConfig) -> Verdict:
    """Judge a challenger against the champion; both evaluations are of the same clean dataset's test split."""
    verdict = _by_policy(_compare(challenger, champion, config), config.promote)
    doubt = challenger.manifest.extra.get("chance", {}).get("why", "")
    return replace(verdict, reason=f"{verdict.reason}; {doubt}") if verdict.promoted and doubt else verdict


def _by_policy(verdict: Verdict, policy: str) -> Verdict:
    if policy == "always" and not verdict.promoted:
        return replace(verdict, promoted=True, reason=f"{verdict.reason}; promoted all the same: promote is always")
    if policy == "never" and verdict.promoted:
        return replace(verdict, promoted=False, reason=f"{verdict.reason}; not promoted: promote is never")
    if not verdict.promoted and verdict.champion is not None:
        return replace(verdict, reason=f"{verdict.reason}; the champion stays")
    return verdict


def _compare(challenger: Dataset, champion: Champion, config: PromoteConfig) -> Verdict:
    theirs = champion.evaluation
    whole = Verdict(
        NOT_COMPARABLE, "", False, _score(challenger, config.metric), _score(theirs, config.metric),
        config.min_gain, config.metric,
    )  # fmt: skip
    if why := _why_not_comparable(challenger, theirs):
        return replace(whole, reason=why)
    pair = Pair.read(challenger, theirs)
    if pair.images < config.min_test_images or not len(pair.labels.classes):
        reason = f"{_images(pair)} left to compare on, and {config.min_test_images:,} are needed (min_test_images)"
        return replace(whole, verdict=TOO_FEW_IMAGES, reason=reason)
    return _judge_pair(pair, challenger, champion, config)


def _judge_pair(pair: Pair, challenger: Dataset, champion: Champion, config: PromoteConfig) -> Verdict:
    images = sketch(pair.content)
    uses = count_uses(images, challenger.parent_uri("model").rpartition("/")[2], champion.comparisons)
    found, level = difference(pair, config.metric), level_left(config.level, uses)
    p = p_value(found, config.min_gain)
    falls = [
        fallen_classes(pair, config.max_class_drop, config.level),
        worse_calibration(pair, config.max_ece_rise),
        slower(challenger, champion.evaluation, config.max_slowdown),
    ]
    stopped = [words for words in falls if words]
    more = f"more than {config.min_gain:+g}" if config.min_gain else "more"
    counted = (
        f"{NAMES[config.metric]} {found.challenger:.4f} against the champion's {found.champion:.4f} on {_images(pair)}"
    )
    sentence = f"{counted}, {_gain(found)}"
    at = f"p {_p(p)}, needs {_p(level)}" + (f" after {uses:.3g} comparisons on these images" if uses else "")
    if p <= level and not stopped:
        word, reason = BETTER, f"{sentence}: credibly {more} ({at})"
    elif p <= level:
        word, reason = NOT_SHOWN_BETTER, f"{sentence}: credibly {more} ({at}), but {', and '.join(stopped)}"
    elif (lower := p_value(found, 0.0, lower=True)) <= config.level:
        word, reason = WORSE, f"{sentence}: credibly less (p {_p(lower)})"
    else:
        word, reason = NOT_SHOWN_BETTER, f"{sentence}: not credibly {more} ({at})"
    only = [int((ours & ~theirs).sum()) for ours, theirs in (pair.right, pair.right[::-1])]
    reason += f"; top-1: {only[1]} images won, {only[0]} lost (McNemar's p {_p(mcnemar(*only))})"
    numbers: dict[str, Any] = {
        "gain": found.gain, "interval": list(found.interval()), "p": p, "level": level, "uses": round(uses, 3),
        "images": pair.images, "left_out": pair.left_out, "won": only[1], "lost": only[0],
        "mcnemar": mcnemar(*only), "sketch": images,
    }  # fmt: skip
    if fresh := _on_fresh_images(pair, champion, config):
        reason, numbers = f"{reason}; {fresh[0]}", numbers | fresh[1]
    if pair.new:
        said = ", ".join(f"{one.name!r} ({one.recognized} of {one.images} images recognized)" for one in pair.new)
        reason += f"; new to the champion and not compared: {said}"
    return Verdict(
        word, reason, word == BETTER, found.challenger, found.champion, config.min_gain, config.metric, numbers
    )


def p_value(found: Difference, than: float, lower: bool = False) -> float:
    """Return the p value of a gain of more than `than`, or, `lower`, of a loss of more than that."""
    sign = -1 if lower else 1
    total = sign * float(found.contributions.sum())
    return tail_probability(found.contributions, total - than, found.unseen)


def _on_fresh_images(pair: Pair, champion: Champion, config: PromoteConfig) -> tuple[str, dict[str, Any]] | None:
    """The verdict on the images that joined the test split after the champion was promoted, which have decided
    nothing yet; None where that is not known, or where all or none of them are new."""
    if champion.promoted_on is None:
        return None
    fresh: Mask = ~np.isin(pair.content, champion.promoted_on)
    number = int(fresh.sum())
    if not number or number == pair.images:
        return None
    since = f"new since promotion {champion.promotion}"
    if number < config.min_test_images:
        return f"{number} of the images are {since}, too few to compare on alone", {"fresh_images": number}
    found = difference(pair.select(fresh), config.metric)
    p, level = p_value(found, config.min_gain), level_left(config.level, 0)
    word = "better" if p <= level else "not shown to be better"
    if p > level and p_value(found, 0.0, lower=True) <= config.level:
        word = "worse"
    numbers = {"fresh_images": number, "fresh_gain": found.gain, "fresh_p": p, "fresh_verdict": word}
    return f"on the {number:,} images that are {since} alone {_gain(found)}: {word} (p {_p(p)})", numbers


def _why_not_comparable(challenger: Dataset, champion: Dataset) -> str:
    tasks = [str(one.manifest.extra.get("model_task", SINGLE)) for one in (challenger, champion)]
    if tasks[0] != tasks[1]:
        return f"this model is {tasks[0]}-label, the champion {tasks[1]}-label"
    if unknown := challenger.manifest.extra.get("seen", {}).get("unknown"):
        return f"which images this model was trained on is not known: {unknown[0]} is gone"
    known, today = set(champion.manifest.extra["model_classes"]), challenger.manifest.classes
    if not any(name in known for name in today):
        return "the champion knows none of today's classes"
    return ""


def _score(evaluation: Dataset, metric: str) -> float:
    """A score on all test images."""
    return float(evaluation.manifest.extra["metrics"].get(metric, 0.0))


def _images(pair: Pair) -> str:
    text = f"{pair.images:,} test image{'s' if pair.images != 1 else ''}"
    return f"{text} ({pair.left_out:,} more were seen in training)" if pair.left_out else text


def _gain(found: Difference) -> str:
    low, high = found.interval()
    return f"{found.gain:+.4f} ({low:+.4f} to {high:+.4f})"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.0095 else f"{value:.1g}"
