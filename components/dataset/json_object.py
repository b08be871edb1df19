"""Frozen dataclasses that read and write themselves as JSON objects: manifests, records, verdicts.

A subclass declares its fields once, as a dataclass with type hints; reading checks each value against its hint and
names the field that is wrong. Hints may be str, int, float, bool, Any, other `JsonObject`s, `X | None`, and lists,
tuples and dictionaries of these.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, NamedTuple, Self

from ..storage.errors import wrong

_SCALARS: dict[Any, tuple[Any, str, str]] = {
    str: (str, "a text", "texts"),
    int: (int, "a whole number that is not negative", "whole numbers"),
    float: ((int, float), "a number", "numbers"),
    bool: (bool, "true or false", "values true or false"),
}
"""Type hint → its types in JSON, and its name in messages: of one value, of several."""


AS_NULL: dict[str, Any] = {"none": None}
AS_EMPTY: dict[str, Any] = {"none": {}}
"""Metadata of a field whose None is stored, as null or as {}. By default a field that is None is left out where None is
its default."""
CLASS_KEY = {"key": "class"}
"""Metadata of a field that is stored under a name that Python reserves."""


class _Mismatch(Exception):
    """A value that is not as its type hint says. `path`: of the field, from the innermost object outwards."""

    def __init__(self, expected: str, value: Any, path: str = "") -> None:
        super().__init__(expected)
        self.expected, self.value, self.path = expected, value, path

    def inside(self, place: str) -> _Mismatch:
        """Return the same for the object that holds this one as its field or item `place`."""
        separator = "." if self.path and not self.path.startswith("[") else ""
        return _Mismatch(self.expected, self.value, f"{place}{separator}{self.path}")


class _Field(NamedTuple):
    """A field as it is stored. `none`: (the JSON value of None,), or () where None is left out."""

    name: str
    key: str
    read: Callable[[Any], Any]
    is_required: bool
    none: tuple[Any, ...]


@dataclass(frozen=True)
class JsonObject:
    """Base of frozen dataclasses that are stored as JSON objects. Keys that are no fields are ignored."""

    @classmethod
    def from_dict(cls, body: object, where: str, path: str = "") -> Self:
        """Read a JSON object; UserError names `where` and the field that is wrong, below `path`."""
        try:
            return cls._read(body)
        except _Mismatch as error:
            error = error.inside(path) if path else error
            raise wrong(f"{where} ({error.path})" if error.path else where, error.expected, error.value) from None

    @classmethod
    def _read(cls, body: object) -> Self:
        if not isinstance(body, dict):
            raise _Mismatch("an object", body)
        values = {}
        for stored in _stored_fields(cls):
            if stored.key not in body and not stored.is_required:
                continue
            value = body.get(stored.key)
            try:
                values[stored.name] = None if value in stored.none else stored.read(value)
            except _Mismatch as error:
                raise error.inside(stored.key) from None
        return cls(**values, **cls._read_others(body))

    @classmethod
    def _read_others(cls, body: dict[str, Any]) -> dict[str, Any]:
        return {}

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object, its keys in the order of the fields."""
        body = {}
        for stored in _stored_fields(type(self)):
            value = getattr(self, stored.name)
            if value is not None:
                body[stored.key] = _to_json(value)
            elif stored.none:
                body[stored.key] = stored.none[0]
        return body

    def to_json(self) -> bytes:
        """Return the bytes of the JSON object: indented, for people read it too."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


@dataclass(frozen=True)
class OpenJsonObject(JsonObject):
    """A JSON object that keeps the keys it has no fields for, as a later version may write them, in `other_fields`."""

    other_fields: dict[str, Any] = field(default_factory=dict, kw_only=True)

    @classmethod
    def _read_others(cls, body: dict[str, Any]) -> dict[str, Any]:
        keys = {stored.key for stored in _stored_fields(cls)}
        return {"other_fields": {key: value for key, value in body.items() if key not in keys}}

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | self.other_fields


_STORED_FIELDS: dict[type[JsonObject], tuple[_Field, ...]] = {}


def _stored_fields(cls: type[JsonObject]) -> tuple[_Field, ...]:
    if cls in _STORED_FIELDS:
        return _STORED_FIELDS[cls]
    hints = typing.get_type_hints(cls)
    stored = []
    for member in fields(cls):
        if member.name == "other_fields":
            continue
        is_required = member.default is MISSING and member.default_factory is MISSING
        none = (member.metadata["none"],) if "none" in member.metadata else ()
        if is_required and type(None) in typing.get_args(hints[member.name]):
            none = (None,)
        key = member.metadata.get("key", member.name)
        stored.append(_Field(member.name, key, _reader(hints[member.name]), is_required, none))
    _STORED_FIELDS[cls] = tuple(stored)
    return _STORED_FIELDS[cls]


def _to_json(value: Any) -> Any:
    if isinstance(value, JsonObject):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    return [_to_json(item) for item in value] if isinstance(value, list | tuple) else value


def _reader(hint: Any) -> Callable[[Any], Any]:
    """Return the function that checks a JSON value against a type hint and converts it; it raises _Mismatch."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value: value
    if origin in (types.UnionType, typing.Union):  # X | None
        read_value = _reader(args[0])
        return lambda value: None if value is None else read_value(value)
    if isinstance(hint, type) and issubclass(hint, JsonObject):
        return hint._read
    if origin in (list, tuple, dict):
        return _collection_reader(hint, origin, _reader(args[1 if origin is dict else 0]))
    json_type, words, _ = _SCALARS[hint]

    def read(value: Any) -> Any:
        is_valid = isinstance(value, json_type) and (hint is bool or not isinstance(value, bool))
        if not is_valid or (hint is int and value < 0):
            raise _Mismatch(words, value)
        return value

    return read


def _collection_reader(hint: Any, origin: type[Any], read_item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    json_type, has_objects, args = (dict if origin is dict else list), _has_objects(hint), typing.get_args(hint)
    length = len(args) if origin is tuple and Ellipsis not in args else None

    def read(value: Any) -> Any:
        if not isinstance(value, json_type) or length not in (None, len(value)):
            raise _Mismatch(_name(hint), value)
        items: list[tuple[Any, Any]] = []
        pairs: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            try:
                items.append((key, read_item(item)))
            except _Mismatch as error:
                if not has_objects:
                    raise _Mismatch(_name(hint), value) from None
                raise error.inside(key if origin is dict else f"[{key}]") from None
        return dict(items) if origin is dict else origin(item for _, item in items)

    return read


def _has_objects(hint: Any) -> bool:
    args = typing.get_args(hint)
    return any(_has_objects(arg) for arg in args) or (isinstance(hint, type) and issubclass(hint, JsonObject))


def _name(hint: Any, is_plural: bool = False) -> str:
    """Return what a type hint stands for in JSON, in words."""
    if hint in _SCALARS:
        return _SCALARS[hint][2 if is_plural else 1]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    item = args[-1 if origin is dict else 0] if origin in (dict, list, tuple) else Any
    name = ("objects" if is_plural else "an object") if origin is dict else ("lists" if is_plural else "a list")
    number = f"{len(args)} " if origin is tuple and Ellipsis not in args else ""
    return name if item is Any or _has_objects(hint) else f"{name} of {number}{_name(item, is_plural=True)}"
