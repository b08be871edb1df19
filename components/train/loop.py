"""The training loop: epochs of steps, a validation after each, the best one kept, nothing lost when it is killed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..store.blocks import parameter_blocks
from ..store.errors import TransientError, UserError
from ..store.labels import MULTI
from ..store.manifest import Dataset
from ..store.model import Normalize
from ..store.parallel import cores
from ..store.progress import Progress, format_duration
from ..store.step import Context
from .augmentation import Augmentation
from .batches import Batch, count_train_batches, iter_batches
from .cache import ShardCache
from .checkpoint import Learner, TrainingState, load_checkpoint, save_checkpoint
from .config import TrainConfig
from .history import Events, events
from .losses import Loss, class_counts, inverse_frequency, positive_weights
from .mixing import Mixing
from .moving_average import MovingAverage
from .optimizer import Schedule, make_optimizer
from .params import AugmentParams
from .prefetcher import DevicePrefetcher
from .probe import Probe, can_solve
from .ranks import Ranks
from .stepper import Stepper, arithmetic
from .thaw import thawed
from .validation import Validation

if TYPE_CHECKING:
    import torch

LIVE_S = 10.0
"""Seconds between two points of TensorBoard's curves within an epoch."""
SAVING_SHARE = 0.05
"""Share of a training's time that checkpoints after epochs may take. Short epochs are not followed by one each, so that
a kill costs an epoch, or twenty times what a checkpoint takes where that is more."""
VALIDATED = ("val_loss", "val_top1", "val_macro_f1")
T = TypeVar("T")


@dataclass(frozen=True)
class Prepared(Batch):
    """A batch as the loader's threads leave it: augmented, or with the parameters to augment it on the device."""

    params: AugmentParams | None = None


