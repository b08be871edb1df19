"""What a start from the champion costs and scores, week after week, beside a training from nothing.

    python tests/benchmarks/warm_start.py [--seeds 3] [--weeks 0.9 1.0] [--image-size 64] [--backbone resnet18]
                                          [--variants NAME=FLAGS ...] [--workspace FOLDER] [--json FILE]

Each week has a larger share of the demo's training images, and the same 472 test images, which are those of four demos.
In the first week all variants train from nothing, so those of a seed share that model; later they train with their
flags of `imagemill train`. Each model is promoted, whatever the gate says. Printed are epochs, CPU and elapsed seconds
of a training after the first week (mean), and macro-F1 in the last week (mean ± sd over the seeds), with its difference
to the first variant's. A folder given as workspace keeps everything: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import harder

from imagemill.components import clean, download, evaluate, promote, resize, train
from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.download.demo import draw
from imagemill.components.step.step import Step

VARIANTS = {"from nothing": "", "champion": "--start champion"}


@dataclass(frozen=True)
class Week:
    """A training and what its model scores on the test images."""

    epochs: int
    cpu_seconds: float
    seconds: float
    macro_f1: float
    top1: float


class Chain:
    """The steps on one workspace, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = str(folder / "workspace")

    def run(self, step: Step, name: str, *flags: str) -> dict[str, Any]:
        result = self.folder / "result.json"
        words = ["--workspace", self.workspace, "--name", name, "--result", str(result), *flags]
        if step.main(words):
            sys.exit(f"{step.name} failed")
        record: dict[str, Any] = json.loads(result.read_text())
        return record

    def make_tensors(self, share: float, image_size: int) -> tuple[str, str]:
        """Return the URIs of the clean dataset and the tensors of a week."""
        table = self._write_table(share)
        raw = self.run(download.STEP, "demo", "--dataset", "csv", "--source", str(table))["uri"]
        cleaned = self.run(clean.STEP, "demo", "--raw", raw)["uri"]
        size = ["--image-size", str(image_size)]
        return cleaned, self.run(resize.STEP, "demo", "--clean", cleaned, *size)["uri"]

    def _write_table(self, share: float) -> Path:
        """Write the table of a week: the training images up to `share` of an order of their own, and all others."""
        source = self.folder / "demo"
        if not (source / harder.TABLE).exists():
            harder.write(source)
            for number, planned in harder.sound_pictures(4, 0):
                path = source / f"test/{planned.label}/{number}-{Path(planned.path).stem}.jpg"
                draw(number, planned)[0].save(path, quality=90)
        with (source / harder.TABLE).open(newline="") as file:
            header, *rows = csv.reader(file)
        order = np.random.default_rng(0).random(len(rows))
        kept = [row for row, place in zip(rows, order, strict=True) if row[2] != "train" or place < share]
        table = source / f"week-{share:g}.csv"
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([header, *kept])
        return table

    def train_week(self, name: str, cleaned: str, tensors: str, flags: list[str]) -> Week:
        """Train, evaluate and promote. A model that was there already has the times of its training."""
        started, cpu = time.monotonic(), time.process_time()
        record = self.run(train.STEP, name, "--tensors", tensors, "--tensorboard", "false", *flags)
        times = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
        file = Path(record["uri"]) / "_work" / "times.json"
        if record["state"] == "ran":
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(times))
        model = ["--model", record["uri"], "--clean", cleaned, "--review", "false", "--tta", "none"]
        evaluation = self.run(evaluate.STEP, name, *model)
        self.run(promote.STEP, name, "--evaluation", evaluation["uri"], "--promote", "always")
        scores, epochs = evaluation["metrics"], read_dataset(record["uri"]).manifest.extra.epochs
        return Week(epochs, macro_f1=scores["macro_f1"], top1=scores["top1"], **json.loads(file.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weeks", type=float, nargs="+", default=[0.9, 1.0])
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--variants", nargs="+", default=[f"{key}={value}" for key, value in VARIANTS.items()])
    parser.add_argument("--workspace", default="")
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    variants = {name: flags.split() for name, _, flags in (pair.partition("=") for pair in given.variants)}
    table: dict[str, list[list[Week]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        chain = Chain(Path(given.workspace or scratch).absolute())
        weeks = [chain.make_tensors(share, given.image_size) for share in given.weeks]
        for seed in range(given.seeds):
            for variant, flags in variants.items():
                name = f"{''.join(c if c.isalnum() else '-' for c in variant)}-{seed}"
                shared = ["--backbone", given.backbone, "--seed", str(seed)]
                results = [chain.train_week(name, *weeks[0], shared)]
                results += [chain.train_week(name, *uris, [*shared, *flags]) for uris in weeks[1:]]
                table[variant].append(results)
                print(f"seed {seed} {variant}: {table[variant][-1][1:]}", flush=True)
    print(format_table(table))
    if given.json:
        rows = {variant: [[asdict(week) for week in weeks] for weeks in seeds] for variant, seeds in table.items()}
        Path(given.json).write_text(json.dumps(vars(given) | {"weeks": rows}, indent=1) + "\n")


def format_table(table: dict[str, list[list[Week]]]) -> str:
    """Return the results as Markdown."""
    lines = ["| variant | epochs | CPU s | elapsed s | macro-F1 | difference by seed |", "|---|---|---|---|---|---|"]
    (_, first), *_ = table.items()
    for variant, seeds in table.items():
        later = [week for weeks in seeds for week in weeks[1:]]
        means = [statistics.mean(getattr(week, key) for week in later) for key in ("epochs", "cpu_seconds", "seconds")]
        last = [weeks[-1].macro_f1 for weeks in seeds]
        gains = [weeks[-1].macro_f1 - other[-1].macro_f1 for weeks, other in zip(seeds, first, strict=True)]
        costs = " | ".join(f"{value:.0f}" for value in means)
        lines.append(f"| {variant} | {costs} | {_format_spread(last)} | {_format_spread(gains, '+')} |")
    return "\n".join(lines)


def _format_spread(values: list[float], sign: str = "") -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.3f}{spread}"


if __name__ == "__main__":
    main()
