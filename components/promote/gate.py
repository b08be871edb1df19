"""Judge whether the challenger is significantly better than the champion on the same test images.

Both models are compared image by image on the test images that neither was trained or validated on, in the classes that
the champion knows. The challenger is **better** if

1. its score (`metric`, macro-F1 by default) is higher than the champion's by more than `min_gain`, by the sign-flip
   test of the images' contributions at the level that earlier decisions on the same images have left
   (score_difference.py);
2. no class's recall has fallen by more than `max_class_drop`, its calibration error has not risen by more than
   `max_ece_rise`, and it is not slower by more than `max_slowdown`. A class's drop counts if it is larger than
   the bound and significant: the sign test on the images that only one model recognizes, at `level` for all classes
   together (Bonferroni). An equal model is stopped with that probability at most; a drop is seen only in classes with
   images enough to show it (tests/benchmarks/README.md has the numbers).

It is **worse** if its score is lower at `level`, and otherwise **not shown to be better**. Simulated error rates and
power are in tests/benchmarks/README.md: with the default level of 5% an equal model passes in fewer than 2% of cases,
one that is a point worse in fewer than 1%. A first model becomes champion if it is better than naming the most frequent
class each time (evaluate's `chance`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ..dataset.kinds import EvaluationExtra
from ..dataset.manifest import Dataset
from ..dataset.records import Verdict
from ..metrics.calibration import ece
from .config import PromoteConfig
from .pairs import Hashes, Mask, PairedPredictions
from .score_difference import (
    METRIC_TITLES,
    ClassCounts,
    ScoreDifference,
    compute_difference,
    compute_level,
    compute_mcnemar_p_value,
    compute_sign_test_p_value,
    compute_tail_probability,
    count_comparisons,
    make_sketch,
)

BETTER, NOT_SHOWN_BETTER, WORSE, NOT_COMPARABLE = "better", "not_shown_better", "worse", "not_comparable"
TOO_FEW_IMAGES, ALREADY_CHAMPION, ROLLED_BACK = "too_few_images", "already_champion", "rolled_back"
FIRST, NO_BETTER_THAN_CHANCE = "first", "no_better_than_chance"
MAX_NAMED = 3
"""Classes that a sentence names."""


def describe_recall_drops(pair: PairedPredictions, bound: float, level: float) -> str:
    """Return the classes whose recall has fallen by more than `bound`, and significantly; empty if none."""
    counts = ClassCounts.count(pair)
    columns = (counts.support, counts.only_champion, counts.only_challenger)
    rows = zip(pair.classes, *(column.tolist() for column in columns), strict=True)
    present = [(name, images, lost, won) for name, images, lost, won in rows if images]
    fallen = [
        (name, images, lost, won)
        for name, images, lost, won in present
        if lost - won > bound * images and compute_sign_test_p_value(lost, won) <= level / len(present)
    ]
    if not fallen:
        return ""
    fallen.sort(key=lambda row: (row[3] - row[2]) / row[1])
    classes = ", ".join(
        f"{name!r} by {(lost - won) / images:.3f} ({lost} images lost, {won} won of {images})"
        for name, images, lost, won in fallen[:MAX_NAMED]
    )
    more = f" and {len(fallen) - MAX_NAMED} more classes" if len(fallen) > MAX_NAMED else ""
    return f"recall has fallen by more than {bound:g} in {classes}{more}"


def describe_calibration_rise(pair: PairedPredictions, bound: float) -> str:
    """Return by how much the expected calibration error has risen, if by more than `bound`; else empty."""
    champion, challenger = (
        ece(confidence, is_right) for confidence, is_right in zip(pair.confidence, pair.is_right, strict=True)
    )
    if challenger - champion <= bound:
        return ""
    return f"the calibration error has risen from {champion:.3f} to {challenger:.3f}, by more than {bound:g}"


def describe_slowdown(challenger: Dataset, champion: Dataset, bound: float) -> str:
    """Return how much longer the challenger takes for an image, if more than `bound` times as long; else empty.

    Empty also where `bound` is 0, and where the evaluations have no measurements with the same device and batch size.
    """
    throughput, champion_throughput = (_read_throughput(evaluation) for evaluation in (challenger, champion))
    if not bound or throughput is None or champion_throughput is None:
        return ""
    *device_and_batch, rate = throughput
    *champion_device_and_batch, champion_rate = champion_throughput
    if device_and_batch != champion_device_and_batch or champion_rate <= bound * rate:
        return ""
    times = champion_rate / rate
    return f"it takes {times:.1f} times as long for an image ({rate:,.0f} images/s, not {champion_rate:,.0f})"


def _read_throughput(evaluation: Dataset) -> tuple[str, int, float] | None:
    """Return (device, batch size, images/s of the network with one view)."""
    throughput = EvaluationExtra.of(evaluation.manifest).throughput
    if throughput is None or not throughput.network_one_view:
        return None
    return throughput.device, throughput.batch_size, throughput.network_one_view


@dataclass(frozen=True)
class ChampionHistory:
    """The champion's evaluation on the challenger's test images, the number of its promotion, the earlier verdicts on
    challengers of it, and the content hashes of the images on which it was promoted, if known."""

    evaluation: Dataset
    promotion: int
    verdicts: list[Verdict] = field(default_factory=list)
    promoted_on: Hashes | None = None


def judge_first(challenger: Dataset, config: PromoteConfig, lost_promotion: int = 0) -> Verdict:
    """Judge a model where there is no champion to compare it with.

    `lost_promotion`: the number of the last promotion if its model is gone, else 0.
    """
    score, chance = read_score(challenger, config.metric), EvaluationExtra.of(challenger.manifest).chance
    absence = f"the model of promotion {lost_promotion} is gone" if lost_promotion else "there was no champion"
    reason = f"{METRIC_TITLES[config.metric]} {score:.4f}; {absence}"
    beats_chance = chance is None or chance.better
    if chance and not beats_chance:
        reason = f"{METRIC_TITLES[config.metric]} {score:.4f}; {chance.why}; {absence}"
        if config.promote == "auto":
            reason += ", and there is none now"
    result = FIRST if beats_chance else NO_BETTER_THAN_CHANCE
    verdict = make_verdict(result, reason, config, score, None)
    return _apply_policy(verdict, config.promote)


def judge(challenger: Dataset, champion: ChampionHistory, config: PromoteConfig) -> Verdict:
    """Judge a challenger against the champion; both evaluations are of the same clean dataset's test split."""
    verdict = _apply_policy(_compare(challenger, champion, config), config.promote)
    chance = EvaluationExtra.of(challenger.manifest).chance
    if verdict.promoted and chance and chance.why:
        return replace(verdict, reason=f"{verdict.reason}; {chance.why}")
    return verdict


