"""Where an export goes: an empty place that is claimed first, filled in any order, and marked as finished last.

`_export.started.json` says whose unfinished files these are, so that the same export goes on and any other is told;
`_export.json` makes them an export. Nothing that is not of this export is overwritten or deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store import uri as uris
from ..store.errors import MillError, TransientError, UserError, wrong
from ..store.filesystem import Store, get_store, hash_file

FORMAT = "imagemill-export"
MARKER, STARTED = "_export.json", "_export.started.json"
_LEFT_SCRATCH = re.compile(r"(^|/)\.scratch-")
_LEFT_TEMPORARY = re.compile(r"(^|/)\.[^/]+\.[0-9a-f]{12}\.tmp$")
_LOCK = ".lock"
_PIECE = 8 * 2**20


@dataclass(frozen=True)
class Written:
    """A published file: `path` below the output, its split or nothing, its rows, bytes and sha256."""

    path: str
    split: str
    rows: int
    bytes: int
    sha256: str


class Place:
    """A folder or s3:// prefix that one export may fill. Safe to use from several threads."""

    def __init__(self, uri: str, identity: dict[str, Any]) -> None:
        self.uri, self._identity = uri, identity
        self._store: Store = get_store(uri)
        self._resumed = False

    def finished(self) -> dict[str, Any] | None:
        """The marker of this very export, or None when there is none yet; UserError for another export's."""
        about = self._read(MARKER)
        if about is None:
            return None
        if about.get("format") != FORMAT or about.get("identity") != self._identity:
            raise wrong("--output", "an empty place, or this export", f"{self.uri} with {_described(about)}")
        return about

    def whole(self, about: dict[str, Any]) -> bool:
        """Whether everything that a marker tells of is there, by number and size."""
        listed = {one["path"]: one["bytes"] for one in about["files"]}
        loose, loose_bytes = 0, 0
        for entry in self._store.list(self.uri):
            path = self._below(entry.uri)
            if path in listed:
                if listed.pop(path) != entry.size:
                    return False
            elif path not in (MARKER, STARTED) and not _is_left(path):
                loose, loose_bytes = loose + 1, loose_bytes + entry.size
        wanted = about["loose"]["files"], about["loose"]["bytes"]
        return not listed and (wanted == (0, 0) or (loose, loose_bytes) == wanted)

    def claim(self) -> None:
        """Make the place this export's; UserError when it holds something else."""
        begun = self._read(STARTED)
        if begun is None and self._read(MARKER) is None:
            for entry in self._store.list(self.uri):
                if not _is_left(self._below(entry.uri)):
                    raise wrong("--output", "an empty place, or this export", f"{self.uri} with {entry.uri}")
            first = self._store.put_if_absent(uris.join(self.uri, STARTED), _json({"identity": self._identity}))
            begun = None if first else self._read(STARTED)
        self._resumed = begun is not None or self._read(MARKER) is not None
        if begun is not None and begun.get("identity") != self._identity:
            raise wrong(
                "--output", "an empty place, or this export",
                f"{self.uri} with {_described(begun)}, unfinished (to have it gone, remove the place)",
            )  # fmt: skip

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for files that are being made. What a killed export left of such is removed first.

        TransientError when another export is being made in the same folder right now.
        """
        path = self._store.scratch(self.uri)
        try:
            with (path / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not uris.is_s3(self.uri):
                    self._tidy(path)
                yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _tidy(self, mine: Path) -> None:
        for other in mine.parent.glob(".scratch-*"):
            if other != mine and not _is_dead(other):
                raise TransientError(f"{self.uri}: another export is writing there")
            if other != mine:
                shutil.rmtree(other, ignore_errors=True)
        if self._resumed:
            for entry in self._store.list(self.uri):
                if _LEFT_TEMPORARY.search(self._below(entry.uri)):
                    self._store.discard(entry.uri)

    def publish(self, path: Path, name: str, split: str, rows: int) -> Written:
        """Move a finished local file to its place. What an earlier try left there is believed by its sha256 only."""
        uri, sha256, size = uris.join(self.uri, name), hash_file(path), path.stat().st_size
        there = self._store.stat(uri) if self._resumed else None
        if there and (there.size != size or self._sha256(uri) != sha256):
            self._store.discard(uri)
            there = self._store.stat(uri)
            if there and there.size == size:
                raise UserError(f"{uri}: expected this export's file, found another that can't be replaced; remove it")
            there = None
        if not there:
            self._store.publish(path, uri)
        return Written(name, split, rows, size, sha256)

    def put(self, name: str, data: bytes, split: str = "", rows: int = 0) -> Written:
        """A small file, as a whole."""
        self._store.put(uris.join(self.uri, name), data)
        return Written(name, split, rows, len(data), hashlib.sha256(data).hexdigest())

    def finish(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Write the marker, last of all, and return it."""
        data = _json({"format": FORMAT, "identity": self._identity, **about})
        marker: dict[str, Any] = json.loads(data)
        if not self._store.put_if_absent(uris.join(self.uri, MARKER), data) and self._read(MARKER) != marker:
            raise MillError(f"{self.uri}: made again, the export has other bytes: remove it and run again")
        self._store.discard(uris.join(self.uri, STARTED))
        return marker

    def _sha256(self, uri: str) -> str:
        digest = hashlib.sha256()
        with self._store.open(uri) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        return digest.hexdigest()

    def _below(self, uri: str) -> str:
        return uri[len(self.uri.rstrip("/")) + 1 :]

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads(self._store.read(uris.join(self.uri, name)))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            found = {}
        return found if isinstance(found, dict) else {}


def _is_left(path: str) -> bool:
    """Of a killed export, and nobody's."""
    return bool(_LEFT_SCRATCH.search(path) or _LEFT_TEMPORARY.search(path))


def _is_dead(scratch: Path) -> bool:
    """Nobody holds its lock: the process that made it has ended."""
    try:
        with (scratch / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # gone meanwhile, or its owner is about to make the lock
        return not scratch.exists()
    return True


def _described(about: dict[str, Any]) -> str:
    identity = about.get("identity")
    if not isinstance(identity, dict):
        return "what is no export of imagemill's"
    shards = f" in shards of {identity['shard_bytes']} bytes" if "shard_bytes" in identity else ""
    return f"an export {identity.get('export')}{shards} of {identity.get('kind')} {identity.get('fingerprint')}"


def _json(about: dict[str, Any]) -> bytes:
    return json.dumps(about, indent=1, ensure_ascii=True, sort_keys=True).encode() + b"\n"
