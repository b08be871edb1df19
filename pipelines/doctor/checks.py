"""The checks of doctor: one function each, from a site to findings; an `Unseen` becomes a warning."""

from __future__ import annotations

import base64
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ...components.storage.errors import MillError
from ..cluster import pod_fields
from ..cluster.cluster_file import TOKEN_KEY, Cluster
from ..cluster.kube_client import RIGHTS, Json
from ..kfp.client import CONNECTION_HELP, KfpService
from ..kfp.pods import supports_run_settings
from . import inside
from .site import ARGO, ERROR, OK, WARNING, Finding, Site, Unseen

Rights = Mapping[tuple[str, str], Iterable[str]]
"""(API group, resource) → verbs."""
EXECUTOR_RIGHTS: Rights = {("argoproj.io", "workflowtaskresults"): ("create", "patch")}
USER_RIGHTS: Rights = {("argoproj.io", "workflows"): ("create", "get", "list", "watch"), ("", "pods/log"): ("get",)}
"""Rights that a user needs for `argo submit` and `argo logs`."""
OLDEST_ARGO, OLDEST_KUBERAY = (3, 7), (1, 6)
"""KubeRay has deadlines for a RayJob that waits for nodes (ray.pending_seconds) since 1.6."""
MODULES = {"cpu": "kubernetes", "ray": "ray", "gpu": "torch"}
"""Target of the Dockerfile → a module that its image has to have."""
PULL_PROBLEMS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
STORE_TIMEOUT_S = 60.0
_INSTALL_ARGO = (
    "kubectl apply --server-side -n argo -f "
    "https://github.com/argoproj/argo-workflows/releases/download/v4.1.2/install.yaml"
)
_INSTALL_KUBERAY = "helm install kuberay-operator kuberay/kuberay-operator -n kuberay-operator --create-namespace"


def check_namespace(site: Site) -> list[Finding]:
    """Check that the namespace of the runs' pods exists and is that of the cluster file."""
    name = site.namespace
    if name != site.connection.namespace:
        seen = f"Kubeflow Pipelines has no profile {site.connection.namespace}: its pods are in {name}, as checked here"
        return [Finding("namespace", WARNING, seen, f"namespace: {name} in the cluster file")]
    if site.read(f"/api/v1/namespaces/{name}") is None:
        return [Finding("namespace", ERROR, f"there is no namespace {name}", f"kubectl create namespace {name}")]
    return [Finding("namespace", OK, f"{name}, for {site.target}")]


def check_argo(site: Site) -> list[Finding]:
    """Check that Argo Workflows is installed, which Kubeflow also runs on, in a version that the templates are for."""
    if missing := _list_missing_kinds(site, "argoproj.io/v1alpha1", ("workflows", "workflowtemplates")):
        return [Finding("argo", ERROR, f"the cluster has no {', '.join(missing)}", _INSTALL_ARGO)]
    version = find_version(site, "workflow-controller")
    if version and site.target == ARGO and parse_version(version) < OLDEST_ARGO:
        return [Finding("argo", ERROR, f"Argo Workflows {version}; the templates are for 3.7 or later", _INSTALL_ARGO)]
    return [Finding("argo", OK, f"Argo Workflows {version or 'of an unknown version'}")]


def check_kuberay(site: Site) -> list[Finding]:
    """Check that KubeRay is installed where runs create RayJobs."""
    ray = site.cluster.ray
    if not ray.makes_rayjobs:
        return [Finding("kuberay", OK, f"not needed: ray.mode is {ray.mode}")]
    if missing := _list_missing_kinds(site, "ray.io/v1", ("rayjobs", "rayclusters")):
        state = ERROR if "rayjob" in (ray.mode, ray.clean) else WARNING  # with auto runs of little data make none
        seen = f"ray.mode is {ray.mode}, ray.clean is {ray.clean}, and the cluster has no {', '.join(missing)}"
        return [Finding("kuberay", state, seen, f"{_INSTALL_KUBERAY}; or ray: {{mode: pod, clean: pod}}")]
    version = find_version(site, "kuberay-operator")
    if version and parse_version(version) < OLDEST_KUBERAY:
        seen = f"KubeRay {version} has no deadline for a RayJob that waits for nodes (ray.pending_seconds)"
        return [Finding("kuberay", WARNING, seen, "upgrade it to 1.6 or later")]
    return [Finding("kuberay", OK, f"KubeRay {version or 'of an unknown version'}")]


