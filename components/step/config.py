"""Configuration: one frozen dataclass per step declares names, types, defaults, help and the fingerprint's fields.

The same fields become flags, the parameters of pipelines, the schema of configuration files and the READMEs' tables. A
user requests values by name, of which None is unset; `StepConfig.resolve` makes the config of them, in which an unset
option has the value of its preset, else its default. None there is what the data decides: the recipe, the images' size.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, cast

from ..dataset.workspace import STEPS
from ..storage.errors import UserError, wrong
from . import presets

VARIABLE_PREFIX = "IMAGEMILL_"
METRIC_TITLES = {"macro_f1": "macro-F1", "top1": "top-1", "balanced_accuracy": "balanced accuracy"}
METRICS = tuple(METRIC_TITLES)
METRIC_HELP = "the score that models are compared by; recipe auto balances classes where they weigh alike in it"
"""The help of `metric`, which train and promote have."""
Scalar = str | int | float | bool | None
_NO_PLACES: Mapping[str, str] = MappingProxyType({})


def option(
    default: Any,
    help: str,
    *,
    in_fingerprint: bool = True,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    by_preset: bool = False,
    fallback: Any = None,
) -> Any:
    """Declare one config field.

    `default`: the value of an unset option; None if the data or the machine decides. The annotation of such a field is
    the type of the value that it has in the end.
    `in_fingerprint`: another value gives another dataset (threads, addresses, URIs and display never do).
    `low`, `high`: the inclusive range of a number.
    `by_preset`: while the option is unset, a preset overrules the default.
    `fallback`: the value that means the same as None; like a default, it is not part of the fingerprint.
    """
    metadata = {"help": help, "in_fingerprint": in_fingerprint, "choices": choices, "low": low, "high": high}
    metadata |= {"by_preset": by_preset, "fallback": default if fallback is None else fallback}
    return dataclasses.field(default=default, metadata=metadata)


def preset_option() -> Any:
    """Declare `preset`, which several steps have."""
    return option("photo", presets.HELP, in_fingerprint=False, choices=presets.NAMES)


def device_option() -> Any:
    """Declare `device`, which several steps have."""
    return option(
        "auto",
        "where networks run and very large images are resized: cpu, cuda, or auto: a GPU where there is one, for "
        "resizing from gpu_pixels on",
        in_fingerprint=False,
        choices=("auto", "cpu", "cuda"),
    )


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """The fields every step has. Subclasses add theirs, name the `PARENTS` and may extend `check`.

    Attributes:
        HELP_GROUPS: the first option of each group in `--help`, with the group's title.
        SHORT_HELP: options that `--help` lists, without `--help all`; empty: all.
    """

    PARENTS: ClassVar[tuple[str, ...]] = ()
    HELP_GROUPS: ClassVar[Mapping[str, str]] = MappingProxyType({})
    SHORT_HELP: ClassVar[tuple[str, ...]] = ()

    workspace: str = option(
        "./imagemill-data", "where datasets, models and reports live: a folder or s3://bucket/prefix",
        in_fingerprint=False,
    )  # fmt: skip
    name: str = option(
        "", "whose images, class list and champion these are: runs of one name build on each other (default: the last "
        "part of the source)",
        in_fingerprint=False,
    )  # fmt: skip
    rerun: str = option(
        "", "steps to run again even if their dataset exists, separated by commas", in_fingerprint=False
    )
    run: str = option("", "the run this step belongs to: its records go to runs/<run>/", in_fingerprint=False)

    @classmethod
    def resolve(cls, **requested: Any) -> Self:
        """Return the config of a request: the options that the user sets, by name; None, or left out, is unset."""
        values = {name: value for name, value in requested.items() if value is not None}
        return cls(**(cls.derive_unset(values) | values))

    @classmethod
    def derive_unset(cls, requested: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a request's preset for options `by_preset`; they hold where these are unset."""
        preset = presets.PRESETS.get(requested.get("preset", ""))
        by_preset = {field.name for field in fields(cls) if field.metadata["by_preset"]}
        return {name: value for name, value in preset.values.items() if name in by_preset} if preset else {}

    def check(self) -> None:
        """Raise UserError for a value that is invalid whatever the data is."""
        for item in self.rerun.split(","):
            if item.strip() and item.strip() not in STEPS:
                raise wrong("rerun", f"some of {', '.join(STEPS)}", item.strip())
        if not all(c.isalnum() or c in "-_." for c in self.name) or self.name in (".", ".."):
            raise wrong("name", "letters, digits, '-', '_' and '.'", self.name)
        if "/" in self.run or self.run in (".", ".."):
            raise wrong("run", "a name without '/'", self.run)
        for field in fields(self):
            check_field(field, getattr(self, field.name), field.name)

    def fingerprint_values(self) -> dict[str, Scalar]:
        """Return the values that go into the fingerprint: fields that count and differ from their defaults."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.metadata["in_fingerprint"] and getattr(self, field.name) not in (None, field.metadata["fallback"])
        }

    def manifest_values(self) -> dict[str, Scalar]:
        """Return the values for the manifest: every field that counts and is set."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.metadata["in_fingerprint"]}
        return {name: value for name, value in values.items() if value is not None}

    def to_flags(self) -> list[str]:
        """Return this config as flags of the step's command line, which resolve to it again: what differs from the
        defaults, and what a preset would overrule."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        changed = ((f, v) for f, v in values if v != f.default or f.metadata["by_preset"])
        texts = ((field.name, str(v).lower() if isinstance(v, bool) else str(v)) for field, v in changed)
        return [f"{name_flag(name)}={text}" for name, text in texts]

    @classmethod
    def from_values(cls, values: Mapping[str, Any], prefix: str = "", places: Mapping[str, str] = _NO_PLACES) -> Self:
        """Resolve and check a request whose values are of any scalar form; UserError names an invalid field.

        `prefix`: of field names in messages, `--` for flags; `places`: other names in messages, by field.
        """
        types = field_types(cls)
        requested: dict[str, Scalar] = {}
        for key, value in values.items():
            if key not in types:
                raise wrong(f"{prefix}{key}", f"one of {', '.join(sorted(types))}", key)
            label = places.get(key) or (name_flag(key) if prefix else key)
            field = cls.__dataclass_fields__[key]
            requested[key] = convert(
                label, value, types[key],
                choices=field.metadata["choices"], may_be_unset=requested_default(field) is None,
            )  # fmt: skip
        config = cls.resolve(**requested)
        try:
            config.check()
        except UserError as error:
            name, colon, rest = str(error).partition(":")
            raise UserError(f"{places.get(name, name)}{colon}{rest}") from None
        return config


def name_flag(name: str) -> str:
    """Return the flag of an option."""
    return f"--{name.replace('_', '-')}"


def name_variable(name: str, step: str = "") -> str:
    """Return the environment variable of an option, IMAGEMILL_EPOCHS, or of one step's, IMAGEMILL_TRAIN_SEED."""
    return f"{VARIABLE_PREFIX}{f'{step}_' if step else ''}{name}".upper()


