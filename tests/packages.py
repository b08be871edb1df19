"""Helpers for tests of compiled packages: images by digest, documents of a package, and the pods that KFP makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
IMAGES = {
    name: f"registry.example/mill/{name}@sha256:{str(digit) * 64}"
    for name, digit in (("cpu", 1), ("ray", 2), ("gpu", 3))
}


def documents(path: Path) -> tuple[Json, Json]:
    spec, platform = yaml.safe_load_all(path.read_text())
    return spec, platform


def container(spec: Json, step: str) -> Json:
    container: Json = spec["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
    return container


def kubernetes(platform: Json, step: str) -> Json:
    executor: Json = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{step}"]
    return executor


def build_kfp_pod(spec: Json, platform: Json, step: str) -> Json:
    """The pod of a step, as KFP's driver and Argo make it of the package (backend/src/v2/driver/k8s.go and
    compiler/argocompiler/security_context.go of KFP 2.16): what is not in the package is what KFP adds itself."""
    body, config = container(spec, step), kubernetes(platform, step)
    resources = body["resources"]
    limits = {"memory": resources["resourceMemoryLimit"]}
    if "resourceCpuLimit" in resources:
        limits["cpu"] = resources["resourceCpuLimit"]
    if gpu := resources.get("accelerator"):
        limits[gpu["resourceType"]] = gpu["resourceCount"]
    env: list[Json] = [dict(variable) for variable in body["env"]]
    env += [{"name": entry["name"], "valueFrom": {"fieldRef": {"fieldPath": entry["fieldPath"]}}}
            for entry in config["fieldPathAsEnv"]]  # fmt: skip
    for secret in config.get("secretAsEnv", []):
        env += [{"name": entry["envVar"], "valueFrom": {"secretKeyRef": {
                    "name": secret["secretName"], "key": entry["secretKey"], "optional": secret["optional"]}}}
                for entry in secret["keyToEnv"]]  # fmt: skip
    user = config["securityContext"]
    security = {
        "runAsUser": int(user["runAsUser"]), "runAsGroup": int(user["runAsGroup"]),
        "runAsNonRoot": user["runAsNonRoot"],
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    mounts = config["emptyDirMounts"]
    tolerations = [dict(toleration) for toleration in config.get("tolerations", [])]
    for toleration in tolerations:
        if "tolerationSeconds" in toleration:
            toleration["tolerationSeconds"] = int(toleration["tolerationSeconds"])
    pod_spec: Json = {
        "containers": [{
            "name": "main", "image": body["image"], "imagePullPolicy": config["imagePullPolicy"], "env": env,
            "resources": {"limits": limits, "requests": {"memory": resources["resourceMemoryRequest"],
                                                         "cpu": resources["resourceCpuRequest"]}},
            "securityContext": security,
            "volumeMounts": [{"name": m["volumeName"], "mountPath": m["mountPath"]} for m in mounts],
        }],
        "volumes": [
            {"name": m["volumeName"], "emptyDir": {"sizeLimit": m["sizeLimit"]}
             | ({"medium": m["medium"]} if "medium" in m else {})} for m in mounts
        ],
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "restartPolicy": "Never", "nodeSelector": config.get("nodeSelector", {}).get("labels", {}),
        "tolerations": tolerations,
        "imagePullSecrets": [{"name": secret["secretName"]} for secret in config.get("imagePullSecret", [])],
    }  # fmt: skip
    if "activeDeadlineSeconds" in config:
        pod_spec["activeDeadlineSeconds"] = int(config["activeDeadlineSeconds"])
    return pod_spec