def check_kubeflow(site: Site) -> list[Finding]:
    """Check that Kubeflow Pipelines answers, and is of the release that packages are compiled for."""
    try:
        service = KfpService(site.connection)
    except MillError as error:
        return [Finding("kfp", ERROR, str(error).replace(CONNECTION_HELP, "").strip(), CONNECTION_HELP)]
    version, declared = find_version(site, "ml-pipeline-api-server"), site.cluster.kfp.version
    if version and supports_run_settings(declared) and not supports_run_settings(version.lstrip("v")):
        seen = (
            f"Kubeflow Pipelines {version}, and kfp.version says {declared}: it would ignore the pods' settings, "
            "credentials among them"
        )
        release = ".".join(map(str, parse_version(version)))
        return [Finding("kfp", ERROR, seen, f'kfp: {{version: "{release}"}} in the cluster file')]
    return [Finding("kfp", OK, f"{service.host} answers{version and f', version {version}'}")]


def _list_missing_kinds(site: Site, api: str, kinds: Iterable[str]) -> list[str]:
    known = {resource["name"] for resource in (site.read(f"/apis/{api}") or {}).get("resources", ())}
    return [f"{kind} ({api})" for kind in kinds if kind not in known]


def find_version(site: Site, name: str) -> str:
    """Return the version in the image's tag of the container of that name; empty where there is none."""
    for deployment in site.list_items("/apis/apps/v1/deployments"):
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            image, _, tag = str(container["image"]).partition("@")[0].rpartition("/")[2].partition(":")
            if name in (container["name"], image) and re.search(r"\d+\.\d+", tag):
                return tag
    return ""


def parse_version(version: str) -> tuple[int, int]:
    """Return the major and minor number of a version: (4, 1) for v4.1.2."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def check_accounts(site: Site) -> list[Finding]:
    """Check that the pods' service accounts exist and may do what the pods do, and the user what follows a run."""
    findings = []
    accounts = _list_accounts(site)
    for account, rights in accounts.items():
        if site.get("serviceaccounts", account) is None:
            seen = f"no service account {account} in {site.namespace}"
            findings.append(Finding("accounts", ERROR, seen, get_overlay_command(site)))
        elif missing := list_missing_rights(site, account, rights):
            is_optional = set(missing) <= {"list events", "list pods"}  # a run only explains less without them
            seen = f"{account} may not {', '.join(missing)}"
            findings.append(Finding("accounts", WARNING if is_optional else ERROR, seen, get_overlay_command(site)))
    if site.target == ARGO and (missing := list_missing_rights(site, "", USER_RIGHTS)):
        seen = f"you yourself may not, in {site.namespace}: {', '.join(missing)}"
        findings.append(Finding("accounts", WARNING, seen, "somebody else has to start runs, or give you the right"))
    return findings or [Finding("accounts", OK, f"{', '.join(accounts)} and their rights")]


def get_overlay_command(site: Site) -> str:
    """Return the command that creates accounts, rights and network policies."""
    if site.target == ARGO:
        return "kubectl apply -k k8s/overlays/kind, or an overlay of your own over k8s/base"
    return f"kubectl apply -k k8s/overlays/{'kubeflow' if site.namespace == site.kubeflow else 'kubeflow-profile'}"


def _list_accounts(site: Site) -> dict[str, Rights]:
    """Return the accounts of a run's pods, with the rights that each needs."""
    makes_rayjobs, argo = site.cluster.ray.makes_rayjobs, site.cluster.argo
    if site.target != ARGO:
        return {site.account: RIGHTS if makes_rayjobs else {}}
    executor = argo.executor_service_account
    accounts = {argo.service_account: {} if executor else EXECUTOR_RIGHTS}
    accounts |= {executor: EXECUTOR_RIGHTS} if executor else {}
    return accounts | {argo.launcher_service_account: {**EXECUTOR_RIGHTS, **(RIGHTS if makes_rayjobs else {})}}


def list_missing_rights(site: Site, account: str, rights: Rights) -> list[str]:
    """Return the rights that the account, or the user (empty), lacks, as `create rayjobs.ray.io`."""
    return [
        f"{verb} {resource}{group and '.'}{group}"
        for (group, resource), verbs in rights.items() for verb in verbs
        if not site.is_allowed(account, group, resource, verb)
    ]  # fmt: skip


def check_secrets(site: Site) -> list[Finding]:
    """Check that the secrets that the cluster file names exist, with their keys."""
    cluster, findings = site.cluster, []
    needed: dict[str, tuple[str, ...]] = dict.fromkeys(cluster.images.pull_secrets, (".dockerconfigjson",))
    if cluster.storage.secret:
        needed[cluster.storage.secret] = (cluster.storage.access_key, cluster.storage.secret_key)
    if cluster.ray.token_secret:
        needed[cluster.ray.token_secret] = (TOKEN_KEY,)
    if site.target == ARGO and (account := cluster.argo.executor_service_account):
        needed[f"{account}.service-account-token"] = ("token",)
    for name, keys in needed.items():
        document = site.get("secrets", name)
        if document is None:
            seen = f"there is no secret {name} in {site.namespace}"
            findings.append(Finding("secrets", ERROR, seen, "make it, or correct its name in the cluster file"))
        elif absent := [key for key in keys if not (document.get("data") or {}).get(key)]:
            there = ", ".join(sorted(document.get("data") or {})) or "none"
            seen = f"secret {name} has no key {', '.join(absent)}; it has {there}"
            findings.append(Finding("secrets", ERROR, seen, "correct the key in the cluster file, or the secret"))
    return findings or [Finding("secrets", OK, ", ".join(needed) or "none are needed: credentials by identity")]


