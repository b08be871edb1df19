"""What a recipe is worth: `standard` against `plain` on a demo test split that is harder than what was trained on.

    python tests/benchmarks/recipes.py [--seeds 5] [--epochs 30] [--image-size 96] [--recipes plain standard]
                                       [--backbone resnet18] [--workspace FOLDER] [--json FILE] [--set name=value ...]

Both learn from the demo's training split as it is, and are evaluated by the real command on 472 test images that are
turned, in other colors and partly covered (tests/harder.py). Everything but the recipe is the same: network, images,
epochs, batch size, seeds. Printed are macro-F1 of each seed, mean ± sd of each recipe, and of the difference by seed;
the bar is 5 points. A folder given as workspace keeps everything: the same command goes on where it was stopped, and
more seeds add to it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import harder
import mill

BAR = 0.05


def measure(folder: Path, recipe: str, seed: int, arguments: list[str]) -> dict[str, float]:
    """The metrics of one run, with `seconds` of training (0 where it was there already)."""
    result = mill.run(
        *["run", "--json", "--dataset", "csv", "--source", str(folder / "harder" / harder.TABLE), "--name", "harder"],
        *["--workspace", str(folder / "workspace"), "--recipe", recipe, "--seed", str(seed)],
        *["--promote", "never", "--review", "false", *arguments],
        timeout=8 * 3600,
    )
    if result.rc:
        sys.exit(result.stderr)
    step = result.json["steps"]["train"]
    return result.json["metrics"] | {"seconds": step["seconds"] if step["state"] == "ran" else 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--recipes", nargs="+", default=["plain", "standard"])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="more parameters, for all")
    parser.add_argument("--workspace", default="")
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    arguments = ["--epochs", str(given.epochs), "--image-size", str(given.image_size), "--backbone", given.backbone]
    for pair in given.set:
        name, _, value = pair.partition("=")
        arguments += [f"--{name.replace('_', '-')}", value]
    table: dict[str, list[float]] = {recipe: [] for recipe in given.recipes}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.workspace or scratch).absolute()
        if not (folder / "harder" / harder.TABLE).exists():
            print(f"{harder.write(folder / 'harder')} test images made harder", flush=True)
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            for recipe in given.recipes:
                found = measure(folder, recipe, seed, arguments)
                table[recipe].append(found["macro_f1"])
                took = f"trained in {found['seconds']:.0f} s" if found["seconds"] else "cached"
                print(
                    f"seed {seed} {recipe:>10}: macro-F1 {found['macro_f1']:.4f} · top-1 {found['top1']:.4f} · {took}",
                    flush=True,
                )
    for recipe, values in table.items():
        print(f"{recipe:>10}: macro-F1 {_spread(values)} over {len(values)} seeds")
    if {"plain", "standard"} <= set(table):
        gains = [new - old for new, old in zip(table["standard"], table["plain"], strict=True)]
        passed = statistics.mean(gains) >= BAR
        print(f"standard - plain: {_spread(gains)} · {'at least' if passed else 'less than'} {BAR:g}")
    if given.json:
        Path(given.json).write_text(json.dumps(vars(given) | {"macro_f1": table}, indent=1) + "\n")


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
