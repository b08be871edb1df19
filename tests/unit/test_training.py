"""Training loop: the same weights after any interruption, the best epoch kept, and no diverged weights saved."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import call_before_batch, history_of, make_tensors, raise_killed, run_killed, settings, trainer

from imagemill.components.dataset.manifest import Dataset
from imagemill.components.step.runner_exit import StopRequest
from imagemill.components.storage.errors import MillError, TransientError, UserError
from imagemill.components.train.loop import checkpoint
from imagemill.components.train.loop.checkpoint import SLOTS, Learner, TrainingState, load_checkpoint, save_checkpoint
from imagemill.components.train.loop.distributed import Communicator
from imagemill.components.train.loop.optimizer import MovingAverage
from imagemill.components.train.loop.stepper import choose_autocast_dtype, should_compile
from imagemill.components.train.loop.trainer import Trainer

STEP_OPTIONS = {
    "ema": 0.99, "mixup_probability": 0.5, "cutmix_probability": 0.5, "policy": "randaugment", "erasing": 0.5,
    "dropout": 0.3, "accumulate": 2, "weights": "somewhere", "probe_epochs": 1, "unfreeze_epochs": 1,
    "layer_decay": 0.8, "clip_norm": 1.0, "class_balance": "weights", "epochs": 3, "checkpoint_minutes": 1e-9,
}  # fmt: skip
"""Everything that a step of a training can depend on, and a checkpoint after every step."""


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tensors(tmp_path_factory.mktemp("tensors"))


def assert_same_result(first: Trainer, expected: TrainingState, second: Trainer, state: TrainingState) -> None:
    """Check epochs, history and weights of two trainings."""
    assert (state.epoch, state.best_epoch, state.updates) == (expected.epoch, expected.best_epoch, expected.updates)
    assert history_of(state.history) == history_of(expected.history)
    pairs = [(first.network.state_dict(), second.network.state_dict()), (expected.best_weights, state.best_weights)]
    if first.learner.average and second.learner.average:
        pairs.append((first.learner.average.network.state_dict(), second.learner.average.network.state_dict()))
    for expected_weights, weights in pairs:
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0)


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "shufflenet_v2_x0_5"])  # dropout; batch normalization
def test_killed_training_resumes_to_the_same_weights(tensors: Dataset, tmp_path: Path, backbone: str) -> None:
    config = settings(tensors, **STEP_OPTIONS, backbone=backbone)
    uninterrupted = trainer(tensors, tmp_path / "whole", config)
    expected = uninterrupted.run()
    moments = [(0, 3), (1, 0), (2, 4)]  # in the middle of a group of batches, and at the start of an epoch
    for epoch, number in moments:
        killed = trainer(tensors, tmp_path / "killed", config)
        torch.manual_seed(99)  # another process has another state
        run_killed(killed, epoch, number)
    resumed = trainer(tensors, tmp_path / "killed", config)
    state = resumed.run()
    assert_same_result(uninterrupted, expected, resumed, state)
    assert [row["blocks"] for row in state.history] == [1, 1 + -(-(len(resumed.blocks) - 1) // 2), len(resumed.blocks)]


def test_without_checkpoints_within_an_epoch_at_most_one_epoch_is_lost(tensors: Dataset, tmp_path: Path) -> None:
    config = settings(tensors, epochs=2, checkpoint_minutes=0.0)
    killed = trainer(tensors, tmp_path, config)
    run_killed(killed, 1, 3)
    state = load_checkpoint(killed.uri, trainer(tensors, tmp_path, config).learner)
    assert (state.epoch, state.batches, state.updates, len(state.history)) == (1, 0, 5, 1)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_signal_saves_a_checkpoint_from_which_the_next_attempt_resumes(
    tensors: Dataset, tmp_path: Path, number: signal.Signals, name: str
) -> None:
    config = settings(tensors, epochs=2, dropout=0.3, checkpoint_minutes=0.0)
    uninterrupted = trainer(tensors, tmp_path / "whole", config)
    expected = uninterrupted.run()
    stop = StopRequest()
    stopped = trainer(tensors, tmp_path / "stopped", config, Communicator(stop=stop))
    call_before_batch(stopped, 1, 2, lambda: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    with stop.handle_signals(), pytest.raises(TransientError, match=f"stopped by {name} after 3 batches of epoch 2"):
        stopped.run()
    assert signal.getsignal(number) is before
    resumed = trainer(tensors, tmp_path / "stopped", config)
    trained: list[int] = []
    step = resumed.stepper.train_batch
    resumed.stepper.train_batch = lambda *a: (trained.append(a[0].number), step(*a))[1]  # type: ignore[method-assign,func-returns-value]
    state = resumed.run()
    assert trained == [3, 4], "nothing is done twice"
    assert_same_result(uninterrupted, expected, resumed, state)


def test_sigterm_in_validation_loses_no_step(tensors: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(tensors, epochs=1, checkpoint_minutes=0.0)
    stop = StopRequest()
    stopped = trainer(tensors, tmp_path, config, Communicator(stop=stop))
    validator_class = type(stopped.validator)
    logits = validator_class.predict

    def stopping(*arguments: Any, **named: Any) -> Any:
        stop.is_requested = True
        return logits(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(TransientError, match="after 5 batches of epoch 1"):
        patch.setattr(validator_class, "predict", stopping)
        stopped.run()
    resumed = trainer(tensors, tmp_path, config)
    call_before_batch(resumed, 0, 4, raise_killed)
    assert resumed.run().epoch == 1


def test_moving_average_is_validated_and_kept(tensors: Dataset, tmp_path: Path) -> None:
    training = trainer(tensors, tmp_path, settings(tensors, ema=0.9, epochs=2))
    state = training.run()
    assert training.learner.average
    scores = training.validator.validate(training.learner.average.network, lambda: None)
    last = {name: value for name, value in state.history[-1].items() if name.startswith("val_")}
    assert scores == last
    assert training.validator.validate(training.network, lambda: None) != last
    if state.best_epoch == 2:
        average = training.learner.average.network.state_dict()
        assert all(torch.equal(state.best_weights[name], average[name]) for name in average)


def test_early_stopping_counts_epochs_after_all_blocks_are_trained(tensors: Dataset, tmp_path: Path) -> None:
    config = settings(tensors, epochs=10, early_stopping=2, weights="somewhere", probe_epochs=2, unfreeze_epochs=1)
    frozen = trainer(tensors, tmp_path, config)
    assert [frozen.is_finished(TrainingState(epoch, best_epoch=1)) for epoch in range(1, 8)] == [False] * 4 + [True] * 3
    assert [frozen.is_finished(TrainingState(epoch, best_epoch=5)) for epoch in (6, 7)] == [False, True]
    plain = trainer(tensors, tmp_path, settings(tensors, epochs=10, early_stopping=2))
    assert [plain.is_finished(TrainingState(epoch, best_epoch=1)) for epoch in (2, 3, 10)] == [False, True, True]
    unlimited = trainer(tensors, tmp_path, settings(tensors, epochs=10))
    assert [unlimited.is_finished(TrainingState(epoch, best_epoch=1)) for epoch in (9, 10)] == [False, True]


def test_early_stop_without_improvement(tensors: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = trainer(tensors, tmp_path, settings(tensors, epochs=50, early_stopping=2))
    training._is_best = lambda state: state.epoch == 2  # type: ignore[method-assign]
    state = training.run()
    assert (state.epoch, state.best_epoch) == (4, 2)
    assert "no better validation in 2 epochs: stopped early" in capsys.readouterr().err


def test_without_validation_images_the_last_epoch_is_kept(tmp_path: Path) -> None:
    tensors = make_tensors(tmp_path, train=20, val=0)
    training = trainer(tensors, tmp_path, settings(tensors, epochs=2, early_stopping=1))
    state = training.run()
    assert (state.epoch, state.best_epoch) == (2, 2) and "val_loss" not in state.history[-1]
    assert training.validator.fit_temperature(training.network) == 1


def fill_with_nan(training: Trainer) -> None:
    with torch.no_grad():
        next(training.network.parameters()).fill_(float("nan"))


@pytest.mark.parametrize(("number", "loss_name"), [(1, "loss"), (5, "validation loss")])
def test_nan_loss_ends_the_training_with_advice(tensors: Dataset, tmp_path: Path, number: int, loss_name: str) -> None:
    training = trainer(tensors, tmp_path, settings(tensors, epochs=1))
    if number < 5:
        call_before_batch(training, 0, number, lambda: fill_with_nan(training))
    else:  # after the last step, so that no training loss sees it
        validate = training._validate
        training._validate = lambda state: (fill_with_nan(training), validate(state))[1]  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(UserError, match=f"epoch 1: the {loss_name} is nan; try a smaller learning_rate"):
        training.run()


def test_diverged_training_does_not_replace_the_checkpoint(tensors: Dataset, tmp_path: Path) -> None:
    diverged = trainer(tensors, tmp_path, settings(tensors, epochs=1, checkpoint_minutes=1e-9))
    call_before_batch(diverged, 0, 2, lambda: fill_with_nan(diverged))
    with pytest.raises(UserError, match="the loss is nan"):
        diverged.run()
    resumed = trainer(tensors, tmp_path, settings(tensors, epochs=1))
    assert load_checkpoint(diverged.uri, resumed.learner).batches == 2
    assert all(value.isfinite().all() for value in resumed.network.state_dict().values())


def test_accumulated_batches_equal_one_large_batch(tensors: Dataset, tmp_path: Path) -> None:
    """Without what looks at a whole batch, 40 images in groups of 3 batches of 6 are as many in batches of 18: the last
    group is one batch of 4, and still every image in it counts the same."""
    small = trainer(tensors, tmp_path / "a", settings(tensors, batch_size=6, accumulate=3, **STEADY))
    large = trainer(tensors, tmp_path / "b", settings(tensors, batch_size=18, **STEADY))
    small_state, large_state = small.run(), large.run()
    assert small_state.updates == large_state.updates == 6
    for key, value in large.network.state_dict().items():
        torch.testing.assert_close(small.network.state_dict()[key], value, rtol=2e-4, atol=2e-6)
    assert [row["train_loss"] for row in small_state.history] == pytest.approx(
        [r["train_loss"] for r in large_state.history], rel=1e-4
    )


STEADY: dict[str, Any] = {"epochs": 2, "crop_scale": 1.0, "flip": "false", "optimizer": "sgd",
                          "learning_rate": 0.01, "clip_norm": 0.0}  # fmt: skip
"""Nothing random, nothing clipped, and an optimizer that does not divide small differences by small numbers."""


@pytest.mark.parametrize("balance", ["none", "sampling"])
def test_epoch_is_logged_with_its_scores_and_commits_no_model(
    tensors: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], balance: str
) -> None:
    state = trainer(tensors, tmp_path, settings(tensors, epochs=1, class_balance=balance)).run()
    assert not list((tmp_path / "model").glob("*/_manifest.json"))
    line = next(line for line in capsys.readouterr().err.splitlines() if "epoch 1/1 · loss" in line)
    assert all(word in line for word in ("val macro-F1", "images/s", "waiting for data", "left"))
    assert set(state.history[0]) == {
        "epoch", "train_loss", "learning_rate", "images_per_second", "waiting", "updates", "blocks", "val_loss",
        "val_top1", "val_macro_f1", "seconds",
    }  # fmt: skip


def test_autocast_and_compilation_depend_on_the_device(tensors: Dataset) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert choose_autocast_dtype("float32", cpu) is None and choose_autocast_dtype("bfloat16", cpu) is torch.bfloat16
    assert choose_autocast_dtype("float16", cuda) is torch.float16
    with pytest.raises(UserError, match="precision: expected float16 only on a GPU"):
        choose_autocast_dtype("float16", cpu)
    config = settings(tensors)
    assert [should_compile(config, *at) for at in ((cpu, 10**6), (cuda, 2999), (cuda, 3000))] == [False, False, True]
    assert should_compile(settings(tensors, compile="true"), cpu, 1)
    assert not should_compile(settings(tensors, compile="false"), cuda, 10**6)


def make_learner(seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 2)
    )
    return Learner(network, torch.optim.AdamW(network.parameters(), lr=0.1), MovingAverage(network, 0.9))


def train_step(learner: Learner) -> float:
    loss = learner.network(torch.ones(2, 3, 4, 4) * torch.tensor([1.0, 2.0])[:, None, None, None]).square().sum()
    learner.optimizer.zero_grad()
    loss.backward()
    learner.optimizer.step()
    assert learner.average
    learner.average.update(learner.network)
    return float(loss.item())


def save_two_checkpoints(uri: str) -> list[float]:
    """Save checkpoints after one step and after two; return the losses of the steps that follow each."""
    learner = make_learner()
    state, losses = TrainingState(), []
    for epoch in (1, 2):
        losses.append(train_step(learner))
        state.epoch, state.updates, state.best_epoch = epoch, epoch, epoch
        state.history.append({"epoch": epoch})
        state.best_weights = {k: v.clone() for k, v in learner.network.state_dict().items()}
        state.loss_sum, state.images = torch.tensor(0.1, dtype=torch.float64), 7
        save_checkpoint(uri, state, learner)
    return [losses[1], train_step(learner)]


def test_checkpoint_holds_everything_that_the_next_step_needs(tmp_path: Path) -> None:
    expected = save_two_checkpoints(str(tmp_path))
    learner = make_learner(5)
    train_step(learner)
    state = load_checkpoint(str(tmp_path), learner)
    assert (state.epoch, state.best_epoch, state.history) == (2, 2, [{"epoch": 1}, {"epoch": 2}])
    assert (state.images, state.number) == (7, 2) and state.loss_sum is not None
    assert state.loss_sum.item() == 0.1 and state.loss_sum.dtype == torch.float64
    assert all(torch.equal(state.best_weights[k], v) for k, v in learner.network.state_dict().items())
    assert learner.average and learner.average.updates == 2
    assert train_step(learner) == expected[1]


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 200, None])
def test_truncated_checkpoint_is_ignored(tmp_path: Path, damage: bytes | None) -> None:
    expected = save_two_checkpoints(str(tmp_path))
    newest = tmp_path / "_work" / SLOTS[0]
    newest.write_bytes(newest.read_bytes()[:-50] if damage is None else damage)
    learner = make_learner()
    assert load_checkpoint(str(tmp_path), learner).epoch == 1
    assert train_step(learner) == expected[0]


@pytest.mark.parametrize("metadata", [None, {}, {"imagemill": "text"}, {"imagemill": '{"epoch": 3}'}])
def test_training_starts_anew_without_a_file_and_beside_one_that_is_no_checkpoint(
    tmp_path: Path, metadata: dict[str, str] | None
) -> None:
    from safetensors.torch import save

    assert load_checkpoint(str(tmp_path), make_learner()) == TrainingState()
    (tmp_path / "_work").mkdir()
    (tmp_path / "_work" / SLOTS[1]).write_bytes(save({"a": torch.zeros(2)}, metadata))
    assert load_checkpoint(str(tmp_path), make_learner()) == TrainingState()


def test_frozen_and_tied_weights_are_saved_too(tmp_path: Path) -> None:
    learner = make_learner()
    learner.network[3].requires_grad_(False)
    learner.network.register_buffer("again", learner.network[0].weight.data)  # the same memory under another name
    learner.average = None
    loss = learner.network(torch.ones(2, 3, 4, 4)).square().sum()
    loss.backward()
    learner.optimizer.step()
    save_checkpoint(str(tmp_path), TrainingState(), learner)
    loaded = make_learner(3)
    loaded.network.register_buffer("again", torch.zeros(4, 3, 3, 3))
    loaded.average = None
    load_checkpoint(str(tmp_path), loaded)
    assert len(loaded.optimizer.state) == 4, "of the four tensors that learn"
    assert torch.equal(loaded.network.again, learner.network.again)  # type: ignore[arg-type]


def test_gradient_scaler_is_saved(tmp_path: Path) -> None:
    learner = make_learner()
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=3.0, growth_interval=5)
    learner.scaler.scale(torch.ones(()))  # makes its tensor
    save_checkpoint(str(tmp_path), TrainingState(), learner)
    loaded = make_learner()
    loaded.scaler = torch.amp.GradScaler("cpu")
    load_checkpoint(str(tmp_path), loaded)
    assert loaded.scaler.get_scale() == 3.0 and loaded.scaler.get_growth_interval() == 5


def test_checkpoints_are_deleted(tmp_path: Path) -> None:
    save_two_checkpoints(str(tmp_path))
    assert {path.name for path in (tmp_path / "_work").iterdir()} == set(SLOTS)
    checkpoint.discard_checkpoints(str(tmp_path))
    assert not list((tmp_path / "_work").iterdir())


def test_error_in_a_batch_is_raised_by_the_training(tensors: Dataset, tmp_path: Path) -> None:
    training = trainer(tensors, tmp_path, settings(tensors, epochs=1))

    def fail(*_: Any) -> Any:
        raise MillError("broken")

    training.batches.augmentation.apply = fail  # type: ignore[method-assign]
    with pytest.raises(MillError, match="broken"):
        training.run()
