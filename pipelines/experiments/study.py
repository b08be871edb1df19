"""Optuna's study of a search: values, scores and pruning of its trials, kept in the workspace as Optuna's journal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ...components.dataset.kinds import ModelExtra
from ...components.dataset.manifest import Dataset
from ...components.dataset.workspace import Workspace
from ...components.step.config import Scalar
from ...components.storage.errors import MillError, UserError
from ...components.storage.store import get_store
from ...components.train.loop.history import TAGS, diagnose
from .search_space import round_values

if TYPE_CHECKING:
    import optuna

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
POLL_S = 3.0
"""Seconds between two looks at a training's event file, which on S3 is downloaded for it."""
_STARTUP_TRIALS = 4
"""Trials that are never pruned, since there is too little to compare with."""
_LATE = 0.75
"""Share of the epochs after which a best epoch counts as late."""


@dataclass(frozen=True)
class TriedValues:
    """A trial: its number, values, state, validation score by epoch (`course`), best `score`, model and seconds."""

    number: int
    values: dict[str, Scalar]
    state: str
    score: float | None
    course: tuple[float, ...]
    model: str = ""
    seconds: float | None = None
    note: str = ""

    @classmethod
    def from_trial(cls, trial: optuna.trial.FrozenTrial) -> TriedValues:
        """Return what Optuna holds of a finished trial."""
        course = tuple(score for _, score in sorted(trial.intermediate_values.items()))
        state = FAILED if trial.state.name == "FAIL" else trial.state.name.lower()
        return cls(
            trial.number, round_values(trial.params), state, max(course, default=None), course, **trial.user_attrs
        )


class Study:
    """An Optuna study whose journal is the file `uri`, stored after each finished trial.

    A trial that was interrupted is not in it: the next one of its number gets the same values, and continues.
    """

    def __init__(self, uri: str, folder: Path, pruner: str, seed: int) -> None:
        """Open the study; `folder` holds the journal while it is written."""
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._uri, self._seed, self._journal = uri, seed, folder / "study.log"
        if get_store(uri).stat(uri):
            self._journal.write_bytes(get_store(uri).read(uri))
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(self._journal)))
        self._study = optuna.create_study(
            storage=storage, study_name="tune", direction="maximize", load_if_exists=True, pruner=make_pruner(pruner)
        )
        self.trials = [TriedValues.from_trial(trial) for trial in self._study.trials]

    @property
    def best(self) -> TriedValues:
        """The trial with the highest score, the first of equal ones."""
        complete = [trial for trial in self.trials if trial.state == COMPLETE]
        return max(complete, key=lambda trial: (trial.score or 0.0, -trial.number))

    def begin(self) -> optuna.Trial:
        """Return a new trial, whose values are chosen by TPE (Bergstra et al., "Algorithms for Hyper-Parameter
        Optimization", 2011), and at random at first. The same trials before give the same values."""
        import optuna

        self._study.sampler = optuna.samplers.TPESampler(
            seed=self._seed + len(self.trials), n_startup_trials=2 * _STARTUP_TRIALS
        )
        return self._study.ask()

    def end(self, trial: optuna.Trial, state: str, **attributes: Any) -> TriedValues:
        """Record how a trial ended, with the `attributes` of `TriedValues` that Optuna has no place for."""
        from optuna.trial import TrialState

        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        score = max(self._read(trial).intermediate_values.values()) if state == COMPLETE else None
        self._study.tell(trial, score, TrialState["FAIL" if state == FAILED else state.upper()])
        get_store(self._uri).put(self._uri, self._journal.read_bytes())
        self.trials.append(TriedValues.from_trial(self._read(trial)))
        return self.trials[-1]

    def report(self, trial: optuna.Trial, course: Sequence[float]) -> bool:
        """Report the scores of a trial, one an epoch, as far as they are new; return whether it is to end."""
        is_behind = False
        for epoch in range(len(self._read(trial).intermediate_values), len(course)):
            trial.report(course[epoch], epoch + 1)
            is_behind |= trial.should_prune()  # ASHA says so once, at the epoch of a rung
        return is_behind

    def _read(self, trial: optuna.Trial) -> optuna.trial.FrozenTrial:
        return self._study.get_trials(deepcopy=False)[trial.number]


def make_pruner(name: str) -> optuna.pruners.BasePruner:
    """Return Optuna's pruner: by the median of the others at the same epoch, or ASHA (Li et al., "A System for
    Massively Parallel Hyperparameter Tuning", 2020)."""
    from optuna import pruners

    if name == "median":
        return pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=1)
    return (
        pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3) if name == "asha" else pruners.NopPruner()
    )


@dataclass
class PruningWatch:
    """Reports the validation scores of a training to its trial, by the TensorBoard events of `run`, while it runs."""

    study: Study
    trial: optuna.Trial
    workspace: Workspace
    run: str
    metric: str
    _next_look: float = field(default=0.0, init=False)

    def __call__(self) -> bool:
        """Return whether the training is to end."""
        if time.monotonic() < self._next_look:
            return False
        course = read_events(self.workspace, self.run, TAGS[f"val_{self.metric}"])
        self._next_look = time.monotonic() + POLL_S
        return self.study.report(self.trial, course)


def read_events(workspace: Workspace, run: str, tag: str) -> list[float]:
    """Return the values of a tag in a run's TensorBoard files, by step; what can't be read yet is left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with TemporaryDirectory(prefix="imagemill-events-") as folder:
        try:
            for entry in workspace.store.list(workspace.run_file_uri(run, "tensorboard")):
                (Path(folder) / entry.uri.rpartition("/")[2]).write_bytes(workspace.store.read(entry.uri))
        except (MillError, FileNotFoundError):
            return []  # the next look sees more
        events = EventAccumulator(folder).Reload()
        return [event.value for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


def read_course(model: Dataset, metric: str) -> tuple[float, ...]:
    """Return the validation score of each epoch; UserError for a model without validation."""
    column = f"val_{metric}"
    course = tuple(float(row[column]) for row in ModelExtra.of(model.manifest).history if column in row)
    if not course:
        raise UserError(
            "val_fraction: expected validation images, by which values are chosen, found none in the source"
        )
    return course


def describe_regularization(model: Dataset, base_score: float, metric: str) -> str:
    """Return what the losses of a training say of its regularization; empty where nothing stands out.

    Too little: the training images are learned by heart (`diagnose`). Too much: augmented images stay harder than those
    of validation to the end, the best epoch is a late one, and the score is below that of the base.
    """
    extra, config = ModelExtra.of(model.manifest), model.manifest.config
    softens = ("label_smoothing", "mixup_probability", "cutmix_probability")
    history, best_epoch = extra.history, extra.best_epoch or 0
    if diagnosis := diagnose(history, best_epoch, not any(config.get(name) for name in softens)):
        return diagnosis
    last = history[-1]
    is_harder = last["train_loss"] > 1.1 * last.get("val_loss", last["train_loss"])
    if is_harder and best_epoch > _LATE * len(history) and max(read_course(model, metric)) < base_score:
        return "too much regularization for so few epochs: the training loss stays above the validation loss"
    return ""
