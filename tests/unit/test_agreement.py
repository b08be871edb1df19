"""Tensors against pretrained weights: one line for each disagreement, with the flag that mends it, and none else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from trained import commit_model, make_tensors

from imagemill.components.dataset.kinds import ImageSpec, NetworkExtra
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.models.artifact import ModelSpec, build_network
from imagemill.components.models.presets import mean_and_std
from imagemill.components.models.torchvision_models import torchvision_presets
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import UserError
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.expected_input import describe_conversion, describe_mismatches, find_expected_input
from imagemill.components.train.train import _check_image_size, train

BACKBONE = "shufflenet_v2_x0_5"


def image_of(color: str = "rgb", **options: Any) -> ImageSpec:
    """Build the `image` entry of the tensors that a resize with these options makes."""
    config = ResizeConfig.from_values(options)
    geometry = config.geometry(color)
    mean, std = mean_and_std(config.normalization, color)
    own = [0.41] * (geometry.shape[2] - len(mean))
    return geometry.describe(config.encoding, [*mean, *own], [*std, *own])


def warned(image: ImageSpec, backbone: str, weights: str) -> list[str]:
    config = TrainConfig(backbone=backbone, weights=weights)
    expected = find_expected_input(config, image)
    return describe_mismatches(image, expected, backbone) if expected else []


def fields(lines: list[str]) -> list[str]:
    return [line.partition(":")[0] for line in lines]


def test_default_run_has_no_warnings() -> None:
    assert find_expected_input(TrainConfig(weights=""), image_of()) is None
    for backbone in ("resnet18", "inception_v3", "vit_b_16"):
        assert warned(image_of(image_size=299), backbone, "") == []


@pytest.mark.parametrize("name", torchvision_presets())
def test_tensors_by_the_model_preset_agree_with_its_weights(name: str) -> None:
    backbone, _, weights = name.partition(":")
    for more in ({}, {"encoding": "jpeg"}, {"preset": "satellite"}, {"preset": "ocr"}):
        assert warned(image_of(model_preset=name, **more), backbone, weights or "DEFAULT") == []
    assert warned(image_of("gray", model_preset=name), backbone, weights or "DEFAULT") == (
        []
        if backbone not in ("googlenet", "inception_v3")
        else [
            f"normalization: {weights or 'DEFAULT'} of {backbone} expects half, the tensors have imagenet (resize with "
            "--normalization half)"
        ]
    )


def test_every_warning_names_found_and_expected_value_and_flag() -> None:
    assert warned(image_of(), "resnet18", "DEFAULT") == [
        "image_size: DEFAULT of resnet18 expects 224, the tensors have 128 (resize with --model-preset resnet18)"
    ]
    image = image_of(image_size=224, interpolation="area", normalization="half")
    assert warned(image, "efficientnet_v2_l", "IMAGENET1K_V1") == [
        "image_size: IMAGENET1K_V1 of efficientnet_v2_l expects 480, the tensors have 224 (resize with --model-preset "
        "efficientnet_v2_l:IMAGENET1K_V1)",
        "resize_size: IMAGENET1K_V1 of efficientnet_v2_l expects 1.000 x image_size, the tensors have 1.143 x (resize "
        "with --model-preset efficientnet_v2_l:IMAGENET1K_V1)",
        "interpolation: IMAGENET1K_V1 of efficientnet_v2_l expects bicubic, the tensors have area (resize with "
        "--model-preset efficientnet_v2_l:IMAGENET1K_V1)",
    ]
    assert warned(image_of("lab", image_size=224), "resnet34", "DEFAULT") == [
        "color: DEFAULT of resnet34 expects rgb, the tensors have lab (clean with --color rgb)"
    ]
    assert warned(image_of(image_size=224, normalization="half"), "resnet34", "DEFAULT") == [
        "normalization: DEFAULT of resnet34 expects imagenet, the tensors have half (resize with --model-preset "
        "resnet34)"
    ]


@pytest.mark.parametrize(
    ("options", "backbone", "expected"),
    [
        ({"image_size": 192}, "resnet18", []),  # not far
        ({"image_size": 280}, "resnet18", []),
        ({"image_size": 178}, "resnet18", ["image_size"]),
        ({"image_size": 281}, "resnet18", ["image_size"]),
        ({"image_size": 240}, "vit_b_16", []),  # position embeddings are resampled
        ({"image_size": 384}, "vit_b_16", ["image_size"]),
        ({"image_size": 224}, "vit_b_16", []),
        ({"image_size": 224}, "resnet50", ["resize_size"]),  # 256 for 232
        ({"image_size": 224, "resize_size": 242}, "resnet50", []),
        ({"image_size": 224, "store_size": 256}, "resnet18", []),  # what the model sees counts
        ({"image_size": 224, "resize_mode": "letterbox"}, "resnet18", []),  # somebody's choice
        ({"image_size": 224, "normalization": "clip"}, "resnet18", ["normalization"]),
        ({"image_size": 224, "normalization": "dataset"}, "resnet18", []),
        ({"image_size": 224, "edges": "both"}, "resnet18", []),
        ({"image_size": 288}, "efficientnet_b2", ["resize_size", "interpolation"]),
    ],
)
def test_disagreements_are_reported(options: dict[str, Any], backbone: str, expected: list[str]) -> None:
    assert fields(warned(image_of(**options), backbone, "DEFAULT")) == expected


def model(folder: Path, image: ImageSpec, **extra: Any) -> str:
    return commit_model(folder, ModelSpec(BACKBONE, ("a", "b"), image), **extra).uri


def test_own_models_record_their_preprocessing(tmp_path: Path) -> None:
    uri = model(tmp_path, image_of(image_size=64, resize_size=64, interpolation="lanczos", normalization="clip"))
    image = image_of(image_size=64, resize_size=64, interpolation="lanczos", normalization="clip", encoding="jpeg")
    assert warned(image, BACKBONE, uri) == []
    assert warned(image_of(), BACKBONE, uri) == [
        "image_size: the model of weights expects 64, the tensors have 128 (resize with --image-size 64)",
        "resize_size: the model of weights expects 1.000 x image_size, the tensors have 1.141 x (resize with "
        "--resize-size 128)",
        "interpolation: the model of weights expects lanczos, the tensors have bilinear (resize with --interpolation "
        "lanczos)",
        "normalization: the model of weights expects clip, the tensors have imagenet (resize with --normalization "
        "clip)",
    ]


def test_a_model_by_its_datasets_own_mean_and_spread(tmp_path: Path) -> None:
    """A week later they are a little different: no reason for a word."""
    uri = model(tmp_path, image_of(normalization="dataset", resize_mode="squash"))
    image = image_of(normalization="dataset", resize_mode="squash")
    assert warned(replace(image, mean=(0.43,) * 3), BACKBONE, uri) == []
    lines = warned(image_of(), BACKBONE, uri)
    assert fields(lines) == ["resize_mode", "normalization"]
    assert "--resize-mode squash" in lines[0] and "--normalization dataset" in lines[1]


def test_a_gray_model_and_colored_tensors(tmp_path: Path) -> None:
    uri = model(tmp_path, image_of("gray"))
    assert warned(image_of("gray"), BACKBONE, uri) == []
    assert warned(image_of(), BACKBONE, uri) == [
        "color: the model of weights expects gray, the tensors have rgb (clean with --color gray)"
    ]


def test_of_a_bare_file_nothing_is_known(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert find_expected_input(TrainConfig(weights=str(tmp_path / "a.safetensors")), image_of()) is None


@pytest.mark.parametrize(
    ("backbone", "size"), [("inception_v3", 74), ("vit_b_32", 100), ("maxvit_t", 128), ("alexnet", 32)]
)
def test_unsupported_image_size_names_the_model_preset(backbone: str, size: int) -> None:
    spec = ModelSpec(backbone, ("a", "b"), image_of(image_size=size))
    message = rf"^image_size: expected a size that {backbone} takes, found {size}: [^\n]+ \(resize with --model-preset "
    with pytest.raises(UserError, match=message + rf"{backbone}\)$"):
        _check_image_size(build_network(spec), spec)


def test_weights_from_tensorflow_get_the_normalization_of_their_training(tmp_path: Path) -> None:
    """Torchvision's GoogLeNet and Inception convert ImageNet's normalization to theirs inside, when they are made with
    weights: ours must do so, too, and after it is saved, and when another starts from it."""
    from torchvision.models import googlenet

    image = image_of(image_size=32)
    named = TrainConfig(backbone="googlenet", weights="DEFAULT")
    assert describe_conversion(named, image) == {"transform_input": True}
    assert describe_conversion(named, image_of("gray")) == describe_conversion(named, image_of(edges="sobel")) == {}
    assert (
        describe_conversion(named, image_of(normalization="half"))
        == describe_conversion(TrainConfig(backbone="googlenet", weights=""), image)
        == {}
    )
    assert describe_conversion(TrainConfig(weights="DEFAULT"), image) == {}
    spec = ModelSpec("googlenet", ("a", "b"), image, extra=NetworkExtra(**describe_conversion(named, image)))
    network = build_network(ModelSpec.from_json(spec.to_json(), "spec")).eval()
    reference = googlenet(
        weights=None, num_classes=2, aux_logits=False, init_weights=False, transform_input=True
    ).eval()
    reference.load_state_dict(network.state_dict())
    u = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in mean_and_std("imagenet", "rgb"))
    conv_inputs: list[torch.Tensor] = []
    network.get_submodule("conv1").register_forward_pre_hook(lambda _, inputs: conv_inputs.append(inputs[0]))
    with torch.inference_mode():
        torch.testing.assert_close(network((u - mean) / std), reference((u - mean) / std))
    torch.testing.assert_close(conv_inputs[0], (u - 0.5) / 0.5)
    uri = model(tmp_path, image, transform_input=True)
    assert describe_conversion(TrainConfig(backbone="googlenet", weights=uri), image) == {"transform_input": True}
    other = model(tmp_path / "other", image)
    assert describe_conversion(TrainConfig(backbone="googlenet", weights=other), image) == {}


def test_step_warns_of_weights_before_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace.open(str(tmp_path))
    tensors = make_tensors(tmp_path, train=8, val=0, image=image_of(image_size=32))
    weights = model(tmp_path / "elsewhere", image_of(image_size=64, normalization="half"))
    for value, expected in (("", []), (weights, ["image_size", "normalization"])):
        config = TrainConfig(
            tensors=tensors.uri, backbone=BACKBONE, weights=value, epochs=1, batch_size=4, device="cpu"
        )
        train(config, Context("train", workspace, "run", False))
        lines = capsys.readouterr().err.splitlines()
        warnings = [line.partition("warning: ")[2] for line in lines if "the model of weights expects" in line]
        assert fields(warnings) == expected
        begins = next(number for number, line in enumerate(lines) if "epoch 1/1" in line)
        assert all("warning" not in line for line in lines[begins:])
