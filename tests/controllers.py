"""The pods that come of a manifest: its own, or those that Kubernetes', Argo's and KubeRay's controllers make of it.

Argo Workflows 3.7 to 4.1 as installed: to every step it adds the containers `init` and `wait` with no security context
at all, which a namespace that enforces `restricted` refuses; a template's podSpecPatch gives them one
(workflow/controller/workflowpod.go: build, newExecContainer, addSchedulingConstraints). KubeRay 1.7 gives none to the
autoscaler nor to the submitter unless the manifest does (controllers/ray/common/pod.go, job.go).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

Json = dict[str, Any]
TEMPLATED = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job")
WORKFLOWS = ("Workflow", "WorkflowTemplate", "ClusterWorkflowTemplate")
JOB_NAME = "batch.kubernetes.io/job-name"
"""Kubernetes puts it on every pod of a Job; that of the submitter is one of KubeRay's."""
ARGO_MINIMAL = {
    "capabilities": {"drop": ["ALL"]}, "privileged": False, "runAsNonRoot": True, "runAsUser": 8737,
    "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "seccompProfile": {"type": "RuntimeDefault"},
}  # fmt: skip
"""What Argo's controller gives to its own containers of a resource template (workflow/common/security_context.go)."""


@dataclass(frozen=True)
class Pod:
    owner: str
    spec: Json
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)


def pods(document: Json) -> Iterator[Pod]:
    """Every pod of one document; none for kinds that make none."""
    kind = document["kind"]
    owner = f"{kind} {document.get('metadata', {}).get('name') or document['metadata'].get('generateName')}"
    if kind == "Pod":
        yield _templated(owner, document)
    elif kind in TEMPLATED:
        pod = _templated(owner, document["spec"]["template"])
        yield _labeled(pod, {JOB_NAME: document["metadata"]["name"]} if kind == "Job" else {})
    elif kind == "CronJob":
        pod = _templated(owner, document["spec"]["jobTemplate"]["spec"]["template"])
        yield _labeled(pod, {JOB_NAME: document["metadata"]["name"]})
    elif kind in WORKFLOWS:
        yield from _workflow(owner, document["spec"])
    elif kind == "CronWorkflow":
        yield from _workflow(owner, document["spec"]["workflowSpec"])
    elif kind == "RayCluster":
        yield from _ray_cluster(owner, document["spec"], sidecar=False)
    elif kind == "RayJob":
        yield from _ray_job(owner, document)


def _templated(owner: str, template: Json) -> Pod:
    metadata = template.get("metadata") or {}
    return Pod(owner, template["spec"], metadata.get("labels") or {}, metadata.get("annotations") or {})


def _workflow(owner: str, spec: Json) -> Iterator[Pod]:
    for template in spec.get("templates") or ():
        yield from _argo_template(owner, spec, template)


def _argo_template(owner: str, spec: Json, template: Json) -> Iterator[Pod]:
    template = _merged(spec.get("templateDefaults") or {}, template)
    place = f"{owner}: template {template.get('name', 'inline')}"
    tasks = (template.get("dag") or {}).get("tasks") or ()
    for task in [*tasks, *(step for group in template.get("steps") or () for step in group)]:
        if "inline" in task:
            yield from _argo_template(f"{place}: {task['name']}", spec, task["inline"])
    main = _argo_main(template)
    if main is None:
        return
    metadata = _merged(spec.get("podMetadata") or {}, template.get("metadata") or {})
    labels = {"workflows.argoproj.io/workflow": "any", "workflows.argoproj.io/completed": "false"}
    pod = {
        "containers": main,
        "initContainers": [{"name": "init"}, *(template.get("initContainers") or ())],
        "volumes": [
            {"name": "var-run-argo", "emptyDir": {}}, {"name": "tmp-dir-argo", "emptyDir": {}},
            *(template.get("volumes") or ()), *(spec.get("volumes") or ()),
        ],
        "securityContext": template.get("securityContext", spec.get("securityContext")),
        **({"hostNetwork": True} if spec.get("hostNetwork") else {}),
        **{
            name: template.get(name, spec.get(name))
            for name in ("serviceAccountName", "automountServiceAccountToken", "tolerations", "nodeSelector")
            if name in template or name in spec
        },
    }  # fmt: skip
    if template.get("resource"):
        pod["initContainers"][0]["securityContext"] = ARGO_MINIMAL
    for patch in (spec.get("podSpecPatch"), template.get("podSpecPatch")):
        if patch:
            pod = _patched(pod, yaml.safe_load(patch), place)
    yield Pod(place, pod, labels | (metadata.get("labels") or {}), metadata.get("annotations") or {})


