"""Cross-validation, simulated: coverage of its intervals, rates of `compare --folds`; and splits by class size.

    python tests/benchmarks/folds.py probe|compare|splits [--samples 150] [--seed 0]

Images are points of Gaussian classes. *probe*: the share of intervals of the cross-validated probe that contain the
mean score of probes trained on as many images as a fold leaves (40 of them, tested on 3,000 images). *compare*: two
configurations that see other features of the same images, in 5 folds, by linear discriminants and by the nearest
neighbor, whose mistakes depend far more on the training images. *splits*: what `--split stable` gives classes of
different sizes. A quarter of an hour, four minutes, and seconds on one core.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from scipy import stats
from simulated import Floats, Ids, equal_counts, labels_of, pair_of, zipf_counts

from imagemill.components.dataset.splits import choose_exact_splits, choose_split
from imagemill.components.evaluate.intervals import compute_single_label_intervals
from imagemill.components.evaluate.linear_probe import FOLDS, SCORES, assign_folds, widen
from imagemill.components.metrics.classification import ConfusionCounts, summarize_predictions
from imagemill.components.metrics.logistic_regression import ProbeFitter, predict_out_of_fold, select_penalty
from imagemill.components.promote.score_difference import compute_difference
from imagemill.pipelines.experiments.differences import combine_differences

SHAPES: dict[str, Ids] = {
    "100 images, 4 classes": equal_counts(4, 100),
    "300 images, 6 classes": equal_counts(6, 300),
    "300 images, 20 classes, Zipf": zipf_counts(20, 300),
}
Classifier = Callable[[Floats], Ids]
Fit = Callable[[Floats, Ids, int], Classifier]


class Gaussians:
    """Classes with unit variance around centers that are as far apart as `signal` says."""

    def __init__(self, classes: int, dimensions: int, signal: float, seed: int) -> None:
        self.centers = np.random.default_rng(seed).normal(0, signal, (classes, dimensions))

    def draw(self, labels: Ids, random: np.random.Generator) -> Floats:
        return self.centers[labels] + random.normal(size=(len(labels), self.centers.shape[1]))


def training_labels(counts: Ids) -> Ids:
    return labels_of(np.maximum(1, np.round(counts * (FOLDS - 1) / FOLDS)).astype(np.int64))


def test_labels(counts: Ids) -> Ids:
    return labels_of(counts * max(1, 3000 // int(counts.sum())))


def folds_of(labels: Ids, random: np.random.Generator) -> Ids:
    return assign_folds(labels, random.permutation(len(labels)))


# The probe


def fit_probe(features: Floats, labels: Ids, classes: int) -> Classifier:
    """As in a fold: the penalty by a part, the weights by all."""
    x, is_held = features.astype(np.float32), assign_folds(labels, np.arange(len(labels)), FOLDS - 1) == 0
    penalty = select_penalty(x, labels, [(np.flatnonzero(~is_held), np.flatnonzero(is_held))], classes).penalty
    probe = ProbeFitter(x, labels, classes).fit(penalty)
    return lambda points: probe(points.astype(np.float32)).argmax(1)


def measure_probe(samples: int, seed: int) -> None:
    print(
        "| images | mean top-1 / macro-F1 | top-1 | balanced accuracy | macro-F1 | not widened | samples |\n"
        + "|---" * 7
        + "|"
    )
    random = np.random.default_rng(seed)
    for name, counts in SHAPES.items():
        for signal in (0.5, 0.3):
            classes, labels = len(counts), labels_of(counts)
            images, training, test = Gaussians(classes, 64, signal, 5), training_labels(counts), test_labels(counts)
            scores = []
            for _ in range(40):
                predicted = fit_probe(images.draw(training, random), training, classes)(images.draw(test, random))
                summary = summarize_predictions(test, predicted, classes)
                scores.append([float(summary[score]) for score in SCORES])
            truth = np.mean(scores, axis=0)
            covered = np.zeros((2, len(SCORES)))
            for _ in range(samples):
                features = images.draw(labels, random).astype(np.float32)
                logits = predict_out_of_fold(features, labels, folds_of(labels, random), classes)
                pairs = ConfusionCounts(classes)
                pairs.add(labels, logits.argmax(1))
                summary, intervals = pairs.summary(), compute_single_label_intervals(pairs)
                for number, score in enumerate(SCORES):
                    plain = intervals[score]
                    for row, (low, high) in enumerate((widen(float(summary[score]), plain), plain)):
                        covered[row, number] += (low <= truth[number] <= high) / samples
            cells = [f"{truth[0]:.2f} / {truth[2]:.2f}", *(f"{share:.3f}" for share in covered[0])]
            cells += [" / ".join(f"{share:.3f}" for share in covered[1]), str(samples)]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


# Compare


def fit_discriminant(features: Floats, labels: Ids, classes: int) -> Classifier:
    counts = np.bincount(labels, minlength=classes)
    means = np.zeros((classes, features.shape[1]))
    np.add.at(means, labels, features)
    means /= np.maximum(counts, 1)[:, None]
    residuals = features - means[labels]
    covariance = residuals.T @ residuals / len(labels)
    covariance = 0.9 * covariance + 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    weights = np.linalg.solve(covariance, means.T)
    bias = np.where(counts > 0, -0.5 * (means * weights.T).sum(1), -np.inf)
    return lambda points: (points @ weights + bias).argmax(1)


def fit_neighbor(features: Floats, labels: Ids, classes: int) -> Classifier:
    squares = (features**2).sum(1)
    return lambda points: labels[(squares - 2 * points @ features.T).argmin(1)]


MODELS: dict[str, Fit] = {"discriminant": fit_discriminant, "nearest neighbor": fit_neighbor}


def measure_compare(samples: int, seed: int) -> None:
    print(
        "| images | models | macro-F1 of A | B better by | covered | shown | images alone | t of the folds "
        "| samples |\n" + "|---" * 9 + "|"
    )
    random = np.random.default_rng(seed)
    for name, counts in SHAPES.items():
        for model, fit in MODELS.items():
            for gain in (0.0, 0.2):
                classes, labels = len(counts), labels_of(counts)
                sides = [Gaussians(classes, 16, 0.8 + extra, 5) for extra in (0.0, gain)]
                training, test = training_labels(counts), test_labels(counts)
                scores = np.zeros((100, 2, 2))
                for row in scores:
                    for side, images in enumerate(sides):
                        classify = fit(images.draw(training, random), training, classes)
                        summary = summarize_predictions(test, classify(images.draw(test, random)), classes)
                        row[side] = summary["macro_f1"], summary["top1"]
                truth = scores.mean(0)
                covered, shown, alone, by_folds = 0, 0, 0, 0
                for _ in range(samples):
                    folds, predicted = folds_of(labels, random), []
                    for images in sides:
                        features, ids = images.draw(labels, random), np.empty(len(labels), np.int64)
                        for fold in range(FOLDS):
                            classify = fit(features[folds != fold], labels[folds != fold], classes)
                            ids[folds == fold] = classify(features[folds == fold])
                        predicted.append(ids)
                    difference = compute_difference(pair_of(labels, *predicted, classes), "macro_f1")
                    result = combine_differences([difference], FOLDS)
                    covered += result.interval[0] <= truth[1, 0] - truth[0, 0] <= result.interval[1]
                    shown += result.is_credible
                    alone += combine_differences([difference]).is_credible
                    right = [ids == labels for ids in predicted]
                    gains = np.array(
                        [np.mean(right[1][folds == n]) - np.mean(right[0][folds == n]) for n in range(FOLDS)]
                    )
                    half = float(stats.t.ppf(0.975, FOLDS - 1)) * gains.std(ddof=1)
                    by_folds += abs(gains.mean()) > half * math.sqrt(1 / FOLDS + 1 / (FOLDS - 1))
                better = "0" if not gain else f"{truth[1, 0] - truth[0, 0]:.3f}"
                cells = [f"{share / samples:.3f}" for share in (covered, shown, alone, by_folds)]
                print(
                    f"| {name} | {model} | {truth[0, 0]:.2f} | {better} | {' | '.join(cells)} | {samples} |", flush=True
                )


# Splits


def measure_splits(samples: int, seed: int) -> None:
    print(
        "| images of a class | no test image | no val image | neither lacks | test images, 5% to 95% | exact |\n"
        + "|---" * 6
        + "|"
    )
    random = np.random.default_rng(seed)
    for size in (1, 2, 5, 10, 20, 30, 50, 100, 300, 1000):
        counts = np.zeros((samples, 2), np.int64)
        for row in counts:
            splits = [choose_split(random.bytes(32).hex(), None, 0.1, 0.1) for _ in range(size)]
            row[:] = splits.count("val"), splits.count("test")
        declared, labels = np.full(size, 3, np.uint8), np.zeros(size, np.int64)
        exact = choose_exact_splits(declared, labels, random.permutation(size).astype(np.uint64), (0.1, 0.1))
        lacks = counts == 0
        low, high = np.quantile(counts[:, 1], [0.05, 0.95])
        shares = lacks[:, 1].mean(), lacks[:, 0].mean(), (~lacks).all(1).mean()
        cells = [*(f"{share:.3f}" for share in shares), f"{low:.0f} to {high:.0f}", str(int((exact == 2).sum()))]
        print(f"| {size:,} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=("probe", "compare", "splits"))
    parser.add_argument("--samples", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    {"probe": measure_probe, "compare": measure_compare, "splits": measure_splits}[given.subject](
        given.samples, given.seed
    )


if __name__ == "__main__":
    main()
