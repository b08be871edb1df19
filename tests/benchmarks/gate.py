"""Error rates and power of the promotion gate, simulated on models whose true scores are known.

    python tests/benchmarks/gate.py [one] [year] [classes] [--samples 100] [--seed 0] [--json FILE]

`one`: a single comparison, the first on its test images: how often a challenger passes that is equal (in every class,
or in the mean while classes differ), a point worse, two points better (and at the 10th and 52nd comparison), and how
often the interval of the gain contains the true one. `year`: 52 equal challengers one after the other, by the gate's
rule and by others. `classes`: how often a class's fall stops a challenger. Standard error of a cell with 100
samples: 0.02 at 5%, 0.01 at 1%. A minute and a half on one core; README.md has the tables of 1,000 samples.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from simulated import Floats, Ids, Models, equal_counts, labels_of, pair_of, true_scores, zipf_counts

from imagemill.components.promote.gate import compute_p_value, describe_recall_drops
from imagemill.components.promote.score_difference import ScoreDifference, compute_difference, compute_level

LEVEL, MIN_GAIN, WEEKS = 0.05, 0.005, 52
SHAPES: dict[str, Ids] = {
    "118 images, 6 classes": equal_counts(6, 118),
    "118 images, 37 classes": equal_counts(37, 118),
    "400 images, 6 classes": equal_counts(6, 400),
    "400 images, 37 classes, Zipf": zipf_counts(37, 400),
    "3669 images, 37 classes": equal_counts(37, 3669),
    "3669 images, 37 classes, Zipf": zipf_counts(37, 3669),
    "30 classes of 100, 7 of 2": np.r_[np.full(30, 100), np.full(7, 2)],
}
MODELS = ((0.05, 0.5), (0.1, 0.3), (0.1, 0.7), (0.2, 0.5))
"""Error and agreement."""
YEARS = (
    ("118 images, 6 classes", 0.05),
    ("118 images, 6 classes", 0.15),
    ("400 images, 6 classes", 0.05),
    ("400 images, 37 classes, Zipf", 0.1),
    ("3669 images, 37 classes", 0.1),
)


def head(*names: str) -> None:
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")


def compare(counts: Ids, champion: Ids, challenger: Ids, metric: str = "macro_f1") -> ScoreDifference:
    return compute_difference(pair_of(labels_of(counts), champion, challenger, len(counts)), metric)


def unequal_classes(counts: Ids, error: Floats, agreement: float, random: np.random.Generator) -> Floats:
    """Gains by class that leave macro-F1 as it is: common classes gain, the rarest third loses what that takes."""
    rare = counts <= np.quantile(counts, 1 / 3)
    if rare.all():
        rare = np.arange(len(counts)) < len(counts) / 3
    # As far as predictions of one's own, which `agreement` leaves, can be better or worse.
    gain, most = float(np.min(error)) * (1 - agreement) * 0.8, (1 - agreement) * (1 - float(np.max(error)))
    before, low, high = true_scores(counts, error)["macro_f1"], 0.0, most
    for _ in range(40):
        loss = (low + high) / 2
        after = true_scores(counts, error - np.where(rare, -loss, gain))["macro_f1"]
        low, high = (loss, high) if after > before else (low, loss)
    return np.where(rare, -low, gain)


def one(samples: int, random: np.random.Generator) -> list[dict[str, Any]]:
    """Rates of passing in one comparison."""
    table = []
    head("test images", "error", "agreement", "equal", "equal, classes differ", "1 point worse",
         "2 points better, first", "10th", "52nd", "gain's interval")  # fmt: skip
    levels = [compute_level(LEVEL, uses) for uses in (0, 9, 51)]
    for name, counts in SHAPES.items():
        for wrong, agreement in MODELS:
            error = np.full(len(counts), wrong)
            gains: dict[str, Floats] = {
                "equal": np.zeros(len(counts)),
                "differ": unequal_classes(counts, error, agreement, random),
                "worse": np.full(len(counts), -0.01),
                "better": np.full(len(counts), 0.02),
            }
            passed: dict[str, Floats] = {}
            contained = 0
            for kind, gain in gains.items():
                truth = true_scores(counts, error - gain)["macro_f1"] - true_scores(counts, error)["macro_f1"]
                p = np.empty(samples)
                for sample in range(samples):
                    models = Models.draw(counts, error, agreement, random)
                    found = compare(counts, models.model(random), models.model(random, gain))
                    p[sample] = compute_p_value(found, MIN_GAIN)
                    low, high = found.compute_interval()
                    contained += low <= truth <= high
                passed[kind] = np.array([(p <= level).mean() for level in levels])
            shown = [f"{passed[kind][0]:.3f}" for kind in ("equal", "differ", "worse")]
            shown += [f"{rate:.3f}" for rate in passed["better"]]
            coverage = contained / samples / len(gains)
            print(f"| {name} | {wrong} | {agreement} | {' | '.join(shown)} | {coverage:.3f} |", flush=True)
            row = {"images": name, "error": wrong, "agreement": agreement, "coverage": coverage}
            table.append(row | {kind: rates.tolist() for kind, rates in passed.items()})
    return table


Rule = Callable[[ScoreDifference, int], bool]
RULES: dict[str, Rule] = {
    "the gate": lambda found, uses: compute_p_value(found, MIN_GAIN) <= compute_level(LEVEL, uses),
    "5% each time": lambda found, uses: compute_p_value(found, MIN_GAIN) <= LEVEL,
    "higher by 0.005": lambda found, uses: found.gain >= MIN_GAIN,
}


def year(samples: int, random: np.random.Generator) -> list[dict[str, Any]]:
    """52 equal challengers in a row, on the same test images."""
    table = []
    head("test images", "error", "rule", "years with a promotion", "promotions a year",
         "points that the champion's score is too high", "2 points better passes then")  # fmt: skip
    for name, wrong in YEARS:
        counts = SHAPES[name]
        error = np.full(len(counts), wrong)
        truth = true_scores(counts, error)["macro_f1"]
        ends: dict[str, list[tuple[int, float, bool]]] = {rule: [] for rule in RULES}
        for _ in range(samples if counts.sum() < 1000 else max(1, samples // 3)):
            models = Models.draw(counts, error, 0.5, random)
            first, *challengers = (models.model(random) for _ in range(WEEKS + 1))
            usual = np.mean([compare(counts, first, one).challenger for one in challengers])
            better = models.model(random, 0.02)
            for rule, passes in RULES.items():
                champion, uses, promotions = first, 0, 0
                for challenger in challengers:
                    if passes(compare(counts, champion, challenger), uses):
                        champion, uses, promotions = challenger, 0, promotions + 1
                    else:
                        uses += 1
                end = compare(counts, champion, better)
                # Against what equal models score on these very images, which may be easy or hard ones.
                ends[rule].append((promotions, end.champion - float(usual), passes(end, uses)))
        for rule, found in ends.items():
            promotions, inflation, passed = (np.array(column, float) for column in zip(*found, strict=True))
            row = {"images": name, "error": wrong, "rule": rule, "truth": truth, "any": (promotions > 0).mean()}
            row |= {"promotions": promotions.mean(), "inflation": inflation.mean(), "better": passed.mean()}
            print(f"| {name} | {wrong} | {rule} | {row['any']:.3f} | {row['promotions']:.2f} | "
                  f"{100 * row['inflation']:+.2f} | {row['better']:.2f} |", flush=True)  # fmt: skip
            table.append({key: value if isinstance(value, str) else float(value) for key, value in row.items()})
    return table


def classes(samples: int, random: np.random.Generator) -> list[dict[str, Any]]:
    """How often a fall in one class stops a challenger, by the images of the class."""
    table = []
    head("images of each of 10 classes", "equal", "one class falls by 0.2", "by 0.4")
    for images in (10, 20, 30, 50, 100, 300):
        counts, stopped = np.full(10, images), []
        for fall in (0.0, 0.2, 0.4):
            gain = np.zeros(10)
            gain[0] = -fall
            number = 0
            for _ in range(samples):
                models = Models.draw(counts, np.full(10, 0.1), 0.5, random)
                pair = pair_of(models.labels, models.model(random), models.model(random, gain), 10)
                number += bool(describe_recall_drops(pair, 0.1, LEVEL))
            stopped.append(number / samples)
        print(f"| {images} | {' | '.join(f'{share:.3f}' for share in stopped)} |", flush=True)
        table.append({"images": images, "stopped": stopped})
    return table


TABLES: dict[str, Callable[[int, np.random.Generator], list[dict[str, Any]]]] = {
    "one": one, "year": year, "classes": classes,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=list(TABLES), help=", ".join(TABLES))
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    found = {}
    for name in given.tables:
        found[name] = TABLES[name](given.samples, np.random.default_rng(given.seed))
        print()
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
