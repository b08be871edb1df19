"""`imagemill tune`: search for better training parameters."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from ...components.step.command_line import parse_count, require_modules
from ...components.storage.errors import EXIT_OK
from ..steps import list_required_modules
from .compare import parse_seeds
from .runs import align_columns

HELP = "search for training parameters that do better than a configuration, by the validation images"
MAX_TRIALS = 10_000
SHOWN = 10
"""Trials in the terminal's table; the report has all."""
_DESCRIPTION = (
    "Train a base configuration, then trials with other values of recipe, learning rate, augmentation policy, MixUp, "
    "and CutMix, or of your own search space; write the best one to a file. A second call continues."
)


def add_command(commands: Any, add_parameters: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the command, its flags and the parameters of the base."""
    parser: argparse.ArgumentParser = commands.add_parser("tune", help=HELP, description=_DESCRIPTION)
    parser.add_argument("base", metavar="BASE.yaml", nargs="?", default="{}", help="parameters of the base, or JSON")
    parser.add_argument("--space", default="", metavar="FILE.yaml", help="the search space (default: one is built in)")
    parser.add_argument(
        "--trials", default="20", metavar="N", help="trials beside the base, all calls together (default: 20)"
    )
    parser.add_argument(
        "--seeds", default="3", metavar="N", help="new seeds with which base and best values are compared (default: 3)"
    )
    parser.add_argument(
        "--pruner", metavar="PRUNER", choices=("median", "asha", "none"), default="median",
        help="what ends a trial that falls behind [median, asha, none] (default: median)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="FILE.yaml", default="tuned.yaml",
        help="the best configuration, as `imagemill run --config` takes it (default: tuned.yaml)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON, last on stdout")
    add_parameters(parser)
    parser.usage = "%(prog)s [BASE.yaml] [--<option> VALUE ...] [--<parameter> VALUE ...]"


def run(flags: dict[str, Any]) -> int:
    """Run the command with its parsed flags; return the exit code."""
    as_json, source, space_file = flags.pop("json"), flags.pop("base"), flags.pop("space")
    expected = f"a whole number from 1 to {MAX_TRIALS}"
    trials = parse_count("--trials", flags.pop("trials"), expected, low=1, high=MAX_TRIALS)
    seeds = parse_seeds(flags.pop("seeds"), 2)  # one does not show how much seeds differ
    pruner, output = flags.pop("pruner"), flags.pop("output")
    require_modules("tune", ["optuna"])
    from ..experiments.search_space import SearchSpace
    from ..experiments.trials import Configuration

    base = Configuration.read(source, {name: value for name, value in flags.items() if value is not None})
    space = SearchSpace.read(space_file, base)
    require_modules("run", list_required_modules())
    from ..experiments.search import SearchOptions, tune

    result = tune(base, space, SearchOptions(trials, seeds, pruner, output))
    print(json.dumps(result, ensure_ascii=False) if as_json else format_result(result))
    return EXIT_OK


def format_result(result: dict[str, Any]) -> str:
    """Return the table of the best trials, and the verdict."""
    from ...components.report.experiments import list_trials

    rows = list_trials(result)
    head = ("trial", "state", "validation", "time", "values")
    lines = ["", align_columns([head, *rows[:SHOWN]])]
    if len(rows) > SHOWN:
        lines.append(f"and {len(rows) - SHOWN} more, in the report")
    if note := result["trials"][result["best"]]["note"]:
        lines += ["", f"trial {result['best']}: {note}"]
    lines += ["", f"{result['reason']}.", f"config {result['config']}", f"report {result['report']}"]
    return "\n".join(lines)
