"""The network policies of k8s/ on the labels that pods really carry: each flow that is needed, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kustomize
import pytest
import yaml
from controllers import Pod, pods
from network import Peer, allowed, selects

from imagemill.pipelines.cluster.cluster_file import Cluster, load_cluster
from imagemill.pipelines.kuberay.manifest import build_rayjob

Json = dict[str, Any]
K8S = Path(__file__).parents[2] / "k8s"
GOLDEN = Path(__file__).parent / "golden"
RAY_PODS = {
    "RayJob job: head": "ray head",
    "RayJob job: workers workers": "ray worker",
    "RayJob job: submitter": "submitter",
}
PROFILE = "kubeflow-user-example-com"

ADDRESSES = {"api 10": "10.96.0.1", "api 172": "172.18.0.2", "api 192": "192.168.49.2", "api 100": "100.64.0.1",
             "api 6": "fd00:10:96::1"}  # fmt: skip
"""Where API servers are: on kind, on minikube, behind a carrier's addresses, by IPv6."""
API = {f"{name}:{port}" for name in ADDRESSES for port in (443, 6443)}
DNS = {"dns", "dns by TCP", "node's dns"}
HTTPS = {"web:443", "web 6:443"}
WEB = HTTPS | {"web:80"}
STEP = DNS | {"store"} | API
"""What every pod of a workflow needs: the API server for Argo's own container in it."""


def peers(document: Json, namespace: str, names: dict[str, str]) -> dict[str, Peer]:
    return {names.get(pod.owner, _short(pod)): Peer(pod.labels, namespace) for pod in pods(document)}


def _short(pod: Pod) -> str:
    return pod.owner.rpartition(" ")[2]


def ray_peers(cluster: Cluster) -> dict[str, Peer]:
    peers_by_name = peers(build_rayjob(cluster, "resize", "job", ["python"], "a-run"), cluster.namespace, RAY_PODS)
    assert peers_by_name.keys() == set(RAY_PODS.values())
    return peers_by_name


def outside(namespace: str) -> dict[str, Peer]:
    """Return peers of others: destinations, and sources that may not reach ours."""
    return {
        "dns": Peer({"k8s-app": "kube-dns"}, "kube-system"),
        **{name: Peer(ip=ip) for name, ip in ADDRESSES.items()},
        "node's dns": Peer(ip="169.254.20.10"),
        "web 6": Peer(ip="2606:4700::1111"),
        "web": Peer(ip="151.101.1.1"),
        "metadata": Peer(ip="169.254.169.254"),
        "eks agent": Peer(ip="169.254.170.23"),
        "eks agent 6": Peer(ip="fd00:ec2::23"),
        "lan": Peer(ip="192.168.7.7"),
        "stranger": Peer({"app": "other"}, namespace),
        "foreigner": Peer({"app.kubernetes.io/name": "imagemill"}, "elsewhere"),
        "operator": Peer({"app.kubernetes.io/name": "kuberay-operator",
                          "app.kubernetes.io/component": "kuberay-operator"}, "default"),
        "argo server": Peer({"app": "argo-server"}, "argo"),
    }  # fmt: skip


def ports(pods: dict[str, Peer], targets: dict[str, tuple[str, int, str]]) -> Iterator[tuple[str, Peer, int, str]]:
    for name, (pod, port, protocol) in targets.items():
        yield name, pods[pod], port, protocol


TARGETS = {
    "dns": ("dns", 53, "UDP"), "dns by TCP": ("dns", 53, "TCP"), "dns:8080": ("dns", 8080, "TCP"),
    "node's dns": ("node's dns", 53, "UDP"), "node:10250": ("node's dns", 10250, "TCP"),
    **{f"{name}:{port}": (name, port, "TCP") for name in ADDRESSES for port in (22, 443, 6443)},
    "web:80": ("web", 80, "TCP"), "web:443": ("web", 443, "TCP"), "web:22": ("web", 22, "TCP"),
    "web 6:443": ("web 6", 443, "TCP"), "metadata": ("metadata", 80, "TCP"),
    "eks": ("eks agent", 80, "TCP"), "eks 6": ("eks agent 6", 80, "TCP"), "eks:22": ("eks agent", 22, "TCP"),
    "lan:80": ("lan", 80, "TCP"),
    "head:8265": ("ray head", 8265, "TCP"), "head:6379": ("ray head", 6379, "TCP"),
    "head:10001": ("ray head", 10001, "TCP"), "worker:20000": ("ray worker", 20000, "TCP"),
    "step": ("train", 8080, "TCP"), "stranger": ("stranger", 80, "TCP"), "foreigner": ("foreigner", 80, "TCP"),
}  # fmt: skip
RAY = {"head:8265", "head:6379", "head:10001", "worker:20000"}


