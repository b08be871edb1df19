"""Runs through Kubeflow Pipelines: by `imagemill submit` and `imagemill schedule`, and by the `kfp` SDK.

Pipeline, experiment and schedule have names of the session's own, so that nothing else there takes a version of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagemill.components.dataset.manifest import digest
from imagemill.components.storage.errors import MillError
from imagemill.pipelines.cluster.cluster_file import Cluster
from imagemill.pipelines.compile import compile_package as compile_for_cluster
from imagemill.pipelines.kfp import client as kfp_client
from imagemill.pipelines.kfp import uploads as kfp_uploads
from imagemill.pipelines.parameters import resolve_parameters

from .access.kube import Doc, labels_of, name_of
from .access.mirror import say
from .options import Options
from .runs import KFP, Run
from .scenario import Deadline, Failed, Late, Stopped

if TYPE_CHECKING:
    from .session import Trial

_RUN_ID = "pipeline/runid"
_SESSION = re.compile("e2e-[0-9a-f]{6}(-[a-z]+)?")
_CLIENT = threading.RLock()
"""kfp's client redirects stdout while it asks, which two threads must not do at a time."""


@contextlib.contextmanager
def service(options: Options, namespace: str) -> Iterator[Any]:
    """KFP's API, answering, for one thread at a time; a MillError says why it does not answer."""
    parser = argparse.ArgumentParser()
    kfp_client.add_connection_flags(parser)
    flags, _ = parser.parse_known_args(options.submit)
    with _CLIENT:
        yield kfp_client.KfpService(kfp_client.Connection.from_flags(vars(flags), namespace))


def _service(trial: Trial) -> contextlib.AbstractContextManager[Any]:
    return service(trial.options, trial.cluster.namespace)


def submit(
    trial: Trial, workspace: str, cluster: Cluster | None = None, wait: bool = False, config_file: str = "",
    check: bool = True, **parameters: Any,
) -> Run:  # fmt: skip
    """`imagemill submit`; `wait`: it follows the run, and must end with its result; `check`: it looks first whether the
    cluster is ready."""
    name = _own_name(trial)
    words = ["submit", "--json", "--run-name", trial.name(trial.scenario), *([] if wait else ["--no-wait"])]
    words += ["--config", config_file] if config_file else []
    words += [] if check else ["--no-check"]
    code, result, stderr_end = _imagemill(trial, words, name, cluster or trial.cluster, workspace, parameters)
    if not result.get("run"):
        raise Failed(f"imagemill submit ended with {code} and started no run: {result.get('error') or stderr_end}")
    run = find_run(trial, str(result["run"]), workspace, trial.deadline)
    if wait and code:
        raise Failed(f"imagemill submit ended with {code}: {result.get('error') or stderr_end}{run.failures()}")
    return run


def fire_schedule(trial: Trial, workspace: str, deadline: Deadline, **parameters: Any) -> Run:
    """`imagemill schedule` for every minute, until it has started one run; then it is deleted.

    It runs its pipeline's newest version, so it has a pipeline of its own.
    """
    name = _own_name(trial, "recurring")
    words = ["schedule", "--json", "--cron", "* * * * *", "--schedule-name", name]
    code, result, stderr_end = _imagemill(trial, words, name, trial.cluster, workspace, parameters)
    if code:
        raise Failed(f"imagemill schedule ended with {code}: {stderr_end}")
    trial.undo.append((f"schedule {name}", lambda: _change_schedule(trial, "--delete", name, workspace)))
    started = wait_for_recurring(trial, name, str(result["schedule"]), deadline)
    _change_schedule(trial, "--disable", name, workspace)
    return find_run(trial, started, workspace, deadline)


def wait_for_recurring(trial: Trial, experiment: str, schedule: str, deadline: Deadline) -> str:
    """The id of the first run that a recurring run starts in an experiment."""

    def fired() -> str | None:
        with _service(trial) as api:
            response = api.call("looking for the schedule's runs", api.client.runs.run_service_list_runs,
                             experiment_id=kfp_uploads.ensure_experiment(api, experiment), page_size=100)  # fmt: skip
        started = [run.run_id for run in response.runs or [] if run.recurring_run_id == schedule]
        return str(started[0]) if started else None

    return trial.mirror.wait(fired, f"schedule {schedule} starts a run", deadline, every=5)


