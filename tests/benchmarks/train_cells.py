"""What the train benchmark times: one cell in a fresh process, `python train_cells.py JSON`; the last line printed is
JSON.

Both sides train the same network with the same arithmetic, optimizer, loss and policy (random resized crop of 0.6 to 1
of the area, flip, RandAugment 2/9). They differ in where the images come from and where they are augmented.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CROP_SCALE, OPERATIONS, MAGNITUDE, SEED = 0.6, 2, 9, 7
RATE, DECAY, SMOOTHING, CLIP = 1e-3, 0.01, 0.05, 1.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MATRIX = 8192
"""Side of the matrices whose product tells what the device can do."""


@dataclass(frozen=True)
class Wanted:
    """`tensors`: URI of the dataset, `photos`: the folder of JPEGs that it was made of; `workers` of the usual script;
    `seconds` of what is timed at least, in whole epochs after a first one; with `probe`, at most, of each of two."""

    cell: str
    network: str
    size: int
    batch: int
    device: str
    tensors: str
    photos: str
    seconds: float
    workers: int = 0
    probe: bool = False


def config_of(wanted: Wanted) -> Any:
    """The trainer's config, with every value."""
    from imagemill.components.dataset.manifest import read_dataset
    from imagemill.components.train.config import TrainConfig
    from imagemill.components.train.recipes import resolve

    values = {"tensors": wanted.tensors, "workspace": tempfile.gettempdir(), "seed": SEED, "recipe": "plain"}
    values |= {"backbone": wanted.network, "batch_size": wanted.batch, "device": wanted.device, "tensorboard": False}
    values |= {"learning_rate": RATE, "weight_decay": DECAY, "label_smoothing": SMOOTHING, "clip_norm": CLIP}
    values |= {"optimizer": "adamw", "crop_scale": CROP_SCALE, "flip": "true", "policy": "randaugment", "warmup": 0.0}
    values |= {"policy_ops": OPERATIONS, "policy_magnitude": MAGNITUDE, "epochs": 1000, "checkpoint_minutes": 0.0}
    return resolve(TrainConfig.from_values({**values, "compile": "false"}), read_dataset(wanted.tensors).manifest)


# Without a model: how fast augmented uint8 batches come, on the CPU.


def feed_imagemill(wanted: Wanted) -> Callable[[int], Iterator[int]]:
    """The loader with the trainer's augmentation on its threads."""
    from imagemill.components.dataset.manifest import read_dataset
    from imagemill.components.train.augment.augmentation import Augmentation
    from imagemill.components.train.data.loader import Batch, iter_batches

    dataset, config = read_dataset(wanted.tensors), config_of(wanted)
    augmentation = Augmentation(config, dataset.manifest.image)

    def epoch(number: int) -> Iterator[int]:
        def work(batch: Batch) -> int:
            images = augmentation.apply(batch.images, augmentation.make_params(number, batch.number, len(batch.labels)))
            assert images.shape[1:] == (wanted.size, wanted.size, 3)
            return len(images)

        return iter_batches(dataset, "train", wanted.batch, SEED, number, transform=work)

    return epoch


def image_folder(wanted: Wanted, floats: bool) -> Any:
    """The usual DataLoader: Pillow's decoder, torchvision v2's transforms one image after another."""
    import torch
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    steps: list[Any] = [v2.RandomResizedCrop(wanted.size, scale=(CROP_SCALE, 1), antialias=True)]
    steps += [v2.RandomHorizontalFlip(), v2.RandAugment(OPERATIONS, MAGNITUDE), v2.PILToTensor()]
    if floats:
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    more = {"persistent_workers": True, "prefetch_factor": 4} if wanted.workers else {}
    return DataLoader(
        ImageFolder(wanted.photos, v2.Compose(steps)), wanted.batch, shuffle=True, num_workers=wanted.workers,
        pin_memory=floats and wanted.device == "cuda", drop_last=True, **more,
    )  # fmt: skip


def feed_usual(wanted: Wanted) -> Callable[[int], Iterator[int]]:
    loader = image_folder(wanted, floats=False)
    return lambda number: (len(labels) for _, labels in loader)


def timed_feed(epoch: Callable[[int], Iterator[int]], wanted: Wanted) -> dict[str, Any]:
    """Images/s of whole epochs after a first one; a probe cuts both short."""
    for number in itertools.count():
        if number < 2:
            images, started = 0, time.perf_counter()
        for rows in epoch(number):
            images += rows
            if wanted.probe and time.perf_counter() - started > wanted.seconds:
                break
        took = time.perf_counter() - started
        if number and (wanted.probe or took > wanted.seconds):
            break
    return {"rate": images / took}


# With a model.


def train_imagemill(wanted: Wanted) -> dict[str, Any]:
    """The trainer's own epochs, by its own history."""
    import torch

    from imagemill.components.dataset.manifest import read_dataset
    from imagemill.components.dataset.workspace import Workspace
    from imagemill.components.step.step import Context
    from imagemill.components.train.loop.trainer import Trainer

    config, dataset = config_of(wanted), read_dataset(wanted.tensors)
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        context = Context("train", Workspace(folder), "bench", False)
        network = make_network(wanted, len(dataset.manifest.classes))
        trainer = _Timed(Trainer(network, dataset, config, torch.device(wanted.device), f"{folder}/model", context))
        rows = trainer.epochs(wanted.seconds)
    rate = sum(row["images"] for row in rows) / sum(row["took"] for row in rows)
    waiting = sum(row["waited"] for row in rows) / sum(row["took"] for row in rows)
    return {"rate": rate, "waiting": waiting, "step": wanted.batch / rate, "loss": rows[-1]["loss"]}


