"""A simulation of Argo, KubeRay, kubelet and the steps on the API server of e2e_api.py, in tenths of seconds.

The workflow is the one that `imagemill compile --target argo` writes: its tasks, parameters, retries, resources, mutex
and deadline are read from it. The steps store what the real ones do: records and manifests, in a folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e_api import Cluster, Doc, now
from network import Peer, allowed

from imagemill.components.storage.store import get_store

KIND_OF = {"download": "raw", "clean-rayjob": "clean", "clean": "clean", "rayjob": "tensors", "resize": "tensors",
           "train": "model", "evaluate": "evaluation"}  # fmt: skip
STEP_OF = {"rayjob": "resize", "clean-rayjob": "clean"}
TOO_LITTLE = "40Mi"
"""Memory with which no step can start."""
NODE, WORKFLOW = "workflows.argoproj.io/node-name", "workflows.argoproj.io/workflow"
RUN = "imagemill.io/run"
REPOSITORY = {"artifactRepository": {"s3": {
    "endpoint": "seaweedfs.kubeflow:9000", "bucket": "mlpipeline",
    "keyFormat": "artifacts/{{workflow.name}}/{{pod.name}}",
}}}  # fmt: skip
DEADLINE_SCALE = 1e-2
"""A second of a workflow's deadline takes so long here."""
VISIBLE_S = 2.0
"""A pod that no node can take is pending at least so long, so that it is seen on a busy machine, too."""


@dataclass
class Faults:
    """The faults that the simulation injects."""

    fails: str = ""
    """The task that ends with exit code 1."""
    forgets_retry: bool = False
    leaves_rayjob: bool = False
    """The RayJob has no owner, and nobody deletes it."""
    ignores_mutex: bool = False
    retries_wrong_input: bool = False
    other_tensors_after: str = ""
    """The task after whose loss the tensors come out otherwise."""
    image_is_missing: str = ""
    outlives_its_pod: bool = False
    """The work of a deleted pod comes to a good end, as it does when the pod is deleted too late."""
    takes_turns: bool = False
    """Runs that wait for one another do not say so."""
    hangs: str = ""
    """The task that never ends."""
    unknown_templates: int = 0
    """So many Workflows end because the controller does not know their template yet."""
    keeps_artifacts: bool = False
    """What Argo has stored of a Workflow stays when it is deleted."""
    policies_hold: bool = True
    """Something enforces network policies."""


