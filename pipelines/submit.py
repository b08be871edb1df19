"""`imagemill submit`: a run of the pipeline in Kubeflow Pipelines, followed to its end."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..components.download.config import DownloadConfig
from ..components.store.errors import EXIT_OK, MillError, UserError, wrong
from ..components.store.progress import say
from ..components.store.step import new_run
from . import following
from .checks import read_cluster
from .cluster import Cluster, from_file
from .kfp_client import Connection, Service, add_flags
from .kfp_uploads import EXPERIMENT, PIPELINE, Package, arguments_for, compiled, experiment, named, read_package, upload
from .parameters import RunParameters, resolve_parameters
from .run import make_failed_result

HELP = "start a run in Kubeflow Pipelines, follow it, and exit with its result"
_ABOUT = """Compiles the pipeline, uploads it if it has changed, starts a run and follows it to its end. Exits with 0
when the run succeeded, else with the exit code and message of the step that failed; 75 when the service can't be
reached. Nothing but the service's address is needed for it, that of its pages. Ctrl-C ends the following, not the
run."""
_ARGO = (
    "for Argo without Kubeflow: `imagemill compile --target argo --cluster FILE -o workflow.yaml`, `kubectl apply -f "
    "workflow.yaml`, `argo submit --from workflowtemplate/imagemill-training --watch`"
)


def add_command(commands: Any, add_parameters: Callable[[argparse.ArgumentParser, str], None]) -> None:
    """The command's flags."""
    parser: argparse.ArgumentParser = commands.add_parser("submit", help=HELP, description=_ABOUT)
    add_package_flags(parser)
    parser.add_argument("--run-name", default="", metavar="NAME", help="the run's name (default: by name and time)")
    parser.add_argument("--no-wait", action="store_true", help="return when the run is started")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON, last on stdout")
    add_flags(parser)
    add_parameters(parser, "What is given here is given to this run; the package's defaults stay as they are.")


def add_package_flags(parser: argparse.ArgumentParser) -> None:
    """What is run, and where it is put; the same for a schedule."""
    parser.add_argument("--target", default="kfp", help=argparse.SUPPRESS)
    parser.add_argument("--cluster", default="", metavar="FILE", help="how the cluster is used (`imagemill cluster` "
                        "prints such a file)")  # fmt: skip
    parser.add_argument("--no-check", action="store_true", help="start it without a look at the cluster of KUBECONFIG "
                        "(see `imagemill doctor`)")  # fmt: skip
    parser.add_argument("--package", default="", metavar="FILE", help="a pipeline that was compiled before")
    parser.add_argument("--pipeline-name", default=PIPELINE, metavar="NAME", help=f"(default: {PIPELINE})")
    parser.add_argument(
        "--experiment", default="", metavar="NAME",
        help=f"(default: KF_PIPELINES_DEFAULT_EXPERIMENT_NAME, else {EXPERIMENT})",
    )  # fmt: skip


class Order:
    """What the flags of `add_package_flags` and the parameters ask for, checked before the service is asked."""

    def __init__(self, found: dict[str, Any]) -> None:
        target, cluster_file, package_file = (found.pop(key) for key in ("target", "cluster", "package"))
        self._checks: bool = not found.pop("no_check")
        if target != "kfp":
            raise UserError(f"--target: expected kfp, found {target!r}; {_ARGO}")
        if cluster_file and package_file:
            raise wrong("--package", "either it or --cluster, which the package is compiled with", package_file)
        self.cluster: Cluster | None = from_file(cluster_file) if cluster_file else None
        self.cluster_file: str = cluster_file
        self.connection = Connection.from_flags(found, self.cluster.namespace if self.cluster else "")
        self.pipeline: str = found.pop("pipeline_name")
        self.experiment: str = found.pop("experiment") or _environment_experiment()
        for flag, name in (("--pipeline-name", self.pipeline), ("--experiment", self.experiment)):
            if not name.strip() or len(name) > 100:
                raise wrong(flag, "a name of 1 to 100 characters", name)
        self.package_file = package_file
        config_file = found.pop("config_file", None) or ""
        self.parameters: RunParameters = resolve_parameters(
            {key: value for key, value in found.items() if value is not None}, config_file
        )
        download = self.parameters.config("download")
        assert isinstance(download, DownloadConfig)
        self.name = download.dataset_name()

    def package(self) -> tuple[Package, dict[str, Any]]:
        """The package, and the arguments of its run. UserError, too, where the cluster can be seen from here,
        and is not ready for a run."""
        if self.package_file:
            package = read_package(Path(self.package_file))
        else:
            cluster = read_cluster(self.cluster_file)
            package = compiled(cluster, self.parameters)
            if self._checks:
                from .doctor.command import look_before

                look_before(cluster, self.connection)
        return package, arguments_for(package, self.parameters)


