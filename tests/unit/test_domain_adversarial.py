"""`--domain-adversarial`: features that hide the domain, resumed to the bit, and nothing of it in the model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored import commit_tensors, make_rows
from trained import assert_equal_weights, command, history_of, make_tensors, run_killed, settings, trainer

from imagemill.components.dataset.kinds import ModelExtra
from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.storage.errors import UserError
from imagemill.components.train import STEP
from imagemill.components.train.artifact import publish
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.loop.domain_adversary import compute_strength, make_domain_network, reverse_gradient
from imagemill.components.train.loop.trainer import Trainer
from imagemill.components.train.recipes import DatasetTraits, choose_recipe

BACKBONE = "shufflenet_v2_x0_5"  # with batch normalization


def make_target(source: Dataset, rows: int = 20, size: int = 32, name: str = "02") -> Dataset:
    """Unlabeled images beside the source's: lighter ones of one class, in another number."""
    uri = f"{source.uri[:-2]}{name}"
    images = np.random.default_rng(1).integers(100, 256, (rows, size, size, 3)).astype(np.uint8)
    manifest = source.manifest
    image = replace(manifest.image_spec, shape=(size, size, 3))
    more = {"parents": manifest.parents, "classes": ("any",), "image": image, "extra": manifest.extra}
    return commit_tensors(uri, make_rows("train", images, [0] * rows), (size, size, 3), 16, **more)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tensors(tmp_path_factory.mktemp("domains"))


@pytest.fixture(scope="module")
def target(source: Dataset) -> Dataset:
    return make_target(source)


def adversarial(source: Dataset, target: Dataset, folder: Path, **values: Any) -> Trainer:
    config = settings(source, backbone=BACKBONE, domain_adversarial=target.uri, **values)
    return trainer(source, folder, config, target=target)


def test_the_weight_of_the_reversed_gradient_is_the_papers() -> None:
    assert compute_strength(0.0) == 0.0 and compute_strength(1.0) > 0.9999
    assert compute_strength(0.25) == pytest.approx(2 / (1 + math.exp(-2.5)) - 1)


def test_the_gradient_is_reversed_for_the_network_alone() -> None:
    """Against autograd's gradients without the reversal: the classifier's are the same, the network's -0.3 times."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5), torch.nn.Linear(5, 3))
    module = make_domain_network(network, (3, 2, 2), torch.device("cpu"))
    images = torch.randn(4, 3, 2, 2)
    logits, domains = module(images, 3, torch.tensor(0.3))
    assert logits.shape == (3, 3) and domains.shape == (4,)
    inner = network[1].weight
    network_gradient, classifier_gradient = torch.autograd.grad(domains.sum(), [inner, module.classifier[0].weight])
    straight = module.classifier(network[1](network[0](images)))[:, 0]
    assert torch.equal(domains, straight)
    expected, expected_classifier_gradient = torch.autograd.grad(straight.sum(), [inner, module.classifier[0].weight])
    torch.testing.assert_close(network_gradient, -0.3 * expected)
    torch.testing.assert_close(classifier_gradient, expected_classifier_gradient)
    values = torch.tensor([1e30, -3.0, 0.0])
    assert torch.equal(reverse_gradient(values, torch.tensor(0.7)), values)


def test_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(
    source: Dataset, target: Dataset, tmp_path: Path
) -> None:
    """Source: 5 batches an epoch; target: 3 of 20 images, so that its passes end in the middle of the source's."""
    values = {"epochs": 2, "ema": 0.9, "accumulate": 2, "clip_norm": 1.0, "checkpoint_minutes": 1e-9, "erasing": 0.5}
    uninterrupted = adversarial(source, target, tmp_path / "whole", **values)
    expected = uninterrupted.run()
    for epoch, number in ((0, 3), (1, 4)):
        run_killed(adversarial(source, target, tmp_path / "killed", **values), epoch, number)
    resumed = adversarial(source, target, tmp_path / "killed", **values)
    result = resumed.run()
    assert history_of(result.history) == history_of(expected.history)
    assert all(0 <= row["domain_accuracy"] <= 1 for row in result.history)
    assert uninterrupted.learner.adversary and resumed.learner.adversary
    assert_equal_weights(resumed.network, uninterrupted.network)
    assert_equal_weights(resumed.learner.adversary.classifier, uninterrupted.learner.adversary.classifier)


def test_target_images_change_the_features_and_not_the_schedule(
    source: Dataset, target: Dataset, tmp_path: Path
) -> None:
    alone = trainer(source, tmp_path / "alone", settings(source, backbone=BACKBONE, epochs=1))
    both = adversarial(source, target, tmp_path / "both", epochs=1)
    states = [training.run() for training in (alone, both)]
    assert [row["learning_rate"] for row in states[0].history] == [row["learning_rate"] for row in states[1].history]
    assert "domain_accuracy" not in states[0].history[0]
    first, second = (training.network.state_dict() for training in (alone, both))
    assert first.keys() == second.keys()
    assert not torch.equal(first["conv1.0.weight"], second["conv1.0.weight"])


def test_target_is_a_parent_and_in_the_fingerprint(source: Dataset, target: Dataset, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "_export_and_compare", lambda *_: (b"", "there is none. Of another one:"))
        models = [train(source, tmp_path), train(source, tmp_path, domain_adversarial=target.uri)]
    assert models[0].fingerprint != models[1].fingerprint
    model = models[1]
    assert model.parent_uris("tensors") == [source.uri, target.uri]
    extra = ModelExtra.of(model.manifest)
    assert any("20 images of small without their labels" in line for line in extra.recipe)
    (weights,) = [file for file in model.files() if file.uri.endswith(".safetensors")]
    (same,) = [file for file in models[0].files() if file.uri.endswith(".safetensors")]
    assert weights.bytes == same.bytes and weights.sha256 != same.sha256


def train(source: Dataset, folder: Path, code: int = 0, **values: Any) -> Dataset:
    result, quick = folder / "result.json", {"recipe": "plain", "epochs": 1, "batch_size": 8, "tensorboard": False}
    words = command(source, **quick, backbone=BACKBONE, **values)[3:]
    assert STEP.main([*words, "--result", str(result)]) == code
    return read_dataset(json.loads(result.read_text())["uri"], "model")


def test_another_size_is_refused_with_both_named(source: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_target(source, size=40, name="03")
    words = command(source, recipe="plain", domain_adversarial=other.uri)[3:]
    assert STEP.main(words) == 2
    message = capsys.readouterr().err
    assert f"expected images made as those of {source.uri} (shape (32, 32, 3))" in message
    assert f"found {other.uri} (shape (40, 40, 3)): make both with the same options of clean and resize" in message


@pytest.mark.parametrize("values", [{"recipe": "probe"}, {"head": "solved"}])
def test_a_frozen_network_cannot_be_adapted(values: dict[str, str]) -> None:
    config = TrainConfig(weights="DEFAULT", domain_adversarial="x", **values)
    with pytest.raises(UserError, match="domain_adversarial, which needs layers that are trained"):
        config.check()


def test_auto_takes_a_recipe_that_trains_the_network() -> None:
    traits = DatasetTraits(images=60, per_class=10, size=64, color="rgb", val_images=10)
    assert choose_recipe(TrainConfig(weights="DEFAULT"), traits)[0] == "probe"
    assert choose_recipe(TrainConfig(weights="DEFAULT", domain_adversarial="x"), traits)[0] == "small"
