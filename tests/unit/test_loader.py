"""Loading, augmenting and resuming: every row once, an order that is a function of the seed, and no lost epoch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import SHAPE, numbered, rows_of, write_split

from imagemill.components.store.errors import MillError
from imagemill.components.store.manifest import Dataset, Manifest, Totals, commit
from imagemill.components.store.model import ModelSpec, build_network
from imagemill.components.store.step import Context
from imagemill.components.store.tensors import images_of
from imagemill.components.store.workspace import Workspace
from imagemill.components.train.augment import RATIO, Augment, crop_box
from imagemill.components.train.checkpoint import SLOTS, TrainingState, load_checkpoint, save_checkpoint
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.loader import Batch, batches, prefetch
from imagemill.components.train.loop import Trainer


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return numbered(tmp_path_factory.mktemp("hundred"), rows=101, group=7, files=3)


@given(batch_size=st.integers(2, 130), epoch=st.integers(0, 3), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_every_row_comes_once_an_epoch_whatever_the_batch_size(
    hundred: Dataset, batch_size: int, epoch: int, seed: int
) -> None:
    found = list(batches(hundred, "train", batch_size, seed, epoch))
    rows = [label for batch in found for label in batch.labels.tolist()]
    left_out = 1 if batch_size < 101 and 101 % batch_size == 1 else 0
    assert len(rows) == len(set(rows)) == 101 - left_out
    assert all(len(batch.labels) == batch_size for batch in found[:-1])
    assert [batch.number for batch in found] == list(range(len(found)))
    for batch in found:
        assert batch.images.shape == (len(batch.labels), *SHAPE) and batch.labels.dtype == np.int64
        assert (batch.images[:, 0, 0, 0] == batch.labels).all(), "image and label stay together"


def test_the_order_is_a_function_of_seed_and_epoch(hundred: Dataset) -> None:
    one = rows_of(batches(hundred, "train", 10, 3, 5))
    assert one == rows_of(batches(hundred, "train", 10, 3, 5))
    assert one != rows_of(batches(hundred, "train", 10, 3, 6))
    assert one != rows_of(batches(hundred, "train", 10, 4, 5))
    assert one != sorted(one)


def test_the_order_of_the_rows_does_not_depend_on_the_batch_size(hundred: Dataset) -> None:
    tens, thirties = (rows_of(batches(hundred, "train", size, 3, 5)) for size in (10, 33))
    assert tens[:99] == thirties[:99]


def test_validation_is_in_stored_order_and_leaves_nothing_out(hundred: Dataset) -> None:
    rows = [label for batch in batches(hundred, "train", 100) for label in batch.labels.tolist()]
    assert rows == [n for start in range(3) for n in range(start, 101, 3)]


def test_a_last_batch_of_one_is_left_out_only_in_training(hundred: Dataset, tmp_path: Path) -> None:
    assert [len(b.labels) for b in batches(hundred, "train", 50, 0, 0)] == [50, 50]
    assert [len(b.labels) for b in batches(hundred, "train", 50)] == [50, 50, 1]
    assert [len(b.labels) for b in batches(numbered(tmp_path, rows=1, group=4), "train", 50, 0, 0)] == [1]


def test_a_split_without_files_has_no_batches(hundred: Dataset) -> None:
    assert list(batches(hundred, "val", 10)) == []


def test_a_sliced_column_gives_its_own_images() -> None:
    values = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    column = pa.chunked_array([pa.array([v.tobytes() for v in values], pa.binary(12))])
    for sliced in (
        column,
        column.slice(1, 3),
        pa.chunked_array([column.chunk(0).slice(2), column.chunk(0).slice(0, 1)]),
    ):
        expected = np.array([np.frombuffer(v.as_py(), np.uint8).reshape(2, 2, 3) for v in sliced])
        np.testing.assert_array_equal(images_of(sliced, {"shape": [2, 2, 3]}), expected)


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_keeps_the_order_and_ends_its_thread() -> None:
    assert list(prefetch(iter(range(50)), lambda x: x * 2)) == list(range(0, 100, 2))
    assert not prefetch_threads()


def test_prefetch_is_ahead_by_its_depth_and_no_more() -> None:
    done: list[int] = []
    found = prefetch(iter(range(100)), lambda x: done.append(x) or x, depth=3)  # type: ignore[func-returns-value]
    assert next(found) == 0
    time.sleep(0.3)
    assert 4 <= len(done) <= 1 + 3 + 1  # taken, waiting, in hand
    found.close()  # type: ignore[attr-defined]
    assert not prefetch_threads()


def test_leaving_a_loop_early_ends_the_thread() -> None:
    for _ in islice(prefetch(iter(range(10**9)), lambda x: x), 3):
        pass
    deadline = time.monotonic() + 5
    while prefetch_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not prefetch_threads()


@pytest.mark.parametrize("where", ["work", "items"])
def test_prefetch_raises_the_error_after_what_came_before(where: str) -> None:
    def items() -> Iterator[int]:
        yield from range(4)
        if where == "items":
            raise MillError("broken")

    def work(item: int) -> int:
        if where == "work" and item == 3:
            raise MillError("broken")
        return item

    found = prefetch(items(), work)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(MillError, match="broken"):
        list(found)
    assert not prefetch_threads()


def pictures(number: int, size: int = 16) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (number, size, size, 3)).astype(np.uint8)


def test_augmentation_is_a_function_of_seed_epoch_and_number() -> None:
    images = pictures(6)
    before = images.copy()
    one = Augment(1, 16, 0.5, True)(images, 2, 3)
    assert one.shape == images.shape and one.dtype == np.uint8
    np.testing.assert_array_equal(images, before, "the stored images are not touched")
    np.testing.assert_array_equal(one, Augment(1, 16, 0.5, True)(images, 2, 3))
    for other in (
        Augment(2, 16, 0.5, True)(images, 2, 3),
        Augment(1, 16, 0.5, True)(images, 3, 3),
        Augment(1, 16, 0.5, True)(images, 2, 4),
    ):
        assert (one != other).any()


def test_augmentation_that_is_off_changes_nothing_and_a_flip_mirrors_half() -> None:
    images = pictures(400, 4)
    np.testing.assert_array_equal(Augment(0, 4, 1, False)(images, 0, 0), images)
    found = Augment(0, 4, 1, True)(images, 0, 0)
    mirrored = (found == images[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (found == images).all((1, 2, 3))).all() and 150 < mirrored.sum() < 250


def test_one_grey_channel_is_augmented_too() -> None:
    assert Augment(0, 16, 0.5, True)(pictures(3)[..., :1], 0, 0).shape == (3, 16, 16, 1)


@given(st.integers(0, 10**6), st.integers(1, 64), st.integers(1, 64), st.floats(0.05, 1))
@settings(max_examples=100, deadline=None)
def test_crops_lie_inside_and_have_the_area_and_ratio_asked_for(
    seed: int, height: int, width: int, smallest: float
) -> None:
    top, left, h, w = crop_box(np.random.default_rng(seed), height, width, smallest)
    assert min(top, left) >= 0 and h >= 1 and w >= 1 and top + h <= height and left + w <= width
    if height == width == 64:
        assert (h + 0.5) * (w + 0.5) >= smallest * 64 * 64 - 64
        assert RATIO[0] - 0.1 <= w / h <= RATIO[1] + 0.2


IMAGE = {"shape": [32, 32, 3], "mean": [0.5] * 3, "std": [0.25] * 3, "color": "rgb", "mode": "crop"}


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """40 noisy pictures for training and 10 for validation, of two classes that differ in brightness."""
    uri = str(tmp_path_factory.mktemp("tensors") / "tensors" / "01")
    files = []
    for split, number in (("train", 40), ("val", 10)):
        labels = [n % 2 for n in range(number)]
        images = pictures(number, 32) // 2 + (np.array(labels) * 90).astype(np.uint8)[:, None, None, None]
        files.append(write_split(uri, split, images, labels, group=16))
    totals = Totals(rows=50, by_split={"train": 40, "val": 10})
    return commit(uri, Manifest("tensors", "01", classes=("a", "b"), files=tuple(files), image=IMAGE, totals=totals))


def trainer(tensors: Dataset, workspace: Path, backbone: str, epochs: int) -> Trainer:
    torch.set_num_threads(1)
    config = TrainConfig(backbone=backbone, epochs=epochs, batch_size=8, precision="float32", device="cpu")
    torch.manual_seed(config.seed)
    network = build_network(ModelSpec(backbone, tensors.manifest.classes, tensors.manifest.image))
    context = Context("train", Workspace.open(str(workspace)), "run", False)
    return Trainer(network, tensors, config, torch.device("cpu"), str(workspace / "model" / "01"), context)


class Killed(Exception):
    """The machine is gone."""


def killed_in_epoch(one: Trainer, epoch: int) -> None:
    """Run until a step of `epoch` (from 0) is under way, then die as a preempted pod does."""
    step = one._step

    def dying(batch: Batch, at: int) -> torch.Tensor:
        if at == epoch and batch.number == 2:
            raise Killed
        return step(batch, at)

    one._step = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        one.run()


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "shufflenet_v2_x0_5"])  # dropout; batch normalization
def test_a_killed_training_ends_with_the_very_weights_of_an_unbroken_one(
    tensors: Dataset, tmp_path: Path, backbone: str
) -> None:
    whole = trainer(tensors, tmp_path / "whole", backbone, 3)
    expected = whole.run()
    killed_in_epoch(trainer(tensors, tmp_path / "killed", backbone, 3), 1)
    resumed = trainer(tensors, tmp_path / "killed", backbone, 3)
    torch.manual_seed(99)  # another process has another state
    found = resumed.run()
    assert (found.epoch, found.best_epoch) == (expected.epoch, expected.best_epoch)
    assert [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in found.history] == [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in expected.history
    ]
    for one, other in ((resumed.network.state_dict(), whole.network.state_dict()), (found.best, expected.best)):
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def small() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 2)
    )
    return network, torch.optim.AdamW(network.parameters(), lr=0.1)


def stepped(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    loss = network(torch.ones(2, 3, 4, 4) * torch.tensor([1.0, 2.0])[:, None, None, None]).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def saved_twice(uri: str) -> list[float]:
    """Checkpoints of the epochs 1 and 2; the losses of the steps that follow each."""
    network, optimizer = small()
    losses = []
    for epoch in (1, 2):
        losses.append(stepped(network, optimizer).item())
        best = {k: v.clone() for k, v in network.state_dict().items()}
        save_checkpoint(
            uri, TrainingState(epoch, [{"epoch": e + 1} for e in range(epoch)], epoch, best), network, optimizer
        )
    return [losses[1], stepped(network, optimizer).item()]


def test_a_checkpoint_holds_everything_that_the_next_step_depends_on(tmp_path: Path) -> None:
    expected = saved_twice(str(tmp_path))
    network, optimizer = small()
    stepped(network, optimizer)
    state = load_checkpoint(str(tmp_path), network, optimizer)
    assert (state.epoch, state.best_epoch, state.history) == (2, 2, [{"epoch": 1}, {"epoch": 2}])
    assert all(torch.equal(state.best[k], v) for k, v in network.state_dict().items())
    assert stepped(network, optimizer).item() == expected[1]


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 200, None])
def test_a_checkpoint_that_is_not_whole_is_ignored(tmp_path: Path, damage: bytes | None) -> None:
    expected = saved_twice(str(tmp_path))
    newest = tmp_path / "_work" / SLOTS[0]
    newest.write_bytes(newest.read_bytes()[:-50] if damage is None else damage)
    network, optimizer = small()
    assert load_checkpoint(str(tmp_path), network, optimizer).epoch == 1
    assert stepped(network, optimizer).item() == expected[0]


@pytest.mark.parametrize("metadata", [None, {}, {"imagemill": "text"}])
def test_a_safetensors_file_that_is_no_checkpoint_is_ignored(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    from safetensors.torch import save

    (tmp_path / "_work").mkdir()
    (tmp_path / "_work" / SLOTS[1]).write_bytes(save({"a": torch.zeros(2)}, metadata))
    network, optimizer = small()
    assert load_checkpoint(str(tmp_path), network, optimizer) == TrainingState()


def test_without_a_checkpoint_training_begins_at_the_beginning(tmp_path: Path) -> None:
    network, optimizer = small()
    assert load_checkpoint(str(tmp_path), network, optimizer) == TrainingState()


def test_the_learning_rate_rises_and_falls(tensors: Dataset, tmp_path: Path) -> None:
    one = trainer(tensors, tmp_path, "squeezenet1_1", 10)
    rates = [one._learning_rate(step) for step in range(50)]
    assert one.steps_per_epoch == 5 and rates.index(max(rates)) in (4, 5) and max(rates) == one.config.learning_rate
    assert rates[:5] == sorted(rates[:5]) and rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[0] > 0 and 0 <= rates[-1] < 0.01 * max(rates)


def test_a_validation_loss_that_is_no_number_ends_the_training_with_advice(tensors: Dataset, tmp_path: Path) -> None:
    one = trainer(tensors, tmp_path, "squeezenet1_1", 1)
    step = one._step

    def explodes(batch: Batch, at: int) -> torch.Tensor:
        loss = step(batch, at)
        if batch.number == one.steps_per_epoch - 1:  # the last step of the epoch, which no training loss sees
            with torch.no_grad():
                next(one.network.parameters()).fill_(float("nan"))
        return loss

    one._step = explodes  # type: ignore[method-assign]
    with pytest.raises(MillError, match="epoch 1: the validation loss is nan; try a smaller learning_rate"):
        one.run()
