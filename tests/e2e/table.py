"""Table of what passed, failed or was skipped and why, also as JSON."""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .scenario import FAILED, PASSED, SKIPPED, Row

MARKS = {PASSED: "pass", FAILED: "FAIL", SKIPPED: "skip"}
_HEAD = ("scenario", "", "seconds", "what there is to say")


def render(rows: Sequence[Row], seconds: float, width: int = 0) -> str:
    """Lines for a terminal of `width` columns (0: the one there is); notes are folded, never cut.

    `seconds`: of the whole session, in which scenarios run at the same time.
    """
    if not rows:
        return "nothing was tried\n"
    columns = width or shutil.get_terminal_size((120, 24)).columns
    name = max(len(_HEAD[0]), *(len(row.name) for row in rows))
    left = f"{{:<{name}}}  {{:<4}}  {{:>7}}  "
    indent = len(left.format("", "", ""))
    room = max(30, columns - indent)
    lines = [left.format(*_HEAD[:3]) + _HEAD[3], "-" * min(columns, indent + room)]
    for row in rows:
        note = textwrap.wrap(_note(row), room, break_on_hyphens=False) or [""]
        lines.append(left.format(row.name, MARKS[row.outcome], f"{row.seconds:.1f}") + note[0])
        lines += [" " * indent + more for more in note[1:]]
    lines += ["", summary(rows, seconds)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _note(row: Row) -> str:
    return " ".join(filter(None, [row.note, f"(see {row.saved})" if row.saved else ""]))


def summary(rows: Sequence[Row], seconds: float) -> str:
    counts = {outcome: sum(row.outcome == outcome for row in rows) for outcome in MARKS}
    counted = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    minutes, seconds = divmod(round(seconds), 60)
    return f"{counted} in {minutes} min {seconds} s"


def exit_code(rows: Sequence[Row]) -> int:
    """0 only if something passed and nothing failed: a run that skipped everything has shown nothing."""
    outcomes = [row.outcome for row in rows]
    return int(FAILED in outcomes or PASSED not in outcomes)


def write_json(path: Path, rows: Sequence[Row], context: Mapping[str, Any]) -> None:
    """Write the table as JSON; `context` says where and with which options it was run."""
    content = {**context, "exit_code": exit_code(rows), "scenarios": [dataclasses.asdict(row) for row in rows]}
    for scenario in content["scenarios"]:
        scenario["seconds"] = round(scenario["seconds"], 1)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
