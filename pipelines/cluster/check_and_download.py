"""The first step of a run, on a cluster as on a laptop (by KFP's local runner): check the form's values for all steps,
download, and tell whether the other steps have anything to do.

`check_and_download` is the body of the KFP component; Argo's pod calls the same functions (`argo/download.py`). Where
the other steps have nothing to do, the records of all are written, and no other pod starts but the exit step's:
`changed` is the condition in the KFP package (`dsl.If`) and in Argo's DAG (`when`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from ...components.dataset.workspace import STEPS, Workspace
from ...components.download import STEP
from ...components.step.progress import say
from ...components.step.step import CACHED, RUN_ENV
from ...components.storage.errors import MillError, UserError
from ..parameters import CONFIG, RunParameters, parse_form
from .unchanged import find_cached_records, write_cached_records

CHANGED, UNCHANGED = "true", "false"
"""The values of the output `changed`."""


def check_and_download(
    config: str, artifact: str, run: str, parameters: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Run the first step as the body of a KFP component; return download's record and the output `changed`.

    `config`: the JSON parameter; `parameters`: all other pipeline parameters. Ends the process with the step's exit
    code when it fails.
    """
    run_parameters = check_form(run, {**parameters, CONFIG: config})
    record = STEP.component(config, artifact, run=run, **parameters)
    is_complete = complete_if_unchanged(run_parameters, os.environ.get(RUN_ENV) or run, record)
    return record, UNCHANGED if is_complete else CHANGED


def check_form(run: str, form: Mapping[str, str]) -> RunParameters:
    """Return the parameters of a run from those of its form, checked for every step, before the first one works.

    Writes an error to the record of download, and ends the process with exit code 2.
    """
    try:
        parameters = parse_form(form)
        for step in STEPS:
            parameters.config(step)
        return parameters
    except UserError as error:
        say(STEP.name, f"error: {error}")
        record = {"uri": "", "fingerprint": "", "state": "failed", "metrics": {}, "inputs": "", "seconds": 0}
        with contextlib.suppress(MillError):  # a wrong workspace, or a store that does not answer
            workspace = Workspace.from_uri(form.get("workspace", ""))
            run = os.environ.get(RUN_ENV) or run
            workspace.write_step_record(run, STEP.name, record | {"error": str(error), "exit_code": error.exit_code})
        raise SystemExit(error.exit_code) from None


def complete_if_unchanged(parameters: RunParameters, run: str, record: dict[str, Any]) -> bool:
    """If no step after download has anything to do, write the records of all steps; return whether that is so.

    `record`: that of download.
    """
    try:
        records = find_cached_records(parameters, run, {STEP.name: record}) if record["state"] == CACHED else None
        if records is None:
            return False
        write_cached_records(Workspace.from_uri(record["uri"].rpartition("/raw/")[0]), run, records)
    except MillError as error:  # the steps will fail with it, and record it
        say(STEP.name, f"whether anything has changed can't be told: {error}")
        return False
    say(STEP.name, "nothing has changed since an earlier run: the other steps are left out")
    return True
