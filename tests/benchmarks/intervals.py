"""Coverage of the metrics' 95% intervals, simulated over numbers of classes, images of each and accuracies.

    python tests/benchmarks/intervals.py [--samples 1000] [--seed 0] [--json FILE]

Each row is a test split's images by class; each cell the share of simulated test splits whose interval contains the
model's true score. Standard error of a cell with 1,000 samples: 0.007. Two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from simulated import Floats, Ids, geometric_counts, labels_of, predict, true_scores, zipf_counts

from imagemill.components.evaluate.intervals import compute_single_label_intervals, count_unreliable_classes
from imagemill.components.metrics.classification import ConfusionCounts

METRICS = ("top1", "balanced_accuracy", "macro_f1")
COUNTS: dict[str, Ids] = {
    **{f"{k} classes of {n}": np.full(k, n) for k in (2, 16, 37, 200) for n in (1, 2, 5, 10, 100) if k * n <= 4000},
    "2 classes of 1000": np.full(2, 1000),
    "1000 classes of 2": np.full(1000, 2),
    "37 classes, Zipf, 300 in the first": zipf_counts(37, 1260),
    **{f"37 classes of {n} to 1000": geometric_counts(37, n, 1000) for n in (1, 5, 10)},
    **{f"16 classes of {n}, 4 of 100": np.r_[np.full(16, n), np.full(4, 100)] for n in (1, 5, 10)},
}


def _varied(counts: Ids) -> Floats:
    """From class to class, 0.2 in the mean."""
    return np.random.default_rng(1).beta(1, 4, len(counts))


def _rare_are_hard(counts: Ids) -> Floats:
    return 0.02 + 0.45 * np.exp(-counts / 20)


ERRORS: dict[str, Callable[[Ids], Floats]] = {
    "0.99": lambda counts: np.full(len(counts), 0.01),
    "0.95": lambda counts: np.full(len(counts), 0.05),
    "0.8": lambda counts: np.full(len(counts), 0.2),
    "0.8, varied": _varied,
    "rare ones hard": _rare_are_hard,
}


def coverage(counts: Ids, error: Floats, samples: int, random: np.random.Generator) -> dict[str, float]:
    """The share of samples whose interval contains the true score, of each metric."""
    labels, truth = labels_of(counts), true_scores(counts, error)
    contained = dict.fromkeys(METRICS, 0)
    for _ in range(samples):
        pairs = ConfusionCounts(len(counts))
        pairs.add(labels, predict(labels, error, random))
        found = compute_single_label_intervals(pairs)
        for name in METRICS:
            contained[name] += found[name][0] <= truth[name] <= found[name][1]
    return {name: number / samples for name, number in contained.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    random, table = np.random.default_rng(given.seed), []
    print("balanced accuracy / macro-F1, by accuracy")
    print(f"| {'test images':36} | {' | '.join(f'{name:14}' for name in ERRORS)} | said to be too narrow |")
    print(f"|{'---|' * (2 + len(ERRORS))}")
    for name, counts in COUNTS.items():
        cells = {error: coverage(counts, make(counts), given.samples, random) for error, make in ERRORS.items()}
        shown = [f"{cell['balanced_accuracy']:.3f} / {cell['macro_f1']:.3f}" for cell in cells.values()]
        said = "yes" if count_unreliable_classes(counts) else ""
        print(f"| {name:36} | {' | '.join(shown)} | {said} |", flush=True)
        table.append({"counts": name, "too_narrow": bool(said), "coverage": cells})
    if given.json:
        Path(given.json).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
