"""`imagemill doctor` on a cluster of the overlay kind with one thing wrong: it is found, and said how to mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import doctors
import pytest
from cluster_api import ClusterApi, deployment, named, node, pod, secret
from doctors import Doctor

Json = dict[str, Any]
make, kind = doctors.make, doctors.kind

CLEAN_RAYJOB = {"ray": {"mode": "pod", "clean": "rayjob", "workers": {"pod": {"cpu": 8}}}}
RAYJOB = {"ray": {"mode": "rayjob", "head": {"cpu": "1"}, "workers": {"minimum": 2}}}
Change = Callable[[ClusterApi], object]


def big_pod(api: ClusterApi) -> None:
    api.add(pod("big", "one", "6"))


def other_run(api: ClusterApi) -> None:
    api.add(pod("run", "one", "6", owner="Workflow"))


def taken_by_init(api: ClusterApi) -> None:
    """An init container counts, beside the sidecars before it, where that is more than what runs later."""
    pod_document = api.add(pod("init", "one", "100m"))
    sidecar, init = ({"resources": {"requests": {"cpu": cores}}} for cores in ("1", "3"))
    pod_document["spec"]["initContainers"] = [
        {"name": "sidecar", "restartPolicy": "Always", **sidecar},
        {"name": "a", **init},
    ]
    pod_document["spec"]["overhead"] = {"cpu": "2.1"}


def no_events(api: ClusterApi) -> None:
    role = api.get("Role", "imagemill-launcher", "imagemill")
    role["rules"] = [rule for rule in role["rules"] if "events" not in rule["resources"]]


def wait_long(api: ClusterApi) -> None:
    api.add(deployment("workflow-controller", "argo", "quay.io/argoproj/workflow-controller:v4.1.2"))


def kuberay(version: str) -> Change:
    return lambda api: api.add(deployment("kuberay-operator", "kuberay-operator", f"kuberay/operator:v{version}"))


def quota(**hard: str) -> Change:
    return lambda api: api.add(
        named("ResourceQuota", "small", "imagemill", status={"hard": hard, "used": {"cpu": "1"}})
    )


def only_policy(selector: Json) -> Change:
    def change(api: ClusterApi) -> None:
        for policy in api.of_kind("NetworkPolicy"):
            api.remove("NetworkPolicy", policy["metadata"]["name"], "imagemill")
        if selector is not None:
            api.add(named("NetworkPolicy", "theirs", "imagemill", spec={"podSelector": selector}))

    return change


def silent_node(api: ClusterApi) -> None:
    """A node that tells of its images seldom."""
    api.get("Node", "one")["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-01-01T00:00:00Z"


def started(api: ClusterApi) -> None:
    """A pod that has run an image which its node has not told of."""
    status = {"phase": "Succeeded", "containerStatuses": [{"image": "imagemill-cpu:new", "imageID": "sha256:0"}]}
    api.add(named("Pod", "ran", "imagemill", spec={"nodeName": "one", "containers": []}, status=status))


def pulling(api: ClusterApi) -> None:
    """A pod that can't pull an image of a registry."""
    waiting = {"reason": "ImagePullBackOff", "message": "no such thing"}
    status = {"phase": "Pending", "containerStatuses": [{"image": "ghcr.io/you/cpu:1", "state": {"waiting": waiting}}]}
    api.add(named("Pod", "waits", "imagemill", spec={"containers": []}, status=status))


