"""Kustomizations of k8s/ as `kubectl kustomize` renders them; without kubectl tests of them are skipped."""

from __future__ import annotations

import copy
import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

Json = dict[str, Any]
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def render(folder: Path) -> list[Json]:
    """Return the documents of a kustomization, free to be changed."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    return copy.deepcopy(_render(folder.resolve()))


@functools.cache
def _render(folder: Path) -> list[Json]:
    command = ["kubectl", "kustomize", str(folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [document for document in yaml.load_all(text, Loader=_LOADER) if document]


def key(document: Json) -> tuple[str, str, str]:
    """Return the identity of a document, unique in a cluster."""
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]
