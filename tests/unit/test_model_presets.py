"""Model presets: equal to torchvision's evaluation transforms, and applied to unset options."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from imagemill.components.models import presets as model_presets
from imagemill.components.models import torchvision_models as sources
from imagemill.components.models.presets import FAMILIES, NORMALIZATIONS, ModelPreset, find, torchvision_presets
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.storage.errors import UserError


def from_values(**values: Any) -> ResizeConfig:
    return ResizeConfig.from_values(values)


def list_torchvision_presets() -> dict[str, tuple[Any, ...]]:
    """Return the parameters of `weights.transforms()` by `model:weights` and `model` (its default weights)."""
    import torchvision
    from torchvision.models import get_model_weights, list_models

    presets = {}
    for name in list_models(module=torchvision.models):
        for weights, member in get_model_weights(name).__members__.items():
            transforms = member.transforms()
            sizes = (*transforms.crop_size, *transforms.resize_size)
            parameters = (*sizes, transforms.interpolation.value, tuple(transforms.mean), tuple(transforms.std))
            presets[f"{name}:{weights}"] = parameters
            if weights == "DEFAULT":
                presets[name] = parameters
    return presets


def to_tuple(preset: ModelPreset | None) -> tuple[Any, ...]:
    assert preset is not None and preset.mode == "crop"
    mean, std = NORMALIZATIONS[preset.normalization]
    return preset.image_size, preset.resize_size, preset.interpolation, tuple(mean), tuple(std)


def test_presets_of_all_torchvision_weights_with_and_without_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list_torchvision_presets()
    assert len(expected) >= 270
    assert expected["resnet50:IMAGENET1K_V2"] == expected["resnet50"] != expected["resnet50:IMAGENET1K_V1"]
    assert {name: to_tuple(preset) for name, preset in torchvision_presets().items()} == expected
    table = [name for name in torchvision_presets() if ":" not in name]
    assert sorted(table) == sources.backbones() and set(expected) == set(torchvision_presets())
    clear_caches()
    with monkeypatch.context() as patch:  # as of a later torchvision, whose models the table lacks
        patch.setattr(model_presets, "torchvision_presets", dict)
        patch.setattr(sources, "torchvision_presets", dict)
        assert {name: to_tuple(find(name)) for name in expected} == expected
        sources.check_backbone("resnet50")
        sources.check_named_weights("resnet50", "IMAGENET1K_V2")
    clear_caches()


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("resnet18", ModelPreset(224, 256)),
        ("resnet50", ModelPreset(224, 232)),
        ("resnet50:DEFAULT", ModelPreset(224, 232)),
        ("resnet50:IMAGENET1K_V1", ModelPreset(224, 256)),
        ("inception_v3", ModelPreset(299, 342)),
        ("xception", ModelPreset(299, 333, "bicubic", "half")),
        ("clip-336", ModelPreset(336, 336, "bicubic", "clip")),
        ("vit_b_16:IMAGENET1K_SWAG_E2E_V1", ModelPreset(384, 384, "bicubic")),
        ("convnext-384", ModelPreset(384, 384, "bicubic", mode="squash")),
        ("efficientnet_b7", ModelPreset(600, 600, "bicubic")),
        ("efficientnet_v2_l", ModelPreset(480, 480, "bicubic", "half")),
        ("448", ModelPreset(448, 448, "bicubic")),
    ],
)
def test_presets_by_name(name: str, preset: ModelPreset) -> None:
    assert find(name) == preset


def test_presets_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    presets = {name: find(name) for name in [*torchvision_presets(), *FAMILIES]}
    clear_caches()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    try:
        assert {name: find(name) for name in presets} == presets
        with pytest.raises(
            UserError, match=r"resnet50 with one of its weights \(DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2"
        ):
            model_presets.check("resnet50:IMAGENET1K_V3")
        with pytest.raises(UserError, match=r"efficientnet_b7"):
            model_presets.check("efficientnet-b7")
        sources.check_backbone("of_a_later_torchvision")
    finally:
        clear_caches()


def clear_caches() -> None:
    for cached in (find, sources._installed_models, sources._installed_weights):
        cached.cache_clear()


def test_known_names_import_no_torchvision() -> None:
    code = """
