"""The manifest: one JSON file, written last, that makes a folder of Parquet files a dataset.

A dataset without a manifest does not exist. A reader opens only the files that a manifest lists, and
records the sha256 of the manifest that it read among its own `parents`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any

from . import uri as uris
from .errors import DatasetError, UserError, wrong
from .filesystem import store_for

FORMAT, FORMAT_VERSION = "imagemill", 1
KINDS = ("raw", "clean", "tensors", "model", "evaluation")
MANIFEST = "_manifest.json"
LISTED_FROM = 20
"""So many files are looked up by a listing of their folder, which may hold others' files as well."""
_FORMS: dict[str, tuple[type[Any], str]] = {
    "str": (str, "a text"),
    "int": (int, "a whole number that is not negative"),
    "dict": (dict, "an object"),
    "Totals": (dict, "an object"),
    "tuple": (list, "a list"),
}
"""What a field of the manifest's dataclasses is in JSON, by its type, and the words for it."""


@dataclass(frozen=True)
class File:
    """One file of a dataset. `uri` is relative to the manifest's folder; `rows` is 0 for what has none."""

    uri: str
    role: str
    split: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Parent:
    """The dataset a step read, as it was: `manifest_sha256` of the very bytes."""

    uri: str
    fingerprint: str
    manifest_sha256: str


