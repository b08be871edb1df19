"""One frozen dataclass per step is its whole configuration: names, types, defaults, help and what counts.

The same fields become CLI flags, KFP and Argo parameters. There is no `None`: an empty string or 0 is unset.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

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
Scalar = str | int | float | bool
V = TypeVar("V", str, int, float, bool)


def option(
    default: V,
    help: str,
    *,
    counts: bool = True,
    pipeline: bool = False,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    by_preset: bool = False,
    usual: V | None = None,
) -> V:
    """One config field.

    `counts`: another value gives another dataset (threads, addresses, URIs and display never do).
    `pipeline`: a pipeline parameter of its own; the others travel in the JSON parameter `config`.
    `low`, `high`: the inclusive range of a number.
    `by_preset`: the default means unset, and the preset fills it in.
    `usual`: the default means unset, and this is the value then, where the step knows no better one.
    """
    about = {"help": help, "counts": counts, "pipeline": pipeline, "choices": choices, "low": low, "high": high}
    about |= {"by_preset": by_preset, "usual": default if usual is None else usual}
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """The fields every step has. Subclasses add theirs, name the `PARENTS` and may extend `check`."""

    PARENTS: ClassVar[tuple[str, ...]] = ()

    workspace: str = option(
        "./imagemill-data", "where datasets, models and reports live: a folder or s3://bucket/prefix",
        counts=False, pipeline=True,
    )  # fmt: skip
    name: str = option(
        "", "what belongs together in one workspace: class list, champion (default: the last part of the source)",
        counts=False, pipeline=True,
    )  # fmt: skip
    rerun: str = option(
        "", "steps to run again though their dataset is there, separated by commas", counts=False, pipeline=True
    )
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
            _check_field(one, getattr(self, one.name))

    def counting(self) -> dict[str, Scalar]:
        """The fields that count and differ from their defaults: what the fingerprint sees."""
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.metadata["counts"] and getattr(self, one.name) != _usual(one)
        }

    def effective(self) -> dict[str, Scalar]:
        """Every field that counts, for the manifest."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.metadata["counts"]}

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str = "") -> Self:
        """A checked config from names and values of any scalar form; UserError names what is wrong."""
        types = field_types(cls)
        known: dict[str, Any] = {}
        for key, value in values.items():
            if key not in types:
                raise wrong(f"{where}{key}", f"one of {', '.join(sorted(types))}", key)
            shown = f"{where}{key.replace('_', '-')}" if where else key  # a flag, or the name of the parameter
            known[key] = convert(shown, value, types[key])
        config = cls(**known)
        config.check()
        return config


def _usual(one: dataclasses.Field[Any]) -> Any:
    """The value that a field has when nothing is said."""
    return preset_value("", one.name) if one.metadata["by_preset"] else one.metadata["usual"]


def _check_field(one: dataclasses.Field[Any], value: Any) -> None:
    about = one.metadata
    if value == one.default:  # which may mean unset, and lie outside the range for that
        return
    if about["choices"] and value not in about["choices"]:
        raise wrong(one.name, f"one of {', '.join(c for c in about['choices'] if c)}", value)
    low, high = about["low"], about["high"]
    if low is not None and value < low:
        raise wrong(one.name, f"a number of at least {low:g}", value)
    if high is not None and value > high:
        raise wrong(one.name, f"a number of at most {high:g}", value)


def field_types(cls: type[StepConfig]) -> Mapping[str, type]:
    """The types of a config's fields; looked up once, for that takes a millisecond."""
    if cls not in _types:
        hints = typing.get_type_hints(cls)
        _types[cls] = MappingProxyType({one.name: hints[one.name] for one in fields(cls)})
    return _types[cls]


_types: dict[type[StepConfig], Mapping[str, type]] = {}


def convert(name: str, value: Any, kind: type) -> Scalar:
    """`value` (text of a flag, or a number that came through JSON as a float) as the field's type."""
    text = str(value).strip()
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


def parse_sections(text: str, known: Iterable[str] = STEPS) -> dict[str, dict[str, Any]]:
    """The JSON parameter `config`: `{"train": {"weight_decay": 0.05}, …}`, checked for its form only."""
    if not text.strip():
        return {}
    try:
        sections = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"config: expected a JSON object, found text that is none: {error}") from None
    if not isinstance(sections, dict):
        raise wrong("config", "a JSON object with a section a step", sections)
    for step, section in sections.items():
        if step not in known:
            raise wrong(f"config.{step}", f"a section named {', '.join(known)}", step)
        if not isinstance(section, dict):
            raise wrong(f"config.{step}", "an object of names and values", section)
    return sections