def make_verdict(result: str, reason: str, config: PromoteConfig, challenger: float, champion: float | None) -> Verdict:
    """Return a verdict; `result` is one of the constants above, the scores are those of the two models."""
    return Verdict(
        verdict=result,
        reason=reason,
        promoted=result in (BETTER, FIRST),
        challenger=challenger,
        champion=champion,
        min_gain=config.min_gain,
        metric=config.metric,
    )


def _apply_policy(verdict: Verdict, policy: str) -> Verdict:
    if policy == "always" and not verdict.promoted:
        return replace(verdict, promoted=True, reason=f"{verdict.reason}; promoted anyway: promote is always")
    if policy == "never" and verdict.promoted:
        return replace(verdict, promoted=False, reason=f"{verdict.reason}; not promoted: promote is never")
    if verdict.verdict == FIRST and verdict.promoted:
        return replace(verdict, reason=f"{verdict.reason}, so this model is promoted")
    if not verdict.promoted and verdict.champion is not None:
        return replace(verdict, reason=f"{verdict.reason}; the champion stays")
    return verdict


def _compare(challenger: Dataset, champion: ChampionHistory, config: PromoteConfig) -> Verdict:
    score, champion_score = (read_score(e, config.metric) for e in (challenger, champion.evaluation))
    if reason := _explain_not_comparable(challenger, champion.evaluation):
        return make_verdict(NOT_COMPARABLE, reason, config, score, champion_score)
    pair = PairedPredictions.read(challenger, champion.evaluation)
    if pair.images < config.min_test_images or not len(pair.labels.classes):
        images = _describe_images(pair)
        reason = f"{images} left to compare on, and {config.min_test_images:,} are needed (min_test_images)"
        return make_verdict(TOO_FEW_IMAGES, reason, config, score, champion_score)
    return _judge_pair(pair, challenger, champion, config)


