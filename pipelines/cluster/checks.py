"""Checks of the cluster file, the parameters and the output file, before a pipeline is compiled or submitted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ...components.storage import uri as uris
from ...components.storage.errors import UserError, wrong
from ..parameters import RunParameters
from .cluster_file import Cluster, load_cluster, require_s3_workspace

MAX_ARGUMENTS_LENGTH = 100_000
"""Characters. Linux takes 128 KiB for one word of a command line."""


def read_cluster(file: str) -> Cluster:
    """Read a cluster file, which must name the images; UserError says how to get such a file."""
    if not file:
        raise UserError("--cluster: expected the file that says which images, which object store, found none; "
                        "`imagemill cluster -o FILE` writes one to begin with")  # fmt: skip
    cluster = load_cluster(file)
    cluster.require_images(file)
    return cluster


def set_workspace(parameters: RunParameters, cluster: Cluster) -> RunParameters:
    """Return the parameters with a normalized workspace, by default the cluster's; UserError for one that its pods
    can't reach, and for other parameters that they can't use."""
    place = parameters.place("workspace")
    workspace = require_s3_workspace(str(parameters.pipeline.get("workspace", cluster.storage.workspace)), place)
    parameters = replace(parameters, pipeline=parameters.pipeline | {"workspace": workspace})
    check_for_pods(parameters)
    return replace(parameters, pipeline=parameters.pipeline | {"workspace": uris.normalize(workspace, place)})


def check_for_pods(parameters: RunParameters) -> None:
    """Raise UserError for a parameter with a login, a path of this machine or a variable of Argo's, and for parameters
    that are too long together."""
    _check_logins(parameters)
    for step, name, path in parameters.find_paths():
        places = "s3://… or http(s)://…" if name in ("source", "annotations") else "s3://…"
        raise wrong(parameters.place(name, step), f"{places}: the pods don't see this machine's files", path)
    _check_variables(parameters)
    # KFP passes all of them to a pod in one word of its command line, in which they are quoted a second time.
    if (length := len(json.dumps(json.dumps(parameters.arguments())))) > MAX_ARGUMENTS_LENGTH:
        limit = f"parameters of {MAX_ARGUMENTS_LENGTH:,} characters at most, for a pod's command line"
        raise wrong("config", limit, f"{length:,}")


def _check_variables(parameters: RunParameters) -> None:
    # Argo, which KFP runs on as well, would replace what it takes for a variable, or refuse the run.
    for step, name, value in parameters.items():
        if isinstance(value, str) and "{{" in value:
            raise wrong(parameters.place(name, step), "a text without {{, by which Argo's variables begin", value)


def _check_logins(parameters: RunParameters) -> None:
    # Everybody who may see the pipeline or its runs reads their parameters; a query may hold a login.
    for step, name, value in parameters.items():
        if isinstance(value, str) and (shown := uris.redact(value)) != value:
            expected = (
                "a URL without a login or query, for a pipeline's parameters are no secret: s3://…, which the pods "
                "have a secret for, or one that is open to them"
            )
            raise wrong(parameters.place(name, step), expected, shown)


def check_output(target: Path) -> None:
    """Raise UserError unless a package can be written to `target`: a .yaml file in an existing folder."""
    if target.suffix not in (".yaml", ".yml"):  # KFP writes no JSON of a package with settings of pods
        raise wrong("-o", "a file that ends in .yaml", str(target))
    if not target.absolute().parent.is_dir():
        raise wrong("-o", "a file in a folder that is there", str(target))
