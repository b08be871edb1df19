"""Checks of Kubernetes manifests: each rule is reported when it is broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import manifests
import pod_security
import pytest
import yaml
from controllers import pods

Json = dict[str, Any]
MINIMAL = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
SAFE: Json = {
    "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
    "volumes": [{"name": "scratch", "emptyDir": {}}],
    **{
        place: [{"name": place, "image": "x", "securityContext": MINIMAL}]
        for place in ("initContainers", "containers", "ephemeralContainers")
    },
}
EXECUTORS = [{"name": "wait", "securityContext": MINIMAL}]
PATCH = yaml.safe_dump({"containers": EXECUTORS, "initContainers": [{"name": "init", "securityContext": MINIMAL}]})


def change(spec: Json, path: str, value: Any) -> Json:
    """A copy with the value at `a.b.0.c`; missing mappings are made."""
    result = json.loads(json.dumps(spec))
    *parents, last = path.split(".")
    place: Any = result
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
    place[last] = value
    return result


OF_POD = {
    "hostNetwork": True,
    "hostPID": True,
    "hostIPC": True,
    "securityContext.sysctls": [{"name": "kernel.msgmax", "value": "1"}],
    "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
    "containers": [],
}
VOLUMES = ("hostPath", "nfs", "iscsi", "image", "gcePersistentDisk", "flexVolume")
OF_CONTEXT = {
    "windowsOptions": {"hostProcess": True},
    "appArmorProfile": {"type": "Unconfined"},
    "seLinuxOptions": {"type": "spc_t"},
    "seLinuxOptions.user": "system_u",
    "seLinuxOptions.role": "sysadm_r",
    "seccompProfile": {"type": "Unconfined"},
    "runAsNonRoot": False,
    "runAsUser": 0,
}
OF_CONTAINER = {
    "securityContext.privileged": True,
    "securityContext.procMount": "Unmasked",
    "securityContext.allowPrivilegeEscalation": True,
    "securityContext.capabilities": {"drop": ["NET_RAW"]},
    "securityContext.capabilities.add": ["SYS_PTRACE"],
    "ports": [{"containerPort": 80, "hostPort": 80}],
    "livenessProbe": {"httpGet": {"port": 80, "host": "169.254.169.254"}},
    "readinessProbe": {"tcpSocket": {"port": 80, "host": "10.0.0.1"}},
    "startupProbe": {"httpGet": {"port": 80, "host": "example.org"}},
    "lifecycle": {"postStart": {"httpGet": {"port": 80, "host": "example.org"}}},
    "lifecycle.preStop": {"tcpSocket": {"port": 80, "host": "example.org"}},
}
LISTS = ("initContainers", "containers", "ephemeralContainers")
BROKEN = [
    *OF_POD.items(),
    *((f"securityContext.{name}", value) for name, value in OF_CONTEXT.items()),
    *((f"{place}.0.securityContext.{name}", value) for place in LISTS for name, value in OF_CONTEXT.items()),
    *((f"{place}.0.{name}", value) for place in LISTS for name, value in OF_CONTAINER.items()),
]


def test_a_safe_pod_passes() -> None:
    manifests.check_restricted("here", SAFE)
    assert pod_security.violations(SAFE) == []


@pytest.mark.parametrize(("path", "value"), BROKEN, ids=[path for path, _ in BROKEN])
def test_broken_rule_is_reported_with_its_path(path: str, value: Any) -> None:
    violations = pod_security.violations(change(SAFE, path, value))
    field = path.rpartition(".")[2]
    assert len(violations) == 1, violations
    place = path.replace(".0.", f"[{path.partition('.')[0]}].") if ".0." in path else path
    assert violations[0].startswith(place.split(".")[0]) and field in violations[0], violations


@pytest.mark.parametrize("kind", VOLUMES)
def test_forbidden_volumes_are_reported(kind: str) -> None:
    assert pod_security.violations({**SAFE, "volumes": [{"name": "v", kind: {}}]}) == [
        f"volumes[v]: a volume of kind {kind}"
    ]


@pytest.mark.parametrize("kind", sorted(pod_security.VOLUMES))
def test_volumes_of_the_standard_pass(kind: str) -> None:
    assert pod_security.violations({**SAFE, "volumes": [{"name": "v", kind: {}}]}) == []


@pytest.mark.parametrize("field", ["runAsNonRoot", "seccompProfile"])
def test_field_missing_in_the_pod_is_required_in_every_container(field: str) -> None:
    spec = json.loads(json.dumps(SAFE))
    value = spec["securityContext"].pop(field)
    assert [line.partition("[")[0] for line in pod_security.violations(spec)] == list(LISTS)
    for place in LISTS:
        spec[place][0]["securityContext"] = {**MINIMAL, field: value}
    assert pod_security.violations(spec) == []


def test_container_without_a_security_context_is_reported() -> None:
    spec = change(SAFE, "containers.0.securityContext", None)
    assert [line.partition(": ")[0].rpartition(".")[2] for line in pod_security.violations(spec)] == [
        "allowPrivilegeEscalation", "drop",
    ]  # fmt: skip


def test_apparmor_annotations_are_checked() -> None:
    name = "container.apparmor.security.beta.kubernetes.io/main"
    for value in ("runtime/default", "localhost/mine"):
        manifests.check_restricted("here", SAFE, {name: value, "other": "unconfined"})
    with pytest.raises(AssertionError, match="apparmor"):
        manifests.check_restricted("here", SAFE, {name: "unconfined"})


def test_net_bind_service_may_be_added() -> None:
    assert pod_security.violations(change(SAFE, "containers.0.securityContext.capabilities.add",
                                          ["NET_BIND_SERVICE"])) == []  # fmt: skip


def workflow(template: Json, **spec: Any) -> Json:
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTemplate",
        "metadata": {"name": "w"},
        "spec": {"entrypoint": "step", "templates": [{"name": "step", **template}], **spec},
    }


CONTAINER = {"image": "x", "command": ["a"], "securityContext": MINIMAL}
RAY_POD = {"spec": {key: value for key, value in SAFE.items() if key in ("securityContext", "containers")}}
RAY: Json = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "r"},
    "spec": {
        "entrypoint": "a",
        "submissionMode": "HTTPMode",
        "rayClusterSpec": {
            "headGroupSpec": {"rayStartParams": {}, "template": RAY_POD},
            "workerGroupSpecs": [
                {"groupName": "w", "minReplicas": 0, "maxReplicas": 1, "rayStartParams": {}, "template": RAY_POD}
            ],
        },
    },
}


def list_refused_containers(document: Json) -> dict[str, list[str]]:
    """Return the containers that `restricted` refuses, by pod."""
    refused = {}
    for pod in pods(document):
        lines = pod_security.violations(pod.spec, pod.annotations)
        if names := sorted({line.partition("[")[2].partition("]")[0] for line in lines}):
            refused[pod.owner] = names
    return refused


def test_argos_own_containers_need_a_patch() -> None:
    context = SAFE["securityContext"]
    assert list_refused_containers(workflow({"container": CONTAINER}, securityContext=context)) == {
        "WorkflowTemplate w: template step": ["init", "wait"]
    }
    assert not list_refused_containers(
        workflow({"container": CONTAINER, "podSpecPatch": PATCH}, securityContext=context)
    )
    assert not list_refused_containers(workflow({"container": CONTAINER}, securityContext=context, podSpecPatch=PATCH))
    with pytest.raises(AssertionError, match="podSpecPatch gives them one"):
        for where, spec in manifests.pod_specs(workflow({"container": CONTAINER}, securityContext=context)):
            manifests.check_restricted(where, spec)


def test_context_of_a_template_replaces_the_workflows() -> None:
    document = workflow({"container": CONTAINER, "podSpecPatch": PATCH, "securityContext": {"runAsUser": 1}},
                        securityContext=SAFE["securityContext"])  # fmt: skip
    assert list_refused_containers(document) == {"WorkflowTemplate w: template step": ["init", "main", "wait"]}


def test_patch_of_a_missing_container_is_refused() -> None:
    resource = workflow({"resource": {"action": "create", "manifest": "{}"}}, securityContext=SAFE["securityContext"])
    assert not list_refused_containers(resource)
    resource["spec"]["podSpecPatch"] = PATCH
    with pytest.raises(AssertionError, match="container without an image"):
        list_refused_containers(resource)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ({"script": {**CONTAINER, "source": "a"}}, 1),
        ({"containerSet": {"containers": [{**CONTAINER, "name": "main"}]}}, 1),
        ({"container": CONTAINER, "sidecars": [{**CONTAINER, "name": "s"}]}, 1),
        ({"dag": {"tasks": [{"name": "t", "inline": {"container": CONTAINER}}]}}, 1),
        ({"steps": [[{"name": "t", "inline": {"container": CONTAINER}}]]}, 1),
        ({"dag": {"tasks": [{"name": "t", "template": "step"}]}}, 0),
        ({"suspend": {}}, 0),
        ({"http": {"url": "http://x"}}, 0),
    ],
)
def test_templates_that_make_pods(template: Json, expected: int) -> None:
    document = workflow(template, securityContext=SAFE["securityContext"], podSpecPatch=PATCH)
    assert len(list(pods(document))) == expected
    assert not list_refused_containers(document)
    cron = {"kind": "CronWorkflow", "metadata": {"name": "c"}, "spec": {"workflowSpec": document["spec"]}}
    assert len(list(pods(cron))) == expected


def test_sidecars_and_init_containers_are_checked() -> None:
    document = workflow(
        {
            "container": CONTAINER, "podSpecPatch": PATCH, "sidecars": [{"name": "s", "image": "x"}],
            "initContainers": [{"name": "i", "image": "x"}],
        },
        securityContext=SAFE["securityContext"],
    )  # fmt: skip
    assert list_refused_containers(document) == {"WorkflowTemplate w: template step": ["i", "s"]}


def test_pods_of_ray() -> None:
    assert not list_refused_containers(RAY)
    assert [pod.owner for pod in pods(RAY)] == ["RayJob r: head", "RayJob r: workers w"]
    assert [pod.labels["ray.io/node-type"] for pod in pods(RAY)] == ["head", "worker"]
    for mode, expected in {
        "SidecarMode": {"RayJob r: head": ["ray-job-submitter"]},
        "K8sJobMode": {"RayJob r: submitter": ["", "ray-job-submitter"]},
    }.items():
        refused = list_refused_containers(change(RAY, "spec.submissionMode", mode))
        assert refused.keys() == expected.keys() and all("ray-job-submitter" in names for names in refused.values())
    assert not list_refused_containers(
        change(change(RAY, "spec.submissionMode", "K8sJobMode"), "spec.submitterPodTemplate", RAY_POD)
    )
    auto = change(RAY, "spec.rayClusterSpec.enableInTreeAutoscaling", True)
    assert list_refused_containers(auto) == {"RayJob r: head": ["autoscaler"]}
    assert not list_refused_containers(change(auto, "spec.rayClusterSpec.autoscalerOptions.securityContext", MINIMAL))
    unsafe = {"spec": {**RAY_POD["spec"], "hostNetwork": True}}
    assert list_refused_containers(change(RAY, "spec.rayClusterSpec.workerGroupSpecs.0.template", unsafe)) == {
        "RayJob r: workers w": [""]
    }


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob", "Pod"])
def test_pods_of_core_objects(kind: str) -> None:
    inner: Json = {"metadata": {"labels": {"a": "b"}}, "spec": {**SAFE, "hostPID": True}}
    document: Json = {"kind": kind, "metadata": {"name": "n"}, "spec": {"template": inner}}
    if kind == "CronJob":
        document["spec"] = {"jobTemplate": {"spec": {"template": inner}}}
    if kind == "Pod":
        document = {"kind": kind, **inner, "metadata": {"name": "n", **inner["metadata"]}}
    (pod,) = pods(document)
    of_job = {"batch.kubernetes.io/job-name": "n"} if "Job" in kind else {}
    assert pod.labels == {"a": "b"} | of_job and pod.owner == f"{kind} n"
    assert pod_security.violations(pod.spec) == ["hostPID: true"]


CORE: Json = {
    "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "labels": {"a": "b"}},
    "spec": {"selector": {"a": "b"}, "ports": [{"port": 80, "targetPort": "http"}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spce", {}), ("metadata.lables", {}), ("metadata.labels.a", 1), ("spec.ports.0.prot", 1),
        ("spec.ports.0.port", "http"), ("kind", "Servise"), ("apiVersion", "apps/v1"),
    ],
)  # fmt: skip
def test_invalid_core_object_is_refused(path: str, value: Any) -> None:
    manifests.check_core(CORE)
    with pytest.raises(AssertionError):
        manifests.check_core(change(CORE, path, value))


ENV = [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]


@pytest.mark.parametrize(
    ("document", "path", "value", "named"),
    [
        (workflow({"container": CONTAINER}), "spce", {}, "spce"),
        (workflow({"container": CONTAINER}), "metadata.lables", {}, "lables"),
        (workflow({"container": CONTAINER}), "spec.templates.0.containr", {}, "containr"),
        (workflow({"container": CONTAINER}), "spec.templates.0.container.imagee", "x", "imagee"),
        (workflow({"container": CONTAINER}), "spec.activeDeadlineSeconds", "600", "activeDeadlineSeconds"),
        (workflow({"container": CONTAINER}), "spec.templates.0.container.resources", {"limits": {"cpu": 0.5}}, "cpu"),
        (RAY, "spec.rayClusterSpec.headGroupSpec.template.metadata", {"lables": {}}, "lables"),
        (RAY, "spec.rayClusterSpec.headGroupSpec.template.spec.nodeSelector", {"gpu": True}, "nodeSelector"),
        (RAY, "spec.ttlSecondsAfterFinish", 1, "ttlSecondsAfterFinish"),
        (RAY, "spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.env", ENV, "twice"),
    ],
)  # fmt: skip
def test_invalid_custom_resource_is_refused(document: Json, path: str, value: Any, named: str) -> None:
    manifests.check_custom(document)
    with pytest.raises(AssertionError, match=named):
        manifests.check_custom(change(document, path, value))


def test_free_form_fields_of_a_crd_pass() -> None:
    inline = {"dag": {"tasks": [{"name": "t", "inline": {"container": CONTAINER, "anything": 1}}]}}
    manifests.check_custom(workflow(inline))


def test_without_schemas_the_test_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(manifests, "SCHEMAS", tmp_path / "absent")
    with pytest.raises(pytest.skip.Exception, match="schemas are not beside"):
        manifests.check_custom(RAY)
    monkeypatch.setattr(manifests, "SCHEMAS", tmp_path)
    with pytest.raises(AssertionError, match=r"no schema of ray\.io/v1 RayJob"):
        manifests.check_custom(RAY)


def test_golden_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(manifests, "GOLDEN", tmp_path)
    monkeypatch.delenv("REWRITE_GOLDEN", raising=False)
    with pytest.raises(AssertionError, match="REWRITE_GOLDEN"):
        manifests.check_golden("a/b.yaml", "one")
    monkeypatch.setenv("REWRITE_GOLDEN", "1")
    manifests.check_golden("a/b.yaml", "one")
    monkeypatch.delenv("REWRITE_GOLDEN")
    manifests.check_golden("a/b.yaml", "one")
    with pytest.raises(AssertionError, match="not what"):
        manifests.check_golden("a/b.yaml", "two")
    (tmp_path / "b.diff").write_text("@@\n 1\n-2\n+3\n")
    manifests.check_golden("b.diff", "1\n3\n", base="1\n2\n")
    with pytest.raises(AssertionError, match="not what"):
        manifests.check_golden("b.diff", "1\n4\n", base="1\n2\n")
