"""Run a step as a job of a Ray cluster (Ray Jobs API, over HTTP): submit, follow, stop, adopt on a retry.

The cluster runs the same step with the same configuration; both must reach the workspace. Credentials are the
cluster's own: everyone who can reach the dashboard can read a job's command line and environment, so nothing secret is
put there.
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
from typing import Any, TypeVar

from ..dataset.manifest import Dataset, digest, find_intact_dataset
from ..dataset.records import StepRecord
from ..step.config import StepConfig
from ..step.step import Context
from ..storage import uri as uris
from ..storage.errors import (
    EXIT_TRANSIENT,
    EXIT_USER,
    MillError,
    TransientError,
    UserError,
    error_for_exit_code,
    first_line,
    wrong,
)
from .ray_connection import (
    TOKEN_VARIABLES,
    enable_token_auth,
    ignore_address_variables,
    token_error,
    unreachable_error,
)

POLL_S = 1.0
HEAD_TIMEOUT_S = 180.0
"""Seconds without an answer from the head after which the job is no longer followed; a retry finds it again."""
REQUEST_TIMEOUT_S = (10, 60)
"""Seconds to connect and to read: Ray's client itself sets no limit."""
_OUTCOME_LINE = re.compile(r"error: |done \(|there already \(")
"""The last line of a step's log, which is not forwarded: this process writes its own."""
_TOTALS_LINE = re.compile(r"\[resize\] [\d,]+ images of \d")
"""The line before it in resize's log, which is not forwarded either where the step submits the job itself."""
ConfigT = TypeVar("ConfigT", bound=StepConfig)


def build_with_ray_job(config: StepConfig, address: str, uri: str, context: Context) -> Dataset:
    """Make the dataset at `uri` by a job of the cluster at `address`; raise the job's own error if it fails.

    `config`: the job's (`make_job_config`).
    """
    jobs = _StepJobs(config, uri, context, _open_client(address))
    job_id = jobs.adopt_or_submit()
    with _stop_on_signal(jobs.client, job_id, context):
        info = jobs.follow(job_id)
    return jobs.get_dataset(job_id, info)


def make_job_config(config: ConfigT, parent: Dataset, context: Context) -> ConfigT:
    """Return the config for a job of a Ray cluster: absolute URIs, and the job's own cluster for Ray.

    `config`: with absolute paths. UserError for an address with a login in it: everyone on the cluster can read a job's
    command line.
    """
    values: dict[str, Any] = {"workspace": context.workspace.uri, "run": context.run, "ray_address": "auto"}
    job_config = replace(config, **values, **{parent.manifest.kind: parent.uri})
    _refuse_secrets(job_config)
    return job_config


def _refuse_secrets(config: StepConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, str) and uris.scheme(value) and uris.redact(value) != value:
            raise wrong(field.name, "an address without login and query, since everyone on the cluster can read a "
                        "job's command line", uris.redact(value))  # fmt: skip


def build_command(step: str, config: StepConfig) -> list[str]:
    """Return the command line of a step for a config."""
    return ["python", "-m", f"imagemill.components.{step}", *config.to_flags()]


def build_entrypoint(step: str, config: StepConfig, probe_uri: str) -> str:
    """Return the job's shell command, in which every word is quoted.

    `probe_uri`: a workspace file. If it lies on a disk that the cluster can't read, the job ends before it makes a
    workspace of its own there.
    """
    command = "exec " + shlex.join(build_command(step, config))
    if uris.scheme(probe_uri):
        return command
    message = f"[{step}] error: {_describe_unreadable(config.workspace)}"
    return f"test -f {shlex.quote(probe_uri)} || {{ echo {shlex.quote(message)} >&2; exit {EXIT_USER}; }}; {command}"


def _describe_unreadable(workspace: str) -> str:
    return (
        "workspace: expected a place that the Ray cluster sees (s3://bucket/prefix, or a folder that all of its nodes "
        f"mount), found {workspace!r}, which it does not"
    )


def forward_log_line(step: str, line: str) -> None:
    """Print a line of the job's log on stderr if the step wrote it, except the outcome."""
    prefix = f"[{step}] "
    if line.startswith(prefix) and not _OUTCOME_LINE.match(line, len(prefix)):
        print("".join(c for c in line if c.isprintable()), file=sys.stderr, flush=True)


