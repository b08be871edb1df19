"""The resize step as a job of a Ray cluster that is reached by HTTP only: submitted, followed, stopped, adopted.

The cluster runs this same step, with the same configuration, beside its own Ray; what it makes lies in the workspace,
which both must reach. Credentials are the cluster's own: a job's command line and environment can be read by everyone
who can reach its dashboard, so nothing secret goes there.
"""

from __future__ import annotations

import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..store import uri as uris
from ..store.errors import (
    EXIT_TRANSIENT,
    EXIT_USER,
    MillError,
    TransientError,
    UserError,
    error_for_exit_code,
    first_line,
    wrong,
)
from ..store.fingerprint import digest
from ..store.manifest import Dataset, find_intact_dataset
from ..store.step import Context
from .config import ResizeConfig
from .copies import absolute
from .reach import TOKEN, nobody, refused, said_address, use_token

STEP = "resize"
POLL_S = 1.0
SILENT_S = 180.0
"""How long the head may not answer before the job is given up; it goes on, and the next try finds it."""
ANSWER_S = (10, 60)
"""Seconds to connect and to be answered: Ray's client itself would wait for ever."""
_LINE = re.compile(rf"\[{STEP}\] ")
_ENDING = re.compile(rf"\[{STEP}\] (error: |done \(|there already \(|[\d,]+ images of \d)")
"""What the job says last: this process says the same of itself."""


def build_by_job(clean: Dataset, uri: str, config: ResizeConfig, context: Context) -> Dataset:
    """The tensors at `uri`, made by a job; the job's own error is raised as if it had come up here."""
    inner = for_job(clean, config, context)
    run = _Run(inner, uri, context, _client(config.ray_address))
    job = run.adopt_or_submit()
    with _stopped_with_this(run.client, job, context):
        found = run.follow(job)
    return run.outcome(job, found)


def for_job(clean: Dataset, config: ResizeConfig, context: Context) -> ResizeConfig:
    """The config that a job of a Ray cluster runs with: absolute places, and Ray where the job itself is.

    UserError for an address with a login in it: everyone on the cluster can read a job's command line.
    """
    config = absolute(config)
    inner = replace(config, clean=clean.uri, workspace=context.workspace.uri, run=context.run, ray_address="auto")
    _refuse_secrets(inner)
    return inner


def _refuse_secrets(config: ResizeConfig) -> None:
    for one in fields(config):
        value = getattr(config, one.name)
        if isinstance(value, str) and uris.scheme(value) and uris.redact(value) != value:
            raise wrong(one.name, "an address without login and query, since everyone on the cluster can read a job's "
                        "command line", uris.redact(value))  # fmt: skip


def command(config: ResizeConfig) -> list[str]:
    """The step's command line for a config: what differs from the defaults, one word a flag."""
    given = {one.name: getattr(config, one.name) for one in fields(config) if getattr(config, one.name) != one.default}
    flags = (f"--{name.replace('_', '-')}={_text(value)}" for name, value in given.items())
    return ["python", "-m", "imagemill.components.resize", *flags]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def entrypoint(config: ResizeConfig, witness: str) -> str:
    """The job's line for a shell, in which every word is quoted.

    `witness`: a file of the workspace. Where it lies on a disk that the cluster does not see, the job ends before it
    makes a workspace of its own there.
    """
    line = "exec " + shlex.join(command(config))
    if uris.scheme(witness):
        return line
    message = f"[{STEP}] error: {_unseen(config.workspace)}"
    return f"test -f {shlex.quote(witness)} || {{ echo {shlex.quote(message)} >&2; exit {EXIT_USER}; }}; {line}"


def _unseen(workspace: str) -> str:
    return (
        "workspace: expected a place that the Ray cluster sees (s3://bucket/prefix, or a folder that all of its nodes "
        f"mount), found {workspace!r}, which it does not"
    )


