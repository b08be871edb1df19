"""Find labels that are probably wrong by confident learning on features (Northcutt, Jiang and Chuang, "Confident
Learning: Estimating Uncertainty in Dataset Labels", 2021), with cleanlab's thresholds, counts and scores.

Confident learning needs out-of-sample probabilities. The network was trained on the labels, so a linear discriminant
with a shrunk common covariance (Friedman, "Regularized Discriminant Analysis", 1989) is cross-validated on its
features. Folds keep groups and near-duplicates together, since these often have the same wrong label. They are
stored as counts, sums and products of features, so that fitting reads the images once. The issues of a first round
are removed, the discriminants fitted again and all labels judged again: wrong labels widen the classes and hide one
another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataset.labels import SINGLE
from ..metrics.calibration import fit_temperature
from ..metrics.classification import ConfusionCounts
from .intervals import ChanceTest, ClassTotals
from .linear_probe import FOLDS, assign_folds

MIN_CLASS_IMAGES = 10
"""Training images that a class must have for its labels to be judged: two in each fold."""
MIN_SUGGESTED_PROBABILITY = 0.5
"""Calibrated probability that another class must have: classifiers that know little disagree with many right labels."""
SHRINKAGE = 0.1
"""Share of the covariance that is replaced by the same variance in every direction."""
MIN_AGREEMENT, MANY_SUSPECTS, MIN_AGREEMENT_OF_MANY = 0.75, 0.1, 0.9
"""Share of the labels that are not suspected which the classifiers have to agree with: where they suspect more than a
tenth of all, with nine in ten, as classifiers that know the classes do however many labels are wrong."""
CHANCE_COMPARISONS = 20
"""Bonferroni's factor of the test against chance, for the folds share images, and so their luck."""
_CHUNK = 1 << 21
"""Probabilities in memory at a time: 16 MB as float64, some four times over."""

Features = npt.NDArray[np.float16]
Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass
class FoldStatistics:
    """Sufficient statistics of the discriminants by fold: `counts` [F, K], `sums` [F, K, D], `products` [F, D, D],
    float64."""

    classes: int
    dimensions: int
    counts: Floats = field(init=False)
    sums: Floats = field(init=False)
    products: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((FOLDS, self.classes))
        self.sums = np.zeros((FOLDS, self.classes, self.dimensions))
        self.products = np.zeros((FOLDS, self.dimensions, self.dimensions))

    def add(self, features: Features, labels: Labels, folds: npt.NDArray[np.int8], sign: int = 1) -> None:
        """Add images with `features` [B, D], or with `sign` -1 remove them."""
        for fold in np.unique(folds):
            in_fold = folds == fold
            x, y = features[in_fold].astype(np.float64), labels[in_fold]
            np.add.at(self.counts[fold], y, sign)
            np.add.at(self.sums[fold], y, sign * x)
            self.products[fold] += sign * (x.T @ x)

    def fit_without(self, fold: int) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
        """Return (weights [D, K], bias [K], is_fitted [K]) of the discriminant of all folds but `fold`.

        Logits are `x @ weights + bias`: those of Gaussian classes with one covariance, divided by the square root of
        D, since correlated dimensions are counted as if they were independent.
        """
        others = [other for other in range(FOLDS) if other != fold]
        counts, sums = self.counts[others].sum(0), self.sums[others].sum(0)
        is_fitted, total = counts > 0, max(1.0, counts.sum())
        means = sums / np.maximum(counts, 1)[:, None]
        covariance = (self.products[others].sum(0) - (means * counts[:, None]).T @ means) / total
        variance = max(float(np.trace(covariance)) / self.dimensions, 1e-12)
        covariance *= 1 - SHRINKAGE
        covariance[np.diag_indices(self.dimensions)] += SHRINKAGE * variance
        weights = np.linalg.solve(covariance, means.T)
        bias = np.log(np.maximum(counts, 1) / total) - 0.5 * (means * weights.T).sum(1)
        scale = 1 / np.sqrt(self.dimensions)
        return weights * scale, bias * scale, is_fitted


