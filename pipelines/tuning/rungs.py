"""A search on a cluster, by successive halving: the work of its pods, whatever starts them.

After the images are prepared, a pod trains the base. Then, for each rung, a small pod chooses trials (`choose`), and
each of them trains in a pod of its own (`train`) up to the rung's epochs, from the checkpoint of the rung before. All
trials of a rung end before the next one is chosen: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and
Hyperparameter Optimization", 2016. Trials are configured, named and recorded as those of `imagemill tune` on one
machine, so each of the two goes on from what the other has done. How far a trial is lies beside the study, as an open
trial, until all rungs have ended; only then do trials become records of the study, in the order of their numbers.
"""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...components.dataset.manifest import Dataset, read_dataset
from ...components.dataset.records import StepRecord
from ...components.dataset.workspace import Workspace
from ...components.download import STEP as DOWNLOAD
from ...components.step.command_line import configure_logging, parse_count
from ...components.step.progress import say
from ...components.step.step import RAN, RUN_ENV
from ...components.storage.errors import EXIT_INTERNAL, EXIT_OK, MillError, describe_internal_error
from ..cluster.check_and_download import check_form
from ..experiments.report import list_trials
from ..experiments.search_space import DEFAULT_SPACE, SearchSpace
from ..experiments.study import COMPLETE, FAILED, PRUNED, WAITING, TriedValues
from ..experiments.trials import Configuration, TrialRunner, begin_scope
from ..local.step_process import StepRunner
from ..parameters import CONFIG, RunParameters, list_form_parameters, parse_form
from .search import COMMAND, Search, SearchOptions, finish_search

RUNGS = 3
REDUCTION = 3
"""Of the trials that have reached a rung, one in so many goes on to the next, which has so many times the epochs."""
MAX_TRIALS = 500
"""The numbers of a rung's trials are one parameter of the orchestrator."""
TUNED = "tuned.yaml"
"""The best configuration's file in the run's folder."""
SHOWN = 10
"""Trials in the log of the last pod; the report has all."""
SEARCH_STEPS = ("download", "clean", "resize", COMMAND)
"""The steps of a search on a cluster; all of its own pods write the record of the last one."""
T = TypeVar("T")


@dataclass(frozen=True)
class SearchInputs:
    """The inputs of a search's pods beside the form, as the texts that orchestrators pass.

    `scope`: the name under which the images are prepared. `tensors`: URI of the dataset of all trials; `model`: that of
    the base's model, empty while there is none. `space`: JSON of the search space; empty: the default.
    """

    scope: str
    tensors: str
    model: str
    trials: str
    seeds: str
    space: str
    pruner: str


def count_rungs(pruner: str) -> int:
    """Return the number of rungs: 1, in which all trials end, without a pruner."""
    return 1 if pruner == "none" else RUNGS


def run_pod(
    form: Mapping[str, str], run: str, inputs: SearchInputs, work: Callable[[ClusterSearch], T], item: str = ""
) -> T:
    """Return what `work` does in a pod of a search; an error ends the process with its exit code, and is recorded.

    `item`: that of `ClusterSearch.train`, for the place of the log.
    """
    configure_logging()
    run = os.environ.get(RUN_ENV) or run
    handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _open_search(form, run, inputs, item) as search:
            return work(search)
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGTERM) from None
    except MillError as error:
        code, message = error.exit_code, str(error)
    except Exception as error:
        traceback.print_exc()
        code, message = EXIT_INTERNAL, describe_internal_error(error)
    finally:
        signal.signal(signal.SIGTERM, handler)
    say(COMMAND, f"error: {message}")
    try:
        _write_record(Workspace.from_uri(form["workspace"]), run, "failed", {}, 0.0, code, message)
    except MillError as error:
        say(COMMAND, f"the record could not be written: {error}")
    raise SystemExit(code)


def download_images(config: str, artifact: str, run: str, form: Mapping[str, str]) -> tuple[StepRecord, str]:
    """Run download as the body of a KFP component, after the form was checked for all steps; return its record, and the
    name under which the search prepares the images."""
    check_form(run, {**form, CONFIG: config})
    record = DOWNLOAD.component(config, artifact, run=run, **form)
    workspace = Workspace.from_uri(record.uri.rpartition("/raw/")[0])
    return record, begin_scope(workspace, record.metrics["name"], COMMAND, os.environ.get(RUN_ENV) or run)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt  # a training under way is stopped in order, with a checkpoint


