"""`imagemill compare`: train two configurations with several seeds, or on several folds, and compare them on the same
test images."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from ...components.dataset.kinds import EvaluationExtra
from ...components.dataset.manifest import Dataset
from ...components.dataset.workspace import Workspace
from ...components.promote.config import PromoteConfig
from ...components.step.config import METRIC_TITLES
from ...components.step.step import new_run
from ...components.storage.errors import UserError
from ..local.run import check_parameters
from ..local.step_process import StepRunner
from .differences import Comparison, MeanDifference, compare_evaluations
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


@dataclass(frozen=True)
class Cost:
    """Costs of a configuration: mean `seconds` a step (None where it is not known), `bytes` of each dataset and of a
    model's files, and `images_per_second` of the network in evaluation.

    `shared`: the steps whose result both configurations use.
    """

    seconds: dict[str, float | None]
    bytes: dict[str, int]
    images_per_second: float
    shared: tuple[str, ...]


def compare(first: Configuration, second: Configuration, seeds: int, folds: int = 0) -> dict[str, Any]:
    """Run both configurations with `seeds` seeds, from their `seed` on, and return the result that `--json` prints.

    With `folds`, each seed is a cross-validation, of as many trainings, and every image is a test image. Everything
    that exists is used. Raises UserError for configurations that can't be compared.
    """
    configurations = (first, second)
    check_comparable(first, second)
    for configuration in configurations:
        workspace, name = check_parameters(configuration.parameters)
    run = new_run(f"{name}-{COMMAND}")
    print(f"run {run} in {workspace.uri}", file=sys.stderr, flush=True)
    with StepRunner.open(workspace, run) as steps:
        runner = TrialRunner(steps, name, run, COMMAND)
        trials = _run_trials(runner, configurations, range(first.seed, first.seed + seeds), folds)
    evaluations = [[trial.read("evaluation") for trial in side] for side in trials]
    comparison = compare_evaluations(evaluations[0], evaluations[1], folds)
    if not comparison.images:
        raise UserError("test_fraction: expected test images that both configurations keep, found none")
    costs = measure_costs(trials)
    metric = _get_metric(first)
    has_same_models = all(a.uri == b.uri for a, b in zip(*evaluations, strict=True))
    verdict, reason = describe_verdict(comparison, metric, seeds, has_same_models, folds)
    result = {
        "status": "succeeded", "name": name, "run": run, "report": workspace.report_uri(run), "verdict": verdict,
        "reason": reason, "metric": metric, "images": comparison.images, "left_out": comparison.excluded,
        "won": comparison.won, "lost": comparison.lost, "seeds": list(range(first.seed, first.seed + seeds)),
        "folds": folds,
        "differences": {key: describe_difference(value) for key, value in comparison.differences.items()},
        "configurations": {
            side: _describe_side(number, configurations[number], comparison, costs[number], trials[number])
            for number, side in enumerate(SIDES)
        },
        "parameters": [
            dict(zip(("step", "name", *SIDES), row, strict=True)) for row in list_parameter_differences(first, second)
        ],
        "changes": [
            {"image_id": change.image_id, "label": change.label, "A": change.first, "B": change.second}
            for change in comparison.find_changes(MAX_CHANGES)
        ],
    }  # fmt: skip
    _write_report(workspace, run, result)
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


def measure_costs(trials: tuple[list[Trial], list[Trial]]) -> tuple[Cost, Cost]:
    """Return the cost of each configuration, a mean over its trials."""
    datasets = [{t.records[step].uri for t in side for step in LAST_STEPS} for side in trials]
    shared = tuple(
        step for step in LAST_STEPS
        if all(trial.records[step].uri in datasets[0] & datasets[1] for side in trials for trial in side)
    )  # fmt: skip
    first, second = (_measure_cost(side, shared) for side in trials)
    return first, second


def _measure_cost(trials: list[Trial], shared: tuple[str, ...]) -> Cost:
    seconds: dict[str, float | None] = {}
    for step in LAST_STEPS:
        known = [value for trial in trials if (value := trial.seconds[step]) is not None]
        seconds[step] = round(sum(known) / len(known), 3) if known else None
    sizes = {
        kind: sum(file.bytes for file in trials[0].read(kind).manifest.files) for kind in ("clean", "tensors", "model")
    }
    rates = [_read_rate(trial.read("evaluation")) for trial in trials]
    return Cost(seconds, sizes, round(sum(rates) / len(rates), 1), shared)


def _read_rate(evaluation: Dataset) -> float:
    throughput = EvaluationExtra.of(evaluation.manifest).throughput
    return throughput.network if throughput else 0.0


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


def _describe_side(
    side: int, configuration: Configuration, comparison: Comparison, cost: Cost, trials: list[Trial]
) -> dict[str, Any]:
    scores = {metric: values[side] for metric, values in comparison.scores.items()}
    return {
        "config": configuration.label,
        "scores": {
            metric: {
                "mean": float(values.mean()), "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
                "by_seed": values.tolist(),
            }
            for metric, values in scores.items()
        },
        "seconds": cost.seconds, "bytes": cost.bytes, "images_per_second": cost.images_per_second,
        "shared": list(cost.shared), "models": [trial.records["train"].uri for trial in trials],
        "evaluations": [trial.records["evaluate"].uri for trial in trials],
    }  # fmt: skip


def _write_report(workspace: Workspace, run: str, result: dict[str, Any]) -> None:
    from ...components.report.experiments import render_comparison

    workspace.store.put(workspace.report_uri(run), render_comparison(result).encode("utf-8", "replace"))