@dataclass(frozen=True)
class LabelIssues:
    """Suspected labels, the surest first: `rows` int64 [M], `suggested` int64 [M] the class each looks like,
    `label_probability` and `suggested_probability` float32 [M], the latter above `MIN_SUGGESTED_PROBABILITY`, and
    `quality` float32 [M], cleanlab's label quality score in [0, 1], low where the label is wrong.

    `agreement`: share of all labels that the classifiers agree with. `num_judged`: images whose class has
    `MIN_CLASS_IMAGES` or more. `problem`: why the classifiers can't tell wrong labels, so that there are no issues; or
    an empty text.
    """

    rows: Labels
    suggested: Labels
    label_probability: npt.NDArray[np.float32]
    suggested_probability: npt.NDArray[np.float32]
    quality: npt.NDArray[np.float32]
    agreement: float
    num_judged: int
    problem: str = ""

    def withdraw(self, problem: str) -> LabelIssues:
        """Return a result without issues."""
        none = slice(0)
        return LabelIssues(
            self.rows[none], self.suggested[none], self.label_probability[none], self.suggested_probability[none],
            self.quality[none], self.agreement, self.num_judged, problem,
        )  # fmt: skip


def find_label_issues(features: Features, labels: Labels, classes: int, folds: Labels | None = None) -> LabelIssues:
    """Judge the labels int64 [N] of images with `features` [N, D]; the same input gives the same result.

    `folds`: [N], 0 to 4 (default: by class alone).

    Needs some 40 bytes an image beside its input, and 100 MB of working memory. At least two classes must have
    `MIN_CLASS_IMAGES` images.
    """
    in_fold = (assign_folds(labels, np.arange(len(labels))) if folds is None else folds).astype(np.int8)
    statistics = FoldStatistics(classes, features.shape[1])
    for part in _split_rows(len(labels), features.shape[1]):
        statistics.add(features[part], labels[part], in_fold[part])
    is_kept = np.ones(len(labels), np.bool_)
    issues = _CrossValidation(statistics, in_fold, features, labels, is_kept).find_issues()
    if issues.problem:  # without the labels that they disagree with, any classifiers would agree with the rest
        return issues
    for part in _split_rows(len(issues.rows), features.shape[1]):
        rows = issues.rows[part]
        statistics.add(features[rows], labels[rows], in_fold[rows], -1)
    is_kept[issues.rows] = False
    issues = _CrossValidation(statistics, in_fold, features, labels, is_kept).find_issues()
    share = len(issues.rows) / max(1, len(labels))
    agreement = issues.agreement / max(1e-9, 1 - share)  # suspected labels are those that they disagree with
    if issues.problem or agreement >= (MIN_AGREEMENT_OF_MANY if share > MANY_SUSPECTS else MIN_AGREEMENT):
        return issues
    return issues.withdraw(
        f"classifiers that never saw the labels doubt {share:.1%} of them and agree with only {agreement:.1%} of the "
        "others: they don't know the classes well enough to tell"
    )


