"""Our images, built here once for each state of what they are made from, on a base that needs no registry.

`python tests/images.py` builds them all as imagemill-cpu:dev, imagemill-ray:dev and imagemill-gpu:dev. The base is
IMAGEMILL_TEST_BASE_IMAGE, if that is set; else Python on Debian bookworm, made by mmdebstrap with this machine's
certificates in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import docker_engine

BASE = "imagemill-test-base"
_CERTIFICATES = Path("/usr/local/share/ca-certificates")
_HOOK = f"mkdir -p $1{_CERTIFICATES} && cp {_CERTIFICATES}/*.crt $1{_CERTIFICATES}/ && chroot $1 update-ca-certificates"


def missing() -> str:
    """Return why the images can't be built here; empty if they can."""
    if reason := docker_engine.missing():
        return reason
    words, environment = ["docker", "build", "--help"], os.environ | {"DOCKER_BUILDKIT": "1"}
    if "--secret" not in subprocess.run(words, env=environment, capture_output=True, text=True, check=False).stdout:
        return "no BuildKit here: the first docker on PATH lacks it; install its plugin buildx"
    if os.environ.get("IMAGEMILL_TEST_BASE_IMAGE") or docker_engine.is_there(BASE):
        return ""
    if not shutil.which("mmdebstrap") or os.geteuid():
        return (
            "no base image here: mmdebstrap (Debian's package) run by root makes one, or set IMAGEMILL_TEST_BASE_IMAGE"
        )
    return ""


@cache
def base() -> str:
    """The base image; made, in half a minute, where it is not there yet."""
    base_image = os.environ.get("IMAGEMILL_TEST_BASE_IMAGE", "")
    if base_image or docker_engine.is_there(BASE):
        return base_image or BASE
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates,python3,python3-venv"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("man", "locale", "doc")]
    command += [f"--customize-hook={_HOOK}"] if any(_CERTIFICATES.glob("*.crt")) else []
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "base.tar"
        subprocess.run([*command, "bookworm", str(archive)], check=True)
        with archive.open("rb") as data:
            docker_engine.client().api.import_image_from_stream(data, repository=BASE, tag="latest")
    return BASE


def command(*words: str) -> list[str]:
    """`imagemill images build` on that base. The network is the machine's, as proxies on loopback ask for."""
    start = [sys.executable, "-m", "imagemill.pipelines.cli", "images", "build"]
    return [*start, "--base-image", base(), "--network", "host", *words]


@cache
def built(targets: Sequence[str] = docker_engine.TARGETS, tag: str = "dev") -> dict[str, str]:
    """Target → image, of this checkout; only what has changed since the last time is built."""
    subprocess.run(command("--no-push", "--tag", tag, "--only", ",".join(targets)), check=True, stdout=sys.stderr)
    return {target: f"imagemill-{target}:{tag}" for target in targets}


if __name__ == "__main__":
    if reason := missing():
        sys.exit(reason)
    print("\n".join(built().values()))