def _environment_experiment() -> str:
    default = os.environ.get("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME") or EXPERIMENT
    return os.environ.get("KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME") or default


def run(found: dict[str, Any]) -> int:
    """Start the run that the parsed flags ask for, and follow it; returns the exit code."""
    as_json, wait, run_name = found.pop("json"), not found.pop("no_wait"), found.pop("run_name")
    result = make_failed_result() | {"link": "", "state": "", "records": {}}
    try:
        order = Order(found)
        result["name"] = order.name
        package, arguments = order.package()
        service = Service(order.connection)
        started = start(service, order, package, arguments, run_name or new_run(order.name))
        link = service.link(started.run_id)
        result |= {"status": "running", "run": started.run_id, "run_name": started.display_name, "link": link}
        result["state"] = started.state or "PENDING"
        say("run", f"{started.display_name} ({started.run_id})")
        say("run", link)
        if not wait:
            return end(result, as_json, EXIT_OK)
        ended = following.follow(service, started.run_id)
        return end(result, as_json, following.finish(service, ended, result))
    except KeyboardInterrupt:
        result |= {"error": "stopped; `imagemill runs` shows whether the run was started", "exit_code": 130}
        return end(result, as_json, 130)
    except MillError as error:
        result |= {"error": str(error), "exit_code": error.exit_code}
        return end(result, as_json, error.exit_code)


def start(service: Service, order: Order, package: Package, arguments: dict[str, Any], name: str) -> Any:
    """The run, created once: it is found by its name if the service's answer is lost."""
    from kfp_server_api import V2beta1PipelineVersionReference, V2beta1Run, V2beta1RuntimeConfig

    version = upload(service, order.pipeline, package)
    place = experiment(service, order.experiment)
    known = "" if version.is_new else ", as it is there"
    say("run", f"pipeline {order.pipeline}, version {version.display_name}{known}")
    runs = service.client.runs
    alike = functools.partial(
        runs.run_service_list_runs, experiment_id=place, filter=named("display_name", name), page_size=100
    )
    before = {one.run_id for one in service.call("looking at the runs", alike).runs or []}

    def find() -> Any:
        return next((one for one in service.once(alike).runs or [] if one.run_id not in before), None)

    body = V2beta1Run(
        experiment_id=place, display_name=name, runtime_config=V2beta1RuntimeConfig(parameters=arguments),
        pipeline_version_reference=V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        ),
    )  # fmt: skip
    return service.create("starting the run", runs.run_service_create_run, find, run=body)


def end(result: dict[str, Any], as_json: bool, code: int) -> int:
    if code:
        print(f"imagemill: error: {result['error']}", file=sys.stderr)
    elif not as_json:
        print(summary(result))
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    return code


def summary(result: dict[str, Any]) -> str:
    """What a run came to, in a few lines."""
    if result["status"] == "running":
        return f"{result['link']}\nimagemill runs {result['run']} --follow"
    shown = {key: result[key] for key in ("model", "champion", "report", "link") if result.get(key)}
    if result.get("report"):
        shown["report"] += f" (`imagemill runs {result['run']} --report report.html` fetches it)"
    head = headline(result) or result["status"]
    return "\n".join([f"{result['name']}: {head}", *(f"  {key:<11}{value}" for key, value in shown.items())])


def headline(result: dict[str, Any]) -> str:
    """A run's numbers and the gate's verdict, in one line; empty before there are any."""
    metrics = result["metrics"]
    numbers = [f"{label} {metrics[key]:.3f}" for key, label in (("top1", "top-1"), ("macro_f1", "macro-F1"))
               if isinstance(metrics.get(key), float)]  # fmt: skip
    return " · ".join([*numbers, *([result["verdict"].replace("_", " ")] if result.get("verdict") else [])])