def reached(policies: list[Json], all_pods: dict[str, Peer], targets: dict[str, Any]) -> dict[str, set[str]]:
    """Return by source the targets that it reaches; a pod always reaches itself and is left out."""
    return {
        source: {
            name
            for name, target, port, protocol in ports(all_pods, targets)
            if target is not pod and allowed(policies, pod, target, port, protocol)
        }
        for source, pod in all_pods.items()
    }


def policies_of(overlay: str, *components: str) -> list[Json]:
    documents = kustomize.render(K8S / "overlays" / overlay)
    documents += [document for name in components for document in policy(name)]
    return [document for document in documents if document["kind"] == "NetworkPolicy"]


def policy(component: str) -> list[Json]:
    documents = [yaml.safe_load((K8S / "components" / component / "policy.yaml").read_text())]
    for document in documents:
        document["metadata"]["namespace"] = "imagemill"
    return documents


@pytest.fixture(scope="module")
def kind() -> dict[str, Peer]:
    cluster = load_cluster(str(K8S / "base" / "cluster.yaml"))
    peers_by_name = outside("imagemill") | ray_peers(cluster)
    for document in kustomize.render(K8S / "overlays" / "kind"):
        peers_by_name |= peers(document, "imagemill", {})
    return peers_by_name


KIND_TARGETS = {
    **TARGETS, "store": ("seaweedfs", 8333, "TCP"), "store:9333": ("seaweedfs", 9333, "TCP"),
    "store:8888": ("seaweedfs", 8888, "TCP"), "setup": ("seaweedfs-setup", 80, "TCP"),
}  # fmt: skip
KIND_FLOWS = {
    "download": STEP | WEB,
    "clean": STEP,
    "resize": STEP,
    "train": STEP | HTTPS,
    "evaluate": STEP,
    "promote": STEP,
    "rayjob": STEP,
    "finish": STEP,
    "ray head": STEP | RAY - {"head:8265", "head:6379", "head:10001"},
    "ray worker": DNS | {"store"} | RAY - {"worker:20000"},
    "submitter": DNS | {"store", "head:8265"},
    "seaweedfs": set(),
    "seaweedfs-setup": DNS | {"store"} | API,
    "stranger": set(),
}
UNBOUND = {name for name, (pod, _, _) in TARGETS.items() if pod not in ("ray head", "ray worker", "train", "stranger")}
"""What pods of other namespaces reach: no policy of ours binds them, so only what is in our namespace counts."""


def test_flows_in_kind(kind: dict[str, Peer]) -> None:
    flows_by_peer = reached(policies_of("kind"), kind, KIND_TARGETS)
    own_flows = {name: flows for name, flows in flows_by_peer.items() if kind[name].namespace == "imagemill"}
    assert own_flows == KIND_FLOWS
    other_flows = {name: flows - UNBOUND for name, flows in flows_by_peer.items() if name not in own_flows}
    assert {name: flows for name, flows in other_flows.items() if flows} == {
        "operator": {"head:8265"}, "argo server": {"store"},
    }  # fmt: skip


def test_a_store_outside_of_the_cluster(kind: dict[str, Peer]) -> None:
    flows_by_peer = reached(policies_of("kind", "s3-outside"), kind, KIND_TARGETS)
    own_peers = [name for name, pod in kind.items() if pod.labels.get("app.kubernetes.io/name") == "imagemill"]
    for name in own_peers:
        if kind[name].namespace == "imagemill":
            assert flows_by_peer[name] == KIND_FLOWS[name] | HTTPS, name
    assert flows_by_peer["stranger"] == flows_by_peer["seaweedfs"] == set()


def test_credentials_by_eks_pod_identity(kind: dict[str, Peer]) -> None:
    flows_by_peer = reached(policies_of("kind", "identity-eks"), kind, KIND_TARGETS)
    for name, flows in KIND_FLOWS.items():
        is_own = kind[name].labels.get("app.kubernetes.io/name") == "imagemill"
        assert flows_by_peer[name] == flows | ({"eks", "eks 6"} if is_own else set()), name