MISTAKES: dict[str, tuple[Json, Change | None, str, str, str]] = {
    # file, change of the cluster, check, state, what is seen
    "wrong secret": ({"storage": {"secret": "stores"}}, None, "secrets", "error", "there is no secret stores"),
    "wrong key": ({"storage": {"access_key": "user"}}, None, "secrets", "error",
                  "secret imagemill-store has no key user; it has accesskey, secretkey"),
    "no token": ({}, lambda api: api.add(secret("imagemill-executor.service-account-token", "imagemill")), "secrets",
                 "error", "has no key token"),
    "no pull secret": ({"images": {"pull_secrets": ["login"]}}, None, "secrets", "error", "no secret login"),
    "no Ray token": ({"ray": {"mode": "address", "address": "ray://head:10001", "token_secret": "rays"}}, None,
                     "secrets", "error", "no secret rays"),
    "image of nowhere": ({"images": {"cpu": "imagemill-cpu:new"}}, None, "images", "error",
                         "images.cpu: imagemill-cpu:new is on 0 of 1 nodes, and it names no registry"),
    "node that seldom tells": ({"images": {"cpu": "imagemill-cpu:new"}}, silent_node, "images", "warning",
                               "imagemill-cpu:new is on 0 of 1 nodes"),
    "image that has run": ({"images": {"cpu": "imagemill-cpu:new"}}, started, "images", "ok", "cpu:new is on 1 of 1"),
    "image never pulled": ({"images": {"cpu": "ghcr.io/you/cpu:1", "pull_policy": "Never"}}, None, "images", "error",
                           "pull_policy is Never"),
    "image always pulled": ({"images": {"pull_policy": "Always"}}, None, "images", "error", "names no registry"),
    "image to be pulled": ({"images": {"cpu": "ghcr.io/you/cpu:1"}}, None, "images", "warning", "no node is known to"),
    "image that is not there": ({"images": {"cpu": "ghcr.io/you/cpu:1"}}, pulling, "images", "error",
                                "pod waits: ImagePullBackOff: no such thing"),
    "image on one node": ({}, lambda api: api.add(node("two")), "images", "warning", "is on 1 of 2 nodes"),
    "pod too large": ({"steps": {"clean": {"cpu": 9}}}, None, "room", "error",
                      "clean asks for 9.01 cores on one node, at most 8 are free"),
    "too little memory": ({"steps": {"train": {"memory": "40Gi"}}}, None, "room", "error",
                          "train asks for 40.07 GiB of memory on one node, at most 32 are free"),
    "no GPU": ({"steps": {"train": {"gpu": 1}}}, None, "room", "error",
               "train asks for 1 nvidia.com/gpu on one node, at most none are free"),
    "taint": ({}, lambda api: api.get("Node", "one")["spec"].update(taints=[{"key": "a", "effect": "NoSchedule"}]),
              "room", "error", "no node takes download: of 1, 1 have the taint a"),
    "selector": ({"steps": {"clean": {"node_selector": {"a": "b"}}}}, None, "room", "error", "1 have not the"),
    "other pods stay": (RAYJOB, big_pod, "room", "error", "resize needs 3.06 cores at once, 2 are free (resize 0.01, "
                        "Ray's head 1, submitter 0.05, 2 of Ray's worker 1)"),
    "no room for much data": ({"ray": {"workers": {"pod": {"cpu": 8}}}}, None, "room", "warning",
                              "resize by a RayJob needs 8.36 cores at once, 8 are free"),
    "no room for much data on a node": ({"ray": {"head": {"memory": "33Gi"}}}, None, "room", "warning",
                                        "resize by a RayJob: Ray's head asks for 33.25 GiB of memory on one node"),
    "no room for clean": (CLEAN_RAYJOB | {"steps": {"clean": {"cpu": 9}}}, None, "room", "error",
                          "clean needs 8.36 cores at once, 8 are free (clean 0.01, Ray's head 0.3"),
    "other pods end": ({}, other_run, "room", "warning", "it waits until other runs and jobs end"),
    "init containers": (RAYJOB, taken_by_init, "room", "error", "3.06 cores at once, 1.9 are free"),
    "node not ready": ({}, lambda api: api.get("Node", "one")["status"].update(conditions=[
        {"type": "Ready", "status": "False"}]), "room", "error", "no node takes download: none is ready"),
    "quota": ({}, quota(cpu="3"), "quota", "warning", "train needs 2.01 cores at once, quota small leaves 2"),
    "small quota": ({}, quota(cpu="2"), "quota", "error", "quota small leaves 1"),
    "quota of limits": ({}, quota(**{"limits.cpu": "90"}), "quota", "error", "whose containers have no limit of cores"),
    "no account": ({"argo": {"service_account": "nobody"}}, None, "accounts", "error", "no service account nobody"),
    "no rights": ({}, lambda api: api.remove("RoleBinding", "imagemill-launcher", "imagemill"), "accounts", "error",
                  "imagemill-launcher may not create rayjobs.ray.io, delete rayjobs.ray.io"),
    "no events": ({}, no_events, "accounts", "warning",
                  "imagemill-launcher may not list events"),
    "no rights of yours": ({}, lambda api: api.denied.add("create workflows"), "accounts", "warning",
                           "you yourself may not, in imagemill: create workflows.argoproj.io"),
    "no Argo": ({}, lambda api: api.discovery.pop("/apis/argoproj.io/v1alpha1"), "argo", "error", "no workflows"),
    "old Argo": ({}, lambda api: api.add(deployment("workflow-controller", "argo", "a/b:v3.4.1")), "argo", "error",
                 "Argo Workflows v3.4.1"),
    "slow Argo": ({}, wait_long, "argo settings", "warning", "waits up to 10 s after each step"),
    "no KubeRay": (RAYJOB, lambda api: api.discovery.pop("/apis/ray.io/v1"), "kuberay", "error", "has no rayjobs"),
    "no KubeRay for much data": ({}, lambda api: api.discovery.pop("/apis/ray.io/v1"), "kuberay", "warning",
                                 "ray.mode is auto, and the cluster has no rayjobs"),
    "no KubeRay for clean": (CLEAN_RAYJOB, lambda api: api.discovery.pop("/apis/ray.io/v1"), "kuberay", "error",
                             "ray.clean is rayjob, and the cluster has no rayjobs"),
    "old KubeRay": ({}, kuberay("1.3.2"), "kuberay", "error", "older than 1.4"),
    "KubeRay without deadline": ({}, kuberay("1.5.0"), "kuberay", "warning", "ray.pending_seconds"),
    "no store": ({"storage": {"endpoint": "http://minio.imagemill:9000"}}, None, "store", "error", "no service minio"),
    "wrong port": ({"storage": {"endpoint": "http://seaweedfs.imagemill:9000"}}, None, "store", "error",
                   "service seaweedfs in imagemill has no port 9000; it has 8333"),
    "store not ready": ({}, lambda api: api.add(named(
        "EndpointSlice", "seaweedfs-x", "imagemill", metadata={"labels": {"kubernetes.io/service-name": "seaweedfs"}},
        endpoints=[{"conditions": {"ready": False}}])), "store", "error", "no pod is ready behind service seaweedfs"),
    "no policies": ({}, only_policy({"matchLabels": {"a": "b"}}), "network", "warning", "no network policy for our"),
    "closed": ({}, only_policy({}), "network", "error", "theirs binds every pod"),
    "no namespace": ({"namespace": "mill"}, None, "namespace", "error", "there is no namespace mill"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_reported_with_a_remedy(name: str, kind: Doctor) -> None:
    file, change, check, state, message = MISTAKES[name]
    if change:
        change(kind.api)
    result = kind(file=file)
    findings = [
        finding for finding in result.findings[check] if finding["state"] == state and message in finding["seen"]
    ]
    assert findings, json.dumps(result.findings.get(check), indent=1)
    assert findings[0]["mend"] or state in ("warning", "ok")
    assert result.code == (2 if state == "error" else 0), result.out
