"""The search space of `imagemill tune`: which parameters are tried with which values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...components.step.config import Scalar, load_yaml
from ...components.storage.errors import UserError, wrong
from ..parameters import list_parameters
from .trials import LAST_STEPS, SHARED_FIELDS, Configuration

if TYPE_CHECKING:
    import optuna

DEFAULT_SPACE: dict[str, Any] = {
    "recipe": ["plain", "small", "standard"],
    "learning_rate": {"low": 1e-4, "high": 3e-3, "log": True},
    "policy": ["none", "randaugment", "trivialaugment"],
    "policy_ops": {"low": 1, "high": 3, "when": {"policy": "randaugment"}},
    "policy_magnitude": {"low": 3, "high": 15, "step": 2, "when": {"policy": "randaugment"}},
    "mixup_probability": {"low": 0.0, "high": 0.5, "step": 0.1},
    "mixup": {"low": 0.1, "high": 0.8, "when": "mixup_probability"},
    "cutmix_probability": {"low": 0.0, "high": 0.5, "step": 0.1},
    "cutmix": {"low": 0.2, "high": 1.0, "when": "cutmix_probability"},
}
"""RandAugment's N and M as in its paper (Cubuk et al., 2020: N 1 to 3; M to half of 30 for such networks), alphas
of MixUp (Zhang et al., 2018: 0.1 to 0.4; timm: to 0.8) and CutMix (Yun et al., 2019: 1)."""
_KEYS = {"low", "high", "log", "step", "when"}
_OFF = (None, 0, "none", "off", "false", False, "")
_FIXED = {name for names in SHARED_FIELDS.values() for name in names} | {"rerun", "run", "epochs"}
"""Parameters that no trial may change: trials are compared on the same images, after as many epochs."""


@dataclass(frozen=True)
class Dimension:
    """A parameter of one step with its `choices`, or its range from `low` to `high`, logarithmic with `log`.

    `when`: (parameter, values) under which it is tried; without values, where that parameter is not off.
    """

    name: str
    step_name: str
    choices: tuple[Scalar, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    increment: float | None = None
    is_integer: bool = False
    when: tuple[str, tuple[Scalar, ...]] | None = None

    def suggest(self, trial: optuna.Trial) -> Scalar:
        """Return the value that the sampler of `trial` chooses."""
        if self.choices:
            value: Scalar = trial.suggest_categorical(self.name, self.choices)
            return value
        if self.is_integer:
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.increment or 1))
        value = trial.suggest_float(self.name, self.low, self.high, step=self.increment, log=self.log)
        return float(f"{value:.4g}")

    def applies(self, values: Mapping[str, Scalar]) -> bool:
        """Return whether it is tried beside these values of the dimensions before it."""
        if self.when is None:
            return True
        name, expected = self.when
        value = values.get(name)
        return value in expected if expected else value not in _OFF


@dataclass(frozen=True)
class SearchSpace:
    """The dimensions, in the order in which they are chosen."""

    dimensions: tuple[Dimension, ...]
    declared: dict[str, Any]

    @classmethod
    def read(cls, path: str, base: Configuration) -> SearchSpace:
        """Read a YAML file; without one, `DEFAULT_SPACE`. UserError names the file and the entry that is wrong."""
        declared, place = _read_yaml(path) if path else DEFAULT_SPACE, path or "the default space"
        dimensions: list[Dimension] = []
        for name, entry in declared.items():
            dimension = _parse_dimension(place, str(name), entry)
            if dimension.when and dimension.when[0] not in {earlier.name for earlier in dimensions}:
                raise wrong(f"{place} ({name}.when)", "a parameter that stands before it", dimension.when[0])
            for value in dimension.choices or (dimension.low, dimension.high):
                try:
                    base.with_values(dimension.step_name, **{dimension.name: value})
                except UserError as error:
                    raise UserError(f"{place} ({name}): {error}") from None
            dimensions.append(dimension)
        return cls(tuple(dimensions), dict(declared))

    def suggest(self, trial: optuna.Trial) -> dict[str, Scalar]:
        """Return the values of all dimensions that apply, chosen by the sampler of `trial`."""
        values: dict[str, Scalar] = {}
        for dimension in self.dimensions:
            if dimension.applies(values):
                values[dimension.name] = dimension.suggest(trial)
        return values

    def apply(self, base: Configuration, values: Mapping[str, Scalar]) -> Configuration:
        """Return the base configuration with a trial's values."""
        steps = {dimension.name: dimension.step_name for dimension in self.dimensions}
        for name, value in values.items():
            base = base.with_values(steps[name], **{name: value})
        return base

    def make_distributions(self, values: Mapping[str, Scalar]) -> dict[str, Any]:
        """Return Optuna's distributions of those dimensions that have one of `values`."""
        from optuna import distributions

        made: dict[str, Any] = {}
        for dimension in self.dimensions:
            if dimension.name not in values:
                continue
            if dimension.choices:
                made[dimension.name] = distributions.CategoricalDistribution(dimension.choices)
            elif dimension.is_integer:
                made[dimension.name] = distributions.IntDistribution(
                    int(dimension.low), int(dimension.high), step=int(dimension.increment or 1)
                )
            else:
                made[dimension.name] = distributions.FloatDistribution(
                    dimension.low, dimension.high, log=dimension.log, step=dimension.increment
                )
        return made


