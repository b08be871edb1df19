"""A run on the cluster, whoever started it: KFP's runs are Argo workflows too, so both are watched in the same way."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from imagemill.components.dataset.workspace import STEPS
from imagemill.pipelines.cluster.cluster_file import RUN_LABEL

from .access.kube import Doc, annotations_of, labels_of, name_of
from .access.probe import COMPONENT, trouble, unschedulable
from .scenario import Deadline, Failed

if TYPE_CHECKING:
    from .session import Place

ARGO, KFP = "argo", "kfp"
SUCCEEDED = "Succeeded"
_ENDED = (SUCCEEDED, "Failed", "Error")
_WORKFLOW = "workflows.argoproj.io/workflow"
_NODE = "workflows.argoproj.io/node-name"
_RAY_TYPE = "ray.io/node-type"


@dataclass
class Run:
    """One run: the workflow that it is, its name in the workspace, and where it works."""

    place: Place
    engine: str
    workflow: str
    run: str
    workspace: str
    service_id: str = ""
    """KFP's id."""

    def owns(self, document: Doc) -> bool:
        """Whether a pod, RayJob or RayCluster belongs to the run: by Argo's label or by ours."""
        labels = labels_of(document)
        return labels.get(_WORKFLOW) == self.workflow or labels.get(RUN_LABEL) in {self.run, self.workflow, self._uid()}

    def _uid(self) -> str:
        workflow = self.object()
        return str(workflow["metadata"]["uid"]) if workflow else ""

    def object(self) -> Doc | None:
        """Return the Workflow as it was last seen."""
        workflows = reversed(self.place.mirror.seen("workflows"))
        return next((workflow for workflow in workflows if name_of(workflow) == self.workflow), None)

    @property
    def phase(self) -> str:
        return str(_status(self.object()).get("phase", ""))

    @property
    def ended(self) -> bool:
        return self.phase in _ENDED

    @property
    def message(self) -> str:
        return str(_status(self.object()).get("message", ""))

    def pods(self, step: str = "", living: bool = False) -> list[Doc]:
        """The run's pods, of one step or of all, by the time of their creation; `living`: those that are there.

        A pod that was deleted and made again under its old name is there twice: uids tell them apart.
        """
        mirror = self.place.mirror
        pods = mirror.now("pods") if living else mirror.seen("pods")
        own = [pod for pod in pods if self.owns(pod) and step in ("", step_of(pod))]
        return sorted(own, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def rayjobs(self, living: bool = False) -> list[Doc]:
        mirror = self.place.mirror
        return [job for job in (mirror.now("rayjobs") if living else mirror.seen("rayjobs")) if self.owns(job)]

    def doing(self) -> str:
        """Return the progress of the run in a line."""
        last = {step: pod for pod in self.pods() if (step := step_of(pod))}
        finished = [step for step, pod in last.items() if _status(pod).get("phase") == SUCCEEDED]
        parts = [f"done {' '.join(finished)}"] if finished else []
        parts += [f"{step} {_short(pod)}" for step, pod in last.items() if step not in finished]
        parts += [f"RayJob {state}" for job in self.rayjobs() if (state := _status(job).get("jobDeploymentStatus"))]
        return f"{self.workflow} {self.phase or 'not yet seen'}: " + " · ".join(filter(None, [self.message, *parts]))

    def end(self, deadline: Deadline) -> str:
        """Wait for the end; the workflow's last phase. Failed when it is deleted meanwhile, or a pod can't start."""

        def ended() -> str | None:
            workflow = self.object()
            if self.ended:
                return self.phase
            if workflow is not None and workflow not in self.place.mirror.now("workflows"):
                raise Failed(f"workflow {self.workflow} is gone before its end")
            for pod in self.pods(living=True):
                if problem := trouble(pod):
                    raise Failed(f"pod {name_of(pod)}: {problem}")
            return None

        phase = self.place.mirror.wait(ended, f"the end of {self.workflow}", deadline, self.doing)
        self.place.mirror.refresh("pods", "rayjobs")
        return phase

    def succeed(self, deadline: Deadline) -> Run:
        """Wait for a good end; Failed says which step went wrong, and how."""
        phase = self.end(deadline)
        if phase != SUCCEEDED:
            raise Failed(f"{self.workflow} ended {phase}: {self.message or 'no message'}{self.failures()}")
        return self

    def failures(self) -> str:
        """The pods that failed, with what their containers said last."""
        messages = []
        for pod in self.pods():
            if (pod.get("status") or {}).get("phase") == "Failed":
                messages.append(f"{step_of(pod) or name_of(pod)}: {last_words(pod)}")
        return "".join(f"; {words}" for words in messages[:4])

    def seconds(self) -> dict[str, float]:
        """Seconds that the main container of each step's last pod ran."""
        ended = [pod for pod in self.pods() if (main_container(pod).get("terminated") or {}).get("finishedAt")]
        return {step_of(pod): own_seconds(pod) for pod in ended if step_of(pod) in STEPS}

    def wall_seconds(self) -> float:
        """Seconds from the making of the workflow to its end, by the cluster's clock."""
        workflow = self.object()
        if workflow is None or not _status(workflow).get("finishedAt"):
            raise Failed(f"workflow {self.workflow} has no end")
        return (moment(_status(workflow)["finishedAt"]) - created(workflow)).total_seconds()

    def artifact_places(self, endpoint: str) -> list[str]:
        """Where in the store the engine itself keeps what this run made: Argo's artifacts and logs, KFP's artifacts.

        As the Workflow says it; only what lies in the object store at `endpoint`, whose keys the tests have.
        """
        workflow = self.object() or {}
        repository = _status(workflow).get("artifactRepositoryRef") or {}
        s3 = (repository.get("artifactRepository") or {}).get("s3") or {}
        places = []
        if s3.get("bucket") and _host(s3.get("endpoint", "")) == _host(endpoint):
            prefix, name, _ = str(s3.get("keyFormat", "")).partition("{{workflow.name}}")
            prefix = prefix.replace("{{workflow.namespace}}", self.place.kube.namespace)
            if name and "{{" not in prefix:
                places.append(f"s3://{s3['bucket']}/{prefix}{self.workflow}")
        if self.service_id:
            uris = re.findall(rf"\w+://([^\s\"'\\?]*?/{re.escape(self.service_id)})/", json.dumps(workflow))
            places += sorted({f"s3://{uri}" for uri in uris})
        return places

    def left_behind(self) -> list[str]:
        """Return what is left: RayJobs, Ray clusters, and pods that have not ended."""
        mirror = self.place.mirror
        left = [f"{kind[:-1]} {name_of(document)}" for kind in ("rayjobs", "rayclusters")
                for document in mirror.now(kind) if self.owns(document)]  # fmt: skip
        for pod in self.pods(living=True):
            if (pod.get("status") or {}).get("phase") in ("Pending", "Running", None, "Unknown"):
                left.append(f"pod {name_of(pod)} ({(pod.get('status') or {}).get('phase')})")
        return left

    def wait_for_nothing_left(self, deadline: Deadline) -> None:
        """Failed, with their names, when something is still there at the deadline."""
        mirror = self.place.mirror
        mirror.wait(lambda: not self.left_behind(), f"nothing left of {self.workflow}", deadline,
                    lambda: "still there: " + ", ".join(self.left_behind()))  # fmt: skip


def _host(endpoint: str) -> str:
    """The first part of a server's name in the cluster: `seaweedfs` of `http://seaweedfs.kubeflow.svc:9000`."""
    return ".".join(endpoint.rpartition("//")[2].partition(":")[0].split(".")[:2])


def _status(document: Doc | None) -> Mapping[str, Any]:
    return (document or {}).get("status") or {}


def step_of(pod: Doc) -> str:
    """The task of the DAG that a pod works for, `ray-head` or `ray-worker`; empty for KFP's drivers and the like."""
    labels = labels_of(pod)
    if kind := labels.get(_RAY_TYPE):
        return f"ray-{kind}"
    if node := annotations_of(pod).get(_NODE):
        task = node.rpartition(".")[2].partition("(")[0]
        if task in (*STEPS, "onExit"):
            return task
    if any(name.startswith("ray.io/") or name == "job-name" for name in labels):  # KubeRay's submitter
        return "ray-submitter"
    return labels.get(COMPONENT, "") if _WORKFLOW in labels else ""


def main_container(pod: Doc) -> dict[str, Any]:
    """The state of the container that does the work: {"running": …}, {"terminated": …}, {"waiting": …} or {}."""
    statuses = _status(pod).get("containerStatuses") or []
    names = ("main", "ray-head", "ray-worker")
    return next((dict(status.get("state") or {}) for status in statuses if status["name"] in names), {})


def own_seconds(pod: Doc) -> float:
    """Return the seconds that a pod's main container ran, 0 if it has not ended."""
    ended = main_container(pod).get("terminated") or {}
    if not (ended.get("startedAt") and ended.get("finishedAt")):
        return 0.0
    return (moment(ended["finishedAt"]) - moment(ended["startedAt"])).total_seconds()


def last_words(pod: Doc) -> str:
    """Return the exit code and message of a pod's container, or Kubernetes' message on the pod."""
    ended = main_container(pod).get("terminated") or {}
    words = [f"exit code {ended['exitCode']}" if "exitCode" in ended else "", ended.get("reason", ""),
             ended.get("message", ""), _status(pod).get("message", "")]  # fmt: skip
    return " · ".join(" ".join(str(word).split())[:300] for word in words if word) or "no word"


def _short(pod: Doc) -> str:
    phase = _status(pod).get("phase", "")
    return " ".join(filter(None, [str(phase), unschedulable(pod)]))


def uid_of(document: Doc) -> str:
    return str(document["metadata"]["uid"])


def created(document: Doc) -> datetime:
    return moment(document["metadata"]["creationTimestamp"])


def moment(text: str) -> datetime:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(text)
