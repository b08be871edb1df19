"""What is looked at before the pipeline is compiled, for whichever orchestrator: its cluster, parameters and file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ..components.store import uri as uris
from ..components.store.errors import UserError, wrong
from .cluster import Cluster, from_file, shared
from .parameters import RunParameters
from .paths import refuse_paths

LONGEST = 100_000
"""Linux takes 128 KiB for one word of a command line."""


def cluster_of(file: str) -> Cluster:
    """The cluster's file, which must name the images; UserError says how it comes to do so."""
    if not file:
        raise UserError("--cluster: expected the file that says which images, which object store, found none; "
                        "`imagemill cluster -o FILE` writes one to begin with")  # fmt: skip
    cluster = from_file(file)
    cluster.require_images(file)
    return cluster


def with_workspace(parameters: RunParameters, cluster: Cluster) -> RunParameters:
    """With the cluster's workspace where none was chosen; UserError for one that its pods can't reach, and for what
    else they can't take."""
    place = parameters.place("workspace")
    workspace = shared(str(parameters.pipeline.get("workspace", cluster.storage.workspace)), place)
    parameters = replace(parameters, pipeline=parameters.pipeline | {"workspace": workspace})
    refuse_what_pods_cannot_take(parameters)
    return replace(parameters, pipeline=parameters.pipeline | {"workspace": uris.normalize(workspace, place)})


def refuse_what_pods_cannot_take(parameters: RunParameters) -> None:
    """UserError for a login, a path of this machine or a variable of Argo's among the parameters, and for too much."""
    refuse_logins(parameters)
    refuse_paths(parameters)
    refuse_variables(parameters)
    # KFP hands all of them to a pod in one word of its command line, in which they are quoted a second time.
    if (length := len(json.dumps(json.dumps(parameters.arguments())))) > LONGEST:
        raise wrong("config", f"parameters of {LONGEST:,} characters at most, for a pod's command line", f"{length:,}")


def refuse_variables(parameters: RunParameters) -> None:
    """UserError for a text with what Argo, which KFP runs on as well, takes for the beginning of a variable: it would
    put something else there, or refuse the run."""
    for step, values in (("", parameters.pipeline), *parameters.sections.items()):
        for name, value in values.items():
            if isinstance(value, str) and "{{" in value:
                raise wrong(parameters.place(name, step), "a text without {{, by which Argo's variables begin", value)


def refuse_logins(parameters: RunParameters) -> None:
    """UserError for a parameter with a login or a query, which may be one, in its URL: whoever may see the pipeline or
    its runs reads their parameters."""
    for step, values in (("", parameters.pipeline), *parameters.sections.items()):
        for name, value in values.items():
            if isinstance(value, str) and (shown := uris.safe(value)) != value:
                expected = (
                    "a URL without a login or query, for a pipeline's parameters are no secret: s3://…, which the pods "
                    "have a secret for, or one that is open to them"
                )
                raise wrong(parameters.place(name, step), expected, shown)


def check_output(target: Path) -> None:
    if target.suffix not in (".yaml", ".yml"):  # KFP writes no JSON of a package with settings of pods
        raise wrong("-o", "a file that ends in .yaml", str(target))
    if not target.absolute().parent.is_dir():
        raise wrong("-o", "a file in a folder that is there", str(target))