def _read_yaml(path: str) -> dict[str, Any]:
    import yaml

    try:
        document = load_yaml(Path(path).read_text(encoding="utf-8"), path)
    except OSError as error:
        raise wrong("--space", "a YAML file that can be read", f"{path} ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        found = " ".join(str(error).split())
        raise UserError(f"--space: expected YAML in {path}, found something else: {found}") from None
    if not isinstance(document, dict) or not document:
        raise wrong("--space", "parameters with their values", f"{path} with {document!r}")
    return document


def _parse_dimension(path: str, name: str, entry: Any) -> Dimension:
    place, parameter = f"{path} ({name})", list_parameters().get(name)
    steps = [step for step in parameter.steps if step in LAST_STEPS[1:]] if parameter else []
    if parameter is None or not steps:
        raise wrong(place, "a parameter of clean, resize, train or evaluate", name)
    if name in _FIXED:
        raise wrong(place, "a parameter that leaves images, classes and epochs as they are", name)
    if isinstance(entry, list):
        if len(entry) < 2 or any(isinstance(value, dict | list) for value in entry):
            raise wrong(place, "a list of two values or more", entry)
        choices = tuple(str(value).lower() if isinstance(value, bool) else value for value in entry)
        return Dimension(name, steps[-1], choices)
    if not isinstance(entry, dict) or set(entry) - _KEYS or not {"low", "high"} <= set(entry):
        raise wrong(place, "a list of values, or low and high, and log, step or when", entry)
    low, high = entry["low"], entry["high"]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in (low, high)) or low >= high:
        raise wrong(place, "numbers for low and high, the first one lower", entry)
    is_log, increment = bool(entry.get("log")), entry.get("step")
    if is_log and (low <= 0 or increment is not None or parameter.kind is int):
        raise wrong(place, "log for a number of any size above 0, without step", entry)
    if parameter.kind not in (int, float):
        raise wrong(place, "a list of values, for it is no number", entry)
    return Dimension(
        name, steps[-1], low=low, high=high, log=is_log, increment=increment, is_integer=parameter.kind is int,
        when=_parse_condition(f"{place[:-1]}.when)", entry.get("when")),
    )  # fmt: skip


def _parse_condition(place: str, when: Any) -> tuple[str, tuple[Scalar, ...]] | None:
    if when is None:
        return None
    if isinstance(when, str):
        return when, ()
    if isinstance(when, dict) and len(when) == 1:
        ((name, values),) = when.items()
        return str(name), tuple(values) if isinstance(values, list) else (values,)
    raise wrong(place, "a parameter, or one with its value", when)
