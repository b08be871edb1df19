"""Coverage and error rates of `imagemill compare`, simulated on configurations whose true scores are known.

    python tests/benchmarks/trainings.py [--samples 400] [--seed 0] [--json FILE]

Two configurations are trained with several seeds each and tested on the same images. A training's predictions agree
with those of its configuration, and the configurations' with one another, to a degree; seeds differ in accuracy, too,
by `spread`. *Covered*: the share of intervals that contain the true difference of macro-F1; *equal*: how often equal
configurations are said to differ; *2 points*: how often a difference of two points is shown; *images alone*: coverage
of the interval that takes the first seed for the configuration. Standard error of a cell of 400 samples: 0.008 (0.011
of `equal`). Two minutes and a half on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from simulated import Floats, Ids, Models, equal_counts, pair_of, predict, true_scores, zipf_counts

from imagemill.components.promote.score_difference import ScoreDifference, compute_difference
from imagemill.pipelines.experiments.differences import combine_differences

SHAPES: dict[str, Ids] = {
    "118 images, 6 classes": equal_counts(6, 118),
    "400 images, 37 classes, Zipf": zipf_counts(37, 400),
    "3669 images, 37 classes": equal_counts(37, 3669),
}
SEEDS = (2, 3, 5)
SPREADS = (0.0, 0.01, 0.03)
ERROR, SHARED, AGREEMENT = 0.1, 0.6, 0.6
"""Error of all models; share of images on which the configurations agree; and a training with its configuration."""
GAIN = 0.02


def differences(
    counts: Ids, seeds: int, spread: float, gain: float, random: np.random.Generator
) -> list[ScoreDifference]:
    """The differences in macro-F1, seed by seed, of two configurations of which the second is better by `gain`."""
    error = np.full(len(counts), ERROR)
    habits = Models.draw(counts, error, SHARED, random)
    pairs = []
    models: list[list[Ids]] = []
    for better in (0.0, gain):
        own = Models(habits.labels, error, AGREEMENT, habits.model(random, better))
        # What is shared is better already: a model's own share gains as much.
        models.append([_train(own, better, spread, random) for _ in range(seeds)])
    for first, second in zip(*models, strict=True):
        pairs.append(compute_difference(pair_of(habits.labels, first, second, len(counts)), "macro_f1"))
    return pairs


def _train(own: Models, gain: float, spread: float, random: np.random.Generator) -> Ids:
    """Predictions of one training, whose recall differs by a normal variable of the standard deviation `spread`."""
    follows = random.random(len(own.labels)) < own.agreement
    luck = random.normal(0, spread) / (1 - own.agreement)
    error: Floats = np.clip(own.error - gain - luck, 0.0, 1.0)
    return np.where(follows, own.shared, predict(own.labels, error, random))


def true_gain(counts: Ids, gain: float) -> float:
    error = np.full(len(counts), ERROR)
    return true_scores(counts, error - gain)["macro_f1"] - true_scores(counts, error)["macro_f1"]


def measure(counts: Ids, seeds: int, spread: float, samples: int, random: np.random.Generator) -> dict[str, Any]:
    """Shares of `samples` comparisons each with and without a difference."""
    shares = dict.fromkeys(("covered", "equal", "shown", "images_alone"), 0.0)
    for gain in (0.0, GAIN):
        truth = true_gain(counts, gain)
        for _ in range(samples):
            pairs = differences(counts, seeds, spread, gain, random)
            result, alone = combine_differences(pairs), combine_differences(pairs[:1])
            shares["covered"] += (result.interval[0] <= truth <= result.interval[1]) / (2 * samples)
            shares["images_alone"] += (alone.interval[0] <= truth <= alone.interval[1]) / (2 * samples)
            shares["shown" if gain else "equal"] += result.is_credible / samples
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    random, table = np.random.default_rng(given.seed), []
    print("| test images | spread of seeds | seeds | covered | equal | 2 points | images alone |\n" + "|---" * 7 + "|")
    for name, counts in SHAPES.items():
        samples = max(50, given.samples // 4) if counts.sum() > 1000 else given.samples
        for spread in SPREADS:
            for seeds in SEEDS:
                row = measure(counts, seeds, spread, samples, random)
                cells = [f"{row[key]:.3f}" for key in ("covered", "equal", "shown", "images_alone")]
                print(f"| {name} | {spread:g} | {seeds} | {' | '.join(cells)} |", flush=True)
                table.append({"images": name, "spread": spread, "seeds": seeds, **row})
    if given.json:
        Path(given.json).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