def write_pending_record(job_id: str, context: Context) -> None:
    """Write a failed record before a job is submitted, so that an earlier attempt's is not taken for the job's."""
    record = StepRecord(error=f"the Ray job {job_id} has not recorded a result", exit_code=EXIT_TRANSIENT)
    context.workspace.write_step_record(context.run, context.step, record)


def read_own_record(config: StepConfig, context: Context) -> StepRecord | None:
    """Return the record that a job of exactly this config wrote itself, or None."""
    record = context.workspace.step_record(context.run, context.step)
    inputs = digest({**asdict(config), "step": context.step})
    return record if record and record.inputs == inputs else None


@dataclass(frozen=True)
class _StepJobs:
    """The Ray jobs of one step of a run: the first, and a further one for each that was lost.

    Their ids are made of the step, the run, the dataset's URI and a number.
    """

    config: StepConfig
    uri: str
    context: Context
    client: Any

    def adopt_or_submit(self) -> str:
        """Return the id of the job that does this work: one that an earlier attempt left running, or a new one."""
        number = 1
        while True:
            job_id = f"imagemill-{self.context.step}-{digest([self.context.run, self.uri])[:20]}-{number}"
            info = self._get_info(job_id)
            if info is None:
                if self._submit(job_id):
                    self.context.say(f"Ray job {job_id} submitted to {self.client.get_address()}")
                    return job_id
            elif not info.status.is_terminal() or (info.status == "SUCCEEDED" and find_intact_dataset(self.uri)):
                self.context.say(f"Ray job {job_id} is there already: {info.status.lower()}")
                return job_id
            else:
                record = read_own_record(self.config, self.context)
                if info.status == "FAILED" and record and record.exit_code == EXIT_USER:
                    raise UserError(record.error)
                number += 1

    def _submit(self, job_id: str) -> bool:
        """Submit a job; return False if a job of this id exists."""
        step, run = self.context.step, self.context.run
        write_pending_record(job_id, self.context)
        entrypoint = build_entrypoint(step, self.config, self.context.workspace.run_file_uri(run, f"{step}.json"))
        metadata = {"imagemill_run": run, "imagemill_dataset": self.uri}
        try:
            with _translate_errors(self.client):
                self.client.submit_job(entrypoint=entrypoint, submission_id=job_id, metadata=metadata)
        except RuntimeError as error:
            if "already exists" in str(error):
                return False
            raise TransientError(f"ray_address: the cluster takes no job: {first_line(error)}") from None
        return True

    def _get_info(self, job_id: str) -> Any:
        """Return the cluster's JobDetails, or None for an unknown job."""
        try:
            with _translate_errors(self.client):
                return self.client.get_job_info(job_id)
        except RuntimeError as error:
            if "404" in str(error):
                return None
            raise TransientError(f"ray_address: the cluster does not tell of its jobs: {first_line(error)}") from None

    def follow(self, job_id: str) -> Any:
        """Forward the job's log until it has ended; return its JobDetails."""
        forwarded, answered_at = 0, time.monotonic()
        while True:
            try:
                info, log = self._get_info(job_id), self._get_log(job_id)
                answered_at = time.monotonic()
            except TransientError as error:
                if time.monotonic() - answered_at > HEAD_TIMEOUT_S:
                    raise TransientError(f"{error}; the Ray job {job_id} may go on: run again to find it") from None
                time.sleep(POLL_S)
                continue
            if info is None:
                raise TransientError(f"the Ray job {job_id} is lost: the cluster knows it no more (was it restarted?)")
            has_ended = info.status.is_terminal()
            complete = len(log) if has_ended else log.rfind("\n") + 1
            for line in log[forwarded:complete].splitlines():
                if not _TOTALS_LINE.match(line):
                    forward_log_line(self.context.step, line)
            forwarded = max(forwarded, complete)
            if has_ended:
                return info
            time.sleep(max(POLL_S, len(log) / 100_000))  # every request returns the complete log

    def _get_log(self, job_id: str) -> str:
        try:
            with _translate_errors(self.client):
                return str(self.client.get_job_logs(job_id))
        except RuntimeError as error:
            if "404" in str(error):  # none yet
                return ""
            raise TransientError(
                f"ray_address: the log of the Ray job {job_id} can't be read: {first_line(error)}"
            ) from None

    def get_dataset(self, job_id: str, info: Any) -> Dataset:
        """Return the dataset of a job that has ended, or raise its error. `info`: its JobDetails."""
        if info.status == "SUCCEEDED":
            if dataset := find_intact_dataset(self.uri):
                return dataset
            raise UserError(f"{_describe_unreadable(self.context.workspace.uri)}, or by another imagemill: the Ray job "
                            f"{job_id} succeeded but there is no dataset {self.uri}")  # fmt: skip
        if info.status == "STOPPED":
            raise TransientError(f"the Ray job {job_id} was stopped")
        record = read_own_record(self.config, self.context)
        if record and record.exit_code:
            raise error_for_exit_code(record.exit_code, record.error)
        raise _error_without_record(
            self.context.step, job_id, info.driver_exit_code, self._get_log(job_id) or str(info.message or "")
        )


