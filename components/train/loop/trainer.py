"""The training loop: epochs of optimizer steps with a validation after each, and checkpoints to resume from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...dataset.manifest import Dataset
from ...models.blocks import parameter_blocks
from ...step.progress import Progress, format_duration
from ...step.step import Context
from ...storage.errors import TransientError, UserError
from ..config import TrainConfig
from .checkpoint import Learner, TrainingState, load_checkpoint, save_checkpoint
from .distributed import Communicator, synchronize_batch_norm
from .domain_adversary import DomainAdversary
from .head_solver import HeadSolution
from .history import EpochRow, EventFile, open_events
from .losses import balance_classes
from .optimizer import LearningRateSchedule, MovingAverage, count_trainable_blocks, make_optimizer
from .planning import OutOfTime, Plan, Planner, sum_seconds
from .stepper import Stepper, choose_autocast_dtype
from .training_batches import TrainingBatches
from .validation import Validator

if TYPE_CHECKING:
    import torch

EVENT_INTERVAL_S = 10.0
"""Seconds between two points of TensorBoard's curves within an epoch."""
CHECKPOINT_TIME_SHARE = 0.05
"""Largest share of the training time that checkpoints after epochs take: short epochs are not all followed by one. A
kill costs at most one epoch, or twenty times the duration of a checkpoint where that is longer."""


