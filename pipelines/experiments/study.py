"""A resumable search by Optuna: what it has tried is in the workspace, and continues where it was.

Each finished trial is a record, `names/<name>/studies/<key>/<number>.json`, from which Optuna's study is built again in
memory. The key is that of everything that trials depend on, so another space or base begins another study.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ...components.dataset.workspace import Workspace
from ...components.step.config import Scalar
from .search_space import SearchSpace

if TYPE_CHECKING:
    import optuna

COMPLETE, PRUNED, FAILED = "complete", "pruned", "failed"
_STARTUP_TRIALS = 4
"""Trials that are never pruned, since there is too little to compare with."""


@dataclass(frozen=True)
class TriedValues:
    """A trial: its number, values, state, validation score by epoch (`course`), best `score`, model and seconds."""

    number: int
    values: dict[str, Scalar]
    state: str
    score: float | None = None
    course: tuple[float, ...] = ()
    model: str = ""
    seconds: float | None = None
    note: str = ""

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> TriedValues:
        """Return the trial of a record."""
        values = {key: record[key] for key in cls.__dataclass_fields__}
        return cls(**values | {"course": tuple(record["course"])})


@dataclass
class Study:
    """The trials of one search, in their order."""

    workspace: Workspace
    name: str
    key: str
    space: SearchSpace
    pruner: str
    seed: int
    trials: list[TriedValues] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read the trials of earlier calls, up to the first number that has no record."""
        while record := self.workspace.study_trial(self.name, self.key, len(self.trials)):
            self.trials.append(TriedValues.from_dict(record))

    @property
    def best(self) -> TriedValues:
        """The trial with the highest score, the first of equal ones."""
        complete = [trial for trial in self.trials if trial.state == COMPLETE]
        return max(complete, key=lambda trial: (trial.score or 0.0, -trial.number))

    def suggest(self) -> dict[str, Scalar]:
        """Return the values of the next trial: by TPE (Bergstra et al., "Algorithms for Hyper-Parameter Optimization",
        2011), and at random at first. The same trials before give the same values."""
        return self.space.suggest(self._build().ask())

    def should_prune(self, course: list[float]) -> bool:
        """Return whether a trial with these scores, one an epoch, is to end: it is worse than the median of the others
        at the same epoch, or not among the best that ASHA keeps (Li et al., "A System for Massively Parallel
        Hyperparameter Tuning", 2020)."""
        if not course or self.pruner == "none":
            return False
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.RandomSampler(0), pruner=make_pruner(self.pruner)
        )
        for tried in self.trials:  # step by step, for ASHA's rungs are counted as scores are reported
            earlier = study.ask()
            _report(earlier, tried.course)
            is_complete = tried.state == COMPLETE
            study.tell(earlier, tried.score if is_complete else None, state=_get_state(tried.state))
        return _report(study.ask(), course)

    def add(self, trial: TriedValues) -> None:
        """Record a finished trial."""
        self.workspace.add_study_trial(self.name, self.key, trial.number, asdict(trial))
        self.trials.append(trial)

    def _build(self) -> optuna.Study:
        import optuna
        from optuna.trial import create_trial

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=self.seed + len(self.trials), n_startup_trials=2 * _STARTUP_TRIALS)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for tried in self.trials:
            study.add_trial(create_trial(
                state=_get_state(tried.state),
                params=tried.values,
                distributions=self.space.make_distributions(tried.values),
                value=tried.score if tried.state == COMPLETE else None,
                intermediate_values=dict(enumerate(tried.course, 1)),
            ))  # fmt: skip
        return study


def _report(trial: optuna.Trial, course: Sequence[float]) -> bool:
    """Report the scores of all epochs; return whether the trial is to end after one of them."""
    is_behind = False
    for epoch, score in enumerate(course, 1):
        trial.report(score, epoch)
        is_behind |= bool(trial.should_prune())  # ASHA says so once, at the epoch of a rung
    return is_behind


def _get_state(state: str) -> optuna.trial.TrialState:
    from optuna.trial import TrialState

    return {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}[state]


def make_pruner(name: str) -> Any:
    """Return Optuna's pruner of that name."""
    import optuna

    makers: dict[str, Callable[[], Any]] = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=1),
        "asha": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3),
        "none": optuna.pruners.NopPruner,
    }
    return makers[name]()
