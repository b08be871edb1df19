"""What a run needs to be in the service: its experiment, its pipeline, and this package as one of its versions."""

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

from ..components.store import uri as uris
from ..components.store.errors import wrong
from ..components.store.manifest import code_version
from .checks import check_for_pods
from .cluster import Cluster, shared
from .compile import compile_kfp
from .kfp_client import Service
from .parameters import FORM_PARAMETERS, RunParameters

PIPELINE, EXPERIMENT = "imagemill-training", "imagemill"
_EQUALS = 1  # of KFP's filter.proto


_ABOUT = "Labelled images in, a better classifier out"
_SHOWN = 80
"""Characters of a default in the table of parameters, which is uploaded as a part of a URL."""
_MADE_BY = re.compile(r"imagemill (\S+)$")
_MARKDOWN = re.compile(r"([\\`*_|<>\[\]])")


@dataclass(frozen=True)
class Package:
    """A compiled pipeline: its text, its parameters as its first document has them, and the imagemill that made it
    (empty where the package does not say)."""

    text: bytes
    source: str
    parameters: Mapping[str, Mapping[str, Any]]
    made_by: str = ""

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the parameters (None: there is none)."""
        return {name: about.get("defaultValue") for name, about in self.parameters.items()}

    @property
    def version_name(self) -> str:
        """The name of the pipeline's version, by its content: what was uploaded once is not uploaded again. A name of
        Kubernetes', as KFP asks for where it keeps pipelines there; its pages show `display_name`."""
        release = re.sub(r"[^a-z0-9.]+", "-", self.made_by.lower()).strip("-.")
        return "-".join(filter(None, (release, self._sha256[:16])))

    def display_name(self, now: datetime) -> str:
        """The version's name for people: `0.1.0 · 2026-11-22 14:05 · 3fa9c1`."""
        return " · ".join(filter(None, (self.made_by, f"{now:%Y-%m-%d %H:%M}", self._sha256[:6])))

    @property
    def description(self) -> str:
        """What the pipeline is, and its parameters as a table of Markdown: the form itself has no room for it."""
        known = [name for name in (*FORM_PARAMETERS, *sorted(self.parameters)) if name in self.parameters]
        rows = [self._row(name) for name in dict.fromkeys(known)]
        table = ["| parameter | meaning | default | choices |", "|---|---|---|---|", *rows]
        return "\n".join([f"{_ABOUT} ({self.source}, sha256 {self._sha256[:16]}).", "", *table])

    def _row(self, name: str) -> str:
        about = self.parameters[name]
        default = str(about.get("defaultValue", ""))
        shown = default if len(default) <= _SHOWN else f"{default[:_SHOWN]}…"
        choices = ", ".join(str(choice) for choice in about.get("literals", ()))
        cells = (_MARKDOWN.sub(r"\\\1", cell) for cell in (name, str(about.get("description", "")), shown, choices))
        return f"| {' | '.join(cells)} |"

    @property
    def _sha256(self) -> str:
        return hashlib.sha256(self.text).hexdigest()


def compiled(cluster: Cluster, parameters: RunParameters) -> Package:
    """The pipeline as this version of imagemill makes it for a cluster.

    The chosen parameters size the pods but are not baked in: they are given to the run. Else each choice would make
    a version, and a schedule, which runs the newest one, would take over what somebody chose for one run.
    """
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        target = Path(folder) / "pipeline.yaml"
        compile_kfp(parameters, target, cluster, bake=False)
        return read_package(target, f"imagemill {code_version()}")


