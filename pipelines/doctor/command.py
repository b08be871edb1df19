"""The command `imagemill doctor`: the table of its checks, and those that `submit` and `schedule` run first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from ...components.step.progress import say
from ...components.storage.errors import EXIT_OK, EXIT_USER, UserError, wrong
from ..cluster.checks import read_cluster
from ..cluster.cluster_file import Cluster
from ..cluster.kube_client import KubeClient
from ..kfp.client import Connection, add_connection_flags
from . import checks, pods, room
from .site import ARGO, ERROR, KFP, OK, WARNING, Finding, Site, Unseen, find_worst_state, format_table

HELP = "is a cluster ready for a run, and if not, how to fix it"
_ABOUT = """Looks at the cluster of KUBECONFIG by a cluster file: versions, room on the nodes, rights, secrets, images,
and whether the store refuses a second object of a name. Prints a table, each problem with its fix. Exits with 0, or
with 2 where a run would fail or wait in vain. Nothing is changed but one object of the store, which is removed."""

CHECKS: Mapping[str, Callable[[Site], list[Finding]]] = {
    "namespace": checks.check_namespace,
    "argo": checks.check_argo,
    "kuberay": checks.check_kuberay,
    "kfp": checks.check_kubeflow,
    "accounts": checks.check_accounts,
    "secrets": checks.check_secrets,
    "images": checks.check_images,
    "pods": pods.check_pods,
    "room": room.check_room,
    "store": checks.check_store,
    "probe": pods.check_by_pods,
}
BEFORE_RUN = ("namespace", "kuberay", "accounts", "secrets", "room", "images")
"""The checks of `submit` and `schedule`, which are quick and write nothing."""


def add_command(commands: Any) -> None:
    """Add the command and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser("doctor", help=HELP, description=_ABOUT)
    parser.add_argument("--cluster", default="", metavar="FILE", help="how the cluster is used (`imagemill cluster` "
                        "prints such a file)")  # fmt: skip
    parser.add_argument("--target", default="", help="what starts the runs [kfp, argo] (default: kfp in a namespace of "
                        "Kubeflow's, else argo)")  # fmt: skip
    parser.add_argument("--probe", action="store_true", help="also start a pod of each image, which uses the store; "
                        "they are deleted again")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    add_connection_flags(parser)


def run(flags: dict[str, Any]) -> int:
    """Run the checks and print the findings; return the exit code."""
    if flags["target"] not in ("", KFP, ARGO):
        raise wrong("--target", f"{KFP} or {ARGO}", flags["target"])
    cluster = read_cluster(flags["cluster"])
    connection = Connection.from_flags(flags, cluster.namespace)
    site, findings = connect(cluster, connection, flags["target"])
    if site is not None:
        left_out = {"store"} if flags["probe"] else {"probe"}
        left_out |= {"kfp"} if site.target != KFP else set()
        findings += run_checks(site, [name for name in CHECKS if name not in left_out])
    state = find_worst_state(findings)
    if flags["json"]:
        print(json.dumps({"status": state, "findings": [vars(finding) for finding in findings]}, ensure_ascii=False))
    else:
        print(format_table(findings))
    return EXIT_USER if state == ERROR else EXIT_OK


def connect(cluster: Cluster, connection: Connection, target: str = "") -> tuple[Site | None, list[Finding]]:
    """Connect to the cluster of KUBECONFIG, or of this pod; None where there is none or it does not answer."""
    try:
        site = Site(KubeClient.connect(connection.namespace).api, cluster, connection, target)
        version = (site.read("/version") or {}).get("gitVersion", "of an unknown version")
    except (UserError, Unseen) as error:
        return None, [Finding("api", ERROR, str(error), "is KUBECONFIG that of the cluster, and its login valid?")]
    site.locate()
    return site, [Finding("api", OK, f"Kubernetes {version} at {site.api.configuration.host}")]


def run_checks(site: Site, names: list[str]) -> list[Finding]:
    """Return the findings of checks; one that may not look is a warning."""
    findings: list[Finding] = []
    for name in names:
        try:
            findings += CHECKS[name](site)
        except Unseen as error:
            findings.append(Finding(name, WARNING, f"can't be seen: {error}", is_unseen=True))
    return findings


def check_before_run(cluster: Cluster, connection: Connection) -> None:
    """Run the quick checks of a cluster before a run in Kubeflow Pipelines is started on it.

    UserError where the run would fail; warnings are printed. Nothing is checked where the cluster of KUBECONFIG does
    not answer, or Kubeflow Pipelines is in another one.
    """
    is_local = urlsplit(connection.host).hostname in ("localhost", "127.0.0.1", "::1")  # as by a port-forward
    site = connect(cluster, connection, KFP)[0] if is_local or not connection.host else None
    if site is None or not site.kubeflow:
        return
    findings = [finding for finding in run_checks(site, list(BEFORE_RUN)) if not finding.is_unseen]
    for finding in findings:
        if finding.state != OK:
            say("doctor", f"{finding.state}: {finding.check}: {finding.seen}{finding.mend and f' -> {finding.mend}'}")
    # A node's list of images may be out of date: no reason to refuse a run.
    if any(finding.state == ERROR and finding.check != "images" for finding in findings):
        raise UserError(
            f"the cluster at {site.api.configuration.host} is not ready for a run (see above; `imagemill doctor` tells "
            "more); with --no-check it is started all the same"
        )
