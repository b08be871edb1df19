"""The training loop: epochs of steps, a validation after each, the best epoch kept."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store.errors import UserError
from ..store.labels import MULTI, THRESHOLD, mean_loss, probabilities, summed_loss
from ..store.manifest import Dataset
from ..store.metrics import LabelCounts, confusion, summary
from ..store.model import Normalize
from ..store.progress import Progress, duration
from ..store.step import Context
from ..store.tensors import centre, input_size
from .augment import Augment
from .checkpoint import TrainingState, load_checkpoint, save_checkpoint
from .config import TrainConfig
from .loader import Batch, batches, prefetch

if TYPE_CHECKING:
    import torch


@dataclass
class Trainer:
    """One network on one tensors dataset. `uri` is the model's: its checkpoints lie below."""

    network: torch.nn.Module
    tensors: Dataset
    config: TrainConfig
    device: torch.device
    uri: str
    context: Context

    def __post_init__(self) -> None:
        import torch

        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        self.normalize = Normalize(self.tensors.manifest.image, self.device)
        self.size = input_size(self.tensors.manifest.image)
        self.augment = Augment(self.config.seed, self.size, self.config.crop_scale, self.config.flips)
        self.autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=use_bfloat16(self.config.precision, self.device)
        )
        self.rows = self.tensors.manifest.totals.by_split["train"]
        whole, rest = divmod(self.rows, self.config.batch_size)
        self.steps_per_epoch = whole + (1 if rest > (1 if whole else 0) else 0)

    def run(self) -> TrainingState:
        """All epochs, from the last checkpoint on."""
        state = load_checkpoint(self.uri, self.network, self.optimizer)
        if state.epoch:
            self.context.say(f"going on after epoch {state.epoch}, which an earlier try finished")
        started, first = time.monotonic(), state.epoch
        while state.epoch < self.config.epochs:
            row = self._epoch(state.epoch)
            state.history.append(row)
            state.epoch += 1
            if self._is_best(state):
                state.best_epoch = state.epoch
                state.best = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
            save_checkpoint(self.uri, state, self.network, self.optimizer)
            each = (time.monotonic() - started) / (state.epoch - first)
            self._say(row, duration(each * (self.config.epochs - state.epoch)))
        return state

    def _is_best(self, state: TrainingState) -> bool:
        """Better validation macro-F1, or the same with a lower loss; without validation images the last epoch."""
        row = state.history[-1]
        if "val_macro_f1" not in row or not state.best_epoch:
            return True
        best = state.history[state.best_epoch - 1]
        return (row["val_macro_f1"], -row["val_loss"]) > (best["val_macro_f1"], -best["val_loss"])

    def _epoch(self, epoch: int) -> dict[str, Any]:
        import torch

        started = time.monotonic()
        # Dropout and its like draw from torch's generator: seeded per epoch, so that resuming changes nothing.
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, epoch]).generate_state(1)[0]))
        self.network.train()
        progress = Progress("train", total=self.rows)
        total = torch.zeros((), device=self.device)
        for batch in prefetch(
            batches(self.tensors, "train", self.config.batch_size, self.config.seed, epoch),
            lambda b: self._augmented(b, epoch),
        ):
            total += self._step(batch, epoch)
            progress.add(len(batch.labels), f"epoch {epoch + 1}/{self.config.epochs}")
        row = {
            "epoch": epoch + 1,
            "train_loss": total.item() / max(1, progress.done),
            "learning_rate": self._learning_rate((epoch + 1) * self.steps_per_epoch - 1),
            "images_per_second": round(progress.rate(), 1),
        }
        if not math.isfinite(row["train_loss"]):
            raise UserError(f"epoch {epoch + 1}: the loss is {row['train_loss']}; try a smaller learning_rate")
        row |= self._validate()
        if not math.isfinite(row.get("val_loss", 0.0)):
            raise UserError(f"epoch {epoch + 1}: the validation loss is {row['val_loss']}; try a smaller learning_rate")
        return row | {"seconds": round(time.monotonic() - started, 3)}

    def _augmented(self, batch: Batch, epoch: int) -> Batch:
        return Batch(self.augment(batch.images, epoch, batch.number), batch.labels, batch.number)

    def _step(self, batch: Batch, epoch: int) -> torch.Tensor:
        """One optimizer step; the batch's summed loss, left on the device so that nothing waits for it."""
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(epoch * self.steps_per_epoch + batch.number)
        images = self.normalize(torch.from_numpy(batch.images).to(self.device, non_blocking=True))
        labels = torch.from_numpy(batch.labels).to(self.device, non_blocking=True)
        with self.autocast:
            logits = self.network(images)
        loss = mean_loss(logits.float(), labels, self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return loss.detach() * len(labels)

    def _learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter, "SGDR", 2017)."""
        total = self.steps_per_epoch * self.config.epochs
        warmup = round(self.config.warmup * total)
        if step < warmup:
            return self.config.learning_rate * (step + 1) / warmup
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    def _validate(self) -> dict[str, float]:
        """Loss, top-1 and macro-F1 on the validation images as they are stored; nothing where there are none.

        Of images with several labels: macro-F1 of the classes with a probability of at least 0.5, and as top-1 the
        share of images whose highest-scored class is one of their labels.
        """
        import torch

        if not self.tensors.manifest.totals.by_split.get("val"):
            return {}
        self.network.eval()
        task, classes = self.tensors.manifest.task, len(self.tensors.manifest.classes)
        counts, labels, predicted, loss, rows = LabelCounts(classes), [], [], 0.0, 0
        with torch.inference_mode():
            for batch in batches(self.tensors, "val", 4 * self.config.batch_size):
                with self.autocast:
                    logits = self.network(
                        self.normalize(torch.tensor(centre(batch.images, self.size)).to(self.device))
                    ).float()
                loss += summed_loss(logits, torch.from_numpy(batch.labels).to(self.device))
                rows += len(batch.labels)
                highest = logits.argmax(1).cpu().numpy()
                if task == MULTI:
                    counts.add(batch.labels, (probabilities(logits, task) >= THRESHOLD).cpu().numpy(), highest)
                else:
                    labels.append(batch.labels)
                    predicted.append(highest)
        if task == MULTI:
            found = counts.summary()
        else:
            found = summary(confusion(np.concatenate(labels), np.concatenate(predicted), classes))
        return {"val_loss": loss / rows, "val_top1": found["top1"], "val_macro_f1": found["macro_f1"]}

    def _say(self, row: dict[str, Any], left: str) -> None:
        parts = [f"epoch {row['epoch']}/{self.config.epochs}", f"loss {row['train_loss']:.3f}"]
        if "val_macro_f1" in row:
            parts += [f"val loss {row['val_loss']:.3f}", f"val macro-F1 {row['val_macro_f1']:.3f}"]
        self.context.say(" · ".join([*parts, f"{row['images_per_second']:,.0f} images/s", f"{left} left"]))


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """`auto`: where the device has the arithmetic (GPUs since Ampere, CPUs with AMX), else float32."""
    import torch

    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(supported())