def read_package(path: Path, source: str = "") -> Package:
    """A package's file; UserError for one that isn't a pipeline of KFP's version 2."""
    import yaml

    try:
        text = path.read_bytes()
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is
        documents = [one for one in yaml.load_all(text, Loader=loader) if one]
        parameters = documents[0]["root"].get("inputDefinitions", {}).get("parameters", {})
        made_by = _MADE_BY.search(documents[0]["pipelineInfo"].get("description", ""))
        if not all(isinstance(about, dict) for about in parameters.values()):
            raise TypeError("parameters")
    except OSError as error:
        raise wrong("--package", "a compiled pipeline that can be read", f"{path} ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, IndexError, KeyError, TypeError, AttributeError):
        raise wrong("--package", "a pipeline as `imagemill compile --target kfp` writes it", str(path)) from None
    return Package(text, source or path.name, parameters, made_by.group(1) if made_by else "")


def arguments_for(package: Package, parameters: RunParameters) -> dict[str, Any]:
    """The run's parameters: what was chosen, typed. UserError where the package or a pod could do nothing with them."""
    arguments = {key: value for key, value in parameters.arguments().items() if value != "" or key != "config"}
    for name in arguments:
        if name not in package.defaults:
            raise wrong(parameters.place(name), f"a parameter of the pipeline {package.source}", name)
    workspace = str(arguments.get("workspace") or package.defaults.get("workspace") or "")
    check_for_pods(parameters)
    shared(workspace, parameters.place("workspace"))
    if "workspace" in arguments:
        arguments["workspace"] = uris.normalize(workspace, parameters.place("workspace"))
    return arguments


def experiment(service: Service, name: str) -> str:
    """The id of the experiment of this name; made where there is none."""
    from kfp_server_api import V2beta1Experiment

    api = service.client.experiments
    space = {"namespace": service.namespace} if service.namespace else {}

    def find() -> Any:
        found = service.once(api.experiment_service_list_experiments, filter=named("display_name", name), **space)
        return (found.experiments or [None])[0]

    made, _ = service.ensure(
        "the experiment", find, api.experiment_service_create_experiment,
        experiment=V2beta1Experiment(display_name=name, **space),
    )  # fmt: skip
    return str(made.experiment_id)


def find_pipeline(service: Service, name: str) -> str:
    """The id of the pipeline of this name, or an empty string."""
    found = service.call("looking for the pipeline", _list_pipelines(service, name))
    return str(found.pipelines[0].pipeline_id) if found.pipelines else ""


def _list_pipelines(service: Service, name: str) -> Callable[..., Any]:
    space = {"namespace": service.namespace} if service.namespace else {}
    listing = service.client.pipelines.pipeline_service_list_pipelines
    return functools.partial(listing, filter=named("name", name), **space)


@dataclass(frozen=True)
class Version:
    """A package as the service has it; `is_new`: it was uploaded just now."""

    pipeline_id: str
    version_id: str
    display_name: str
    is_new: bool


def upload(service: Service, name: str, package: Package, *, newest: bool = False) -> Version:
    """The pipeline's version that this package is.

    A package that is there already is not uploaded again; if it must be the pipeline's `newest` version, and isn't,
    it is uploaded under another name.
    """
    from kfp_server_api import V2beta1Pipeline

    def find() -> Any:
        return (service.once(_list_pipelines(service, name)).pipelines or [None])[0]

    # Not KFP's upload of a new pipeline: that names the first version after the pipeline.
    about = V2beta1Pipeline(name=name, display_name=name, namespace=service.namespace, description=_ABOUT)
    pipeline, _ = service.ensure(
        "the pipeline", find, service.client.pipelines.pipeline_service_create_pipeline, pipeline=about
    )
    version_name = package.version_name
    if newest and (last := newest_version(service, pipeline.pipeline_id)) is not None:
        if (last.name or last.display_name).startswith(version_name):
            return _version(last, is_new=False)
        if service.find("looking for the version", lambda: _find_version(service, pipeline.pipeline_id, version_name)):
            version_name += f"-{datetime.now(UTC):%Y%m%d%H%M%S}"
    version, made = _upload(service, pipeline.pipeline_id, version_name, package)
    return _version(version, is_new=made)


def _version(version: Any, *, is_new: bool) -> Version:
    return Version(version.pipeline_id, version.pipeline_version_id, version.display_name or version.name, is_new)


def newest_version(service: Service, pipeline: str) -> Any:
    """The version that a schedule would run, or None."""
    found = service.call(
        "looking for the newest version", service.client.pipelines.pipeline_service_list_pipeline_versions,
        pipeline_id=pipeline, page_size=1, sort_by="created_at desc",
    )  # fmt: skip
    return (found.pipeline_versions or [None])[0]


def _find_version(service: Service, pipeline: str, name: str) -> Any:
    found = service.once(
        service.client.pipelines.pipeline_service_list_pipeline_versions,
        pipeline_id=pipeline, filter=named("name", name),
    )  # fmt: skip
    return (found.pipeline_versions or [None])[0]


def _upload(service: Service, pipeline: str, name: str, package: Package) -> tuple[Any, bool]:
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        file = Path(folder) / "pipeline.yaml"
        file.write_bytes(package.text)
        return service.ensure(
            "the pipeline's version", lambda: _find_version(service, pipeline, name),
            service.client.pipeline_uploads.upload_pipeline_version,
            uploadfile=str(file), name=name, display_name=package.display_name(datetime.now(UTC)),
            pipelineid=pipeline, description=package.description,
        )  # fmt: skip


def named(key: str, value: str) -> str:
    """KFP's filter for what has this value."""
    return json.dumps({"predicates": [{"operation": _EQUALS, "key": key, "stringValue": value}]})