def _argo_main(template: Json) -> list[Json] | None:
    """The containers of a template's pod, Argo's own `wait` first; None for a template that makes no pod."""
    sidecars = template.get("sidecars") or []
    if template.get("resource"):
        return [{"name": "main", "securityContext": ARGO_MINIMAL}]
    if "containerSet" in template:
        return [{"name": "wait"}, *template["containerSet"]["containers"], *sidecars]
    for kind in ("container", "script"):
        if kind in template:
            return [{"name": "wait"}, {**template[kind], "name": "main"}, *sidecars]
    return [{"name": "main"}] if "data" in template else None


def _patched(pod: Json, patch: Json, place: str) -> Json:
    """A pod's spec after Argo's podSpecPatch, a strategic merge: containers and volumes by their names."""
    result = _merged(pod, {name: value for name, value in patch.items() if name not in ("volumes", "tolerations")})
    for name in ("containers", "initContainers", "volumes"):
        by_name = {item["name"]: item for item in pod.get(name) or ()}
        for item in patch.get(name) or ():
            assert name == "volumes" or item["name"] in by_name or "image" in item, (
                f"{place}: podSpecPatch names {name}[{item['name']}], which this pod does not have: "
                "it would be a container without an image"
            )
            by_name[item["name"]] = _merged(by_name.get(item["name"], {}), item)
        result[name] = list(by_name.values())
    return result


def _merged(base: Json, over: Json) -> Json:
    result = dict(base)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(name), dict)
        result[name] = _merged(base[name], value) if both else value
    return result


def _ray_job(owner: str, document: Json) -> Iterator[Pod]:
    spec = document["spec"]
    mode = spec.get("submissionMode", "K8sJobMode")
    if "rayClusterSpec" in spec:
        yield from _ray_cluster(owner, spec["rayClusterSpec"], sidecar=mode == "SidecarMode")
    if mode == "K8sJobMode":
        template = spec.get("submitterPodTemplate") or {"spec": {"containers": [{"name": "ray-job-submitter"}]}}
        yield _labeled(_templated(f"{owner}: submitter", template), {
            "ray.io/originated-from-crd": "RayJob", "app.kubernetes.io/created-by": "kuberay-operator",
            JOB_NAME: document["metadata"]["name"],
        })  # fmt: skip


def _ray_cluster(owner: str, spec: Json, *, sidecar: bool) -> Iterator[Pod]:
    """Head and workers. `sidecar`: the job is submitted by a container of the head's pod."""
    head = _templated(f"{owner}: head", spec["headGroupSpec"]["template"])
    containers = list(head.spec["containers"])
    if spec.get("enableInTreeAutoscaling"):
        security_context = (spec.get("autoscalerOptions") or {}).get("securityContext")
        containers.append({"name": "autoscaler", **({"securityContext": security_context} if security_context else {})})
    if sidecar:
        containers.append({"name": "ray-job-submitter"})
    head = Pod(head.owner, {**head.spec, "containers": containers}, head.labels, head.annotations)
    yield _labeled(head, _ray_labels("head", "headgroup"))
    for group in spec.get("workerGroupSpecs") or ():
        worker = _templated(f"{owner}: workers {group['groupName']}", group["template"])
        wait = {"name": "wait-gcs-ready", "securityContext": worker.spec["containers"][0].get("securityContext")}
        inits = [*(worker.spec.get("initContainers") or ()), wait]
        worker = Pod(worker.owner, {**worker.spec, "initContainers": inits}, worker.labels, worker.annotations)
        yield _labeled(worker, _ray_labels("worker", group["groupName"]))


def _ray_labels(node: str, group: str) -> dict[str, str]:
    return {
        "ray.io/node-type": node, "ray.io/group": group, "ray.io/is-ray-node": "yes", "ray.io/cluster": "any",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }  # fmt: skip


def _labeled(pod: Pod, labels: dict[str, str]) -> Pod:
    return Pod(pod.owner, pod.spec, {**pod.labels, **labels}, pod.annotations)
