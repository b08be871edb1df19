"""The pods of one RayJob while it is followed: what is new with them, and what is known of those that are gone.

KubeRay deletes a pod as soon as it has failed, and all of them when the job has ended. What it saw of them it leaves in
events of the RayCluster, which stay for an hour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..components.store.errors import MillError
from .cluster import RUN_LABEL
from .kube import Json, Kube
from .ray_failures import troubles
from .rayjob import run_label

PODS_S = 10.0
"""How often they are looked at."""


class RayPods:
    """Ray's nodes and the submitter of the RayJob `job`, of the run `run`, and Kubernetes' events of them.

    What can't be listed is as it was.
    """

    def __init__(self, kube: Kube, job: str, run: str) -> None:
        self._kube, self._job, self._run = kube, job, run
        self._told: set[str] = set()
        self._looked = 0.0
        self.pods: list[Json] = []
        """As they are, or as they were when there were some last."""
        self.events: list[Json] = []

    def look(self, status: Mapping[str, Any], warnings: bool = True) -> None:
        """List the pods and events of the RayCluster that the job's status names; `warnings`: also events of pods."""
        self._looked = time.monotonic()
        cluster = str(status.get("rayClusterName") or "")
        selector = f"{RUN_LABEL}={run_label(self._run)},app.kubernetes.io/component=resize"
        pods = _listed(lambda: self._kube.pods(selector), [])
        self.pods = [pod for pod in pods if _is_of(pod, cluster, self._job)] or self.pods
        if not cluster:  # a job of the same name may have had one, an hour ago
            return
        kinds = ("RayCluster", "Pod") if warnings else ("RayCluster",)
        self.events = _listed(lambda: [one for kind in kinds for one in self._kube.events(kind, cluster)], self.events)

    def news(self, status: Mapping[str, Any]) -> Iterator[str]:
        """Yield each reason that keeps pods from running or has ended them once; they are listed every PODS_S."""
        if time.monotonic() - self._looked < PODS_S:
            return
        self.look(status, warnings=False)
        for text in troubles(self.pods, self.events):
            if text not in self._told:
                self._told.add(text)
                yield text


def _listed(list_all: Callable[[], list[Json]], otherwise: list[Json]) -> list[Json]:
    try:
        return list_all()
    except MillError:
        return otherwise


def _is_of(pod: Json, cluster: str, job: str) -> bool:
    """Not a launcher, which KubeRay did not make, nor of the RayCluster of an earlier try."""
    labels = pod["metadata"].get("labels") or {}
    return (bool(cluster) and labels.get("ray.io/cluster") == cluster) or labels.get("job-name") == job