@dataclass(frozen=True)
class Totals:
    """`rows` counts kept rows; `rejected` those in files of the role `rejected` plus those dropped."""

    rows: int = 0
    bytes: int = 0
    rejected: int = 0
    by_split: dict[str, int] = field(default_factory=dict)
    by_class: dict[str, int] = field(default_factory=dict)
    by_reason: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """DESIGN's manifest. `image` is set for clean (`color`) and tensors; `extra` holds what one kind adds:
    the skipped files of raw, the metrics of an evaluation."""

    kind: str
    fingerprint: str
    parents: tuple[Parent, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    task: str = "single"
    classes: tuple[str, ...] = ()
    files: tuple[File, ...] = ()
    totals: Totals = field(default_factory=Totals)
    image: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    code_version: str = ""
    created: str = ""

    def to_json(self) -> bytes:
        """The bytes of `_manifest.json`: indented, for people read it too."""
        body = asdict(self)
        body = {"format": FORMAT, "version": FORMAT_VERSION, **body}
        body["code_version"] = self.code_version or code_version()
        body["created"] = self.created or datetime.now(UTC).isoformat(timespec="seconds")
        for optional in ("image", "extra"):
            if not body[optional]:
                del body[optional]
        return json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


@dataclass(frozen=True)
class Dataset:
    """A manifest that was read, and where: the only way to a dataset's files."""

    uri: str
    manifest: Manifest
    manifest_sha256: str

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def files(self, role: str = "data", split: str | None = None) -> list[File]:
        """The listed files of one role, and of one split where that is given."""
        return [f for f in self.manifest.files if f.role == role and split in (None, f.split)]

    def locate(self, file: File) -> str:
        """The absolute URI of a listed file."""
        return resolve(self.uri, file.uri, up=1)

    def parent_uri(self, kind: str) -> str:
        """Where the parent of one kind is; UserError when the dataset has none."""
        for parent in self.manifest.parents:
            uri = resolve(self.uri, parent.uri, up=2)
            if uri.split("/")[-2] == kind:
                return uri
        raise wrong(f"{self.uri} (its parents)", f"a {kind} dataset", [p.uri for p in self.manifest.parents])

    def as_parent(self, child_uri: str) -> Parent:
        """The record of having read this dataset, for the manifest at `child_uri`."""
        return Parent(uris.relative(self.uri, child_uri), self.fingerprint, self.manifest_sha256)

    def missing(self) -> list[str]:
        """Listed files that are gone or have another size, as messages; many files of one folder by one listing."""
        wanted = {self.locate(f): f.bytes for f in self.manifest.files}
        folders = count(uri.rpartition("/")[0] for uri in wanted)
        found: dict[str, int] = {}
        for folder, number in folders.items():
            store = store_for(folder)
            if number >= LISTED_FROM:
                found |= {entry.uri: entry.size for entry in store.list(folder) if entry.uri in wanted}
            else:
                here = (store.stat(uri) for uri in wanted if uri.rpartition("/")[0] == folder)
                found |= {entry.uri: entry.size for entry in here if entry}
        return [
            f"{uri}: expected {size} bytes, found {found.get(uri, 'none')}"
            for uri, size in wanted.items()
            if found.get(uri) != size
        ]


def resolve(base: str, relative_uri: str, up: int) -> str:
    """A manifest's relative URI made absolute. It may climb `up` folders at most, so that a manifest from
    elsewhere can't point at the rest of the machine."""
    parts = relative_uri.split("/")
    climbs = len([p for p in parts if p == ".."])
    if relative_uri.startswith("/") or "://" in relative_uri or climbs > up or any(p == ".." for p in parts[climbs:]):
        raise DatasetError(f"{base}/{MANIFEST}: {relative_uri!r} is not a relative URI inside the workspace")
    return uris.join(base, relative_uri)


@cache
def code_version() -> str:
    try:
        return metadata.version("imagemill")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


def read_dataset(uri: str, kind: str = "") -> Dataset:
    """The dataset at `uri`; UserError when none is there, is of another kind, or its manifest is no such thing."""
    found = find_dataset(uri)
    if found is None:
        raise wrong(kind or "dataset", f"the URI of a {kind or 'finished'} dataset (a folder with {MANIFEST})", uri)
    if kind and found.manifest.kind != kind:
        raise wrong(kind, f"a dataset of kind {kind}", f"{uri} of kind {found.manifest.kind}")
    return found


def place_of(uri: str, field: str) -> str:
    """The absolute place of the dataset that a user names by it or by its manifest."""
    return uris.normalize(uri, field).removesuffix(f"/{MANIFEST}")


def find_dataset(uri: str) -> Dataset | None:
    """The dataset at `uri`, or None when there is no manifest."""
    try:
        data = store_for(uri).read(uris.join(uri, MANIFEST))
    except FileNotFoundError:
        return None
    return Dataset(uri, parse_manifest(data, uris.join(uri, MANIFEST)), hashlib.sha256(data).hexdigest())


def parse_manifest(data: bytes, where: str) -> Manifest:
    """A manifest from its bytes; UserError says which field is wrong. Unknown fields are ignored."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: expected a JSON manifest, found text that is none: {error}") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise wrong(f"{where} (format)", FORMAT, body.get("format") if isinstance(body, dict) else body)
    if body.get("version") != FORMAT_VERSION:
        raise wrong(f"{where} (version)", f"{FORMAT_VERSION}; this imagemill is {code_version()}", body.get("version"))
    if body.get("kind") not in KINDS:
        raise wrong(f"{where} (kind)", f"one of {', '.join(KINDS)}", body.get("kind"))
    top = _fields(Manifest, body, where, "", optional=("image", "extra"))
    lists = {"parents": Parent, "files": File}
    for name, kind in lists.items():
        top[name] = tuple(kind(**_fields(kind, one, where, f"{name}[{n}].")) for n, one in enumerate(top[name]))
    if not all(isinstance(name, str) for name in top["classes"]):
        raise wrong(f"{where} (classes)", "a list of texts", top["classes"])
    totals = _fields(Totals, top["totals"], where, "totals.", optional=tuple(one.name for one in fields(Totals)))
    return Manifest(**{**top, "classes": tuple(top["classes"]), "totals": Totals(**totals)})


def _fields(kind: type[Any], body: Any, where: str, prefix: str, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a dataclass's fields, each of the JSON form that its type has; others are left out."""
    if not isinstance(body, dict):
        raise wrong(f"{where} ({prefix.rstrip('.')})", "an object", body)
    values = {}
    for one in fields(kind):
        if one.name not in body and one.name in optional:
            continue
        value: Any = body.get(one.name)
        annotation = str(one.type)
        form, words = _FORMS[annotation.partition("[")[0]]
        right = isinstance(value, form) and not isinstance(value, bool)
        if annotation == "dict[str, int]" and right:
            right, words = all(type(number) is int for number in value.values()), "an object of whole numbers"
        if not right or (form is int and value < 0):
            raise wrong(f"{where} ({prefix}{one.name})", words, value)
        values[one.name] = value
    return values


def commit(uri: str, manifest: Manifest) -> Dataset:
    """Write the manifest, last of all. Of several racing writers one wins, and all get the winner's dataset.

    DatasetError when files of an earlier manifest are gone and what was made now has other names (another
    version of a library writes other bytes): nothing is overwritten, so this needs a person.
    """
    first = store_for(uri).put_if_absent(uris.join(uri, MANIFEST), manifest.to_json())
    dataset = read_dataset(uri, manifest.kind)
    if not first and (missing := dataset.missing()):
        raise DatasetError(f"{missing[0]}; made again, the dataset has other files: remove {uri} and run again")
    return dataset


def ready(uri: str) -> Dataset | None:
    """The dataset at `uri` if it is committed and whole. A damaged one is None: made again, its files get
    the same names, so the work heals it; nothing is overwritten."""
    found = find_dataset(uri)
    return None if found is None or found.missing() else found


def count(values: Iterable[str]) -> dict[str, int]:
    """How often each value occurs, sorted by value."""
    totals: dict[str, int] = {}
    for value in values:
        totals[value] = totals.get(value, 0) + 1
    return dict(sorted(totals.items()))


def add_counts(*counts: dict[str, int]) -> dict[str, int]:
    """The sum of several counts, sorted by key."""
    total: dict[str, int] = {}
    for one in counts:
        for key, number in one.items():
            total[key] = total.get(key, 0) + number
    return dict(sorted(total.items()))
