"""`imagemill gc`: list what no kept dataset of a workspace lists or needs, and remove it with `--delete`."""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...components.dataset.manifest import KINDS
from ...components.dataset.workspace import MARKER, PRODUCTS, Workspace
from ...components.report.terminal import escape_unprintable
from ...components.step.command_line import add_workspace_flag, parse_count
from ...components.step.progress import Progress, format_duration, format_size
from ...components.storage.errors import EXIT_OK, wrong
from .runs import align_columns

if TYPE_CHECKING:
    from ...components.dataset.garbage import Garbage
    from ...components.dataset.retention import StoredDataset

HELP = "the files of a workspace that nothing kept refers to: list them, or delete them"
DESCRIPTION = (
    "List what no kept dataset refers to. Kept are the latest dataset of each name and kind, the last ones of each "
    "(--keep-last), champions, what these were made from, what is young (--min-age), and what steps that run may use. "
    "Nothing is deleted without --delete. Runs may go on meanwhile; a step that begins while it deletes waits. "
    "What is deleted is made again by a run that needs it."
)
MAX_UNKNOWN = 10
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}
Json = dict[str, Any]


def add_command(commands: Any) -> None:
    """Add the command and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser("gc", help=HELP, description=DESCRIPTION)
    add_workspace_flag(parser)
    parser.add_argument("--delete", action="store_true", help="delete it (default: only list it)")
    parser.add_argument(
        "--keep-last",
        default="3",
        metavar="N",
        help="datasets of each name and kind that stay, the newest (default: 3)",
    )
    parser.add_argument(
        "--min-age", default="1d", metavar="AGE",
        help="what was written less than this ago stays: 90m, 36h, 7d, or 0 where no run goes on (default: 1d)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(flags: dict[str, Any]) -> int:
    """Run the command with its parsed flags; return the exit code."""
    keep_last = parse_count("--keep-last", flags["keep_last"], "a whole number of at least 1", low=1)
    min_age_s = parse_age(flags["min_age"])
    workspace = Workspace.from_uri(flags["workspace"])
    if workspace.store.stat(workspace.at(MARKER)) is None:
        raise wrong("--workspace", f"a workspace (a place with {MARKER})", flags["workspace"])
    from ...components.dataset.garbage import find_garbage
    from ...components.dataset.leases import DeleteLease
    from ...components.dataset.retention import Policy

    policy, listed = Policy(keep_last, min_age_s), Progress("gc", "objects listed")
    if flags["delete"]:
        with DeleteLease(workspace) as lease:
            garbage = find_garbage(workspace, policy, listed.add)
            deleted = Progress("gc", "objects deleted", garbage.going.files)
            garbage.delete(workspace, lease, deleted.add)
    else:
        garbage = find_garbage(workspace, policy, listed.add)
    facts = describe_garbage(garbage, workspace, flags["delete"])
    print(json.dumps(facts, ensure_ascii=False) if flags["json"] else format_garbage(facts))
    return EXIT_OK


def parse_age(text: str) -> float:
    """Return an age such as `36h` in seconds."""
    match = re.fullmatch(r"([0-9]{1,6})([mhd])", text)
    if text != "0" and match is None:
        raise wrong("--min-age", "a number of minutes, hours or days such as 90m, 36h or 7d, or 0", text)
    return float(match[1]) * _SECONDS[match[2]] if match else 0.0


def describe_garbage(garbage: Garbage, workspace: Workspace, is_deleted: bool) -> Json:
    """Return the facts that are printed: datasets by kind, name and time, and behind them files of no dataset."""
    kinds = [*KINDS, ""]
    kept = [
        _identify(dataset) | {"bytes": dataset.bytes, "why": garbage.retention.reasons[path]}
        for path, dataset in garbage.retention.datasets.items() if path in garbage.retention.reasons
    ]  # fmt: skip
    goes = [
        _identify(group.dataset) | {"path": group.path, "why": group.why} | asdict(group.tally)
        for group in garbage.groups
    ]
    for entries in (kept, goes):
        entries.sort(key=lambda entry: (kinds.index(entry["kind"]), entry["name"], entry["created"]))
    now = time.time()
    return {
        "workspace": workspace.uri,
        "deleted": is_deleted,
        "kept": kept,
        "goes": goes,
        "running": [
            {"run": step.run, "step": step.step, "renewed_s_ago": round(max(0, now - step.renewed))}
            for step in garbage.running
        ],
        "unknown_files": garbage.unknown_files,
        "totals": {
            "kept": asdict(garbage.kept), "young": asdict(garbage.young), "unknown": asdict(garbage.unknown),
            "goes": asdict(garbage.going),
        },
    }  # fmt: skip


def _identify(dataset: StoredDataset | None) -> Json:
    return {name: getattr(dataset, name, "") for name in ("kind", "name", "fingerprint", "created")}


def format_garbage(facts: Json) -> str:
    """Return the text: a line for each dataset and group of files, and totals."""
    kept = [_format_entry(entry | {"why": "; ".join(entry["why"])}) for entry in facts["kept"]]
    goes = [_format_entry(entry) for entry in facts["goes"]]
    lines = [facts["workspace"], "", "kept:", *(_indent(kept) if kept else ["  no dataset"]), ""]
    lines += ["deleted:" if facts["deleted"] else "would go:", *(_indent(goes) if goes else ["  nothing"])]
    for step in facts["running"]:
        kind, age = PRODUCTS.get(step["step"], ""), format_duration(step["renewed_s_ago"])
        stays = f"what is in {kind} stays" if kind else "what it uses stays"
        lines += ["", f"{step['step']} of {step['run']} is running (last sign of life {age} ago): {stays}"]
    if unknown := facts["unknown_files"]:
        more = facts["totals"]["unknown"]["files"] - len(unknown[:MAX_UNKNOWN])
        names = [escape_unprintable(path) for path in unknown[:MAX_UNKNOWN]] + ([f"and {more:,} more"] if more else [])
        lines += ["", "unknown, left as they are:", *(f"  {name}" for name in names)]
    return "\n".join([*lines, "", *_format_totals(facts)])


def _format_entry(entry: Json) -> tuple[str, ...]:
    size, files = format_size(entry["bytes"]), f"{entry['files']:,} files" if "files" in entry else ""
    if not entry["kind"]:
        return entry["path"], "", "", "", size, files, entry["why"]
    name = escape_unprintable(entry["name"]) or "-"
    return entry["kind"], name, entry["fingerprint"], entry["created"][:10], size, files, entry["why"]


def _indent(rows: list[tuple[str, ...]]) -> list[str]:
    return [f"  {line}" for line in align_columns(rows).split("\n")]


def _format_totals(facts: Json) -> list[str]:
    totals = facts["totals"]

    def amount(name: str) -> str:
        return f"{format_size(totals[name]['bytes'])} in {totals[name]['files']:,} files"

    rest = f"kept {amount('kept')} · young or in use {amount('young')}"
    rest += f" · unknown {amount('unknown')}" if totals["unknown"]["files"] else ""
    if facts["deleted"]:
        return [rest, f"deleted {amount('goes')}"]
    return [rest, f"would delete {amount('goes')}{' (--delete does it)' if totals['goes']['files'] else ''}"]
