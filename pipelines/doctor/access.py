"""Who the pods of a run are and what they may do; the secrets that they are given, and the policies that bind them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from ..cluster import TOKEN_KEY, Cluster
from ..kube import RIGHTS, Json
from .findings import ERROR, OK, WARNING, Finding, unseen
from .run_namespace import RunNamespace
from .sizes import ARGO
from .view import Refused, View, labels_of

Rights = Mapping[tuple[str, str], Iterable[str]]
"""(API group, resource) → verbs."""
EXECUTOR: Rights = {
    ("argoproj.io", "workflowtaskresults"): ("create", "patch"),
}
LAUNCHER: Rights = {
    ("ray.io", "rayjobs"): ("create", "delete", "get", "list", "patch"),
    ("", "events"): ("list",),
    ("", "pods"): ("list",),
}
YOURS: Rights = {("argoproj.io", "workflows"): ("create", "get", "list", "watch"), ("", "pods/log"): ("get",)}
"""What `argo submit` and `argo logs` need of whoever calls them."""
_DISPENSABLE = ("list events", "list pods")
"""Rights without which a run only tells less of why Ray's pods died."""
_OURS = ("app.kubernetes.io/part-of", "imagemill")


def overlay(runs: RunNamespace) -> str:
    """The command that makes accounts, rights and policies."""
    if runs.target == ARGO:
        return "kubectl apply -k k8s/overlays/kind, or an overlay of your own over k8s/base"
    return f"kubectl apply -k k8s/overlays/{'kubeflow' if runs.name == runs.kubeflow else 'kubeflow-profile'}"


def missing_rights(rights: Rights, may: Callable[[str, str, str], bool]) -> list[str]:
    """Those of the rights that `may` denies, as `create rayjobs.ray.io`."""
    asked = [(group, resource, verb) for (group, resource), verbs in rights.items() for verb in verbs]
    return [
        f"{verb} {resource}{group and '.'}{group}" for group, resource, verb in asked if not may(group, resource, verb)
    ]


def accounts(view: View, cluster: Cluster, runs: RunNamespace) -> list[Finding]:
    """The service accounts are there, and may do what the pods that run as them have to do."""
    needed = _accounts(cluster, runs)
    findings, absent = [], []
    for account, rights in needed.items():
        try:
            if view.get("serviceaccounts", account) is None:
                absent.append(account)
                continue
            missing = missing_rights(rights, partial(view.account_may, account))
        except Refused as error:
            findings.append(unseen("accounts", f"the rights of {account} ({error})"))
            continue
        if missing:
            state = WARNING if set(missing) <= set(_DISPENSABLE) else ERROR
            findings.append(Finding("accounts", state, f"{account} may not {', '.join(missing)}", overlay(runs)))
    if absent:
        seen = f"no service account {', '.join(absent)} in {view.namespace}"
        findings.insert(0, Finding("accounts", ERROR, seen, overlay(runs)))
    if runs.target == ARGO:
        findings += _your_rights(view)
    return findings or [Finding("accounts", OK, f"{', '.join(needed)} and their rights")]


def _accounts(cluster: Cluster, runs: RunNamespace) -> dict[str, Rights]:
    """The accounts of a run's pods, with the rights that each needs."""
    makes_rayjobs = cluster.ray.makes_rayjobs
    if runs.target != ARGO:
        return {runs.account: RIGHTS if makes_rayjobs else {}}
    argo = cluster.argo
    launcher = {**EXECUTOR, **(LAUNCHER if makes_rayjobs else {})}
    if not argo.executor_service_account:
        return {argo.service_account: EXECUTOR, argo.launcher_service_account: launcher}
    return {
        argo.service_account: {},
        argo.executor_service_account: EXECUTOR,
        argo.launcher_service_account: launcher,
    }


