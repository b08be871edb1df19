"""Dropout and stochastic depth from outside: they act in training only, and no tensor changes its name."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import StochasticDepth

from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.models.artifact import ModelSpec, build_network
from imagemill.components.models.blocks import parameter_blocks
from imagemill.components.models.torchvision_models import has_drop_path
from imagemill.components.storage.errors import UserError

IMAGE = ImageSpec((64, 64, 3), mean=(0.5,) * 3, std=(0.5,) * 3)
DEEP = ("efficientnet_b0", "convnext_tiny", "swin_t")


def made(backbone: str, **shares: float) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(ModelSpec(backbone, ("a", "b"), IMAGE), **shares)


def shaped(backbone: str, **shares: float) -> torch.nn.Module:
    """Without weights."""
    with torch.device("meta"):
        return made(backbone, **shares)


@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_dropout_acts_in_training_alone_and_changes_no_name(backbone: str) -> None:
    network, plain = made(backbone, dropout=0.5), made(backbone)
    assert list(network.state_dict()) == list(plain.state_dict()) and parameter_blocks(network) == parameter_blocks(
        plain
    )
    network.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), plain.eval()(x))
        for module in network.modules():  # statistics of a batch stay out of it
            if not list(module.children()) and "Drop" in type(module).__name__:
                module.train()
        torch.manual_seed(1)
        assert not torch.equal(network(x), network(x))


def test_as_much_is_dropped_before_the_head_as_was_asked_for() -> None:
    network = made("resnet18", dropout=0.25)
    head = network.get_submodule("fc")
    head.load_state_dict({"weight": torch.ones(2, 512) / 512, "bias": torch.zeros(2)})
    with torch.no_grad():
        found = torch.stack([head(torch.ones(64, 512)) for _ in range(20)])
    kept = found * 0.75
    assert kept.mean() == pytest.approx(0.75, abs=0.01), "the mean stays 1"
    assert kept.std() == pytest.approx((0.25 * 0.75 / 512) ** 0.5, rel=0.2)


@pytest.mark.parametrize("backbone", ["alexnet", "vgg11", "mobilenet_v2", "efficientnet_b0"])
def test_a_networks_own_dropout_takes_the_share(backbone: str) -> None:
    for share in (0.0, 0.3):
        network = shaped(backbone, dropout=share)
        own = [one.p for one in network.modules() if isinstance(one, torch.nn.Dropout)]
        assert own and set(own) == {share}
        assert not any(type(one).__name__ == "Dropped" for one in network.modules())


@pytest.mark.parametrize("backbone", DEEP)
def test_stochastic_depth_rises_to_the_deepest_block(backbone: str) -> None:
    assert has_drop_path(backbone)
    network = shaped(backbone, drop_path=0.3)
    found = [one.p for one in network.modules() if isinstance(one, StochasticDepth)]
    assert found == sorted(found) and found[0] == 0 and found[-1] == pytest.approx(0.3)
    assert {one.p for one in shaped(backbone).modules() if isinstance(one, StochasticDepth)} == {0.0}
    assert list(network.state_dict()) == list(shaped(backbone).state_dict())


def test_a_network_without_it_says_so() -> None:
    with pytest.raises(UserError, match=r"^drop_path: expected 0 for resnet18, which has no stochastic depth, found"):
        made("resnet18", drop_path=0.1)
