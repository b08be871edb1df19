"""`imagemill compile`: the pipeline as a package for Kubeflow Pipelines, or as templates for Argo Workflows."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..components.store import uri as uris
from ..components.store.errors import UserError, wrong
from .cluster import Cluster, from_file
from .parameters import Chosen

TARGETS = ("kfp", "argo")


def compile_for(target: str, chosen: Chosen, output: Path, cluster_file: str = "") -> None:
    """Write what a cluster runs; the chosen parameters become its defaults.

    UserError for images that are not named by digest, a workspace that a pod can't reach, a file that can't be written.
    """
    if target not in TARGETS:
        raise wrong("--target", f"one of {', '.join(TARGETS)}", target)
    cluster = cluster_of(cluster_file)
    if target == "kfp":
        compile_kfp(chosen, output, cluster)
        return
    from .argo import compile_argo

    _check_output(output)
    compile_argo(with_workspace(chosen, cluster), output, cluster)


def cluster_of(file: str) -> Cluster:
    """The cluster's file, which must name the images; UserError says how it comes to do so."""
    cluster = from_file(file) if file else Cluster()
    cluster.require_images(file or "--cluster is not given; `imagemill cluster -o FILE` writes one to begin with")
    return cluster


def with_workspace(chosen: Chosen, cluster: Cluster) -> Chosen:
    """With the cluster's workspace where none was chosen; UserError for one that its pods can't reach."""
    workspace = str(chosen.pipeline.get("workspace", cluster.storage.workspace))
    if not uris.is_s3(workspace):
        raise wrong("workspace", "s3://bucket/prefix, which every pod of a cluster can reach", workspace)
    return replace(chosen, pipeline=chosen.pipeline | {"workspace": uris.normalize(workspace, "workspace")})


def compile_kfp(chosen: Chosen, target: Path, cluster: Cluster | None = None, *, bake: bool = True) -> None:
    """Write the package for Kubeflow Pipelines, with the pods as the cluster says.

    The chosen parameters size the pods, and become the package's defaults unless `bake` says no.
    """
    cluster = cluster or Cluster()
    cluster.require_images("cluster")
    chosen = with_workspace(chosen, cluster)
    _check_output(target)
    _quiet_kfp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from .training import build

        pipeline = build(cluster, chosen)
        _write(pipeline, target, chosen.arguments() if bake else with_workspace(Chosen({}, {}), cluster).arguments())


def write_documented(output: str) -> None:
    """The cluster's file with its defaults, every field explained: to stdout, or to a file that is not there yet."""
    text = Cluster().documented()
    if not output:
        print(text, end="")
        return
    try:
        with Path(output).open("x", encoding="utf-8") as file:  # never over somebody's own
            file.write(text)
    except OSError as error:
        raise wrong("-o", "a file that can be made", f"{output} ({error.strerror})") from None
    print(f"wrote {output}")


def _check_output(target: Path) -> None:
    if target.suffix not in (".yaml", ".yml"):  # KFP writes no JSON of a package with settings of pods
        raise wrong("-o", "a file that ends in .yaml", str(target))
    if not target.absolute().parent.is_dir():
        raise wrong("-o", "a file in a folder that is there", str(target))


def _quiet_kfp() -> None:
    logging.getLogger("kfp").setLevel(logging.ERROR)


def _write(pipeline: Any, target: Path, arguments: dict[str, Any]) -> None:
    from kfp import compiler

    try:
        compiler.Compiler().compile(pipeline, str(target), pipeline_parameters=arguments)
    except OSError as error:
        raise UserError(f"-o: expected a file that can be written, found {target}: {error.strerror}") from None
