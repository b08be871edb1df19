"""Which recipe `auto` takes with pretrained weights and why, balance, the time that a training may take."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from test_recipes import make_manifest as tensors
from test_recipes import resolve_config as resolved
from trained import make_tensors, settings, trainer

from imagemill.components.dataset.manifest import Dataset, Manifest
from imagemill.components.storage.errors import UserError
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.recipes import explain_choice


@pytest.mark.parametrize(
    ("manifest", "recipe", "reason"),
    [
        (tensors(259, 37), "probe", "7 images a class are too few to change pretrained layers by"),
        (tensors(150, 2), "probe", "37 validation images could not show"),
        (tensors(3680, 37), "finetune", "99 images a class may gain on the solved head"),
        (tensors(100_000, 1000), "large", "there are 100,000 training images"),
        (tensors(300, 20, labels=4), "standard", "there are 60 images a class"),  # no head is solved for several labels
    ],
)
def test_with_weights_auto_begins_with_the_head(manifest: Manifest, recipe: str, reason: str) -> None:
    assert resolved(manifest, weights="DEFAULT").recipe == recipe
    (line,) = explain_choice(TrainConfig.from_values({"weights": "DEFAULT"}), manifest)
    assert line.startswith(f"recipe {recipe} is chosen since {reason}")
    assert explain_choice(TrainConfig.from_values({"weights": "DEFAULT", "recipe": recipe}), manifest) == []


def test_auto_balances_classes_that_differ_where_the_metric_does() -> None:
    uneven = tensors()
    uneven.totals.by_class["class 0"] = 500
    assert resolved(uneven).class_balance == "weights"
    assert "classes are balanced, since macro_f1 weighs them alike" in explain_choice(TrainConfig(), uneven)[0]
    assert resolved(uneven, metric="top1").class_balance == "none"
    assert resolved(uneven, recipe="standard").class_balance == "none"
    assert resolved(uneven, class_balance="none").class_balance == "none"
    assert resolved().class_balance == "none", "they are even"
    assert resolved(metric="top1").fingerprint_values() == resolved().fingerprint_values()


def test_fine_tuning_goes_as_far_as_validation_gains() -> None:
    config = resolved(recipe="finetune", weights="DEFAULT")
    assert (config.head, config.has_head_margin, config.probe_epochs, config.early_stopping) == ("solved", True, 1, 4)
    standard = resolved(recipe="standard", weights="DEFAULT")
    assert not standard.has_head_margin and "head_margin" not in standard.fingerprint_values()
    with pytest.raises(UserError, match="recipe: expected another one with --weights none"):
        TrainConfig.from_values({"recipe": "finetune", "weights": "none"})


@pytest.mark.parametrize(("text", "seconds"), [("", math.inf), ("90s", 90), ("10m", 600), ("2h", 7200)])
def test_times(text: str, seconds: float) -> None:
    assert TrainConfig.from_values({"time": text}).seconds == seconds


@pytest.mark.parametrize("text", ["10", "m", "0m", "-5m", "1h30m"])
def test_invalid_time_budget_is_rejected(text: str) -> None:
    with pytest.raises(UserError, match="time: expected a number of seconds, minutes or hours"):
        TrainConfig.from_values({"time": text})


SOLVED = {"backbone": "shufflenet_v2_x0_5", "weights": "somewhere", "head": "solved", "probe_epochs": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tensors(tmp_path_factory.mktemp("tensors"), train=40, val=40)


def test_a_training_ends_in_time_with_its_best_epoch(
    small: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = trainer(small, tmp_path, settings(small, **SOLVED, epochs=500, time="1s"))
    training.preparation_seconds = 2.0
    state = training.run()
    assert state.epoch == 1 and state.best_epoch == 1 and state.history[0]["seconds"] >= 2
    assert "the time limit of 1s is reached: stopped in epoch 2" in capsys.readouterr().err


def test_the_schedule_ends_with_the_epochs_that_fit(small: Dataset, tmp_path: Path) -> None:
    training = trainer(small, tmp_path, settings(small, **SOLVED, epochs=100_000, time="3s"))
    state = training.run()
    assert 2 <= training.epochs < 100_000 and training.epochs == state.planned_epochs
    assert training.stepper.schedule.steps == 5 * (training.epochs - 1), "five batches in each but the first"
    assert state.epoch <= training.epochs


def test_little_more_than_the_solved_head_is_no_gain(small: Dataset, tmp_path: Path) -> None:
    training = trainer(small, tmp_path, settings(small, **SOLVED, epochs=2, recipe="finetune"))
    state = training._resume()
    state.history = [{"val_macro_f1": 0.8, "val_loss": 0.5}]
    state.best_epoch = 1
    one_error = math.sqrt(0.8 * 0.2 / 40)
    for gain, is_best in ((0.001, False), (one_error - 0.001, False), (one_error + 0.001, True)):
        state.history = [state.history[0], {"val_macro_f1": 0.8 + gain, "val_loss": 0.1}]
        assert training._is_best(state) is is_best
    state.history[0]["val_macro_f1"], state.best_epoch = 0.8, 2
    state.history = [state.history[0], {"val_macro_f1": 0.9, "val_loss": 0.1}, {"val_macro_f1": 0.901, "val_loss": 0.1}]
    assert training._is_best(state), "among later epochs every gain counts"
