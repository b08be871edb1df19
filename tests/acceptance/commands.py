"""The `imagemill` command as a user runs it: a process, its exit code, its two streams, its CPU seconds.

Whatever other branches may change about defaults stands here, in one place each.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).with_name("imagemill"))
STEPS = ("download", "clean", "resize", "train", "evaluate", "promote")
KINDS = ("raw", "clean", "tensors", "model", "evaluation")
KIND_BY_STEP = dict(zip(STEPS, KINDS, strict=False))
EXIT_DONE, EXIT_USER, EXIT_TRANSIENT, EXIT_INTERRUPTED = 0, 2, 75, 130

FROM_SCRATCH = ["--weights", "none"]
"""Flags of a training without pretrained weights."""
TINY_MODEL = [
    "--backbone", "shufflenet_v2_x0_5", "--recipe", "plain", "--epochs", "1", "--batch-size", "16", *FROM_SCRATCH,
]  # fmt: skip
"""Flags of the cheapest training that goes through every part of the step."""
TINY = ["--image-size", "32", *TINY_MODEL]
"""Flags of the cheapest run."""
PROMOTE_ALWAYS, PROMOTE_NEVER = ["--promote", "always"], ["--promote", "never"]
PATIENCE = 420.0
"""Seconds after which a command has hung, on a machine that does much else."""


@dataclass(frozen=True)
class Finished:
    """A command that ended: its exit code, both streams and the CPU seconds of it and its children."""

    arguments: tuple[str, ...]
    code: int
    stdout: str
    stderr: str
    cpu_seconds: float

    @property
    def json(self) -> dict[str, Any]:
        """The last line of stdout."""
        parsed: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return parsed

    @property
    def states(self) -> dict[str, str]:
        """The state of each step of a run: ran or cached."""
        return {step: record["state"] for step, record in self.json["steps"].items()}

    @property
    def error(self) -> str:
        """The message: the last line of stderr."""
        return self.stderr.rstrip("\n").rpartition("\n")[2]


def start(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start the command as the leader of a process group of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("IMAGEMILL_", "AWS_"))}
    return subprocess.Popen(
        [COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=inherited | {"OMP_NUM_THREADS": "1"} | dict(env or {}), cwd=cwd, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], patience: float = PATIENCE) -> Finished:
    """Wait for a started command; its whole group is killed when it takes too long."""
    before = _children_cpu_seconds()
    try:
        stdout, stderr = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        kill(process)
        raise
    arguments = tuple(str(argument) for argument in process.args[1:])  # type: ignore[index]
    return Finished(arguments, process.returncode, stdout, stderr, _children_cpu_seconds() - before)


def run(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Finished:
    """Run the command to its end, whatever its exit code."""
    return finish(start(*arguments, env=env, cwd=cwd))


def succeed(*arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Finished:
    """Run the command and check that it is done (exit code 0)."""
    finished = run(*arguments, env=env, cwd=cwd)
    assert finished.code == EXIT_DONE, f"imagemill {' '.join(arguments)}: {finished.code}\n{finished.stderr}"
    return finished


def refuse(*arguments: str, words: tuple[str, ...] = (), env: Mapping[str, str] | None = None) -> Finished:
    """Run the command and check that it refuses its input: exit code 2, one message with these words, no traceback."""
    finished = run(*arguments, env=env)
    assert finished.code == EXIT_USER, finished.stderr
    assert "Traceback" not in finished.stderr
    assert "error:" in finished.error
    for word in words:
        assert word in finished.error, f"{word!r} is not in {finished.error!r}"
    return finished


def kill(process: subprocess.Popen[str]) -> None:
    """Kill the command and every child that stayed in its group by SIGKILL."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True)
class Workspace:
    """A workspace and the name that its commands are given; each method runs one step and returns its dataset's URI."""

    uri: str
    name: str = "acceptance"
    env: Mapping[str, str] | None = None

    @property
    def folder(self) -> Path:
        return Path(self.uri)

    @property
    def flags(self) -> list[str]:
        return ["--workspace", self.uri, "--name", self.name]

    def step(self, step: str, *arguments: str) -> str:
        """Run one step; return the URI that its result file names."""
        return str(self.record(step, *arguments)["uri"])

    def record(self, step: str, *arguments: str) -> dict[str, Any]:
        """Run one step; return its result file."""
        with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
            file = Path(folder) / "result.json"
            succeed(step, *self.flags, "--result", str(file), *arguments, env=self.env)
            record: dict[str, Any] = json.loads(file.read_text())
        return record

    def download(self, dataset: str, source: Path | str, *more: str) -> str:
        return self.step("download", "--dataset", dataset, "--source", str(source), *more)

    def clean(self, raw: str, *more: str) -> str:
        return self.step("clean", "--raw", raw, *more)

    def resize(self, clean: str, *more: str) -> str:
        return self.step("resize", "--clean", clean, "--executor", "threads", *more)

    def train(self, tensors: str, *more: str) -> str:
        return self.step("train", "--tensors", tensors, *TINY_MODEL, *more)

    def evaluate(self, model: str, clean: str, *more: str) -> str:
        return self.step("evaluate", "--model", model, "--clean", clean, *more)

    def run(self, dataset: str, source: Path | str, *more: str) -> Finished:
        """Run the whole pipeline, smallest model."""
        return succeed("run", "--json", *self.flags, "--dataset", dataset, "--source", str(source), *TINY, *more,
                       env=self.env)  # fmt: skip


def wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    """Read a command's stderr up to the first line with the text."""
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return line
    raise AssertionError(f"the command ended without a line with {text!r}: {''.join(lines)}")