@dataclass
class Trainer:
    """One network on one tensors dataset, by a config that has every value. `uri` is the model's: its checkpoints lie
    below. `events_uri`: where TensorBoard finds its events; empty for none."""

    network: torch.nn.Module
    tensors: Dataset
    config: TrainConfig
    device: torch.device
    uri: str
    context: Context
    ranks: Ranks = field(default_factory=Ranks)
    events_uri: str = ""

    def __post_init__(self) -> None:
        import torch

        config, manifest = self.config, self.tensors.manifest
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.blocks = parameter_blocks(self.network)
        average = MovingAverage(self.network, config.ema) if config.ema else None
        dtype = arithmetic(config.precision, self.device)
        scaler = torch.amp.GradScaler(self.device.type) if dtype is torch.float16 else None
        self.learner = Learner(self.network, make_optimizer(self.network, self.blocks, config), average, scaler)
        self.normalize = Normalize(manifest.image, self.device)
        self.augmentation = Augmentation(config, manifest.image, self.device.type)
        self.mixing = Mixing(config, len(manifest.classes), manifest.task)
        self.rows = manifest.totals.by_split["train"]
        self.threads = config.load_threads or max(1, cores() // self.ranks.number)
        self.cache = (
            ShardCache.create(config.cache_dir, config.cache_bytes) if self.tensors.uri.startswith("s3://") else None
        )
        loss, self.balance = self._balanced()
        updates = -(
            -count_train_batches(self.tensors, "train", config.batch_size, self.ranks.number) // config.accumulate
        )
        self.solves = self._solves()
        schedule = Schedule(config.learning_rate, updates * (config.epochs - self.solves), config.warmup)
        size, channels = self.augmentation.size, manifest.image["shape"][2]

        def autocast() -> torch.autocast:
            return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

        shape = (channels, size, size)
        self.stepper = Stepper(
            self.learner, self.blocks, loss, schedule, config, self.device, self.ranks, autocast, shape
        )
        self.validation = Validation(
            self.tensors, 4 * config.batch_size, self.device, autocast, self.threads, self.cache
        )

    def _balanced(self) -> tuple[Loss, Any]:
        """The loss, and what the loader samples by: None for every image once."""
        import torch

        config, task = self.config, self.tensors.manifest.task
        if config.class_balance not in ("weights", "sampling"):
            return Loss(task, config.label_smoothing), None
        counts = class_counts(self.tensors)
        if config.class_balance == "sampling":
            if task == MULTI:
                raise UserError(
                    "class_balance: expected weights or none where images have several labels, found 'sampling'"
                )
            return Loss(task, config.label_smoothing), inverse_frequency(counts)
        found = positive_weights(counts, self.rows) if task == MULTI else inverse_frequency(counts)
        return Loss(task, config.label_smoothing, torch.tensor(found, dtype=torch.float32, device=self.device)), None

    def _solves(self) -> bool:
        """Whether the first epoch solves the head."""
        if self.config.head != "solved":
            return False
        if self.ranks.number > 1 or not can_solve(self.network, self.tensors.manifest.task):
            self.context.say(
                "the head is trained, not solved: that takes one process, a linear head, and one label for each image"
            )
            return False
        return True

    def run(self) -> TrainingState:
        """All epochs, from the last checkpoint on."""
        state = load_checkpoint(self.uri, self.learner)
        self.ranks.same("the checkpoint", state.number, state.epoch, state.batches)
        if state.number:
            there = f" and {state.batches} batches" if state.batches else ""
            self.context.say(f"going on after epoch {state.epoch}{there}, which an earlier try finished")
        self._saving_s = 0.0  # so that the first epoch has a checkpoint
        self._saved_at, started, first = time.monotonic(), time.monotonic(), state.epoch
        with events(self.events_uri if self.ranks.first else "", state.updates) as self.events:
            while not self.finished(state):
                row = self._epoch(state)
                each = (time.monotonic() - started) / (state.epoch - first)
                self._say(row, format_duration(each * (self.config.epochs - state.epoch)))
        if state.epoch < self.config.epochs:
            self.context.say(f"no better validation in {self.config.early_stopping} epochs: stopped early")
        return state

    def finished(self, state: TrainingState) -> bool:
        """After the last epoch, or so many epochs without a better validation; while blocks still thaw none count."""
        patience, config = self.config.early_stopping, self.config
        if state.epoch >= config.epochs or not patience or not self.validation.there:
            return state.epoch >= config.epochs
        thaws = config.probe_epochs + config.unfreeze_epochs if config.weights else 0
        return state.epoch - max(state.best_epoch, min(thaws, state.epoch)) >= patience

    @property
    def kept(self) -> torch.nn.Module:
        """The network that is validated and kept: of the averaged weights, where there are some."""
        return self.learner.average.network if self.learner.average else self.network

    def _is_best(self, state: TrainingState) -> bool:
        """Better validation macro-F1, or the same with a lower loss; without validation images the last epoch."""
        row = state.history[-1]
        if "val_macro_f1" not in row or not state.best_epoch:
            return True
        best = state.history[state.best_epoch - 1]
        return (row["val_macro_f1"], -row["val_loss"]) > (best["val_macro_f1"], -best["val_loss"])

    def _epoch(self, state: TrainingState) -> dict[str, Any]:
        """What is left of an epoch, its validation, and a checkpoint."""
        learning = thawed(self.config, len(self.blocks), state.epoch)
        self.stepper.begin(learning)
        if self.solves and not state.epoch:
            self._solve(state)
        else:
            self._steps(state)
        row = self._row(state, learning) | self._validated(state)
        if not math.isfinite(row.get("val_loss", 0.0)):
            raise UserError(
                f"epoch {row['epoch']}: the validation loss is {row['val_loss']}; try a smaller learning_rate"
            )
        row["seconds"] = round(state.seconds + time.monotonic() - self._clock, 3)
        state.history.append(row)
        state.epoch += 1
        state.batches = state.images = 0
        state.loss, state.seconds, state.waiting = None, 0.0, 0.0
        if self._is_best(state):
            state.best_epoch = state.epoch
            if self.ranks.first:
                state.best = {k: v.detach().cpu().clone() for k, v in self.kept.state_dict().items()}
        if time.monotonic() - self._saved_at >= self._saving_s / SAVING_SHARE:
            self._save(state)
        if self.events:
            self.events.add(state.updates, row)
            self.events.publish()
        return row

    def _row(self, state: TrainingState, learning: int) -> dict[str, Any]:
        """What is known of an epoch when its last step is done."""
        loss = self._loss(state)
        row: dict[str, Any] = {
            "epoch": state.epoch + 1,
            "train_loss": loss,
            "learning_rate": self.stepper.rate(state),
            "images_per_second": round(state.images / max(state.seconds, 1e-3), 1),
            "waiting": round(state.waiting / max(state.seconds, 1e-3), 4),
            "updates": state.updates,
            "blocks": learning,
        }
        if self.learner.average:
            row["ema"] = round(self.learner.average.current_decay(), 6)
        return row

    def _loss(self, state: TrainingState) -> float:
        """The mean over the images of the epoch so far, those of all ranks. UserError for what is no number."""
        assert state.loss is not None
        loss = self.ranks.summed(state.loss) / max(1, state.images)
        if not math.isfinite(loss):
            raise UserError(f"epoch {state.epoch + 1}: the loss is {loss}; try a smaller learning_rate")
        return loss

    def _steps(self, state: TrainingState) -> None:
        """All batches of an epoch from `state.batches` on."""
        import torch

        epoch, self._clock = state.epoch, time.monotonic()
        if state.loss is None:
            state.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        progress = Progress("train", total=self.rows, every_s=3.0 if self.ranks.first else math.inf)
        progress.leave_out(state.images)
        loaded = iter_batches(
            self.tensors, "train", self.config.batch_size, self.config.seed, epoch, start=state.batches,
            rank=self.ranks.rank, ranks=self.ranks.number, threads=self.threads, cache=self.cache, balance=self.balance,
            pin=self.device.type == "cuda", transform=lambda batch: self._prepared(batch, epoch),
        )  # fmt: skip
        prefetcher = DevicePrefetcher(loaded, self.device)
        live = time.monotonic()
        try:
            for (images, labels, batch), last in _with_last(prefetcher):
                ends = last or (batch.number + 1) % self.config.accumulate == 0
                state.loss += self._step(images, labels, batch, epoch, ends, state.updates)
                state.batches += 1
                state.images += batch.total
                progress.add(batch.total, f"epoch {epoch + 1}/{self.config.epochs}")
                if ends:
                    state.updates += 1
                    state.waiting, prefetcher.wait_seconds = state.waiting + prefetcher.wait_seconds, 0.0
                    self._between(state)
                    if self.events and time.monotonic() - live > LIVE_S:
                        self._live(state, self.events)
                        live = time.monotonic()
            self.ranks.settle()
        finally:
            prefetcher.close()
        self._count_time(state)

    def _solve(self, state: TrainingState) -> None:
        """The first epoch where the head is solved: one look at every image, and no step."""
        import torch

        self._clock = time.monotonic()
        solved = Probe(self.network, self.validation, lambda: self._stop_if_asked(state)).solve()
        if self.learner.average:
            self.learner.average.network.load_state_dict(self.network.state_dict())
        state.images = solved.images
        state.loss = torch.tensor(solved.loss * solved.images, dtype=torch.float64, device=self.device)
        self._count_time(state)
        self.context.say(
            f"the head is solved on features of {solved.images:,} images, with a penalty of {solved.penalty:g}"
        )

    def _stop_if_asked(self, state: TrainingState) -> None:
        if self.ranks.stop.asked:
            self._stop(state)
            raise self._stopped(state)

    def _prepared(self, batch: Batch, epoch: int) -> Prepared:
        """Augment this rank's share of the batch, in the loader's threads, unless that is done on the device."""
        share = slice(batch.first, batch.first + len(batch.labels))
        params = self.augmentation.make_params(epoch, batch.number, batch.total).select_rows(share)
        images = batch.images
        if not self.augmentation.runs_on_device:
            images = self.augmentation.apply_on_cpu(images, params)
        return Prepared(images, batch.labels, batch.number, batch.first, batch.total, params)

    def _step(
        self, images: torch.Tensor, labels: torch.Tensor, batch: Prepared, epoch: int, ends: bool, updates: int
    ) -> torch.Tensor:
        """One batch, from uint8 on the device to a gradient; its summed loss."""
        if self.augmentation.runs_on_device:
            assert batch.params is not None
            images = self.augmentation.apply_on_device(images, batch.params)
        mixed, targets = self.mixing(self.normalize(images), labels, epoch, batch.number, batch.first)
        return self.stepper.add(mixed, targets, (epoch, batch.number), batch.total, ends, updates)

    def _between(self, state: TrainingState) -> None:
        """After a step: a checkpoint where one is due, and the end where somebody asked for it."""
        if self.ranks.stopping():
            self._stop(state)
            self.ranks.from_first(0.0)  # has saved
            raise self._stopped(state)
        minutes = self.config.checkpoint_minutes
        if minutes and self.ranks.first and time.monotonic() - self._saved_at >= 60 * minutes:
            self._count_time(state)
            self._save(state)

    def _stop(self, state: TrainingState) -> None:
        self._count_time(state)
        self._save(state)

    def _stopped(self, state: TrainingState) -> TransientError:
        return TransientError(
            f"stopped by {self.ranks.stop.by} after {state.batches} batches of epoch {state.epoch + 1}: there is a "
            "checkpoint, from which the same command goes on"
        )

    def _save(self, state: TrainingState) -> None:
        """By the first rank: the others have the same weights. Nothing is kept of a training that has exploded."""
        if self.ranks.first:
            if state.loss is not None and not math.isfinite(state.loss.item()):
                raise UserError(
                    f"epoch {state.epoch + 1}: the loss is {state.loss.item()}; try a smaller learning_rate"
                )
            began = time.monotonic()
            save_checkpoint(self.uri, state, self.learner)
            self._saving_s = time.monotonic() - began
        self._saved_at = time.monotonic()

    def _count_time(self, state: TrainingState) -> None:
        now = time.monotonic()
        state.seconds, self._clock = state.seconds + now - self._clock, now

    def _validated(self, state: TrainingState) -> dict[str, float]:
        """What the first rank found, told to all."""
        if not self.validation.there:
            return {}

        found = self.validation(self.kept, lambda: self._stop_if_asked(state)) if self.ranks.first else {}
        return dict(zip(VALIDATED, self.ranks.from_first(*(found.get(name, 0.0) for name in VALIDATED)), strict=True))

    def _live(self, state: TrainingState, events: Events) -> None:
        assert state.loss is not None
        loss = state.loss.item() * self.ranks.number / state.images
        events.add(state.updates, {"train_loss": loss, "learning_rate": self.stepper.rate(state)})

    def _say(self, row: dict[str, Any], left: str) -> None:
        parts = [f"epoch {row['epoch']}/{self.config.epochs}", f"loss {row['train_loss']:.3f}"]
        if "val_macro_f1" in row:
            parts += [f"val loss {row['val_loss']:.3f}", f"val macro-F1 {row['val_macro_f1']:.3f}"]
        parts += [f"{row['images_per_second']:,.0f} images/s", f"{row['waiting']:.0%} waiting for data", f"{left} left"]
        self.context.say(" · ".join(parts))


def _with_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last."""
    iterator = iter(items)
    try:
        held = next(iterator)
    except StopIteration:
        return
    for item in iterator:
        yield held, False
        held = item
    yield held, True
