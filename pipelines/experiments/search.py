"""`imagemill tune`: search for training parameters that do better on the validation images than a base configuration.

The base is trained first, and everything else is measured by it: Optuna proposes values, trials that fall behind are
pruned, and the best one is trained again beside the base with seeds that the search has not seen, since the best of
many trials owes a part of its score to luck. Test images are not read: `imagemill compare` on the base and the file
with the best values is the one look at them.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...components.dataset.manifest import Dataset, digest
from ...components.dataset.records import StepRecord
from ...components.promote.config import PromoteConfig
from ...components.step.config import METRIC_TITLES, Scalar
from ...components.step.step import new_run
from ...components.storage.errors import EXIT_USER, MillError, UserError, wrong
from ..local.run import check_parameters
from ..local.step_process import StepRunner, StoppedByWatch
from .differences import MeanDifference, compute_mean_difference
from .search_space import SearchSpace
from .study import COMPLETE, FAILED, PRUNED, Study, TriedValues
from .trials import Configuration, CourseWatch, TrialRunner, describe_regularization, read_course

COMMAND = "tune"


@dataclass(frozen=True)
class SearchOptions:
    """`trials` beside the base; `seeds` with which the best values are trained again; the `pruner`; and the file
    `output` for the best configuration."""

    trials: int
    seeds: int
    pruner: str
    output: str


def tune(base: Configuration, space: SearchSpace, options: SearchOptions) -> dict[str, Any]:
    """Search, confirm the best values, write their file and the report; return the result that `--json` prints.

    A second call continues: with more trials it adds what is missing, with as many it trains nothing.
    """
    if not Path(options.output).absolute().parent.is_dir():
        raise wrong("--output", "a file in a folder that is there", options.output)
    workspace, name = check_parameters(base.parameters)
    run = new_run(f"{name}-{COMMAND}")
    print(f"run {run} in {workspace.uri}", file=sys.stderr, flush=True)
    with StepRunner.open(workspace, run) as steps:
        search = Search.begin(TrialRunner(steps, name, run, COMMAND), base, space, options.pruner)
        while len(search.study.trials) <= options.trials:
            search.run_next()
        confirmation = search.confirm(options.seeds)
    return _finish_search(search, confirmation, options)


def _finish_search(search: Search, confirmation: Confirmation | None, options: SearchOptions) -> dict[str, Any]:
    """Write the best configuration and the report; return the result."""
    runner, best = search.runner, search.study.best
    write_config(options.output, search.configure(best), _describe_search(search, runner.name))
    verdict, reason = describe_confirmation(search.study, search.metric, confirmation, options.seeds)
    report = runner.workspace.report_uri(runner.run)
    result = {
        "status": "succeeded", "name": runner.name, "run": runner.run, "report": report, "metric": search.metric,
        "verdict": verdict, "reason": reason, "config": options.output, "best": best.number,
        "trials": [asdict(trial) for trial in search.study.trials], "confirmation": _to_dict(confirmation),
    }  # fmt: skip
    from ...components.report.experiments import render_study

    runner.workspace.store.put(report, render_study(result).encode("utf-8", "replace"))
    return result


@dataclass
class Search:
    """A search under way: its base, the base's model, and the trials so far."""

    runner: TrialRunner
    base: Configuration
    base_model: Dataset
    study: Study
    metric: str

    @classmethod
    def begin(cls, runner: TrialRunner, base: Configuration, space: SearchSpace, pruner: str) -> Search:
        """Train the base, the first trial, and read the trials of earlier calls; all have as many epochs."""
        print(f"the base: {base.label}", file=sys.stderr, flush=True)
        model = runner.run_trial(base, "base", "train").read("model")
        promote = base.config("promote")
        assert isinstance(promote, PromoteConfig)
        metric = "top1" if promote.metric == "top1" else "macro_f1"  # what training measures in each epoch
        base = base.with_values("train", epochs=int(model.manifest.config["epochs"]))
        key = digest([model.fingerprint, space.declared, metric, pruner])
        study = Study(runner.workspace, runner.scope, key, space, pruner, base.seed)
        search = cls(runner, base, model, study, metric)
        if not study.trials:
            study.add(search._make_complete(0, {}, model))
        return search

    def configure(self, tried: TriedValues) -> Configuration:
        """Return the base with a trial's values."""
        return self.study.space.apply(self.base, tried.values)

    def run_next(self) -> None:
        """Run the next trial, and record how it ended. What is transient, or our fault, is raised."""
        study, number = self.study, len(self.study.trials)
        study.add(self._run_trial(number, study.suggest()))
        self._report(study.trials[-1])

    def _run_trial(self, number: int, values: dict[str, Scalar]) -> TriedValues:
        listed = ", ".join(f"{name} {value}" for name, value in values.items())
        print(f"trial {number}: {listed}", file=sys.stderr, flush=True)
        label = f"t{number}"
        watch = CourseWatch(self.runner.workspace, f"{self.runner.run}.{label}", self.metric, self.study.should_prune)
        try:
            trial = self.runner.run_trial(self.study.space.apply(self.base, values), label, "train", watch)
        except StoppedByWatch:
            return TriedValues(number, values, PRUNED, max(watch.course), tuple(watch.course))
        except MillError as error:
            if error.exit_code != EXIT_USER:
                raise
            return TriedValues(number, values, FAILED, note=str(error))  # a loss of nan, a size that does not fit
        return self._make_complete(number, values, trial.read("model"))

    def _make_complete(self, number: int, values: dict[str, Scalar], model: Dataset) -> TriedValues:
        course = read_course(model, self.metric)
        seconds = self.runner.find_seconds("train", StepRecord(model.uri, model.fingerprint))
        note = describe_regularization(model, self.base_model, self.metric)
        return TriedValues(number, values, COMPLETE, max(course), course, model.uri, seconds, note)

    def _report(self, tried: TriedValues) -> None:
        score = "" if tried.score is None else f", {METRIC_TITLES[self.metric]} {tried.score:.4f}"
        best = self.study.best
        print(
            f"trial {tried.number}: {tried.state}{score}; best: trial {best.number} with {best.score:.4f}",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def confirm(self, seeds: int) -> Confirmation | None:
        """Compare the best values and the base with seeds that the search has not used, those after the base's; None
        where the base is best."""
        best = self.study.best
        if not best.number:
            return None
        used = range(self.base.seed + 1, self.base.seed + 1 + seeds)
        scores = [[self._train_with_seed(tried, seed) for tried in (self.study.trials[0], best)] for seed in used]
        base, tuned = zip(*scores, strict=True)
        gains = np.array(tuned) - np.array(base)
        return Confirmation(tuple(used), base, tuned, compute_mean_difference(gains[:, None], gains))

    def _train_with_seed(self, tried: TriedValues, seed: int) -> float:
        """Train values with another seed, and return the validation score."""
        side = "the best values" if tried.number else "the base"
        print(f"{side}, seed {seed}", file=sys.stderr, flush=True)
        label = f"{'w' if tried.number else 'b'}{seed}"
        trial = self.runner.run_trial(self.configure(tried).with_values("train", seed=seed), label, "train")
        return max(read_course(trial.read("model"), self.metric))


@dataclass(frozen=True)
class Confirmation:
    """Validation scores of the `base` and of the `best` values with `seeds` of their own, and the difference with its
    interval over seeds."""

    seeds: tuple[int, ...]
    base: tuple[float, ...]
    best: tuple[float, ...]
    difference: MeanDifference


def _to_dict(confirmation: Confirmation | None) -> dict[str, Any] | None:
    if confirmation is None:
        return None
    difference = confirmation.difference
    return {
        "seeds": list(confirmation.seeds), "base": list(confirmation.base), "best": list(confirmation.best),
        "gain": difference.gain, "interval": list(difference.interval), "p": difference.p,
    }  # fmt: skip


def describe_confirmation(study: Study, metric: str, confirmation: Confirmation | None, seeds: int) -> tuple[str, str]:
    """Return the verdict (better, worse, not_shown_to_differ, base_is_best) and its reason in one sentence."""
    title, best = METRIC_TITLES[metric], study.best
    if confirmation is None:
        others = len(study.trials) - 1
        trials = f"{others} trial{'s' if others > 1 else ''}"
        return "base_is_best", f"validation {title} of the base, {best.score:.4f}, is not below that of {trials}"
    difference = confirmation.difference
    low, high = difference.interval
    numbers = (
        f"validation {title} {np.mean(confirmation.base):.4f} (base) and {np.mean(confirmation.best):.4f} (trial "
        f"{best.number}), difference {difference.gain:+.4f} ({low:+.4f} to {high:+.4f}) over {seeds} new seeds"
    )
    if not difference.is_credible:
        return "not_shown_to_differ", f"{numbers}: no more than seeds make by chance, so the base may do as well"
    verdict = "better" if difference.gain > 0 else "worse"
    return (
        verdict,
        f"{numbers}: credibly {verdict} on the images that chose it; `imagemill compare` asks the test images",
    )


def _describe_search(search: Search, name: str) -> str:
    best = search.study.best
    return (
        f"The best of {len(search.study.trials) - 1} trials of `imagemill tune` on {name}: trial {best.number}, "
        f"validation {METRIC_TITLES[search.metric]} {best.score:.4f}; the base has {search.study.trials[0].score:.4f}."
    )


def write_config(path: str, configuration: Configuration, comment: str) -> None:
    """Write a configuration as a YAML file that `run --config` takes, with a comment above."""
    import yaml

    parameters = configuration.parameters
    document: dict[str, Any] = dict(parameters.pipeline)
    for step, section in parameters.sections.items():
        # `promote` is a parameter, too, so its section's values stand at the top.
        document |= section if step == "promote" else {step: section}
    text = yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False, allow_unicode=True)
    try:
        Path(path).write_text(f"# {comment}\n{text}", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output: expected a file that can be written, found {path} ({error.strerror})") from None
