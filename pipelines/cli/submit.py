"""`imagemill submit`: start a run of the pipeline in Kubeflow Pipelines and follow it to its end."""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...components.download.config import DownloadConfig
from ...components.step.progress import format_scores, say
from ...components.step.step import new_run
from ...components.storage.errors import EXIT_OK, MillError, UserError, wrong
from ..cluster.checks import read_cluster
from ..cluster.cluster_file import Cluster, load_cluster
from ..compile import compile_package
from ..finish import make_failed_result
from ..kfp import following
from ..kfp.client import Connection, KfpService, add_connection_flags
from ..kfp.uploads import (
    EXPERIMENT_NAME,
    PIPELINE_NAME,
    Package,
    build_filter,
    build_run_arguments,
    ensure_experiment,
    ensure_version,
    read_package,
)
from ..parameters import RunParameters, resolve_parameters

HELP = "start a run in Kubeflow Pipelines, follow it, and exit with its result"
_ABOUT = """Compiles the pipeline, uploads it if it has changed, starts a run and follows it to its end. Exits with 0
when the run succeeded, else with the exit code and message of the step that failed; 75 when the service can't be
reached. Nothing but the service's address is needed for it, that of its UI. Ctrl-C ends the following, not the
run."""
_ARGO = (
    "for Argo without Kubeflow: `imagemill compile --target argo --cluster FILE -o workflow.yaml`, `kubectl apply -f "
    "workflow.yaml`, `argo submit --from workflowtemplate/imagemill-training --watch`"
)


def add_command(commands: Any, add_parameters: Callable[[argparse.ArgumentParser, str], None]) -> None:
    """Add the command and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser("submit", help=HELP, description=_ABOUT)
    add_package_flags(parser)
    parser.add_argument("--run-name", default="", metavar="NAME", help="the run's name (default: by name and time)")
    parser.add_argument("--no-wait", action="store_true", help="return when the run is started")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON, last on stdout")
    add_connection_flags(parser)
    add_parameters(parser, "What is given here is given to this run; the package's defaults stay as they are.")


def add_package_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the package and its place in the service, which `imagemill schedule` has as well."""
    parser.add_argument("--target", default="kfp", help=argparse.SUPPRESS)
    parser.add_argument("--cluster", default="", metavar="FILE", help="how the cluster is used (`imagemill cluster` "
                        "prints such a file)")  # fmt: skip
    parser.add_argument("--no-check", action="store_true", help="start it without a look at the cluster of KUBECONFIG "
                        "(see `imagemill doctor`)")  # fmt: skip
    parser.add_argument("--package", default="", metavar="FILE", help="a pipeline that was compiled before")
    parser.add_argument("--pipeline-name", metavar="NAME", help=f"(default: the package's own, {PIPELINE_NAME})")
    parser.add_argument(
        "--experiment", default="", metavar="NAME",
        help=f"(default: KF_PIPELINES_DEFAULT_EXPERIMENT_NAME, else {EXPERIMENT_NAME})",
    )  # fmt: skip


class SubmitRequest:
    """The checked values of the flags of `add_package_flags`, of the connection's flags and of the parameters."""

    def __init__(self, flags: dict[str, Any]) -> None:
        target, cluster_file, package_file = (flags.pop(key) for key in ("target", "cluster", "package"))
        self._checks: bool = not flags.pop("no_check")
        if target != "kfp":
            raise UserError(f"--target: expected kfp, found {target!r}; {_ARGO}")
        if cluster_file and package_file:
            raise wrong("--package", "either it or --cluster, which the package is compiled with", package_file)
        self.cluster: Cluster | None = load_cluster(cluster_file) if cluster_file else None
        self.cluster_file: str = cluster_file
        self.connection = Connection.from_flags(flags, self.cluster.namespace if self.cluster else "")
        self._package = read_package(Path(package_file)) if package_file else None
        own_name = self._package.name if self._package else PIPELINE_NAME
        name = flags.pop("pipeline_name")
        self.pipeline: str = own_name if name is None else name
        self.experiment: str = flags.pop("experiment") or _get_default_experiment()
        for flag, name in (("--pipeline-name", self.pipeline), ("--experiment", self.experiment)):
            if not name.strip() or len(name) > 100:
                raise wrong(flag, "a name of 1 to 100 characters", name)
        config_file = flags.pop("config_file", None) or ""
        self.parameters: RunParameters = resolve_parameters(
            {key: value for key, value in flags.items() if value is not None}, config_file
        )
        download = self.parameters.config("download")
        assert isinstance(download, DownloadConfig)
        self.name = download.dataset_name()

    def package(self) -> tuple[Package, dict[str, Any]]:
        """Return the package and the arguments of its run. UserError also where the cluster is reachable from here and
        not ready for a run."""
        package = self._package
        if package is None:
            cluster = read_cluster(self.cluster_file)
            package = compile_package(cluster, self.parameters)
            if self._checks:
                from ..doctor.command import check_before_run

                check_before_run(cluster, self.connection)
        return package, build_run_arguments(package, self.parameters)


