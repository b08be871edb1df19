"""Judge what serves better from now on: the challenger, or the champion.

Both models are compared image by image on the test images that neither was trained or validated on, in all of today's
classes. By the rule `unless-worse` the challenger is promoted unless it is **credibly worse**: unless the gain plus
`z(level)` standard errors is zero or less, 0.84 of them at the default level of 20%. An equal model that has learned
from newer images costs nothing, so nothing has to be proven. Where the models' configurations differ, the gain has to
be above zero as well. Where classes were added alone, which the champion is wrong about, the challenger must not be
credibly worse in the others either; a champion that names classes of yesterday can't refer to these.

Few test images hardly show an accident in training, and the validation images that training has measured its model on
are more evidence: both gains are averaged, weighted by the inverse of their variance (`combine_estimates`).

By the rule `better` the gain on the test images has to be credibly above `min_gain` instead, at a level of 5%.

A class's recall, the calibration and the speed are guarded: a challenger beyond the usual limits is promoted with a
warning, one beyond a limit that the user has set is not. A first model becomes champion if it is better than naming the
most frequent class each time (evaluate's `chance`). Accuracy in service over a year, by rule, is in
tests/benchmarks/README.md.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np

from ..dataset.kinds import EvaluationExtra
from ..dataset.manifest import Dataset
from ..dataset.records import (
    BETTER,
    FIRST,
    NO_BETTER_THAN_CHANCE,
    NOT_BETTER,
    NOT_COMPARABLE,
    NOT_WORSE,
    PASSING,
    REFUSED,
    WORSE,
    GainEstimate,
    Guard,
    Verdict,
)
from ..metrics.calibration import ece
from .config import ALWAYS, NEVER, SIGNIFICANTLY_BETTER, PromoteConfig
from .pairs import PairedPredictions
from .score_difference import ClassCounts, ScoreDifference, compute_difference
from .trainings import Training, compare_validation, list_changed_options

USUAL_LIMITS = {"max_class_drop": 0.1, "max_ece_rise": 0.05, "max_slowdown": 2.0}
"""Limits of which a challenger beyond them is warned, where the user has set none."""
GUARD_LEVEL = 0.05


def combine_estimates(*estimates: GainEstimate | None) -> GainEstimate | None:
    """Return the mean of independent estimates, weighted by the inverse of their variance; None without any."""
    known = [estimate for estimate in estimates if estimate]
    if not known:
        return None
    weights = [1 / estimate.error**2 for estimate in known]
    gain = sum(weight * estimate.gain for weight, estimate in zip(weights, known, strict=True)) / sum(weights)
    return GainEstimate(gain=gain, error=sum(weights) ** -0.5, images=sum(estimate.images for estimate in known))


def is_worse(estimate: GainEstimate, level: float) -> bool:
    """Return whether a gain is credibly below zero, at a one-sided level."""
    return estimate.gain + NormalDist().inv_cdf(1 - level) * estimate.error <= 0


def is_better(estimate: GainEstimate, level: float, min_gain: float) -> bool:
    """Return whether a gain is credibly above `min_gain`, at a one-sided level."""
    return estimate.gain - NormalDist().inv_cdf(1 - level) * estimate.error > min_gain


def estimate_gain(difference: ScoreDifference) -> GainEstimate:
    return GainEstimate(gain=difference.gain, error=difference.error, images=len(difference.contributions))


def judge_first(challenger: Dataset, config: PromoteConfig, lost_promotion: int = 0) -> Verdict:
    """Judge a model where there is no champion to compare it with.

    `lost_promotion`: the number of the last promotion if its model is gone, else 0.
    """
    chance = EvaluationExtra.of(challenger.manifest).chance
    note = f"the model of promotion {lost_promotion} is gone" if lost_promotion else "there was no champion"
    result = FIRST
    if chance and not chance.better:
        result, note = NO_BETTER_THAN_CHANCE, f"{chance.why}; {note}"
    return finish_verdict(_begin_verdict(challenger, config), result, config, note)


def judge(challenger: Dataset, champion: Dataset, config: PromoteConfig) -> Verdict:
    """Judge a challenger against the champion; both evaluations are of the same clean dataset's test split."""
    verdict = replace(_begin_verdict(challenger, config), champion=read_score(champion, config.metric))
    if problem := _explain_not_comparable(challenger, champion):
        return finish_verdict(verdict, NOT_COMPARABLE, config, problem)
    pair = PairedPredictions.read(challenger, champion)
    verdict = _add_trainings(verdict, pair, challenger, champion)
    verdict = replace(
        verdict, images=pair.images, left_out=pair.excluded, added_classes=list(pair.added),
        removed_classes=list(pair.removed),
    )  # fmt: skip
    test: GainEstimate | None = None
    if len(pair.labels.classes):
        verdict, test = _add_scores(verdict, pair, config.metric)
        is_changed = bool(verdict.changed_options)
        verdict = replace(verdict, guards=find_guards(pair, challenger, champion, config, is_changed))
    elif not verdict.validation:
        note = "no test image is left that neither model has seen in training"
        return finish_verdict(verdict, NOT_COMPARABLE, config, note)
    has_enough = test if test and test.images >= config.min_test_images else None
    verdict = replace(verdict, combined=combine_estimates(has_enough, verdict.validation))
    result = decide(verdict, has_enough, config)
    if result in PASSING and any(guard.refuses for guard in verdict.guards):
        result = REFUSED
    chance = EvaluationExtra.of(challenger.manifest).chance
    return finish_verdict(verdict, result, config, chance.why if chance else "")


