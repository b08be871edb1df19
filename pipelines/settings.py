"""Nested frozen dataclasses as YAML: read with clear errors, and written with every field explained.

What the steps' configs are for flags, this is for the one file that says how a cluster is used.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, TypeVar

from ..components.store.errors import wrong

S = TypeVar("S")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_FACTORS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_FACTORS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

LARGEST = 2**31 - 1
"""Of the whole numbers: Kubernetes and Argo hold most in 32 bits."""
_FREE: Mapping[str, Any] = {"choices": (), "quantity": False}
"""About a text of any form."""


def setting(default: Any, help: str, *, choices: tuple[str, ...] = (), quantity: bool = False) -> Any:
    """One field. `quantity`: a Kubernetes quantity, such as 500m or 2Gi; the empty string is unset.

    A mapping, a list or a group of settings is given as a factory (`dict`, `tuple`, a class).
    """
    about = {"help": help, "choices": choices, "quantity": quantity}
    if callable(default):
        return field(default_factory=default, metadata=about)
    return field(default=default, metadata=about)


def bytes_of(quantity: str) -> float:
    """A Kubernetes quantity as a number: bytes, or cores."""
    number = re.match(r"[\d.]+", quantity)
    assert number, quantity
    return float(number.group()) * _FACTORS[quantity[number.end() :]]


def read(base: S, values: Any, where: str) -> S:
    """`base`, with what parsed YAML says instead of its values; UserError names the field of the file `where`.

    Groups and fields may be left out: they stay as they are in `base`.
    """
    return _group(base, {} if values is None else values, where, ())


def load_yaml(text: str, where: str) -> Any:
    """Parsed YAML. yaml.YAMLError for what is none; UserError for a name that comes twice in one place of `where`.

    Of those YAML's own reader takes the last one, without a word.
    """
    import yaml

    class Strict(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            seen: set[tuple[str, str]] = set()
            for key, _ in node.value:
                known = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
                if known in seen:
                    raise wrong(f"{where} (line {key.start_mark.line + 1})", "each name once", key.value)
                if known:
                    seen.add(known)
            return node

    return yaml.load(text, Loader=Strict)  # a SafeLoader


def _group(base: S, values: Any, where: str, path: tuple[str, ...]) -> S:
    if not isinstance(values, Mapping):
        raise wrong(_place(where, path), "names and values", values)
    hints = typing.get_type_hints(type(base))
    known = {one.name: one for one in dataclasses.fields(base)}  # type: ignore[arg-type]
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), 1)
            hint = f"; is it {near[0]}?" if near else ""
            raise wrong(_place(where, (*path, str(key))), f"one of {', '.join(known)}{hint}", key)
        made[key] = _value(hints[key], known[key], getattr(base, key), value, where, (*path, str(key)))
    result = dataclasses.replace(base, **made)  # type: ignore[type-var]
    if check := getattr(result, "check", None):
        check(lambda *names: _place(where, (*path, *names)))
    return result


def _value(
    kind: Any, one: dataclasses.Field[Any], base: Any, value: Any, where: str, path: tuple[str, ...]
) -> Any:  # fmt: skip
    place = _place(where, path)
    if dataclasses.is_dataclass(kind):
        return _group(base, {} if value is None else value, where, path)
    if typing.get_origin(kind) is dict:
        inner = typing.get_args(kind)[1]
        if not isinstance(value, Mapping):
            raise wrong(place, "names and values", value)
        if not dataclasses.is_dataclass(inner):
            return {_name(key, place): _scalar(str, _FREE, said, _place(where, (*path, str(key))))
                    for key, said in value.items()}  # fmt: skip
        given = {
            str(key): _group(
                base.get(key) or typing.cast(Callable[[], Any], inner)(),
                {} if group is None else group,
                where,
                (*path, str(key)),
            )
            for key, group in value.items()
        }
        return {**base, **given}
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise wrong(place, "a list", value)
        return tuple(_element(typing.get_args(kind)[0], element, place) for element in value)
    return _scalar(kind, one.metadata, value, place)


def _element(kind: Any, value: Any, place: str) -> Any:
    """One element of a list: a text, or names and values, of which words that YAML takes for booleans are texts."""
    if kind is str:
        if not isinstance(value, str):
            raise wrong(place, "a list of texts", value)
        return value
    if not isinstance(value, Mapping):
        raise wrong(place, "a list of names and values", value)
    return {_name(key, place): text(one) if isinstance(one, bool) else one for key, one in value.items()}


def _name(key: Any, place: str) -> str:
    """YAML makes something else of a name such as on, null or 2026-01-01."""
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise wrong(place, "names that are texts (in quotes where YAML takes them for something else)", key)
    return str(key)


def _scalar(kind: type, about: Mapping[str, Any], value: Any, place: str) -> Any:
    if kind is bool:
        if not isinstance(value, bool):
            raise wrong(place, "true or false", value)
        return value
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise wrong(place, "a whole number of at least 0", value)
        if value > LARGEST:
            raise wrong(place, f"a whole number of at most {LARGEST}", value)
        return value
    if isinstance(value, Mapping | list) or value is None:
        raise wrong(place, "a text", value)
    said = text(value)
    if about["choices"] and said not in about["choices"]:
        raise wrong(place, f"one of {', '.join(c or repr(c) for c in about['choices'])}", value)
    if about["quantity"] and said and not _QUANTITY.fullmatch(said):
        raise wrong(place, "a quantity of Kubernetes', such as 500m, 2 or 16Gi", value)
    return said


def text(value: Any) -> str:
    """YAML knows numbers and booleans where Kubernetes and Argo want text: a cpu of 2, a label `true`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _place(where: str, path: tuple[str, ...]) -> str:
    return f"{where} ({'.'.join(path)})" if path else where


def documented(instance: Any) -> str:
    """The settings as YAML in which every field is explained above it, the first time that it comes."""
    return "".join(_lines(instance, 0, set()))


def _lines(instance: Any, depth: int, explained: set[type]) -> typing.Iterator[str]:
    indent = "  " * depth
    new = type(instance) not in explained
    explained.add(type(instance))
    for one in dataclasses.fields(instance):
        value = getattr(instance, one.name)
        about = one.metadata
        if new:
            choices = f" [{', '.join(about['choices'])}]" if about["choices"] else ""
            yield "" if depth else "\n"
            yield f"{indent}# {about['help']}{choices}\n"
        if dataclasses.is_dataclass(value):
            yield f"{indent}{one.name}:\n"
            yield from _lines(value, depth + 1, explained)
        elif isinstance(value, dict) and value and all(dataclasses.is_dataclass(v) for v in value.values()):
            yield f"{indent}{one.name}:\n"
            for name, inner in value.items():
                yield f"{indent}  {name}:\n"
                yield from _lines(inner, depth + 2, explained)
        else:
            yield f"{indent}{one.name}: {json.dumps(plain(value), ensure_ascii=False)}\n"


def plain(value: Any) -> Any:
    """Settings as JSON has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, dict | types.MappingProxyType):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, tuple | list) else value
