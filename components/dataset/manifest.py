"""The manifest: one JSON file, written last, that makes parts and an index a dataset.

A dataset without a manifest does not exist. A reader opens only what a manifest lists: the parts, which datasets share
(`parts.py`), and the files of its own folder, such as the index. It records the sha256 of the manifest that it read
among its own `parents`. A dataset is named by its fingerprint, a hash of everything that
it was made from, so equal work is done once.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from itertools import islice
from typing import Any

from ..storage import uri as uris
from ..storage.errors import DatasetError, UserError, wrong
from ..storage.parallel import map_ordered
from ..storage.protocol import Entry
from ..storage.store import get_store
from .json_object import JsonObject
from .kinds import EXTRAS, CleanImage, Extra, ImageSpec

FORMAT, FORMAT_VERSION = "imagemill", 2
KINDS = tuple(EXTRAS)
MANIFEST = "_manifest.json"
MIN_FILES_TO_LIST = 20
"""From this number of files on, sizes are read from a listing of their folder, which may hold more files."""
MAX_LISTED_PER_FILE = 50
"""Files that are listed for each expected one at most (one request lists a thousand)."""
STAT_THREADS = 16
"""Files that are looked up at once where the listing did not name them."""
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class File(JsonObject):
    """One file of a dataset. `uri` is relative to the manifest's folder; `rows` is 0 for files without rows."""

    uri: str
    role: str
    split: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part(JsonObject):
    """One Parquet file of images, `<workspace>/parts/<kind>/<key>.parquet`, which several datasets may list.

    Attributes:
        key: a hash of everything that the file is a function of.
        rows: of the file; a dataset holds those that its index names.
        split: that of all rows, of tensors; empty where rows of several splits lie together.
    """

    key: str
    rows: int
    bytes: int
    sha256: str
    split: str = ""


@dataclass(frozen=True)
class Parent(JsonObject):
    """A dataset that a step read; `manifest_sha256` is that of the manifest's bytes as they were read."""

    uri: str
    fingerprint: str
    manifest_sha256: str


