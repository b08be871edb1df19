"""Which settings of a package a Kubeflow Pipelines server of a release supports, and a check that it ignored none.

Read in its sources, 2.3 to 2.17: a server that finds an unknown field among a package's settings of whole runs silently
ignores the package's second document: all pods then lack credentials, GPUs, volumes, user. Of single pods it ignores
the unknown settings alone. Deadlines and lifetimes of whole runs came with 2.17, the pods' user with 2.16.
"""

from __future__ import annotations

import os

from ...components.step.progress import say
from ...components.storage.errors import EXIT_USER

RUN_SETTINGS_SINCE = (2, 17)
LITERALS_SINCE = (2, 16)
KFP_VERSION_VARIABLE = "IMAGEMILL_KFP_VERSION"
"""Variable in each pod, from the package's first document: the release that the package was compiled for."""
POD_NAME_VARIABLE = "POD_NAME"
"""Variable in each pod, from the package's second document."""


def supports_run_settings(version: str) -> bool:
    """Return whether a server of that release (2.17, 2.17.1) supports deadlines and lifetimes of whole runs."""
    return _parse_release(version) >= RUN_SETTINGS_SINCE


def supports_literals(version: str) -> bool:
    """Return whether a server of that release supports the choices of a parameter (`literals`), which the UI shows from
    2.17 on. An older one refuses the whole package for the unknown field."""
    return _parse_release(version) >= LITERALS_SINCE


def _parse_release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def describe_ignored_settings() -> str:
    """Return the error of a pod whose settings the server has ignored; empty where it has not, and in a local run."""
    if not os.environ.get(KFP_VERSION_VARIABLE) or os.environ.get(POD_NAME_VARIABLE):
        return ""
    return (
        "kfp.version: expected the release of the Kubeflow Pipelines server, found "
        f"{os.environ[KFP_VERSION_VARIABLE]!r}, and the server is older: it has ignored the pods' settings, "
        "credentials among them. Say it in the cluster file and compile again"
    )


def check_server() -> None:
    """End the process with exit code 2 where the server has ignored the pods' settings; called by the first step."""
    if message := describe_ignored_settings():
        say("download", f"error: {message}")
        raise SystemExit(EXIT_USER)