@contextmanager
def _open_search(form: Mapping[str, str], run: str, inputs: SearchInputs, item: str) -> Iterator[ClusterSearch]:
    trials = parse_count("trials", inputs.trials, f"a whole number from 1 to {MAX_TRIALS}", low=1, high=MAX_TRIALS)
    seeds = parse_count("seeds", inputs.seeds, "a whole number from 2 to 100", low=2, high=100)
    base = Configuration("the base", _read_form(form))
    base.refuse_rerun()
    space = parse_space(inputs.space, base)
    workspace = Workspace.open(base.config("download").workspace)
    with StepRunner.open(workspace, f"{run}.{_name_training(item)}") as steps:
        name = inputs.scope.removesuffix(f".{COMMAND}")
        runner = TrialRunner(steps, name, run, COMMAND, inputs.tensors)
        yield ClusterSearch(runner, base, space, SearchOptions(trials, seeds, inputs.pruner, TUNED), inputs.model)


def _name_training(item: str) -> str:
    """Return the name that the search gives to the training of an item, `base` for none."""
    number, _, seed = item.partition(":")
    if not seed:
        return f"t{number}" if number else "base"
    return f"{'w' if int(number) else 'b'}{seed}"


def _read_form(form: Mapping[str, str]) -> RunParameters:
    """Return the parameters of a form without those that have their defaults, as a file of a configuration."""
    parameters, declared = parse_form(form), list_form_parameters()
    pipeline = {
        name: value for name, value in parameters.pipeline.items() if value not in (None, declared[name].default)
    }
    return RunParameters(pipeline, parameters.sections)


def parse_space(text: str, base: Configuration) -> SearchSpace:
    """Return the search space of JSON text; UserError for one that trials on a cluster can't have."""
    from ...components.step.config import load_yaml

    declared = load_yaml(text, "space") if text.strip() else DEFAULT_SPACE  # JSON is YAML
    space = SearchSpace.parse(declared, "space", base)
    space.check_train_only("space")
    return space


