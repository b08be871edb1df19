"""A run on the cluster, whoever started it: KFP's runs are Argo workflows too, so both are watched in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from imagemill.components.store.config import STEPS
from imagemill.pipelines.cluster import RUN_LABEL

from .kube import Doc, annotations_of, labels_of, name_of
from .probe import trouble, unschedulable
from .scenario import Deadline, Failed

if TYPE_CHECKING:
    from .session import Session

ARGO, KFP = "argo", "kfp"
SUCCEEDED = "Succeeded"
_ENDED = (SUCCEEDED, "Failed", "Error")
_WORKFLOW = "workflows.argoproj.io/workflow"
_NODE = "workflows.argoproj.io/node-name"
_COMPONENT = "app.kubernetes.io/component"
_RAY_TYPE = "ray.io/node-type"


@dataclass
class Run:
    """One run: the workflow that it is, its name in the workspace, and where it works."""

    session: Session
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
        found = self.object()
        return str(found["metadata"]["uid"]) if found else ""

    def object(self) -> Doc | None:
        """The Workflow as it was last seen."""
        return self.session.find("workflows", self.workflow)

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
        """The run's pods, of one step or of all, by the time of their creation; `living`: those that are there."""
        mirror = self.session.mirror
        found = mirror.now("pods") if living else mirror.seen("pods")
        mine = [pod for pod in found if self.owns(pod) and step in ("", step_of(pod))]
        return sorted(mine, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def rayjobs(self, living: bool = False) -> list[Doc]:
        mirror = self.session.mirror
        return [one for one in (mirror.now("rayjobs") if living else mirror.seen("rayjobs")) if self.owns(one)]

    def doing(self) -> str:
        """How far the run is, in a line."""
        last = {step: pod for pod in self.pods() if (step := step_of(pod))}
        done = [step for step, pod in last.items() if _status(pod).get("phase") == SUCCEEDED]
        parts = [f"done {' '.join(done)}"] if done else []
        parts += [f"{step} {_short(pod)}" for step, pod in last.items() if step not in done]
        parts += [f"RayJob {state}" for one in self.rayjobs() if (state := _status(one).get("jobDeploymentStatus"))]
        return f"{self.workflow} {self.phase or 'not yet seen'}: " + " · ".join(filter(None, [self.message, *parts]))

    def end(self, deadline: Deadline) -> str:
        """Wait for the end; the workflow's last phase. Failed when it is deleted meanwhile, or a pod can't start."""

        def ended() -> str | None:
            found = self.object()
            if self.ended:
                return self.phase
            if found is not None and found not in self.session.mirror.now("workflows"):
                raise Failed(f"workflow {self.workflow} is gone before its end")
            for pod in self.pods(living=True):
                if problem := trouble(pod):
                    raise Failed(f"pod {name_of(pod)}: {problem}")
            return None

        phase = self.session.mirror.wait(ended, f"the end of {self.workflow}", deadline, self.doing)
        self.session.mirror.refresh("pods", "rayjobs")
        return phase

    def succeed(self, deadline: Deadline) -> Run:
        """Wait for a good end; Failed says which step went wrong, and how."""
        phase = self.end(deadline)
        if phase != SUCCEEDED:
            raise Failed(f"{self.workflow} ended {phase}: {self.message or 'no message'}{self.failures()}")
        return self

    def failures(self) -> str:
        """The pods that failed, with what their containers said last."""
        told = []
        for pod in self.pods():
            if (pod.get("status") or {}).get("phase") == "Failed":
                told.append(f"{step_of(pod) or name_of(pod)}: {last_words(pod)}")
        return "".join(f"; {one}" for one in told[:4])

    def seconds(self) -> dict[str, float]:
        """Seconds that the main container of each step's last pod ran."""
        found = {}
        for pod in self.pods():
            main = main_container(pod).get("terminated") or {}
            if step_of(pod) in STEPS and main.get("startedAt") and main.get("finishedAt"):
                found[step_of(pod)] = (moment(main["finishedAt"]) - moment(main["startedAt"])).total_seconds()
        return found

    def left_behind(self) -> list[str]:
        """What still is or runs: RayJobs, Ray clusters, and pods that have not ended."""
        mirror = self.session.mirror
        left = [f"{kind[:-1]} {name_of(one)}" for kind in ("rayjobs", "rayclusters")
                for one in mirror.now(kind) if self.owns(one)]  # fmt: skip
        for pod in self.pods(living=True):
            if (pod.get("status") or {}).get("phase") in ("Pending", "Running", None, "Unknown"):
                left.append(f"pod {name_of(pod)} ({(pod.get('status') or {}).get('phase')})")
        return left

    def wait_for_nothing_left(self, deadline: Deadline) -> None:
        """Failed, with their names, when something is still there at the deadline."""
        mirror = self.session.mirror
        mirror.wait(lambda: not self.left_behind(), f"nothing left of {self.workflow}", deadline,
                    lambda: "still there: " + ", ".join(self.left_behind()))  # fmt: skip


def _status(document: Doc | None) -> Mapping[str, Any]:
    return (document or {}).get("status") or {}


def step_of(pod: Doc) -> str:
    """The task of the DAG that a pod works for, `ray-head` or `ray-worker`; empty for KFP's drivers and the like."""
    labels = labels_of(pod)
    if kind := labels.get(_RAY_TYPE):
        return f"ray-{kind}"
    if node := annotations_of(pod).get(_NODE):
        task = node.rpartition(".")[2].partition("(")[0]
        if task in (*STEPS, "plan", "rayjob", "onExit"):
            return task
    if any(name.startswith("ray.io/") or name == "job-name" for name in labels):  # KubeRay's submitter
        return "ray-submitter"
    return labels.get(_COMPONENT, "") if _WORKFLOW in labels else ""


def main_container(pod: Doc) -> dict[str, Any]:
    """The state of the container that does the work: {"running": …}, {"terminated": …}, {"waiting": …} or {}."""
    statuses = _status(pod).get("containerStatuses") or []
    names = ("main", "ray-head", "ray-worker")
    return next((dict(one.get("state") or {}) for one in statuses if one["name"] in names), {})


def last_words(pod: Doc) -> str:
    """How a pod ended: its container's exit code and message, or what Kubernetes says of the pod."""
    ended = main_container(pod).get("terminated") or {}
    words = [f"exit code {ended['exitCode']}" if "exitCode" in ended else "", ended.get("reason", ""),
             ended.get("message", ""), _status(pod).get("message", "")]  # fmt: skip
    return " · ".join(" ".join(str(word).split())[:300] for word in words if word) or "no word"


def _short(pod: Doc) -> str:
    phase = _status(pod).get("phase", "")
    return " ".join(filter(None, [str(phase), unschedulable(pod)]))


def moment(text: str) -> datetime:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(text)
