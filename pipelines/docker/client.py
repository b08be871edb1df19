"""The Docker engine through its SDK: connecting to it, its errors, and removing the containers of a run."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ...components.step.runner_exit import SIGTERM_GRACE_S
from ...components.storage.errors import MillError, TransientError, UserError
from ..cluster.cluster_file import LABELS, RUN_LABEL

if TYPE_CHECKING:
    from docker import DockerClient

START_HINT = "start it (Linux: sudo systemctl start docker; else Docker Desktop) or set DOCKER_HOST"
STEP_LABEL = "imagemill.io/step"
NEVER_STARTED_AGE = timedelta(hours=1)
"""The age at which a container that was created and not started belongs to a command that was killed."""
_REMOVAL_TIMEOUT_S = 20.0


def connect_engine(where: str, timeout_s: int = 60) -> DockerClient:
    """Connect to the engine of this machine, or of DOCKER_HOST; `where` names the command or flag that needs it.

    UserError if no engine is at that address, or none that this user may use; TransientError if it doesn't answer.
    """
    import docker
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        client = docker.from_env(timeout=timeout_s)
        client.ping()
    except (DockerException, RequestException, OSError) as error:
        causes = list(_find_causes(error))
        is_transient = any(isinstance(cause, OSError) for cause in causes) and not any(
            isinstance(cause, FileNotFoundError | PermissionError) for cause in causes
        )
        host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
        message = " ".join(str(error).split())[:200]
        kind = TransientError if is_transient else UserError
        raise kind(
            f"{where}: expected a Docker engine at {host} (DOCKER_HOST), found none that answers ({message}); "
            f"{START_HINT}"
        ) from None
    return client


def _find_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that caused it: docker, requests and urllib3 wrap each other's."""
    visited: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        cause = pending.pop()
        if cause is None or cause in visited:
            continue
        visited.append(cause)
        yield cause
        pending += [cause.__cause__, cause.__context__, *(arg for arg in cause.args if isinstance(arg, BaseException))]


@contextlib.contextmanager
def engine_errors(where: str, refused: type[MillError] = MillError) -> Iterator[None]:
    """Raise the SDK's errors as Imagemill's: `refused` where the engine refuses a request, TransientError where it
    doesn't answer, as while it is restarted."""
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except APIError as error:
        kind = refused if error.is_client_error() else MillError
        raise kind(f"{where}: the Docker engine refuses it: {error.explanation}") from None
    except (DockerException, RequestException, HTTPError) as error:
        raise TransientError(f"{where}: the Docker engine does not answer ({type(error).__name__})") from None


def remove_containers(client: Any, run: str) -> None:
    """Stop and remove the containers of a run, found by their label, and wait until they are gone.

    SIGTERM comes first, so that training can save what the next run goes on from. Ctrl-C meanwhile kills them at once.
    """
    import docker
    import requests

    try:
        try:
            _stop_containers(client, run)
        finally:
            _kill_containers(client, run)
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        print(f"containers of the run may be left (docker ps --filter label={RUN_LABEL}={run}): {error}",
              file=sys.stderr)  # fmt: skip


def _stop_containers(client: Any, run: str) -> None:
    import docker

    for container in client.containers.list(filters={"label": f"{RUN_LABEL}={run}"}, ignore_removed=True):
        step = container.labels.get(STEP_LABEL, container.name)
        print(f"stopping {step}, which may take {SIGTERM_GRACE_S:.0f} s; Ctrl-C: at once", file=sys.stderr, flush=True)
        with contextlib.suppress(docker.errors.APIError):  # it has ended by itself
            container.stop(timeout=int(SIGTERM_GRACE_S))


def _kill_containers(client: Any, run: str) -> None:
    import docker

    deadline = time.monotonic() + _REMOVAL_TIMEOUT_S
    filters = {"label": f"{RUN_LABEL}={run}"}
    while containers := client.containers.list(all=True, filters=filters, ignore_removed=True):
        for container in containers:
            with contextlib.suppress(docker.errors.APIError):  # its removal is under way
                container.remove(force=True, v=True)
        if time.monotonic() > deadline:
            raise docker.errors.DockerException("it takes too long")
        time.sleep(0.1)


def remove_never_started(client: Any, info: Mapping[str, Any]) -> None:
    """Remove containers of commands that were killed between creating and starting them: their environment holds
    credentials. Their age is taken by the engine's own clock."""
    import docker

    filters = {"status": "created", "label": [RUN_LABEL, *(f"{name}={value}" for name, value in LABELS.items())]}
    now = _parse_time(str(info.get("SystemTime") or "")) or datetime.now(UTC)
    for container in client.containers.list(all=True, filters=filters, ignore_removed=True):
        created = _parse_time(str(container.attrs.get("Created") or ""))
        if created and now - created > NEVER_STARTED_AGE:
            with contextlib.suppress(docker.errors.APIError):  # another run removes it, too
                container.remove(v=True)


def _parse_time(text: str) -> datetime | None:
    """Return a time as the engine writes it, in its own time zone or UTC; None for an invalid one."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else None