class _CrossValidation:
    """The five classifiers, with the temperature that calibrates them on the labels of the rows that are kept."""

    def __init__(
        self,
        statistics: FoldStatistics,
        folds: npt.NDArray[np.int8],
        features: Features,
        labels: Labels,
        is_kept: npt.NDArray[np.bool_],
    ) -> None:
        self.classifiers = [statistics.fit_without(fold) for fold in range(FOLDS)]
        self.folds, self.features, self.labels, self.classes = folds, features, labels, statistics.classes
        rows = np.flatnonzero(is_kept)
        rows = rows[:: max(1, -(-len(rows) * self.classes // _CHUNK))]
        self.temperature = fit_temperature(self.compute_logits(rows).astype(np.float32), labels[rows])

    def compute_logits(self, rows: Labels) -> Floats:
        """Return float64 [B, K]; a class that a classifier was not fitted to has the lowest logit of the others."""
        logits = np.empty((len(rows), self.classes))
        for fold, (weights, bias, is_fitted) in enumerate(self.classifiers):
            in_fold = np.flatnonzero(self.folds[rows] == fold)
            values = self.features[rows[in_fold]].astype(np.float64) @ weights + bias
            if not is_fitted.all():
                values[:, ~is_fitted] = values[:, is_fitted].min(axis=1, keepdims=True)
            logits[in_fold] = values
        return logits

    def compute_probabilities(self, rows: Labels) -> Floats:
        """Return the softmax of the calibrated logits, float64 [B, K]."""
        z = self.compute_logits(rows) / self.temperature
        p = np.exp(z - z.max(axis=1, keepdims=True))
        return np.asarray(p / p.sum(axis=1, keepdims=True))

    def find_issues(self) -> LabelIssues:
        """Estimate the number of issues from all images, and take as many with the lowest label quality, except where
        the most probable class is the label, or the class has too few images."""
        from cleanlab.experimental.label_issues_batched import LabelInspector
        from cleanlab.rank import find_top_issues

        chunks = [np.arange(len(self.labels))[part] for part in _split_rows(len(self.labels), self.classes)]
        inspector = LabelInspector(
            num_class=self.classes,
            store_results=False,
            verbose=False,
            quality_score_kwargs={"method": "normalized_margin"},
            num_issue_kwargs={"estimation_method": "off_diagonal_calibrated"},
        )
        for rows in chunks:
            inspector.update_confident_thresholds(self.labels[rows], self.compute_probabilities(rows))
        quality, agrees = np.empty(len(self.labels), np.float32), np.zeros(len(self.labels), np.bool_)
        pairs = ConfusionCounts(self.classes)
        for rows in chunks:
            probabilities = self.compute_probabilities(rows)
            quality[rows] = inspector.score_label_quality(self.labels[rows], probabilities)
            predicted = probabilities.argmax(1)
            pairs.add(self.labels[rows], predicted)
            agrees[rows] = predicted == self.labels[rows]
        is_judged = np.bincount(self.labels, minlength=self.classes)[self.labels] >= MIN_CLASS_IMAGES
        number = min(len(quality), int(inspector.get_num_issues()))
        lowest = np.asarray(find_top_issues(quality, top=number)) if number else np.zeros(0, np.int64)
        rows = lowest[~agrees[lowest] & is_judged[lowest]]
        rows = rows[np.lexsort((rows, quality[rows]))]
        suggested = np.empty(len(rows), np.int64)
        label_probability, suggested_probability = (np.empty(len(rows), np.float32) for _ in range(2))
        for part in _split_rows(len(rows), self.classes):
            probabilities = self.compute_probabilities(rows[part])
            suggested[part], suggested_probability[part] = probabilities.argmax(1), probabilities.max(1)
            label_probability[part] = probabilities[np.arange(len(probabilities)), self.labels[rows[part]]]
        is_likely = suggested_probability > MIN_SUGGESTED_PROBABILITY
        issues = LabelIssues(
            rows[is_likely], suggested[is_likely], label_probability[is_likely], suggested_probability[is_likely],
            quality[rows[is_likely]], float(agrees.mean()), int(is_judged.sum()),
        )  # fmt: skip
        if _is_better_than_chance(pairs):
            return issues
        return issues.withdraw(
            f"classifiers that never saw the labels agree with {issues.agreement:.1%} of them, no better than chance: "
            "what they doubt says nothing"
        )


def _is_better_than_chance(pairs: ConfusionCounts) -> bool:
    labels, predicted, counts = pairs.cells()
    support, num_predicted = (np.bincount(ids, counts, pairs.classes) for ids in (labels, predicted))
    totals = ClassTotals(support, num_predicted, int(counts.sum()))
    result = ChanceTest.run(totals, SINGLE, pairs.summary(), CHANCE_COMPARISONS)
    return result is not None and result.is_better


def _split_rows(rows: int, width: int) -> Iterator[slice[int, int, Any]]:
    """Return slices of rows with at most `_CHUNK` numbers each."""
    step = max(1, _CHUNK // width)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
