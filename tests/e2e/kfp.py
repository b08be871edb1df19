"""Runs through Kubeflow Pipelines: by `imagemill submit` and `imagemill schedule`, as one would by hand.

Pipeline, experiment and schedule have names of the session's own, so that nothing else there takes a version of it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imagemill.components.store.errors import MillError
from imagemill.components.store.fingerprint import digest
from imagemill.pipelines import kfp_client, kfp_uploads
from imagemill.pipelines.cluster import Cluster

from .kube import Doc, labels_of, name_of
from .mirror import say
from .options import SMALL, Options
from .runs import KFP, Run
from .scenario import Deadline, Failed, Late

if TYPE_CHECKING:
    from .session import Session

_RUN_ID = "pipeline/runid"
_SESSION = re.compile("e2e-[0-9a-f]{6}")


def service(session: Session) -> Any:
    """KFP's API, answering; a MillError says why it does not."""
    return connect(session.options, session.cluster.namespace)


def connect(options: Options, namespace: str) -> Any:
    parser = argparse.ArgumentParser()
    kfp_client.add_flags(parser)
    found, _ = parser.parse_known_args(options.submit)
    return kfp_client.Service(kfp_client.Connection.from_flags(vars(found), namespace))


def submit(
    session: Session, workspace: str, cluster: Cluster | None = None, wait: bool = False, **parameters: Any
) -> Run:
    """`imagemill submit`; `wait`: it follows the run, and must end with its result."""
    _forget_at_end(session)
    words = ["submit", "--json", "--run-name", session.name(session.scenario), *([] if wait else ["--no-wait"])]
    code, result, said = _imagemill(session, words, cluster or session.cluster, workspace, parameters)
    if not result.get("run"):
        raise Failed(f"imagemill submit ended with {code} and started no run: {result.get('error') or said}")
    run = _run(session, str(result["run"]), workspace, session.deadline)
    if wait and code:
        raise Failed(f"imagemill submit ended with {code}: {result.get('error') or said}{run.failures()}")
    return run


def fire_schedule(session: Session, workspace: str, deadline: Deadline) -> Run:
    """`imagemill schedule` for every minute, until it has started one run; then it is deleted."""
    _forget_at_end(session)
    name = f"e2e-{session.suffix}"
    words = ["schedule", "--json", "--cron", "* * * * *", "--schedule-name", name]
    code, result, said = _imagemill(session, words, session.cluster, workspace, {})
    if code:
        raise Failed(f"imagemill schedule ended with {code}: {said}")
    delete = ["schedule", "--delete", "--schedule-name", name]
    session.undo.append((f"schedule {name}", lambda: _delete_schedule(session, delete, workspace)))
    api = service(session)

    def fired() -> str | None:
        found = api.call("looking for the schedule's runs", api.client.runs.run_service_list_runs,
                         experiment_id=_experiment(session, api), page_size=100)  # fmt: skip
        mine = [one.run_id for one in found.runs or [] if one.recurring_run_id == result["schedule"]]
        return str(mine[0]) if mine else None

    started = session.mirror.wait(fired, f"schedule {name} starts a run", deadline, every=5)
    _imagemill(session, ["schedule", "--disable", "--schedule-name", name], session.cluster, workspace, {})
    return _run(session, started, workspace, deadline)


def _delete_schedule(session: Session, words: Sequence[str], workspace: str) -> None:
    """Again at the end, when no run of it is under way: before that it is only disabled."""
    code, _, said = _imagemill(session, words, session.cluster, workspace, {})
    if code:
        raise Failed(said)


def terminate(session: Session, run: Run) -> None:
    """End a run as one does in the UI."""
    api = service(session)
    api.call("terminating the run", api.client.runs.run_service_terminate_run, run_id=run.service_id)


def _run(session: Session, run_id: str, workspace: str, deadline: Deadline) -> Run:
    """The run of that id, once its workflow is there."""

    def made() -> Doc | None:
        mine = [one for one in session.mirror.seen("workflows") if labels_of(one).get(_RUN_ID) == run_id]
        return mine[0] if mine else None

    found = session.mirror.wait(made, f"the workflow of KFP's run {run_id}", deadline)
    run = Run(session, KFP, name_of(found), run_id, workspace, service_id=run_id)
    session.runs.append(run)
    return run


