"""What a model takes along of a clean config: every field that pixels depend on, with clean's own defaults."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from imagemill.components.clean.config import CleanConfig
from imagemill.components.store.errors import UserError
from imagemill.components.store.standards import PixelRules, Standards


def test_fields_and_defaults_are_cleans() -> None:
    effective = CleanConfig().effective()
    assert Standards().to_dict() == {one.name: effective[one.name] for one in fields(Standards)}
    assert set(PixelRules.__annotations__) == {one.name for one in fields(Standards)}


def test_a_manifests_config_gives_the_rules_that_clean_had() -> None:
    config = CleanConfig(
        background="fill", background_color="#102030", mask_background="2,3", trim="on", color="rgb", binarize="otsu",
        roi="union", roi_margin=2.0, max_pixels=1_000,
    )  # fmt: skip
    recorded = json.loads(json.dumps(config.effective()))
    recorded["roi_margin"] = 2  # as another writer of JSON might have it
    rules = Standards.of(recorded, "here")
    assert isinstance(rules.roi_margin, float)
    assert all(getattr(rules, name) == getattr(config, name) for name in PixelRules.__annotations__)
    assert (rules.fill(), rules.background_values()) == (config.fill(), config.background_values())
    assert (rules.limits(), rules.channels_color) == (config.limits(), config.channels_color)
    assert Standards.of(rules.to_dict(), "again") == rules


def test_an_older_config_has_the_defaults() -> None:
    assert Standards.of({"color": "gray", "near_radius": 3}, "here") == Standards(color="gray")


@pytest.mark.parametrize("config", [{"trim": 1}, {"denoise_size": "3"}, {"keep_masks": 0}, {"clahe_clip": True}])
def test_what_is_no_clean_config_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"here \\({next(iter(config))}\\): expected a value like"):
        Standards.of(config, "here")