def _get_default_experiment() -> str:
    default = os.environ.get("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME") or EXPERIMENT_NAME
    return os.environ.get("KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME") or default


def run(flags: dict[str, Any]) -> int:
    """Start the run of the parsed flags, and follow it; return the exit code."""
    as_json, wait, run_name = flags.pop("json"), not flags.pop("no_wait"), flags.pop("run_name")
    result = make_failed_result() | {"link": "", "state": "", "records": {}}
    try:
        request = SubmitRequest(flags)
        result["name"] = request.name
        package, arguments = request.package()
        service = KfpService(request.connection)
        created = start_run(service, request, package, arguments, run_name or new_run(request.name))
        link = service.get_run_url(created.run_id)
        result |= {"status": "running", "run": created.run_id, "run_name": created.display_name, "link": link}
        result["state"] = created.state or "PENDING"
        say("run", f"{created.display_name} ({created.run_id})")
        say("run", link)
        if not wait:
            return print_result(result, as_json, EXIT_OK)
        ended = following.follow(service, created.run_id)
        return print_result(result, as_json, following.collect_result(service, ended, result))
    except KeyboardInterrupt:
        result |= {"error": "stopped; `imagemill runs` shows whether the run was started", "exit_code": 130}
        return print_result(result, as_json, 130)
    except MillError as error:
        result |= {"error": str(error), "exit_code": error.exit_code}
        return print_result(result, as_json, error.exit_code)


def start_run(
    service: KfpService, request: SubmitRequest, package: Package, arguments: dict[str, Any], name: str
) -> Any:
    """Create the run, once: if the service's answer is lost, the run is found by its name."""
    from kfp_server_api import V2beta1PipelineVersionReference, V2beta1Run, V2beta1RuntimeConfig

    version = ensure_version(service, request.pipeline, package)
    experiment_id = ensure_experiment(service, request.experiment)
    suffix = "" if version.is_new else ", as it is there"
    say("run", f"pipeline {request.pipeline}, version {version.display_name}{suffix}")
    runs = service.client.runs
    list_same_name = functools.partial(
        runs.run_service_list_runs,
        experiment_id=experiment_id,
        filter=build_filter("display_name", name),
        page_size=100,
    )
    existing_ids = {candidate.run_id for candidate in service.call("looking at the runs", list_same_name).runs or []}

    def find() -> Any:
        candidates = service.request(list_same_name).runs or []
        return next((candidate for candidate in candidates if candidate.run_id not in existing_ids), None)

    body = V2beta1Run(
        experiment_id=experiment_id, display_name=name, runtime_config=V2beta1RuntimeConfig(parameters=arguments),
        pipeline_version_reference=V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.version_id
        ),
    )  # fmt: skip
    return service.create("starting the run", runs.run_service_create_run, find, run=body)


def print_result(result: dict[str, Any], as_json: bool, code: int) -> int:
    if code:
        print(f"imagemill: error: {result['error']}", file=sys.stderr)
    elif not as_json:
        print(format_summary(result))
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    return code


def format_summary(result: dict[str, Any]) -> str:
    """Return the result of a run as a few lines of text."""
    if result["status"] == "running":
        return f"{result['link']}\nimagemill runs {result['run']} --follow"
    fields = {key: result[key] for key in ("model", "champion", "report", "link") if result.get(key)}
    if result.get("report"):
        fields["report"] += f" (`imagemill runs {result['run']} --report report.html` fetches it)"
    head = format_headline(result) or result["status"]
    warnings = [f"warning: {result['warning']}"] if result.get("warning") else []
    return "\n".join(
        [*warnings, f"{result['name']}: {head}", *(f"  {key:<11}{value}" for key, value in fields.items())]
    )


def format_headline(result: dict[str, Any]) -> str:
    """Return a run's metrics and the gate's verdict in one line; empty before there are any."""
    verdict = str(result.get("verdict") or "").replace("_", " ")
    return " · ".join(filter(None, (format_scores(result["metrics"]), verdict)))