def _judge_pair(
    pair: PairedPredictions, challenger: Dataset, champion: ChampionHistory, config: PromoteConfig
) -> Verdict:
    sketch = make_sketch(pair.content_hashes)
    comparisons = count_comparisons(sketch, challenger.parent_uri("model").rpartition("/")[2], champion.verdicts)
    difference, level = compute_difference(pair, config.metric), compute_level(config.level, comparisons)
    p = compute_p_value(difference, config.min_gain)
    guards = [
        describe_recall_drops(pair, config.max_class_drop, config.level),
        describe_calibration_rise(pair, config.max_ece_rise),
        describe_slowdown(challenger, champion.evaluation, config.max_slowdown),
    ]
    failed_guards = [sentence for sentence in guards if sentence]
    gain = f"more than {config.min_gain:+g}" if config.min_gain else "more"
    sentence = (
        f"{METRIC_TITLES[config.metric]} {difference.challenger:.4f} against the champion's {difference.champion:.4f} "
        f"on {_describe_images(pair)}, {_format_gain(difference)}"
    )
    test = f"p {_format_p(p)}, needs {_format_p(level)}"
    test += f" after {comparisons:.3g} comparisons on these images" if comparisons else ""
    if p <= level and not failed_guards:
        result, reason = BETTER, f"{sentence}: significantly {gain} ({test})"
    elif p <= level:
        result, reason = (
            NOT_SHOWN_BETTER,
            f"{sentence}: significantly {gain} ({test}), but {', and '.join(failed_guards)}",
        )
    elif (p_lower := compute_p_value(difference, 0.0, lower=True)) <= config.level:
        result, reason = WORSE, f"{sentence}: significantly less (p {_format_p(p_lower)})"
    else:
        result, reason = NOT_SHOWN_BETTER, f"{sentence}: not significantly {gain} ({test})"
    champion_right, challenger_right = pair.is_right
    won, lost = int((challenger_right & ~champion_right).sum()), int((champion_right & ~challenger_right).sum())
    mcnemar = compute_mcnemar_p_value(lost, won)
    reason += f"; top-1: {won} images won, {lost} lost (McNemar's p {_format_p(mcnemar)})"
    verdict = replace(
        make_verdict(result, reason, config, difference.challenger, difference.champion),
        gain=difference.gain, interval=list(difference.compute_interval()), p=p, level=level,
        uses=round(comparisons, 3), images=pair.images, left_out=pair.excluded, won=won, lost=lost,
        mcnemar=mcnemar, sketch=sketch,
    )  # fmt: skip
    verdict = _judge_new_images(verdict, pair, champion, config)
    if pair.new_classes:
        names = ", ".join(f"{c.name!r} ({c.recognized} of {c.images} images recognized)" for c in pair.new_classes)
        verdict = replace(verdict, reason=f"{verdict.reason}; new to the champion and not compared: {names}")
    return verdict


def compute_p_value(difference: ScoreDifference, min_gain: float, lower: bool = False) -> float:
    """Return the one-sided p value of a gain of more than `min_gain`, or with `lower` of a loss of more than that."""
    sign = -1 if lower else 1
    total = sign * float(difference.contributions.sum())
    return compute_tail_probability(difference.contributions, total - min_gain, difference.unobserved_variance)


def _judge_new_images(
    verdict: Verdict, pair: PairedPredictions, champion: ChampionHistory, config: PromoteConfig
) -> Verdict:
    """Append the verdict on only the test images that were added after the champion was promoted. Unchanged where these
    are not known, or are all of the images or none."""
    if champion.promoted_on is None:
        return verdict
    is_new: Mask = ~np.isin(pair.content_hashes, champion.promoted_on)
    images = int(is_new.sum())
    if not images or images == pair.images:
        return verdict
    since = f"new since promotion {champion.promotion}"
    if images < config.min_test_images:
        sentence = f"{images} of the images are {since}, too few to compare on alone"
        return replace(verdict, reason=f"{verdict.reason}; {sentence}", fresh_images=images)
    difference = compute_difference(pair.select(is_new), config.metric)
    p, level = compute_p_value(difference, config.min_gain), compute_level(config.level, 0)
    result = BETTER if p <= level else "not shown to be better"
    if p > level and compute_p_value(difference, 0.0, lower=True) <= config.level:
        result = WORSE
    gain = _format_gain(difference)
    sentence = f"on the {images:,} images that are {since} alone {gain}: {result} (p {_format_p(p)})"
    return replace(
        verdict, reason=f"{verdict.reason}; {sentence}", fresh_images=images, fresh_gain=difference.gain, fresh_p=p,
        fresh_verdict=result,
    )  # fmt: skip


def _explain_not_comparable(challenger: Dataset, champion: Dataset) -> str:
    """Return why two evaluations can't be compared, empty where they can."""
    own, other = (EvaluationExtra.of(evaluation.manifest) for evaluation in (challenger, champion))
    if own.model_task != other.model_task:
        return f"this model is {own.model_task}-label, the champion {other.model_task}-label"
    if own.seen.unknown:
        return f"which images this model was trained on is not known: {own.seen.unknown[0]} is gone"
    if set(other.model_classes).isdisjoint(challenger.manifest.classes):
        return "the champion knows none of today's classes"
    return ""


def read_score(evaluation: Dataset, metric: str) -> float:
    """Return a score on all test images; 0 where there are none.

    Balanced accuracy is the mean recall of the classes, which evaluations of several labels per image do not sum up.
    """
    extra = EvaluationExtra.of(evaluation.manifest)
    if metric == "balanced_accuracy" and metric not in extra.metrics:
        recalls = [scores.recall for scores in extra.per_class if scores.support]
        return sum(recalls) / max(1, len(recalls))
    return extra.metrics.get(metric, 0.0)


def _describe_images(pair: PairedPredictions) -> str:
    text = f"{pair.images:,} test image{'s' if pair.images != 1 else ''}"
    return f"{text} ({pair.excluded:,} more were seen in training)" if pair.excluded else text


def _format_gain(difference: ScoreDifference) -> str:
    low, high = difference.compute_interval()
    return f"{difference.gain:+.4f} ({low:+.4f} to {high:+.4f})"


def _format_p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.0095 else f"{p:.1g}"
