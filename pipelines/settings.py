"""Nested frozen dataclasses as YAML: read with errors that name the field, and written with every field explained.

The cluster file is read and written this way; the steps' configs have flags of their own.
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

from ..components.storage.errors import wrong

S = TypeVar("S")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_FACTORS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_FACTORS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

MAX_INT = 2**31 - 1
"""Kubernetes and Argo hold most whole numbers in 32 bits."""
_ANY_TEXT: Mapping[str, Any] = {"choices": (), "quantity": False}
"""The metadata of a text of any form."""


def setting(default: Any, help: str, *, choices: tuple[str, ...] = (), quantity: bool = False) -> Any:
    """Declare a field, as `dataclasses.field` does. `quantity`: a Kubernetes quantity, such as 500m or 2Gi; the empty
    string is unset.

    `default`: a value, or for a mapping, a list or a group of settings its factory (`dict`, `tuple`, a class).
    """
    metadata = {"help": help, "choices": choices, "quantity": quantity}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def parse_quantity(quantity: str) -> float:
    """Return a Kubernetes quantity as a number of bytes or cores."""
    number = re.match(r"[\d.]+", quantity)
    assert number, quantity
    return float(number.group()) * _FACTORS[quantity[number.end() :]]


def override(base: S, values: Any, where: str) -> S:
    """Return `base` with the values that parsed YAML sets; UserError names the field of the file `where`.

    Groups and fields that are left out stay as they are in `base`.
    """
    return _override_group(base, {} if values is None else values, where, ())


def _override_group(base: S, values: Any, where: str, path: tuple[str, ...]) -> S:
    if not isinstance(values, Mapping):
        raise wrong(_place(where, path), "names and values", values)
    hints = typing.get_type_hints(type(base))
    fields = {setting.name: setting for setting in dataclasses.fields(base)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            matches = difflib.get_close_matches(str(key), list(fields), 1)
            hint = f"; is it {matches[0]}?" if matches else ""
            raise wrong(_place(where, (*path, str(key))), f"one of {', '.join(fields)}{hint}", key)
        changes[key] = _convert(hints[key], fields[key].metadata, getattr(base, key), value, where, (*path, str(key)))
    result = dataclasses.replace(base, **changes)  # type: ignore[type-var]
    if check := getattr(result, "check", None):
        check(lambda *names: _place(where, (*path, *names)))
    return result


def _convert(
    kind: Any, metadata: Mapping[str, Any], base: Any, value: Any, where: str, path: tuple[str, ...]
) -> Any:  # fmt: skip
    place = _place(where, path)
    if dataclasses.is_dataclass(kind):
        return _override_group(base, {} if value is None else value, where, path)
    if typing.get_origin(kind) is dict:
        inner = typing.get_args(kind)[1]
        if not isinstance(value, Mapping):
            raise wrong(place, "names and values", value)
        if not dataclasses.is_dataclass(inner):
            return {
                _convert_name(key, place): _convert_scalar(str, _ANY_TEXT, entry, _place(where, (*path, str(key))))
                for key, entry in value.items()
            }
        groups = {
            str(key): _override_group(
                base.get(key) or typing.cast(Callable[[], Any], inner)(),
                {} if group is None else group,
                where,
                (*path, str(key)),
            )
            for key, group in value.items()
        }
        return {**base, **groups}
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise wrong(place, "a list", value)
        return tuple(_convert_element(typing.get_args(kind)[0], element, place) for element in value)
    return _convert_scalar(kind, metadata, value, place)


def _convert_element(kind: Any, value: Any, place: str) -> Any:
    """Return an element of a list: a text, or names and values, in which YAML's booleans become texts."""
    if kind is str:
        if not isinstance(value, str):
            raise wrong(place, "a list of texts", value)
        return value
    if not isinstance(value, Mapping):
        raise wrong(place, "a list of names and values", value)
    return {
        _convert_name(key, place): to_text(entry) if isinstance(entry, bool) else entry for key, entry in value.items()
    }


def _convert_name(key: Any, place: str) -> str:
    # YAML parses a name such as on, null or 2026-01-01 as something else than a text.
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise wrong(place, "names that are texts (in quotes where YAML takes them for something else)", key)
    return str(key)


def _convert_scalar(kind: type, metadata: Mapping[str, Any], value: Any, place: str) -> Any:
    if kind is bool:
        if not isinstance(value, bool):
            raise wrong(place, "true or false", value)
        return value
    if kind is int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise wrong(place, "a whole number of at least 0", value)
        if value > MAX_INT:
            raise wrong(place, f"a whole number of at most {MAX_INT}", value)
        return value
    if isinstance(value, Mapping | list) or value is None:
        raise wrong(place, "a text", value)
    text = to_text(value)
    if metadata["choices"] and text not in metadata["choices"]:
        raise wrong(place, f"one of {', '.join(choice or repr(choice) for choice in metadata['choices'])}", value)
    if metadata["quantity"] and text and not _QUANTITY.fullmatch(text):
        raise wrong(place, "a quantity of Kubernetes', such as 500m, 2 or 16Gi", value)
    return text


def to_text(value: Any) -> str:
    """Return a YAML scalar as Kubernetes and Argo want it: as text, also a cpu of 2 or a label `true`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _place(where: str, path: tuple[str, ...]) -> str:
    return f"{where} ({'.'.join(path)})" if path else where


def dump_documented(instance: Any) -> str:
    """Return settings as YAML in which a comment above each field, where it first appears, explains it."""
    return "".join(_dump_lines(instance, 0, set()))


def _dump_lines(instance: Any, depth: int, explained: set[type]) -> typing.Iterator[str]:
    indent = "  " * depth
    is_first = type(instance) not in explained
    explained.add(type(instance))
    for setting in dataclasses.fields(instance):
        value = getattr(instance, setting.name)
        if is_first:
            choices = f" [{', '.join(setting.metadata['choices'])}]" if setting.metadata["choices"] else ""
            yield "" if depth else "\n"
            yield f"{indent}# {setting.metadata['help']}{choices}\n"
        if dataclasses.is_dataclass(value):
            yield f"{indent}{setting.name}:\n"
            yield from _dump_lines(value, depth + 1, explained)
        elif isinstance(value, dict) and value and all(dataclasses.is_dataclass(v) for v in value.values()):
            yield f"{indent}{setting.name}:\n"
            for name, inner in value.items():
                yield f"{indent}  {name}:\n"
                yield from _dump_lines(inner, depth + 2, explained)
        else:
            yield f"{indent}{setting.name}: {json.dumps(to_plain(value), ensure_ascii=False)}\n"


def to_plain(value: Any) -> Any:
    """Return settings as the dicts, lists and scalars that JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {setting.name: to_plain(getattr(value, setting.name)) for setting in dataclasses.fields(value)}
    if isinstance(value, dict | types.MappingProxyType):
        return {key: to_plain(inner) for key, inner in value.items()}
    return [to_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
