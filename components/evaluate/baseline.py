"""The baseline of a report: a linear probe on the frozen features of the pretrained network that training started from.

Train solved it; here it is scored on the same test images as the model.
"""

from __future__ import annotations

import numpy as np

from ..dataset.kinds import Baseline
from ..dataset.manifest import Dataset
from ..metrics.classification import confusion, summarize_confusion
from ..models.features import LinearProbe, find_features, iter_features
from .inputs import find_tensors


def score_baseline(model: Dataset, clean: Dataset) -> Baseline | None:
    """Return the scores of a model's linear probe on the clean dataset's test images; None where the model has none, or
    its tensors are of other images."""
    probe, tensors, features = LinearProbe.read(model), find_tensors(model, clean), find_features(model)
    if probe is None or tensors is None or features is None or features.parent_uri("tensors") != tensors.uri:
        return None
    classes = len(tensors.manifest.classes)
    matrix = np.zeros((classes, classes), np.int64)
    for inputs, labels in iter_features(features, "test"):
        matrix += confusion(labels, probe(inputs).argmax(1), classes)
    images = int(matrix.sum())
    if not images or images != clean.manifest.totals.by_split.get("test", 0):
        return None
    scores = summarize_confusion(matrix)
    top1, macro_f1 = (round(float(scores[name]), 6) for name in ("top1", "macro_f1"))
    return Baseline(top1, macro_f1, images, str(features.manifest.config["backbone"]))


def describe_baseline(baseline: Baseline) -> str:
    """Return a line for the log."""
    return (
        f"baseline, a linear probe on the frozen features of {baseline.backbone}: top-1 {baseline.top1:.3f} · "
        f"macro-F1 {baseline.macro_f1:.3f} on the same images"
    )