def _change_schedule(trial: Trial, change: str, name: str, workspace: str) -> None:
    """Disable a schedule, or delete it, which is for the end, when no run of it is under way."""
    code, _, stderr_end = _imagemill(
        trial, ["schedule", change, "--schedule-name", name], name, trial.cluster, workspace, {}, trial.within(300)
    )
    if code:
        raise Failed(stderr_end)


def compile_package(trial: Trial, workspace: str) -> Path:
    """`imagemill compile --target kfp`: the package for the SDK, with the workspace as its default."""
    target = trial.session.folder / f"{trial.scenario}.yaml"
    command = [*trial.options.command, "compile", "--target", "kfp", "-o", str(target),
               "--cluster", str(_cluster_file(trial, trial.cluster)), f"--workspace={workspace}"]  # fmt: skip
    _, stderr_end, code = _run_command(command, "imagemill compile", trial.deadline)
    if code:
        raise Failed(f"imagemill compile ended with {code}: {stderr_end}")
    return target


def sdk_client(trial: Trial) -> tuple[contextlib.AbstractContextManager[Any], str]:
    """(kfp's own client, for one thread at a time, and the experiment of the session)."""
    name = _own_name(trial, "sdk")

    @contextlib.contextmanager
    def client() -> Iterator[Any]:
        with _service(trial) as api, contextlib.redirect_stdout(sys.stderr):
            yield api.client

    return client(), name


def upload(trial: Trial, use: str) -> dict[str, str]:
    """Upload the pipeline under a name of its own: the ids that the pages' links take."""
    name = _own_name(trial, use)
    package = compile_for_cluster(trial.cluster, resolve_parameters({}))
    with _service(trial) as api:
        version = kfp_uploads.ensure_version(api, name, package)
        experiment = kfp_uploads.ensure_experiment(api, name)
    return {
        "pipelineId": version.pipeline_id, "pipelineVersionId": version.version_id, "experimentId": experiment
    }  # fmt: skip


def host_of_pages(trial: Trial) -> str:
    """Return the address of KFP's pages: --pages, else the API's address if given, else an empty string."""
    with _service(trial) as api:
        return (trial.options.pages or str(api.connection.host)).rstrip("/")


def terminate(trial: Trial, run: Run) -> None:
    """End a run as one does in the UI."""
    with _service(trial) as api:
        api.call("terminating the run", api.client.runs.run_service_terminate_run, run_id=run.service_id)


def delete(trial: Trial, run: Run) -> None:
    """Delete a run as one does in the UI."""
    with _service(trial) as api:
        api.request(api.client.runs.run_service_delete_run, run_id=run.service_id)


def list_runs(trial: Trial, experiment_id: str) -> list[Any]:
    """The runs of an experiment as KFP lists them."""
    with _service(trial) as api:
        response = api.call("listing runs", api.client.runs.run_service_list_runs, experiment_id=experiment_id,
                         page_size=100)  # fmt: skip
    return list(response.runs or [])


def find_run(trial: Trial, run_id: str, workspace: str, deadline: Deadline) -> Run:
    """The run of that id, once its workflow is there."""

    def workflow() -> Doc | None:
        own = [
            workflow_document
            for workflow_document in trial.mirror.seen("workflows")
            if labels_of(workflow_document).get(_RUN_ID) == run_id
        ]
        return own[0] if own else None

    document = trial.mirror.wait(workflow, f"the workflow of KFP's run {run_id}", deadline)
    return trial.start(Run(trial.place, KFP, name_of(document), run_id, workspace, service_id=run_id))


def _own_name(trial: Trial, use: str = "") -> str:
    """The name of pipeline and experiment for a use, all of which KFP forgets at the session's end."""
    name = f"{trial.options.stem}{'-' if use else ''}{use}"

    def at_end() -> bool:
        options, namespace = trial.options, trial.cluster.namespace
        trial.session.at_end.append((f"{name} in Kubeflow Pipelines", lambda: _forget(options, namespace, name)))
        return True

    trial.session.once(f"kfp {name}", at_end)
    return name


def _cluster_file(trial: Trial, cluster: Cluster) -> Path:
    file = trial.session.folder / f"cluster-{digest(json.loads(cluster.to_json()))[:8]}.yaml"
    file.write_text(cluster.to_json() + "\n", encoding="utf-8")  # JSON is YAML
    return file


