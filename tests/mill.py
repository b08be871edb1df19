"""Helpers of the integration tests: the command as a process, small photographs, the content of a workspace."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagemill.components.dataset.manifest import Dataset, read_dataset

COMMAND = [sys.executable, "-m", "imagemill.pipelines.cli"]
CLASSES = {"blue": (40, 70, 200), "green": (50, 180, 60), "red": (210, 50, 40)}
QUICK = ["--image-size", "32", "--epochs", "1", "--batch-size", "16", "--backbone", "shufflenet_v2_x0_5"]
"""Parameters for the smallest run that still goes through every step."""
CROWN = ["--promote", "always"]
"""For such a run's model, which is no better than a guess on six test images, to be champion all the same."""
PRODUCTS = ("raw", "clean", "tensors", "model", "evaluation")
STEPS = ("download", "clean", "resize", "train", "evaluate", "promote")


@dataclass(frozen=True)
class Result:
    """The result of a finished command: exit code, both streams and seconds.

    `worked`: CPU seconds of it and of those it started (and of whatever else ended meanwhile): what it costs, however
    busy the machine is.
    """

    rc: int
    stdout: str
    stderr: str
    seconds: float
    worked: float = 0.0

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout."""
        parsed: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return parsed

    @property
    def states(self) -> dict[str, str]:
        """Which steps ran and which were cached."""
        return {step: record["state"] for step, record in self.json["steps"].items()}

    @property
    def error(self) -> str:
        """The message: the last line of stderr."""
        return self.stderr.rstrip("\n").rpartition("\n")[2]


def start(
    arguments: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[str]:
    """The command as the leader of a process group of its own."""
    return subprocess.Popen(
        [*COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **(env or {})}, cwd=cwd, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], started: float, timeout: float = 420) -> Result:
    """Wait for a started command; its whole group is killed when it takes too long."""
    before = _worked()
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_group(process)
        raise
    return Result(process.returncode, stdout, stderr, time.monotonic() - started, _worked() - before)


def _worked() -> float:
    """CPU seconds of all that this process started and that has ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 420) -> Result:
    started = time.monotonic()
    return finish(start(arguments, env, cwd), started, timeout)


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL the command and every child that stayed in its group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def make_photos(folder: Path, classes: Sequence[str] = tuple(CLASSES), each: int = 20, seed: int = 0) -> Path:
    """`<folder>/<class>/<number>.<ending>`: noisy pictures in the class's color, JPEG and PNG, in varied sizes."""
    for name in classes:
        for number in range(each):
            # A photograph depends on its own name alone, so that more of them leave the others as they are.
            random = np.random.default_rng([seed, number, *name.encode()])
            add_photo(folder / name / f"{number:03d}.{'png' if number % 5 == 0 else 'jpg'}", name, random)
    return folder


def add_photo(path: Path, color: str, random: np.random.Generator) -> None:
    base = np.array(CLASSES.get(color, (128, 128, 128)))
    height, width = (int(side) for side in random.integers(40, 90, 2))
    pixels = np.clip(base + random.normal(0, 40, (height, width, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def dataset_of(result: Result, kind: str) -> Dataset:
    return read_dataset(result.json[kind], kind)


def manifests(workspace: Path) -> dict[str, list[Path]]:
    """Every manifest in a local workspace, by kind."""
    return {kind: sorted(workspace.glob(f"{kind}/*/_manifest.json")) for kind in PRODUCTS}


def content(dataset: Dataset) -> list[tuple[str, str, int, str]]:
    """(role, split, rows, sha256) of all listed files and parts, proven against the bytes that are there."""
    from imagemill.components.storage.store import get_store

    listed = [(dataset.locate(file), file.role, file) for file in dataset.manifest.files]
    listed += [(dataset.locate_part(part), "part", part) for part in dataset.manifest.parts]
    for uri, _, entry in listed:
        data = get_store(dataset.uri).read(uri)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.bytes, entry.sha256), uri
    return [(role, entry.split, entry.rows, entry.sha256) for _, role, entry in listed]


def processes_with(name: str, value: str) -> dict[int, str]:
    """The living processes that have `name=value` in their environment: pid → command line."""
    return {pid: line for pid, line, environment in _processes() if f"{name}={value}".encode() in environment}


def _processes() -> Iterator[tuple[int, str, list[bytes]]]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, UnicodeDecodeError):  # ended meanwhile, or another user's
            continue
        if state not in "ZX":
            yield int(entry.name), line, environment


def wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    """Read a process's stderr up to the first line with the text; return that line."""
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return line
    raise AssertionError(f"the process ended without a line with {text!r}: {''.join(lines)}")


def wait_until(condition: Callable[[], bool], description: str, timeout: float = 120, every: float = 0.02) -> None:
    """Poll; AssertionError when it doesn't come true in `timeout` seconds."""
    give_up = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < give_up, f"waited {timeout:g} s in vain for {description}"
        time.sleep(every)
