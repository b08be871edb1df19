"""Is there a Docker engine, and are our images there? What is missing is said exactly; nothing is started here."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TARGETS = ("cpu", "ray", "gpu")
TAG = os.environ.get("IMAGEMILL_TEST_TAG", "dev")
"""Which of our images are tested."""
PACKAGE = "/opt/imagemill/lib/python3.11/site-packages/imagemill"
_ROOT = Path(__file__).parents[1]


@cache
def missing() -> str:
    """Return why no container can be started here; empty if one can."""
    try:
        import docker
    except ImportError:
        return "no Docker here: the Python package docker is missing (pip install 'imagemill[pipelines]')"
    try:
        client().ping()
    except Exception as error:  # whatever keeps it from answering is what is missing
        if not isinstance(error, docker.errors.DockerException | OSError):
            raise
        return f"no Docker engine answers here: {error} (Debian: apt-get install docker.io, then dockerd)"
    return ""


def client() -> Any:
    import docker

    return docker.from_env()


def require(targets: Sequence[str] = (), tag: str = TAG) -> None:
    """Skip the test, saying what is missing: an engine, or images of ours by this tag."""
    if reason := missing():
        pytest.skip(reason)
    absent = [name for name in (f"imagemill-{target}:{tag}" for target in targets) if not is_there(name)]
    if absent:
        pytest.skip(f"no image {', '.join(absent)} here; imagemill images build --no-push --tag {tag} makes them")


def is_there(image: str) -> bool:
    import docker

    try:
        client().images.get(image)
    except docker.errors.ImageNotFound:
        return False
    return True


def with_this_code(targets: Sequence[str] = TARGETS, tag: str = TAG) -> dict[str, str]:
    """The images with their last layer made anew: this checkout's code. Target → image, tagged `test-<hash>`.

    They are made in a second, where building the images takes minutes; all that is below is theirs.
    """
    require(targets, tag)
    code = _context("")
    images = {}
    for target in targets:
        base_image = f"imagemill-{target}:{tag}"
        key = hashlib.sha256(code + client().images.get(base_image).id.encode()).hexdigest()[:12]
        images[target] = f"imagemill-{target}:test-{key}"
        if not is_there(images[target]):
            text = f"FROM {base_image}\nCOPY components {PACKAGE}/components\nCOPY pipelines {PACKAGE}/pipelines\n"
            client().images.build(fileobj=io.BytesIO(_context(text)), custom_context=True, tag=images[target], rm=True)
    return images


def _context(dockerfile: str) -> bytes:
    """A build context: the package's files, always the same bytes for the same code."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in _package_files():
            entry = tarfile.TarInfo(str(path.relative_to(_ROOT)))
            data = path.read_bytes()
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile)
        archive.addfile(entry, io.BytesIO(dockerfile.encode()))
    return buffer.getvalue()


def _package_files() -> Iterator[Path]:
    for folder in ("components", "pipelines"):
        for path in sorted((_ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path