def _imagemill(
    trial: Trial, words: Sequence[str], name: str, cluster: Cluster, workspace: str, parameters: dict[str, Any],
    deadline: Deadline | None = None,
) -> tuple[int, dict[str, Any], str]:  # fmt: skip
    """(exit code, the line of JSON that it prints last, the end of what it said) of an `imagemill` command."""
    values = {"workspace": workspace, **parameters}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]
    command = [*trial.options.command, *words, "--cluster", str(_cluster_file(trial, cluster)),
               "--pipeline-name", name, "--experiment", name, *trial.options.submit, *flags]  # fmt: skip
    stdout, stderr_end, code = _run_command(command, f"imagemill {words[0]}", deadline or trial.deadline)
    last = (stdout.strip().splitlines() or [""])[-1]
    try:
        result = dict(json.loads(last))
    except ValueError:
        result = {}
    return code, result, stderr_end


def _run_command(command: Sequence[str], title: str, deadline: Deadline) -> tuple[str, str, int]:
    """(stdout, the last lines of stderr, exit code); stderr is shown as it comes. Late after the deadline."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    stderr_lines: list[str] = []
    stdout_lines: list[str] = []
    scenario = threading.current_thread().name

    def listen(stream: Any, lines: list[str], show: bool) -> None:
        for line in stream:
            lines.append(line)
            if show:
                print(f"         [{scenario}] {line}", end="", file=sys.stderr, flush=True)

    threads = [threading.Thread(target=listen, args=(process.stdout, stdout_lines, False), daemon=True),
               threading.Thread(target=listen, args=(process.stderr, stderr_lines, True), daemon=True)]  # fmt: skip
    for thread in threads:
        thread.start()
    try:
        while process.poll() is None:
            deadline.check(f"the end of `{title}`")
            time.sleep(0.1)
    except (Late, Stopped):
        process.kill()
        process.wait()
        raise
    for thread in threads:
        thread.join(5)
    return "".join(stdout_lines), " / ".join(line.strip() for line in stderr_lines[-3:]), int(process.returncode)


def sweep(options: Options, namespace: str) -> list[str]:
    """Delete what earlier sessions left in Kubeflow Pipelines, if there is one; what could not be deleted."""
    try:
        for name in names_left(options, namespace, _SESSION):
            _forget(options, namespace, name)
            say(f"deleted {name} in Kubeflow Pipelines")
    except MillError as error:
        return [f"Kubeflow Pipelines: {error}"] if options.submit else []
    return []


def names_left(options: Options, namespace: str, pattern: re.Pattern[str]) -> list[str]:
    """The experiments and pipelines whose names match as a whole."""
    with service(options, namespace) as api:
        space = {"namespace": api.namespace} if api.namespace else {}
        experiments = api.call("listing experiments", api.client.experiments.experiment_service_list_experiments,
                               page_size=200, sort_by="created_at desc", **space).experiments  # fmt: skip
        pipelines = api.call("listing pipelines", api.client.pipelines.pipeline_service_list_pipelines,
                             page_size=200, sort_by="created_at desc", **space).pipelines  # fmt: skip
    names = {str(entry.display_name) for entry in [*(experiments or []), *(pipelines or [])]}
    return sorted(name for name in names if pattern.fullmatch(name))


def _forget(options: Options, namespace: str, name: str) -> None:
    """Delete runs, recurring runs, experiment and pipeline of a session's name."""
    with service(options, namespace) as api:
        experiment = kfp_uploads.ensure_experiment(api, name)
        recurring = api.client.recurring_runs
        schedules = api.call("listing schedules", recurring.recurring_run_service_list_recurring_runs,
                             experiment_id=experiment, page_size=100)  # fmt: skip
        for schedule in schedules.recurring_runs or []:
            api.request(
                recurring.recurring_run_service_delete_recurring_run, recurring_run_id=schedule.recurring_run_id
            )
        runs = api.call("listing runs", api.client.runs.run_service_list_runs, experiment_id=experiment, page_size=100)
        for run in runs.runs or []:
            api.request(api.client.runs.run_service_delete_run, run_id=run.run_id)
        api.request(api.client.experiments.experiment_service_delete_experiment, experiment_id=experiment)
        pipeline = kfp_uploads.find_pipeline(api, name)
        if not pipeline:
            return
        pipelines = api.client.pipelines
        versions = api.call("listing versions", pipelines.pipeline_service_list_pipeline_versions,
                            pipeline_id=pipeline, page_size=100)  # fmt: skip
        for version in versions.pipeline_versions or []:  # a pipeline that has versions isn't deleted
            api.request(pipelines.pipeline_service_delete_pipeline_version, pipeline_id=pipeline,
                     pipeline_version_id=version.pipeline_version_id)  # fmt: skip
        api.request(pipelines.pipeline_service_delete_pipeline, pipeline_id=pipeline)