def _your_rights(view: View) -> list[Finding]:
    try:
        missing = missing_rights(YOURS, view.may)
    except Refused as error:
        return [unseen("accounts", f"your own rights ({error})")]
    if not missing:
        return []
    seen = f"you yourself may not, in {view.namespace}: {', '.join(missing)}"
    return [Finding("accounts", WARNING, seen, "somebody else has to start and follow runs, or give you the right")]


@dataclass(frozen=True)
class NeededSecret:
    """A secret that a field of the cluster's file names; `keys`: key → the field that names it, or nothing."""

    name: str
    field: str
    keys: Mapping[str, str]
    install: str = ""
    """What makes it, where it comes with an installation."""


def secrets(view: View, cluster: Cluster, runs: RunNamespace) -> list[Finding]:
    """The secrets that pods are given are there, with the keys that the cluster's file names."""
    findings = []
    needed = _secrets(cluster, runs)
    for secret in needed:
        try:
            findings += missing_parts(view, secret)
        except Refused as error:
            findings.append(unseen("secrets", f"{secret.name} ({error})"))
    names = ", ".join(secret.name for secret in needed)
    return findings or [Finding("secrets", OK, names or "none are needed: credentials by workload identity")]


def _secrets(cluster: Cluster, runs: RunNamespace) -> list[NeededSecret]:
    storage, needed = cluster.storage, []
    if storage.secret:
        keys = {storage.access_key: "storage.access_key", storage.secret_key: "storage.secret_key"}
        needed.append(NeededSecret(storage.secret, "storage.secret", keys))
    if cluster.ray.token_secret:
        needed.append(NeededSecret(cluster.ray.token_secret, "ray.token_secret", {TOKEN_KEY: ""}))
    login = {".dockerconfigjson": ""}
    needed += [NeededSecret(name, "images.pull_secrets", login) for name in cluster.images.pull_secrets]
    if runs.target == ARGO and (account := cluster.argo.executor_service_account):
        name = f"{account}.service-account-token"
        needed.append(NeededSecret(name, "argo.executor_service_account", {"token": ""}, overlay(runs)))
    return needed


def missing_parts(view: View, secret: NeededSecret) -> list[Finding]:
    """What is wrong with a secret of the namespace. Raises Refused."""
    document = view.get("secrets", secret.name)
    if document is None:
        mend = secret.install or f"make it, or correct {secret.field} in the file"
        seen = f"there is no secret {secret.name} in {view.namespace} ({secret.field})"
        return [Finding("secrets", ERROR, seen, mend)]
    data = document.get("data") or {}
    findings = []
    for key, field in secret.keys.items():
        if not data.get(key):
            mend = f"correct {field} in the file" if field else f"give it a value for {key}"
            seen = f"secret {secret.name} has no key {key}; it has {', '.join(sorted(data)) or 'none'}"
            findings.append(Finding("secrets", ERROR, seen, mend))
    return findings


def secret_value(document: Json | None, key: str) -> str:
    """A secret's value as text; empty where it has none."""
    try:
        return base64.b64decode(((document or {}).get("data") or {}).get(key) or "").decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def policies(view: View, runs: RunNamespace) -> list[Finding]:
    """The network policies for the pods of runs are there. Whether the network enforces them the API can't tell."""
    try:
        documents = view.items(f"/apis/networking.k8s.io/v1/namespaces/{view.namespace}/networkpolicies")
    except Refused as error:
        return [unseen("network", f"network policies ({error})")]
    label, value = _OURS
    ours = [document for document in documents if labels_of(document).get(label) == value]
    if ours:
        seen = f"{len(ours)} network policies for our pods; whether the cluster's network enforces them can't be seen"
        return [Finding("network", OK, seen)]
    closing = [document["metadata"]["name"] for document in documents if not document["spec"].get("podSelector")]
    if closing:
        seen = f"{', '.join(closing)} binds every pod, and no policy lets ours reach store and API server"
        return [Finding("network", ERROR, seen, overlay(runs))]
    seen = "no network policy for our pods: they may reach, and be reached by, anything"
    return [Finding("network", WARNING, seen, overlay(runs))]
