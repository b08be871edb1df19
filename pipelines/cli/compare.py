"""`imagemill compare`: is one configuration better than another, by how much, and at what cost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from ...components.step.command_line import parse_count, require_modules
from ...components.storage.errors import EXIT_OK
from ..steps import list_required_modules
from .runs import align_columns

HELP = "two configurations, trained with several seeds or folds: which one is better, by how much, and at what cost"
MAX_SEEDS = 100
_DESCRIPTION = (
    "Train both configurations with each seed and compare them on the same test images, image by image. Steps whose "
    "configuration is the same are done once, and nothing is done again that exists. No champion is made or changed."
)


def add_command(commands: Any, add_parameters: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the command, its arguments and the parameters that both configurations get."""
    parser: argparse.ArgumentParser = commands.add_parser("compare", help=HELP, description=_DESCRIPTION)
    parser.add_argument("first", metavar="A.yaml", help="parameters of the first configuration, or JSON ({…})")
    parser.add_argument("second", metavar="B.yaml", help="those of the second")
    parser.add_argument(
        "--seeds", metavar="N", help="trainings of each, with seeds from --seed on (default: 5; 1 with --folds)"
    )
    parser.add_argument(
        "--folds", metavar="N", help="cross-validate: N trainings for each seed, in which every image is a test image "
        "once (default: one training for each seed, on the splits as they are)"
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON, last on stdout")
    add_parameters(parser)
    parser.usage = "%(prog)s A.yaml B.yaml [--seeds N] [--folds N] [--json] [--<parameter> VALUE ...]"


def run(flags: dict[str, Any]) -> int:
    """Run the command with its parsed flags; return the exit code."""
    as_json, folds = flags.pop("json"), flags.pop("folds")
    num_folds = 0 if folds is None else parse_folds(folds)
    seeds = parse_seeds(flags.pop("seeds") or ("1" if num_folds else "5"), 1)
    sources = flags.pop("first"), flags.pop("second")
    require_modules("compare", list_required_modules())
    from ..experiments.compare import compare
    from ..experiments.trials import Configuration

    given = {name: value for name, value in flags.items() if value is not None}
    first, second = (Configuration.read(source, given) for source in sources)
    result = compare(first, second, seeds, num_folds)
    print(json.dumps(result, ensure_ascii=False) if as_json else format_result(result))
    return EXIT_OK


def parse_seeds(text: str, lowest: int) -> int:
    """Return the number of `--seeds`; UserError for another text."""
    return parse_count("--seeds", text, f"a whole number from {lowest} to {MAX_SEEDS}", low=lowest, high=MAX_SEEDS)


def parse_folds(text: str) -> int:
    """Return the number of `--folds`; UserError for another text."""
    from ...components.clean.config import MAX_FOLDS

    return parse_count("--folds", text, f"a whole number from 2 to {MAX_FOLDS}", low=2, high=MAX_FOLDS)


def format_result(result: dict[str, Any]) -> str:
    """Return the table of scores, costs and differing parameters, and the verdict."""
    from ...components.report.experiments import list_costs, list_scores

    sides = result["configurations"]
    seeds = len(result["seeds"])
    title = f"{result['name']}: {result['images']:,} test images, {seeds} seed{'s' if seeds > 1 else ''}"
    title += f", {result['folds']} folds" if result["folds"] else ""
    rows: list[tuple[str, ...]] = [(title, f"A: {sides['A']['config']}", f"B: {sides['B']['config']}", "B less A")]
    rows += [*list_scores(result), *list_costs(result)]
    lines = ["", align_columns([tuple(cell if len(cell) <= 60 else f"{cell[:59]}…" for cell in row) for row in rows])]
    if differing := [f"{row['name']} ({row['A']} | {row['B']})" for row in result["parameters"]]:
        lines += ["", f"They differ in {', '.join(differing)}."]
    lines += ["", f"{result['reason']}.", f"report {result['report']}"]
    return "\n".join(lines)
