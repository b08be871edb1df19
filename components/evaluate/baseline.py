"""Score a linear model on the test images: the baseline that a trained network has to beat.

Where training started from pretrained weights it is the probe on their frozen features, which train has solved. Else it
is scikit-learn's logistic regression on small pixels (`imaging.tensors.shrink`), standardized, on their first principal
components. It takes seconds whatever the dataset's size, because `MAX_IMAGES` bound what it is fitted to. Classes weigh
alike where they do in the metric that the model was kept for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataset.kinds import Baseline, ModelExtra
from ..dataset.labels import MULTI, THRESHOLD
from ..dataset.manifest import Dataset
from ..imaging.tensors import SMALL_SIDE, shrink
from ..metrics.classification import ConfusionCounts, LabelCounts
from ..models.features import LinearProbe, find_features, iter_features
from ..step.config import METRIC_TITLES
from ..step.progress import format_scores
from .inference import find_tensors, read_tensor_batches

MAX_IMAGES, MAX_LABELS = 10_000, 1_000_000
"""Training images that are fitted to, and their number times that of the classes: the first ones as they are stored, in
random order."""
COMPONENTS = 128
INVERSE_PENALTY = 0.01
"""scikit-learn's C, for components of standardized pixels."""
_BATCH = 128

Floats = npt.NDArray[np.float32]


def score_baseline(model: Dataset, clean: Dataset, metrics: Mapping[str, float]) -> Baseline | None:
    """Return the scores of the baseline, and whether the model, whose are `metrics`, stays below it.

    None where the model's tensors are of other images, or hold too few of them for a linear model.
    """
    tensors = find_tensors(model, clean)
    if tensors is None:
        return None
    baseline = _score_probe(model, tensors) or _score_pixels(tensors, _read_metric(model) != "top1")
    if baseline is None or baseline.images != clean.manifest.totals.by_split.get("test", 0):
        return None
    metric = _read_metric(model)
    metric = metric if metric in metrics and metric in baseline.scores else "macro_f1"
    if round(metrics[metric], 6) >= baseline.scores[metric]:
        return baseline
    return replace(baseline, why=_describe_shortfall(baseline, metric, metrics[metric], model))


def describe_baseline(baseline: Baseline) -> str:
    """Return a line for the log."""
    return f"baseline, {baseline.name}: {format_scores(baseline.scores)} on the same images"


def _read_metric(model: Dataset) -> str:
    return str(model.manifest.config.get("metric", "macro_f1"))


def _describe_shortfall(baseline: Baseline, metric: str, score: float, model: Dataset) -> str:
    extra, config = ModelExtra.of(model.manifest), model.manifest.config
    advice = ["--recipe probe, which is this baseline"] if baseline.has_features else ["pretrained weights (--weights)"]
    if extra.epochs is not None:
        advice.append(f"more epochs (--epochs, {extra.epochs} trained)")
    if config.get("recipe", "auto") != "auto":
        advice.append(f"--recipe auto instead of {config['recipe']}")
    return (
        f"the model stays below its baseline: {METRIC_TITLES[metric]} {score:.3f} on {baseline.images:,} test images, "
        f"where {baseline.name} has {baseline.scores[metric]:.3f}; try {' or '.join(advice)}"
    )


def _score_probe(model: Dataset, tensors: Dataset) -> Baseline | None:
    """Score the probe of a model on frozen features; None where it has none, or these are gone or saw the labels."""
    probe, features = LinearProbe.read(model), find_features(model)
    if probe is None or features is None or features.parent_uri("tensors") != tensors.uri:
        return None
    counts = ConfusionCounts(len(tensors.manifest.classes))
    for inputs, labels in iter_features(features, "test"):
        counts.add(labels, probe(inputs).argmax(1))
    backbone = features.manifest.config["backbone"]
    return _make_baseline(f"a linear probe on the frozen features of {backbone}", counts, has_features=True)


def _score_pixels(tensors: Dataset, is_balanced: bool) -> Baseline | None:
    """Fit logistic regression to the first training images, and score it on the test images; None where the training
    images have no two classes."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    is_multi, classes = tensors.manifest.task == MULTI, len(tensors.manifest.classes)
    counts: ConfusionCounts | LabelCounts = LabelCounts(classes) if is_multi else ConfusionCounts(classes)
    pixels, labels = _read_train_pixels(tensors, max(_BATCH, min(MAX_IMAGES, MAX_LABELS // max(1, classes))))
    known = np.flatnonzero(labels.any(0) & ~labels.all(0)) if is_multi else np.unique(labels)
    if len(known) < (1 if is_multi else 2):
        return None
    regression: Any = LogisticRegression(
        C=INVERSE_PENALTY, class_weight="balanced" if is_balanced else None, max_iter=200, tol=1e-3
    )
    components = min(COMPONENTS, len(pixels), pixels.shape[1])
    classifier = make_pipeline(
        StandardScaler(), PCA(components, svd_solver="randomized" if components == COMPONENTS else "full",
                              random_state=0),
        OneVsRestClassifier(regression) if is_multi else regression,
    )  # fmt: skip
    classifier.fit(pixels, labels[:, known] if is_multi else labels)
    for batch_pixels, batch_labels in _read_pixels(tensors, "test"):
        scores = np.zeros((len(batch_pixels), classes))
        scores[:, known] = classifier.predict_proba(batch_pixels).reshape(len(batch_pixels), len(known))
        if isinstance(counts, LabelCounts):
            counts.add(batch_labels, scores >= THRESHOLD, scores.argmax(1))
        else:
            counts.add(batch_labels, scores.argmax(1))
    return _make_baseline(f"logistic regression on {SMALL_SIDE}x{SMALL_SIDE} pixels", counts)


def _make_baseline(name: str, counts: ConfusionCounts | LabelCounts, has_features: bool = False) -> Baseline:
    scores = {metric: round(float(value), 6) for metric, value in counts.summary().items() if metric in METRIC_TITLES}
    images = counts.images if isinstance(counts, LabelCounts) else int(counts.cells()[2].sum())
    return Baseline(name, images, scores, has_features)


def _read_train_pixels(tensors: Dataset, limit: int) -> tuple[Floats, npt.NDArray[Any]]:
    parts: list[tuple[Floats, npt.NDArray[Any]]] = []
    for part in _read_pixels(tensors, "train"):
        parts.append(part)
        if sum(len(labels) for _, labels in parts) >= limit:
            break
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return pixels[:limit], labels[:limit]


def _read_pixels(tensors: Dataset, split: str) -> Iterator[tuple[Floats, npt.NDArray[Any]]]:
    """Yield (mean values of the cells, [B, C * cells], labels) of a split."""
    for batch in read_tensor_batches(tensors, split, _BATCH):
        yield shrink(batch.images), batch.labels