def requested_default(field: dataclasses.Field[Any]) -> Scalar:
    """Return a field's default as users see it: None if a preset, the data or the machine decides."""
    return None if field.metadata["by_preset"] else cast(Scalar, field.default)


def unset_blank(value: Any, default: Scalar) -> Any:
    """Return the value of a flag or of a form's field; blank is None, unset, for an option without a `default`.

    A form holds texts only, and a shell's `--epochs "$EPOCHS"` too: neither has another way to leave an option unset.
    """
    return None if default is None and isinstance(value, str) and not value.strip() else value


def check_field(field: dataclasses.Field[Any], value: Any, name: str) -> None:
    """Raise UserError, which says `name`, for a value that is none of the choices or out of the range."""
    metadata = field.metadata
    if value is None:
        return
    if metadata["choices"] and value not in metadata["choices"]:
        raise wrong(name, f"one of {', '.join(metadata['choices'])}", value)
    low, high = metadata["low"], metadata["high"]
    may_be_left_out = requested_default(field) is None
    unset = f", or to be left out ({describe_default(metadata['help'])})" if may_be_left_out else ""
    if low is not None and value < low:
        raise wrong(name, f"a number of at least {low:g}{unset}", value)
    if high is not None and value > high:
        raise wrong(name, f"a number of at most {high:g}{unset}", value)


def describe_default(help: str) -> str:
    """Return the default as the help of a field describes it: `by the recipe` of `… (default: by the recipe)`."""
    return help.partition("(default: ")[2].removesuffix(")")


def field_types(cls: type[StepConfig]) -> Mapping[str, type]:
    """Return the types of a config's fields when set; looked up once, since that takes a millisecond."""
    if cls not in _types:
        hints = typing.get_type_hints(cls)
        _types[cls] = MappingProxyType({field.name: _type_when_set(hints[field.name]) for field in fields(cls)})
    return _types[cls]


