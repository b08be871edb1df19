"""Argo packages of several clusters, compiled once in a process."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagemill.pipelines.argo.workflow import compile_argo
from imagemill.pipelines.cluster.cluster_file import Cluster, parse_cluster
from imagemill.pipelines.parameters import resolve_parameters

DIGITS = {"cpu": "a", "ray": "b", "gpu": "c"}
IMAGES = {name: f"registry.example/imagemill-{name}@sha256:{digit * 64}" for name, digit in DIGITS.items()}
TAINT = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
EVERYTHING: dict[str, Any] = {
    "namespace": "vision",
    "images": {"pull_policy": "Always", "pull_secrets": ["registry-login"]},
    "storage": {"endpoint": "", "region": "eu-central-1", "secret": "s3", "access_key": "id", "secret_key": "key",
                "workspace": "s3://vision/mill"},
    "labels": {"team": "vision"},
    "steps": {
        "clean": {"cpu": 8, "cpu_limit": 12, "memory": "16Gi", "memory_limit": "24Gi", "ephemeral_storage": ""},
        "train": {"gpu": 2, "gpu_type": "nvidia.com/mig-3g.40gb", "shm": "4Gi", "node_selector": {"gpu": "h100"},
                  "tolerations": [TAINT], "deadline_seconds": 7200},
    },
    "ray": {"version": "2.49.0", "workers": {"minimum": 1, "maximum": 8}},
    "limits": {"lost_pod_retries": 4, "run_deadline_seconds": 43200},
    "argo": {"artifacts": False, "mutex": "vision-gpu", "service_account": "mill", "executor_service_account": "",
             "launcher_service_account": "mill-ray"},
    "schedule": {"cron": "@weekly", "timezone": "Europe/Berlin", "suspended": True, "keep_failed": 1},
}  # fmt: skip
CLUSTERS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "argo": ({"ray": {"version": "2.49.0"}}, {}),
    "argo-everything": (EVERYTHING, {"epochs": "3", "dataset": "pets", "weight_decay": "0.1", "batch_size": "256"}),
    "argo-rayjob": ({"ray": {"mode": "rayjob", "version": "2.49.0"}}, {}),
    "argo-clean-rayjob": ({"ray": {"mode": "pod", "clean": "rayjob", "version": "2.49.0"}}, {}),
    "argo-pod": ({"ray": {"mode": "pod", "version": "2.60.0"}}, {}),
    "argo-address": ({"ray": {"mode": "address", "address": "http://head:8265"}}, {}),
    "argo-identity": ({"storage": {"secret": ""}, "ray": {"version": "2.49.0"}}, {}),
}
Json = dict[str, Any]


def cluster_of(name: str) -> Cluster:
    values = CLUSTERS[name][0]
    return parse_cluster({**values, "images": {**IMAGES, **values.get("images", {})}})


@functools.cache
def _compiled() -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="imagemill-test-") as folder:
        for name, (_, flags) in CLUSTERS.items():
            compile_argo(resolve_parameters(flags), Path(folder, f"{name}.yaml"), cluster_of(name))
        return {name: Path(folder, f"{name}.yaml").read_text() for name in CLUSTERS}


@pytest.fixture
def compiled() -> dict[str, str]:
    """The file of each cluster. A module that wants this fixture binds its name."""
    return _compiled()


@functools.cache
def parsed(text: str) -> tuple[Json, Json]:
    """WorkflowTemplate and CronWorkflow; no test changes them."""
    workflow_template, cron = yaml.safe_load_all(text)
    return workflow_template, cron


def template(document: Json, name: str) -> Json:
    return next(item for item in document["spec"]["templates"] if item["name"] == name)


def first(compiled: dict[str, str], name: str) -> Json:
    return parsed(compiled[name])[0]