def pass_on(line: str) -> None:
    """Say here what a job said in its log, but for what this process says of itself in the end."""
    if _LINE.match(line) and not _ENDING.match(line):
        print("".join(c for c in line if c.isprintable()), file=sys.stderr, flush=True)


def write_waiting_record(job: str, context: Context) -> None:
    """Before a job is made: what an earlier try left must not be taken for its record."""
    waiting = f"the Ray job {job} has not said how it ended"
    record: dict[str, Any] = {"uri": "", "fingerprint": "", "state": "failed", "metrics": {}, "error": waiting}
    record |= {"inputs": "", "exit_code": EXIT_TRANSIENT, "seconds": 0}
    context.workspace.write_step_record(context.run, STEP, record)


def own_record(config: ResizeConfig, context: Context) -> dict[str, Any] | None:
    """The record that a job of exactly this config wrote itself, if it did."""
    record = context.workspace.step_record(context.run, STEP)
    inputs = digest({**asdict(config), "step": STEP})
    return record if record and record.get("inputs") == inputs else None


@dataclass(frozen=True)
class _Run:
    """One run's resize as jobs: the first, and a further one for each that was lost, under names made of the run."""

    config: ResizeConfig
    uri: str
    context: Context
    client: Any

    def adopt_or_submit(self) -> str:
        """The id of the job that works on this: a running one that an earlier try left, or a new one."""
        number = 1
        while True:
            job = f"imagemill-{STEP}-{digest([self.context.run, self.uri])[:20]}-{number}"
            found = self._info(job)
            if found is None:
                if self._submit(job):
                    self.context.say(f"Ray job {job} submitted to {self.client.get_address()}")
                    return job
            elif not found.status.is_terminal() or (found.status == "SUCCEEDED" and find_intact_dataset(self.uri)):
                self.context.say(f"Ray job {job} is there already: {found.status.lower()}")
                return job
            else:
                record = self._its_record()
                if found.status == "FAILED" and record and record["exit_code"] == EXIT_USER:
                    raise UserError(record["error"])
                number += 1

    def _submit(self, job: str) -> bool:
        """False if somebody else was first."""
        workspace, run = self.context.workspace, self.context.run
        write_waiting_record(job, self.context)
        line = entrypoint(self.config, workspace.run_file(run, f"{STEP}.json"))
        about = {"imagemill_run": run, "imagemill_tensors": self.uri}
        try:
            with _answers(self.client):
                self.client.submit_job(entrypoint=line, submission_id=job, metadata=about)
        except RuntimeError as error:
            if "already exists" in str(error):
                return False
            raise TransientError(f"ray_address: the cluster takes no job: {first_line(error)}") from None
        return True

    def _info(self, job: str) -> Any:
        """What the cluster knows of a job, or None."""
        try:
            with _answers(self.client):
                return self.client.get_job_info(job)
        except RuntimeError as error:
            if "404" in str(error):
                return None
            raise TransientError(f"ray_address: the cluster does not tell of its jobs: {first_line(error)}") from None

    def _its_record(self) -> dict[str, Any] | None:
        """The record that the job wrote itself: of exactly this configuration."""
        return own_record(self.config, self.context)

    def follow(self, job: str) -> Any:
        """Say what the job says until it has ended; what the cluster then knows of it."""
        seen, heard = 0, time.monotonic()
        while True:
            try:
                found, log = self._info(job), self._log(job)
                heard = time.monotonic()
            except TransientError as error:
                if time.monotonic() - heard > SILENT_S:
                    raise TransientError(f"{error}; the Ray job {job} may go on: run again to find it") from None
                time.sleep(POLL_S)
                continue
            if found is None:
                raise TransientError(f"the Ray job {job} is lost: the cluster knows it no more (was it restarted?)")
            over = found.status.is_terminal()
            whole = len(log) if over else log.rfind("\n") + 1
            for line in log[seen:whole].splitlines():
                pass_on(line)
            seen = max(seen, whole)
            if over:
                return found
            time.sleep(max(POLL_S, len(log) / 100_000))  # the whole log comes every time

    def _log(self, job: str) -> str:
        try:
            with _answers(self.client):
                return str(self.client.get_job_logs(job))
        except RuntimeError as error:  # none yet
            if "404" in str(error):
                return ""
            raise TransientError(
                f"ray_address: the log of the Ray job {job} can't be read: {first_line(error)}"
            ) from None

    def outcome(self, job: str, found: Any) -> Dataset:
        """The dataset that a job which has ended made, or its error."""
        if found.status == "SUCCEEDED":
            if dataset := find_intact_dataset(self.uri):
                return dataset
            raise UserError(f"{_unseen(self.context.workspace.uri)}, or by another imagemill: the Ray job {job} "
                            f"succeeded and there is no dataset {self.uri}")  # fmt: skip
        if found.status == "STOPPED":
            raise TransientError(f"the Ray job {job} was stopped")
        record = self._its_record()
        if record and record["exit_code"]:
            raise error_for_exit_code(record["exit_code"], record["error"])
        raise _error_without_record(job, found.driver_exit_code, self._log(job) or str(found.message or ""))


