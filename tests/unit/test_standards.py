"""Clean options that a model records: every field that pixels depend on, with clean's defaults."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from imagemill.components.clean.config import CleanConfig
from imagemill.components.imaging.pixel_options import CHOICES, PixelOptions, StandardizeConfig
from imagemill.components.storage.errors import UserError


def test_fields_and_defaults_equal_those_of_clean() -> None:
    effective = CleanConfig().manifest_values()
    assert StandardizeConfig().to_dict() == {field.name: effective[field.name] for field in fields(StandardizeConfig)}
    assert set(PixelOptions.__annotations__) == {field.name for field in fields(StandardizeConfig)}


def test_choices_equal_those_of_clean() -> None:
    choices = {field.name: field.metadata["choices"] for field in fields(CleanConfig)}
    of_clean = {name: tuple(value for value in choices[name] if value != "auto") for name in CHOICES}
    assert of_clean == CHOICES
    texts = {field.name for field in fields(StandardizeConfig) if isinstance(field.default, str)}
    assert set(CHOICES) == texts - {"background_color", "mask_background"}


def test_recorded_config_restores_the_rules() -> None:
    config = CleanConfig(
        background="fill", background_color="#102030", mask_background="2,3", trim="on", color="rgb", binarize="otsu",
        roi="union", roi_margin=2.0, max_pixels=1_000,
    )  # fmt: skip
    recorded = json.loads(json.dumps(config.manifest_values()))
    recorded["roi_margin"] = 2  # as another writer of JSON might have it
    rules = StandardizeConfig.from_config(recorded, "here")
    assert isinstance(rules.roi_margin, float)
    assert all(getattr(rules, name) == getattr(config, name) for name in PixelOptions.__annotations__)
    assert (rules.background_rgb(), rules.background_values()) == (config.background_rgb(), config.background_values())
    assert (rules.limits(), rules.stored_color) == (config.limits(), config.stored_color)
    assert StandardizeConfig.from_config(rules.to_dict(), "again") == rules


def test_missing_fields_have_defaults() -> None:
    assert StandardizeConfig.from_config({"color": "gray", "near_radius": 3}, "here") == StandardizeConfig(color="gray")


@pytest.mark.parametrize("config", [{"trim": 1}, {"denoise_size": "3"}, {"keep_masks": 0}, {"clahe_clip": True}])
def test_values_of_other_types_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"here \\({next(iter(config))}\\): expected a value like"):
        StandardizeConfig.from_config(config, "here")


@pytest.mark.parametrize("name", CHOICES)
def test_an_operation_of_a_newer_release_is_refused(name: str) -> None:
    with pytest.raises(
        UserError, match=f"model 12 \\({name}\\): expected one of .*, found 'newer', which a newer release"
    ):
        StandardizeConfig.from_config({name: "newer"}, "model 12")
