"""Options of `tests/e2e/run`, and the cluster file adapted to the tests."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imagemill.components.storage import uri as uris
from imagemill.components.storage.errors import wrong
from imagemill.pipelines.cluster import cluster_file as clusters
from imagemill.pipelines.cluster.cluster_file import Cluster, Pod
from imagemill.pipelines.settings import parse_quantity

E2E_LABEL = "imagemill.io/e2e"
"""On all that a session makes: its suffix. On a namespace: `allowed`, it may be used for tests."""
ALLOWED = "allowed"
SMALL = {
    "dataset": "folder", "name": "e2e", "image_size": 32, "epochs": 2, "batch_size": 16,
    "backbone": "shufflenet_v2_x0_5",
}  # fmt: skip
"""The run that is small and goes through every step; its source is the session's own (access/inside.py, `plant`)."""
ON_GPU = ("train", "evaluate")
_INTRO = (
    "Runs imagemill on the cluster of KUBECONFIG and ends with a table of what passed. Works in the namespace of the "
    f"cluster file, which must be marked: kubectl label namespace NAME {E2E_LABEL}={ALLOWED}"
)


@dataclass(frozen=True)
class Options:
    """One session's choices; `suffix` is in every name that it makes."""

    cluster: str = "cluster.yaml"
    kfp_cluster: str = ""
    context: str = ""
    namespace_for_tests: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    retrainings: int = 0
    keep: bool = False
    full_pods: bool = False
    patience: float = 1.0
    at_once: int = 0
    """Scenarios at the same time; 0: as the nodes' cores allow."""
    bars: bool = False
    change_controller: bool = False
    pages: str = ""
    submit: tuple[str, ...] = ()
    out: Path = Path("e2e-results")
    results: Path | None = None
    list: bool = False
    sweep: bool = False
    suffix: str = ""
    command: tuple[str, ...] = (sys.executable, "-m", "imagemill.pipelines.cli")
    """How `imagemill` is called."""
    words: tuple[str, ...] = ()
    """The command line, for the results."""

    @property
    def stem(self) -> str:
        """Prefix of every name of the session."""
        return f"e2e-{self.suffix}"


def parse(words: Sequence[str]) -> Options:
    """The flags; ends the process with 2 for a wrong one, as argparse does."""
    parser = argparse.ArgumentParser(prog="tests/e2e/run", description=_INTRO)
    add = parser.add_argument
    add("--cluster", default=os.environ.get("IMAGEMILL_CLUSTER", "cluster.yaml"), metavar="FILE",
        help="the cluster file, with images and store (default: cluster.yaml, or IMAGEMILL_CLUSTER)")  # fmt: skip
    add("--kfp-cluster", default=os.environ.get("IMAGEMILL_KFP_CLUSTER", ""), metavar="FILE",
        help="the same for runs through Kubeflow Pipelines, where they have another namespace or store (default: "
        "IMAGEMILL_KFP_CLUSTER, else that of --cluster)")  # fmt: skip
    add("--context", default="", metavar="NAME", help="a context of KUBECONFIG (default: its current one)")
    add("--namespace-for-tests", action="append", default=[], metavar="NAME",
        help="says instead of the label that this namespace, named again, may be used for tests")  # fmt: skip
    add("--only", action="append", default=[], metavar="PATTERN",
        help="scenarios to try, with what they need: a name, or a pattern: 'argo-kill-*'; may be repeated")  # fmt: skip
    add("--require", action="append", default=[], metavar="PATTERN",
        help="scenarios that may not be skipped: 'kfp*' makes a cluster without Kubeflow fail")  # fmt: skip
    add("--submit", action="append", default=[], metavar="WORD",
        help="a further word for `imagemill submit` and `schedule`: --submit=--host=http://localhost:8080")  # fmt: skip
    add("--pages", default="", metavar="URL",
        help="the address of Kubeflow Pipelines' pages for the browser (default: that of its API)")  # fmt: skip
    add("--full-pods", action="store_true", help="pods of the sizes in the file; else at most half a core, 3 GiB each")
    add("--patience", type=float, default=1.0, metavar="FACTOR", help="stretches every deadline (default: 1)")
    add("--at-once", type=int, default=0, metavar="N",
        help="scenarios at the same time (default: one for two cores of the nodes, at most 4)")  # fmt: skip
    add("--bars", action="store_true", help="a measured run that takes longer than its bar has failed")
    add("--change-controller", action="store_true",
        help="also try which failures are tried again under the other retry policy: this changes the config map of "
        "Argo's controller, for everybody's workflows, and changes it back")  # fmt: skip
    add("--retrainings", type=int, default=0, metavar="N",
        help="so many scheduled retrainings in a row, each with new images and a pod killed at random: 1 to 2 minutes "
        "each (default: 0, none)")  # fmt: skip
    add("--keep", action="store_true", help="leave everything in place, to be looked at; --sweep takes it away")
    add("--out", type=Path, default=Path("e2e-results"), metavar="FOLDER",
        help="where the table, its JSON and what failures leave are written (default: e2e-results)")  # fmt: skip
    add("--results", type=Path, default=None, metavar="FILE",
        help="write the table with versions and measurements as Markdown: tests/e2e/RESULTS.md")  # fmt: skip
    add("--list", action="store_true", help="print the scenarios and end")
    add("--sweep", action="store_true", help="delete what earlier sessions left in the namespace, by label, and end")
    values = vars(parser.parse_args(words))
    if values["patience"] <= 0:
        parser.error("--patience: expected a factor above 0")
    for name in ("at_once", "retrainings"):
        if values[name] < 0:
            parser.error(f"--{name.replace('_', '-')}: expected a number from 1 on, found {values[name]}")
    values |= {name: tuple(values[name]) for name in ("only", "require", "submit", "namespace_for_tests")}
    return Options(**values, suffix=secrets.token_hex(3), words=tuple(words))


