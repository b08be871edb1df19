"""Parameter groups, learning rate schedule, freezing, moving average of weights, and loss."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypotheses
from hypothesis import strategies as st
from placed import place
from torch.nn import functional
from torchvision.models import get_model
from trained import make_tensors, settings

from imagemill.components.dataset.index import make_tensors_index
from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.dataset.manifest import Dataset, Manifest, commit
from imagemill.components.dataset.shards import Layout
from imagemill.components.imaging.geometry import Geometry
from imagemill.components.models.blocks import parameter_blocks
from imagemill.components.resize.tensor_part import TensorSpec
from imagemill.components.train.loop.losses import (
    MAX_POSITIVE_WEIGHT,
    Loss,
    compute_inverse_frequencies,
    compute_positive_weights,
    count_labels,
)
from imagemill.components.train.loop.optimizer import (
    LearningRateSchedule,
    MovingAverage,
    compute_rate_scales,
    count_trainable_blocks,
    freeze_all_but_last,
    make_optimizer,
    make_parameter_groups,
    set_learning_rate,
)


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tensors(tmp_path_factory.mktemp("tensors"), train=13, val=0)


@pytest.fixture
def network() -> Iterator[torch.nn.Module]:
    torch.manual_seed(0)
    yield get_model("shufflenet_v2_x0_5", weights=None, num_classes=3)


@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.9), peak=st.floats(1e-6, 1))
@hypotheses(max_examples=60, deadline=None)
def test_learning_rate_rises_and_falls(steps: int, warmup: float, peak: float) -> None:
    schedule = LearningRateSchedule(peak, steps, warmup)
    rates = [schedule.rate(step) for step in range(steps)]
    top = int(np.argmax(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) <= peak and rates[0] > 0 and min(rates) >= 0
    assert abs(top - round(warmup * steps)) <= 1
    if round(warmup * steps) < steps:
        assert schedule.rate(steps) <= 1e-9 and schedule.rate(steps + 5) <= 1e-9, "never up again"


def test_schedule_matches_torchs_cosine() -> None:
    schedule = LearningRateSchedule(0.3, 40, 0.25)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    for step in range(10, 40):
        assert schedule.rate(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    assert [schedule.rate(step) for step in range(10)] == pytest.approx([0.03 * n for n in range(1, 11)])


def test_rate_scales_grow_towards_the_head(tensors: Dataset) -> None:
    config = settings(tensors, layer_decay=0.5, backbone_rate=0.1)
    assert compute_rate_scales(config, 4) == pytest.approx([0.0125, 0.025, 0.05, 1.0])
    assert compute_rate_scales(settings(tensors), 3) == [1, 1, 1]


@pytest.mark.parametrize(
    "name", ["shufflenet_v2_x0_5", "vit_b_16", "convnext_tiny", "swin_t", "timm:vit_tiny_patch16_224"]
)
def test_every_parameter_is_in_one_group_and_only_matrices_decay(tensors: Dataset, name: str) -> None:
    with torch.device("meta"):
        if name.startswith("timm:"):
            model = pytest.importorskip("timm").create_model(name.removeprefix("timm:"), num_classes=3)
        else:
            model = get_model(name, weights=None, num_classes=3)
    groups = make_parameter_groups(model, parameter_blocks(model), settings(tensors, weight_decay=0.1, layer_decay=0.8))
    names = {id(value): key for key, value in model.named_parameters()}
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
    assert len(groups) == len({(group["scale"], group["weight_decay"]) for group in groups})
    for group in groups:
        for parameter in group["params"]:
            key = names[id(parameter)]
            is_exempt = parameter.squeeze().ndim < 2 or any(
                word in key for word in ("pos_embed", "relative_position_bias")
            )
            assert group["weight_decay"] == (0 if is_exempt else 0.1), key
    (head,) = {
        group["scale"] for group in groups if any(names[id(p)] in parameter_blocks(model)[-1] for p in group["params"])
    }
    assert head == 1 == max(group["scale"] for group in groups)


def test_optimizer_follows_the_config(tensors: Dataset, network: torch.nn.Module) -> None:
    sgd = make_optimizer(network, parameter_blocks(network), settings(tensors, optimizer="sgd", backbone_rate=0.1))
    assert isinstance(sgd, torch.optim.SGD)
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in sgd.param_groups)
    set_learning_rate(sgd, 0.5)
    assert {group["lr"] for group in sgd.param_groups} == {0.5, 0.05}
    assert isinstance(make_optimizer(network, parameter_blocks(network), settings(tensors)), torch.optim.AdamW)


def test_blocks_are_unfrozen_after_the_head(tensors: Dataset) -> None:
    config = settings(tensors, weights="somewhere", probe_epochs=2, unfreeze_epochs=3)
    assert [count_trainable_blocks(config, 9, epoch) for epoch in range(7)] == [1, 1, 3, 5, 7, 9, 9]
    assert [
        count_trainable_blocks(settings(tensors, probe_epochs=2, unfreeze_epochs=3), 9, epoch) for epoch in (0, 5)
    ] == [9, 9]
    assert [count_trainable_blocks(settings(tensors, weights="somewhere"), 9, epoch) for epoch in (0, 1)] == [9, 9]


def test_frozen_blocks_and_their_statistics_do_not_change(tensors: Dataset, network: torch.nn.Module) -> None:
    named = parameter_blocks(network)
    optimizer = make_optimizer(network, named, settings(tensors, weight_decay=0.5))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    freeze_all_but_last(network, named, 2)
    for _ in range(2):
        network(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    learning = {name.rpartition(".")[0] for name in [*named[-1], *named[-2]]}
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.rpartition(".")[0] for key in changed} == learning, "weights, statistics and decay of these alone"
    assert any("running_mean" in key for key in changed)
    freeze_all_but_last(network, named, len(named))
    assert all(p.requires_grad for p in network.parameters()) and all(m.training for m in network.modules())


def test_moving_average_follows_its_formula() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    average = MovingAverage(network, 0.5)
    expected = {key: value.clone() for key, value in network.state_dict().items()}
    decays = []
    for step in range(20):
        network(torch.randn(4, 2))
        with torch.no_grad():
            for value in network.parameters():
                value.add_(torch.randn_like(value))
        decay = min(0.5, (1 + step) / (10 + step))
        decays.append(decay)
        assert average.get_decay() == decay
        average.update(network)
        for key, value in network.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * value if value.is_floating_point() else value.clone()
    assert decays[0] == 0.1 and decays[-1] == 0.5
    for key, value in average.network.state_dict().items():
        torch.testing.assert_close(value, expected[key])
    assert average.network.state_dict()["1.num_batches_tracked"] == 20
    assert not average.network.training and not any(p.requires_grad for p in average.network.parameters())


def make_logits_and_labels(classes: int = 4, rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(rows, classes), torch.randint(0, classes, (rows,))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_hot_targets_equal_class_ids(smoothing: float, weighted: bool) -> None:
    logits, labels = make_logits_and_labels()
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0]) if weighted else None
    loss = Loss("single", smoothing, weights)
    hot = functional.one_hot(labels, 4).float()
    assert loss(logits, hot).item() == pytest.approx(loss(logits, labels).item(), rel=1e-6)


def test_loss_is_the_sum_of_weighted_cross_entropies() -> None:
    logits, labels = make_logits_and_labels()
    weights = torch.tensor([0.5, 1.0, 2.0, 1.5])
    targets = 0.7 * functional.one_hot(labels, 4) + 0.3 * functional.one_hot(labels.flip(0), 4)
    smoothed = 0.9 * targets + 0.1 / 4
    expected = -(weights * smoothed * logits.log_softmax(1)).sum()
    assert Loss("single", 0.1, weights)(logits, targets).item() == pytest.approx(expected.item(), rel=1e-6)
    halves = [Loss("single", 0.1, weights)(logits[rows], targets[rows]).item() for rows in (slice(0, 2), slice(2, 6))]
    assert sum(halves) == pytest.approx(expected.item(), rel=1e-6)


def test_multi_label_loss_follows_its_formula() -> None:
    logits, _ = make_logits_and_labels()
    labels = (torch.rand(6, 4) > 0.5).to(torch.uint8)
    weights = torch.tensor([1.0, 3.0, 10.0, 1.0])
    targets = labels * 0.8 + 0.1
    terms = -(weights * targets * functional.logsigmoid(logits) + (1 - targets) * functional.logsigmoid(-logits))
    assert Loss("multi", 0.2, weights)(logits, labels).item() == pytest.approx(terms.mean(1).sum().item(), rel=1e-6)


def test_class_weights(tensors: Dataset) -> None:
    assert count_labels(tensors).tolist() == [7, 6]
    counts = np.array([90, 9, 1, 0])
    weights = compute_inverse_frequencies(counts)
    assert weights[3] == 0 and weights[1] / weights[0] == pytest.approx(10)
    assert weights[2] / weights[1] == pytest.approx(9)
    assert (weights * counts).sum() == pytest.approx(counts.sum()), "1 on average of the images"
    assert compute_positive_weights(np.array([50, 10, 1, 0, 300]), 300).tolist() == [5, 29, MAX_POSITIVE_WEIGHT, 1, 1]


def test_count_of_multi_label_training_images(tmp_path: Path) -> None:
    uri = str(tmp_path / "tensors" / "02")
    rows = [
        {"image_id": str(n), "image": bytes(48), "source_row": n, "copy": 0, "label_ids": ids, "split": "train"}
        for n, ids in enumerate([[0, 2], [], [2], [1, 2]])
    ]
    layout = Layout(TensorSpec(Geometry(4)).schema(), plain=True)
    placed = place(uri, rows, layout, make_tensors_index("multi"), by_split=True)
    dataset = commit(
        uri, Manifest("tensors", "02", task="multi", classes=("a", "b", "c"), image=ImageSpec((1, 1, 1)), **placed)
    )
    assert count_labels(dataset).tolist() == [1, 1, 3]