def _imagemill(
    session: Session, words: Sequence[str], cluster: Cluster, workspace: str, parameters: dict[str, Any]
) -> tuple[int, dict[str, Any], str]:
    """(exit code, the line of JSON that it prints last, the end of what it said) of an `imagemill` command."""
    name = f"e2e-{session.suffix}"
    file = session.folder / f"cluster-{digest(json.loads(cluster.to_json()))[:8]}.yaml"
    file.write_text(cluster.to_json() + "\n", encoding="utf-8")  # JSON is YAML
    given = {**SMALL, "workspace": workspace, **parameters}
    if "config" in given:  # JSON for a pipeline, a file for a command
        given["config"] = session.folder / f"config-{digest(given['config'])[:8]}.yaml"
        given["config"].write_text(parameters["config"], encoding="utf-8")
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    command = [*session.options.command, *words, "--cluster", str(file), "--pipeline-name", name,
               "--experiment", name, *session.options.submit, *flags]  # fmt: skip
    stdout, said, code = _run_command(command, f"imagemill {words[0]}", session.deadline)
    last = (stdout.strip().splitlines() or [""])[-1]
    try:
        result = dict(json.loads(last))
    except ValueError:
        result = {}
    return code, result, said


def _run_command(command: Sequence[str], title: str, deadline: Deadline) -> tuple[str, str, int]:
    """(stdout, the last lines of stderr, exit code); stderr is shown as it comes. Late after the deadline."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    said: list[str] = []
    out: list[str] = []

    def listen(stream: Any, lines: list[str], show: bool) -> None:
        for line in stream:
            lines.append(line)
            if show:
                print(f"         {line}", end="", file=sys.stderr, flush=True)

    threads = [threading.Thread(target=listen, args=(process.stdout, out, False), daemon=True),
               threading.Thread(target=listen, args=(process.stderr, said, True), daemon=True)]  # fmt: skip
    for thread in threads:
        thread.start()
    try:
        code = process.wait(timeout=max(1.0, deadline.left()))
    except subprocess.TimeoutExpired:
        raise Late(f"`{title}` did not end within {deadline.seconds:.0f} s") from None
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    for thread in threads:
        thread.join(5)
    return "".join(out), " / ".join(line.strip() for line in said[-3:]), code


def _experiment(session: Session, api: Any) -> str:
    return kfp_uploads.experiment(api, f"e2e-{session.suffix}")


def _forget_at_end(session: Session) -> None:
    """Have all that KFP knows of the session deleted at the session's end, once."""
    if not session.facts.get("kfp_used"):
        session.facts["kfp_used"] = True
        name = f"e2e-{session.suffix}"
        session.at_end.append(("Kubeflow Pipelines", lambda: _forget(service(session), name)))


def sweep(options: Options, namespace: str) -> list[str]:
    """Delete what earlier sessions left in Kubeflow Pipelines, if there is one; what could not be deleted."""
    try:
        api = connect(options, namespace)
        space = {"namespace": api.namespace} if api.namespace else {}
        listing = api.client.experiments.experiment_service_list_experiments
        found = api.call("listing experiments", listing, page_size=200, **space)
        for name in [one.display_name for one in found.experiments or []]:
            if _SESSION.fullmatch(name):
                _forget(api, name)
                say(f"deleted {name} in Kubeflow Pipelines")
    except MillError as error:
        return [f"Kubeflow Pipelines: {error}"] if options.submit else []
    return []


def _forget(api: Any, name: str) -> None:
    """Delete runs, recurring runs, experiment and pipeline of a session's name."""
    experiment = kfp_uploads.experiment(api, name)
    recurring = api.client.recurring_runs
    found = api.call("listing schedules", recurring.recurring_run_service_list_recurring_runs,
                     experiment_id=experiment, page_size=100)  # fmt: skip
    for one in found.recurring_runs or []:
        api.once(recurring.recurring_run_service_delete_recurring_run, recurring_run_id=one.recurring_run_id)
    runs = api.call("listing runs", api.client.runs.run_service_list_runs, experiment_id=experiment, page_size=100)
    for one in runs.runs or []:
        api.once(api.client.runs.run_service_delete_run, run_id=one.run_id)
    api.once(api.client.experiments.experiment_service_delete_experiment, experiment_id=experiment)
    pipeline = kfp_uploads.find_pipeline(api, name)
    if not pipeline:
        return
    pipelines = api.client.pipelines
    versions = api.call("listing versions", pipelines.pipeline_service_list_pipeline_versions,
                        pipeline_id=pipeline, page_size=100)  # fmt: skip
    for one in versions.pipeline_versions or []:  # a pipeline that has versions isn't deleted
        api.once(pipelines.pipeline_service_delete_pipeline_version, pipeline_id=pipeline,
                 pipeline_version_id=one.pipeline_version_id)  # fmt: skip
    api.once(pipelines.pipeline_service_delete_pipeline, pipeline_id=pipeline)
