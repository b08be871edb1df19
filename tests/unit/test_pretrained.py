"""Pretrained weights on other channels: initial outputs equal the pretrained network's for any color and edges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trained
from safetensors.torch import save_file

from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.imaging.geometry import Geometry
from imagemill.components.imaging.pixel_options import COLORS
from imagemill.components.models.artifact import ModelSpec, build_network, find_first_convolution, load_model
from imagemill.components.storage.errors import UserError
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.pretrained_weights import find_weights_file, load_pretrained

SIZE = 32
BOTH = ("sobel", "canny")
SMALL = "shufflenet_v2_x0_5"


def image_of(color: str, edges: tuple[str, ...] = ()) -> ImageSpec:
    geometry = Geometry(SIZE, "crop", color, edges)
    channels = geometry.shape[2]
    return geometry.describe("raw", [0.5] * channels, [0.5] * channels)


def network_for(color: str, edges: tuple[str, ...] = (), backbone: str = SMALL, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_network(spec_for(color, edges, backbone)).eval()


def spec_for(color: str, edges: tuple[str, ...] = (), backbone: str = SMALL) -> ModelSpec:
    return ModelSpec(backbone, ("a", "b", "c"), image_of(color, edges))


def load(weights: str, color: str, edges: tuple[str, ...] = (), backbone: str = SMALL) -> tuple[torch.nn.Module, str]:
    network = network_for(color, edges, backbone, seed=1)
    config = TrainConfig(backbone=backbone, weights=weights)
    return network.eval(), load_pretrained(network, spec_for(color, edges, backbone), config)


def copy_head(network: torch.nn.Module, source: torch.nn.Module) -> torch.nn.Module:
    """Copy the head of `other`, which a bare weights file does not restore, so that outputs can be compared."""
    head = [name for name, _ in source.named_parameters()][-1].rpartition(".")[0] + "."
    tensors = {k: v for k, v in source.state_dict().items() if k.startswith(head)}
    network.load_state_dict({**network.state_dict(), **tensors})
    return network


def compute_logits(network: torch.nn.Module, *parts: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = network(torch.cat(parts, 1))
    return logits


@pytest.fixture(scope="module")
def rgb_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "rgb.safetensors"
    save_file(network_for("rgb").state_dict(), path)
    return str(path)


@pytest.mark.parametrize(("color", "edges"), [*((color, ()) for color in COLORS), ("gray", ("canny",)),
                                              *((color, BOTH) for color in ("rgb", "gray", "lab"))])  # fmt: skip
def test_initial_outputs_equal_those_of_the_rgb_network(rgb_file: str, color: str, edges: tuple[str, ...]) -> None:
    original = network_for("rgb")
    network, summary = load(rgb_file, color, edges)
    copy_head(network, original)
    image = torch.randn(2, COLORS[color], SIZE, SIZE)
    edge_maps = torch.rand(2, len(edges), SIZE, SIZE)
    expected = compute_logits(original, image if COLORS[color] == 3 else image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(compute_logits(network, image, edge_maps), expected)
    num_tensors = len(original.state_dict())
    assert f"{num_tensors - 2} of {num_tensors} tensors" in summary, "all but the head's"
    assert ("trained on rgb" in summary) == (color != "rgb")
    assert summary.endswith(f"{' and '.join(edges)} from zero") == bool(edges)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "efficientnet_b0"])
def test_first_convolution_is_found_in_every_architecture(tmp_path: Path, backbone: str) -> None:
    original = network_for("rgb", (), backbone)
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    for color, edges in (("gray", ()), ("rgb", BOTH), ("gray", BOTH)):
        network, _ = load(str(tmp_path / "w.safetensors"), color, edges, backbone)
        name = find_first_convolution(network, COLORS[color] + len(edges))
        assert name == find_first_convolution(original, 3)
        weight, filters = (n.get_submodule(name).weight for n in (network, original))
        num_colors = COLORS[color]
        torch.testing.assert_close(weight[:, :num_colors], filters if num_colors == 3 else filters.sum(1, keepdim=True))
        assert not weight[:, num_colors:].any()


def test_edges_are_learned_from_zero(rgb_file: str) -> None:
    network, _ = load(rgb_file, "rgb", ("sobel",))
    first = network.get_submodule(find_first_convolution(network, 4))
    torch.nn.functional.cross_entropy(network(torch.randn(2, 4, SIZE, SIZE)), torch.tensor([0, 1])).backward()
    assert first.weight.grad[:, 3].abs().max() > 0


def commit_model(folder: Path, color: str, edges: tuple[str, ...]) -> str:
    """Commit a model that was trained on these channels."""
    name, network = f"{color}-{len(edges)}", network_for(color, edges)
    return trained.commit_model(folder, spec_for(color, edges), name, network).uri


def test_channels_are_read_from_the_models_spec(tmp_path: Path) -> None:
    """Gray and two edges are three channels, too: they must not be taken for red, green and blue."""
    uri = commit_model(tmp_path, "gray", BOTH)
    original = network_for("gray", BOTH)
    image, sobel, canny = torch.randn(3, 2, 1, SIZE, SIZE).unbind()
    same, summary = load(uri, "gray", BOTH)
    torch.testing.assert_close(compute_logits(same, image, sobel, canny), compute_logits(original, image, sobel, canny))
    assert "zero" not in summary and "trained on" not in summary
    fewer, summary = load(uri, "gray", ("canny",))
    torch.testing.assert_close(compute_logits(fewer, image, canny), compute_logits(original, image, 0 * sobel, canny))
    assert "zero" not in summary
    plain = commit_model(tmp_path, "gray", ("sobel",))
    more, summary = load(plain, "gray", BOTH)
    torch.testing.assert_close(
        compute_logits(more, image, sobel, canny), compute_logits(network_for("gray", ("sobel",)), image, sobel)
    )
    assert summary.endswith("canny from zero")
    colored, summary = load(uri, "rgb")
    assert summary.endswith("trained on gray, the first convolution from scratch")
    first = find_first_convolution(colored, 3) + ".weight"
    torch.testing.assert_close(colored.state_dict()[first], network_for("rgb", seed=1).state_dict()[first])


def test_weights_of_five_channels_load_into_five_channels(tmp_path: Path) -> None:
    save_file(network_for("rgb", BOTH).state_dict(), tmp_path / "five.safetensors")
    network, summary = load(str(tmp_path / "five.safetensors"), "rgb", BOTH)
    original = network_for("rgb", BOTH)
    image = torch.randn(1, 5, SIZE, SIZE)
    torch.testing.assert_close(compute_logits(copy_head(network, original), image), compute_logits(original, image))
    assert "zero" not in summary


def test_weights_of_another_network_are_refused(rgb_file: str) -> None:
    with pytest.raises(UserError, match="weights: expected weights of squeezenet1_1"):
        load(rgb_file, "rgb", BOTH, "squeezenet1_1")


def test_model_of_five_channels_is_loaded(tmp_path: Path) -> None:
    uri = commit_model(tmp_path, "lab", BOTH)
    network, spec = load_model(read_dataset(uri, "model"))
    assert spec.geometry == Geometry(SIZE, "crop", "lab", BOTH)
    image = torch.randn(1, 5, SIZE, SIZE)
    torch.testing.assert_close(compute_logits(network, image), compute_logits(network_for("lab", BOTH), image))


def test_position_embeddings_of_a_vision_transformer_are_resampled(tmp_path: Path) -> None:
    """To the size of the images: the class token's stays, the grid's is stretched (align_corners: corners stay)."""
    from torchvision.models import VisionTransformer

    def make_transformer(size: int) -> Any:
        return VisionTransformer(size, 16, 1, 2, 32, 64, num_classes=3)

    from imagemill.components.train import pretrained_weights as module

    pretrained, network = make_transformer(64), make_transformer(96)
    spec = ModelSpec("vit_b_16", ("a", "b", "c"), replace(image_of("rgb"), shape=(96, 96, 3)))
    save_file(pretrained.state_dict(), tmp_path / "w.safetensors")
    summary = load_pretrained(network, spec, TrainConfig(backbone="vit_b_16", weights=str(tmp_path / "w.safetensors")))
    num_tensors = len(network.state_dict())
    assert summary.endswith(f"{num_tensors - 2} of {num_tensors} tensors, position embeddings resampled")
    before = pretrained.state_dict()["encoder.pos_embedding"]
    after = network.state_dict()["encoder.pos_embedding"]
    torch.testing.assert_close(after[:, 0], before[:, 0])
    grids = before[:, 1:].reshape(4, 4, 32), after[:, 1:].reshape(6, 6, 32)
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(grids[1][corner], grids[0][corner])
    small = ModelSpec("vit_b_16", ("a",), replace(image_of("rgb"), shape=(64, 64, 3)))
    same, resampled = module._resample_positions(pretrained.state_dict(), make_transformer(64), small)
    assert not resampled and torch.equal(same["encoder.pos_embedding"], before)


def test_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match=r"weights: expected a \.safetensors file or a model .*, found '.*resnet\.pth'"):
        find_weights_file(str(tmp_path / "resnet.pth"))
