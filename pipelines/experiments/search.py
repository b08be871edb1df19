"""`imagemill tune`: search for training parameters that do better on the validation images than a base configuration.

The base is trained first, and everything else is measured by it: Optuna proposes values, trials that fall behind are
pruned, and the best one is trained again beside the base with seeds that the search has not seen, since the best of
many trials owes a part of its score to luck. Test images are not read: `imagemill compare` on the base and the file
with the best values is the one look at them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ...components.dataset.manifest import Dataset, digest
from ...components.dataset.records import StepRecord
from ...components.promote.config import PromoteConfig
from ...components.step.config import METRIC_TITLES
from ...components.step.step import new_run
from ...components.storage.errors import EXIT_USER, MillError, UserError, wrong
from ..local import StepRunner, StoppedByWatch, check_parameters
from ..run_log import RunLog
from .differences import compute_mean_difference
from .search_space import SearchSpace
from .study import COMPLETE, FAILED, PRUNED, PruningWatch, Study, TriedValues, describe_regularization, read_course
from .trials import Configuration, TrialRunner

if TYPE_CHECKING:
    import optuna

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
    log = RunLog.open(workspace, run, base.parameters.arguments().values())
    with log as opened, TemporaryDirectory(prefix="imagemill-study-") as folder:
        runner = TrialRunner(StepRunner(opened), workspace, name, run, COMMAND)
        search = Search.begin(runner, base, space, options.pruner, Path(folder))
        while len(search.study.trials) <= options.trials:
            search.run_next()
        confirmation = search.confirm(options.seeds)
    return _finish_search(search, confirmation, options)


def _finish_search(search: Search, confirmation: Confirmation | None, options: SearchOptions) -> dict[str, Any]:
    """Write the best configuration and the report; return the result."""
    runner, trials, best = search.runner, search.study.trials, search.study.best
    write_config(
        options.output,
        search.configure(best),
        f"The best of {len(trials) - 1} trials of `imagemill tune` on {runner.name}: trial {best.number}, validation "
        f"{METRIC_TITLES[search.metric]} {best.score:.4f}; the base has {trials[0].score:.4f}.",
    )
    verdict, reason = describe_confirmation(trials, best, search.metric, confirmation)
    report = runner.workspace.report_uri(runner.run)
    result = {
        "status": "succeeded", "name": runner.name, "run": runner.run, "report": report, "metric": search.metric,
        "verdict": verdict, "reason": reason, "config": options.output, "best": best.number,
        "trials": [asdict(trial) for trial in trials],
        "confirmation": asdict(confirmation) if confirmation else None,
    }  # fmt: skip
    from ...components.report.experiments import render_study

    runner.workspace.store.put(report, render_study(result).encode("utf-8", "replace"))
    return result


@dataclass
class Search:
    """A search under way: its base and its study, whose trial 0 is the base."""

    runner: TrialRunner
    base: Configuration
    space: SearchSpace
    study: Study
    metric: str

    @classmethod
    def begin(cls, runner: TrialRunner, base: Configuration, space: SearchSpace, pruner: str, folder: Path) -> Search:
        """Train the base, and open the study with the trials of earlier calls; all have as many epochs."""
        print(f"the base: {base.label}", file=sys.stderr, flush=True)
        model = runner.run_trial(base, "base", "train").read("model")
        promote = base.config("promote")
        assert isinstance(promote, PromoteConfig)
        metric = "top1" if promote.metric == "top1" else "macro_f1"  # what training measures in each epoch
        base = base.with_values("train", epochs=int(model.manifest.config["epochs"]))
        key = digest([model.fingerprint, space.declared, metric, pruner])
        study = Study(runner.workspace.study_uri(runner.scope, key), folder, pruner, base.seed)
        search = cls(runner, base, space, study, metric)
        if not study.trials:
            search._complete(study.begin(), model)
        return search

    def configure(self, tried: TriedValues) -> Configuration:
        """Return the base with a trial's values."""
        return self.space.apply(self.base, tried.values)

    def run_next(self) -> None:
        """Run the next trial, and record how it ended. What is transient, or our fault, is raised."""
        trial = self.study.begin()
        values = self.space.suggest(trial)
        listed = ", ".join(f"{name} {value}" for name, value in values.items())
        print(f"trial {trial.number}: {listed}", file=sys.stderr, flush=True)
        label, runner = f"t{trial.number}", self.runner
        watch = PruningWatch(self.study, trial, runner.workspace, f"{runner.run}.{label}", self.metric)
        try:
            trained = runner.run_trial(self.space.apply(self.base, values), label, "train", watch)
        except StoppedByWatch:
            tried = self.study.end(trial, PRUNED)
        except MillError as error:
            if error.exit_code != EXIT_USER:
                raise
            tried = self.study.end(trial, FAILED, note=str(error))  # a loss of nan, a size that does not fit
        else:
            tried = self._complete(trial, trained.read("model"))
        score = "" if tried.score is None else f", {METRIC_TITLES[self.metric]} {tried.score:.4f}"
        best = self.study.best
        print(
            f"trial {tried.number}: {tried.state}{score}; best: trial {best.number} with {best.score:.4f}",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    def _complete(self, trial: optuna.Trial, model: Dataset) -> TriedValues:
        course = read_course(model, self.metric)
        self.study.report(trial, course)
        seconds = self.runner.find_seconds("train", StepRecord(model.uri, model.fingerprint))
        base = self.study.trials[0].score if self.study.trials else None
        note = describe_regularization(model, max(course) if base is None else base, self.metric)
        return self.study.end(trial, COMPLETE, model=model.uri, seconds=seconds, note=note)

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
        difference = compute_mean_difference(gains[:, None], gains)
        return Confirmation(tuple(used), base, tuned, difference.gain, difference.interval, difference.p)

    def _train_with_seed(self, tried: TriedValues, seed: int) -> float:
        """Train values with another seed, and return the validation score."""
        side = "the best values" if tried.number else "the base"
        print(f"{side}, seed {seed}", file=sys.stderr, flush=True)
        label = f"{'w' if tried.number else 'b'}{seed}"
        trial = self.runner.run_trial(self.configure(tried).with_values("train", seed=seed), label, "train")
        return max(read_course(trial.read("model"), self.metric))


@dataclass(frozen=True)
class Confirmation:
    """Validation scores of the `base` and of the `best` values with `seeds` of their own; their mean difference `gain`
    with its 95% `interval` over seeds, and the p value of none."""

    seeds: tuple[int, ...]
    base: tuple[float, ...]
    best: tuple[float, ...]
    gain: float
    interval: tuple[float, float]
    p: float


def describe_confirmation(
    trials: Sequence[TriedValues], best: TriedValues, metric: str, confirmation: Confirmation | None
) -> tuple[str, str]:
    """Return the verdict (better, worse, not_shown_to_differ, base_is_best) and its reason in one sentence."""
    title = METRIC_TITLES[metric]
    if confirmation is None:
        others = f"{len(trials) - 1} trial{'s' if len(trials) > 2 else ''}"
        return "base_is_best", f"validation {title} of the base, {best.score:.4f}, is not below that of {others}"
    low, high = confirmation.interval
    numbers = (
        f"validation {title} {np.mean(confirmation.base):.4f} (base) and {np.mean(confirmation.best):.4f} (trial "
        f"{best.number}), difference {confirmation.gain:+.4f} ({low:+.4f} to {high:+.4f}) over "
        f"{len(confirmation.seeds)} new seeds"
    )
    if low <= 0 <= high:
        return "not_shown_to_differ", f"{numbers}: no more than seeds make by chance, so the base may do as well"
    verdict = "better" if confirmation.gain > 0 else "worse"
    return (
        verdict,
        f"{numbers}: credibly {verdict} on the images that chose it; `imagemill compare` asks the test images",
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
