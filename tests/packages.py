"""For tests of compiled packages: images by digest, the documents of a package, and the pods that KFP makes of it."""

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
    found: Json = spec["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
    return found


def kubernetes(platform: Json, step: str) -> Json:
    found: Json = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{step}"]
    return found


def as_kfp_makes_it(spec: Json, platform: Json, step: str) -> Json:
    """The pod of a step, as KFP's driver and Argo make it of the package (backend/src/v2/driver/k8s.go and
    compiler/argocompiler/security_context.go of KFP 2.16): what is not in the package is what KFP adds itself."""
    body, config = container(spec, step), kubernetes(platform, step)
    resources = body["resources"]
    limits = {"memory": resources["resourceMemoryLimit"]}
    if "resourceCpuLimit" in resources:
        limits["cpu"] = resources["resourceCpuLimit"]
    if gpu := resources.get("accelerator"):
        limits[gpu["resourceType"]] = gpu["resourceCount"]
    env: list[Json] = [dict(one) for one in body["env"]]
    env += [{"name": one["name"], "valueFrom": {"fieldRef": {"fieldPath": one["fieldPath"]}}}
            for one in config["fieldPathAsEnv"]]  # fmt: skip
    for secret in config.get("secretAsEnv", []):
        env += [{"name": one["envVar"], "valueFrom": {"secretKeyRef": {
                    "name": secret["secretName"], "key": one["secretKey"], "optional": secret["optional"]}}}
                for one in secret["keyToEnv"]]  # fmt: skip
    user = config["securityContext"]
    security = {
        "runAsUser": int(user["runAsUser"]), "runAsGroup": int(user["runAsGroup"]),
        "runAsNonRoot": user["runAsNonRoot"],
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    mounts = config["emptyDirMounts"]
    tolerations = [dict(one) for one in config.get("tolerations", [])]
    for one in tolerations:
        if "tolerationSeconds" in one:
            one["tolerationSeconds"] = int(one["tolerationSeconds"])
    found: Json = {
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
        "imagePullSecrets": [{"name": one["secretName"]} for one in config.get("imagePullSecret", [])],
    }  # fmt: skip
    if "activeDeadlineSeconds" in config:
        found["activeDeadlineSeconds"] = int(config["activeDeadlineSeconds"])
    return found