def test_both_installations_of_kuberay_are_known(kind: dict[str, Peer]) -> None:
    """Its chart and its kustomization give the operator different names."""
    by_kustomize = Peer(
        {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": "kuberay-operator"}, "ray-system"
    )
    for operator in (by_kustomize, kind["operator"]):
        assert allowed(policies_of("kind"), operator, kind["ray head"], 8265)
        assert not allowed(policies_of("kind"), operator, kind["ray worker"], 8265)


def kfp_peers(namespace: str) -> dict[str, Peer]:
    """The labels that the compiled package gives to each step's pod: tests of compile keep the golden file true."""
    package = yaml.load((GOLDEN / "training_default.yaml").read_text(), Loader=yaml.CSafeLoader)
    executors = package["platform"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {
        name.removeprefix("exec-"): Peer(executor["podMetadata"]["labels"], namespace)
        for name, executor in executors.items()
    }


KUBEFLOW = {
    "api server": Peer({"app": "ml-pipeline"}, "kubeflow"),
    "metadata store": Peer({"component": "metadata-grpc-server"}, "kubeflow"),
    "seaweedfs": Peer({"app": "seaweedfs"}, "kubeflow"),
    "minio": Peer({"app": "minio"}, "kubeflow"),
    "mysql": Peer({"app": "mysql"}, "kubeflow"),
}
KUBEFLOW_TARGETS = {
    "store": ("seaweedfs", 8333, "TCP"), "store:8111": ("seaweedfs", 8111, "TCP"),
    "minio:9000": ("minio", 9000, "TCP"), "minio:9001": ("minio", 9001, "TCP"),
    "kfp:8887": ("api server", 8887, "TCP"), "kfp:8888": ("api server", 8888, "TCP"),
    "mlmd": ("metadata store", 8080, "TCP"), "mlmd:22": ("metadata store", 22, "TCP"), "mysql": ("mysql", 3306, "TCP"),
}  # fmt: skip
OLD_STORE = {"minio:9000"}
KFP_STEP = STEP | OLD_STORE | {"kfp:8887", "kfp:8888", "mlmd"}


@pytest.mark.parametrize(("overlay", "namespace"), [("kubeflow", "kubeflow"), ("kubeflow-profile", PROFILE)])
def test_flows_in_kubeflow(overlay: str, namespace: str) -> None:
    cluster = load_cluster(str(K8S / "overlays" / overlay / "cluster.yaml"))
    steps = kfp_peers(namespace)
    all_pods = outside(namespace) | KUBEFLOW | ray_peers(cluster) | steps
    targets = {**TARGETS, **KUBEFLOW_TARGETS}
    flows_by_peer = reached(policies_of(overlay), all_pods, targets)
    assert {"download", "clean", "resize", "train", "evaluate", "promote", "finish"} == steps.keys()
    expected = dict.fromkeys(steps, KFP_STEP)
    expected |= {"download": KFP_STEP | WEB, "train": KFP_STEP | HTTPS}
    expected |= {name: KIND_FLOWS[name] | OLD_STORE for name in ("ray head", "ray worker", "submitter")}
    assert {name: flows_by_peer[name] for name in expected} == expected
    # What else is in the namespace, such as notebooks, KFP's drivers and, without profiles, KFP itself, stays as it is.
    own_targets = RAY | {"step"}
    for name in ("stranger", *KUBEFLOW):
        own = {target for target, (pod, _, _) in targets.items() if pod == name}
        assert flows_by_peer[name] == set(targets) - own_targets - own, name
    assert flows_by_peer["operator"] & own_targets == {"head:8265"}
    assert not any(allowed(policies_of(overlay), pod, all_pods["train"], 8080) for pod in KUBEFLOW.values())


@pytest.mark.parametrize(
    ("selector", "labels", "result"),
    [
        ({}, {}, True),
        ({"matchLabels": {"a": "b"}}, {"a": "b", "c": "d"}, True),
        ({"matchLabels": {"a": "b"}}, {"a": "c"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}, {"a": "b"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}, {"a": "b"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": ""}, False),
    ],
)
def test_selectors(selector: Json, labels: dict[str, str], result: bool) -> None:
    assert selects(selector, labels) is result


def test_a_pod_that_no_policy_selects_is_free() -> None:
    closed = {
        "metadata": {"namespace": "a"},
        "spec": {"podSelector": {"matchLabels": {"x": "y"}}, "policyTypes": ["Ingress", "Egress"]},
    }
    free, bound, other = Peer({}, "a"), Peer({"x": "y"}, "a"), Peer({"x": "y"}, "b")
    assert allowed([closed], free, other, 80) and allowed([closed], other, free, 80)
    assert not allowed([closed], free, bound, 80) and not allowed([closed], bound, free, 80)
    opened = {"metadata": {"namespace": "a"}, "spec": {**closed["spec"], "ingress": [{}]}}
    assert allowed([closed, opened], free, bound, 80)
