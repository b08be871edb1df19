"""`imagemill compile`: the pipeline as a package for Kubeflow Pipelines, or as templates for Argo Workflows."""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..components.store import uri as uris
from ..components.store.errors import UserError, wrong
from .cluster import Cluster, from_file, shared
from .parameters import Chosen
from .paths import refuse_paths
from .settings import bytes_of
from .shm import shm_size

ORCHESTRATORS = ("kfp", "argo")


def compile_for(target: str, chosen: Chosen, output: Path, cluster_file: str = "") -> None:
    """Write what a cluster runs; the chosen parameters become its defaults.

    UserError for images that are not named by digest, a workspace that a pod can't reach, a file that can't be written.
    """
    if target not in ORCHESTRATORS:
        raise wrong("--target", f"one of {', '.join(ORCHESTRATORS)}", target)
    cluster = cluster_of(cluster_file)
    if target == "kfp":
        compile_kfp(chosen, output, cluster)
        return
    from .argo import compile_argo

    compile_argo(chosen, output, cluster)


def cluster_of(file: str) -> Cluster:
    """The cluster's file, which must name the images; UserError says how it comes to do so."""
    cluster = from_file(file) if file else Cluster()
    cluster.require_images(file or "--cluster is not given; `imagemill cluster -o FILE` writes one to begin with")
    return cluster


def with_workspace(chosen: Chosen, cluster: Cluster) -> Chosen:
    """With the cluster's workspace where none was chosen; UserError for one that its pods can't reach, and for a login
    or a path of this machine among the parameters."""
    workspace = shared(str(chosen.pipeline.get("workspace", cluster.storage.workspace)))
    chosen = replace(chosen, pipeline=chosen.pipeline | {"workspace": workspace})
    refuse_logins(chosen)
    refuse_paths(chosen)
    return replace(chosen, pipeline=chosen.pipeline | {"workspace": uris.normalize(workspace, "workspace")})


def refuse_logins(chosen: Chosen) -> None:
    """UserError for a parameter with a login or a query, which may be one, in its URL: whoever may see the pipeline or
    its runs reads their parameters."""
    for values in (chosen.pipeline, *chosen.sections.values()):
        for name, value in values.items():
            if isinstance(value, str) and (shown := uris.safe(value)) != value:
                raise wrong(name, "a URL without a login or query, for a pipeline's parameters are no secret: s3://…, "
                            "which the pods have a secret for, or one that is open to them", shown)  # fmt: skip


def compile_kfp(chosen: Chosen, target: Path, cluster: Cluster | None = None, *, bake: bool = True) -> None:
    """Write the package for Kubeflow Pipelines, with the pods as the cluster says.

    The chosen parameters become the package's defaults, which the pods are sized by. Without `bake` the defaults stay,
    and the pods are large enough for both.
    """
    cluster = cluster or Cluster()
    cluster.require_images("cluster")
    chosen = with_workspace(chosen, cluster)
    baked = chosen if bake else with_workspace(Chosen({}, {}), cluster)
    train = cluster.steps["train"]
    largest = max((baked, chosen), key=lambda one: bytes_of(shm_size("train", train, one) or "0"))
    check_output(target)
    _quiet_kfp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from .training import build

        _write(build(cluster, largest), target, baked.arguments())


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


def check_output(target: Path) -> None:
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