def check_images(site: Site) -> list[Finding]:
    """Check that each image is on the nodes, or names a registry that pods could pull it from so far."""
    images, policy, findings = site.cluster.images, site.cluster.images.pull_policy, []
    nodes, pods = site.list_items("/api/v1/nodes"), site.list_items(f"/api/v1/namespaces/{site.namespace}/pods")
    problems = {str(status.get("image")): problem for pod in pods for status in get_statuses(pod)
                if (problem := get_waiting(status, PULL_PROBLEMS))}  # fmt: skip
    for target in MODULES:
        image = site.cluster.image(target)
        has_registry = re.match(r"[^/]*[.:][^/]*/", image) is not None
        number = sum(
            any(_matches(image, name) for entry in (node.get("status") or {}).get("images") or ()
                for name in entry.get("names") or ()) for node in nodes
        )  # fmt: skip
        seen = f"images.{target}: {image} is known on {number} of {len(nodes)} nodes"
        if image in problems:
            findings.append(
                Finding("images", ERROR, f"images.{target}: {problems[image]}", "correct name or pull_secrets")
            )
        elif number < len(nodes) and (policy == "Never" or not has_registry):
            why = "images.pull_policy is Never" if policy == "Never" else "it names no registry to be pulled from"
            hint = "`kind load docker-image`, or `imagemill images build --registry …`"
            findings.append(Finding("images", WARNING if number else ERROR, f"{seen}, and {why}", hint))
        elif policy == "Always" and not has_registry:
            seen = f"images.{target}: {image} names no registry, and images.pull_policy is Always"
            findings.append(Finding("images", ERROR, seen, "images.pull_policy: IfNotPresent"))
    return findings or [
        Finding("images", OK, f"on the nodes, or to be pulled: {images.cpu}, {images.ray}, {images.gpu}")
    ]


def _matches(image: str, name: str) -> bool:
    """Return whether a node's name of an image is this one; nodes add Docker Hub's names in front."""
    return name == image or name in (f"docker.io/{image}", f"docker.io/library/{image}")


def get_statuses(pod: Json) -> list[Json]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def get_waiting(status: Json, reasons: Iterable[str]) -> str:
    waiting = (status.get("state") or {}).get("waiting") or {}
    reason = str(waiting.get("reason"))
    return f"{reason}: {waiting.get('message') or status.get('image', '')}" if reason in reasons else ""


def check_store(site: Site) -> list[Finding]:
    """Check by two writes that the store refuses the second one of an object, with the credentials of the pods."""
    storage = site.cluster.storage
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or storage.endpoint
    environment = pod_fields.build_plain_storage_variables(site.cluster) | {"AWS_ENDPOINT_URL": endpoint or ""}
    if storage.secret:
        data = (site.get("secrets", storage.secret) or {}).get("data") or {}
        for variable, key in (("AWS_ACCESS_KEY_ID", storage.access_key), ("AWS_SECRET_ACCESS_KEY", storage.secret_key)):
            environment[variable] = base64.b64decode(data.get(key) or "").decode()
    if endpoint and not _is_reachable(endpoint):
        raise Unseen(f"{endpoint} is not reached from here; --probe asks from a pod")
    words = [sys.executable, "-c", read_program(), MODULES["cpu"], storage.workspace]
    try:
        result = subprocess.run(
            words, env={**os.environ, **{name: value for name, value in environment.items() if value}},
            capture_output=True, text=True, timeout=STORE_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Unseen(f"{endpoint or 'AWS'} does not answer in time") from None
    return [_judge_store(site.cluster, result.stderr if result.returncode else "")]


def _is_reachable(endpoint: str) -> bool:
    url = urlsplit(endpoint)
    try:
        with socket.create_connection((url.hostname or "", url.port or (443 if url.scheme == "https" else 80)), 3):
            return True
    except OSError:
        return False


def _judge_store(cluster: Cluster, error: str) -> Finding:
    if error:
        mend = "correct storage in the cluster file, the secret, the bucket, or the network policies"
        return Finding("store", ERROR, f"{cluster.storage.workspace}: {error.strip().splitlines()[-1]}", mend)
    return Finding("store", OK, f"{cluster.storage.workspace} takes an object, and refuses a second one of its name")


def read_program() -> str:
    return Path(inside.__file__).read_text(encoding="utf-8")
