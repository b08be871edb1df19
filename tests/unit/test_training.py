"""The training loop: the same weights however often it was stopped, the best epoch kept, and nothing that explodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import history_of, make_tensors, model_of, settings, trainer

from imagemill.components.dataset.manifest import Dataset
from imagemill.components.storage.errors import MillError, TransientError, UserError
from imagemill.components.train.loop import checkpoint
from imagemill.components.train.loop.checkpoint import (
    SLOTS,
    Learner,
    TrainingState,
    load_checkpoint,
    save_checkpoint,
)
from imagemill.components.train.loop.communicator import Communicator, StopRequest
from imagemill.components.train.loop.optimizer import MovingAverage
from imagemill.components.train.loop.stepper import choose_autocast_dtype, should_compile
from imagemill.components.train.loop.trainer import Trainer

ALL = {
    "ema": 0.99, "mixup_probability": 0.5, "cutmix_probability": 0.5, "policy": "randaugment", "erasing": 0.5,
    "dropout": 0.3, "accumulate": 2, "weights": "somewhere", "probe_epochs": 1, "unfreeze_epochs": 1,
    "layer_decay": 0.8, "clip_norm": 1.0, "class_balance": "weights", "epochs": 3, "checkpoint_minutes": 1e-9,
}  # fmt: skip
"""Everything that a step of a training can depend on, and a checkpoint after every step."""


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tensors(tmp_path_factory.mktemp("tensors"))


class Killed(Exception):
    """The machine is gone."""


def at_batch(one: Trainer, epoch: int, number: int, do: Callable[[], None]) -> None:
    """Have something happen before a batch of an epoch, both counted from 0."""
    step = one.stepper.train_batch

    def doing(batch: Any, at: int, *more: Any) -> torch.Tensor:
        if (at, batch.number) == (epoch, number):
            do()
        return step(batch, at, *more)

    one.stepper.train_batch = doing  # type: ignore[method-assign]


def kill() -> None:
    raise Killed


def same_end(one: tuple[Trainer, TrainingState], other: tuple[Trainer, TrainingState]) -> None:
    (first, expected), (second, found) = one, other
    assert (found.epoch, found.best_epoch, found.updates) == (expected.epoch, expected.best_epoch, expected.updates)
    assert history_of(found.history) == history_of(expected.history)
    pairs = [(first.network.state_dict(), second.network.state_dict()), (expected.best_weights, found.best_weights)]
    if first.learner.average and second.learner.average:
        pairs.append((first.learner.average.network.state_dict(), second.learner.average.network.state_dict()))
    for theirs, ours in pairs:
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "shufflenet_v2_x0_5"])  # dropout; batch normalization
def test_a_killed_training_ends_with_the_very_weights_of_an_unbroken_one(
    tensors: Dataset, tmp_path: Path, backbone: str
) -> None:
    config = settings(tensors, **ALL, backbone=backbone)
    whole = trainer(tensors, tmp_path / "whole", config)
    expected = whole.run()
    moments = [(0, 3), (1, 0), (2, 4)]  # in the middle of a group of batches, and at the start of an epoch
    for epoch, number in moments:
        killed = trainer(tensors, tmp_path / "killed", config)
        at_batch(killed, epoch, number, kill)
        torch.manual_seed(99)  # another process has another state
        with pytest.raises(Killed):
            killed.run()
    resumed = trainer(tensors, tmp_path / "killed", config)
    found = resumed.run()
    same_end((whole, expected), (resumed, found))
    assert [row["blocks"] for row in found.history] == [1, 1 + -(-(len(resumed.blocks) - 1) // 2), len(resumed.blocks)]


def test_without_checkpoints_in_mid_epoch_no_more_than_an_epoch_is_lost(tensors: Dataset, tmp_path: Path) -> None:
    config = settings(tensors, epochs=2, checkpoint_minutes=0.0)
    killed = trainer(tensors, tmp_path, config)
    at_batch(killed, 1, 3, kill)
    with pytest.raises(Killed):
        killed.run()
    state = load_checkpoint(killed.uri, trainer(tensors, tmp_path, config).learner)
    assert (state.epoch, state.batches, state.updates, len(state.history)) == (1, 0, 5, 1)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_leaves_a_checkpoint_and_the_next_try_goes_on_from_it(
    tensors: Dataset, tmp_path: Path, number: signal.Signals, name: str
) -> None:
    config = settings(tensors, epochs=2, dropout=0.3, checkpoint_minutes=0.0)
    whole = trainer(tensors, tmp_path / "whole", config)
    expected = whole.run()
    stop = StopRequest()
    stopped = trainer(tensors, tmp_path / "stopped", config, Communicator(stop=stop))
    at_batch(stopped, 1, 2, lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with stop.handle_signals(), pytest.raises(TransientError, match=f"stopped by {name} after 3 batches of epoch 2"):
        stopped.run()
    assert signal.getsignal(number) is before
    resumed = trainer(tensors, tmp_path / "stopped", config)
    trained: list[int] = []
    step = resumed.stepper.train_batch
    resumed.stepper.train_batch = lambda *a: (trained.append(a[0].number), step(*a))[1]  # type: ignore[method-assign,func-returns-value]
    found = resumed.run()
    assert trained == [3, 4], "nothing is done twice"
    same_end((whole, expected), (resumed, found))


def test_sigterm_during_the_validation_loses_no_step(
    tensors: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tensors, epochs=1, checkpoint_minutes=0.0)
    stop = StopRequest()
    one = trainer(tensors, tmp_path, config, Communicator(stop=stop))
    validator_class = type(one.validator)
    logits = validator_class.predict

    def stopping(*arguments: Any) -> Any:
        stop.is_requested = True
        return logits(*arguments)

    with monkeypatch.context() as patch, pytest.raises(TransientError, match="after 5 batches of epoch 1"):
        patch.setattr(validator_class, "predict", stopping)
        one.run()
    resumed = trainer(tensors, tmp_path, config)
    at_batch(resumed, 0, 4, kill)
    assert resumed.run().epoch == 1


def test_the_average_is_what_is_validated_and_kept(tensors: Dataset, tmp_path: Path) -> None:
    one = trainer(tensors, tmp_path, settings(tensors, ema=0.9, epochs=2))
    state = one.run()
    assert one.learner.average
    found = one.validator.validate(one.learner.average.network, lambda: None)
    last = {name: value for name, value in state.history[-1].items() if name.startswith("val_")}
    assert found == last
    assert one.validator.validate(one.network, lambda: None) != last
    if state.best_epoch == 2:
        average = one.learner.average.network.state_dict()
        assert all(torch.equal(state.best_weights[name], average[name]) for name in average)


def test_early_stopping_waits_for_thawed_blocks_and_then_for_so_many_epochs(tensors: Dataset, tmp_path: Path) -> None:
    config = settings(tensors, epochs=10, early_stopping=2, weights="somewhere", probe_epochs=2, unfreeze_epochs=1)
    one = trainer(tensors, tmp_path, config)
    assert [one.is_finished(TrainingState(epoch, best_epoch=1)) for epoch in range(1, 8)] == [False] * 4 + [True] * 3
    assert [one.is_finished(TrainingState(epoch, best_epoch=5)) for epoch in (6, 7)] == [False, True]
    plain = trainer(tensors, tmp_path, settings(tensors, epochs=10, early_stopping=2))
    assert [plain.is_finished(TrainingState(epoch, best_epoch=1)) for epoch in (2, 3, 10)] == [False, True, True]
    never = trainer(tensors, tmp_path, settings(tensors, epochs=10))
    assert [never.is_finished(TrainingState(epoch, best_epoch=1)) for epoch in (9, 10)] == [False, True]


def test_stopped_early_for_lack_of_progress(
    tensors: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = trainer(tensors, tmp_path, settings(tensors, epochs=50, early_stopping=2))
    one._is_best = lambda state: state.epoch == 2  # type: ignore[method-assign]
    state = one.run()
    assert (state.epoch, state.best_epoch) == (4, 2)
    assert "no better validation in 2 epochs: stopped early" in capsys.readouterr().err


def test_without_validation_images_the_last_epoch_is_kept(tmp_path: Path) -> None:
    tensors = make_tensors(tmp_path, train=20, val=0)
    one = trainer(tensors, tmp_path, settings(tensors, epochs=2, early_stopping=1))
    state = one.run()
    assert (state.epoch, state.best_epoch) == (2, 2) and "val_loss" not in state.history[-1]
    assert one.validator.fit_temperature(one.network) == 1


def explode(one: Trainer) -> None:
    with torch.no_grad():
        next(one.network.parameters()).fill_(float("nan"))


@pytest.mark.parametrize(("number", "which"), [(1, "loss"), (5, "validation loss")])
def test_a_loss_that_is_no_number_ends_the_training_with_advice(
    tensors: Dataset, tmp_path: Path, number: int, which: str
) -> None:
    one = trainer(tensors, tmp_path, settings(tensors, epochs=1))
    if number < 5:
        at_batch(one, 0, number, lambda: explode(one))
    else:  # after the last step, so that no training loss sees it
        validated = one._validate
        one._validate = lambda state: (explode(one), validated(state))[1]  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(UserError, match=f"epoch 1: the {which} is nan; try a smaller learning_rate"):
        one.run()


def test_an_exploded_training_is_not_saved_over_a_sound_one(tensors: Dataset, tmp_path: Path) -> None:
    one = trainer(tensors, tmp_path, settings(tensors, epochs=1, checkpoint_minutes=1e-9))
    at_batch(one, 0, 2, lambda: explode(one))
    with pytest.raises(UserError, match="the loss is nan"):
        one.run()
    again = trainer(tensors, tmp_path, settings(tensors, epochs=1))
    assert load_checkpoint(one.uri, again.learner).batches == 2
    assert all(value.isfinite().all() for value in again.network.state_dict().values())


def test_accumulated_batches_are_one_large_one(tensors: Dataset, tmp_path: Path) -> None:
    """Without what looks at a whole batch, 40 images in groups of 3 batches of 6 are as many in batches of 18: the last
    group is one batch of 4, and still every image in it counts the same."""
    small = trainer(tensors, tmp_path / "a", settings(tensors, batch_size=6, accumulate=3, **STEADY))
    large = trainer(tensors, tmp_path / "b", settings(tensors, batch_size=18, **STEADY))
    one, other = small.run(), large.run()
    assert one.updates == other.updates == 6
    for key, value in large.network.state_dict().items():
        torch.testing.assert_close(small.network.state_dict()[key], value, rtol=2e-4, atol=2e-6)
    assert [row["train_loss"] for row in one.history] == pytest.approx(
        [r["train_loss"] for r in other.history], rel=1e-4
    )


STEADY: dict[str, Any] = {"epochs": 2, "crop_scale": 1.0, "flip": "false", "optimizer": "sgd",
                          "learning_rate": 0.01, "clip_norm": 0.0}  # fmt: skip
"""Nothing random, nothing clipped, and an optimizer that does not divide small differences by small numbers."""


def test_what_is_said_of_an_epoch(tensors: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = trainer(tensors, tmp_path, settings(tensors, epochs=1)).run()
    line = next(line for line in capsys.readouterr().err.splitlines() if "epoch 1/1" in line)
    assert all(word in line for word in ("loss", "val macro-F1", "images/s", "waiting for data", "left"))
    assert set(state.history[0]) == {
        "epoch", "train_loss", "learning_rate", "images_per_second", "waiting", "updates", "blocks", "val_loss",
        "val_top1", "val_macro_f1", "seconds",
    }  # fmt: skip


def test_arithmetic_and_compilation_by_device(monkeypatch: pytest.MonkeyPatch, tensors: Dataset) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_autocast_dtype("float32", cpu) is None and choose_autocast_dtype("bfloat16", cpu) is torch.bfloat16
    assert choose_autocast_dtype("float16", cuda) is torch.float16
    with pytest.raises(UserError, match="precision: expected float16 only on a GPU"):
        choose_autocast_dtype("float16", cpu)
    config = settings(tensors)
    assert [should_compile(config, *at) for at in ((cpu, 10**6), (cuda, 2999), (cuda, 3000))] == [False, False, True]
    assert should_compile(settings(tensors, compile="true"), cpu, 1)
    assert not should_compile(settings(tensors, compile="false"), cuda, 10**6)


def test_balanced_sampling_is_for_one_label_an_image(tensors: Dataset, tmp_path: Path) -> None:
    state = trainer(tensors, tmp_path, settings(tensors, epochs=1, class_balance="sampling")).run()
    assert state.epoch == 1


def small(seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 2)
    )
    return Learner(network, torch.optim.AdamW(network.parameters(), lr=0.1), MovingAverage(network, 0.9))


def stepped(one: Learner) -> float:
    loss = one.network(torch.ones(2, 3, 4, 4) * torch.tensor([1.0, 2.0])[:, None, None, None]).square().sum()
    one.optimizer.zero_grad()
    loss.backward()
    one.optimizer.step()
    assert one.average
    one.average.update(one.network)
    return float(loss.item())


def saved_twice(uri: str) -> list[float]:
    """Checkpoints after one step and after two; the losses of the steps that follow each."""
    one = small()
    state, found = TrainingState(), []
    for epoch in (1, 2):
        found.append(stepped(one))
        state.epoch, state.updates, state.best_epoch = epoch, epoch, epoch
        state.history.append({"epoch": epoch})
        state.best_weights = {k: v.clone() for k, v in one.network.state_dict().items()}
        state.loss_sum, state.images = torch.tensor(0.1, dtype=torch.float64), 7
        save_checkpoint(uri, state, one)
    return [found[1], stepped(one)]


def test_a_checkpoint_holds_everything_that_the_next_step_depends_on(tmp_path: Path) -> None:
    expected = saved_twice(str(tmp_path))
    one = small(5)
    stepped(one)
    state = load_checkpoint(str(tmp_path), one)
    assert (state.epoch, state.best_epoch, state.history) == (2, 2, [{"epoch": 1}, {"epoch": 2}])
    assert (state.images, state.number) == (7, 2) and state.loss_sum is not None
    assert state.loss_sum.item() == 0.1 and state.loss_sum.dtype == torch.float64
    assert all(torch.equal(state.best_weights[k], v) for k, v in one.network.state_dict().items())
    assert one.average and one.average.updates == 2
    assert stepped(one) == expected[1]


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 200, None])
def test_a_checkpoint_that_is_not_whole_is_ignored(tmp_path: Path, damage: bytes | None) -> None:
    expected = saved_twice(str(tmp_path))
    newest = tmp_path / "_work" / SLOTS[0]
    newest.write_bytes(newest.read_bytes()[:-50] if damage is None else damage)
    one = small()
    assert load_checkpoint(str(tmp_path), one).epoch == 1
    assert stepped(one) == expected[0]


@pytest.mark.parametrize("metadata", [None, {}, {"imagemill": "text"}, {"imagemill": '{"epoch": 3}'}])
def test_a_safetensors_file_that_is_no_checkpoint_is_ignored(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    from safetensors.torch import save

    (tmp_path / "_work").mkdir()
    (tmp_path / "_work" / SLOTS[1]).write_bytes(save({"a": torch.zeros(2)}, metadata))
    assert load_checkpoint(str(tmp_path), small()) == TrainingState()


def test_without_a_checkpoint_training_begins_at_the_beginning(tmp_path: Path) -> None:
    assert load_checkpoint(str(tmp_path), small()) == TrainingState()


def test_frozen_and_tied_weights_are_saved_too(tmp_path: Path) -> None:
    one = small()
    one.network[3].requires_grad_(False)
    one.network.register_buffer("again", one.network[0].weight.data)  # the same memory under another name
    one.average = None
    loss = one.network(torch.ones(2, 3, 4, 4)).square().sum()
    loss.backward()
    one.optimizer.step()
    save_checkpoint(str(tmp_path), TrainingState(), one)
    other = small(3)
    other.network.register_buffer("again", torch.zeros(4, 3, 3, 3))
    other.average = None
    load_checkpoint(str(tmp_path), other)
    assert len(other.optimizer.state) == 4, "of the four tensors that learn"
    assert torch.equal(other.network.again, one.network.again)  # type: ignore[arg-type]


def test_scaled_gradients_are_remembered(tmp_path: Path) -> None:
    one = small()
    one.scaler = torch.amp.GradScaler("cpu", init_scale=3.0, growth_interval=5)
    one.scaler.scale(torch.ones(()))  # makes its tensor
    save_checkpoint(str(tmp_path), TrainingState(), one)
    other = small()
    other.scaler = torch.amp.GradScaler("cpu")
    load_checkpoint(str(tmp_path), other)
    assert other.scaler.get_scale() == 3.0 and other.scaler.get_growth_interval() == 5


def test_checkpoints_are_thrown_away(tmp_path: Path) -> None:
    saved_twice(str(tmp_path))
    assert {path.name for path in (tmp_path / "_work").iterdir()} == set(SLOTS)
    checkpoint.discard_checkpoints(str(tmp_path))
    assert not list((tmp_path / "_work").iterdir())


def test_an_error_of_a_batch_is_the_trainings(tensors: Dataset, tmp_path: Path) -> None:
    one = trainer(tensors, tmp_path, settings(tensors, epochs=1))

    def broken(*_: Any) -> Any:
        raise MillError("broken")

    one.batches.augmentation.apply_on_cpu = broken  # type: ignore[method-assign]
    with pytest.raises(MillError, match="broken"):
        one.run()


def test_nothing_is_committed_by_a_trainer(tensors: Dataset, tmp_path: Path) -> None:
    trainer(tensors, tmp_path, settings(tensors, epochs=1)).run()
    with pytest.raises(ValueError):
        model_of(tmp_path)