def _error_without_record(job: str, code: int | None, log: str) -> MillError:
    """The error of a job that could not write its record, by its exit code and the end of its log."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = next((line.partition("error: ")[2] for line in reversed(lines) if line.startswith(f"[{STEP}] error: ")), "")
    last = lines[-1] if lines else "nothing in its log"
    if code == 127 or (code == 1 and "No module named" in last):
        return UserError(f"ray_address: expected a cluster with imagemill in its image, found one without: {last}")
    if said and code is not None:
        return error_for_exit_code(code, said)
    if code is None or code < 0 or code > 128:  # killed, or its node with it
        return TransientError(f"the Ray job {job} was lost: {last}")
    return error_for_exit_code(code, f"the Ray job {job} ended with exit code {code}: {last}")


@contextmanager
def _stopped_with_this(client: Any, job: str, context: Context) -> Iterator[None]:
    """Ctrl-C and SIGTERM here stop the job there."""

    def terminated(*_: object) -> None:
        raise TransientError(f"stopped by a signal, and the Ray job {job} with it")

    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminated) if here else None
    try:
        yield
    except (KeyboardInterrupt, TransientError) as error:
        if isinstance(error, KeyboardInterrupt) or "stopped by a signal" in str(error):
            context.say(f"stopping the Ray job {job}")
            with _answers(client):
                client.stop_job(job)
        raise
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)


def _client(address: str) -> Any:
    """Ray's own client for jobs, with patience of its own; whoever does not answer or refuses is an error."""
    if uris.redact(address) != address:
        raise wrong("ray_address", f"no login in it (a token goes in {TOKEN})", uris.redact(address))
    use_token()
    with said_address(address):
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):  # type: ignore[misc]
            def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
                return super()._do_request(method, endpoint, timeout=ANSWER_S, allow_redirects=False, **more)

        try:
            with _answers(address):
                return Client(address)
        except (RuntimeError, ValueError, KeyError) as error:
            raise wrong(
                "ray_address",
                "the address of a Ray cluster's dashboard",
                f"{uris.redact(address)}: {first_line(error)}",
            ) from None


@contextmanager
def _answers(client: Any) -> Iterator[None]:
    """Errors of the network and of the login as ours."""
    import requests
    from ray.exceptions import AuthenticationError

    address = client if isinstance(client, str) else str(client.get_address())
    try:
        yield
    except AuthenticationError as error:
        raise refused(address, first_line(error)) from None
    except requests.JSONDecodeError as error:
        raise wrong(
            "ray_address", f"a Ray cluster's dashboard at {address}", f"an answer of something else ({error})"
        ) from None
    except (ConnectionError, requests.RequestException) as error:
        raise nobody(address, first_line(error)) from None
