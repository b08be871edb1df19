"""Upload what a run needs: its experiment, its pipeline, and a compiled package as a version of it."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...components.storage import uri as uris
from ...components.storage.errors import wrong
from ..cluster.checks import check_for_pods
from ..cluster.cluster_file import require_s3_workspace
from ..parameters import FORM_PARAMETERS, RunParameters
from .client import KfpService

PIPELINE_NAME, EXPERIMENT_NAME = "imagemill-training", "imagemill"
_EQUALS = 1  # of KFP's filter.proto
_PIPELINE_DESCRIPTION = "Labeled images in, a better classifier out"
_MAX_DEFAULT_CHARACTERS = 80
"""The longest default in the table of parameters, in characters: the table is uploaded as a part of a URL."""
_MADE_BY = re.compile(r"imagemill (\S+)$")
_MARKDOWN = re.compile(r"([\\`*_|<>\[\]])")


@dataclass(frozen=True)
class Package:
    """A compiled pipeline: its YAML, the definitions of its parameters from the first document, the version of
    imagemill that compiled it (empty where the package has none), and the name that it was compiled with."""

    text: bytes
    source: str
    parameters: Mapping[str, Mapping[str, Any]]
    made_by: str = ""
    name: str = PIPELINE_NAME

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the parameters (None: there is none)."""
        return {name: definition.get("defaultValue") for name, definition in self.parameters.items()}

    @property
    def version_name(self) -> str:
        """The name of the pipeline's version, made from its content, so that nothing is uploaded twice. It is a valid
        Kubernetes name, which KFP needs where it keeps pipelines there; the UI shows `display_name`."""
        release = re.sub(r"[^a-z0-9.]+", "-", self.made_by.lower()).strip("-.")
        return "-".join(filter(None, (release, self._sha256[:16])))

    def display_name(self, now: datetime) -> str:
        """Return the version's name in the UI: `0.1.0 · 2026-11-22 14:05 · 3fa9c1`."""
        return " · ".join(filter(None, (self.made_by, f"{now:%Y-%m-%d %H:%M}", self._sha256[:6])))

    @property
    def description(self) -> str:
        """The pipeline's description with its parameters as a Markdown table: KFP's form shows no descriptions."""
        names = [name for name in (*FORM_PARAMETERS, *sorted(self.parameters)) if name in self.parameters]
        rows = [self._row(name) for name in dict.fromkeys(names)]
        table = ["| parameter | meaning | default | choices |", "|---|---|---|---|", *rows]
        return "\n".join([f"{_PIPELINE_DESCRIPTION} ({self.source}, sha256 {self._sha256[:16]}).", "", *table])

    def _row(self, name: str) -> str:
        definition = self.parameters[name]
        default = str(definition.get("defaultValue", ""))
        short_default = default if len(default) <= _MAX_DEFAULT_CHARACTERS else f"{default[:_MAX_DEFAULT_CHARACTERS]}…"
        choices = ", ".join(str(choice) for choice in definition.get("literals", ()))
        cells = (
            _MARKDOWN.sub(r"\\\1", cell)
            for cell in (name, str(definition.get("description", "")), short_default, choices)
        )
        return f"| {' | '.join(cells)} |"

    @property
    def _sha256(self) -> str:
        return hashlib.sha256(self.text).hexdigest()


