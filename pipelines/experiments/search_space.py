"""The search space of `imagemill tune`: which parameters are tried with which values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...components.step.config import Scalar, load_yaml
from ...components.storage.errors import UserError, wrong
from ..parameters import Parameter, list_parameters
from .trials import LAST_STEPS, SHARED_FIELDS, Configuration

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

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
_OFF = (None, 0, "none", "off", "false", False, "")
_FIXED = {name for names in SHARED_FIELDS.values() for name in names} | {"rerun", "run", "epochs"}
"""Parameters that no trial may change: trials are compared on the same images, after as many epochs."""


@dataclass(frozen=True)
class Dimension:
    """A parameter of one step with Optuna's distribution of its values.

    `when`: (parameter, values) under which it is tried; without values, where that parameter is not off.
    """

    name: str
    step_name: str
    distribution: BaseDistribution
    when: tuple[str, tuple[Scalar, ...]] | None = None

    def suggest(self, trial: optuna.Trial) -> None:
        """Let the sampler of `trial` choose a value."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        match self.distribution:
            case CategoricalDistribution(choices=choices):
                trial.suggest_categorical(self.name, choices)
            case IntDistribution() as numbers:
                trial.suggest_int(self.name, numbers.low, numbers.high, step=numbers.step, log=numbers.log)
            case FloatDistribution() as numbers:
                trial.suggest_float(self.name, numbers.low, numbers.high, step=numbers.step, log=numbers.log)

    def list_limits(self) -> tuple[Scalar, ...]:
        """Return the choices, or the ends of the range."""
        values = vars(self.distribution)
        return tuple(values["choices"]) if "choices" in values else (values["low"], values["high"])

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
            for value in dimension.list_limits():
                try:
                    base.with_values(dimension.step_name, **{dimension.name: value})
                except UserError as error:
                    raise UserError(f"{place} ({name}): {error}") from None
            dimensions.append(dimension)
        return cls(tuple(dimensions), dict(declared))

    def suggest(self, trial: optuna.Trial) -> dict[str, Scalar]:
        """Return the values of all dimensions that apply, chosen by the sampler of `trial`."""
        for dimension in self.dimensions:
            if dimension.applies(round_values(trial.params)):
                dimension.suggest(trial)
        return round_values(trial.params)

    def apply(self, base: Configuration, values: Mapping[str, Scalar]) -> Configuration:
        """Return the base configuration with a trial's values."""
        steps = {dimension.name: dimension.step_name for dimension in self.dimensions}
        for name, value in values.items():
            base = base.with_values(steps[name], **{name: value})
        return base


def round_values(values: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return values with numbers of four digits, as they are trained with."""
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()}


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
    when = entry.get("when") if isinstance(entry, dict) else None
    if when is not None and not isinstance(when, str) and not (isinstance(when, dict) and len(when) == 1):
        raise wrong(f"{path} ({name}.when)", "a parameter, or one with its value", when)
    return Dimension(name, steps[-1], _parse_distribution(place, parameter, entry), _parse_condition(when))


def _parse_distribution(place: str, parameter: Parameter, entry: Any) -> BaseDistribution:
    from optuna import distributions

    if isinstance(entry, list):
        if len(entry) < 2 or any(isinstance(value, dict | list) for value in entry):
            raise wrong(place, "a list of two values or more", entry)
        return distributions.CategoricalDistribution(
            [str(value).lower() if isinstance(value, bool) else value for value in entry]
        )
    if not isinstance(entry, dict) or set(entry) - {"low", "high", "log", "step", "when"}:
        raise wrong(place, "a list of values, or low and high, and log, step or when", entry)
    if parameter.kind not in (int, float):
        raise wrong(place, "a list of values, for it is no number", entry)
    low: Any = entry.get("low")
    high: Any = entry.get("high")
    for limit in (low, high):
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            raise wrong(place, "numbers for low and high", entry)
    if low >= high:
        raise wrong(place, "a range whose low is below its high", entry)
    step = {} if entry.get("step") is None else {"step": entry["step"]}
    make: Any = distributions.IntDistribution if parameter.kind is int else distributions.FloatDistribution
    try:
        return make(low, high, log=bool(entry.get("log")), **step)  # type: ignore[no-any-return]
    except (ValueError, TypeError) as error:
        raise UserError(f"{place}: expected a range of numbers, found {entry!r}: {error}") from None


def _parse_condition(when: Any) -> tuple[str, tuple[Scalar, ...]] | None:
    if not isinstance(when, dict):
        return (when, ()) if when else None
    ((name, values),) = when.items()
    return str(name), tuple(values) if isinstance(values, list) else (values,)
