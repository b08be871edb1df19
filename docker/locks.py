"""Make the lock files of the images, and select entries of them while an image is built.

    python docker/locks.py make [--upgrade]      writes build.lock, cpu.lock, ray.lock, gpu.lock; needs uv
    python docker/locks.py pick LOCK [--also-in LOCK] [--not-in LOCK ...] [--without NAME ...]
    python docker/locks.py pins LOCK NAME ...    name==version of each

Each lock is `uv pip compile --generate-hashes` of pyproject's extras for one target of the Dockerfile, with their
dependencies, for Python 3.11 on x86-64 Linux. All come from one resolution, so a package has the same version in all
images, and images share layers. Only the standard library is used: the build runs this file in the base image.
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
EXTRAS = {"cpu": CPU, "ray": (*CPU, "resize", "predict"), "gpu": (*CPU, "train")}
"""The extras of pyproject.toml that each target's lock is made from."""
BUILD = ("pip", "setuptools>=77")
"""Packages that build and install wheels; they are in no image."""
CUDA = ("nvidia-", "cuda-", "triton")
"""Prefixes of the names of packages that only PyTorch for CUDA depends on."""
_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)")


def read_lock(path: str | Path) -> dict[str, str]:
    """Return the entries of a lock by name: the pinned line with the lines of its hashes."""
    entries: dict[str, str] = {}
    name = ""
    for line in Path(path).read_text().splitlines(keepends=True):
        if match := _PINNED.match(line):
            name = match.group(1)
            entries[name] = line
        elif name and line.startswith("    --hash="):
            entries[name] += line
    return entries


def pick(lock: str, also_in: str, not_in: Iterable[str], without: Iterable[str]) -> str:
    """Return the entries of `lock` that are in the lock `also_in` too (if given), in no lock of `not_in`, and not named
    in `without`; there, a prefix of `CUDA` excludes all names that begin with it."""
    shared = read_lock(also_in) if also_in else None
    others = [read_lock(other) for other in not_in]
    excluded = tuple(without)
    prefixes = tuple(name for name in excluded if name in CUDA)
    return "".join(
        text
        for name, text in read_lock(lock).items()
        if (shared is None or name in shared)
        and not any(name in other for other in others)
        and name not in excluded
        and not name.startswith(prefixes)
    )


def list_pins(lock: str, names: Iterable[str]) -> list[str]:
    """Return `name==version` of each name."""
    entries = read_lock(lock)
    return [entries[name].split()[0] for name in names]


def make(upgrade: bool) -> None:
    """Write all locks; without `upgrade` existing versions are kept where possible."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if not uv:
        sys.exit("locks: expected uv (pip install uv), found none")
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.lock"
        if not upgrade:
            locks = [HERE / f"{target}.lock" for target in EXTRAS]
            entries: dict[str, str] = {}
            for lock in locks:
                entries |= read_lock(lock) if lock.exists() else {}
            whole.write_text("".join(entries.values()))  # uv prefers the versions in its existing output file
        all_extras = sorted({extra for extras in EXTRAS.values() for extra in extras})
        _compile(uv, whole, all_extras, [])
        for target, extras in EXTRAS.items():
            _compile(uv, HERE / f"{target}.lock", extras, ["--constraints", str(whole)])
        build = Path(folder) / "build.in"
        build.write_text("\n".join(BUILD) + "\n")
        _compile(uv, HERE / "build.lock", [], ["--allow-unsafe"], build)


def _compile(uv: str, lock: Path, extras: Sequence[str], options: Sequence[str], source: Path | None = None) -> None:
    """Write one lock, from PyPI alone: no index, folder or setting of this machine affects it."""
    shown_command = "python docker/locks.py make"
    command = [uv, "pip", "compile", "--quiet", "--no-config", "--default-index", "https://pypi.org/simple"]
    command += ["--generate-hashes", "--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
    command += ["--no-annotate", "--custom-compile-command", shown_command, "--output-file", str(lock)]
    command += options
    command += [word for extra in extras for word in ("--extra", extra)]
    command.append(str(source or HERE.parent / "pyproject.toml"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))}
    if lock.exists() and lock.parent == HERE:
        lock.unlink()  # the constraints fix every version
    subprocess.run(command, check=True, env=environment)
    count = len(read_lock(lock))
    print(f"wrote {lock.name}: {count} packages" if lock.parent == HERE else f"resolved {count}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    make_parser = commands.add_parser("make")
    make_parser.add_argument("--upgrade", action="store_true")
    pick_parser = commands.add_parser("pick")
    pick_parser.add_argument("lock")
    pick_parser.add_argument("--also-in", default="")
    pick_parser.add_argument("--not-in", action="append", default=[])
    pick_parser.add_argument("--without", action="append", default=[])
    pins_parser = commands.add_parser("pins")
    pins_parser.add_argument("lock")
    pins_parser.add_argument("names", nargs="+")
    arguments = parser.parse_args(argv)
    if arguments.command == "make":
        make(arguments.upgrade)
    elif arguments.command == "pick":
        print(pick(arguments.lock, arguments.also_in, arguments.not_in, arguments.without), end="")
    else:
        print("\n".join(list_pins(arguments.lock, arguments.names)))


if __name__ == "__main__":
    main()
