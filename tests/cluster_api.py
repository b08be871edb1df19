"""A Kubernetes API on loopback for the tests of doctor: documents to look at, rights by the roles among them, pods that
start.

`installed` fills it with what an overlay of k8s/ renders, beside nodes and operators as they are installed. Pods that
are made are played by `kubelet`: it runs their command here, with the environment that their secrets give.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kustomize
import pod_security

Json = dict[str, Any]
K8S = Path(__file__).parents[1] / "k8s"
LISTS = {
    "Namespace": "/api/v1/namespaces", "Node": "/api/v1/nodes", "Pod": "/api/v1/pods", "Secret": "/api/v1/secrets",
    "Service": "/api/v1/services", "ServiceAccount": "/api/v1/serviceaccounts",
    "Deployment": "/apis/apps/v1/deployments",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/networkpolicies",
    "Role": "/apis/rbac.authorization.k8s.io/v1/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/rolebindings",
}  # fmt: skip
KINDS = {path.rpartition("/")[2]: kind for kind, path in LISTS.items()}
DISCOVERY = {
    "/apis/argoproj.io/v1alpha1": ["workflows", "workflowtemplates", "cronworkflows", "workflowtaskresults"],
    "/apis/ray.io/v1": ["rayjobs", "rayclusters"],
}


class Answer(Exception):
    """A refusal: status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class ClusterApi:
    """The cluster's objects by kind, namespace and name."""

    documents: dict[tuple[str, str, str], Json] = field(default_factory=dict)
    discovery: dict[str, list[str]] = field(default_factory=lambda: copy.deepcopy(DISCOVERY))
    forbidden: list[str] = field(default_factory=list)
    """Patterns of `METHOD /path` that the user may not ask for."""
    denied: set[str] = field(default_factory=set)
    """`verb resource` that the user may not do, when it asks whether it may."""
    refuses_pods: str = ""
    """Why no pod can be made."""
    requests: list[str] = field(default_factory=list)
    kubelet: Callable[[ClusterApi, Json], None] = lambda api, pod: None
    logs: dict[str, str] = field(default_factory=dict)

    def add(self, document: Json) -> Json:
        metadata = document["metadata"]
        self.documents[document["kind"], metadata.get("namespace", ""), metadata["name"]] = document
        return document

    def get(self, kind: str, name: str, namespace: str = "") -> Json:
        return self.documents[kind, namespace, name]

    def remove(self, kind: str, name: str, namespace: str = "") -> None:
        del self.documents[kind, namespace, name]

    def of_kind(self, kind: str) -> list[Json]:
        return [document for (document_kind, _, _), document in self.documents.items() if document_kind == kind]

    def account_may(self, namespace: str, account: str, group: str, resource: str, verb: str) -> bool:
        """Return whether the roles bound to the account in the namespace allow it."""
        roles = {
            role["metadata"]["name"]: role
            for role in self.of_kind("Role")
            if role["metadata"]["namespace"] == namespace
        }
        for binding in self.of_kind("RoleBinding"):
            if binding["metadata"]["namespace"] == namespace and any(
                (subject["name"], subject["namespace"]) == (account, namespace) for subject in binding["subjects"]
            ):
                for rule in roles[binding["roleRef"]["name"]]["rules"]:
                    if group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]:
                        return True
        return False

    # Requests

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Json) -> Any:
        if any(re.search(pattern, f"{method} {path}") for pattern in self.forbidden):
            kind = path.rpartition("/")[2]
            raise Answer(403, f'{kind} is forbidden: User "me" cannot list resource "{kind}" in API group "" at the '
                         'cluster scope')  # fmt: skip
        if path == "/version":
            return {"gitVersion": "v1.36.4"}
        if path in self.discovery:
            return {"resources": [{"name": name} for name in self.discovery[path]]}
        if "accessreviews" in path:
            return {"status": {"allowed": self._reviewed(path, body["spec"])}}
        kind, namespace, name, part = _place(path)
        if part == "log":
            return self.logs.get(name, "")
        if method == "POST":
            return self._create(namespace, body, query)
        if name:
            if (kind, namespace, name) not in self.documents:
                raise Answer(404, f'{kind} "{name}" not found')
            if method == "DELETE":
                return self.documents.pop((kind, namespace, name))
            return self.documents[kind, namespace, name]
        return self._list(kind, namespace, query)

    def _reviewed(self, path: str, spec: Json) -> bool:
        asked = spec["resourceAttributes"]
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        if "selfsubject" in path:
            return f"{asked['verb']} {resource}" not in self.denied
        _, _, namespace, account = spec["user"].split(":")
        assert f"/namespaces/{asked['namespace']}/" in path and f"system:serviceaccounts:{namespace}" in spec["groups"]
        return self.account_may(namespace, account, asked["group"], resource, asked["verb"])

    def _create(self, namespace: str, body: Json, query: Mapping[str, str]) -> Json:
        namespace_document = self.documents.get(("Namespace", "", namespace))
        if namespace_document is None:
            raise Answer(404, f'namespaces "{namespace}" not found')
        level = (namespace_document["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce")
        if level == "restricted" and (violations := pod_security.violations(body["spec"])):
            raise Answer(403, f"violates PodSecurity: {violations}")
        if self.refuses_pods:
            raise Answer(403, self.refuses_pods)
        if query.get("dryRun") == "All":
            return body
        created = self.add({**body, "metadata": {**body["metadata"], "namespace": namespace}, "status": {}})
        threading.Thread(target=self.kubelet, args=(self, created), daemon=True).start()
        return created

    def _list(self, kind: str, namespace: str, query: Mapping[str, str]) -> Json:
        items = [
            document for document in self.of_kind(kind) if namespace in ("", document["metadata"].get("namespace", ""))
        ]
        items = [document for document in items if _selected(document, query)]
        return {"items": items}


def _place(path: str) -> tuple[str, str, str, str]:
    """Kind, namespace, name and subresource; Answer 404 for a kind that is not known."""
    matched = re.fullmatch(
        r"(/api/v1|/apis/[^/]+/[^/]+)(?:/namespaces/([^/]+))?/([^/]+)(?:/([^/]+))?(?:/([^/]+))?", path
    )
    namespace_match = re.fullmatch(r"/api/v1/namespaces/([^/]+)", path)
    if namespace_match:
        return "Namespace", "", namespace_match[1], ""
    if not matched or LISTS.get(KINDS.get(matched[3], "")) != f"{matched[1]}/{matched[3]}":
        raise Answer(404, f"the server could not find the requested resource: {path}")
    return KINDS[matched[3]], matched[2] or "", matched[4] or "", matched[5] or ""


def _selected(document: Json, query: Mapping[str, str]) -> bool:
    labels = document["metadata"].get("labels") or {}
    for part in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = part.partition("=")
        if labels.get(key) != value:
            return False
    phase = (document.get("status") or {}).get("phase", "")
    return all(phase != part.partition("!=")[2] for part in query.get("fieldSelector", "").split(",") if part)


@contextmanager
def serving(api: ClusterApi, folder: Path) -> Iterator[Path]:
    """The API behind a server; the file for KUBECONFIG."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def _do(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            api.requests.append(f"{self.command} {parts.path}")
            status, response = 200, None
            try:
                assert self.headers["Authorization"] == "Bearer a-token"
                query = {key: values[0] for key, values in parse_qs(parts.query).items()}
                response = api.answer(self.command, parts.path, query, body)
            except Answer as error:
                status, response = error.status, {"kind": "Status", "message": str(error)}
            data = response.encode() if isinstance(response, str) else json.dumps(response).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_DELETE = _do

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    named = {"name": "here"}
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{**named, "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{**named, "user": {"token": "a-token"}}],
        "contexts": [{**named, "context": {"cluster": "here", "user": "here"}}],
    }  # fmt: skip
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    try:
        yield path
    finally:
        server.shutdown()
        server.server_close()


# What is in a cluster


def named(kind: str, name: str, namespace: str = "", **more: Any) -> Json:
    place = {"namespace": namespace} if namespace else {}
    return {"kind": kind, "metadata": {"name": name, **place, **more.pop("metadata", {})}, **more}


def node(name: str, cpu: str = "8", memory: str = "32Gi", images: tuple[str, ...] = (), **allocatable: str) -> Json:
    size = {"cpu": cpu, "memory": memory, "ephemeral-storage": "100Gi", "pods": "110", **allocatable}
    listed = [{"names": [image]} for image in images]
    ready = [{"type": "Ready", "status": "True"}]
    return named("Node", name, spec={}, status={"allocatable": size, "conditions": ready, "images": listed})


def pod(name: str, node_name: str, cpu: str, owner: str = "ReplicaSet", namespace: str = "other") -> Json:
    """A pod that runs on a node."""
    container = {"name": "main", "resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}}
    owner_fields = {"metadata": {"ownerReferences": [{"kind": owner}]}} if owner else {}
    spec = {"nodeName": node_name, "containers": [container]}
    return named("Pod", name, namespace, spec=spec, status={"phase": "Running"}, **owner_fields)


def secret(name: str, namespace: str, **values: str) -> Json:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return named("Secret", name, namespace, data=data)


def deployment(name: str, namespace: str, image: str, **container: Any) -> Json:
    parts = [{"name": name, "image": image, **container}]
    return named("Deployment", name, namespace, spec={"template": {"spec": {"containers": parts}}})


def installed(overlay: str, images: tuple[str, ...]) -> ClusterApi:
    """A cluster in which all is as it should be for an overlay of k8s/."""
    api = ClusterApi()
    for document in kustomize.render(K8S / "overlays" / overlay):
        if document["kind"] in LISTS:
            api.add(document)
    home_namespace = next(iter(api.of_kind("NetworkPolicy")))["metadata"]["namespace"]
    api.add(node("one", "8" if overlay == "kind" else "16", images=images))
    api.add(deployment("kuberay-operator", "kuberay-operator", "quay.io/kuberay/operator:v1.7.0"))
    if overlay == "kind":
        argo, keys = "argo", "imagemill-store"
        api.add(secret("imagemill-executor.service-account-token", home_namespace, token="t0ken"))
    else:
        argo, keys = "kubeflow", "mlpipeline-minio-artifact"
        api.add(named("Namespace", "kubeflow"))
        api.add(deployment("ml-pipeline-api-server", "kubeflow", "ghcr.io/kubeflow/kfp-api-server:2.17.0"))
        api.add(named("Service", "ml-pipeline", "kubeflow", spec={"ports": [{"port": 8888}]}))
        account = "pipeline-runner" if overlay == "kubeflow" else "default-editor"
        api.add(named("ServiceAccount", account, home_namespace))
    if overlay == "kubeflow-profile":
        api.add(
            named("Namespace", home_namespace, metadata={"labels": {"app.kubernetes.io/part-of": "kubeflow-profile"}})
        )
    api.add(deployment("workflow-controller", argo, "quay.io/argoproj/workflow-controller:v4.1.2"))
    api.add(secret(keys, home_namespace, accesskey="key", secretkey="secret"))
    return api


# Pods that are started


def kubelet(api: ClusterApi, document: Json) -> None:
    """Run a pod's command here, as the user that it should have, with what its secrets say."""
    (container,) = document["spec"]["containers"]
    name, namespace = document["metadata"]["name"], document["metadata"]["namespace"]
    image_names = [image["names"] for node in api.of_kind("Node") for image in node["status"]["images"]]
    if container["image"] not in {image_name for names in image_names for image_name in names}:
        waiting = {"reason": "ErrImagePull", "message": f"{container['image']}: not found"}
        document["status"] = {"phase": "Pending", "containerStatuses": [{"state": {"waiting": waiting}}]}
        return
    environment = {"PATH": "/usr/bin:/bin", "AWS_EC2_METADATA_DISABLED": "true", "PYTHONPATH": ":".join(sys.path)}
    for variable in container["env"]:
        if source := variable.get("valueFrom"):
            keys = api.get("Secret", source["secretKeyRef"]["name"], namespace)["data"]
            environment[variable["name"]] = base64.b64decode(keys[source["secretKeyRef"]["key"]]).decode()
        else:
            environment[variable["name"]] = variable["value"]
    _, flag, source, *arguments = container["command"]
    as_user = "import os\nos.getuid = lambda: 10001\n"
    command = [sys.executable, flag, f"{as_user}exec({source!r})", *arguments, *container["args"]]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    api.logs[name] = process.stdout + process.stderr
    document["status"] = {"phase": "Failed" if process.returncode else "Succeeded"}
