"""The command `imagemill doctor`: its checks in their order, and those that `submit` and `schedule` run first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from ...components.step.progress import say
from ...components.storage.errors import EXIT_OK, EXIT_USER, UserError, wrong
from ..cluster.checks import read_cluster
from ..cluster.cluster_file import Cluster
from ..cluster.kube_client import KubeClient
from ..kfp.client import Connection, add_connection_flags
from . import access, operators, probe, room, store
from .access import RunNamespace
from .sizes import ARGO, KFP
from .view import ERROR, OK, ApiError, ClusterView, Finding, find_worst_state, format_table, make_unseen

Check = Callable[[], list[Finding]]
HELP = "is a cluster ready for a run, and if not, how to fix it"
_ABOUT = """Looks at the cluster of KUBECONFIG by a cluster file: operators and their settings, room on the nodes,
rights, secrets, images, store, network policies. Prints a table, each problem with its fix. Exits with 0, or with
2 where a run would fail or wait in vain. Nothing is changed."""
_NO_KUBECONFIG = "nodes, pods, secrets and rights are looked at with a KUBECONFIG for the cluster"
QUICK_TIMEOUT_S = (2, 10)


def add_command(commands: Any) -> None:
    """Add the command and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser("doctor", help=HELP, description=_ABOUT)
    parser.add_argument("--cluster", default="", metavar="FILE", help="how the cluster is used (`imagemill cluster` "
                        "prints such a file)")  # fmt: skip
    parser.add_argument("--target", default="", help="what starts the runs [kfp, argo] (default: kfp in a namespace of "
                        "Kubeflow's, else argo)")  # fmt: skip
    parser.add_argument("--probe", action="store_true", help="also start a pod of each image, and one that writes to "
                        "the store and reads from it; they are deleted again")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    add_connection_flags(parser)


def run(flags: dict[str, Any]) -> int:
    """Run the checks and print the findings; return the exit code."""
    if flags["target"] not in ("", KFP, ARGO):
        raise wrong("--target", f"{KFP} or {ARGO}", flags["target"])
    cluster = read_cluster(flags["cluster"])
    connection = Connection.from_flags(flags, cluster.namespace)
    findings = examine(cluster, connection, flags["target"], starts_pods=flags["probe"])
    state = find_worst_state(findings)
    if flags["json"]:
        result = {"status": state, "findings": [vars(finding) for finding in findings]}
        print(json.dumps(result, ensure_ascii=False))
    else:
        print(format_table(findings))
    return EXIT_USER if state == ERROR else EXIT_OK


def examine(cluster: Cluster, connection: Connection, target: str = "", *, starts_pods: bool = False) -> list[Finding]:
    """Return all findings about a cluster, in the order of the table."""
    view, findings = connect_view(connection.namespace)
    if view is None:
        runs = RunNamespace(KFP, connection.namespace)
        asks_kfp = target == KFP or connection.host
        kfp = operators.check_kubeflow(None, runs, cluster, connection) if asks_kfp else []
        return [*findings, *kfp, *store.check_store(None, cluster)]
    runs, namespace_findings = access.find_run_namespace(view, target)
    view = _change_namespace(view, runs)
    checks: list[Check] = [
        lambda: operators.check_argo(view, runs),
        lambda: operators.check_controller(view, runs, cluster),
        lambda: operators.check_kuberay(view, cluster),
        lambda: operators.check_kubeflow(view, runs, cluster, connection) if runs.target == KFP else [],
        lambda: room.check_room(view, cluster, runs.target),
    ]
    if find_worst_state(namespace_findings) != ERROR:  # else there is no namespace to look into
        checks += [
            lambda: room.check_quotas(view, cluster, runs.target),
            lambda: access.check_accounts(view, cluster, runs),
            lambda: access.check_secrets(view, cluster, runs),
            lambda: access.check_policies(view, runs),
            lambda: probe.check_dry_run(view, cluster),
        ]
    if starts_pods:
        checks.append(lambda: probe.check_with_pods(view, cluster))
    else:
        checks += [lambda: probe.check_images(view, cluster), lambda: store.check_store(view, cluster)]
    return [*findings, *namespace_findings, *_run_checks(checks)]


def _run_checks(checks: Iterable[Check]) -> Iterator[Finding]:
    """Run the checks and yield their findings; an ApiError is a finding as well."""
    for check in checks:
        try:
            yield from check()
        except ApiError as error:
            yield make_unseen("api", str(error))


def connect_view(namespace: str, timeout_s: tuple[int, int] = (5, 20)) -> tuple[ClusterView | None, list[Finding]]:
    """Connect to the cluster of KUBECONFIG, or of this pod; None where there is none or it does not answer."""
    try:
        view = ClusterView(KubeClient.connect(namespace), timeout_s)
    except UserError as error:
        return None, [make_unseen("api", str(error), _NO_KUBECONFIG)]
    try:
        version = str((view.read("/version") or {}).get("gitVersion") or "of an unknown version")
    except ApiError as error:
        return None, [Finding("api", ERROR, str(error), "is KUBECONFIG that of the cluster, and its login valid?")]
    return view, [Finding("api", OK, f"Kubernetes {version} at {view.server}")]


def _change_namespace(view: ClusterView, runs: RunNamespace) -> ClusterView:
    """Return the view for the namespace of the runs' pods."""
    return view if view.namespace == runs.name else ClusterView(KubeClient(runs.name, view.kube.api), view.timeout_s)


def check_before_run(cluster: Cluster, connection: Connection) -> None:
    """Run the quick checks of a cluster before a run in Kubeflow Pipelines is started on it.

    UserError where the run would fail; warnings are printed. Nothing is checked where the cluster of KUBECONFIG does
    not answer, or Kubeflow Pipelines is in another one.
    """
    view, _ = connect_view(connection.namespace, QUICK_TIMEOUT_S) if _is_reached_locally(connection) else (None, [])
    if view is None:
        return
    runs, findings = access.find_run_namespace(view, KFP)
    if not runs.kubeflow:
        return
    view = _change_namespace(view, runs)
    checks: list[Check] = [
        lambda: operators.check_kuberay(view, cluster),
        lambda: room.check_quotas(view, cluster, KFP),
        lambda: access.check_accounts(view, cluster, runs),
        lambda: access.check_secrets(view, cluster, runs),
        lambda: room.check_room(view, cluster, KFP),
    ]
    findings += _run_checks(checks)
    # A node's list of images may be out of date: no reason to refuse a run.
    for finding in [*findings, *_run_checks([lambda: probe.check_images(view, cluster)])]:
        if finding.state != OK and not finding.is_unseen:
            say("doctor", f"{finding.state}: {finding.check}: {finding.seen}{finding.mend and f' -> {finding.mend}'}")
    if find_worst_state(findings) == ERROR:
        raise UserError(
            f"the cluster at {view.server} is not ready for a run (see above; `imagemill doctor` tells more); with "
            "--no-check it is started all the same"
        )


def _is_reached_locally(connection: Connection) -> bool:
    """Return whether Kubeflow Pipelines is reached through the cluster of KUBECONFIG or of this pod, or at a local
    address, as by a port-forward."""
    return not connection.host or urlsplit(connection.host).hostname in ("localhost", "127.0.0.1", "::1")