@dataclass
class Play:
    """The controllers of the cluster."""

    cluster: Cluster
    store: Path
    faults: Faults = field(default_factory=Faults)
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    """How long a task works, in workflows that have the first word in their names; else, and at a second try, 0.03."""
    hosts: dict[tuple[str, int], tuple[Peer, int]] = field(default_factory=dict)
    """What names and ports of services lead to."""
    _mutexes: dict[str, threading.Lock] = field(default_factory=dict)

    def begin(self) -> None:
        self.cluster.on_create = self._created
        self.cluster.on_delete = self._deleted

    def _deleted(self, kind: str, document: Doc) -> None:
        """Argo's garbage collection of artifacts."""
        if kind == "workflows" and not self.faults.keeps_artifacts:
            shutil.rmtree(self.store / "mlpipeline" / "artifacts" / document["metadata"]["name"], ignore_errors=True)

    def _created(self, kind: str, document: Doc) -> None:
        if kind == "workflows" and "workflowTemplateRef" in document["spec"]:
            _thread(self._workflow, document)
        elif kind == "cronworkflows":
            _thread(self._cron, document)
        elif (
            kind == "pods"
            and "command" in document["spec"].get("containers", [{}])[0]
            and WORKFLOW not in _labels(document)
        ):
            _thread(self._probe, document)

    def local(self, uri: str) -> Path:
        return self.store / uri.removeprefix("s3://")

    # Pods of the tests' own: what they ask is run here, on the folder.

    def _probe(self, pod: Doc) -> None:
        name, container = pod["metadata"]["name"], pod["spec"]["containers"][0]
        if self.faults.image_is_missing and self.faults.image_is_missing in container["image"]:
            reason = {"reason": "ImagePullBackOff", "message": f"can't pull {container['image']}"}
            self._pod_state(name, "Pending", {"waiting": reason})
            return
        _, _, source, question, arguments_json = container["command"]
        arguments = json.loads(arguments_json)
        scope: dict[str, Any] = {"__name__": "inside"}
        exec(compile(source, "inside.py", "exec"), scope)
        if question == "listen":
            self._pod_state(name, "Running", {"running": {"startedAt": now()}}, podIP="10.244.0.9")
            return
        if question == "version":
            answer = {"version": "0.1.0", "uid": 10001, "has": ["ray", "torch"]}
        elif question == "connect":
            answer = {target["name"]: self._connected(pod, target) for target in arguments["targets"]}
        else:
            try:
                answer = scope["QUESTIONS"][question](**self._mapped(arguments))
            except Exception:
                self.cluster.logs[name] = traceback.format_exc()
                self._pod_state(name, "Failed", {"terminated": {"exitCode": 1}})
                return
        self.cluster.logs[name] = f"chatter\n{scope['MARK']}{json.dumps(answer)}\n"
        self._pod_state(name, "Succeeded", {"terminated": {"exitCode": 0}})

    def _mapped(self, value: Any) -> Any:
        """The arguments of a question, with folders for the addresses of the object store."""
        if isinstance(value, dict):
            return {key: self._mapped(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._mapped(inner) for inner in value]
        return str(self.local(value)) if isinstance(value, str) and value.startswith("s3://") else value

    def _connected(self, pod: Doc, target: Doc) -> str:
        """Return the result of the pod's connection under the network policies of the cluster."""
        listeners = {item.get("status", {}).get("podIP"): item for item in self.cluster.list("pods")}
        if listener := listeners.get(target["host"]):
            peer, port = Peer(_labels(listener), "imagemill", str(target["host"])), int(target["port"])
        elif (target["host"], target["port"]) in self.hosts:
            peer, port = self.hosts[target["host"], target["port"]]
        else:
            return "name not found"
        policies = self.cluster.list("networkpolicies") if self.faults.policies_hold else []
        namespaced = [{**item, "metadata": {**item["metadata"], "namespace": "imagemill"}} for item in policies]
        return "answers" if allowed(namespaced, Peer(_labels(pod), "imagemill"), peer, port) else "no answer"

    def _pod_state(self, name: str, phase: str, state: Doc, container: str = "main", **more: Any) -> bool:
        def change(pod: Doc) -> None:
            old = pod.get("status", {}).get("containerStatuses", [{}])[0].get("state", {}).get("running", {})
            if "terminated" in state:
                state["terminated"] |= {"startedAt": old.get("startedAt", now()), "finishedAt": now()}
            pod["status"] = {"phase": phase, "containerStatuses": [{"name": container, "state": state}], **more}

        return self.cluster.update("pods", name, change)

    # Argo.

    def _cron(self, document: Doc) -> None:
        time.sleep(0.1)
        name = document["metadata"]["name"]
        cron_workflow = self.cluster.get("cronworkflows", name)
        if (
            cron_workflow is None
            or cron_workflow["spec"].get("suspend")
            or cron_workflow["spec"]["schedules"] != ["* * * * *"]
        ):
            return
        labels = {**cron_workflow["spec"].get("workflowMetadata", {}).get("labels", {}),
                  "workflows.argoproj.io/cron-workflow": name}  # fmt: skip
        owner = {"kind": "CronWorkflow", "name": name, "uid": cron_workflow["metadata"]["uid"]}
        self.cluster.create("workflows", {
            "metadata": {"name": f"{name}-1", "labels": labels, "ownerReferences": [owner]},
            "spec": cron_workflow["spec"]["workflowSpec"],
        })  # fmt: skip

    def _workflow(self, document: Doc) -> None:
        name = document["metadata"]["name"]
        template = self.cluster.get("workflowtemplates", document["spec"]["workflowTemplateRef"]["name"])
        if template is None:
            self._phase(name, "Error", "workflowtemplate not found")
            return
        if self.faults.unknown_templates:
            self.faults.unknown_templates -= 1
            template_name = template["metadata"]["name"]
            self._phase(name, "Error", f'workflowtemplates.argoproj.io "{template_name}" not found')
            return
        flow = Flow(self, document, template["spec"])
        mutex = template["spec"]["synchronization"]["mutexes"][0]["name"]
        lock = self._mutexes.setdefault(mutex, threading.Lock())
        if not self.faults.ignores_mutex and not lock.acquire(blocking=False):
            if not self.faults.takes_turns:
                self._phase(name, "Pending", f"Waiting for imagemill/Mutex/{mutex} lock. Lock status: 0/1")
            lock.acquire()
        try:
            flow.play()
        finally:
            if not self.faults.ignores_mutex:
                lock.release()

    def _phase(self, name: str, phase: str, message: str = "") -> bool:
        finished = {"finishedAt": f"{now()}"} if phase in ("Succeeded", "Failed", "Error") else {}
        status = {"phase": phase, "message": message, **finished, "artifactRepositoryRef": REPOSITORY}
        return self.cluster.update("workflows", name, lambda workflow: workflow.update(status=status))


class Flow:
    """A running workflow."""

    def __init__(self, play: Play, document: Doc, spec: Doc) -> None:
        self.play_, self.cluster, self.spec = play, play.cluster, spec
        self.name, self.uid = document["metadata"]["name"], document["metadata"]["uid"]
        parameters = document["spec"].get("arguments", {}).get("parameters", [])
        self.values = {
            parameter["name"]: str(parameter["value"]) for parameter in [*spec["arguments"]["parameters"], *parameters]
        }
        self.workspace = play.local(self.values["workspace"])
        self.ends = time.monotonic() + spec["activeDeadlineSeconds"] * DEADLINE_SCALE
        self.run = self.name
        self.labels = {**spec["podMetadata"]["labels"], RUN: self.run, WORKFLOW: self.name}
        self.templates = {template["name"]: template for template in spec["templates"]}
        self.tries: dict[str, int] = {}

    def play(self) -> None:
        self.play_._phase(self.name, "Running")
        phase, message = "Succeeded", ""
        for task in self.tasks():
            if task == "rayjob" and self._there("rayjob"):
                continue
            message = self._task(task)
            if message:
                phase = "Failed"
                break
        if self.cluster.get("workflows", self.name) is None:
            return
        self._finish()
        self.play_._phase(self.name, phase, message)

    def tasks(self) -> list[str]:
        """Return the tasks in the order of the DAG; clean's RayJob only where the cluster file always wants one."""
        tasks = self.templates["training"]["dag"]["tasks"]
        self.templates |= {task["name"]: self.templates[task["template"]] for task in tasks}
        left_out = set() if '"clean":"rayjob"' in json.dumps(self.spec).replace("\\", "") else {"clean-rayjob"}
        return [task["name"] for task in tasks if task["name"] not in left_out]

    def _task(self, task: str) -> str:
        """Try it as often as its template says; why it failed, or an empty string."""
        template = self.templates[task]
        limit = 0 if self.play_.faults.forgets_retry else int(template["retryStrategy"]["limit"])
        code: int | str = 0
        for number in range(limit + 1):
            code = self._try(task, template, number)
            if code == -1 and limit:  # forgotten at once, so that a pod of the same name is made
                code = self._try(task, template, number)
            if code == 0:
                return ""
            if code == "gone":
                return "deleted"
            if code == "deadline":
                return "Step exceeded its deadline"
            if not self.tries_again(code):
                break
        return f"{task}: exit code {code}"

    def tries_again(self, code: int | str) -> bool:
        return code in (-1, 75) or (code == 2 and self.play_.faults.retries_wrong_input)

    def metadata_of(self, task: str, number: int) -> Doc:
        """Return the pod metadata that identifies this task: Argo's annotation."""
        return {"labels": self.labels, "annotations": {NODE: f"{self.name}.{task}({number})"}}

    def _try(self, task: str, template: Doc, number: int) -> int | str:
        """0, an exit code, -1 for a pod that was lost, `gone` for a deleted workflow, or `deadline`."""
        pod = f"{self.name}-{task}-{number}"
        container = template.get("container", {"image": "argoexec"})
        owner = {"kind": "Workflow", "name": self.name, "uid": self.uid}
        metadata = {**self.metadata_of(task, number), "name": pod, "ownerReferences": [owner]}
        self.cluster.create("pods", {"metadata": metadata, "spec": {"containers": [{"name": "main", **container}]}})
        missing_resources = [key for key in container.get("resources", {}).get("limits", {}) if "no-such" in key]
        if missing_resources:
            return self._never_scheduled(pod, missing_resources[0])
        self.play_._pod_state(pod, "Running", {"running": {"startedAt": now()}})
        self.cluster.event("Pod", pod, "Started", "Started container main")
        self.cluster.logs[pod] = f"[{task}] works\n"
        self.tries[task] = self.tries.get(task, 0) + 1
        seconds = self._seconds(task)
        lost = self._ray(task, pod, seconds) if task.endswith("rayjob") else self._work(pod, seconds)
        if lost:
            return "gone" if self.cluster.get("workflows", self.name) is None else lost
        memory = json.dumps(container.get("resources", {}))
        code = 137 if TOO_LITTLE in memory else self._store(task)
        reason = {"reason": "OOMKilled"} if code == 137 else {}
        state = {"terminated": {"exitCode": code, "message": f"exit code {code}" if code else "", **reason}}
        self.play_._pod_state(pod, "Failed" if code else "Succeeded", state)
        return code

    def _seconds(self, task: str) -> float:
        if self.play_.faults.hangs == task:
            return 600.0
        durations = [
            seconds_by_task[task]
            for word, seconds_by_task in self.play_.seconds.items()
            if word in self.name and task in seconds_by_task
        ]
        return durations[0] if durations and self.tries[task] == 1 else 0.03

    def _never_scheduled(self, pod: str, resource: str) -> str:
        condition = {"type": "PodScheduled", "status": "False", "message": f"0/3 nodes: Insufficient {resource}"}
        self.play_._pod_state(pod, "Pending", {}, conditions=[condition])
        ends = max(self.ends, time.monotonic() + VISIBLE_S)
        while time.monotonic() < ends and self.cluster.get("pods", pod):
            time.sleep(0.02)
        self.cluster.delete("pods", pod)
        return "deadline"

    def _work(self, pod: str, seconds: float) -> int:
        """0, or -1 when the pod is deleted meanwhile."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.cluster.over.is_set():
            if self.cluster.get("pods", pod) is None:
                return 0 if self.play_.faults.outlives_its_pod else -1
            time.sleep(0.01)
        return 0

    def _ray(self, task: str, pod: str, seconds: float) -> int:
        """The RayJob, made or adopted by `pod`. -1: the pod, or the workflow, is gone.

        The head or the worker may be lost: it comes again, unseen here, and the job ends.
        """
        step = STEP_OF[task]
        job = f"job-{'clean-' * (step == 'clean')}{self.name}"
        if self.cluster.get("rayjobs", job) is None:
            self._make_ray(step, job, self._owner_of_ray(pod))
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.cluster.over.is_set():
            if self.cluster.get("workflows", self.name) is None or self.cluster.get("pods", pod) is None:
                return -1
            if not all(self.cluster.get("pods", f"{job}-{kind}") for kind in ("head", "worker")):
                break
            time.sleep(0.01)
        status = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
        self.cluster.update("rayjobs", job, lambda rayjob: rayjob.update(status=status))
        return 0

    def _owner_of_ray(self, pod: str) -> Doc:
        """Argo's own: the workflow."""
        return {"kind": "Workflow", "name": self.name, "uid": self.uid}

    def _make_ray(self, step: str, job: str, owner: Doc) -> None:
        labels = {RUN: self.run, "app.kubernetes.io/component": step}
        owners = [] if self.play_.faults.leaves_rayjob else [owner]
        rayjob = self.cluster.create(
            "rayjobs", {"metadata": {"name": job, "labels": labels, "ownerReferences": owners}}
        )
        owned = {"ownerReferences": [{"kind": "RayJob", "name": job, "uid": rayjob["metadata"]["uid"]}]}
        for kind in ("head", "worker"):
            name, container = f"{job}-{kind}", {"name": f"ray-{kind}", "image": "ray"}
            metadata = {"name": name, "labels": {**labels, "ray.io/node-type": kind}, **owned}
            self.cluster.create("pods", {"metadata": metadata, "spec": {"containers": [container]}})
            self.play_._pod_state(name, "Running", {"running": {"startedAt": now()}}, container=f"ray-{kind}")
        self.cluster.update("rayjobs", job, lambda document: document.update(status={"jobDeploymentStatus": "Running"}))

    # The steps.

    def _fingerprint(self, task: str) -> str:
        seed = self.values.get("seed", "") if task in ("train", "evaluate") else ""
        step = STEP_OF.get(task, task)
        return hashlib.sha256(f"{step} {self.values['dataset']} {seed}".encode()).hexdigest()[:16]

    def _there(self, task: str) -> bool:
        return (self.workspace / KIND_OF[task] / self._fingerprint(task) / "_manifest.json").exists()

    def _store(self, task: str) -> int:
        """Write a step's outputs to the store; return its exit code."""
        step = STEP_OF.get(task, task)
        if task == "plan":
            return 0
        record: Doc = {"state": "ran", "seconds": 0.03, "exit_code": 0, "error": "", "uri": "", "metrics": {}}
        source = self.values["source"]
        if task == "download" and source.startswith("http"):
            record |= {"exit_code": 75, "error": f"{source} can't be reached"}
        elif task == "download" and source and not self.play_.local(source).exists():
            record |= {"exit_code": 2, "error": f"source: expected files, found none in {source}"}
        elif task == self.play_.faults.fails:
            record |= {"exit_code": 1, "error": "it was told to fail"}
        elif task in KIND_OF and self._there(task):
            record["state"] = "ran" if self.tries.get("clean-rayjob") and task == "clean" else "cached"
        elif task in KIND_OF:
            self._commit(task)
        else:
            record["state"] = "cached" if (self.workspace / "names").exists() else "ran"
            (self.workspace / "names").mkdir(parents=True, exist_ok=True)
        self._keep_artifact(task)
        folder = self.workspace / "runs" / self.run
        _put(folder / f"{step}.json", json.dumps(record))
        _put(folder / "report.html", "<p>report</p>")
        return int(record["exit_code"])

    def _keep_artifact(self, task: str) -> None:
        """Write the artifacts that Argo keeps of a step."""
        if task == "promote":
            _put(self.play_.store / "mlpipeline" / "artifacts" / self.name / task / "report.html", "<p>report</p>")

    def _commit(self, task: str) -> None:
        lost = self.play_.faults.other_tensors_after
        tries = len([pod for _, kind, change, pod in self.cluster.history if kind == "pods" and change == "ADDED"
                     and pod["metadata"]["name"].startswith(f"{self.name}-{lost}-")]) if lost else 1  # fmt: skip
        content = f"{STEP_OF.get(task, task)}{'' if KIND_OF[task] != 'tensors' or tries < 2 else ' otherwise'}"
        file = {"role": "data", "split": "train", "rows": 10, "sha256": hashlib.sha256(content.encode()).hexdigest()}
        folder = self.workspace / KIND_OF[task] / self._fingerprint(task)
        _put(folder / "_manifest.json", json.dumps({"files": [file]}))

    def _finish(self) -> None:
        """The exit handler: nothing of the run is left."""
        if not self.play_.faults.leaves_rayjob:
            for job in (f"job-{self.name}", f"job-clean-{self.name}"):
                self.cluster.delete("rayjobs", job)


def _put(file: Path, text: str) -> None:
    """Write a file in one move, as an object store does: a probe may read it meanwhile."""
    get_store(str(file)).put(str(file), text.encode())


def _labels(document: Doc) -> dict[str, str]:
    return dict(document["metadata"].get("labels", {}))


def _thread(function: Any, *arguments: Any) -> None:
    def run() -> None:
        try:
            function(*arguments)
        except Exception as error:  # a test that waits would not learn of it
            print(f"the stand-in failed: {type(error).__name__}: {error}", file=sys.stderr)
            raise

    threading.Thread(target=run, daemon=True).start()
