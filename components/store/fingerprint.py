"""Names made of content: a dataset is named by what went into it, so equal work is done once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> bytes:
    """One byte string for one value: keys sorted, no spaces, UTF-8."""
    return _ENCODER.encode(value).encode()


def digest(value: Any) -> str:
    """The first 16 hex digits of the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def fingerprint(kind: str, version: int, parents: Sequence[str], config: Mapping[str, Any]) -> str:
    """The name of a dataset: kind, the step's version, the parents' fingerprints and the config that counts.

    `version` is raised whenever the same config must give other bytes; `config` holds only the fields that
    count and differ from their defaults, so that a new option with a default changes no name.
    """
    return digest({"kind": kind, "version": version, "parents": list(parents), "config": dict(config)})