def decide(verdict: Verdict, test: GainEstimate | None, config: PromoteConfig) -> str:
    """Return the result by the scores. `test`: the gain on the test images, None where these are too few."""
    level, evidence = config.resolved_level, verdict.combined
    if config.promote == SIGNIFICANTLY_BETTER:
        evidence = test or verdict.validation
        if evidence is None:
            return NOT_BETTER
        if is_better(evidence, level, config.min_gain):
            return BETTER
        return WORSE if is_worse(evidence, level) else NOT_BETTER
    if any(estimate and is_worse(estimate, level) for estimate in (evidence, verdict.shared)):
        return WORSE
    gain = verdict.gain if test or not evidence else evidence.gain
    assert gain is not None
    has_to_be_better = bool(verdict.changed_options)
    if gain > 0:
        return BETTER
    if has_to_be_better or (not evidence and gain < 0):
        return NOT_BETTER
    return NOT_WORSE


def make_verdict(result: str, note: str, challenger: Dataset, config: PromoteConfig) -> Verdict:
    """Return a verdict without a comparison, by which nothing is promoted."""
    return replace(_begin_verdict(challenger, config), verdict=result, note=note)


def finish_verdict(verdict: Verdict, result: str, config: PromoteConfig, note: str = "") -> Verdict:
    """Return the verdict with its result, and whether the challenger is promoted."""
    promoted = config.promote == ALWAYS or (result in PASSING and config.promote != NEVER)
    return replace(verdict, verdict=result, promoted=promoted, note=note)


def _begin_verdict(challenger: Dataset, config: PromoteConfig) -> Verdict:
    is_strict = config.promote == SIGNIFICANTLY_BETTER
    return Verdict(
        rule=config.promote, level=config.resolved_level, min_gain=config.min_gain if is_strict else None,
        metric=config.metric, challenger=read_score(challenger, config.metric),
    )  # fmt: skip


def _add_trainings(verdict: Verdict, pair: PairedPredictions, challenger: Dataset, champion: Dataset) -> Verdict:
    """Return the verdict with what differs between the models' trainings."""
    own, other = Training.read(challenger), Training.read(champion)
    renamed = {old: new for old, new in own.label_map.items() if other.label_map.get(old) != new}
    is_same_classes = not pair.added and not pair.removed and not renamed
    return replace(
        verdict,
        renamed_classes=renamed,
        changed_options=list_changed_options(other, own),
        train_images=own.images,
        champion_train_images=other.images,
        validation=compare_validation(other, own, verdict.metric) if is_same_classes else None,
    )


