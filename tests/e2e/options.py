"""What one says to `tests/e2e/run`, and the cluster's file in the form that the tests use."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imagemill.components.store import uri as uris
from imagemill.components.store.errors import wrong
from imagemill.pipelines import cluster as clusters
from imagemill.pipelines.cluster import Cluster, Pod
from imagemill.pipelines.settings import bytes_of

E2E_LABEL = "imagemill.io/e2e"
"""On all that a session makes: its suffix. On a namespace: `allowed`, it may be used for tests."""
ALLOWED = "allowed"
SMALL = {"image_size": 32, "epochs": 2, "backbone": "shufflenet_v2_x0_5"}
"""The run that is small and goes through every step: the dataset `demo`, made in the download step, no network."""
ON_GPU = ("train", "evaluate")
_INTRO = (
    "Runs imagemill on the cluster of KUBECONFIG and ends with a table of what passed. Works in the namespace of the "
    f"cluster's file, which must be marked: kubectl label namespace NAME {E2E_LABEL}={ALLOWED}"
)


@dataclass(frozen=True)
class Options:
    """One session's choices; `suffix` is in every name that it makes."""

    cluster: str = "cluster.yaml"
    context: str = ""
    namespace_for_tests: str = ""
    only: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    keep: bool = False
    full_pods: bool = False
    patience: float = 1.0
    submit: tuple[str, ...] = ()
    out: Path = Path("e2e-results")
    list: bool = False
    sweep: bool = False
    suffix: str = ""
    command: tuple[str, ...] = (sys.executable, "-m", "imagemill.pipelines.cli")
    """How `imagemill` is called."""


def parse(words: Sequence[str]) -> Options:
    """The flags; ends the process with 2 for a wrong one, as argparse does."""
    parser = argparse.ArgumentParser(prog="tests/e2e/run", description=_INTRO)
    add = parser.add_argument
    add("--cluster", default=os.environ.get("IMAGEMILL_CLUSTER", "cluster.yaml"), metavar="FILE",
        help="the cluster's file, with images and store (default: cluster.yaml, or IMAGEMILL_CLUSTER)")  # fmt: skip
    add("--context", default="", metavar="NAME", help="a context of KUBECONFIG (default: its current one)")
    add("--namespace-for-tests", default="", metavar="NAME",
        help="says instead of the label that this namespace, named again, may be used for tests")  # fmt: skip
    add("--only", action="append", default=[], metavar="PATTERN",
        help="scenarios to try, with what they need: a name, or a pattern: 'argo-kill-*'; may be repeated")  # fmt: skip
    add("--require", action="append", default=[], metavar="PATTERN",
        help="scenarios that may not be skipped: 'kfp*' makes a cluster without Kubeflow fail")  # fmt: skip
    add("--submit", action="append", default=[], metavar="WORD",
        help="a further word for `imagemill submit` and `schedule`: --submit=--host=http://localhost:8080")  # fmt: skip
    add("--full-pods", action="store_true", help="pods of the sizes in the file; else at most 1 core and 4 GiB each")
    add("--patience", type=float, default=1.0, metavar="FACTOR", help="stretches every deadline (default: 1)")
    add("--keep", action="store_true", help="leave everything in place, to be looked at; --sweep takes it away")
    add("--out", type=Path, default=Path("e2e-results"), metavar="FOLDER",
        help="where the table, its JSON and what failures leave are written (default: e2e-results)")  # fmt: skip
    add("--list", action="store_true", help="print the scenarios and end")
    add("--sweep", action="store_true", help="delete what earlier sessions left in the namespace, by label, and end")
    values = vars(parser.parse_args(words))
    if values["patience"] <= 0:
        parser.error("--patience: expected a factor above 0")
    values |= {name: tuple(values[name]) for name in ("only", "require", "submit")}
    return Options(**values, suffix=secrets.token_hex(3))


def for_tests(cluster: Cluster, suffix: str, full_pods: bool) -> Cluster:
    """The cluster of the file with a mutex, a label and a workspace of the session's own, and pods of demo size.

    UserError where the workspace is no S3 prefix: what runs in pods can't write elsewhere.
    """
    if not uris.is_s3(cluster.storage.workspace):
        raise wrong("--cluster (storage.workspace)", "s3://bucket/prefix", cluster.storage.workspace)
    cluster.require_images("--cluster")
    workspace = uris.join(cluster.storage.workspace, f"e2e-{suffix}")
    made = replace(
        cluster,
        labels={**cluster.labels, E2E_LABEL: suffix},
        argo=replace(cluster.argo, mutex=f"imagemill-e2e-{suffix}"),
        storage=replace(cluster.storage, workspace=workspace),
        # A worker from the beginning: one to be killed.
        ray=replace(cluster.ray, workers=replace(cluster.ray.workers, minimum=1)),
        limits=replace(cluster.limits, run_deadline_seconds=3600),
    )
    return made if full_pods else _small_pods(made)


def _small_pods(cluster: Cluster) -> Cluster:
    ray = cluster.ray
    workers = replace(ray.workers, maximum=2, pod=_small(ray.workers.pod))
    return replace(
        cluster,
        steps={step: _small(pod) for step, pod in cluster.steps.items()},
        ray=replace(ray, head=_small(ray.head), workers=workers),
    )


def _small(pod: Pod) -> Pod:
    """The same for 800 small images."""
    return replace(
        pod,
        cpu=_least(pod.cpu, "1"),
        memory=_least(pod.memory, "4Gi"),
        memory_limit=_least(pod.memory_limit, "4Gi") if pod.memory_limit else "",
        cpu_limit=pod.cpu_limit,
        ephemeral_storage=_least(pod.ephemeral_storage, "4Gi") if pod.ephemeral_storage else "",
        shm=_least(pod.shm, "256Mi") if pod.shm else "",
    )


def _least(quantity: str, other: str) -> str:
    return quantity if bytes_of(quantity) <= bytes_of(other) else other


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


def read_cluster(options: Options) -> Cluster:
    return clusters.from_file(options.cluster)
