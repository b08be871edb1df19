"""Plan the epochs of a training: as many as fit into its time, and more while validation rises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...step.progress import format_duration
from .checkpoint import TrainingState
from .history import EpochRow

MEASURED_BATCHES = 20
"""Batches by which the time of an epoch is estimated at most, or half of the first epoch's."""
PLANNED_SHARE = 0.85
"""Share of the time that is planned: batches are slower at times, and a run has other steps beside training."""
VALIDATION_COST = 1 / 3
"""Time of a validation image in that of a training image: the forward pass alone."""
MIN_RISE = 0.02
"""Macro-F1 by which validation rises in the last third of the epochs if it still rises at their end; a standard error
of its score where that is more."""
MAX_ROUNDS = 4
"""Times that the recipe's epochs are trained at most while validation rises."""


class OutOfTime(Exception):
    """Raised between two batches when the time is spent; the epochs so far count."""


@dataclass(frozen=True)
class Plan:
    """Epochs of a training; batches of each, 0 for all; and epochs done when the learning rate rises from zero."""

    epochs: int
    batches: int = 0
    round_start: int = 0


@dataclass(frozen=True)
class Planner:
    """Makes the plan of a training, and the line that says it, empty where all is as requested.

    Attributes:
        epochs: requested.
        batches: of an epoch.
        batch_size: images of a batch.
        val_images: validation images.
        seconds: that training may take.
        time: the option that says so; empty where it is the default.
        goes_on: further rounds follow while validation rises.
    """

    epochs: int
    batches: int
    batch_size: int
    val_images: int
    seconds: float = math.inf
    time: str = ""
    goes_on: bool = False

    def plan_by_batches(self, state: TrainingState, batch_seconds: float, prepared: float) -> tuple[Plan, str]:
        """Return the first plan, by the mean time of batches of an epoch that is under way.

        `prepared`: seconds spent that are in no epoch of the history. Where not even one epoch fits, batches are left
        out of it.
        """
        epoch_seconds = batch_seconds * (self.batches + self.val_images / self.batch_size * VALIDATION_COST)
        spent = sum_seconds(state.history) + prepared
        left = PLANNED_SHARE * self.seconds - spent
        total = spent + epoch_seconds * (self.epochs - state.epoch)
        if left >= epoch_seconds:
            plan = Plan(min(self.epochs, state.epoch + int(left // epoch_seconds)))
            return plan, self._describe(plan, spent + epoch_seconds * (plan.epochs - state.epoch), total)
        fitting = math.floor((left - epoch_seconds) / batch_seconds) + self.batches
        # An epoch that was interrupted, or begun on another machine, may be beyond what fits.
        batches = max(fitting, state.batches + 1) % self.batches
        planned = spent + epoch_seconds - batch_seconds * (self.batches - (batches or self.batches))
        plan = Plan(state.epoch + 1, batches)
        return plan, self._describe(plan, planned, total)

    @property
    def measured_batches(self) -> int:
        """Return the number of batches, after an epoch's first one, by which the first plan is made; 0 for none."""
        return 0 if math.isinf(self.seconds) else min(MEASURED_BATCHES, self.batches // 2)

    def plan_by_history(self, state: TrainingState) -> tuple[Plan, str]:
        """Return the plan after an epoch: after the first one by its own time, later without epochs for which the
        machine has become too slow, or with another round.

        A function of state and history, so that a training that was interrupted has the same schedule.
        """
        plan = Plan(state.planned_epochs or self.epochs, state.planned_batches, state.round_start)
        seconds = [float(row["seconds"]) for row in state.history if row["updates"]]
        if len(seconds) == 1 and not plan.batches and state.epoch < plan.epochs:
            fitting = count_fitting_epochs(self.epochs, PLANNED_SHARE * self.seconds, state.history)
            if fitting != plan.epochs:
                spent = sum_seconds(state.history)
                planned, total = (spent + seconds[0] * (n - state.epoch) for n in (fitting, self.epochs))
                return Plan(fitting), self._describe(Plan(fitting), planned, total)
        fitting = count_fitting_epochs(plan.epochs, self.seconds, state.history)
        if fitting < plan.epochs:
            line = f"{fitting} of {plan.epochs} planned epochs fit: this machine has become slower"
            return Plan(fitting, plan.batches, plan.round_start), line
        if self.goes_on and state.epoch >= plan.epochs and not plan.batches:
            return self._plan_next_round(state, plan)
        return plan, ""

    def _plan_next_round(self, state: TrainingState, plan: Plan) -> tuple[Plan, str]:
        """Return the plan with a round as long as the last one where validation rose in its last third; without it
        where not even a third of it fits."""
        rise = measure_rise(state.history[plan.round_start :], self.val_images)
        if rise is None or state.epoch >= MAX_ROUNDS * self.epochs:
            return plan, ""
        line = f"validation macro-F1 rose from {rise[0]:.3f} to {rise[1]:.3f} in the last third of the epochs"
        length = plan.epochs - plan.round_start
        epochs = count_fitting_epochs(plan.epochs + length, PLANNED_SHARE * self.seconds, state.history)
        if 3 * (epochs - plan.epochs) < length:
            return plan, f"{line}: more would help (--epochs {2 * plan.epochs})"
        return Plan(epochs, 0, plan.epochs), f"{line}: {epochs - plan.epochs} more follow"

    def _describe(self, plan: Plan, planned: float, total: float) -> str:
        """Return the line on a first plan that takes `planned` seconds, and `total` for all that was requested."""
        if plan.epochs == self.epochs and not plan.batches:
            return ""
        part = f"{plan.epochs} of {self.epochs} epochs"
        if plan.batches:
            part = f"{plan.batches:,} of the {self.batches:,} batches of one epoch"
        remedy = f"--time {math.ceil(total / PLANNED_SHARE / 60)}m" if self.time else f"--epochs {self.epochs}"
        return (
            f"planned {part}: about {format_duration(planned)} on this machine; all {self.epochs} epochs would take "
            f"{format_duration(total)} ({remedy})"
        )


def count_fitting_epochs(planned: int, seconds: float, history: Sequence[EpochRow]) -> int:
    """Return how many of the planned epochs end within `seconds`, at the mean speed of those that took optimizer
    steps; at least those that are done."""
    epochs = [float(row["seconds"]) for row in history if row["updates"]]
    if math.isinf(seconds) or not epochs:
        return planned
    fitting = int((seconds - sum_seconds(history)) // max(sum(epochs) / len(epochs), 1e-3))
    return min(planned, len(history) + max(0, fitting))


def sum_seconds(history: Sequence[EpochRow]) -> float:
    """Return the seconds of all epochs."""
    return sum(float(row["seconds"]) for row in history)


def measure_rise(history: Sequence[EpochRow], val_images: int) -> tuple[float, float] | None:
    """Return validation macro-F1 before and at the end of the last third of the epochs where it rose in it by more
    than `MIN_RISE` and a standard error; else None. Both are means of a tenth of the epochs, since epochs differ."""
    scores = [float(row["val_macro_f1"]) for row in history if "val_macro_f1" in row]
    if len(scores) < 6:
        return None
    width = max(2, len(scores) // 10)
    middle = 2 * len(scores) // 3
    before, last = sum(scores[middle - width : middle]) / width, sum(scores[-width:]) / width
    error = math.sqrt(last * (1 - last) / val_images)
    return (before, last) if last - before > max(MIN_RISE, error) else None
