"""What a run needs to be in the service: its experiment, its pipeline, and this package as one of its versions."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..components.store import uri as uris
from ..components.store.errors import wrong
from ..components.store.manifest import code_version
from .checks import refuse_what_pods_cannot_take
from .cluster import Cluster, shared
from .compile import compile_kfp
from .kfp_client import Service
from .parameters import Chosen

PIPELINE, EXPERIMENT = "imagemill-training", "imagemill"
_EQUALS = 1  # of KFP's filter.proto


@dataclass(frozen=True)
class Package:
    """A compiled pipeline: its text, and the defaults of its parameters (None: there is none)."""

    text: bytes
    source: str
    defaults: dict[str, Any]

    @property
    def version_name(self) -> str:
        """Versions go by their content: what was uploaded once is not uploaded again."""
        return f"sha256-{hashlib.sha256(self.text).hexdigest()[:16]}"


def compiled(cluster: Cluster, chosen: Chosen) -> Package:
    """The pipeline as this version of imagemill makes it for a cluster.

    The chosen parameters size the pods but are not baked in: they are given to the run. Else each choice would make
    a version, and a schedule, which runs the newest one, would take over what somebody chose for one run.
    """
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        target = Path(folder) / "pipeline.yaml"
        compile_kfp(chosen, target, cluster, bake=False)
        return read_package(target, f"imagemill {code_version()}")


def read_package(path: Path, source: str = "") -> Package:
    """A package's file; UserError for one that isn't a pipeline of KFP's version 2."""
    import yaml

    try:
        text = path.read_bytes()
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is
        documents = [one for one in yaml.load_all(text, Loader=loader) if one]
        given = documents[0]["root"].get("inputDefinitions", {}).get("parameters", {})
        defaults = {name: about.get("defaultValue") for name, about in given.items()}
    except OSError as error:
        raise wrong("--package", "a compiled pipeline that can be read", f"{path} ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, IndexError, KeyError, TypeError, AttributeError):
        raise wrong("--package", "a pipeline as `imagemill compile --target kfp` writes it", str(path)) from None
    return Package(text, source or path.name, defaults)


def arguments_for(package: Package, chosen: Chosen) -> dict[str, Any]:
    """The run's parameters: what was chosen, typed. UserError where the package or a pod could do nothing with them."""
    arguments = {key: value for key, value in chosen.arguments().items() if value != "" or key != "config"}
    for name in arguments:
        if name not in package.defaults:
            raise wrong(chosen.place(name), f"a parameter of the pipeline {package.source}", name)
    workspace = str(arguments.get("workspace") or package.defaults.get("workspace") or "")
    refuse_what_pods_cannot_take(chosen)
    shared(workspace, chosen.place("workspace"))
    if "workspace" in arguments:
        arguments["workspace"] = uris.normalize(workspace, chosen.place("workspace"))
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


def upload(service: Service, name: str, package: Package, *, newest: bool = False) -> tuple[str, str, bool]:
    """(pipeline's id, version's id, whether it was uploaded just now) of a package.

    A package that is there already is not uploaded again; if it must be the pipeline's `newest` version, and isn't,
    it is uploaded under another name.
    """
    from kfp_server_api import V2beta1Pipeline

    def find() -> Any:
        return (service.once(_list_pipelines(service, name)).pipelines or [None])[0]

    # Not KFP's upload of a new pipeline: that names the first version after the pipeline.
    about = V2beta1Pipeline(name=name, display_name=name, namespace=service.namespace, description=package.source)
    pipeline, _ = service.ensure(
        "the pipeline", find, service.client.pipelines.pipeline_service_create_pipeline, pipeline=about
    )
    version_name = package.version_name
    if newest and (last := newest_version(service, pipeline.pipeline_id)) is not None:
        if last.display_name.startswith(version_name):
            return pipeline.pipeline_id, last.pipeline_version_id, False
        if service.find("looking for the version", lambda: _find_version(service, pipeline.pipeline_id, version_name)):
            version_name += f"-{datetime.now(UTC):%Y%m%d%H%M%S}"
    version, made = _upload(service, pipeline.pipeline_id, version_name, package)
    return pipeline.pipeline_id, version.pipeline_version_id, made


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
            uploadfile=str(file), name=name, pipelineid=pipeline, description=package.source,
        )  # fmt: skip


def named(key: str, value: str) -> str:
    """KFP's filter for what has this value."""
    return json.dumps({"predicates": [{"operation": _EQUALS, "key": key, "stringValue": value}]})
