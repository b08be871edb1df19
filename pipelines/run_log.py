"""The log of a run on this machine: all that its steps and their libraries print, without passwords. The steps' own
lines, `[clean] …`, are on the terminal as well."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from ..components.dataset.workspace import STEPS, Workspace
from ..components.storage import uri as uris
from ..components.storage.errors import TransientError, UserError

LOG_NAME = "log.txt"
_STEP_LINE = re.compile(rf"\[(?:{'|'.join(STEPS)})\] ")


class RunLog:
    """A log that is a local file until it is stored, as `uri`."""

    def __init__(self, file: TextIO, uri: str) -> None:
        self._file, self.uri = file, uri

    @classmethod
    @contextlib.contextmanager
    def open(cls, workspace: Workspace, run: str, values: Iterable[object]) -> Iterator[RunLog]:
        """Give a log that becomes that of `run`. An empty one, of a run that was refused at once, is not stored.

        `values`: of parameters; URLs among them may hold a login, which is removed.
        """
        uri = workspace.run_file_uri(run, LOG_NAME)
        with tempfile.TemporaryDirectory(prefix="imagemill-log-") as folder:
            path = Path(folder) / LOG_NAME
            try:
                with path.open("a", encoding="utf-8", errors="replace", buffering=1) as file:
                    yield cls(file, uri)
            finally:
                if text := path.read_text(encoding="utf-8", errors="replace"):
                    _store(workspace, uri, _remove_logins(text, values))

    def write_line(self, line: str) -> None:
        """Write a line of a step's output."""
        self._file.write(f"{line}\n")
        if _STEP_LINE.match(line):
            print(line, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def capture(self) -> Iterator[None]:
        """Log what this process and those that it starts print meanwhile, libraries in C included."""
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.ExitStack() as stack:
            terminal = sys.stderr
            if terminal is sys.__stderr__:  # whose descriptor leads to the log in a moment
                terminal = stack.enter_context(os.fdopen(os.dup(2), "w", buffering=1))
            for descriptor in (1, 2):
                stack.callback(_restore, descriptor, os.dup(descriptor))
                os.dup2(self._file.fileno(), descriptor)
            stack.enter_context(contextlib.redirect_stdout(self._file))
            stack.enter_context(contextlib.redirect_stderr(_Tee(self._file, terminal)))
            try:
                yield
            finally:
                self._file.flush()


class _Tee(io.TextIOBase):
    """A text stream that writes everything to the log, and the steps' own lines to the terminal as well."""

    def __init__(self, log: TextIO, terminal: TextIO) -> None:
        self._log, self._terminal, self._line = log, terminal, ""

    def fileno(self) -> int:
        return self._log.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self._log.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if _STEP_LINE.match(line):
                self._terminal.write(f"{line}\n")
                self._terminal.flush()
        return len(text)


def _restore(descriptor: int, copy: int) -> None:
    os.dup2(copy, descriptor)
    os.close(copy)


def _remove_logins(text: str, values: Iterable[object]) -> str:
    for value in values:
        if isinstance(value, str) and uris.scheme(value):
            text = text.replace(value, uris.redact(value)).replace(json.dumps(value)[1:-1], uris.redact(value))
    return text


def _store(workspace: Workspace, uri: str, text: str) -> None:
    try:
        workspace.store.put(uri, text.encode())
    except (TransientError, UserError) as error:  # the store can't be reached: the step's own error says why
        print(f"the log could not be stored: {error}", file=sys.stderr)