def _error_without_record(step: str, job_id: str, code: int | None, log: str) -> MillError:
    """Return the error of a job that could not write its record, by its exit code and the end of its log."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    prefix = f"[{step}] error: "
    message = next((line.removeprefix(prefix) for line in reversed(lines) if line.startswith(prefix)), "")
    last_line = lines[-1] if lines else "nothing in its log"
    if code == 127 or (code == 1 and "No module named" in last_line):
        return UserError(f"ray_address: expected a cluster with imagemill in its image, found one without: {last_line}")
    if message and code is not None:
        return error_for_exit_code(code, message)
    if code is None or code < 0 or code > 128:  # killed, or its node with it
        return TransientError(f"the Ray job {job_id} was lost: {last_line}")
    return error_for_exit_code(code, f"the Ray job {job_id} ended with exit code {code}: {last_line}")


@contextmanager
def _stop_on_signal(client: Any, job_id: str, context: Context) -> Iterator[None]:
    """Stop the job if this process gets Ctrl-C or SIGTERM."""

    def terminate(*_: object) -> None:
        raise TransientError(f"stopped by a signal, and the Ray job {job_id} with it")

    in_main_thread = threading.current_thread() is threading.main_thread()  # only there signals can be handled
    previous = signal.signal(signal.SIGTERM, terminate) if in_main_thread else None
    try:
        yield
    except (KeyboardInterrupt, TransientError) as error:
        if isinstance(error, KeyboardInterrupt) or "stopped by a signal" in str(error):
            context.say(f"stopping the Ray job {job_id}")
            with _translate_errors(client):
                client.stop_job(job_id)
        raise
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)


def _open_client(address: str) -> Any:
    """Return Ray's JobSubmissionClient, with timeouts; raise if the dashboard does not answer or refuses the token."""
    if uris.redact(address) != address:
        raise wrong("ray_address", f"no login in it (a token goes in {TOKEN_VARIABLES})", uris.redact(address))
    enable_token_auth()
    with ignore_address_variables(address):
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):  # type: ignore[misc]
            def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
                return super()._do_request(
                    method, endpoint, timeout=REQUEST_TIMEOUT_S, allow_redirects=False, **options
                )

        try:
            with _translate_errors(address):
                return Client(address)
        except (RuntimeError, ValueError, KeyError) as error:
            raise wrong(
                "ray_address",
                "the address of a Ray cluster's dashboard",
                f"{uris.redact(address)}: {first_line(error)}",
            ) from None


@contextmanager
def _translate_errors(client: Any) -> Iterator[None]:
    """Raise errors of the network and of authentication as MillErrors. `client`: a client, or its address."""
    import requests
    from ray.exceptions import AuthenticationError

    address = client if isinstance(client, str) else str(client.get_address())
    try:
        yield
    except AuthenticationError as error:
        raise token_error(address, first_line(error)) from None
    except requests.JSONDecodeError as error:
        raise wrong(
            "ray_address", f"a Ray cluster's dashboard at {address}", f"an answer of something else ({error})"
        ) from None
    except (ConnectionError, requests.RequestException) as error:
        raise unreachable_error(address, first_line(error)) from None