def read_package(path: Path, source: str = "") -> Package:
    """Read a package from its file; UserError for one that isn't a pipeline of KFP's version 2."""
    import yaml

    try:
        text = path.read_bytes()
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is installed
        documents = [document for document in yaml.load_all(text, Loader=loader) if document]
        parameters = documents[0]["root"].get("inputDefinitions", {}).get("parameters", {})
        name = str(documents[0]["pipelineInfo"].get("name") or PIPELINE_NAME)
        made_by = _MADE_BY.search(documents[0]["pipelineInfo"].get("description", ""))
        if not all(isinstance(definition, dict) for definition in parameters.values()):
            raise TypeError("parameters")
    except OSError as error:
        raise wrong("--package", "a compiled pipeline that can be read", f"{path} ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, IndexError, KeyError, TypeError, AttributeError):
        raise wrong("--package", "a pipeline as `imagemill compile --target kfp` writes it", str(path)) from None
    return Package(text, source or path.name, parameters, made_by.group(1) if made_by else "", name)


def build_run_arguments(package: Package, parameters: RunParameters) -> dict[str, Any]:
    """Return the arguments of a run from the chosen parameters. UserError for one that package or pods can't use."""
    arguments = {key: value for key, value in parameters.arguments().items() if value != "" or key != "config"}
    for name in arguments:
        if name not in package.defaults:
            raise wrong(parameters.place(name), f"a parameter of the pipeline {package.source}", name)
    workspace = str(arguments.get("workspace") or package.defaults.get("workspace") or "")
    check_for_pods(parameters)
    require_s3_workspace(workspace, parameters.place("workspace"))
    if "workspace" in arguments:
        arguments["workspace"] = uris.normalize(workspace, parameters.place("workspace"))
    return arguments


def ensure_experiment(service: KfpService, name: str) -> str:
    """Return the id of the experiment of this name, which is created if it does not exist."""
    from kfp_server_api import V2beta1Experiment

    api = service.client.experiments

    def find() -> Any:
        listing = service.request(
            api.experiment_service_list_experiments, filter=build_filter("display_name", name), **service.scope
        )
        return (listing.experiments or [None])[0]

    experiment, _ = service.find_or_create(
        "the experiment", find, api.experiment_service_create_experiment,
        experiment=V2beta1Experiment(display_name=name, **service.scope),
    )  # fmt: skip
    return str(experiment.experiment_id)


def find_pipeline(service: KfpService, name: str) -> str:
    """Return the id of the pipeline of this name, or an empty string."""
    listing = service.call("looking for the pipeline", _bind_list_pipelines(service, name))
    return str(listing.pipelines[0].pipeline_id) if listing.pipelines else ""


def _bind_list_pipelines(service: KfpService, name: str) -> Callable[..., Any]:
    function = service.client.pipelines.pipeline_service_list_pipelines
    return functools.partial(function, filter=build_filter("name", name), **service.scope)


@dataclass(frozen=True)
class PipelineVersion:
    """A version of a pipeline in the service; `is_new`: it was uploaded just now."""

    pipeline_id: str
    version_id: str
    display_name: str
    is_new: bool


def ensure_version(service: KfpService, name: str, package: Package, *, newest: bool = False) -> PipelineVersion:
    """Return the pipeline's version with this package, which is uploaded if it does not exist.

    If it has to be the pipeline's `newest` version, and isn't, it is uploaded again under another name.
    """
    from kfp_server_api import V2beta1Pipeline

    def find() -> Any:
        return (service.request(_bind_list_pipelines(service, name)).pipelines or [None])[0]

    # KFP's upload of a new pipeline would name the first version after the pipeline.
    body = V2beta1Pipeline(name=name, display_name=name, namespace=service.namespace, description=_PIPELINE_DESCRIPTION)
    pipeline, _ = service.find_or_create(
        "the pipeline", find, service.client.pipelines.pipeline_service_create_pipeline, pipeline=body
    )
    version_name = package.version_name
    if newest and (newest_version := find_newest_version(service, pipeline.pipeline_id)) is not None:
        if (newest_version.name or newest_version.display_name).startswith(version_name):
            return _to_pipeline_version(newest_version, is_new=False)
        if service.retry("looking for the version", lambda: _find_version(service, pipeline.pipeline_id, version_name)):
            version_name += f"-{datetime.now(UTC):%Y%m%d%H%M%S}"
    version, is_new = _upload(service, pipeline.pipeline_id, version_name, package)
    return _to_pipeline_version(version, is_new=is_new)


def _to_pipeline_version(version: Any, *, is_new: bool) -> PipelineVersion:
    return PipelineVersion(
        version.pipeline_id, version.pipeline_version_id, version.display_name or version.name, is_new
    )


def find_newest_version(service: KfpService, pipeline: str) -> Any:
    """Return the version that a schedule would run, or None."""
    listing = service.call(
        "looking for the newest version", service.client.pipelines.pipeline_service_list_pipeline_versions,
        pipeline_id=pipeline, page_size=1, sort_by="created_at desc",
    )  # fmt: skip
    return (listing.pipeline_versions or [None])[0]


def _find_version(service: KfpService, pipeline: str, name: str) -> Any:
    listing = service.request(
        service.client.pipelines.pipeline_service_list_pipeline_versions,
        pipeline_id=pipeline, filter=build_filter("name", name),
    )  # fmt: skip
    return (listing.pipeline_versions or [None])[0]


def _upload(service: KfpService, pipeline: str, name: str, package: Package) -> tuple[Any, bool]:
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        file = Path(folder) / "pipeline.yaml"
        file.write_bytes(package.text)
        return service.find_or_create(
            "the pipeline's version", lambda: _find_version(service, pipeline, name),
            service.client.pipeline_uploads.upload_pipeline_version,
            uploadfile=str(file), name=name, display_name=package.display_name(datetime.now(UTC)),
            pipelineid=pipeline, description=package.description,
        )  # fmt: skip


def build_filter(key: str, value: str) -> str:
    """Return KFP's filter for objects whose field `key` has this value."""
    return json.dumps({"predicates": [{"operation": _EQUALS, "key": key, "stringValue": value}]})
