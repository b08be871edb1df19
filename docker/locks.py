"""The locked versions of the images: made here, and taken apart here while an image is built.

    python docker/locks.py make [--upgrade]      writes build.lock, cpu.lock, ray.lock, gpu.lock; needs uv
    python docker/locks.py pick LOCK [--also-in LOCK] [--not-in LOCK ...] [--without NAME ...]
    python docker/locks.py pins LOCK NAME ...    name==version of each

Each lock is `uv pip compile --generate-hashes` of pyproject's extras for one target of the Dockerfile, with all that
these need, for Python 3.11 on x86-64 Linux. All come from one resolution, so a package has one version in all images
and what images share is one layer. Only the standard library is used: the build runs this in the base image.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
CPU = ("download", "clean", "promote", "export", "container")
EXTRAS = {"cpu": CPU, "ray": (*CPU, "resize"), "gpu": (*CPU, "train")}
"""The extras of pyproject.toml that each target's lock is made from."""
BUILD = ("pip", "setuptools>=77")
"""What builds wheels and installs them; not in any image."""
CUDA = ("nvidia-", "cuda-", "triton")
"""Beginnings of the names that only a torch for CUDA asks for."""
_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)")


def read(path: str | Path) -> dict[str, str]:
    """The entries of a lock by name: the pinned line with the lines of its hashes."""
    entries: dict[str, str] = {}
    name = ""
    for line in Path(path).read_text().splitlines(keepends=True):
        if pinned := _PINNED.match(line):
            name = pinned.group(1)
            entries[name] = line
        elif name and line.startswith("    --hash="):
            entries[name] += line
    return entries


def pick(lock: str, also_in: str, not_in: Iterable[str], without: Iterable[str]) -> str:
    """The entries of `lock` that are in `also_in` too (if given), in none of `not_in`, and not named `without`."""
    shared = read(also_in) if also_in else None
    others = [read(other) for other in not_in]
    left_out = tuple(without)
    return "".join(
        text
        for name, text in read(lock).items()
        if (shared is None or name in shared)
        and not any(name in other for other in others)
        and name not in left_out
        and not any(name.startswith(beginning) for beginning in left_out if beginning in CUDA)
    )


def pins(lock: str, names: Iterable[str]) -> list[str]:
    entries = read(lock)
    return [entries[name].split()[0] for name in names]


def make(upgrade: bool) -> None:
    """Write all locks; versions stay as they are where they can, unless `upgrade`."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if not uv:
        sys.exit("locks: expected uv (pip install uv), found none")
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.lock"
        if not upgrade:
            locks = [HERE / f"{target}.lock" for target in EXTRAS]
            entries: dict[str, str] = {}
            for lock in locks:
                entries |= read(lock) if lock.exists() else {}
            whole.write_text("".join(entries.values()))  # uv goes by what the file that it writes has said before
        every = sorted({extra for extras in EXTRAS.values() for extra in extras})
        _compile(uv, whole, every, [])
        for target, extras in EXTRAS.items():
            _compile(uv, HERE / f"{target}.lock", extras, ["--constraints", str(whole)])
        build = Path(folder) / "build.in"
        build.write_text("\n".join(BUILD) + "\n")
        _compile(uv, HERE / "build.lock", [], ["--allow-unsafe"], build)


def _compile(uv: str, lock: Path, extras: Sequence[str], more: Sequence[str], source: Path | None = None) -> None:
    """One lock, from PyPI alone: no index, folder or setting of this machine's enters it."""
    said = "python docker/locks.py make"
    command = [uv, "pip", "compile", "--quiet", "--no-config", "--default-index", "https://pypi.org/simple"]
    command += ["--generate-hashes", "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
    command += ["--no-annotate", "--custom-compile-command", said, "--output-file", str(lock), *more]
    command += [word for extra in extras for word in ("--extra", extra)]
    command.append(str(source or HERE.parent / "pyproject.toml"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))}
    if lock.exists() and lock.parent == HERE:
        lock.unlink()  # the constraints say every version
    subprocess.run(command, check=True, env=environment)
    print(f"wrote {lock.name}: {len(read(lock))} packages" if lock.parent == HERE else f"resolved {len(read(lock))}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("--upgrade", action="store_true")
    picking = commands.add_parser("pick")
    picking.add_argument("lock")
    picking.add_argument("--also-in", default="")
    picking.add_argument("--not-in", action="append", default=[])
    picking.add_argument("--without", action="append", default=[])
    pinning = commands.add_parser("pins")
    pinning.add_argument("lock")
    pinning.add_argument("names", nargs="+")
    found = parser.parse_args(argv)
    if found.command == "make":
        make(found.upgrade)
    elif found.command == "pick":
        print(pick(found.lock, found.also_in, found.not_in, found.without), end="")
    else:
        print("\n".join(pins(found.lock, found.names)))


if __name__ == "__main__":
    main()
