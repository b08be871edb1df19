"""Run single steps on this machine, each in a process of its own, as its command line does."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from ...components.dataset.records import StepRecord
from ...components.dataset.workspace import PRODUCTS, Workspace
from ...components.step.config import StepConfig
from ...components.step.runner_exit import SIGTERM_GRACE_S
from ...components.step.step import NotCached
from ...components.storage.errors import MillError, TransientError, UserError, error_for_exit_code
from ..parameters import ALL_STEPS
from .run import LOG_NAME, is_step_line, step_environment

Watch = Callable[[], bool]
"""Is called about once a second while a step runs; True ends the step with SIGTERM."""
POLL_S = 1.0
_OUTPUT_GRACE_S = 10.0


class StoppedByWatch(Exception):
    """Raised for a step that its `Watch` has ended."""


@dataclass
class StepRunner:
    """Runs steps in the workspace. `log` gets all that they print, the terminal their own lines."""

    workspace: Workspace
    scratch: Path
    log: TextIO

    @classmethod
    @contextmanager
    def open(cls, workspace: Workspace, run: str) -> Iterator[StepRunner]:
        """Give a runner whose log becomes that of `run`."""
        with tempfile.TemporaryDirectory(prefix="imagemill-steps-") as scratch:
            path = Path(scratch) / LOG_NAME
            try:
                with path.open("w", encoding="utf-8") as log:
                    yield cls(workspace, Path(scratch), log)
            finally:
                if text := path.read_bytes():
                    try:
                        workspace.store.put(workspace.run_file_uri(run, LOG_NAME), text)
                    except (TransientError, UserError) as error:
                        print(f"the log could not be stored: {error}", file=sys.stderr)

    def find(self, step: str, config: StepConfig) -> StepRecord | None:
        """Return the record of a step whose result exists; None where it has to run, if only to raise its error."""
        try:
            return ALL_STEPS[step].execute_cached(config)
        except (NotCached, MillError, ImportError):
            return None

    def run(self, step: str, config: StepConfig, watch: Watch | None = None) -> StepRecord:
        """Run a step and return its record. Raises its error, and StoppedByWatch where `watch` has ended it."""
        result = self.scratch / "record.json"
        result.unlink(missing_ok=True)
        with step_environment(config.run, str(self.scratch)):
            process = subprocess.Popen(
                self._make_command(step, config, result), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace",
            )  # fmt: skip
        is_stopped, reader = False, _start_copying(process, self.log)
        try:
            while process.poll() is None:
                reader.join(POLL_S)
                if not reader.is_alive():
                    process.wait()
                elif watch and not is_stopped and watch():
                    is_stopped = True
                    process.terminate()
        except BaseException:
            _stop(process)
            raise
        finally:
            reader.join(_OUTPUT_GRACE_S)  # a process that the step left behind may hold the pipe open
        record = StepRecord.read(result) if result.exists() else None
        if is_stopped and (record is None or record.exit_code):
            raise StoppedByWatch
        if record is None:
            raise TransientError(
                f"{step}: exited with code {process.returncode} before it wrote its record (out of memory?); the same "
                f"command continues from what is finished; the log is "
                f"{self.workspace.run_file_uri(config.run, LOG_NAME)}"
            )
        if record.exit_code:
            raise error_for_exit_code(record.exit_code, f"{step}: {record.error}")
        return record

    def _make_command(self, step: str, config: StepConfig, result: Path) -> list[str]:
        """Return the step's command line. The config is in a file, since it may hold a URL with a password."""
        parents = set(type(config).PARENTS)
        values = {
            field.name: getattr(config, field.name)
            for field in fields(config)
            if field.name not in parents
            and getattr(config, field.name) is not None
            and (getattr(config, field.name) != field.default or field.metadata["by_preset"])  # a preset overrules both
        }
        file = self.scratch / "config.yaml"
        file.write_text(json.dumps({step: values}), encoding="utf-8")  # JSON is YAML
        flags = [f"--{parent.replace('_', '-')}={getattr(config, parent)}" for parent in sorted(parents)]
        module = type(config).__module__.rpartition(".")[0]
        return [sys.executable, "-m", module, f"--config={file}", f"--result={result}", *flags]


def build_parents(step: str, records: dict[str, StepRecord]) -> dict[str, str]:
    """Return the URIs of a step's parents, the products of earlier steps."""
    uris = {kind: records[name].uri for name, kind in PRODUCTS.items() if name in records}
    return {kind: uris[kind] for kind in ALL_STEPS[step].config.PARENTS if kind in uris}


def _start_copying(process: subprocess.Popen[str], log: TextIO) -> Any:
    """Start a thread that copies the output of a process to the log, and the steps' own lines to the terminal."""
    import threading

    def copy() -> None:
        assert process.stdout
        for line in process.stdout:
            log.write(line)
            if is_step_line(line):
                print(line, end="", file=sys.stderr, flush=True)
        log.flush()

    thread = threading.Thread(target=copy, name="step-output", daemon=True)
    thread.start()
    return thread


def _stop(process: subprocess.Popen[str]) -> None:
    """End a step in order, so that a training saves a checkpoint."""
    process.terminate()
    try:
        process.wait(SIGTERM_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
