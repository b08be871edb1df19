"""Fingerprints: a dataset is named by a hash of everything that it was made from, so equal work is done once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


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