@dataclass
class Trainer:
    """Runs epochs of optimizer steps and validation of one network on one tensors dataset, with checkpoints.

    Args:
        network: with its initial weights; it is moved to the device.
        config: resolved, every option has a value.
        uri: URI of the model dataset; checkpoints lie below it.
        comm: connection to the other processes of this training.
        events_uri: folder or S3 prefix of TensorBoard's event files; empty for none.
        solution: of the head on the frozen features; None where there is none, or several processes train.
        target: tensors of unlabeled images, to whose domain the features are adapted; None for no adaptation.
        log_epoch: called by the main process with the row of each epoch.
        preparation_seconds: time that went into the features and the solution.
        seconds: that training may take where the config's `time` is unset.
        goes_on: train further rounds of as many epochs while validation rises.

    Attributes:
        epochs: planned number of epochs, fewer than the config's where they do not fit into the time, more where
            training goes on.
        events: the writer of these files while `run` is under way.
        _counted_until: time (`time.monotonic()`) up to which `state.seconds` counts the current epoch.
        _last_checkpoint: time of the last checkpoint in this process, or of the start.
        _checkpoint_seconds: duration of the last checkpoint; 0 before the first, so that the first epoch is followed by
            one.
    """

    network: torch.nn.Module
    tensors: Dataset
    config: TrainConfig
    device: torch.device
    uri: str
    context: Context
    comm: Communicator = field(default_factory=Communicator)
    events_uri: str = ""
    solution: HeadSolution | None = None
    target: Dataset | None = None
    log_epoch: Callable[[EpochRow], None] | None = None
    preparation_seconds: float = 0.0
    seconds: float = math.inf
    goes_on: bool = False
    events: EventFile | None = field(default=None, init=False)
    _counted_until: float = field(default=0.0, init=False)
    _last_checkpoint: float = field(default=0.0, init=False)
    _checkpoint_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        import torch

        config, manifest, image = self.config, self.tensors.manifest, self.tensors.manifest.image_spec
        if self.comm.world_size > 1 and (line := synchronize_batch_norm(self.network, config.backbone, self.device)):
            self.context.say(line)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.blocks = parameter_blocks(self.network)
        average = MovingAverage(self.network, config.ema) if config.ema else None
        dtype = choose_autocast_dtype(config.precision, self.device)
        scaler = torch.amp.GradScaler(self.device.type) if dtype is torch.float16 else None
        shape = (image.shape[2], image.side, image.side)
        adversary = None
        if self.target:
            adversary = DomainAdversary(self.network, self.target, config, image, shape, self.device, self.comm)
        optimizer = make_optimizer(self.network, self.blocks, config)
        self.learner = Learner(self.network, optimizer, average, scaler, adversary)
        if adversary:
            adversary.add_to_optimizer(optimizer, config.weight_decay)
        loss, sampling_weights = balance_classes(self.tensors, config, self.device)
        self.batches = TrainingBatches(self.tensors, config, image, self.device, self.comm, sampling_weights)
        self.num_train_images = manifest.totals.by_split["train"]
        self.solves_head = self._should_solve_head()
        self.epochs = config.epochs

        def autocast() -> torch.autocast:
            return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

        self.stepper = Stepper(
            self.learner,
            self.blocks,
            loss,
            self._make_schedule(TrainingState()),
            config,
            self.device,
            self.comm,
            autocast,
            shape,
        )
        self.validator = Validator(
            self.tensors,
            4 * config.batch_size,
            self.device,
            autocast,
            self.batches.threads,
            self.batches.cache,
            self.comm,
        )

    def _make_schedule(self, state: TrainingState) -> LearningRateSchedule:
        """Return the schedule of the current round: of its epochs that take optimizer steps."""
        updates_per_epoch = math.ceil((state.planned_batches or len(self.batches)) / self.config.accumulate)
        start, end = (updates_per_epoch * max(0, n - self.solves_head) for n in (state.round_start, self.epochs))
        return LearningRateSchedule(self.config.learning_rate, end, self.config.warmup, start)

    @property
    def planner(self) -> Planner:
        config, val_images = self.config, self.tensors.manifest.totals.by_split.get("val", 0)
        return Planner(
            config.epochs, len(self.batches), config.batch_size, val_images, min(self.seconds, config.seconds),
            config.time, self.goes_on,
        )  # fmt: skip

    def _should_solve_head(self) -> bool:
        """Return whether the first epoch solves the head; say so where it was asked for and is not possible."""
        if self.config.head != "solved":
            return False
        if self.comm.world_size > 1 or self.solution is None:
            self.context.say(
                "the head is trained: solving it takes one process, a linear head, and one label for each image"
            )
            return False
        return True

    def run(self) -> TrainingState:
        """Train from the last checkpoint to the last epoch, and return the final state."""
        state = self._resume()
        started, first_epoch = time.monotonic(), state.epoch
        self._last_checkpoint = started
        events_uri = self.events_uri if self.comm.is_main else ""
        with open_events(events_uri, state.updates, state.history) as self.events:
            self._plan_by_history(state)
            while not self.is_finished(state):
                try:
                    self._run_epoch(state)
                except OutOfTime:
                    limit = self.config.time or format_duration(self.planner.seconds)
                    self.context.say(f"the time limit of {limit} is reached: stopped in epoch {state.epoch + 1}")
                    return state
                seconds_per_epoch = (time.monotonic() - started) / (state.epoch - first_epoch)
                self._report_epoch(state.history[-1], seconds_per_epoch * (self.epochs - state.epoch))
                self._plan_by_history(state)
        if state.epoch < self.epochs:
            self.context.say(f"no better validation in {self.config.early_stopping} epochs: stopped early")
        return state

    def _plan_by_batches(self, state: TrainingState, batch_seconds: float) -> None:
        """Plan the epochs that fit into the time, by the mean time of a batch in the main process."""
        prepared = 0.0 if state.epoch else self.preparation_seconds
        self._follow(state, *self.planner.plan_by_batches(state, self.comm.broadcast(batch_seconds)[0], prepared))

    def _plan_by_history(self, state: TrainingState) -> None:
        """Plan once an epoch has taken steps, and again after each."""
        if state.planned_epochs or any(row["updates"] for row in state.history):
            self._follow(state, *self.planner.plan_by_history(state))

    def _follow(self, state: TrainingState, plan: Plan, line: str) -> None:
        """Set the number of epochs and end the schedule with them; say the line."""
        if line:
            self.context.say(line)
        state.planned_epochs = self.epochs = plan.epochs
        state.planned_batches, state.round_start = plan.batches, plan.round_start
        self.stepper.schedule = self._make_schedule(state)

    def _resume(self) -> TrainingState:
        state = load_checkpoint(self.uri, self.learner)
        self.comm.check_equal("the checkpoint", state.number, state.epoch, state.batches)
        if state.number:
            batches = f" and {state.batches} batches" if state.batches else ""
            self.context.say(f"resuming after epoch {state.epoch}{batches}")
        return state

    def is_finished(self, state: TrainingState) -> bool:
        """Return whether all epochs are done, or `early_stopping` of them brought no better validation.

        Epochs in which blocks are still frozen do not count.
        """
        patience, config = self.config.early_stopping, self.config
        if state.epoch >= self.epochs:
            return True
        if not patience or not self.validator.has_images:
            return False
        frozen_epochs = config.probe_epochs + config.unfreeze_epochs if config.weights else 0
        start = max(state.round_start, min(frozen_epochs, state.epoch))
        return state.epoch - max(state.best_epoch, start) >= patience

    def _run_epoch(self, state: TrainingState) -> None:
        """Train the rest of an epoch, validate, and save a checkpoint where one is due."""
        trainable_blocks = count_trainable_blocks(self.config, len(self.blocks), state.epoch)
        self.stepper.begin_epoch(trainable_blocks)
        if self.solves_head and state.epoch == 0:
            self._solve_head(state)
        else:
            self._train_batches(state)
        row = self._summarize_epoch(state, trainable_blocks) | self._validate(state)
        _check_finite("validation loss", row.get("val_loss", 0.0), row["epoch"])
        seconds = round(state.seconds + time.monotonic() - self._counted_until, 3)
        row["seconds"] = self.comm.broadcast(seconds)[0]
        state.end_epoch(row)
        if self._is_best(state):
            state.best_epoch = state.epoch
            if self.comm.is_main:
                weights = self.evaluated_network.state_dict()
                state.best_weights = {name: value.detach().cpu().clone() for name, value in weights.items()}
        if time.monotonic() - self._last_checkpoint >= self._checkpoint_seconds / CHECKPOINT_TIME_SHARE:
            self._save(state)
        if self.events:
            self.events.add(state.updates, row)
            self.events.publish()
        if self.log_epoch and self.comm.is_main:
            self.log_epoch(row)

    def _train_batches(self, state: TrainingState) -> None:
        """Train on the batches of an epoch from number `state.batches` on."""
        import torch

        epoch, self._counted_until = state.epoch, time.monotonic()
        first_batch, first_done = state.batches, 0.0
        measured = 0 if state.planned_epochs else self.planner.measured_batches
        if state.loss_sum is None:
            state.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        progress = Progress("train", total=self.num_train_images, every_s=3.0 if self.comm.is_main else math.inf)
        progress.leave_out(state.images)
        adversary, event_time = self.learner.adversary, time.monotonic()
        if adversary:
            batches = adversary.iter_epoch(self.batches, epoch, state.batches)
        else:
            batches = self.batches.iter_epoch(epoch, state.batches)
        with closing(batches):
            for batch in batches:
                is_last = batch.is_last or state.batches + 1 == state.planned_batches
                is_update = is_last or (batch.number + 1) % self.config.accumulate == 0
                state.loss_sum += self.stepper.train_batch(batch, epoch, is_update, state.updates)
                state.batches += 1
                state.images += batch.total
                progress.add(batch.total, f"epoch {epoch + 1}/{self.epochs}")
                if state.batches == first_batch + 1:  # the first one takes longer
                    first_done = time.monotonic()
                elif measured and state.batches == first_batch + 1 + measured:
                    self._plan_by_batches(state, (time.monotonic() - first_done) / measured)
                if is_update:
                    state.updates += 1
                    state.waiting, self.batches.wait_seconds = state.waiting + self.batches.wait_seconds, 0.0
                    self._stop_or_save(state)
                    self._check_time(state)
                    if self.events and time.monotonic() - event_time > EVENT_INTERVAL_S:
                        loss = state.loss_sum.item() * self.comm.world_size / state.images
                        row = {"train_loss": loss, "learning_rate": self.stepper.get_last_rate(state.updates)}
                        self.events.add(state.updates, row)
                        event_time = time.monotonic()
                if is_last:
                    break
            self.comm.finish_stop_check()
        self._count_time(state)

    def _check_time(self, state: TrainingState) -> None:
        """Raise OutOfTime once the configured time is used up, if an epoch is complete and no other process trains."""
        if state.history and self.comm.world_size == 1 and not math.isinf(self.planner.seconds):
            seconds = sum_seconds(state.history) + state.seconds + time.monotonic() - self._counted_until
            if seconds > self.planner.seconds:
                raise OutOfTime

    def _solve_head(self, state: TrainingState) -> None:
        """Set the head to the solution on the frozen features: an epoch without optimizer steps."""
        import torch

        self._counted_until = time.monotonic() - self.preparation_seconds
        solution = self.solution
        assert solution is not None
        solution.apply(self.network)
        if self.learner.average:
            self.learner.average.network.load_state_dict(self.network.state_dict())
        state.images = solution.images
        state.loss_sum = torch.tensor(solution.loss * solution.images, dtype=torch.float64, device=self.device)
        self._count_time(state)

    def _summarize_epoch(self, state: TrainingState, trainable_blocks: int) -> EpochRow:
        """Return the training columns of the epoch's row in the history."""
        assert state.loss_sum is not None
        loss = self.comm.sum(state.loss_sum) / max(1, state.images)
        _check_finite("loss", loss, state.epoch + 1)
        row: EpochRow = {
            "epoch": state.epoch + 1,
            "train_loss": loss,
            "learning_rate": self.stepper.get_last_rate(state.updates),
            "images_per_second": round(state.images / max(state.seconds, 1e-3), 1),
            "waiting": round(state.waiting / max(state.seconds, 1e-3), 4),
            "updates": state.updates,
            "blocks": trainable_blocks,
        }
        if self.learner.average:
            row["ema"] = round(self.learner.average.get_decay(), 6)
        if self.learner.adversary:
            row["domain_accuracy"] = round(self.learner.adversary.pop_accuracy(), 4)
        return row

    @property
    def evaluated_network(self) -> torch.nn.Module:
        """The network that is validated and stored: the moving average's where there is one."""
        return self.learner.average.network if self.learner.average else self.network

    def _validate(self, state: TrainingState) -> dict[str, float]:
        """Return the metrics on the validation images, which all processes compute together."""
        if self.solves_head and not state.epoch and self.solution and self.solution.out_of_fold:
            return self.solution.out_of_fold.metrics
        return self.validator.validate(self.evaluated_network, lambda: self._stop_if_requested(state))

    def _is_best(self, state: TrainingState) -> bool:
        """Return whether the last epoch has the best validation macro-F1, or the same with a lower loss.

        Always true without validation images, so that the last epoch is kept. A solved head stays the best until an
        epoch gains on it, with the recipe finetune a standard error (binomial, approximate for macro-F1).
        """
        row = state.history[-1]
        if "val_macro_f1" not in row or not state.best_epoch:
            return True
        best = state.history[state.best_epoch - 1]
        margin = 0.0
        if self.solves_head and state.best_epoch == 1 and self.config.has_head_margin:
            score, images = best["val_macro_f1"], self.tensors.manifest.totals.by_split["val"]
            margin = math.sqrt(score * (1 - score) / images)
        return (row["val_macro_f1"] - margin, -row["val_loss"]) > (best["val_macro_f1"], -best["val_loss"])

    def _report_epoch(self, row: EpochRow, seconds_left: float) -> None:
        parts = [f"epoch {row['epoch']}/{self.epochs}", f"loss {row['train_loss']:.3f}"]
        if "val_macro_f1" in row:
            parts += [f"val loss {row['val_loss']:.3f}", f"val macro-F1 {row['val_macro_f1']:.3f}"]
        if "domain_accuracy" in row:
            parts.append(f"domain accuracy {row['domain_accuracy']:.3f}")
        parts += [f"{row['images_per_second']:,.0f} images/s", f"{row['waiting']:.0%} waiting for data"]
        self.context.say(" · ".join([*parts, f"{format_duration(seconds_left)} left"]))

    def _stop_or_save(self, state: TrainingState) -> None:
        """Stop if any process was asked to, else save a checkpoint where one is due; called after an optimizer step."""
        if self.comm.should_stop():
            error = self._save_and_make_stop_error(state)
            self.comm.wait_for_main()  # until it has saved
            raise error
        minutes = self.config.checkpoint_minutes
        if minutes and self.comm.is_main and time.monotonic() - self._last_checkpoint >= 60 * minutes:
            self._count_time(state)
            self._save(state)

    def _stop_if_requested(self, state: TrainingState) -> None:
        """Stop if the main process was asked to, which then saves; called between batches of validation."""
        if self.comm.is_main and self.comm.stop.is_requested:
            raise self._save_and_make_stop_error(state)

    def _save_and_make_stop_error(self, state: TrainingState) -> TransientError:
        """Save a checkpoint, and return the error that ends this attempt."""
        self._count_time(state)
        self._save(state)
        return TransientError(
            f"stopped by {self.comm.stop.requested_by} after {state.batches} batches of epoch {state.epoch + 1}; "
            "the same command resumes from the checkpoint"
        )

    def _save(self, state: TrainingState) -> None:
        """Save a checkpoint in the main process: all have the same weights. UserError for a loss of nan or infinity,
        so that the last good checkpoint stays."""
        if self.comm.is_main:
            if state.loss_sum is not None:
                _check_finite("loss", state.loss_sum.item(), state.epoch + 1)
            started = time.monotonic()
            save_checkpoint(self.uri, state, self.learner)
            self._checkpoint_seconds = time.monotonic() - started
        self._last_checkpoint = time.monotonic()

    def _count_time(self, state: TrainingState) -> None:
        """Add the time since the last call, or since the epoch began, to the epoch's."""
        now = time.monotonic()
        state.seconds, self._counted_until = state.seconds + now - self._counted_until, now


def _check_finite(name: str, loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise UserError(f"epoch {epoch}: the {name} is {loss}; try a smaller learning_rate")
