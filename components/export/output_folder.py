"""Output folder of an export: claimed while it is empty, filled in any order, and marked as finished last.

`_export.started.json` names the export that the unfinished files belong to: the same export continues there, any other
is refused. `_export.json` marks it as finished. Files of anything else are never overwritten or deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dataset.json_object import JsonObject
from ..storage import uri as uris
from ..storage.errors import MillError, TransientError, UserError, wrong
from ..storage.protocol import Store
from ..storage.store import get_store, hash_file, hash_object

FORMAT = "imagemill-export"
MARKER, STARTED = "_export.json", "_export.started.json"
_SCRATCH_PATH = re.compile(r"(^|/)\.scratch-")
_TEMPORARY_PATH = re.compile(r"(^|/)\.[^/]+\.[0-9a-f]{12}\.tmp$")
_LOCK = ".lock"


@dataclass(frozen=True)
class ExportedFile(JsonObject):
    """A published file: its path below the output, its split (empty for none), rows, bytes and sha256."""

    path: str
    split: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportIdentity(JsonObject):
    """The values that decide every byte of an export, besides the versions of the libraries. `shard_bytes` is None for
    a format without shards."""

    export: str
    export_version: int
    kind: str
    fingerprint: str
    manifest_sha256: str
    shard_bytes: int | None = None

    def __str__(self) -> str:
        shards = "" if self.shard_bytes is None else f" in shards of {self.shard_bytes} bytes"
        return f"an export {self.export}{shards} of {self.kind} {self.fingerprint}"


@dataclass(frozen=True)
class ExportTotals(JsonObject):
    """Images, files and bytes of an export."""

    rows: int
    files: int
    bytes: int


@dataclass(frozen=True)
class SplitFiles(JsonObject):
    """Images and listed files of a split."""

    rows: int
    files: list[str]


@dataclass(frozen=True)
class ExportMarker(JsonObject):
    """The contents of `_export.json`.

    Args:
        dataset: URI of the dataset that was exported, without credentials.
        image: as in the manifest.
        files: all files, or, for imagefolder, its tables, which list the image files.
        notes: facts to report, by name.
    """

    identity: ExportIdentity
    dataset: str
    task: str
    classes: tuple[str, ...]
    image: dict[str, Any]
    files: tuple[ExportedFile, ...]
    totals: ExportTotals
    by_split: dict[str, SplitFiles]
    notes: dict[str, Any]
    format: str = FORMAT


class OutputFolder:
    """A folder or s3:// prefix that one export fills. Safe to use from several threads."""

    def __init__(self, uri: str, identity: ExportIdentity) -> None:
        self.uri, self._identity = uri, identity
        self._store: Store = get_store(uri)
        self._resumed = False

    def read_marker(self) -> ExportMarker | None:
        """Return the marker of this export, or None if it is not finished; UserError for another export's."""
        marker = self._read(MARKER)
        if marker is None:
            return None
        if marker.get("format") != FORMAT or _read_identity(marker) != self._identity:
            raise wrong("--output", "an empty place, or this export", f"{self.uri} with {_describe(marker)}")
        return ExportMarker.from_dict(marker, uris.join(self.uri, MARKER))

    def is_complete(self, marker: ExportMarker) -> bool:
        """Return whether the files that a marker lists exist in their size, and as many others as it counts."""
        listed, files, total_bytes = {file.path: file.bytes for file in marker.files}, 0, 0
        for entry in self._store.list(self.uri):
            path = self._relative_path(entry.uri)
            if path in (MARKER, STARTED) or _is_leftover(path):
                continue
            if listed.pop(path, entry.size) != entry.size:
                return False
            files, total_bytes = files + 1, total_bytes + entry.size
        totals = marker.totals
        all_listed = len(marker.files) == totals.files
        return not listed and (all_listed or (files, total_bytes) == (totals.files, totals.bytes))

    def claim(self) -> None:
        """Claim the folder for this export; UserError if it holds anything else."""
        started = self._read(STARTED)
        if started is None and self._read(MARKER) is None:
            for entry in self._store.list(self.uri):
                if not _is_leftover(self._relative_path(entry.uri)):
                    raise wrong("--output", "an empty place, or this export", f"{self.uri} with {entry.uri}")
            data = _to_json({"identity": self._identity.to_dict()})
            is_first = self._store.put_if_absent(uris.join(self.uri, STARTED), data)
            started = None if is_first else self._read(STARTED)
        self._resumed = started is not None or self._read(MARKER) is not None
        if started is not None and _read_identity(started) != self._identity:
            raise wrong(
                "--output", "an empty place, or this export",
                f"{self.uri} with {_describe(started)}, unfinished (to have it gone, remove the place)",
            )  # fmt: skip

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Make a scratch folder for unfinished files, after removing those of killed exports.

        TransientError if another export is writing to the same output now.
        """
        path = self._store.scratch(self.uri)
        try:
            with (path / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not uris.is_s3(self.uri):
                    self._remove_leftovers(path)
                yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _remove_leftovers(self, own_scratch: Path) -> None:
        for scratch in own_scratch.parent.glob(".scratch-*"):
            if scratch == own_scratch:
                continue
            if not _is_abandoned(scratch):
                raise TransientError(f"{self.uri}: another export is writing there")
            shutil.rmtree(scratch, ignore_errors=True)
        if self._resumed:
            for entry in self._store.list(self.uri):
                if _TEMPORARY_PATH.search(self._relative_path(entry.uri)):
                    self._store.discard(entry.uri)

    def publish(self, path: Path, name: str, split: str, rows: int) -> ExportedFile:
        """Publish a finished local file as `name`. A file of an earlier attempt is kept if it has the same sha256."""
        uri, sha256, size = uris.join(self.uri, name), hash_file(path), path.stat().st_size
        existing = self._store.stat(uri) if self._resumed else None
        if existing and (existing.size != size or hash_object(uri) != sha256):
            self._store.discard(uri)
            existing = self._store.stat(uri)
            if existing and existing.size == size:
                raise UserError(f"{uri}: expected this export's file, found another that can't be replaced; remove it")
            existing = None
        if not existing:
            self._store.publish(path, uri)
        return ExportedFile(name, split, rows, size, sha256)

    def put(self, name: str, data: bytes, split: str = "", rows: int = 0) -> ExportedFile:
        """Write a small file in one request."""
        self._store.put(uris.join(self.uri, name), data)
        return ExportedFile(name, split, rows, len(data), hashlib.sha256(data).hexdigest())

    def finish(self, marker: ExportMarker) -> None:
        """Write the marker, after all other files."""
        data = _to_json(marker.to_dict())
        if not self._store.put_if_absent(uris.join(self.uri, MARKER), data) and self._read(MARKER) != json.loads(data):
            raise MillError(f"{self.uri}: made again, the export has other bytes: remove it and run again")
        self._store.discard(uris.join(self.uri, STARTED))

    def _relative_path(self, uri: str) -> str:
        return uri[len(self.uri.rstrip("/")) + 1 :]

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            value = json.loads(self._store.read(uris.join(self.uri, name)))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            value = {}
        return value if isinstance(value, dict) else {}


def _is_leftover(path: str) -> bool:
    """Return whether a path is a scratch or temporary file, as a killed export leaves them."""
    return bool(_SCRATCH_PATH.search(path) or _TEMPORARY_PATH.search(path))


def _is_abandoned(scratch: Path) -> bool:
    """Return whether the process that made a scratch folder has ended, so that its lock is free."""
    try:
        with (scratch / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # gone meanwhile, or its owner is about to make the lock
        return not scratch.exists()
    return True


def _read_identity(marker: dict[str, Any]) -> ExportIdentity | None:
    """Return the identity in the contents of a marker; None where it is no export's."""
    try:
        return ExportIdentity.from_dict(marker.get("identity"), MARKER)
    except UserError:
        return None


def _describe(marker: dict[str, Any]) -> str:
    return str(_read_identity(marker) or "what is no export of imagemill's")


def _to_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=True, sort_keys=True).encode() + b"\n"