def for_tests(cluster: Cluster, suffix: str, full_pods: bool, flag: str = "--cluster") -> Cluster:
    """The cluster of the file with a label and a workspace of the session's own, and pods for a hundred small images.

    UserError where the workspace is no S3 prefix: what runs in pods can't write elsewhere.
    """
    if not uris.is_s3(cluster.storage.workspace):
        raise wrong(f"{flag} (storage.workspace)", "s3://bucket/prefix", cluster.storage.workspace)
    cluster.require_images(flag)
    prepared = replace(
        cluster,
        labels={**cluster.labels, E2E_LABEL: suffix},
        argo=replace(cluster.argo, mutex=f"imagemill-e2e-{suffix}"),
        storage=replace(cluster.storage, workspace=uris.join(cluster.storage.workspace, f"e2e-{suffix}")),
        limits=replace(cluster.limits, run_deadline_seconds=3600),
    )
    return prepared if full_pods else _small_pods(prepared)


def _small_pods(cluster: Cluster) -> Cluster:
    ray = cluster.ray
    workers = replace(ray.workers, maximum=2, minimum=min(ray.workers.minimum, 2), pod=_small(ray.workers.pod))
    return replace(
        cluster,
        steps={step: _small(pod) for step, pod in cluster.steps.items()},
        ray=replace(ray, head=_small(ray.head), workers=workers),
    )


def _small(pod: Pod) -> Pod:
    return replace(
        pod,
        cpu=_limit(pod.cpu, "500m"),
        memory=_limit(pod.memory, "3Gi"),
        memory_limit=_limit(pod.memory_limit, "3Gi") if pod.memory_limit else "",
        ephemeral_storage=_limit(pod.ephemeral_storage, "4Gi") if pod.ephemeral_storage else "",
        shm=_limit(pod.shm, "256Mi") if pod.shm else "",
    )


def _limit(quantity: str, maximum: str) -> str:
    return quantity if parse_quantity(quantity) <= parse_quantity(maximum) else maximum


def with_rayjob(cluster: Cluster) -> Cluster:
    """Resizing as a RayJob, with a worker from the beginning: one to be killed."""
    workers = replace(cluster.ray.workers, minimum=1)
    return replace(cluster, ray=replace(cluster.ray, mode="rayjob", address="", token_secret="", workers=workers))


def in_pods(cluster: Cluster) -> Cluster:
    """Clean and resize in the steps' own pods."""
    return replace(cluster, ray=replace(cluster.ray, mode="pod", clean="pod", address="", token_secret=""))


def with_clean_rayjob(cluster: Cluster) -> Cluster:
    """Clean as a RayJob, and resize in the step's own pod."""
    return replace(with_rayjob(cluster), ray=replace(with_rayjob(cluster).ray, mode="pod", clean="rayjob"))


def without_gpus(cluster: Cluster) -> Cluster:
    """The steps on CPUs, wherever there are GPUs or not. Selectors and tolerations are for GPU nodes: they go, too."""
    workers = cluster.ray.workers
    return replace(
        cluster,
        steps={step: _on_cpu(pod) for step, pod in cluster.steps.items()},
        ray=replace(cluster.ray, workers=replace(workers, pod=_on_cpu(workers.pod))),
    )


def _on_cpu(pod: Pod) -> Pod:
    return replace(pod, gpu=0, node_selector={}, tolerations=()) if pod.gpu else pod


def read_clusters(options: Options) -> tuple[Cluster, Cluster]:
    """Return the clusters of --cluster and --kfp-cluster, the same one without the latter."""
    cluster = clusters.load_cluster(options.cluster)
    return cluster, clusters.load_cluster(options.kfp_cluster) if options.kfp_cluster else cluster