@dataclass(frozen=True)
class Totals(JsonObject):
    """`rows` counts the rows of the index, `rejected` those in files of that role, `bytes` the images' bytes."""

    rows: int = 0
    bytes: int = 0
    rejected: int = 0
    by_split: dict[str, int] = field(default_factory=dict)
    by_class: dict[str, int] = field(default_factory=dict)
    by_reason: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest(JsonObject):
    """The manifest of a dataset. `image` is set for clean, tensors and models; `extra` holds the fields of one kind:
    the skipped files of raw, the metrics of an evaluation."""

    kind: str
    fingerprint: str
    parents: tuple[Parent, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    task: str = "single"
    classes: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    files: tuple[File, ...] = ()
    totals: Totals = field(default_factory=Totals)
    image: CleanImage | ImageSpec | None = None
    extra: Extra = field(default_factory=Extra)
    code_version: str = ""
    created: str = ""

    @property
    def color(self) -> str:
        """The color of the images; empty where it is not known."""
        return self.image.color if self.image else ""

    @property
    def image_spec(self) -> ImageSpec:
        """The images of tensors, or those that a model takes; UserError for another kind."""
        if isinstance(self.image, ImageSpec):
            return self.image
        raise wrong(f"the manifest {self.fingerprint} (image)", "the shape of its images", self.image)

    def to_dict(self) -> dict[str, Any]:
        body = {"format": FORMAT, "version": FORMAT_VERSION, **super().to_dict()}
        body["code_version"] = self.code_version or code_version()
        body["created"] = self.created or datetime.now(UTC).isoformat(timespec="seconds")
        return {key: value for key, value in body.items() if key != "extra" or value}


@dataclass(frozen=True)
class Dataset:
    """A dataset's URI and its manifest as it was read: the only way to a dataset's files."""

    uri: str
    manifest: Manifest
    manifest_sha256: str

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def name(self) -> str:
        """The name of the images' source; UserError for a manifest without it."""
        name = self.manifest.extra.dataset_name
        if not name:
            raise wrong(f"{self.uri}/{MANIFEST} (extra.dataset_name)", "the name of the images' source", name)
        return name

    def files(self, role: str = "data", split: str | None = None) -> list[File]:
        """Return the listed files of one role, and of one split unless `split` is None."""
        return [f for f in self.manifest.files if f.role == role and split in (None, f.split)]

    def locate(self, file: File) -> str:
        """Return the absolute URI of a listed file."""
        return locate_file(self.uri, file)

    def parts(self, split: str | None = None) -> list[Part]:
        """Return the listed parts, those of one split unless `split` is None."""
        return [part for part in self.manifest.parts if split in (None, part.split)]

    def count_bytes(self) -> int:
        """Return the bytes of all listed files and parts."""
        files, parts = self.manifest.files, self.manifest.parts
        return sum(file.bytes for file in files) + sum(part.bytes for part in parts)

    def locate_part(self, part: Part) -> str:
        """Return the absolute URI of a listed part."""
        return uris.join(self.uri, f"../../parts/{self.manifest.kind}/{part.key}.parquet")

    def parent_uri(self, kind: str) -> str:
        """Return the absolute URI of the first parent of one kind; UserError when the dataset has none."""
        if parents := self.parent_uris(kind):
            return parents[0]
        raise wrong(f"{self.uri} (its parents)", f"a {kind} dataset", [p.uri for p in self.manifest.parents])

    def parent_uris(self, kind: str) -> list[str]:
        """Return the absolute URIs of the parents of one kind."""
        parents = (resolve_uri(self.uri, parent.uri, up=2) for parent in self.manifest.parents)
        return [uri for uri in parents if uri.split("/")[-2] == kind]

    def as_parent(self, child_uri: str) -> Parent:
        """Return this dataset as an entry of `parents` in the manifest at `child_uri`."""
        return Parent(uris.relpath(self.uri, child_uri), self.fingerprint, self.manifest_sha256)

    def missing(self) -> list[str]:
        """Return a message for each listed file or part that is gone or has another size."""
        expected = {self.locate(f): f.bytes for f in self.manifest.files}
        expected |= {self.locate_part(part): part.bytes for part in self.manifest.parts}
        entries = find_entries(expected)
        sizes = {uri: entries[uri].size if uri in entries else None for uri in expected}
        return [
            f"{uri}: expected {size} bytes, found {'none' if sizes[uri] is None else sizes[uri]}"
            for uri, size in expected.items()
            if sizes[uri] != size
        ]


def find_entries(expected: Collection[str]) -> dict[str, Entry]:
    """Return the entries, by URI, of those files that exist.

    Folders of many expected files are listed, but not to their end where most files are others, as among shared parts.
    """
    entries: dict[str, Entry] = {}
    for folder, number in count_values(uri.rpartition("/")[0] for uri in expected).items():
        if number >= MIN_FILES_TO_LIST:
            listed = islice(get_store(folder).list(folder), MAX_LISTED_PER_FILE * number)
            entries |= {entry.uri: entry for entry in listed if entry.uri in expected}
    unseen = [uri for uri in expected if uri not in entries]
    for uri, entry in zip(unseen, map_ordered(unseen, _stat, STAT_THREADS, lambda _: 0), strict=True):
        if entry:
            entries[uri] = entry
    return entries


def _stat(uri: str) -> Entry | None:
    return get_store(uri).stat(uri)


def locate_file(dataset_uri: str, file: File) -> str:
    """Return the absolute URI of a file that the manifest of a dataset lists."""
    return resolve_uri(dataset_uri, file.uri, up=1)


def resolve_uri(base: str, relative_uri: str, up: int) -> str:
    """Make a manifest's relative URI absolute. It may climb `up` folders at most, so that a manifest from
    elsewhere can't point at the rest of the machine."""
    parts = relative_uri.split("/")
    num_parents = len([p for p in parts if p == ".."])
    if relative_uri.startswith("/") or "://" in relative_uri or num_parents > up or ".." in parts[num_parents:]:
        raise DatasetError(f"{base}/{MANIFEST}: {relative_uri!r} is not a relative URI inside the workspace")
    return uris.join(base, relative_uri)


@cache
def code_version() -> str:
    try:
        return metadata.version("imagemill")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


def read_dataset(uri: str, kind: str = "") -> Dataset:
    """Read the dataset at `uri`; UserError when there is none, it is of another kind, or its manifest is invalid."""
    dataset = find_dataset(uri)
    if dataset is None:
        raise wrong(kind or "dataset", f"the URI of a {kind or 'finished'} dataset (a folder with {MANIFEST})", uri)
    if kind and dataset.manifest.kind != kind:
        raise wrong(kind, f"a dataset of kind {kind}", f"{uri} of kind {dataset.manifest.kind}")
    return dataset


def normalize_dataset_uri(uri: str, field: str) -> str:
    """Return the absolute URI of a dataset that a user names by its folder or by its manifest."""
    return uris.normalize(uri, field).removesuffix(f"/{MANIFEST}")


def find_dataset(uri: str) -> Dataset | None:
    """Read the dataset at `uri`; None when there is no manifest."""
    try:
        data = get_store(uri).read(uris.join(uri, MANIFEST))
    except FileNotFoundError:
        return None
    return Dataset(uri, parse_manifest(data, uris.join(uri, MANIFEST)), hashlib.sha256(data).hexdigest())


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Parse a manifest; UserError says which field is wrong. Unknown fields are ignored."""
    body = parse_json(data, where)
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise wrong(f"{where} (format)", FORMAT, body.get("format") if isinstance(body, dict) else body)
    if body.get("version") != FORMAT_VERSION:
        raise wrong(f"{where} (version)", f"{FORMAT_VERSION}; this imagemill is {code_version()}", body.get("version"))
    if body.get("kind") not in KINDS:
        raise wrong(f"{where} (kind)", f"one of {', '.join(KINDS)}", body.get("kind"))
    for member in fields(Manifest):
        if member.name not in ("image", "extra"):
            body.setdefault(member.name, None)  # from_dict names a missing one
    image, extra = body.pop("image", None), body.pop("extra", None)
    manifest = Manifest.from_dict(body, where)
    if image is not None:
        image = (CleanImage if manifest.kind == "clean" else ImageSpec).from_dict(image, where, "image")
    if extra is not None:
        return replace(manifest, image=image, extra=EXTRAS[manifest.kind].from_dict(extra, where, "extra"))
    return replace(manifest, image=image)


def parse_json(data: bytes, where: str) -> Any:
    """Parse JSON; UserError, which names `where`, for anything else."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: expected JSON, found text that is none: {error}") from None


