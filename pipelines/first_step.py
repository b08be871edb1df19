"""The first step of a run on a cluster: download, and whether anything has changed since an earlier run.

Where nothing has, it writes the records of all steps, and the orchestrator starts no other pod but the exit step's:
`changed` is the condition in the KFP package (`dsl.If`) and in Argo's DAG (`when`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..components.download import STEP
from ..components.store.errors import EXIT_OK, MillError, UserError
from ..components.store.progress import say
from ..components.store.step import CACHED, RUN, quiet_logs, write_outputs
from ..components.store.workspace import Workspace
from .parameters import CONFIG, Chosen, chosen_of_form
from .pod_arguments import parse
from .unchanged import cached_records, write_cached_records

CHANGED, UNCHANGED = "true", "false"
"""The values of the output `changed`."""


def download(config: str, artifact: str, run: str, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Run download as the body of a KFP component; return its record and the output `changed`.

    `config`: the JSON parameter; `parameters`: all other pipeline parameters. Ends the process with the step's exit
    code when it fails.
    """
    run = os.environ.get(RUN) or run
    try:
        chosen = chosen_of_form({**parameters, CONFIG: config})
    except UserError as error:
        refuse(error, str(parameters["workspace"]), run)
        raise SystemExit(error.exit_code) from None
    record = STEP.component(config, artifact, run=run, **parameters)
    return record, changed(chosen, run, record)


def refuse(error: UserError, workspace: str, run: str) -> None:
    """Say what is wrong with a run's parameters, in download's record too: no other step would come to say it."""
    say(STEP.name, f"error: {error}")
    record = {"uri": "", "fingerprint": "", "state": "failed", "metrics": {}, "inputs": "", "seconds": 0}
    record |= {"error": str(error), "exit_code": error.exit_code}
    with suppress(MillError):  # a workspace that can't be one, or can't be reached, has no records
        Workspace.known(workspace).write_step_record(run, STEP.name, record)


def changed(chosen: Chosen, run: str, record: dict[str, Any]) -> str:
    """Return CHANGED if any step after download has something to do, else write all records and return UNCHANGED.

    `record`: that of download.
    """
    try:
        records = cached_records(chosen, run, {STEP.name: record}) if record["state"] == CACHED else None
        if records is None:
            return CHANGED
        write_cached_records(Workspace.known(record["uri"].rpartition("/raw/")[0]), run, records)
    except MillError as error:  # the steps themselves will say what is wrong
        say(STEP.name, f"whether anything has changed can't be told: {error}")
        return CHANGED
    say(STEP.name, "nothing has changed since an earlier run: the other steps are left out")
    return UNCHANGED


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m imagemill.pipelines.first_step`, for Argo; returns the exit code."""
    quiet_logs()
    try:
        arguments = parse("imagemill.pipelines.first_step", STEP.help, (), argv)
    except UserError as error:
        say(STEP.name, f"error: {error}")
        return error.exit_code
    try:
        config = arguments.config(STEP.name)
    except UserError as error:
        refuse(error, arguments.form.get("workspace", ""), arguments.run)
        return error.exit_code
    result = arguments.outputs / "record.json"
    if code := STEP.execute(config, str(result)):
        return code
    record = json.loads(result.read_text(encoding="utf-8"))

    def write() -> None:
        write_outputs(record, arguments.outputs)
        arguments.write("changed", changed(arguments.chosen, arguments.run, record))

    return STEP.hand_over(write) or EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
