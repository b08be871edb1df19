"""Find labels that are probably wrong by confident learning on features (Northcutt, Jiang and Chuang, "Confident
Learning: Estimating Uncertainty in Dataset Labels", 2021), with cleanlab's counts and scores.

Confident learning needs out-of-sample probabilities. The network was trained on the labels, so scikit-learn's linear
discriminant with a shrunk common covariance (Friedman, "Regularized Discriminant Analysis", 1989) is cross-validated on
its features. Folds keep groups and near-duplicates together, since these often have the same wrong label. The issues of
a first round are removed, the discriminants fitted again and all labels judged again: wrong labels widen the classes
and hide one another.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..dataset.labels import SINGLE
from ..metrics.calibration import fit_temperature
from ..metrics.classification import ConfusionCounts
from .intervals import ChanceTest, ClassTotals
from .linear_probe import assign_folds

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
MIN_LOGIT = -1000.0
"""Of a class that a classifier was not fitted to."""

Features = npt.NDArray[np.float16]
Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


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
        names = ("rows", "suggested", "label_probability", "suggested_probability", "quality")
        return replace(self, problem=problem, **{name: getattr(self, name)[:0] for name in names})


def find_label_issues(features: Features, labels: Labels, folds: Labels | None = None) -> LabelIssues:
    """Judge the labels int64 [N] of images with `features` [N, D]; the same input gives the same result.

    `folds`: [N], 0 to 4 (default: by class alone). At least two classes must have `MIN_CLASS_IMAGES` images. Takes some
    20 bytes for each image and class.
    """
    folds = assign_folds(labels, np.arange(len(labels))) if folds is None else folds
    ids, encoded = np.unique(labels, return_inverse=True)
    issues = _judge(features, encoded, folds, np.ones(len(labels), np.bool_))
    if issues.problem:  # without the labels that they disagree with, any classifiers would agree with the rest
        return issues
    issues = _judge(features, encoded, folds, ~np.isin(np.arange(len(labels)), issues.rows))
    issues = replace(issues, suggested=ids[issues.suggested])
    share = len(issues.rows) / max(1, len(labels))
    agreement = issues.agreement / max(1e-9, 1 - share)  # suspected labels are those that they disagree with
    if issues.problem or agreement >= (MIN_AGREEMENT_OF_MANY if share > MANY_SUSPECTS else MIN_AGREEMENT):
        return issues
    return issues.withdraw(
        f"classifiers that never saw the labels doubt {share:.1%} of them and agree with only {agreement:.1%} of the "
        "others: they don't know the classes well enough to tell"
    )


def _judge(features: Features, labels: Labels, folds: Labels, is_kept: npt.NDArray[np.bool_]) -> LabelIssues:
    """Estimate the number of issues, and take as many with the lowest label quality, except where the most probable
    class is the label, or the class has too few images. `is_kept`: bool [N], the images that are fitted to."""
    from cleanlab.rank import get_label_quality_scores

    probabilities = _cross_validate(features, labels, folds, is_kept)
    quality = get_label_quality_scores(labels, probabilities, method="normalized_margin")
    predicted, rows = probabilities.argmax(1), np.arange(len(labels))
    is_judged = np.bincount(labels)[labels] >= MIN_CLASS_IMAGES
    number = _count_issues(labels, probabilities)
    lowest = np.lexsort((rows, quality))[:number]
    suspects = lowest[(predicted != labels)[lowest] & is_judged[lowest]]
    suspects = suspects[probabilities[suspects, predicted[suspects]] > MIN_SUGGESTED_PROBABILITY]
    issues = LabelIssues(
        suspects, predicted[suspects], probabilities[suspects, labels[suspects]],
        probabilities[suspects, predicted[suspects]], quality[suspects].astype(np.float32),
        float((predicted == labels).mean()), int(is_judged.sum()),
    )  # fmt: skip
    if _is_better_than_chance(labels, predicted):
        return issues
    return issues.withdraw(
        f"classifiers that never saw the labels agree with {issues.agreement:.1%} of them, no better than chance: "
        "what they doubt says nothing"
    )


def _count_issues(labels: Labels, probabilities: Floats) -> int:
    """Return confident learning's estimate of the number of issues, calibrated to the images of each class.

    An image counts where its most probable class is at least as probable as it is on average of the images that have
    its label; of a class, the share of counted images whose most probable class is another.
    """
    predicted, images = probabilities.argmax(1), np.bincount(labels)
    rows = np.arange(len(labels))
    thresholds = np.bincount(labels, probabilities[rows, labels]) / images
    is_confident = probabilities[rows, predicted] >= thresholds[predicted] - 1e-6
    confident, others = (
        np.bincount(labels[chosen], minlength=len(images))
        for chosen in (is_confident, is_confident & (predicted != labels))
    )
    return round(float((others * images / np.maximum(1, confident)).sum()))


def _cross_validate(features: Features, labels: Labels, folds: Labels, is_kept: npt.NDArray[np.bool_]) -> Floats:
    """Return probabilities float32 [N, K] by discriminants of the other folds, calibrated on the labels that are kept.

    Logits are divided by the square root of D before, since correlated dimensions are counted as if they were
    independent.
    """
    from scipy.special import softmax
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import cross_val_predict

    splits = [(np.flatnonzero(is_kept & (folds != fold)), np.flatnonzero(folds == fold)) for fold in np.unique(folds)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes of one image, or that a fold lacks
        logits = cross_val_predict(
            LinearDiscriminantAnalysis("lsqr", SHRINKAGE), features.astype(np.float32), labels, cv=splits,
            method="predict_log_proba",
        )  # fmt: skip
    logits = np.maximum(logits, MIN_LOGIT).astype(np.float32) / np.float32(np.sqrt(features.shape[1]))
    probabilities: Floats = softmax(logits / fit_temperature(logits[is_kept], labels[is_kept]), axis=1)
    return probabilities


def _is_better_than_chance(labels: Labels, predicted: Labels) -> bool:
    pairs = ConfusionCounts(int(labels.max()) + 1)
    pairs.add(labels, predicted)
    support, num_predicted = (np.bincount(ids, minlength=pairs.classes) for ids in (labels, predicted))
    result = ChanceTest.run(
        ClassTotals(support, num_predicted, len(labels)), SINGLE, pairs.summary(), CHANCE_COMPARISONS
    )
    return result is not None and result.is_better