def _type_when_set(hint: Any) -> type:
    """Return the type itself, and `int` of `int | None`."""
    kinds: list[type] = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if kinds else hint


_types: dict[type[StepConfig], Mapping[str, type]] = {}


def convert(
    name: str, value: Any, kind: type, *, choices: Collection[str] = (), may_be_unset: bool = False
) -> Scalar:  # fmt: skip
    """Convert `value` (text of a flag or form, or a number that JSON made a float) to the field's type.

    None is unset. So is `auto`, as earlier releases called it, for a text that `may_be_unset`. UserError, which says
    `name`, for other values.
    """
    if value is None or (may_be_unset and kind is str and value == "auto"):
        return None
    text = str(value).strip()
    if kind is str:
        if isinstance(value, dict | list):
            raise wrong(name, "a text", value)
        if isinstance(value, bool):  # YAML and JSON have a type of their own for words such as `true`, YAML for `off`
            words = ("true", "on") if value else ("false", "off")
            return next((word for word in words if word in choices), words[0])
        return str(value)
    if kind is bool:
        if text.lower() in ("true", "1", "yes", "1.0"):
            return True
        if text.lower() in ("false", "0", "no", "0.0", ""):
            return False
        raise wrong(name, "true or false", value)
    try:
        number = float(text)
        if number != number or number in (float("inf"), float("-inf")):
            raise ValueError
        if kind is float:
            return number
        if number != int(number):
            raise ValueError
        return int(text) if text.lstrip("+-").isdigit() else int(number)
    except ValueError:
        raise wrong(name, "a whole number" if kind is int else "a number", value) from None


def parse_config(text: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Parse the JSON parameter `config`, checked for its form only.

    Return (values by name for every step that has them, values by step and name): `{"device": "cpu", "train":
    {"weight_decay": 0.05}}` gives `({"device": "cpu"}, {"train": …})`.
    """
    if not text.strip():
        return {}, {}
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"config: expected a JSON object, found text that is none: {error}") from None
    if not isinstance(entries, dict):
        raise wrong("config", "a JSON object of names and values, or of a section a step", entries)
    for name, value in entries.items():
        if name in STEPS and not isinstance(value, dict):
            raise wrong(f"config.{name}", "an object of names and values", value)
        if name not in STEPS and isinstance(value, dict):
            raise wrong(f"config.{name}", f"a section named {', '.join(STEPS)}", name)
    shared = {name: value for name, value in entries.items() if name not in STEPS}
    return shared, {name: value for name, value in entries.items() if name in STEPS}


def is_json_object(text: str) -> bool:
    """Return whether the value of a flag `--config` is JSON text rather than the path of a file."""
    return text.lstrip().startswith("{")


def read_config_file(path: str) -> str:
    """Return a YAML file of parameters as the JSON parameter `config`; UserError for one that can't be read.

    The file is that of `imagemill run --config`, so it may hold parameters of all steps.
    """
    entries = read_yaml("--config", path)
    if not isinstance(entries, dict | None):
        raise wrong("--config", "names and values", f"{path} with {type(entries).__name__}")
    sections: dict[str, Any] = {}
    for name, value in (entries or {}).items():
        if name in STEPS and not isinstance(value, dict | None):  # promote is a parameter, too
            value = {name: value}
        sections[str(name)] = {} if name in STEPS and value is None else value
    return json.dumps(sections, default=str)


def read_yaml(flag: str, path: str, text: str | None = None) -> Any:
    """Parse the YAML file of a flag, or `text` in its place; UserError for one that can't be read or parsed."""
    import yaml

    try:
        return load_yaml(Path(path).read_text(encoding="utf-8") if text is None else text, path)
    except OSError as error:
        expected = "a YAML file that can be read" + (", or a JSON object ({…})" if flag == "--config" else "")
        raise wrong(flag, expected, f"{path} ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{flag}: expected YAML in {path}, found something else: {message}") from None


def load_yaml(text: str, where: str) -> Any:
    """Parse YAML. Raises yaml.YAMLError for invalid YAML and UserError for a key that one mapping of `where` has twice.

    PyYAML silently takes the last of such keys.
    """
    import yaml

    class Strict(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            names: set[tuple[str, str]] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if (key.tag, key.value) in names:
                    raise wrong(f"{where} (line {key.start_mark.line + 1})", "each name once", key.value)
                names.add((key.tag, key.value))
            return node

    return yaml.load(text, Loader=Strict)  # a SafeLoader
