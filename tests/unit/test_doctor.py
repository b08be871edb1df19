"""`imagemill doctor`: whether a run's pods fit the nodes, and what it says without a cluster.

What it says of a real cluster is seen by hand there; that it checks the rights of the roles is in test_k8s.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagemill.pipelines.cli import main as cli
from imagemill.pipelines.cluster.cluster_file import parse_cluster
from imagemill.pipelines.doctor.room import build_nodes, compute_requests, fits, list_stages

Json = dict[str, Any]
GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


def node(name: str, cpu: str, **spec: Any) -> Json:
    """A ready node with so many cores and 8 GiB."""
    ready = [{"type": "Ready", "status": "True"}]
    return {
        "metadata": {"name": name, "labels": {"disk": "fast"}},
        "spec": spec,
        "status": {"allocatable": {"cpu": cpu, "memory": "8Gi"}, "conditions": ready},
    }


def pod(cpu: str, memory: str = "1Gi", **spec: Any) -> Json:
    return {"containers": [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}], **spec}


def test_requests_are_those_of_containers_or_of_a_larger_init_container() -> None:
    spec = pod("500m") | {"initContainers": [{"resources": {"limits": {"cpu": "2", "memory": "512Mi"}}}]}
    assert compute_requests([spec, pod("1")]) == {"cpu": 3, "memory": 2 * 2**30}


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ([pod("4")], True),
        ([pod("5")], False),
        ([pod("3"), pod("2"), pod("1"), pod("2")], True),  # the largest is placed first
        ([pod("3"), pod("3"), pod("2")], False),
        ([pod("1", "9Gi")], False),
        ([pod("1", nodeSelector={"disk": "fast"})], True),
        ([pod("1", nodeSelector={"disk": "slow"})], False),
    ],
)
def test_pods_fit_where_every_one_has_a_node(specs: list[Json], expected: bool) -> None:
    assert fits(specs, build_nodes([node("one", "4"), node("two", "4")], [])) is expected


def test_pods_of_others_and_nodes_that_take_none_leave_less() -> None:
    other = {"metadata": {}, "spec": pod("3") | {"nodeName": "one"}}
    assert not fits([pod("2")], build_nodes([node("one", "4")], [other]))
    assert not fits([pod("2")], build_nodes([node("one", "4", unschedulable=True)], []))
    lost = node("one", "4")
    lost["status"]["conditions"][0]["status"] = "Unknown"
    assert not build_nodes([lost], [])


@pytest.mark.parametrize(
    ("toleration", "expected"),
    [
        ({"key": "nvidia.com/gpu", "operator": "Exists"}, True),
        ({"key": "nvidia.com/gpu", "value": "present"}, True),
        ({"key": "nvidia.com/gpu", "value": "absent"}, False),
        ({"operator": "Exists", "effect": "NoExecute"}, False),
    ],
)
def test_taints_have_to_be_tolerated(toleration: Json, expected: bool) -> None:
    nodes = build_nodes([node("one", "4", taints=[GPU_TAINT])], [])
    assert not fits([pod("1")], nodes)
    assert fits([pod("1", tolerations=[toleration])], nodes) is expected


def test_a_rayjob_is_beside_the_pod_that_watches_it() -> None:
    cluster = parse_cluster({"ray": {"mode": "rayjob", "head": {"cpu": "1"}, "workers": {"minimum": 2}}})
    stages = {name: (specs, certain) for name, specs, certain in list_stages(cluster)}
    specs, is_certain = stages["resize by a RayJob"]
    assert is_certain and len(specs) == 1 + 1 + 2 + 1  # the step's own, head, workers, submitter
    assert len(stages["train"][0]) == 1


def test_without_a_cluster_the_way_to_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "cluster.yaml").write_text("images: {tags_allowed: true}\n")
    assert cli.main(["doctor", "--cluster", str(tmp_path / "cluster.yaml"), "--json"]) == 2
    result = json.loads(capsys.readouterr().out)
    assert result["status"] == "error" and "KUBECONFIG" in result["findings"][0]["seen"]