def _add_scores(verdict: Verdict, pair: PairedPredictions, metric: str) -> tuple[Verdict, GainEstimate]:
    """Return the verdict with the scores on the test images, and their difference."""
    difference = compute_difference(pair, metric)
    champion_right, challenger_right = pair.is_right
    shared = pair.select_shared() if pair.added and not pair.removed else None
    verdict = replace(
        verdict,
        challenger=difference.challenger,
        champion=difference.champion,
        gain=difference.gain,
        interval=list(difference.compute_interval()),
        won=int((challenger_right & ~champion_right).sum()),
        lost=int((champion_right & ~challenger_right).sum()),
        shared=estimate_gain(compute_difference(shared, metric)) if shared and shared.images else None,
    )
    return verdict, estimate_gain(difference)


def find_guards(
    pair: PairedPredictions, challenger: Dataset, champion: Dataset, config: PromoteConfig, is_changed: bool
) -> list[Guard]:
    """Return the limits that the challenger is beyond: recall by class, calibration and, where the configuration has
    changed, speed: that of the same network says how busy the machine was."""
    limits = {name: usual if (value := getattr(config, name)) is None else value for name, usual in
              USUAL_LIMITS.items()}  # fmt: skip
    beyond = find_recall_drops(pair, limits["max_class_drop"])
    before, after = (
        ece(confidence, is_right) for confidence, is_right in zip(pair.confidence, pair.is_right, strict=True)
    )
    if after - before > limits["max_ece_rise"]:
        beyond.append(("max_ece_rise", "", before, after))
    throughput, champion_throughput = (EvaluationExtra.of(e.manifest).throughput for e in (challenger, champion))
    if throughput and champion_throughput and throughput.network_one_view:
        rate, champion_rate = throughput.network_one_view, champion_throughput.network_one_view
        is_same_setup = (throughput.device, throughput.batch_size) == (
            champion_throughput.device, champion_throughput.batch_size,
        )  # fmt: skip
        if is_changed and is_same_setup and champion_rate > limits["max_slowdown"] * rate:
            beyond.append(("max_slowdown", "", champion_rate, rate))
    return [
        Guard(
            option=option, subject=subject, champion=before, challenger=after, limit=limits[option],
            refuses=getattr(config, option) is not None,
        )
        for option, subject, before, after in beyond
    ]  # fmt: skip


def find_recall_drops(pair: PairedPredictions, limit: float) -> list[tuple[str, str, float, float]]:
    """Return the guards of classes whose recall has fallen by more than `limit`, and not by chance: by the sign test on
    the images that only one model recognizes (normal approximation), at `GUARD_LEVEL` for all classes together."""
    counts = ClassCounts.count(pair)
    lost, won, support = counts.only_champion, counts.only_challenger, counts.support
    z = NormalDist().inv_cdf(1 - GUARD_LEVEL / max(1, int((support > 0).sum())))
    has_fallen = (lost - won > limit * support) & (lost - won - 1 >= z * np.sqrt(lost + won)) & (support > 0)
    rows = np.flatnonzero(has_fallen)
    rows = rows[np.argsort((won - lost)[rows] / support[rows], kind="stable")]
    champion_hits, challenger_hits = counts.hits
    return [
        ("max_class_drop", pair.classes[row], champion_hits[row] / support[row], challenger_hits[row] / support[row])
        for row in rows.tolist()
    ]


def _explain_not_comparable(challenger: Dataset, champion: Dataset) -> str:
    """Return why two evaluations can't be compared, empty where they can."""
    own, other = (EvaluationExtra.of(evaluation.manifest) for evaluation in (challenger, champion))
    if own.model_task != other.model_task:
        return f"this model is {own.model_task}-label, the champion {other.model_task}-label"
    if own.seen.unknown:
        return f"which images this model was trained on is not known: {own.seen.unknown[0]} is gone"
    return ""


def read_score(evaluation: Dataset, metric: str) -> float | None:
    """Return a score on all test images; None where it was not measured.

    Balanced accuracy is the mean recall of the classes, which evaluations of several labels per image do not sum up.
    """
    extra = EvaluationExtra.of(evaluation.manifest)
    recalls = [scores.recall for scores in extra.per_class if scores.support]
    if metric == "balanced_accuracy" and metric not in extra.metrics and recalls:
        return sum(recalls) / len(recalls)
    return extra.metrics.get(metric)
