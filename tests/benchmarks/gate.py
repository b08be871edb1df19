"""Accuracy of the model in service over a year of weekly retraining, by promotion rule, simulated.

    python tests/benchmarks/gate.py year [--years 60] [--seed 0] [--worlds growing,accidents of 5 points] [--json FILE]

**The world.** Ten classes, macro-F1, error 0.1 at first. Data and test set grow by 2% a week, error falls as n^-0.35,
the model in service ages by 0.05 points a week, a training's true score differs by half a point (standard deviation)
from seed to seed. Validation images are as many as test images. Models agree: an image gets the prediction that all
share from each model with probability 0.5, else its own, by a number that stays the model's own for the image from
week to week, so that luck on the test images lasts. In `not growing` images and error stay, and nothing ages. With
accidents one training in twenty is worse by 5 or 2 points. With `drift` models age by 0.2 points a week, and new
images get harder for all models by 0.05 points a week.

`bayes` is the mean of the gain's posterior, with the gain that growth makes likely as prior, and promotes if it is
above zero. `test alone` is the rule `unless-worse` without validation scores. The others are decided by the product's
own code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from simulated import NEAR, Floats, Ids, pair_of

from imagemill.components.dataset.records import PASSING, GainEstimate, Verdict
from imagemill.components.metrics.classification import compute_scores
from imagemill.components.promote.config import PromoteConfig
from imagemill.components.promote.gate import combine_estimates, decide, estimate_gain
from imagemill.components.promote.score_difference import compute_difference
from imagemill.components.promote.trainings import Training, compare_validation

WEEKS, CLASSES, AGREEMENT, ERROR, SEED_DEVIATION = 52, 10, 0.5, 0.1, 0.005
SIZES = (118, 400, 1000, 3669)


@dataclass(frozen=True)
class World:
    """Growth a week, the exponent of error by images, aging and hardening in score a week, an accident's size."""

    growth: float = 0.02
    aging: float = 0.0005
    hardening: float = 0.0
    accident: float = 0.0


WORLDS = {
    "growing": World(),
    "accidents of 5 points": World(accident=0.05),
    "accidents of 2 points": World(accident=0.02),
    "not growing": World(growth=0.0, aging=0.0),
    "not growing with accidents of 5 points": World(growth=0.0, aging=0.0, accident=0.05),
    "drift": World(aging=0.002, hardening=0.0005),
}


@dataclass(frozen=True)
class Model:
    """A trained model: its true error when new, its week, the images' numbers that it errs by (`draws`, of test
    images), the classes it errs to, and its training as the gate reads it."""

    error: float
    week: int
    draws: Floats
    mistakes: Ids
    training: Training
    is_accident: bool

    def compute_error(self, week: int, world: World) -> float:
        """Return the true error in a later week."""
        return min(1.0, self.error + world.aging * (week - self.week) + world.hardening * week)

    def predict(self, labels: Ids, week: int, world: World) -> Ids:
        images = len(labels)
        is_wrong = self.draws[:images] < self.compute_error(week, world)
        return np.where(is_wrong, self.mistakes[:images], labels)


def score(labels: Ids, predicted: Ids) -> float:
    """Return macro-F1."""
    counts = [np.bincount(ids, minlength=CLASSES) for ids in (labels[labels == predicted], predicted, labels)]
    return float(compute_scores(*counts)["f1"].mean())


class Year:
    """The images of a year, and the models that are trained on them."""

    def __init__(self, size: int, world: World, random: np.random.Generator) -> None:
        self.world, self.random, self.size = world, random, size
        total = self.count_images(WEEKS)
        self.labels = np.arange(total) % CLASSES
        self.shared = [self._draw(total) for _ in ("test", "val")]

    def count_images(self, week: int) -> int:
        return round(self.size * (1 + self.world.growth) ** week)

    def compute_base_error(self, week: int) -> float:
        return float(ERROR * (1 + self.world.growth) ** (-0.35 * week))

    def _draw(self, images: int) -> tuple[Floats, Ids]:
        """Return the numbers by which images are mistaken, and for which class."""
        next_class = (self.labels[:images] + 1) % CLASSES
        other = (self.labels[:images] + self.random.integers(1, CLASSES, images)) % CLASSES
        return self.random.random(images), np.where(self.random.random(images) < NEAR, next_class, other)

    def _draw_own(self, shared: tuple[Floats, Ids]) -> tuple[Floats, Ids]:
        draws, mistakes = self._draw(len(self.labels))
        is_shared = self.random.random(len(self.labels)) < AGREEMENT
        return np.where(is_shared, shared[0], draws), np.where(is_shared, shared[1], mistakes)

    def train(self, week: int) -> Model:
        is_accident = bool(self.world.accident and week and self.random.random() < 0.05)
        error = (
            self.compute_base_error(week) + self.random.normal(0, SEED_DEVIATION) + is_accident * self.world.accident
        )
        test, val = (self._draw_own(shared) for shared in self.shared)
        labels = self.labels[: self.count_images(week)]
        new = Model(error, week, *val, Training(), is_accident)
        scores = {"macro_f1": score(labels, new.predict(labels, week, self.world))}
        training = Training(scores=scores, scored_images=tuple(np.bincount(labels).astype(float)))
        return Model(error, week, *test, training, is_accident)


