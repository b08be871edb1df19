"""Kubeflow Pipelines on the stand-in of e2e_api.py: a run of kfp_server.py's service is a workflow that is played."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from e2e_api import Doc, now
from e2e_play import DEADLINE_SCALE, RUN, STEP_OF, WORKFLOW, Flow, Play, _thread
from kfp_state import KfpService, missing

STATES = {"": "PENDING", "Running": "RUNNING", "Succeeded": "SUCCEEDED", "Failed": "FAILED", "Error": "FAILED"}
TASKS = ("download", "clean", "rayjob", "train", "evaluate", "promote")


@dataclass
class KfpOnCluster(KfpService):
    """The service, whose runs have pods; `play` is set by the test."""

    play: Play = field(kw_only=True)
    inline: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Packages that came with a run or a schedule instead of as a version of a pipeline."""

    def _routes(self) -> list[tuple[str, str, Callable[..., dict[str, Any]]]]:
        segment = "([^/:]+)"
        return [
            *super()._routes(),
            (f"/runs/{segment}", "DELETE", self._delete_run),
            (f"/runs/{segment}:terminate", "POST", self._terminate),
            (f"/experiments/{segment}", "DELETE",
             lambda q, b, identifier: _without(self.experiments, "experiment_id", identifier)),
            (f"/pipelines/{segment}", "DELETE", self._delete_pipeline),
            (f"/pipelines/{segment}/versions/{segment}", "DELETE",
             lambda q, b, pipeline, identifier: _without(self.versions, "pipeline_version_id", identifier)),
        ]  # fmt: skip

    def _workflow_of(self, run: str) -> Doc | None:
        workflows = [
            workflow
            for workflow in self.play.cluster.list("workflows")
            if _labels(workflow).get("pipeline/runid") == run
        ]
        return workflows[0] if workflows else None

    def _version(self, reference: dict[str, str]) -> dict[str, Any]:
        inline_version = self.inline.get(reference.get("pipeline_version_id", ""))
        return inline_version or super()._version(reference)

    def _with_reference(self, body: dict[str, Any]) -> dict[str, Any]:
        """A request with the package in it, as one that names a version."""
        if "pipeline_spec" not in body:
            return body
        name = f"inline-{len(self.inline)}"
        reference = {"pipeline_id": "inline", "pipeline_version_id": name}
        self.inline[name] = {**reference, "pipeline_spec": body["pipeline_spec"]}
        return {**body, "pipeline_version_reference": reference}

    def create_run(self, body: dict[str, Any]) -> dict[str, Any]:
        body = self._with_reference(body)
        run = super().create_run(body)
        package = self._version(body["pipeline_version_reference"])["pipeline_spec"]
        spec = package["pipeline_spec"]
        labels = {"pipeline/runid": run["run_id"]}
        name = f"training-{run['display_name']}"
        settings = package["platform_spec"]["platforms"]["kubernetes"].get("pipelineConfig", {})
        deadline = {key: settings[key] for key in ("activeDeadlineSeconds",) if key in settings}
        document = self.play.cluster.create(
            "workflows", {"metadata": {"name": name, "labels": labels}, "spec": deadline}
        )
        parameters = body.get("runtime_config", {}).get("parameters", {})
        _thread(lambda: KfpFlow(self.play, document, spec, parameters, run["run_id"]).play())
        return run

    def _get_run(self, query: dict[str, str], body: Any, run: str) -> dict[str, Any]:
        workflow = self._workflow_of(run)
        phase = (workflow or {}).get("status", {}).get("phase", "") if workflow else "Failed"
        for entry in self.runs:
            if entry["run_id"] == run:
                entry["_script"] = [(STATES[phase], {})]
        return super()._get_run(query, body, run)

    def _create_recurring(self, query: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        recurring_run = super()._create_recurring(query, self._with_reference(body))
        self.fire(recurring_run["display_name"])
        return recurring_run

    def _delete_run(self, query: dict[str, str], body: Any, run_id: str) -> dict[str, Any]:
        if workflow := self._workflow_of(run_id):
            self.play.cluster.delete("workflows", workflow["metadata"]["name"])
        return _without(self.runs, "run_id", run_id)

    def _terminate(self, query: dict[str, str], body: Any, run_id: str) -> dict[str, Any]:
        workflow = self._workflow_of(run_id)
        if workflow is None:
            raise missing(f"Run {run_id} not found.")
        name = workflow["metadata"]["name"]
        self.play.cluster.update("workflows", name, lambda document: document["spec"].update(activeDeadlineSeconds=0))
        return {}

    def _delete_pipeline(self, query: dict[str, str], body: Any, pipeline_id: str) -> dict[str, Any]:
        if any(version["pipeline_id"] == pipeline_id for version in self.versions):
            raise AssertionError("a pipeline that has versions")
        return _without(self.pipelines, "pipeline_id", pipeline_id)


class KfpFlow(Flow):
    """A run: its parameters from the package and the request, its pods as KFP's compiler makes them."""

    def __init__(self, play: Play, document: Doc, spec: Doc, parameters: dict[str, Any], run: str) -> None:
        self.play_, self.cluster, self.run = play, play.cluster, run
        self.name, self.uid = document["metadata"]["name"], document["metadata"]["uid"]
        inputs = spec["root"]["inputDefinitions"]["parameters"]
        self.values = {name: str(definition.get("defaultValue", "")) for name, definition in inputs.items()}
        self.values |= {name: str(value) for name, value in parameters.items()}
        self.workspace = play.local(self.values["workspace"])
        self.labels = {RUN: run, WORKFLOW: self.name}
        executors = spec["deploymentSpec"]["executors"]
        self.templates = {task: _template(executors.get(f"exec-{task}", {})) for task in (*TASKS, "resize")}
        self.tries: dict[str, int] = {}
        self.templates["clean-rayjob"] = self.templates["clean"]
        self.modes = {field: re.search(rf'{field}\\*": *\\*"rayjob', json.dumps(spec)) for field in ("mode", "clean")}

    def tasks(self) -> list[str]:
        resize = "rayjob" if self.modes["mode"] else "resize"
        clean = "clean-rayjob" if self.modes["clean"] else "clean"
        return [{"rayjob": resize, "clean": clean}.get(task, task) for task in TASKS]

    def tries_again(self, code: int | str) -> bool:
        return True  # KFP counts; it knows no exit codes

    def metadata_of(self, task: str, number: int) -> Doc:
        step = STEP_OF.get(task, task)
        return {"labels": {**self.labels, "app.kubernetes.io/component": step}}

    def _keep_artifact(self, task: str) -> None:
        """Write a step's artifact below KFP's pipeline root, as its workflow names it."""
        place = f"mlpipeline/v2/artifacts/imagemill-training/{self.run}/{task}"
        file = self.play_.store / place / "metrics.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
        artifact = {"uri": f"minio://{place}/metrics.json"}
        self.cluster.update("workflows", self.name, lambda document: document["spec"].update(seen=artifact))

    def _owner_of_ray(self, pod: str) -> Doc:
        """The launcher's pod."""
        document = self.cluster.get("pods", pod) or {"metadata": {"uid": "gone"}}
        return {"kind": "Pod", "name": pod, "uid": document["metadata"]["uid"]}

    def _never_scheduled(self, pod: str, resource: str) -> str:
        began, deadline_field = time.monotonic(), "activeDeadlineSeconds"
        condition = {"type": "PodScheduled", "status": "False", "message": f"0/3 nodes: Insufficient {resource}"}
        self.play_._pod_state(pod, "Pending", {}, conditions=[condition])
        with self.cluster.changed:
            while not self.cluster.over.is_set():
                workflow = self.cluster.get("workflows", self.name)
                limit = float("inf") if workflow is None else workflow["spec"].get(deadline_field, float("inf"))
                if workflow is None or time.monotonic() >= began + limit * DEADLINE_SCALE:  # 0: terminated
                    break
                self.cluster.changed.wait(0.05)
        self.cluster.delete("pods", pod)
        return "deadline"


def _template(executor: Doc) -> Doc:
    """Build the fields of an Argo template that the flow reads: retries and the container's resources."""
    resources = executor.get("container", {}).get("resources", {})
    accelerator = resources.get("accelerator", {})
    memory = str(resources.get("resourceMemoryLimit") or resources.get("memoryLimit") or "")
    kind = accelerator.get("resourceType") or accelerator.get("type")
    return {
        "retryStrategy": {"limit": 2},
        "container": {"image": "step", "resources": {"limits": {"memory": memory, **({kind: "1"} if kind else {})}}},
    }


def _labels(document: Doc) -> dict[str, str]:
    return dict(document["metadata"].get("labels") or {})


def _without(items: list[dict[str, Any]], key: str, identifier: str) -> dict[str, Any]:
    if not any(item[key] == identifier for item in items):
        raise missing(f"{identifier} not found at {now()}")
    items[:] = [item for item in items if item[key] != identifier]
    return {}