class _Timed:
    """A trainer that stops once enough was timed. What its epochs do beside steps (validation, checkpoints) is left out
    by its own clock."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def epochs(self, seconds: float) -> list[dict[str, float]]:
        trainer, history = self._trainer, []

        def is_finished(state: Any) -> bool:
            for row in state.history[len(history) :]:
                took = trainer.rows / row["images_per_second"]
                about = {"images": trainer.rows, "took": took, "waited": row["waiting"] * took}
                history.append(about | {"loss": row["train_loss"]})
            return len(history) > 1 and sum(row["took"] for row in history[1:]) > seconds

        trainer.is_finished = is_finished
        trainer.run()
        return history[1:]


def make_network(wanted: Wanted, classes: int) -> Any:
    """The network with random weights, and the device as the trainer's step sets it up."""
    import torch
    from torchvision.models import get_model

    torch.manual_seed(SEED)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if wanted.device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    options = {"image_size": wanted.size} if wanted.network.startswith("vit_") else {}
    return get_model(wanted.network, weights=None, num_classes=classes, **options)


class Usual:
    """The step that everybody writes, with the trainer's arithmetic."""

    def __init__(self, wanted: Wanted, classes: int) -> None:
        import torch

        from imagemill.components.train.loop.stepper import choose_autocast_dtype

        self.device = torch.device(wanted.device)
        network = make_network(wanted, classes).to(self.device, memory_format=torch.channels_last)
        self.network, self._dtype = network.train(), choose_autocast_dtype("auto", self.device)
        self._optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
        self._loss = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)

    def autocast(self) -> AbstractContextManager[Any]:
        import torch

        return torch.autocast(self.device.type, self._dtype or torch.bfloat16, enabled=self._dtype is not None)

    def step(self, images: Any, labels: Any) -> Any:
        import torch

        images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        labels = labels.to(self.device, non_blocking=True)
        with self.autocast():
            loss = self._loss(self.network(images), labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self._optimizer.step()
        return loss.detach()

    def settle(self) -> None:
        """Until everything is computed."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()


def train_usual(wanted: Wanted) -> dict[str, Any]:
    import torch

    loader = image_folder(wanted, floats=True)
    usual = Usual(wanted, len(loader.dataset.classes))
    total = torch.zeros((), device=usual.device)
    for number in itertools.count():
        if number < 2:
            images, waited, started = 0, 0.0, time.perf_counter()
        source = iter(loader)
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            waited += time.perf_counter() - asked
            if batch is None or (wanted.probe and asked - started > wanted.seconds):
                break
            total += usual.step(*batch)
            images += len(batch[1])
        usual.settle()
        took = time.perf_counter() - started
        if number and (wanted.probe or took > wanted.seconds):
            break
    rate = images / took
    return {"rate": rate, "waiting": waited / took, "step": wanted.batch / rate, "loss": float(total)}


def network_alone(wanted: Wanted) -> dict[str, Any]:
    """The same steps on one batch that is already there: what no loader can beat. With the device's matrix product and
    the network's own operations, both in multiply-adds counted twice."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    usual = Usual(wanted, 37)
    images = torch.rand(wanted.batch, 3, wanted.size, wanted.size, device=usual.device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(wanted.batch, device=usual.device) % 37
    with FlopCounterMode(display=False) as counter:
        usual.step(images, labels)
    for _ in range(3):
        usual.step(images, labels)
    usual.settle()
    steps, started = 0, time.perf_counter()
    while steps < 3 or time.perf_counter() - started < wanted.seconds:
        for _ in range(10 if wanted.device == "cuda" else 1):
            usual.step(images, labels)
            steps += 1
        usual.settle()
    took = (time.perf_counter() - started) / steps
    operations = counter.get_total_flops() / wanted.batch
    found = {"rate": wanted.batch / took, "waiting": 0.0, "step": took, "operations": operations}
    return found | {"product": matrix_product(usual)}


def matrix_product(usual: Usual) -> float:
    """Operations/s of a large product in the arithmetic that the network is trained in, the best of ten tries."""
    import torch

    side = MATRIX if usual.device.type == "cuda" else MATRIX // 8
    one = torch.rand(side, side, device=usual.device)
    with usual.autocast(), torch.no_grad():
        if torch.is_autocast_enabled(usual.device.type):
            one = one.to(torch.get_autocast_dtype(usual.device.type))
        for _ in range(3):
            one @ one
        usual.settle()
        took = []
        for _ in range(10):
            started = time.perf_counter()
            for _ in range(4):
                one @ one
            usual.settle()
            took.append(time.perf_counter() - started)
    return 2 * side**3 * 4 / min(took)


def main(wanted: Wanted) -> dict[str, Any]:
    if wanted.cell == "feed_imagemill":
        return timed_feed(feed_imagemill(wanted), wanted)
    if wanted.cell == "feed_usual":
        return timed_feed(feed_usual(wanted), wanted)
    return {"imagemill": train_imagemill, "usual": train_usual, "alone": network_alone}[wanted.cell](wanted)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    print(json.dumps(main(Wanted(**json.loads(sys.argv[1])))), flush=True)
