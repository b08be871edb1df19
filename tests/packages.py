"""Helpers for tests of compiled packages: images by digest, and the documents of a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
IMAGES = {
    name: f"registry.example/mill/{name}@sha256:{str(digit) * 64}"
    for name, digit in (("cpu", 1), ("ray", 2), ("gpu", 3))
}


def documents(path: Path) -> tuple[Json, Json]:
    spec, platform = yaml.safe_load_all(path.read_text())
    return spec, platform
