"""Whether a run has anything to do, asked before it works: the form's values are checked for all steps, and each step
looks up its result without making anything.

On a cluster the first pod asks once download has ended: where no other step has anything to do, it writes the records
of all, and no other pod starts but the exit step's. `changed` is the condition in the KFP package (`dsl.If`) and in
Argo's DAG (`when`). Each step, in its order and by its own code, looks up its result (`Step.execute_cached`): so a
fingerprint is computed in one place only, and no list of results can be out of date.
"""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Mapping

from ...components.dataset.records import StepRecord
from ...components.dataset.workspace import STEPS, Workspace
from ...components.download import STEP
from ...components.step.progress import say
from ...components.step.step import CACHED, NotCached
from ...components.storage.errors import MillError, UserError
from ..parameters import RunParameters, parse_form
from ..steps import PIPELINE, Records, select_inputs

CHANGED, UNCHANGED = "true", "false"
"""The values of the output `changed`."""


def check_form(run: str, form: Mapping[str, str]) -> RunParameters:
    """Return the parameters of a run from those of its form, checked for every step, before the first one works.

    Writes an error to the record of download, and raises it.
    """
    try:
        parameters = parse_form(form)
        for step in STEPS:
            parameters.config(step)
        return parameters
    except UserError as error:
        record = StepRecord(error=str(error), exit_code=error.exit_code)
        with contextlib.suppress(MillError):  # a wrong workspace, or a store that does not answer
            workspace = Workspace.from_uri(form.get("workspace", ""))
            workspace.write_step_record(run, STEP.name, record)
        raise


def complete_if_unchanged(parameters: RunParameters, run: str, record: StepRecord) -> bool:
    """If no step after download has anything to do, write the records of all steps; return whether that is so.

    `record`: that of download.
    """
    try:
        records = find_cached_records(parameters, run, {STEP.name: record}) if record.state == CACHED else None
        if records is None:
            return False
        write_cached_records(Workspace.from_uri(record.uri.rpartition("/raw/")[0]), run, records)
    except MillError as error:  # the steps will fail with it, and record it
        say(STEP.name, f"whether anything has changed can't be told: {error}")
        return False
    say(STEP.name, "nothing has changed since an earlier run: the other steps are left out")
    return True


def find_cached_records(parameters: RunParameters, run: str, records: Records) -> Records | None:
    """Return the records of a run all of whose results exist; None where a step has something to do.

    `records`: those of the steps that have ended already. A step that can't begin, or whose libraries are not installed
    here, has something to do: it raises its error when it runs. So has one with an unforeseen error, which must not
    end a run that was only checked.
    """
    records = dict(records)
    for step in STEPS[len(records) :]:
        try:
            config = dataclasses.replace(parameters.config(step), run=run, **select_inputs(step, records))
            records[step] = PIPELINE[step].step.execute_cached(config)
        except (NotCached, MillError, ImportError):
            return None
        except Exception:
            traceback.print_exc()
            return None
    return records


def write_cached_records(workspace: Workspace, run: str, records: Records) -> None:
    """Write the records as the steps would have written them, and print what exists."""
    for step, record in records.items():
        workspace.write_step_record(run, step, record)
        if record.uri:
            say(step, f"there already: {record.uri}")
    verdict = records["promote"].metrics
    say("promote", verdict["reason"])
