"""The command itself: what is looked at, in which order, and the part that `submit` and `schedule` look at first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from ...components.store.errors import EXIT_OK, EXIT_USER, UserError, wrong
from ...components.store.progress import say
from ..checks import read_cluster
from ..cluster import Cluster
from ..kfp_client import Connection, add_flags
from ..kube import Kube
from . import access, argo_settings, images, operators, probe, quotas, room, run_namespace, store
from .findings import ERROR, OK, Finding, table, unseen, worst
from .run_namespace import RunNamespace
from .sizes import ARGO, KFP
from .view import Refused, View

Check = Callable[[], list[Finding]]
HELP = "is a cluster ready for a run, and if not, what mends it"
_ABOUT = """Looks at the cluster of KUBECONFIG by a cluster's file: operators and their settings, room on the nodes,
rights, secrets, images, store, network policies. Prints a table, each problem with what mends it. Exits with 0, or with
2 where a run would fail or wait in vain. Nothing is changed."""
_NO_KUBECONFIG = "nodes, pods, secrets and rights are looked at with a KUBECONFIG for the cluster"
QUICK_TIMEOUT_S = (2, 10)


def add_command(commands: Any) -> None:
    """The command's flags."""
    parser: argparse.ArgumentParser = commands.add_parser("doctor", help=HELP, description=_ABOUT)
    parser.add_argument("--cluster", default="", metavar="FILE", help="how the cluster is used (`imagemill cluster` "
                        "prints such a file)")  # fmt: skip
    parser.add_argument("--target", default="", help="what starts the runs [kfp, argo] (default: kfp in a namespace of "
                        "Kubeflow's, else argo)")  # fmt: skip
    parser.add_argument("--probe", action="store_true", help="also start a pod of each image, and one that writes to "
                        "the store and reads from it; they are deleted again")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    add_flags(parser)


def run(flags: dict[str, Any]) -> int:
    """Look, and print the findings; returns the exit code."""
    if flags["target"] not in ("", KFP, ARGO):
        raise wrong("--target", f"{KFP} or {ARGO}", flags["target"])
    cluster = read_cluster(flags["cluster"])
    connection = Connection.from_flags(flags, cluster.namespace)
    findings = examine(cluster, connection, flags["target"], starts_pods=flags["probe"])
    state = worst(findings)
    if flags["json"]:
        result = {"status": state, "findings": [vars(finding) for finding in findings]}
        print(json.dumps(result, ensure_ascii=False))
    else:
        print(table(findings))
    return EXIT_USER if state == ERROR else EXIT_OK


def examine(cluster: Cluster, connection: Connection, target: str = "", *, starts_pods: bool = False) -> list[Finding]:
    """All findings about a cluster, in the order of the table."""
    view, findings = connect(connection.namespace)
    if view is None:
        runs = RunNamespace(KFP, connection.namespace)
        asks_kfp = target == KFP or connection.host
        kfp = operators.kubeflow(None, runs, cluster, connection) if asks_kfp else []
        return [*findings, *kfp, *store.look(None, cluster)]
    runs, namespace_findings = run_namespace.find(view, target)
    view = _move(view, runs)
    checks: list[Check] = [
        lambda: operators.argo(view, runs),
        lambda: argo_settings.look(view, runs),
        lambda: operators.kuberay(view, cluster),
        lambda: operators.kubeflow(view, runs, cluster, connection) if runs.target == KFP else [],
        lambda: room.look(view, cluster, runs.target),
    ]
    if worst(namespace_findings) != ERROR:  # else there is no namespace to look into
        checks += [
            lambda: quotas.look(view, cluster, runs.target),
            lambda: access.accounts(view, cluster, runs),
            lambda: access.secrets(view, cluster, runs),
            lambda: access.policies(view, runs),
            lambda: probe.dry_run(view, cluster),
        ]
    if starts_pods:
        checks.append(lambda: probe.run(view, cluster))
    else:
        checks += [lambda: images.look(view, cluster), lambda: store.look(view, cluster)]
    return [*findings, *namespace_findings, *_findings_of(checks)]


def _findings_of(checks: Iterable[Check]) -> Iterator[Finding]:
    """The findings of the checks, in their order. What the API refuses is a finding as well."""
    for check in checks:
        try:
            yield from check()
        except Refused as error:
            yield unseen("api", str(error))


def connect(namespace: str, timeout_s: tuple[int, int] = (5, 20)) -> tuple[View | None, list[Finding]]:
    """The cluster of KUBECONFIG, or of this pod; None where there is none or it does not answer."""
    try:
        view = View(Kube.connect(namespace), timeout_s)
    except UserError as error:
        return None, [unseen("api", str(error), _NO_KUBECONFIG)]
    try:
        version = str((view.read("/version") or {}).get("gitVersion") or "of an unknown version")
    except Refused as error:
        return None, [Finding("api", ERROR, str(error), "is KUBECONFIG that of the cluster, and its login valid?")]
    return view, [Finding("api", OK, f"Kubernetes {version} at {view.server}")]


def _move(view: View, runs: RunNamespace) -> View:
    """The view from the namespace of the runs' pods."""
    return view if view.namespace == runs.name else View(Kube(runs.name, view.kube.api), view.timeout_s)


def look_before(cluster: Cluster, connection: Connection) -> None:
    """Look at what is quickly seen of a cluster that a run in Kubeflow Pipelines is about to be started on.

    UserError where it would fail; warnings are printed. Nothing happens where the cluster of KUBECONFIG does not
    answer, or Kubeflow Pipelines is in another one.
    """
    view, _ = connect(connection.namespace, QUICK_TIMEOUT_S) if _is_nearby(connection) else (None, [])
    if view is None:
        return
    runs, findings = run_namespace.find(view, KFP)
    if not runs.kubeflow:
        return
    view = _move(view, runs)
    checks: list[Check] = [
        lambda: operators.kuberay(view, cluster),
        lambda: quotas.look(view, cluster, KFP),
        lambda: access.accounts(view, cluster, runs),
        lambda: access.secrets(view, cluster, runs),
        lambda: room.look(view, cluster, KFP),
    ]
    findings += _findings_of(checks)
    # What a node tells of its images may be late: no reason to refuse a run.
    for finding in [*findings, *_findings_of([lambda: images.look(view, cluster)])]:
        if finding.state != OK and not finding.is_unseen:
            say("doctor", f"{finding.state}: {finding.check}: {finding.seen}{finding.mend and f' -> {finding.mend}'}")
    if worst(findings) == ERROR:
        raise UserError(
            f"the cluster at {view.server} is not ready for a run (see above; `imagemill doctor` tells more); with "
            "--no-check it is started all the same"
        )


def _is_nearby(connection: Connection) -> bool:
    """Whether Kubeflow Pipelines is reached through the cluster that KUBECONFIG names or that this pod is in, or at an
    address of this machine's, as a port-forward gives."""
    return not connection.host or urlsplit(connection.host).hostname in ("localhost", "127.0.0.1", "::1")
