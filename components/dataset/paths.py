"""Paths of a workspace's files, relative to it: what a file is by its place and name."""

from __future__ import annotations

import re

from ..storage import uri as uris
from .manifest import KINDS, MANIFEST
from .workspace import STEPS

POOL, WORK = "_shards", "_work"
_CONTENT_NAME = re.compile(r"[a-z_]+-[0-9a-f]{16}\.[a-z]+")
_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def is_manifest(path: str) -> bool:
    """Return whether a path is that of a dataset's manifest, `<kind>/<fingerprint>/_manifest.json`."""
    parts = path.split("/")
    return len(parts) == 3 and parts[0] in KINDS and parts[1] != POOL and parts[2] == MANIFEST


def is_name_record(path: str) -> bool:
    """Return whether a path is that of the record of a name's latest dataset or of a promotion."""
    parts = path.split("/")
    is_json = path.endswith(".json")
    return len(parts) == 4 and parts[0] == "names" and parts[2] in ("latest", "promotions") and is_json


def is_step_record(path: str) -> bool:
    """Return whether a path is that of a step's record, `runs/<run>/<step>.json`."""
    parts = path.split("/")
    return len(parts) == 3 and parts[0] == "runs" and parts[2].removesuffix(".json") in STEPS


def is_fingerprint(folder: str) -> bool:
    return _FINGERPRINT.fullmatch(folder) is not None


def is_work(path: str) -> bool:
    """Return whether a path, `<kind>/<folder>/…`, is one of work in progress."""
    return path.split("/")[2:3] == [WORK]


def is_work_record(path: str) -> bool:
    """Return whether a path is that of a record of work in progress, and not of a file that is being written."""
    return is_work(path) and path.endswith(".json") and not uris.is_hidden(path)


def has_known_name(path: str) -> bool:
    """Return whether a file is named as imagemill names files: by its content, or while it is written to disk."""
    name = uris.basename(path)
    return bool(_CONTENT_NAME.fullmatch(name) or _TEMPORARY_NAME.fullmatch(name))