def commit(uri: str, manifest: Manifest) -> Dataset:
    """Write the manifest, last of all. Of several racing writers one wins, and all get the winner's dataset.

    DatasetError when files of an earlier manifest are gone and those written now have other names (another
    version of a library writes other bytes): a manifest is never replaced, so this needs a person.
    """
    is_first = get_store(uri).put_if_absent(uris.join(uri, MANIFEST), manifest.to_json())
    dataset = read_dataset(uri, manifest.kind)
    if not is_first and (missing := dataset.missing()):
        raise DatasetError(f"{missing[0]}; made again, the dataset has other files: remove {uri} and run again")
    return dataset


def find_intact_dataset(uri: str) -> Dataset | None:
    """Read the dataset at `uri` if it is committed and complete.

    None for a damaged one as well: made again, its files get the same names and bytes, which repairs it.
    """
    dataset = find_dataset(uri)
    return None if dataset is None or dataset.missing() else dataset


def count_values(values: Iterable[str]) -> dict[str, int]:
    """Return the number of occurrences of each value, sorted by value."""
    return dict(sorted(Counter(values).items()))


def canonical_json(value: Any) -> bytes:
    """Encode a value as JSON with sorted keys and no spaces, so that equal values give equal bytes."""
    return _ENCODER.encode(value).encode()


def digest(value: Any) -> str:
    """Return the first 16 hex digits of the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def fingerprint(kind: str, version: int, parents: Sequence[str], config: Mapping[str, Any]) -> str:
    """Return the name of a dataset: of kind, the step's version, the parents' fingerprints and the config that counts.

    `version` is raised whenever the same config must give other bytes; `config` holds only the fields that
    count and differ from their defaults, so that a new option with a default changes no name.
    """
    return digest({"kind": kind, "version": version, "parents": list(parents), "config": dict(config)})
