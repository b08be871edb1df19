"""One frozen dataclass per step is its whole configuration: names, types, defaults, help and what counts.

The same fields become flags and the parameters of pipelines. A field whose default is None is unset until a preset, a
recipe or the machine says it; in a form, where all values are texts, such a field is blank.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar, overload

from .errors import UserError, wrong
from .presets import preset_value

STEPS = ("download", "clean", "resize", "train", "evaluate", "promote")
"""The names of the steps, in their order: the sections of the `config` parameter."""
PRODUCTS = {"download": "raw", "clean": "clean", "resize": "tensors", "train": "model", "evaluate": "evaluation"}
"""The kind of dataset that a step makes; promote makes none."""

DEVICE = (
    "where networks run and very large images are resized: cpu, cuda, or auto: a GPU where there is one, for resizing "
    "from gpu_pixels on"
)
"""The help of `device`, which several steps have."""
Scalar = str | int | float | bool | None
V = TypeVar("V", str, int, float, bool)


@overload
def option(
    default: V,
    help: str,
    *,
    counts: bool = ...,
    choices: tuple[str, ...] = ...,
    low: float | None = ...,
    high: float | None = ...,
    by_preset: bool = ...,
    usual: V | None = ...,
) -> V: ...


@overload
def option(
    default: None,
    help: str,
    *,
    counts: bool = ...,
    choices: tuple[str, ...] = ...,
    low: float | None = ...,
    high: float | None = ...,
    by_preset: bool = ...,
    usual: str | float | None = ...,
) -> Any: ...


def option(
    default: Any,
    help: str,
    *,
    counts: bool = True,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    by_preset: bool = False,
    usual: Any = None,
) -> Any:
    """One config field.

    `default`: None is unset. The annotation of such a field is the type of the value that it is given in the end.
    `counts`: another value gives another dataset (threads, addresses, URIs and display never do).
    `low`, `high`: the inclusive range of a number.
    `by_preset`: the default (None or `auto`) is unset, and the preset fills it in.
    `usual`: the default (None or `auto`) is unset, and this is the value then, where the step knows no better one.
    """
    about = {"help": help, "counts": counts, "choices": choices, "low": low, "high": high}
    about |= {"by_preset": by_preset, "usual": default if usual is None else usual}
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """The fields every step has. Subclasses add theirs, name the `PARENTS` and may extend `check`."""

    PARENTS: ClassVar[tuple[str, ...]] = ()

    workspace: str = option(
        "./imagemill-data", "where datasets, models and reports live: a folder or s3://bucket/prefix",
        counts=False,
    )  # fmt: skip
    name: str = option(
        "", "what belongs together in one workspace: class list, champion (default: the last part of the source)",
        counts=False,
    )  # fmt: skip
    rerun: str = option("", "steps to run again though their dataset is there, separated by commas", counts=False)
    run: str = option("", "the run this step belongs to: its records go to runs/<run>/", counts=False)

    def __post_init__(self) -> None:
        """Fill in what was left to the preset, so that a config that exists holds effective values only."""
        for one in fields(self):
            if one.metadata["by_preset"] and getattr(self, one.name) == one.default:
                object.__setattr__(self, one.name, preset_value(getattr(self, "preset", ""), one.name))
            elif getattr(self, one.name) == one.default:
                object.__setattr__(self, one.name, one.metadata["usual"])

    def check(self) -> None:
        """Raise UserError for a value that can be seen to be wrong without reading data."""
        for item in self.rerun.split(","):
            if item.strip() and item.strip() not in STEPS:
                raise wrong("rerun", f"some of {', '.join(STEPS)}", item.strip())
        if not all(c.isalnum() or c in "-_." for c in self.name) or self.name in (".", ".."):
            raise wrong("name", "letters, digits, '-', '_' and '.'", self.name)
        if "/" in self.run or self.run in (".", ".."):
            raise wrong("run", "a name without '/'", self.run)
        for one in fields(self):
            check_field(one, getattr(self, one.name), one.name)

    def counting(self) -> dict[str, Scalar]:
        """The fields that count and differ from their defaults: what the fingerprint sees."""
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.metadata["counts"] and getattr(self, one.name) not in (None, _usual(one))
        }

    def effective(self) -> dict[str, Scalar]:
        """Every field that counts and is set, for the manifest."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.metadata["counts"]}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """A checked config from names and values of any scalar form; UserError names what is wrong."""
        types = field_types(cls)
        defaults = {one.name: one.default for one in fields(cls)}
        known: dict[str, Any] = {}
        for key, value in values.items():
            if key not in types:
                raise wrong(f"{where}{key}", f"one of {', '.join(sorted(types))}", key)
            shown = f"{where}{key.replace('_', '-')}" if where else key  # a flag, or the name of the parameter
            known[key] = convert(shown, value, types[key], may_be_unset=defaults[key] is None)
        config = cls(**known)
        config.check()
        return config


def _usual(one: dataclasses.Field[Any]) -> Any:
    """The value that a field has when nothing is said."""
    return preset_value("", one.name) if one.metadata["by_preset"] else one.metadata["usual"]


def check_field(one: dataclasses.Field[Any], value: Any, place: str) -> None:
    """UserError, which names the `place`, for a value that is none of the choices or out of the range."""
    about = one.metadata
    if value is None:
        return
    if about["choices"] and value not in about["choices"]:
        raise wrong(place, f"one of {', '.join(about['choices'])}", value)
    low, high = about["low"], about["high"]
    unset = f", or to be left out ({_default_in_words(about['help'])})" if one.default is None else ""
    if low is not None and value < low:
        raise wrong(place, f"a number of at least {low:g}{unset}", value)
    if high is not None and value > high:
        raise wrong(place, f"a number of at most {high:g}{unset}", value)


def _default_in_words(help: str) -> str:
    """What the help of a field says of its default: `by the recipe` of `… (default: by the recipe)`."""
    return help.rpartition("(default: ")[2].removesuffix(")")


def field_types(cls: type[StepConfig]) -> Mapping[str, type]:
    """The types of a config's fields that are set; looked up once, for that takes a millisecond."""
    if cls not in _types:
        hints = typing.get_type_hints(cls)
        _types[cls] = MappingProxyType({one.name: _type_when_set(hints[one.name]) for one in fields(cls)})
    return _types[cls]


def _type_when_set(hint: Any) -> type:
    """The type itself, and `int` of `int | None`."""
    kinds: list[type] = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if kinds else hint


_types: dict[type[StepConfig], Mapping[str, type]] = {}


def convert(name: str, value: Any, kind: type, *, may_be_unset: bool = False) -> Scalar:
    """`value` (text of a flag or form, or a number that came through JSON as a float) as the field's type. None, and a
    blank text, is None where that `may_be_unset`."""
    text = str(value).strip()
    if may_be_unset and (value is None or not text):
        return None
    if kind is str:
        if isinstance(value, dict | list):
            raise wrong(name, "a text", value)
        if isinstance(value, bool):  # YAML and JSON have a type of their own for what is a word here
            return str(value).lower()
        return "" if value is None else str(value)
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
    """The JSON parameter `config`, checked for its form only: (values by name for every step that has them, values by
    step and name). `{"device": "cpu", "train": {"weight_decay": 0.05}}` gives `({"device": "cpu"}, {"train": …})`."""
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
