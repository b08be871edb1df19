"""Presets by domain: applied to unset options only, in every step alike."""

from __future__ import annotations

import dataclasses

import pytest

from imagemill.components.clean.config import CleanConfig
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.step.config import StepConfig, field_types
from imagemill.components.step.presets import HELP, PRESETS
from imagemill.components.storage.errors import UserError
from imagemill.components.train.config import TrainConfig
from imagemill.pipelines.parameters import list_parameters, resolve_parameters

CONFIGS: tuple[type[StepConfig], ...] = (CleanConfig, ResizeConfig, TrainConfig)


def fields_by_preset() -> dict[str, dataclasses.Field[object]]:
    return {field.name: field for cls in CONFIGS for field in dataclasses.fields(cls) if field.metadata["by_preset"]}


def test_presets_set_only_their_options_to_other_values_than_the_defaults() -> None:
    options = fields_by_preset()
    for name, preset in PRESETS.items():
        assert preset.description and f"{name}: " in HELP
        assert all(options[option].default != value for option, value in preset.values.items())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("cls", CONFIGS)
def test_every_preset_gives_valid_effective_values(cls: type[StepConfig], preset: str) -> None:
    config = cls.from_values({"preset": preset})
    for field in dataclasses.fields(cls):
        if field.metadata["by_preset"]:
            value = getattr(config, field.name)
            assert type(value) is field_types(cls)[field.name]
            assert value == PRESETS[preset].values.get(field.name, field.default)


def test_unsafe_operations_of_a_domain_are_off() -> None:
    for preset in ("ocr", "medical"):
        assert not TrainConfig.resolve(preset=preset).flips
        assert TrainConfig.resolve(preset=preset).crop_scale > TrainConfig().crop_scale
        assert ResizeConfig.resolve(preset=preset).resize_mode == "letterbox"
    assert CleanConfig.resolve(preset="ocr").color == "gray" and CleanConfig.resolve(preset="fashion").trim == "on"
    assert CleanConfig.resolve(preset="medical").fingerprint_values() == {}
    assert ResizeConfig.resolve(preset="satellite").normalization == "dataset"
    assert TrainConfig.resolve(preset="satellite").flips


def test_explicit_values_override_the_preset() -> None:
    config = CleanConfig.from_values({"preset": "ocr", "color": "rgb", "equalize": "off"})
    assert (config.color, config.equalize) == ("rgb", "off")
    train = TrainConfig.from_values({"preset": "ocr", "flip": True, "crop_scale": 0.6})
    assert train.fingerprint_values() == {"flip": "true"}


def test_preset_has_the_fingerprint_of_its_values() -> None:
    explicit = CleanConfig(color="gray", equalize="autocontrast")
    assert CleanConfig.resolve(preset="ocr").fingerprint_values() == explicit.fingerprint_values()
    assert CleanConfig().fingerprint_values() == CleanConfig(color="rgb", trim="off").fingerprint_values() == {}


def test_preset_applies_to_every_step_of_a_run() -> None:
    assert list_parameters()["preset"].steps == ("clean", "resize", "train")
    parameters = resolve_parameters({"preset": "ocr", "flip": "true"})
    assert parameters.pipeline == {"preset": "ocr"} and parameters.sections == {"train": {"flip": "true"}}
    train, clean = parameters.config("train"), parameters.config("clean")
    assert isinstance(train, TrainConfig) and train.flips and train.crop_scale == 0.9
    assert isinstance(clean, CleanConfig) and clean.color == "gray"


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match=r"^preset: expected one of photo, ocr, medical, satellite, fashion"):
        CleanConfig.from_values({"preset": "x-ray"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"background_color": "#12345"}, "^background_color: expected black, gray, white or #rrggbb"),
        ({"mask_background": "0,300"}, "^mask_background: expected auto, or values"),
        ({"outlier_fields": "brightness,beauty"}, "^outlier_fields: expected some of .*found 'beauty'"),
        ({"denoise_size": 4}, "^denoise_size: expected an odd number"),
        ({"binarize": "otsu", "color": "lab"}, "^color: expected one channel or rgb where binarize"),
        ({"measures": False, "outliers": "drop"}, "^measures: expected true where they decide"),
        ({"measures": False, "min_contrast": 0.1}, "^measures: expected true where they decide"),
        ({"near_radius": 17}, "^near_radius: expected a number of at most 16"),
        ({"other_class": " "}, "^other_class: expected the name of a class"),
        ({"leakage": "ignore"}, "^leakage: expected one of auto, drop, report"),
    ],
)
def test_invalid_clean_options_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CleanConfig.from_values(values)


def test_clean_values_are_parsed() -> None:
    assert CleanConfig(background_color="#0aFf10").background_rgb() == (10, 255, 16)
    assert CleanConfig(background_color="White").background_rgb() == (255, 255, 255)
    assert CleanConfig(mask_background="2, 3").background_values() == (2, 3)
    assert CleanConfig(binarize="otsu").stored_color == "gray"
    assert CleanConfig(binarize="otsu", color="red").stored_color == "red"
