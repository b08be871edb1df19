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
        one = "([^/:]+)"
        return [
            *super()._routes(),
            (f"/runs/{one}", "DELETE", self._delete_run),
            (f"/runs/{one}:terminate", "POST", self._terminate),
            (f"/experiments/{one}", "DELETE", lambda q, b, wanted: _without(self.experiments, "experiment_id", wanted)),
            (f"/pipelines/{one}", "DELETE", self._delete_pipeline),
            (f"/pipelines/{one}/versions/{one}", "DELETE",
             lambda q, b, pipeline, wanted: _without(self.versions, "pipeline_version_id", wanted)),
        ]  # fmt: skip

    def _workflow_of(self, run: str) -> Doc | None:
        found = [one for one in self.play.cluster.list("workflows") if _labels(one).get("pipeline/runid") == run]
        return found[0] if found else None

    def _version(self, reference: dict[str, str]) -> dict[str, Any]:
        known = self.inline.get(reference.get("pipeline_version_id", ""))
        return known or super()._version(reference)

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
        made = super().create_run(body)
        package = self._version(body["pipeline_version_reference"])["pipeline_spec"]
        spec = package["pipeline_spec"]
        labels = {"pipeline/runid": made["run_id"]}
        name = f"training-{made['display_name']}"
        settings = package["platform_spec"]["platforms"]["kubernetes"].get("pipelineConfig", {})
        known = {key: settings[key] for key in ("activeDeadlineSeconds",) if key in settings}
        document = self.play.cluster.create("workflows", {"metadata": {"name": name, "labels": labels}, "spec": known})
        given = body.get("runtime_config", {}).get("parameters", {})
        _thread(lambda: KfpFlow(self.play, document, spec, given, made["run_id"]).play())
        return made

    def _get_run(self, query: dict[str, str], body: Any, run: str) -> dict[str, Any]:
        workflow = self._workflow_of(run)
        phase = (workflow or {}).get("status", {}).get("phase", "") if workflow else "Failed"
        for one in self.runs:
            if one["run_id"] == run:
                one["_script"] = [(STATES[phase], {})]
        return super()._get_run(query, body, run)

    def _create_recurring(self, query: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        made = super()._create_recurring(query, self._with_reference(body))
        self.fire(made["display_name"])
        return made

    def _delete_run(self, query: dict[str, str], body: Any, wanted: str) -> dict[str, Any]:
        if found := self._workflow_of(wanted):
            self.play.cluster.delete("workflows", found["metadata"]["name"])
        return _without(self.runs, "run_id", wanted)

    def _terminate(self, query: dict[str, str], body: Any, wanted: str) -> dict[str, Any]:
        found = self._workflow_of(wanted)
        if found is None:
            raise missing(f"Run {wanted} not found.")
        name = found["metadata"]["name"]
        self.play.cluster.update("workflows", name, lambda one: one["spec"].update(activeDeadlineSeconds=0))
        return {}

    def _delete_pipeline(self, query: dict[str, str], body: Any, wanted: str) -> dict[str, Any]:
        if any(version["pipeline_id"] == wanted for version in self.versions):
            raise AssertionError("a pipeline that has versions")
        return _without(self.pipelines, "pipeline_id", wanted)


class KfpFlow(Flow):
    """A run: its parameters from the package and the request, its pods as KFP's compiler makes them."""

    def __init__(self, play: Play, document: Doc, spec: Doc, given: dict[str, Any], run: str) -> None:
        self.play_, self.cluster, self.run = play, play.cluster, run
        self.name, self.uid = document["metadata"]["name"], document["metadata"]["uid"]
        inputs = spec["root"]["inputDefinitions"]["parameters"]
        self.values = {name: str(one.get("defaultValue", "")) for name, one in inputs.items()}
        self.values |= {name: str(value) for name, value in given.items()}
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
        """What KFP keeps of a step, below its pipeline root, which its workflow says."""
        place = f"mlpipeline/v2/artifacts/imagemill-training/{self.run}/{task}"
        file = self.play_.store / place / "metrics.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
        about = {"uri": f"minio://{place}/metrics.json"}
        self.cluster.update("workflows", self.name, lambda one: one["spec"].update(seen=about))

    def _owner_of_ray(self, pod: str) -> Doc:
        """The launcher's pod."""
        found = self.cluster.get("pods", pod) or {"metadata": {"uid": "gone"}}
        return {"kind": "Pod", "name": pod, "uid": found["metadata"]["uid"]}

    def _never_scheduled(self, pod: str, wanted: str) -> str:
        began, said = time.monotonic(), "activeDeadlineSeconds"
        condition = {"type": "PodScheduled", "status": "False", "message": f"0/3 nodes: Insufficient {wanted}"}
        self.play_._pod_state(pod, "Pending", {}, conditions=[condition])
        with self.cluster.changed:
            while not self.cluster.over.is_set():
                found = self.cluster.get("workflows", self.name)
                limit = float("inf") if found is None else found["spec"].get(said, float("inf"))
                if found is None or time.monotonic() >= began + limit * DEADLINE_SCALE:  # 0: terminated
                    break
                self.cluster.changed.wait(0.05)
        self.cluster.delete("pods", pod)
        return "deadline"


def _template(executor: Doc) -> Doc:
    """What the flow reads of Argo's templates: retries, and what the container asks for."""
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


def _without(those: list[dict[str, Any]], key: str, wanted: str) -> dict[str, Any]:
    if not any(one[key] == wanted for one in those):
        raise missing(f"{wanted} not found at {now()}")
    those[:] = [one for one in those if one[key] != wanted]
    return {}
