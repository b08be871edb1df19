"""`imagemill tune`: search for better training parameters."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...components.step.command_line import parse_count, require_modules
from ...components.storage.errors import EXIT_OK, wrong
from ..parameters import ALL_STEPS
from .compare import parse_seeds
from .runs import align_columns

HELP = "search for training parameters that do better than a configuration, by the validation images"
MAX_TRIALS = 10_000
PARALLELISM = 2
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
        "--pruner", metavar="PRUNER", choices=("median", "asha", "none"),
        help="what ends a trial that falls behind [median, asha, none] (default: median, with --target asha)",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="FILE.yaml",
        help="the best configuration, as `imagemill run --config` takes it (default: tuned.yaml); with --target the "
        "package (default: tuning.yaml)",
    )  # fmt: skip
    parser.add_argument(
        "--target", metavar="TARGET", choices=("kfp", "argo"),
        help="search nothing here, and write the search as a package for a cluster [kfp, argo]",
    )  # fmt: skip
    parser.add_argument(
        "--cluster", default="", metavar="FILE.yaml", help="with --target: how the cluster is used (see `imagemill "
        "cluster`)"
    )  # fmt: skip
    parser.add_argument(
        "--parallelism", metavar="N", help=f"with --target: trials at a time, each in a pod (default: {PARALLELISM})"
    )
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
    target, cluster, parallelism = flags.pop("target"), flags.pop("cluster"), flags.pop("parallelism")
    for flag, value in (("--cluster", cluster), ("--parallelism", parallelism)):
        if value and not target:
            raise wrong(flag, "nothing without --target", value)
    require_modules("tune", ["optuna"])
    from ..experiments.search_space import SearchSpace
    from ..experiments.trials import Configuration

    base = Configuration.read(source, {name: value for name, value in flags.items() if value is not None})
    space = SearchSpace.read(space_file, base)
    if target:
        require_modules("compile", ["kfp" if target == "kfp" else "hera"])
        from ..tuning.compile import compile_search
        from ..tuning.package import SearchPackage

        at_a_time = parse_count("--parallelism", parallelism or str(PARALLELISM), expected, low=1, high=MAX_TRIALS)
        package = SearchPackage(base.parameters, trials, seeds, "", pruner or "asha", at_a_time)
        compile_search(target, space, package, Path(output or "tuning.yaml"), cluster)
        print(f"wrote {output or 'tuning.yaml'}")
        return EXIT_OK
    require_modules("run", [module for step in ALL_STEPS.values() for module in step.needs])
    from ..tuning.search import SearchOptions, tune

    options = SearchOptions(trials, seeds, pruner or "median", output or "tuned.yaml")
    result = tune(base, space, options)
    print(json.dumps(result, ensure_ascii=False) if as_json else format_result(result))
    return EXIT_OK


def format_result(result: dict[str, Any]) -> str:
    """Return the table of the best trials, and the verdict."""
    from ..experiments.report import list_trials

    rows = list_trials(result)
    head = ("trial", "state", "validation", "time", "values")
    lines = ["", align_columns([head, *rows[:SHOWN]])]
    if len(rows) > SHOWN:
        lines.append(f"and {len(rows) - SHOWN} more, in the report")
    best = next(trial for trial in result["trials"] if trial["number"] == result["best"])
    if best["note"]:
        lines += ["", f"trial {result['best']}: {best['note']}"]
    lines += ["", f"{result['reason']}.", f"config {result['config']}", f"report {result['report']}"]
    return "\n".join(lines)