@dataclass
class ClusterSearch:
    """A search in one of its pods. `model`: URI of the base's model, empty while there is none."""

    runner: TrialRunner
    base: Configuration
    space: SearchSpace
    options: SearchOptions
    model: str

    def train_base(self) -> TriedValues:
        """Train the base; return it as the first trial."""
        model = self.runner.run_trial(self.base, "base", "train").read("model")
        return self._open(model).study.trials[0]

    def choose(self, rung: int) -> list[str]:
        """Return the numbers of the trials that train in a rung, counted from 0, without those that are so far already.

        After the last rung the trials are recorded, and what is returned are the trainings with new seeds, as
        `number:seed`: of the base, and of the best trial where that is another one.
        """
        search = self._open()
        if rung == count_rungs(self.options.pruner):
            return self._settle(search)
        numbers: Sequence[int] = range(len(search.study.trials), self.options.trials + 1)
        if rung == 0:
            self._propose(search, numbers)
        else:
            numbers = self._select_best(search, numbers, self._count_epochs(search, rung - 1))
        chosen = [number for number in numbers if not self._is_done(search, _read_open(search, number), rung)]
        say(COMMAND, f"rung {rung + 1}: {len(chosen)} trials to {self._count_epochs(search, rung)} epochs")
        return [str(number) for number in chosen]

    def train(self, item: str, rung: int) -> TriedValues:
        """Train an item of `choose` to the epochs of the rung, and return how far it is."""
        search = self._open()
        number, _, seed = item.partition(":")
        if seed:
            tried = search.study.trials[int(number)]
            tried = TriedValues(tried.number, tried.values, COMPLETE, search.train_with_seed(tried, int(seed)))
            search.study.write_open(item.replace(":", "-"), tried)
            return tried
        tried = _read_open(search, int(number))
        if not self._is_done(search, tried, rung):
            epochs = self._count_epochs(search, rung)
            is_last = rung == count_rungs(self.options.pruner) - 1
            tried = search.run_trial(
                tried.number, dict(tried.values), lambda course: not is_last and len(course) >= epochs
            )
            search.study.write_open(number, tried)
        score = "" if tried.score is None else f", {tried.score:.4f}"
        say(COMMAND, f"trial {number}: {tried.state} after {len(tried.course)} epochs{score} {tried.note}".rstrip())
        return tried

    def report(self, output: str) -> dict[str, Any]:
        """Write the best configuration, to `output` and to the run's folder, and the report; return the result."""
        started = time.monotonic()
        search, workspace, run = self._open(), self.runner.workspace, self.runner.run

        def read_score(tried: TriedValues, seed: int) -> float:
            trained = search.study.read_open(f"{tried.number}-{seed}")
            if trained is None or trained.score is None:
                raise MillError(f"trial {tried.number} was not trained with seed {seed}")
            return trained.score

        confirmation = search.confirm(self.options.seeds, read_score)
        options, place = SearchOptions(**vars(self.options) | {"output": output}), workspace.run_file_uri(run, TUNED)
        result = finish_search(search, confirmation, options, place)
        workspace.store.put(place, Path(output).read_bytes())
        for number, state, score, seconds, values in list_trials(result)[:SHOWN]:
            say(COMMAND, f"trial {number}: {state} {score} {seconds} {values}")
        say(COMMAND, result["reason"])
        metrics = {key: result[key] for key in ("name", "verdict", "reason", "best", "report", "config")}
        _write_record(workspace, run, RAN, metrics, round(time.monotonic() - started, 3))
        return result

    def _open(self, model: Dataset | None = None) -> Search:
        model = model or read_dataset(self.model, "model")
        return Search.open(self.runner, self.base, model, self.space, self.options.pruner)

    def _count_epochs(self, search: Search, rung: int) -> int:
        """Return the epochs after which the trials of a rung are compared."""
        last = count_rungs(self.options.pruner) - 1
        return max(1, round(search.epochs / float(REDUCTION ** (last - rung))))

    def _is_done(self, search: Search, tried: TriedValues, rung: int) -> bool:
        if tried.state in (COMPLETE, FAILED):
            return True
        is_last = rung == count_rungs(self.options.pruner) - 1
        return not is_last and len(tried.course) >= self._count_epochs(search, rung)

    def _propose(self, search: Search, numbers: Iterable[int]) -> None:
        """Make the trials of these numbers open ones, unless an earlier run has."""
        pending: list[dict[str, Any]] = []
        for number in numbers:
            tried = search.study.read_open(str(number))
            if tried is None:
                tried = TriedValues(number, search.study.suggest(pending), WAITING)
                search.study.write_open(str(number), tried)
            pending.append(tried.values)

    def _select_best(self, search: Search, numbers: Iterable[int], epochs: int) -> list[int]:
        """Return those of the open trials that are among the best after these epochs, of all that have reached them,
        trials of the study included."""
        opened = {number: _read_open(search, number) for number in numbers}
        known = [*search.study.trials, *opened.values()]
        scores = sorted((max(tried.course[:epochs]) for tried in known if _has_reached(tried, epochs)), reverse=True)
        threshold = scores[max(1, len(scores) // REDUCTION) - 1]
        return [
            number for number, tried in opened.items()
            if _has_reached(tried, epochs) and max(tried.course[:epochs]) >= threshold
        ]  # fmt: skip

    def _settle(self, search: Search) -> list[str]:
        """Record the open trials in the study; return the trainings with new seeds that are missing."""
        study = search.study
        for number in range(len(study.trials), self.options.trials + 1):
            study.add(_read_open(search, number))
        best = study.best.number
        items = (
            [(number, seed) for seed in search.list_seeds(self.options.seeds) for number in (0, best)] if best else []
        )
        return [f"{number}:{seed}" for number, seed in items if not study.read_open(f"{number}-{seed}")]


def _read_open(search: Search, number: int) -> TriedValues:
    tried = search.study.read_open(str(number))
    if tried is None:
        raise MillError(f"trial {number} has no record of a search in {search.runner.workspace.uri}")
    return tried


def _has_reached(tried: TriedValues, epochs: int) -> bool:
    return tried.state == COMPLETE or (tried.state == PRUNED and len(tried.course) >= epochs)


def _write_record(
    workspace: Workspace, run: str, state: str, metrics: dict[str, Any], seconds: float, code: int = EXIT_OK,
    error: str = "",
) -> None:  # fmt: skip
    """Write the record of the search, in the form of a step's."""
    record = StepRecord(str(metrics.get("report", "")), "", state, metrics, error, "", code, seconds)
    workspace.write_step_record(run, COMMAND, record)


def dump_space(space: SearchSpace) -> str:
    """Return a search space as the JSON text of a pipeline's parameter, empty for the default one."""
    return "" if space.declared == DEFAULT_SPACE else json.dumps(space.declared, ensure_ascii=False)
