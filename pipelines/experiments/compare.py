"""`imagemill compare`: train two configurations with several seeds, or on several folds, and compare them on the same
test images."""

from __future__ import annotations

import sys
from statistics import fmean
from typing import Any

from ...components.dataset.kinds import EvaluationExtra
from ...components.promote.config import PromoteConfig
from ...components.step.config import METRIC_TITLES
from ...components.step.step import new_run
from ...components.storage.errors import UserError
from ..local import StepRunner, check_parameters
from ..run_log import RunLog
from .differences import Comparison, Floats, MeanDifference, compare_evaluations
from .trials import (
    LAST_STEPS,
    Configuration,
    Trial,
    TrialRunner,
    check_comparable,
    check_same_classes,
    list_parameter_differences,
)

COMMAND = "compare"
SIDES = ("A", "B")
BETTER, WORSE, NOT_SHOWN, SAME = "better", "worse", "not_shown_to_differ", "same_models"
MAX_CHANGES = 20
"""Images that the result lists."""


def compare(first: Configuration, second: Configuration, seeds: int, folds: int = 0) -> dict[str, Any]:
    """Run both configurations with `seeds` seeds, from their `seed` on, and return the result that `--json` prints.

    With `folds`, each seed is a cross-validation, of as many trainings, and every image is a test image. Everything
    that exists is used. Raises UserError for configurations that can't be compared.
    """
    configurations = (first, second)
    check_comparable(first, second)
    if not list_parameter_differences(first, second):
        raise UserError(f"configurations: expected two that differ, found the same parameters in {first.label} and "
                        f"{second.label}")  # fmt: skip
    for configuration in configurations:
        workspace, name = check_parameters(configuration.parameters)
    run = new_run(f"{name}-{COMMAND}")
    print(f"run {run} in {workspace.uri}", file=sys.stderr, flush=True)
    with RunLog.open(
        workspace, run, [value for side in configurations for value in side.parameters.arguments().values()]
    ) as log:
        runner = TrialRunner(StepRunner(log), workspace, name, run, COMMAND)
        trials = _run_trials(runner, configurations, range(first.seed, first.seed + seeds), folds)
    evaluations = [[trial.read("evaluation") for trial in side] for side in trials]
    comparison = compare_evaluations(evaluations[0], evaluations[1], folds)
    if not comparison.images:
        raise UserError("test_fraction: expected test images that both configurations keep, found none")
    metric = _get_metric(first)
    has_same_models = all(a.uri == b.uri for a, b in zip(*evaluations, strict=True))
    verdict, reason = describe_verdict(comparison, metric, seeds, has_same_models, folds)
    shared = find_shared_steps(trials)
    result = {
        "status": "succeeded", "name": name, "run": run, "report": workspace.report_uri(run), "verdict": verdict,
        "reason": reason, "metric": metric, "images": comparison.images, "left_out": comparison.excluded,
        "won": comparison.won, "lost": comparison.lost, "seeds": list(range(first.seed, first.seed + seeds)),
        "folds": folds,
        "differences": {key: describe_difference(value) for key, value in comparison.differences.items()},
        "configurations": {
            side: {
                "config": configurations[number].label,
                "scores": {key: describe_scores(values[number]) for key, values in comparison.scores.items()},
                "shared": shared,
            } | describe_trials(trials[number])
            for number, side in enumerate(SIDES)
        },
        "parameters": list_parameter_differences(first, second),
        "changes": comparison.find_changes(MAX_CHANGES),
    }  # fmt: skip
    from ...components.report.experiments import render_comparison

    workspace.store.put(workspace.report_uri(run), render_comparison(result).encode("utf-8", "replace"))
    return result


def _run_trials(
    runner: TrialRunner, configurations: tuple[Configuration, Configuration], seeds: range, folds: int
) -> tuple[list[Trial], list[Trial]]:
    """Return the trials of both configurations, seed by seed and within it fold by fold. What can't be compared is
    refused before training."""
    trials: tuple[list[Trial], list[Trial]] = ([], [])
    divided = [_divide(configuration, folds) for configuration in configurations]
    for side, configuration in zip(SIDES, configurations, strict=True):
        print(f"{side} is {configuration.label}", file=sys.stderr, flush=True)
    for parts in zip(*divided, strict=True):
        cleaned = [
            runner.run_trial(part, side.lower(), "clean").read("clean") for side, part in zip(SIDES, parts, strict=True)
        ]
        check_same_classes(*cleaned)
    for number, seed in enumerate(seeds, 1):
        for fold, parts in enumerate(zip(*divided, strict=True), 1):
            for side, part, own in zip(SIDES, parts, trials, strict=True):
                of_folds, label = (f", fold {fold} of {folds}", f".{fold}") if folds else ("", "")
                print(f"{side}, seed {seed} ({number} of {len(seeds)}){of_folds}", file=sys.stderr, flush=True)
                own.append(runner.run_trial(part.with_values("train", seed=seed), f"{side.lower()}{seed}{label}"))
    return trials


