"""Docker's engine through its SDK: how it is found, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..components.store.errors import MillError, TransientError, UserError

if TYPE_CHECKING:
    from docker import DockerClient

START = "start it (Linux: sudo systemctl start docker; else Docker Desktop) or set DOCKER_HOST"


def connected(where: str, timeout_s: int = 60) -> DockerClient:
    """The engine of this machine, or of DOCKER_HOST, answering; `where` names the command or flag that wants it.

    UserError if there is none at that address, or none that this user may use; TransientError if it doesn't answer.
    """
    import docker
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        client = docker.from_env(timeout=timeout_s)
        client.ping()
    except (DockerException, RequestException, OSError) as error:
        causes = list(_causes(error))
        away = any(isinstance(one, OSError) for one in causes) and not any(
            isinstance(one, FileNotFoundError | PermissionError) for one in causes
        )
        host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
        said = " ".join(str(error).split())[:200]
        kind = TransientError if away else UserError
        raise kind(
            f"{where}: expected a Docker engine at {host} (DOCKER_HOST), found none that answers ({said}); {START}"
        ) from None
    return client


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from: docker, requests and urllib3 wrap each other's."""
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or one in seen:
            continue
        seen.append(one)
        yield one
        left += [one.__cause__, one.__context__, *(inner for inner in one.args if isinstance(inner, BaseException))]


@contextlib.contextmanager
def answering(what: str, refused: type[MillError] = MillError) -> Iterator[None]:
    """The SDK's errors in the user's words: `refused` where the engine refuses a request, TransientError where it
    doesn't answer, as while it is restarted."""
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except APIError as error:
        kind = refused if error.is_client_error() else MillError
        raise kind(f"{what}: the Docker engine refuses it: {error.explanation}") from None
    except (DockerException, RequestException, HTTPError) as error:
        raise TransientError(f"{what}: the Docker engine does not answer ({type(error).__name__})") from None
