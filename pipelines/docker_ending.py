"""How the containers of a run end with it: asked first, then by force; and what a killed run has left is removed."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from ..components.store.runner import LAST_WORDS_S
from .cluster import LABELS, RUN_LABEL

STEP_LABEL = "imagemill.io/step"
NEVER_STARTED = timedelta(hours=1)
"""So old is a container that was made and not started only if the command that made it is gone."""
_GONE_S = 20.0
"""How long a container that is being removed may take."""


def end_containers(client: Any, run: str) -> None:
    """Stop and remove what is left of a run, found by its label, and wait until it is gone.

    SIGTERM comes first: training writes down what the next run goes on from. Ctrl-C meanwhile means at once.
    """
    import docker
    import requests

    try:
        try:
            _stop(client, run)
        finally:
            _remove(client, run)
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        print(f"containers of the run may be left (docker ps --filter label={RUN_LABEL}={run}): {error}",
              file=sys.stderr)  # fmt: skip


def _stop(client: Any, run: str) -> None:
    import docker

    for container in client.containers.list(filters={"label": f"{RUN_LABEL}={run}"}, ignore_removed=True):
        step = container.labels.get(STEP_LABEL, container.name)
        print(f"stopping {step}, which may take {LAST_WORDS_S:.0f} s; Ctrl-C: at once", file=sys.stderr, flush=True)
        with contextlib.suppress(docker.errors.APIError):  # it has ended by itself
            container.stop(timeout=int(LAST_WORDS_S))


def _remove(client: Any, run: str) -> None:
    import docker

    give_up = time.monotonic() + _GONE_S
    while left := client.containers.list(all=True, filters={"label": f"{RUN_LABEL}={run}"}, ignore_removed=True):
        for container in left:
            with contextlib.suppress(docker.errors.APIError):  # it is going already
                container.remove(force=True, v=True)
        if time.monotonic() > give_up:
            raise docker.errors.DockerException("it takes too long")
        time.sleep(0.1)


def remove_never_started(client: Any, info: Mapping[str, Any]) -> None:
    """Remove containers that a run made and was killed before it had started them: nobody else would, and their
    environment has credentials. By the engine's own clock."""
    import docker

    filters = {"status": "created", "label": [RUN_LABEL, *(f"{name}={value}" for name, value in LABELS.items())]}
    now = _moment(str(info.get("SystemTime") or "")) or datetime.now(UTC)
    for container in client.containers.list(all=True, filters=filters, ignore_removed=True):
        made = _moment(str(container.attrs.get("Created") or ""))
        if made and now - made > NEVER_STARTED:
            with contextlib.suppress(docker.errors.APIError):  # another run does the same
                container.remove(v=True)


def _moment(text: str) -> datetime | None:
    """A time as the engine writes it, in its own time zone or UTC; None for what is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else None
