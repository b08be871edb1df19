"""The pods of one RayJob while it is followed: what is new with them, and what is known of those that are gone.

KubeRay deletes a pod as soon as it has failed, and all of them when the job has ended. What it saw of them it leaves in
events of the RayCluster, which stay for an hour.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from ..components.store.errors import MillError
from .cluster import RUN_LABEL
from .kube import Json, Kube
from .ray_failures import troubles
from .rayjob import run_label

PODS_S = 10.0
"""How often they are looked at."""


class RayPods:
    """Ray's nodes and the submitter of the RayJob `job`, of the run `run`."""

    def __init__(self, kube: Kube, job: str, run: str) -> None:
        self._kube, self._job, self._run = kube, job, run
        self._known: list[Json] = []
        self._told: set[str] = set()
        self._looked = 0.0

    def look(self) -> list[Json]:
        """The pods as they are, or as they were when there were some last; none where they can't be listed. Not the
        launchers, which KubeRay did not make."""
        self._looked = time.monotonic()
        try:
            found = self._kube.pods(f"{RUN_LABEL}={run_label(self._run)},app.kubernetes.io/component=resize")
        except MillError:
            return self._known
        self._known = [pod for pod in found if _is_of_kuberay(pod)] or self._known
        return self._known

    def news(self) -> Iterator[str]:
        """What keeps pods from running or has ended them, once each, looked at every PODS_S."""
        if time.monotonic() - self._looked < PODS_S:
            return
        for text in troubles(self.look()):
            if text not in self._told:
                self._told.add(text)
                yield text

    def events(self) -> list[Json]:
        """Kubernetes' events of the RayCluster and its pods; none where they can't be listed."""
        try:
            return self._kube.events(self._job)
        except MillError:
            return []


def _is_of_kuberay(pod: Json) -> bool:
    return bool({"ray.io/cluster", "job-name"} & set(pod["metadata"].get("labels") or {}))
