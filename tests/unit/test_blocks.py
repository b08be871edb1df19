"""Parameters as blocks: all of them, each once, from the input to the head, for every kind of network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.models import get_model

from imagemill.components.models.blocks import head_modules, parameter_blocks

NUMBER = {
    "alexnet": 8, "vgg11_bn": 11, "resnet18": 10, "densenet121": 63, "squeezenet1_1": 10, "mobilenet_v3_small": 15,
    "mnasnet0_5": 21, "shufflenet_v2_x0_5": 19, "efficientnet_b0": 19, "convnext_tiny": 23, "swin_t": 17,
    "maxvit_t": 15, "vit_b_16": 14, "googlenet": 13,
}  # fmt: skip
"""Of the stem, of what is repeated, and of the head: counted by hand in the papers' tables."""
TIMM = {"resnet18": 10, "convnext_atto": 14, "vit_tiny_patch16_224": 14, "swin_tiny_patch4_window7_224": 14,
        "deit_tiny_distilled_patch16_224": 14}  # fmt: skip


def make_network(name: str) -> torch.nn.Module:
    options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        network: torch.nn.Module = get_model(name, weights=None, num_classes=3, **options)
    return network


def check_blocks(network: torch.nn.Module, number: int) -> list[list[str]]:
    blocks = parameter_blocks(network)
    assert sorted(name for block in blocks for name in block) == sorted(name for name, _ in network.named_parameters())
    assert len(blocks) == number
    parameters = dict(network.named_parameters())
    assert all(parameters[name].shape[0] == 3 for name in blocks[-1]), "the head makes the logits"
    assert all(any(parameters[name].ndim > 1 for name in block) for block in blocks), "no normalization is alone"
    return blocks


@pytest.mark.parametrize("name", NUMBER)
def test_torchvisions_networks(name: str) -> None:
    check_blocks(make_network(name), NUMBER[name])


def test_blocks_are_in_the_order_of_the_forward_pass() -> None:
    blocks = check_blocks(make_network("vit_b_16"), 14)
    assert {"class_token", "conv_proj.weight", "encoder.pos_embedding"} <= set(blocks[0])
    assert [block[0].split(".")[2] for block in blocks[1:-1]] == [f"encoder_layer_{n}" for n in range(12)]
    assert blocks[-2][-1] == "encoder.ln.bias" and blocks[-1] == ["heads.head.weight", "heads.head.bias"]
    called: list[str] = []
    network = get_model("resnet18", weights=None, num_classes=3)
    for name, module in network.named_modules():
        if list(module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda _, __, name=name: called.append(name))
    network.eval()(torch.zeros(1, 3, 32, 32))
    order = [called.index(block[0].rpartition(".")[0]) for block in parameter_blocks(network)]
    assert order == sorted(order)


@pytest.mark.parametrize("name", TIMM)
def test_timms_networks(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=3)
    blocks = check_blocks(network, TIMM[name])
    assert head_modules(network) == (
        ["head", "head_dist"] if "distilled" in name else [blocks[-1][0].rpartition(".")[0]]
    )
