"""Config values in whatever form they come, and what all steps' configs have in common."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagemill.components.clean.config import CleanConfig
from imagemill.components.dataset.workspace import STEPS
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.step.config import (
    StepConfig,
    convert,
    field_types,
    name_flag,
    parse_config,
    requested_default,
    unset_blank,
)
from imagemill.components.storage.errors import UserError
from imagemill.components.train import STEP as train_step
from imagemill.components.train.config import TrainConfig


def config_of(step: str) -> type[StepConfig]:
    config: type[StepConfig] = importlib.import_module(f"imagemill.components.{step}").STEP.config
    return config


CONFIGS = {step: config_of(step) for step in STEPS}


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (5, int, 5), ("5", int, 5), (5.0, int, 5), ("5.0", int, 5), (" 5 ", int, 5), ("-3", int, -3),
        ("1e3", int, 1000),
        ("9007199254740993", int, 9_007_199_254_740_993), (2**60 + 1, int, 2**60 + 1),
        (1, float, 1.0), ("1", float, 1.0), (0.25, float, 0.25), ("1e-4", float, 1e-4), ("-0.5", float, -0.5),
        (True, bool, True), (False, bool, False), ("true", bool, True), ("False", bool, False), ("YES", bool, True),
        ("no", bool, False), (1, bool, True), (0, bool, False), (1.0, bool, True), (0.0, bool, False),
        ("", bool, False),
        ("a", str, "a"), ("", str, ""), (5, str, "5"), (" padded ", str, " padded "),
    ],
)  # fmt: skip
def test_values_are_converted_to_the_type_of_the_field(value: Any, kind: type, expected: Any) -> None:
    for may_be_unset in (False, True):
        converted = convert("x", value, kind, may_be_unset=may_be_unset)
        assert converted == expected and type(converted) is kind
        assert convert("x", None, kind, may_be_unset=may_be_unset) is None


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (5.5, int), ("5.5", int), ("", int), ("x", int), (True, int), ("nan", int), ("inf", int),
        ([5], int),
        ("", float), ("x", float), ("nan", float), (float("nan"), float), ("-inf", float),
        ("1e999", float),
        (False, float), ({}, float), (2, bool), ("maybe", bool), ([], bool), ({}, str), (["a"], str),
    ],
)  # fmt: skip
def test_another_value_is_the_users_error_by_its_name(value: Any, kind: type) -> None:
    with pytest.raises(UserError, match=r"^--the-field: expected .*, found "):
        convert("--the-field", value, kind)


def test_a_blank_text_is_unset_in_forms_and_flags_only() -> None:
    assert unset_blank(" ", None) is None and unset_blank(0, None) == 0
    assert unset_blank("", "photo") == ""  # which is no preset, and no workspace
    for values in ({"epochs": ""}, {"crop_scale": " "}, {"flip": ""}):
        with pytest.raises(UserError, match=rf"^{next(iter(values))}: expected "):
            TrainConfig.from_values(values)


@pytest.mark.parametrize(("value", "choices", "expected"), [
    (False, ("off", "on"), "off"), (True, ("off", "on"), "on"), (False, ("true", "false"), "false"),
    (True, ("false", "true", "new"), "true"),
])  # fmt: skip
def test_yaml_booleans_are_converted_to_choices(value: bool, choices: tuple[str, ...], expected: str) -> None:
    assert convert("x", value, str, choices=choices) == expected


def test_auto_is_still_read_as_unset_where_a_preset_decides() -> None:
    assert convert("color", "auto", str, may_be_unset=True) is None
    assert CleanConfig.from_values({"preset": "ocr", "color": "auto"}).color == "gray"
    assert ResizeConfig.from_values({"model_preset": "clip", "interpolation": "auto"}).interpolation == "bicubic"
    with pytest.raises(UserError, match=r"^background: expected one of off, fill, blur, found 'auto'"):
        CleanConfig.from_values({"background": "auto"})


def test_null_gives_the_default_of_every_option() -> None:
    requested = {"seed": None, "weights": None, "tensorboard": None, "backbone": None, "flip": None, "epochs": None}
    assert TrainConfig.from_values(requested) == TrainConfig()


@pytest.mark.parametrize("requested", [
    {}, {"preset": "ocr"}, {"preset": "ocr", "flip": "true", "crop_scale": 0.6}, {"tensorboard": False, "epochs": 3},
])  # fmt: skip
def test_flags_of_a_config_resolve_to_the_same_config(requested: dict[str, Any]) -> None:
    """This holds for values that overrule a preset with the default of no preset."""
    config = TrainConfig.resolve(**requested)
    flags = (flag[2:].partition("=") for flag in config.to_flags())
    assert TrainConfig.from_values({name.replace("-", "_"): value for name, _, value in flags}) == config


def test_a_resolved_config_is_not_resolved_again() -> None:
    config = ResizeConfig.resolve(
        preset="ocr", model_preset="convnext-384", resize_mode="crop", normalization="imagenet"
    )
    assert (config.resize_mode, config.normalization, config.interpolation) == ("crop", "imagenet", "bicubic")
    assert dataclasses.replace(config, run="r") == dataclasses.replace(config, run="r", preset="ocr")


@given(st.integers(-(2**80), 2**80))
def test_whole_numbers_survive_text(number: int) -> None:
    assert convert("x", str(number), int) == number
    if abs(number) <= 2**53:
        assert convert("x", json.loads(json.dumps(float(number))), int) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_text(number: float) -> None:
    assert convert("x", str(number), float) == number


@given(st.text(), st.sampled_from([int, float, bool]))
def test_any_text_is_a_value_or_the_users_error(text: str, kind: type) -> None:
    try:
        assert type(convert("x", text, kind)) is kind
    except UserError as error:
        assert str(error).startswith("x: expected ")


def test_a_config_from_values() -> None:
    config = TrainConfig.from_values({"epochs": 3.0, "learning_rate": "1e-2", "flip": "false", "backbone": "resnet18"})
    assert (config.epochs, config.learning_rate, config.flip, config.flips) == (3, 0.01, "false", False)
    assert config == TrainConfig(epochs=3, learning_rate=0.01, flip="false")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "--epoch: expected one of .*epochs.*, found 'epoch'"),
        ({"epochs": -1}, r"^epochs: expected a number of at least 1, or to be left out \(by the recipe\), found -1"),
        ({"epochs": 0}, r"^epochs: expected a number of at least 1, or to be left out \(by the recipe\), found 0"),
        ({"learning_rate": "0"}, r"^learning_rate: expected .* left out \(by the recipe, the optimizer and the w"),
        ({"weight_decay": -1.0}, "^weight_decay: expected a number of at least 0, or to be left out"),
        ({"processes": 0}, r"^processes: expected .* left out \(one for each GPU\), found 0"),
        ({"optimizer": "adam"}, "^optimizer: expected one of adamw, sgd, found 'adam'"),
        ({"learning_rate": "fast"}, "^--learning-rate: expected a number, found 'fast'"),
        ({"epochs": 100_001}, "^epochs: expected a number of at most 100000"),
        ({"crop_scale": 1.01}, "^crop_scale: expected a number of at most 1,"),
        ({"device": "tpu"}, "^device: expected one of auto, cpu, cuda, found 'tpu'"),
        ({"rerun": "train,trian"}, "^rerun: expected some of download.*, found 'trian'"),
        ({"backbone": "resnet81"}, "^backbone: expected a torchvision .*resnet18.*, found 'resnet81'"),
        ({"weights": "ftp://host/x"}, "^weights: expected"),
        *(({"name": name}, "^name: expected letters") for name in ("../x", "..", ".", "a b")),
        ({"run": "../../x"}, "^run: expected a name"),
        ({"run": ".."}, "^run: expected a name"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig.from_values(values, prefix="--")


@pytest.mark.parametrize("name", ["pets", "my-pets_2.1", "..x", "Катя", ""])
def test_names_that_are_fine(name: str) -> None:
    assert CleanConfig.from_values({"name": name, "rerun": "clean, train", "run": name}).name == name


def test_fractions_must_leave_something_to_train_on() -> None:
    with pytest.raises(UserError, match=r"^val_fraction \+ test_fraction: expected less than 1"):
        CleanConfig.from_values({"val_fraction": 0.5, "test_fraction": 0.5})


def test_values_for_all_steps_and_for_one() -> None:
    assert parse_config("") == parse_config("  ") == ({}, {})
    assert parse_config('{"train": {"weight_decay": 0.05}, "device": "cpu", "clean": {}, "hue": null}') == (
        {"device": "cpu", "hue": None}, {"train": {"weight_decay": 0.05}, "clean": {}}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, "^config: expected a JSON object") for text in ("{", "[]", "5", "[" * 100_000)),
        ('{"trian": {}}', "^config.trian: expected a section named download"),
        ('{"train": 5}', "^config.train: expected an object"),
        ('{"train": null}', "^config.train: expected an object"),
        ('{"promote": "always"}', "^config.promote: expected an object"),
    ],
)
def test_a_wrong_section_is_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config(text)


@pytest.mark.parametrize("step", STEPS)
def test_every_default_is_a_valid_scalar_of_its_type_or_unset(step: str) -> None:
    cls = CONFIGS[step]
    for field in dataclasses.fields(cls):
        kind = field_types(cls)[field.name]
        assert kind in (str, int, float, bool), field.name
        assert field.metadata["help"] and not field.metadata["help"].endswith(".")
        low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
        assert low is None or kind in (int, float)
        assert high is None or kind in (int, float)
        assert "" not in choices
        if requested_default(field) is None:
            assert re.search(r"\(default: [^()]+\)$", field.metadata["help"]), field.name
        if field.default is None:
            continue
        assert type(field.default) is kind, field.name
        assert not choices or field.default in choices, field.name
        assert low is None or low <= field.default, field.name
        assert high is None or field.default <= high, field.name
    assert cls.fingerprint_values(cls()) == {}


@pytest.mark.parametrize("step", STEPS)
def test_defaults_round_trip_through_text_and_json(step: str) -> None:
    cls = CONFIGS[step]
    values = {field.name: field.default for field in dataclasses.fields(cls)}
    values |= {"source": "x", "dataset": "folder"} if step == "download" else {}
    as_text = {name: str(value) for name, value in values.items() if value is not None}
    as_floats = {name: float(value) if type(value) is int else value for name, value in values.items()}
    for given_values in (as_text, as_floats, json.loads(json.dumps(values))):
        assert cls.from_values(given_values) == cls(**values)


def test_options_of_the_same_name_are_equal_in_every_step() -> None:
    meanings: dict[str, tuple[str, Any]] = {}
    for step, cls in CONFIGS.items():
        types = field_types(cls)
        for field in dataclasses.fields(cls):
            if field.name not in cls.PARENTS:  # each step says what it reads a parent for
                meaning = (types[field.name], field.default, dict(field.metadata))
                first, expected = meanings.setdefault(field.name, (step, meaning))
                assert meaning == expected, f"{field.name} differs between {first} and {step}"


@pytest.mark.parametrize("step", STEPS)
def test_addresses_workers_and_names_are_not_in_the_fingerprint(step: str) -> None:
    for field in dataclasses.fields(CONFIGS[step]):
        uris = {
            *CONFIGS[step].PARENTS,
            "workspace",
            "source",
            "annotations",
            "weights",
            "class_list",
            "map_labels",
            "ray_address",
        }
        if field.name in uris or field.name.endswith("_workers") or field.name in ("name", "run", "rerun", "device"):
            assert not field.metadata["in_fingerprint"], field.name


def test_trainings_help_is_short_and_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for words in (["--help"], ["--help", "all"]):
        with pytest.raises(SystemExit) as ended:
            train_step.main(words)
        assert ended.value.code == 0
        texts.append(capsys.readouterr().out)
    flags = [set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)) for text in texts]
    every = {name_flag(name) for name in field_types(TrainConfig)}
    assert every <= flags[1] and {"--recipe", "--epochs", "--config", "--weights"} <= flags[0] < flags[1]
    assert len(flags[0]) <= 25 and "--help all" in texts[0]
    assert all(f"{title}:" in texts[1] for title in TrainConfig.HELP_GROUPS.values())
    assert set(TrainConfig.HELP_GROUPS) | set(TrainConfig.SHORT_HELP) <= {*field_types(TrainConfig), "help"}
