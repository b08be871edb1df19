"""Dropout and stochastic depth: active in training only, and without a change of parameter names."""

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


def make_network(backbone: str, **shares: float) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(ModelSpec(backbone, ("a", "b"), IMAGE), **shares)


def make_meta_network(backbone: str, **shares: float) -> torch.nn.Module:
    """Return the network on the meta device, without weights."""
    with torch.device("meta"):
        return make_network(backbone, **shares)


@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_dropout_is_active_in_training_only_and_changes_no_name(backbone: str) -> None:
    network, plain = make_network(backbone, dropout=0.5), make_network(backbone)
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


def test_dropout_rate_before_the_head() -> None:
    network = make_network("resnet18", dropout=0.25)
    head = network.get_submodule("fc")
    head.load_state_dict({"weight": torch.ones(2, 512) / 512, "bias": torch.zeros(2)})
    with torch.no_grad():
        outputs = torch.stack([head(torch.ones(64, 512)) for _ in range(20)])
    scaled = outputs * 0.75
    assert scaled.mean() == pytest.approx(0.75, abs=0.01), "the mean stays 1"
    assert scaled.std() == pytest.approx((0.25 * 0.75 / 512) ** 0.5, rel=0.2)


@pytest.mark.parametrize("backbone", ["alexnet", "vgg11", "mobilenet_v2", "efficientnet_b0"])
def test_existing_dropout_takes_the_rate(backbone: str) -> None:
    for share in (0.0, 0.3):
        network = make_meta_network(backbone, dropout=share)
        own = [module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)]
        assert own and set(own) == {share}
        assert not any(type(module).__name__ == "Dropped" for module in network.modules())


@pytest.mark.parametrize("backbone", DEEP)
def test_stochastic_depth_grows_with_the_depth(backbone: str) -> None:
    assert has_drop_path(backbone)
    network = make_meta_network(backbone, drop_path=0.3)
    rates = [module.p for module in network.modules() if isinstance(module, StochasticDepth)]
    assert rates == sorted(rates) and rates[0] == 0 and rates[-1] == pytest.approx(0.3)
    assert {module.p for module in make_meta_network(backbone).modules() if isinstance(module, StochasticDepth)} == {
        0.0
    }
    assert list(network.state_dict()) == list(make_meta_network(backbone).state_dict())


def test_network_without_stochastic_depth_is_refused() -> None:
    with pytest.raises(UserError, match=r"^drop_path: expected 0 for resnet18, which has no stochastic depth, found"):
        make_network("resnet18", drop_path=0.1)
