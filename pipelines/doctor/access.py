"""Find the namespace of the runs' pods (that of the cluster file, or of Kubeflow Pipelines), and check their service
accounts and rights, their secrets, and network policies.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from ..cluster.cluster_file import TOKEN_KEY, Cluster
from ..cluster.kube_client import RIGHTS, Json
from .sizes import ARGO, KFP
from .view import ERROR, OK, WARNING, ApiError, ClusterView, Finding, get_labels, make_unseen

Rights = Mapping[tuple[str, str], Iterable[str]]
"""(API group, resource) → verbs."""
EXECUTOR_RIGHTS: Rights = {
    ("argoproj.io", "workflowtaskresults"): ("create", "patch"),
}
LAUNCHER_RIGHTS: Rights = {
    ("ray.io", "rayjobs"): ("create", "delete", "get", "list", "patch"),
    ("", "events"): ("list",),
    ("", "pods"): ("list",),
}
USER_RIGHTS: Rights = {("argoproj.io", "workflows"): ("create", "get", "list", "watch"), ("", "pods/log"): ("get",)}
"""Rights that a user needs for `argo submit` and `argo logs`."""
_OPTIONAL_RIGHTS = ("list events", "list pods")
"""Rights without which a run only explains less why Ray's pods failed."""
_POLICY_LABEL = ("app.kubernetes.io/part-of", "imagemill")


def get_overlay_command(runs: RunNamespace) -> str:
    """Return the command that creates accounts, rights and policies."""
    if runs.target == ARGO:
        return "kubectl apply -k k8s/overlays/kind, or an overlay of your own over k8s/base"
    return f"kubectl apply -k k8s/overlays/{'kubeflow' if runs.name == runs.kubeflow else 'kubeflow-profile'}"


def list_missing_rights(rights: Rights, is_allowed: Callable[[str, str, str], bool]) -> list[str]:
    """Return the rights that `is_allowed` denies, as `create rayjobs.ray.io`."""
    flat_rights = [(group, resource, verb) for (group, resource), verbs in rights.items() for verb in verbs]
    return [
        f"{verb} {resource}{group and '.'}{group}"
        for group, resource, verb in flat_rights
        if not is_allowed(group, resource, verb)
    ]


def check_accounts(view: ClusterView, cluster: Cluster, runs: RunNamespace) -> list[Finding]:
    """Check that the service accounts exist, and have the rights that their pods need."""
    rights_by_account = _list_accounts(cluster, runs)
    findings, absent = [], []
    for account, rights in rights_by_account.items():
        try:
            if view.get("serviceaccounts", account) is None:
                absent.append(account)
                continue
            missing = list_missing_rights(rights, partial(view.is_account_allowed, account))
        except ApiError as error:
            findings.append(make_unseen("accounts", f"the rights of {account} ({error})"))
            continue
        if missing:
            state = WARNING if set(missing) <= set(_OPTIONAL_RIGHTS) else ERROR
            findings.append(
                Finding("accounts", state, f"{account} may not {', '.join(missing)}", get_overlay_command(runs))
            )
    if absent:
        observation = f"no service account {', '.join(absent)} in {view.namespace}"
        findings.insert(0, Finding("accounts", ERROR, observation, get_overlay_command(runs)))
    if runs.target == ARGO:
        findings += _check_user_rights(view)
    return findings or [Finding("accounts", OK, f"{', '.join(rights_by_account)} and their rights")]


def _list_accounts(cluster: Cluster, runs: RunNamespace) -> dict[str, Rights]:
    """Return the accounts of a run's pods, with the rights that each needs."""
    makes_rayjobs = cluster.ray.makes_rayjobs
    if runs.target != ARGO:
        return {runs.account: RIGHTS if makes_rayjobs else {}}
    argo = cluster.argo
    launcher = {**EXECUTOR_RIGHTS, **(LAUNCHER_RIGHTS if makes_rayjobs else {})}
    if not argo.executor_service_account:
        return {argo.service_account: EXECUTOR_RIGHTS, argo.launcher_service_account: launcher}
    return {
        argo.service_account: {},
        argo.executor_service_account: EXECUTOR_RIGHTS,
        argo.launcher_service_account: launcher,
    }


def _check_user_rights(view: ClusterView) -> list[Finding]:
    try:
        missing = list_missing_rights(USER_RIGHTS, view.is_allowed)
    except ApiError as error:
        return [make_unseen("accounts", f"your own rights ({error})")]
    if not missing:
        return []
    observation = f"you yourself may not, in {view.namespace}: {', '.join(missing)}"
    return [
        Finding("accounts", WARNING, observation, "somebody else has to start and follow runs, or give you the right")
    ]


@dataclass(frozen=True)
class NeededSecret:
    """A secret that a field of the cluster file names; `keys`: key → the field that names it, or an empty string."""

    name: str
    field: str
    keys: Mapping[str, str]
    install: str = ""
    """The command that creates it, where it comes with an installation."""


def check_secrets(view: ClusterView, cluster: Cluster, runs: RunNamespace) -> list[Finding]:
    """Check that the secrets of the pods exist, with the keys that the cluster file names."""
    findings = []
    needed_secrets = _list_secrets(cluster, runs)
    for secret in needed_secrets:
        try:
            findings += check_secret(view, secret)
        except ApiError as error:
            findings.append(make_unseen("secrets", f"{secret.name} ({error})"))
    names = ", ".join(secret.name for secret in needed_secrets)
    return findings or [Finding("secrets", OK, names or "none are needed: credentials by workload identity")]


