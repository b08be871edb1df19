"""`imagemill compile`: the pipeline as a package that Kubeflow Pipelines takes."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from ..components.store import uri as uris
from ..components.store.errors import UserError, wrong
from .parameters import Chosen

CLUSTER_WORKSPACE = "s3://mlpipeline/imagemill"
"""Baked in where no workspace is given: Kubeflow Pipelines' own bucket, which its profiles have credentials for."""


def compile_kfp(chosen: Chosen, target: Path) -> None:
    """Write the package; the chosen parameters become its defaults. UserError for a workspace a pod can't reach."""
    workspace = str(chosen.pipeline.get("workspace", CLUSTER_WORKSPACE))
    if not uris.is_s3(workspace):
        raise wrong("workspace", "s3://bucket/prefix, which every pod of a cluster can reach", workspace)
    if target.suffix not in (".yaml", ".json"):
        raise wrong("-o", "a file that ends in .yaml or .json", str(target))
    if not target.absolute().parent.is_dir():
        raise wrong("-o", "a file in a folder that is there", str(target))
    logging.getLogger("kfp").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kfp import compiler

        from .training import training_pipeline

        arguments = chosen.arguments() | {"workspace": uris.normalize(workspace, "workspace")}
        try:
            compiler.Compiler().compile(training_pipeline, str(target), pipeline_parameters=arguments)
        except OSError as error:
            raise UserError(f"-o: expected a file that can be written, found {target}: {error.strerror}") from None
