"""Head fitted by logistic regression: the optimum on the network's features, as the first epoch of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from trained import history_of, make_tensors, run_killed, settings, trainer

from imagemill.components.dataset.manifest import Dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.metrics.logistic_regression import ProbeFitter
from imagemill.components.models.features import read_features
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import UserError
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.features import FeatureComputer
from imagemill.components.train.loop.head_solver import get_linear_head, solve_head

SOLVED = {"backbone": "shufflenet_v2_x0_5", "weights": "somewhere", "head": "solved", "probe_epochs": 1, "ema": 0.9}


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tensors(tmp_path_factory.mktemp("tensors"), train=40, val=40)


def test_probe_balances_classes_unless_images_weigh_alike_in_the_metric() -> None:
    """Two classes that lie over each other: the smaller one is predicted as often as the larger one, or never."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2], [180, 20])
    features = rng.normal(size=(200, 3)).astype(np.float32) + 5
    shares = {
        metric: (ProbeFitter(features, labels, 4, metric).fit(0.03)(features).argmax(1) == 2).mean()
        for metric in ("macro_f1", "balanced_accuracy", "top1")
    }
    assert shares["macro_f1"] == shares["balanced_accuracy"] > 0.3 and shares["top1"] == 0


@pytest.mark.parametrize("classes", [[0, 1, 2], [0, 1], [3]])
def test_classes_without_images_are_not_predicted(classes: list[int]) -> None:
    labels = np.repeat(classes, 30)
    features = (3 * np.eye(5, 8)[labels] + np.random.default_rng(0).normal(size=(len(labels), 8))).astype(np.float32)
    probe = ProbeFitter(features, labels, 5).fit(0.03)
    assert probe.weight.shape == (5, 8) and (probe(features).argmax(1) == labels).mean() > 0.95
    assert set(probe(100 * features).argmax(1)) <= set(classes)


def test_first_epoch_changes_only_the_head(tensors: Dataset, tmp_path: Path) -> None:
    """The dataset's two classes differ in brightness: a head on a random network's features tells them apart, which no
    epoch of a few steps does."""
    config = settings(tensors, **SOLVED, epochs=1)
    solving = trainer(tensors, tmp_path, config)
    before = {name: value.clone() for name, value in solving.network.state_dict().items()}
    state = solving.run()
    (row,) = state.history
    assert row["val_macro_f1"] > 0.7 and row["train_loss"] < 0.5 and state.updates == 0  # 0.5 by chance
    changed = {name for name, value in state.best_weights.items() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_solved_head_is_kept_if_later_epochs_are_worse(tensors: Dataset, tmp_path: Path) -> None:
    """A learning rate that destroys everything: the solved head is the best epoch, and is kept."""
    solving = trainer(tensors, tmp_path, settings(tensors, **SOLVED, epochs=3, learning_rate=0.2))
    state = solving.run()
    assert state.best_epoch == 1 and [row["epoch"] for row in state.history] == [1, 2, 3]
    assert max(row["val_macro_f1"] for row in state.history[1:]) <= state.history[0]["val_macro_f1"]


def test_schedule_starts_after_the_solved_epoch(tensors: Dataset, tmp_path: Path) -> None:
    solving = trainer(tensors, tmp_path, settings(tensors, **SOLVED, epochs=3))
    assert solving.stepper.schedule.steps == 2 * 5  # five batches of eight in each of two epochs


def test_killed_training_ends_with_the_weights_of_an_uninterrupted_one(tensors: Dataset, tmp_path: Path) -> None:
    config = settings(tensors, **SOLVED, epochs=3)
    expected = trainer(tensors, tmp_path / "whole", config).run()
    run_killed(trainer(tensors, tmp_path / "killed", config), 1, 0)
    resumed = trainer(tensors, tmp_path / "killed", config)
    torch.nn.init.normal_(get_linear_head(resumed.network).weight)  # type: ignore[union-attr]
    state = resumed.run()
    assert history_of(state.history) == history_of(expected.history)
    assert all(torch.equal(state.best_weights[name], expected.best_weights[name]) for name in expected.best_weights)


def test_head_is_solved_without_validation_images(tmp_path: Path) -> None:
    tensors = make_tensors(tmp_path / "tensors", val=0)
    state = trainer(tensors, tmp_path, settings(tensors, **SOLVED, epochs=1)).run()
    assert state.best_epoch == 1 and state.history[0]["train_loss"] < 0.5


def test_nonlinear_head_is_trained(tensors: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SqueezeNet's head is a convolution."""
    config = settings(tensors, **SOLVED | {"backbone": "squeezenet1_1"}, epochs=1)
    state = trainer(tensors, tmp_path, config).run()
    assert state.updates == 5 and "the head is trained" in capsys.readouterr().err


@pytest.mark.parametrize("values", [{"recipe": "probe"}, {"head": "solved"}])
def test_solved_head_requires_pretrained_weights(values: dict[str, str]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(values))}: expected another one with --weights none"):
        TrainConfig.from_values(values | {"weights": "none"})


def test_recipes_for_few_images_solve_the_head(tensors: Dataset) -> None:
    assert settings(tensors, recipe="auto", weights="somewhere").head == "solved"
    assert settings(tensors, recipe="auto").head is None
    assert settings(tensors, recipe="auto", weights="somewhere", head="trained").head == "trained"
    probe = settings(tensors, recipe="probe", weights="somewhere", epochs=None)
    assert (probe.head, probe.epochs) == ("solved", 1)


def test_final_head_is_cross_validated_and_fitted_to_all_images(tensors: Dataset, tmp_path: Path) -> None:
    network = trainer(tensors, tmp_path, settings(tensors, **SOLVED)).network
    context, device = Context("train", Workspace.open(str(tmp_path)), "run", False), torch.device("cpu")
    features = FeatureComputer(network, tensors, {"seed": 0}, device, context).run()
    held_out, final = solve_head(features), solve_head(features, is_final=True)
    assert (held_out.images, held_out.out_of_fold) == (40, None) and final.images == 80
    assert final.out_of_fold is not None and final.val_macro_f1 == final.out_of_fold.metrics["val_macro_f1"]
    inputs, labels = (
        np.concatenate(p) for p in zip(*(read_features(features, s) for s in ("train", "val")), strict=True)
    )
    own = (final.probe(inputs).argmax(1) == labels).mean()
    assert own >= final.out_of_fold.metrics["val_top1"] > 0.6, "no image is judged by a head that was fitted to it"
    assert 0.05 <= final.out_of_fold.temperature <= 20