def _list_secrets(cluster: Cluster, runs: RunNamespace) -> list[NeededSecret]:
    storage, needed_secrets = cluster.storage, []
    if storage.secret:
        keys = {storage.access_key: "storage.access_key", storage.secret_key: "storage.secret_key"}
        needed_secrets.append(NeededSecret(storage.secret, "storage.secret", keys))
    if cluster.ray.token_secret:
        needed_secrets.append(NeededSecret(cluster.ray.token_secret, "ray.token_secret", {TOKEN_KEY: ""}))
    login = {".dockerconfigjson": ""}
    needed_secrets += [NeededSecret(name, "images.pull_secrets", login) for name in cluster.images.pull_secrets]
    if runs.target == ARGO and (account := cluster.argo.executor_service_account):
        name = f"{account}.service-account-token"
        needed_secrets.append(
            NeededSecret(name, "argo.executor_service_account", {"token": ""}, get_overlay_command(runs))
        )
    return needed_secrets


def check_secret(view: ClusterView, secret: NeededSecret) -> list[Finding]:
    """Check that a secret of the namespace exists and has its keys. Raises ApiError."""
    document = view.get("secrets", secret.name)
    if document is None:
        remedy = secret.install or f"make it, or correct {secret.field} in the file"
        observation = f"there is no secret {secret.name} in {view.namespace} ({secret.field})"
        return [Finding("secrets", ERROR, observation, remedy)]
    data = document.get("data") or {}
    findings = []
    for key, field in secret.keys.items():
        if not data.get(key):
            remedy = f"correct {field} in the file" if field else f"give it a value for {key}"
            observation = f"secret {secret.name} has no key {key}; it has {', '.join(sorted(data)) or 'none'}"
            findings.append(Finding("secrets", ERROR, observation, remedy))
    return findings


def decode_secret(document: Json | None, key: str) -> str:
    """Return a secret's value as text; empty where it has none."""
    try:
        return base64.b64decode(((document or {}).get("data") or {}).get(key) or "").decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def check_policies(view: ClusterView, runs: RunNamespace) -> list[Finding]:
    """Check that the network policies for the pods of runs exist; the API can't tell whether they are enforced."""
    try:
        documents = view.list_items(f"/apis/networking.k8s.io/v1/namespaces/{view.namespace}/networkpolicies")
    except ApiError as error:
        return [make_unseen("network", f"network policies ({error})")]
    label, value = _POLICY_LABEL
    own_policies = [document for document in documents if get_labels(document).get(label) == value]
    if own_policies:
        number = len(own_policies)
        observation = (
            f"{number} network policies for our pods; whether the cluster's network enforces them can't be seen"
        )
        return [Finding("network", OK, observation)]
    binding_all = [document["metadata"]["name"] for document in documents if not document["spec"].get("podSelector")]
    if binding_all:
        observation = f"{', '.join(binding_all)} binds every pod, and no policy lets ours reach store and API server"
        return [Finding("network", ERROR, observation, get_overlay_command(runs))]
    observation = "no network policy for our pods: they may reach, and be reached by, anything"
    return [Finding("network", WARNING, observation, get_overlay_command(runs))]


CHECK = "namespace"
KUBEFLOW = "kubeflow"
_PROFILE = ("app.kubernetes.io/part-of", "kubeflow-profile")
"""The label of the namespace of a Kubeflow profile."""
_ENFORCE = "pod-security.kubernetes.io/enforce"


@dataclass(frozen=True)
class RunNamespace:
    """The namespace `name`, in which `target` (argo or kfp) creates the pods of runs."""

    target: str
    name: str
    account: str = ""
    """With KFP: the service account of all steps."""
    kubeflow: str = ""
    """The namespace of Kubeflow Pipelines itself; empty where there is none."""


def find_run_namespace(view: ClusterView, target: str = "") -> tuple[RunNamespace, list[Finding]]:
    """Return the namespace of runs, and a finding about it. `target` empty: kfp in a namespace of Kubeflow, else argo.

    KFP without profiles creates all pods in its own namespace, whatever the cluster file has.
    """
    name = view.namespace
    try:
        document = view.read(f"/api/v1/namespaces/{name}")
    except ApiError as error:
        # A user without the right to read the namespace may be one of Kubeflow, with a profile.
        profile = RunNamespace(KFP, name, "default-editor", KUBEFLOW)
        return profile if target == KFP else RunNamespace(ARGO, name), [make_unseen(CHECK, f"{name} ({error})")]
    kubeflow = next((candidate for candidate in (name, KUBEFLOW) if _has_kfp(view, candidate)), "")
    is_profile = document is not None and get_labels(document).get(_PROFILE[0]) == _PROFILE[1]
    target = target or (KFP if is_profile or kubeflow == name else ARGO)
    if target == KFP and not is_profile and kubeflow and kubeflow != name:
        observation = (
            f"Kubeflow Pipelines has no profile {name}: its pods, and what is looked at here, are in {kubeflow}"
        )
        finding = Finding(CHECK, WARNING, observation, f"namespace: {kubeflow} in the cluster file")
        return RunNamespace(KFP, kubeflow, "pipeline-runner", kubeflow), [finding]
    if document is None:
        finding = Finding(CHECK, ERROR, f"there is no namespace {name}", f"kubectl create namespace {name}")
    else:
        level = get_labels(document).get(_ENFORCE, "none")
        finding = Finding(CHECK, OK, f"{name}, for {target}; Pod Security enforced: {level}")
    account = "" if target == ARGO else "default-editor" if is_profile else "pipeline-runner"
    return RunNamespace(target, name, account, kubeflow), [finding]


def _has_kfp(view: ClusterView, namespace: str) -> bool:
    try:
        return view.get("services", "ml-pipeline", namespace) is not None
    except ApiError:
        return False