@dataclass(frozen=True)
class Week:
    """What a rule decides by."""

    test: GainEstimate
    champion: Model
    challenger: Model
    year: Year


def decide_by(policy: str, with_validation: bool = True) -> Callable[[Week], bool]:
    """Return the product's own rule."""
    config = PromoteConfig.resolve(workspace="w", evaluation="e", promote=policy)

    def promotes(week: Week) -> bool:
        trainings = (week.champion.training, week.challenger.training)
        validation = compare_validation(*trainings, "macro_f1") if with_validation else None
        combined = combine_estimates(week.test, validation)
        verdict = Verdict(gain=week.test.gain, validation=validation, combined=combined)
        return decide(verdict, week.test, config) in PASSING

    return promotes


def decide_by_posterior(week: Week) -> bool:
    year, (old, new) = week.year, (week.champion, week.challenger)
    growth = year.compute_base_error(old.week) - year.compute_base_error(new.week)
    prior, precision = growth + year.world.aging * (new.week - old.week), 1 / (2 * SEED_DEVIATION**2)
    return prior * precision + week.test.gain / week.test.error**2 > 0


RULES: dict[str, Callable[[Week], bool]] = {
    "always": lambda _: True,
    "higher": lambda week: week.test.gain > 0,
    "unless-worse": decide_by("unless-worse"),
    "unless-worse, test alone": decide_by("unless-worse", with_validation=False),
    "better": decide_by("better"),
    "bayes": decide_by_posterior,
}


def simulate(
    size: int, world: World, random: np.random.Generator
) -> dict[str, tuple[float, float, float, float, float]]:
    """Return, by rule, the mean accuracy in service, the promotions, the worst week, and the numbers of accidents that
    were promoted and that happened."""
    year = Year(size, world, random)
    models = [year.train(week) for week in range(WEEKS)]
    results, gains = {}, dict[tuple[int, int], GainEstimate]()
    for rule, promotes in RULES.items():
        champion, accuracies, promotions, accidents = models[0], [], 0, 0
        for week, challenger in enumerate(models):
            if week:
                if (champion.week, week) not in gains:
                    labels = year.labels[: year.count_images(week)]
                    predictions = (model.predict(labels, week, world) for model in (champion, challenger))
                    difference = compute_difference(pair_of(labels, *predictions, CLASSES), "macro_f1")
                    gains[champion.week, week] = estimate_gain(difference)
                if promotes(Week(gains[champion.week, week], champion, challenger, year)):
                    champion, promotions = challenger, promotions + 1
                    accidents += challenger.is_accident
            accuracies.append(1 - champion.compute_error(week, world))
        happened = sum(model.is_accident for model in models)
        results[rule] = (float(np.mean(accuracies)), promotions, min(accuracies), accidents, happened)
    return results


def simulate_years(years: int, seed: int, worlds: list[str]) -> list[dict[str, Any]]:
    """Print and return the table of each world."""
    rows = []
    for name in worlds:
        print(
            f"\n{name}\n| rule | {' | '.join(f'{size:,} test images' for size in SIZES)} |\n{'|---' * 5}|", flush=True
        )
        cells: dict[str, list[str]] = {rule: [] for rule in RULES}
        for size in SIZES:
            random = np.random.default_rng([seed, size])
            count = years if size < 1000 else max(1, years // (2 if size == 1000 else 5))
            results = [simulate(size, WORLDS[name], random) for _ in range(count)]
            for rule in RULES:
                mean, promotions, worst, promoted, happened = np.array([result[rule] for result in results]).T
                row = {"world": name, "rule": rule, "images": size, "years": count, "mean": float(mean.mean()),
                       "error": float(mean.std(ddof=1) / count**0.5) if count > 1 else 0.0,
                       "promotions": float(promotions.mean()), "worst": float(worst.mean()),
                       "accidents": float(promoted.sum() / max(1, happened.sum())),
                       "happened": int(happened.sum())}  # fmt: skip
                text = f"{100 * row['mean']:.1f} · {row['promotions']:.0f} · {100 * row['worst']:.1f}"
                cells[rule].append(text + (f" · {row['accidents']:.1%}" if row["happened"] else ""))
                rows.append(row)
        for rule, texts in cells.items():
            print(f"| {rule} | {' | '.join(texts)} |", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", default="year", choices=("year",))
    parser.add_argument("--years", type=int, default=60, help="half as many with 1,000 images, a fifth with 3,669")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    rows = simulate_years(options.years, options.seed, options.worlds.split(","))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
