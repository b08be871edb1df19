"""Runs that the `kfp` SDK starts from a compiled package, as a program of a user's own would."""

from __future__ import annotations

from typing import Any

from imagemill.pipelines.parameters import resolve_parameters

from .. import kfp
from ..options import SMALL
from ..runs import KFP
from ..session import Trial
from .common import add_after, check_unchanged, source


def _arguments(trial: Trial) -> dict[str, Any]:
    """The small run's, as the pipeline takes them: what is no parameter of it is in `config`."""
    parameters = resolve_parameters({**SMALL, "source": source(trial)}).arguments()
    return {name: value for name, value in parameters.items() if value not in ("", None)}


def _package(trial: Trial) -> str:
    workspace = trial.workspace(trial.engine)
    package = kfp.compile_package(trial, workspace)
    client, experiment = kfp.sdk_client(trial)
    with client as sdk:
        started = sdk.create_run_from_pipeline_package(
            str(package), arguments=_arguments(trial), run_name=trial.name(trial.scenario), experiment_name=experiment
        )
    run = kfp.find_run(trial, str(started.run_id), workspace, trial.deadline).succeed(trial.deadline)
    return f"create_run_from_pipeline_package: {check_unchanged(trial, run)}"


def _recurring(trial: Trial) -> str:
    workspace = trial.workspace(trial.engine)
    package = kfp.compile_package(trial, workspace)
    client, experiment = kfp.sdk_client(trial)
    with client as sdk:
        created = sdk.create_experiment(experiment)
        recurring_run = sdk.create_recurring_run(
            experiment_id=created.experiment_id, job_name=trial.name(trial.scenario), cron_expression="0 * * * * *",
            max_concurrency=1, no_catchup=True, pipeline_package_path=str(package), params=_arguments(trial),
        )  # fmt: skip
    schedule = str(recurring_run.recurring_run_id)

    def delete() -> None:
        with client_again() as sdk:
            sdk.delete_recurring_run(schedule)

    def client_again() -> Any:
        return kfp.sdk_client(trial)[0]

    trial.undo.append((f"recurring run {schedule}", delete))
    started = kfp.wait_for_recurring(trial, experiment, schedule, trial.within(300))
    with client_again() as sdk:
        sdk.disable_recurring_run(schedule)
    run = kfp.find_run(trial, started, workspace, trial.deadline).succeed(trial.deadline)
    return f"create_recurring_run fired as {run.workflow}: {check_unchanged(trial, run)}"


def register() -> None:
    add_after(KFP, "sdk", "a run from the compiled package by kfp.Client", _package)
    add_after(KFP, "sdk-recurring", "a recurring run from the compiled package by kfp.Client", _recurring)