def _divide(configuration: Configuration, folds: int) -> list[Configuration]:
    """Return the configuration with each of the folds; itself alone without folds."""
    if not folds:
        return [configuration]
    plain = configuration.with_values("evaluate", cross_validate="false")  # of no use here
    return [plain.with_values("clean", fold=f"{number}/{folds}") for number in range(1, folds + 1)]


def _get_metric(configuration: Configuration) -> str:
    promote = configuration.config("promote")
    assert isinstance(promote, PromoteConfig)
    return promote.metric


def find_shared_steps(trials: tuple[list[Trial], list[Trial]]) -> list[str]:
    """Return the steps whose results both configurations use."""
    used = [{step: {trial.records[step].uri for trial in side} for step in LAST_STEPS} for side in trials]
    return [step for step in LAST_STEPS if used[0][step] == used[1][step]]


def describe_trials(trials: list[Trial]) -> dict[str, Any]:
    """Return what a configuration's trials made, and its cost: mean `seconds` a step (None where not known), `bytes` of
    each dataset and of a model's files, and `images_per_second` of the network in evaluation."""
    seconds: dict[str, float | None] = {}
    for step in LAST_STEPS:
        known = [value for trial in trials if (value := trial.seconds[step]) is not None]
        seconds[step] = round(fmean(known), 3) if known else None
    throughputs = [EvaluationExtra.of(trial.read("evaluation").manifest).throughput for trial in trials]
    return {
        "seconds": seconds,
        "bytes": {kind: trials[0].read(kind).count_bytes() for kind in ("clean", "tensors", "model")},
        "images_per_second": round(fmean(measured.network if measured else 0.0 for measured in throughputs), 1),
        "models": [trial.records["train"].uri for trial in trials],
        "evaluations": [trial.records["evaluate"].uri for trial in trials],
    }


def describe_scores(scores: Floats) -> dict[str, Any]:
    """Return a configuration's scores of each seed, their mean and standard deviation."""
    deviation = float(scores.std(ddof=1)) if len(scores) > 1 else None
    return {"mean": float(scores.mean()), "sd": deviation, "by_seed": scores.tolist()}


def describe_difference(difference: MeanDifference) -> dict[str, Any]:
    """Return a difference, B less A, for the result."""
    return {
        "gain": difference.gain, "interval": list(difference.interval), "p": difference.p,
        "by_seed": list(difference.gains), "image_error": difference.image_error,
        "training_error": difference.training_error, "verdict": judge(difference),
    }  # fmt: skip


def judge(difference: MeanDifference) -> str:
    """Return whether B is credibly better or worse, at 5% two-sided, or not shown to differ."""
    if not difference.is_credible:
        return NOT_SHOWN
    return BETTER if difference.gain > 0 else WORSE


def describe_verdict(
    comparison: Comparison, metric: str, seeds: int, has_same_models: bool, folds: int = 0
) -> tuple[str, str]:
    """Return the verdict and its reason in one sentence."""
    difference = comparison.differences[metric]
    if has_same_models:
        return SAME, "A and B give the same models: they differ in nothing that training depends on"
    verdict = judge(difference)
    low, high = difference.interval
    over = f"{comparison.images:,} images, tested in {folds} folds" if folds else f"{comparison.images:,} test images"
    over += f" and {seeds} seeds" if seeds > 1 else ""
    means = [float(values.mean()) for values in comparison.scores[metric]]
    sentence = (
        f"{METRIC_TITLES[metric]} {means[0]:.4f} (A) and {means[1]:.4f} (B), difference {difference.gain:+.4f} "
        f"({low:+.4f} to {high:+.4f}) over {over}: "
    )
    sentence += f"B is credibly {verdict}" if verdict != NOT_SHOWN else "not shown to differ"
    if verdict == NOT_SHOWN:
        sentence += f". A difference of less than about {(high - low) / 2:.3f} does not show here"
        is_by_images = difference.image_error >= difference.training_error
        sentence += f"; more {'test images' if is_by_images else 'seeds'} would show a smaller one"
    if seeds == 1 and not folds:
        sentence += ". One seed says nothing of other trainings: the interval is over the images alone"
    return verdict, sentence
