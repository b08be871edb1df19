"""`imagemill compile`: compile the pipeline to a package for Kubeflow Pipelines or to templates for Argo Workflows."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

from ..components.dataset.manifest import code_version
from ..components.storage.errors import UserError, wrong
from .cluster.checks import check_output, read_cluster, set_workspace
from .cluster.cluster_file import Cluster
from .cluster.pod_fields import shm_size
from .compat import dump_plain_strings, name_callers_quickly
from .kfp.uploads import Package, read_package
from .parameters import RunParameters
from .settings import parse_quantity

ORCHESTRATORS = ("kfp", "argo")


def compile_pipeline(target: str, parameters: RunParameters, output: Path, cluster_file: str = "") -> None:
    """Compile the pipeline for `target`, kfp or argo; the chosen parameters become its defaults.

    UserError for images that are not named by digest, a workspace that a pod can't reach, a file that can't be written.
    """
    if target not in ORCHESTRATORS:
        raise wrong("--target", f"one of {', '.join(ORCHESTRATORS)}", target)
    cluster = read_cluster(cluster_file)
    if target == "kfp":
        compile_kfp(parameters, output, cluster)
        return
    from .argo.workflow import compile_argo

    compile_argo(parameters, output, cluster)


def compile_kfp(parameters: RunParameters, target: Path, cluster: Cluster | None = None, *, bake: bool = True) -> None:
    """Write the package for Kubeflow Pipelines, with the pods of the cluster file.

    The chosen parameters become the package's defaults, by which /dev/shm is sized. Without `bake` the defaults stay,
    and /dev/shm is large enough for both.
    """
    cluster = cluster or Cluster()
    cluster.require_images("cluster")
    parameters = set_workspace(parameters, cluster)
    baked = parameters if bake else set_workspace(RunParameters({}, {}), cluster)
    train = cluster.steps["train"]
    largest = max(
        (baked, parameters), key=lambda parameters: parse_quantity(shm_size("train", train, parameters) or "0")
    )
    check_output(target)
    quiet_kfp()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        name_callers_quickly()
        from .training import build_pipeline

        write_package(build_pipeline(cluster, largest), target, baked.arguments())


def compile_package(cluster: Cluster, parameters: RunParameters) -> Package:
    """Compile the pipeline for a cluster with this version of imagemill.

    The chosen parameters size the pods but are not baked in: they are the run's. Otherwise each choice would make a
    version, and a schedule, which runs the newest one, would use what a user chose for another run.
    """
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        target = Path(folder) / "pipeline.yaml"
        compile_kfp(parameters, target, cluster, bake=False)
        return read_package(target, f"imagemill {code_version()}")


def write_cluster_template(output: str) -> None:
    """Write a cluster file with the defaults, every field explained, to stdout or to a new file."""
    text = Cluster().documented()
    if not output:
        print(text, end="")
        return
    try:
        with Path(output).open("x", encoding="utf-8") as file:  # never overwrite a user's file
            file.write(text)
    except OSError as error:
        raise wrong("-o", "a file that can be made", f"{output} ({error.strerror})") from None
    print(f"wrote {output}")


def quiet_kfp() -> None:
    """Leave out what KFP logs below the level of errors."""
    logging.getLogger("kfp").setLevel(logging.ERROR)


def write_package(pipeline: Any, target: Path, arguments: dict[str, Any]) -> None:
    """Write a pipeline as a package whose defaults are `arguments`; UserError for a file that can't be written."""
    from kfp import compiler

    try:
        with dump_plain_strings():
            compiler.Compiler().compile(pipeline, str(target), pipeline_parameters=arguments)
    except OSError as error:
        raise UserError(f"-o: expected a file that can be written, found {target}: {error.strerror}") from None
