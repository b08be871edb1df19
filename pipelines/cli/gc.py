"""`imagemill gc`: list what no kept dataset of a workspace lists, and remove it with `--delete`."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...components.dataset.manifest import KINDS, Dataset
from ...components.dataset.workspace import MARKER, Workspace
from ...components.report.terminal import escape_unprintable
from ...components.step.command_line import add_workspace_flag
from ...components.step.progress import Progress, format_size
from ...components.storage.errors import EXIT_OK, wrong
from .runs import align_columns

if TYPE_CHECKING:
    from ...components.dataset.garbage import Garbage, Tally

HELP = "the files of a workspace that nothing kept refers to: list them, or delete them"
DESCRIPTION = (
    "List what no kept dataset lists. Kept are the latest dataset of each name and kind, champions, what these were "
    "made from, and what is younger than the longest run may last (--min-age). Nothing is deleted without --delete. "
    "Runs may go on meanwhile. What is deleted is made again by a run that needs it."
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
        "--min-age", default="7d", metavar="AGE",
        help="what was written less than this ago stays: 90m, 36h, 30d, or 0 where no run goes on (default: 7d)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(flags: dict[str, Any]) -> int:
    """Run the command with its parsed flags; return the exit code."""
    min_age_s = parse_age(flags["min_age"])
    workspace = Workspace.from_uri(flags["workspace"])
    if workspace.store.stat(workspace.at(MARKER)) is None:
        raise wrong("--workspace", f"a workspace (a place with {MARKER})", flags["workspace"])
    from ...components.dataset.garbage import find_garbage

    garbage = find_garbage(workspace, min_age_s, Progress("gc", "objects listed").add)
    if flags["delete"]:
        total = sum(tally.files for tally in garbage.going.values())
        garbage.delete(workspace, Progress("gc", "objects deleted", total).add)
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
    from ...components.dataset.garbage import count_newer

    newer = count_newer(garbage.datasets)

    def explain(path: str) -> str:
        if path in garbage.reasons:
            return "left over from work that is finished"
        if dataset := garbage.datasets.get(path):
            return f"{newer[path]:,} newer of {dataset.manifest.extra.dataset_name or 'no name'}"
        return "no kept dataset lists it"

    kept = [
        _identify(garbage.datasets[path]) | {"bytes": garbage.datasets[path].count_bytes(), "why": why}
        for path, why in garbage.reasons.items()
    ]
    goes = [
        _identify(garbage.datasets.get(path)) | {"path": path, "why": explain(path)} | asdict(tally)
        for path, tally in garbage.going.items()
    ]
    for entries in (kept, goes):
        entries.sort(key=lambda entry: ([*KINDS, ""].index(entry["kind"]), entry["name"], entry["created"]))
    return {
        "workspace": workspace.uri,
        "deleted": is_deleted,
        "kept": kept,
        "goes": goes,
        "unknown_files": garbage.unknown_files,
        "totals": {
            "kept": asdict(garbage.kept), "young": asdict(garbage.young), "unknown": asdict(garbage.unknown),
            "goes": _sum_tallies(list(garbage.going.values())),
        },
    }  # fmt: skip


def _sum_tallies(tallies: list[Tally]) -> Json:
    return {"files": sum(tally.files for tally in tallies), "bytes": sum(tally.bytes for tally in tallies)}


def _identify(dataset: Dataset | None) -> Json:
    if dataset is None:
        return dict.fromkeys(("kind", "name", "fingerprint", "created"), "")
    manifest = dataset.manifest
    kind, fingerprint = dataset.uri.split("/")[-2:]  # its place counts, not what the manifest says of itself
    return {"kind": kind, "name": manifest.extra.dataset_name, "fingerprint": fingerprint, "created": manifest.created}


def format_garbage(facts: Json) -> str:
    """Return the text: a line for each dataset and group of files, and totals."""
    kept = [_format_entry(entry | {"why": "; ".join(entry["why"])}) for entry in facts["kept"]]
    goes = [_format_entry(entry) for entry in facts["goes"]]
    lines = [facts["workspace"], "", "kept:", *(_indent(kept) if kept else ["  no dataset"]), ""]
    lines += ["deleted:" if facts["deleted"] else "would go:", *(_indent(goes) if goes else ["  nothing"])]
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

    rest = f"kept {amount('kept')} · young {amount('young')}"
    rest += f" · unknown {amount('unknown')}" if totals["unknown"]["files"] else ""
    if facts["deleted"]:
        return [rest, f"deleted {amount('goes')}"]
    return [rest, f"would delete {amount('goes')}{' (--delete does it)' if totals['goes']['files'] else ''}"]