import sys
from imagemill.components.models import presets, torchvision_models
presets.check("resnet50:IMAGENET1K_V2")
torchvision_models.check_backbone("resnet50")
torchvision_models.check_named_weights("resnet50", "DEFAULT")
assert not {"torch", "torchvision"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_unknown_normalization_gives_no_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.transforms._presets import ImageClassification

    named = ImageClassification(crop_size=96)
    unnamed = ImageClassification(crop_size=96, mean=(0.1, 0.2, 0.3), std=(0.25, 0.5, 0.5))
    for transforms, preset in ((named, ModelPreset(96, 256)), (unnamed, None)):
        monkeypatch.setattr(model_presets, "installed_transforms", lambda *_, result=transforms: result)
        find.cache_clear()
        assert find("odd_net") == preset
    find.cache_clear()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet5", r"a model preset \(resnet50, "),
        ("efficientnet-b7", r"a model preset \(efficientnet_b7, "),
        ("Inception", r"a model preset \(inception_v3, "),
        ("convnext384", r"a model preset \(convnext-384, "),
        ("qqqqqqq", r"a model preset \(resnet50, .*xception"),
        ("resnet50:V2", r"resnet50 with one of its weights \(DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2\)"),
        ("resnet50:", r"resnet50 with one of its weights"),
        ("nonet:DEFAULT", r"a model preset \("),
        ("../resnet50", r"a model preset \("),
        ("resnet(", r"a model preset \("),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=rf"^model_preset: expected {nearest}.*, found '"):
        from_values(model_preset=name)


@pytest.mark.parametrize("size", [None, 65])
@pytest.mark.parametrize("name", [*FAMILIES, *list(torchvision_presets())[::16]])
def test_presets_give_a_valid_config_at_any_size(name: str, size: int | None) -> None:
    chosen = find(name)
    assert chosen is not None
    config = from_values(model_preset=name, image_size=size)
    side = size or chosen.image_size
    geometry = config.geometry("rgb")
    assert (geometry.size, geometry.mode) == (side, chosen.mode)
    assert (config.interpolation, config.normalization) == (chosen.interpolation, chosen.normalization)
    if chosen.mode == "crop":
        assert abs(geometry.short_side - side * chosen.resize_size / chosen.image_size) <= 0.51


def test_explicit_values_override_the_model_preset() -> None:
    config = from_values(
        model_preset="efficientnet_v2_l", image_size=128, resize_size=200, interpolation="area",
        normalization="imagenet", resize_mode="letterbox",
    )  # fmt: skip
    assert (config.image_size, config.resize_size, config.interpolation) == (128, 200, "area")
    assert (config.normalization, config.resize_mode) == ("imagenet", "letterbox")
    usual = from_values(model_preset="efficientnet_b7", interpolation="bilinear", image_size=128)
    assert usual.interpolation == "bilinear" and usual.geometry("rgb").short_side == 128
    assert from_values(model_preset="convnext-384", resize_mode="crop").geometry("rgb").short_side == 384


def test_preset_overrides_the_model_preset() -> None:
    satellite = from_values(model_preset="efficientnet_v2_l", preset="satellite")
    assert (satellite.normalization, satellite.resize_mode) == ("dataset", "squash")
    assert (satellite.image_size, satellite.interpolation) == (480, "bicubic")
    assert from_values(model_preset="xception", preset="medical").normalization == "half"
    assert from_values(model_preset="convnext-384", preset="ocr").resize_mode == "letterbox"
    explicit = from_values(model_preset="xception", preset="satellite", normalization="clip")
    assert explicit.normalization == "clip"


def test_fingerprint_counts_the_presets_values_and_not_its_name() -> None:
    def counted(**values: Any) -> dict[str, Any]:
        return from_values(**values).fingerprint_values()

    assert counted(model_preset="xception") == {
        "image_size": 299, "resize_size": 333, "interpolation": "bicubic", "normalization": "half",
    }  # fmt: skip
    assert counted(model_preset="224") == counted(model_preset="resnet18") == counted(image_size=224)
    assert counted(model_preset="resnet50") == counted(image_size=224, resize_size=232)
    assert counted(model_preset="resnet50", preset="medical") == counted(image_size=224, preset="medical")
    assert counted(model_preset="resnet18", image_size=128) == counted() == {}
    assert "model_preset" not in from_values(model_preset="resnet50").manifest_values()


def test_help_is_short_and_complete() -> None:
    assert len(model_presets.HELP) < 400
    assert all(name in model_presets.HELP for name in FAMILIES)
    command = [sys.executable, "-m", "imagemill.pipelines.cli", "resize", "--help"]
    help_text = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"}, timeout=60
    ).stdout
    start = help_text.index("\n  --model-preset")
    entry = " ".join(help_text[start : help_text.index("\n  --", start + 1)].split())
    assert model_presets.HELP in entry
    assert max(map(len, help_text.splitlines())) <= 100
