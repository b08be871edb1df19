"""What a Kubeflow Pipelines server of a release takes, and a word when it took less than was sent.

Read in its sources, 2.3 to 2.17: a server that finds an unknown field among a package's settings of whole runs ignores
the package's second document without a word: all pods then lack credentials, GPUs, volumes, user. Unknown settings of
single pods it leaves out alone. Deadlines and lifetimes of whole runs came with 2.17, the pods' user with 2.16.
"""

from __future__ import annotations

import os

from ..components.store.errors import EXIT_USER
from ..components.store.progress import say

WHOLE_RUNS_SINCE = (2, 17)
CHOICES_SINCE = (2, 16)
SENT = "IMAGEMILL_KFP_VERSION"
"""In each pod's environment, which is in the first document: the release that the package was compiled for."""
ARRIVED = "POD_NAME"
"""The same of the second document."""


def knows_whole_runs(version: str) -> bool:
    """Whether a server of that release (2.17, 2.17.1) takes deadlines and lifetimes of whole runs."""
    return _release(version) >= WHOLE_RUNS_SINCE


def knows_choices(version: str) -> bool:
    """Whether a server of that release takes the choices of a parameter (`literals`); an older one refuses the whole
    package for the unknown field. The pages show them from 2.17 on."""
    return _release(version) >= CHOICES_SINCE


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def ignored() -> str:
    """What to say in a pod whose settings the server has ignored; empty where it has not, or there is no server."""
    if not os.environ.get(SENT) or os.environ.get(ARRIVED):
        return ""
    return (
        f"kfp.version: expected the release of the Kubeflow Pipelines server, found {os.environ[SENT]!r}, and the "
        "server is older: it has ignored the pods' settings, credentials among them. Say it in the cluster's file and "
        "compile again"
    )


def check_server() -> None:
    """End the process with exit code 2 where the server has ignored the pods' settings; the first step asks."""
    if found := ignored():
        say("download", f"error: {found}")
        raise SystemExit(EXIT_USER)
