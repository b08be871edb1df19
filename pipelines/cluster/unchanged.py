"""Recognize a run that has nothing to do: every step's result exists, and so does the gate's verdict.

Each step, in its order and by its own code, looks up its result without making anything (`Step.execute_cached`). So a
fingerprint is computed in one place only, and no list of results can be out of date.
"""

from __future__ import annotations

import dataclasses
import traceback
from typing import Any

from ...components.dataset.workspace import PRODUCTS, STEPS, Workspace
from ...components.step.progress import say
from ...components.step.step import NotCached
from ...components.storage.errors import MillError
from ..parameters import ALL_STEPS, RunParameters

Records = dict[str, dict[str, Any]]
"""The steps' records by name, in the order of the steps."""


def find_cached_records(parameters: RunParameters, run: str, records: Records) -> Records | None:
    """Return the records of a run all of whose results exist; None where a step has something to do.

    `records`: those of the steps that have ended already. A step that can't begin, or whose libraries are not installed
    here, has something to do: it raises its error when it runs. So has one with an unforeseen error, which must not
    end a run that was only checked.
    """
    records = dict(records)
    for step in STEPS[len(records) :]:
        try:
            config = dataclasses.replace(parameters.config(step), run=run, **_build_parents(step, records))
            records[step] = ALL_STEPS[step].execute_cached(config).to_dict()
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
        if record["uri"]:
            say(step, f"there already: {record['uri']}")
    verdict = records["promote"]["metrics"]
    say("promote", f"{verdict['verdict'].replace('_', ' ')}: {verdict['reason']}")


def _build_parents(step: str, records: Records) -> dict[str, str]:
    """Return the config fields of a step whose values come from earlier steps."""
    uris = {kind: records[name]["uri"] for name, kind in PRODUCTS.items() if name in records}
    parents = {kind: uris[kind] for kind in ALL_STEPS[step].config.PARENTS if kind in uris}
    if step != STEPS[0]:
        parents["name"] = records[STEPS[0]]["metrics"]["name"]
    if step == "promote":
        parents["champion_evaluation"] = records["evaluate"]["metrics"]["champion_evaluation"]
    return parents
