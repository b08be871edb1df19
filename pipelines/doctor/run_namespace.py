"""Find the namespace of the runs' pods: that of the cluster file, or that of Kubeflow Pipelines."""

from __future__ import annotations

from dataclasses import dataclass

from .findings import ERROR, OK, WARNING, Finding, make_unseen
from .sizes import ARGO, KFP
from .view import ApiError, ClusterView, get_labels

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
