"""The namespace of the runs' pods: that of the cluster's file, or that of Kubeflow Pipelines."""

from __future__ import annotations

from dataclasses import dataclass

from .findings import ERROR, OK, WARNING, Finding, unseen
from .sizes import ARGO, KFP
from .view import Refused, View, labels_of

CHECK = "namespace"
KUBEFLOW = "kubeflow"
_PROFILE = ("app.kubernetes.io/part-of", "kubeflow-profile")
"""The label of a profile's namespace."""
_ENFORCE = "pod-security.kubernetes.io/enforce"


@dataclass(frozen=True)
class RunNamespace:
    """The namespace `name`, in which `target` (argo or kfp) makes the pods of runs."""

    target: str
    name: str
    account: str = ""
    """With KFP: the service account of all steps."""
    kubeflow: str = ""
    """The namespace of Kubeflow Pipelines itself; empty where there is none."""


def find(view: View, target: str = "") -> tuple[RunNamespace, list[Finding]]:
    """The namespace of runs, and what is wrong with it. `target` empty: kfp in a namespace of Kubeflow's, else argo.

    KFP without profiles makes all pods in its own namespace, whatever the file says.
    """
    name = view.namespace
    try:
        document = view.read(f"/api/v1/namespaces/{name}")
    except Refused as error:
        # Whoever may not see the namespace may be a user of Kubeflow's, in a profile.
        profile = RunNamespace(KFP, name, "default-editor", KUBEFLOW)
        return profile if target == KFP else RunNamespace(ARGO, name), [unseen(CHECK, f"{name} ({error})")]
    kubeflow = next((candidate for candidate in (name, KUBEFLOW) if _has_kfp(view, candidate)), "")
    is_profile = document is not None and labels_of(document).get(_PROFILE[0]) == _PROFILE[1]
    target = target or (KFP if is_profile or kubeflow == name else ARGO)
    if target == KFP and not is_profile and kubeflow and kubeflow != name:
        seen = f"Kubeflow Pipelines has no profile {name}: its pods, and what is looked at here, are in {kubeflow}"
        finding = Finding(CHECK, WARNING, seen, f"namespace: {kubeflow} in the cluster's file")
        return RunNamespace(KFP, kubeflow, "pipeline-runner", kubeflow), [finding]
    if document is None:
        finding = Finding(CHECK, ERROR, f"there is no namespace {name}", f"kubectl create namespace {name}")
    else:
        level = labels_of(document).get(_ENFORCE, "none")
        finding = Finding(CHECK, OK, f"{name}, for {target}; Pod Security enforced: {level}")
    account = "" if target == ARGO else "default-editor" if is_profile else "pipeline-runner"
    return RunNamespace(target, name, account, kubeflow), [finding]


def _has_kfp(view: View, namespace: str) -> bool:
    try:
        return view.get("services", "ml-pipeline", namespace) is not None
    except Refused:
        return False
