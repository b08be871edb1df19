"""Fit the out-of-distribution detector of a trained network, by one pass over its training and validation images."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...models.features import Floats, HeadInputs
from ...models.ood import MAX_ROWS, OodDetector
from ...step.progress import Progress
from ...step.step import Context
from .validation import Validator

if TYPE_CHECKING:
    import torch


def fit_detector(network: torch.nn.Module, validator: Validator, rate: float, context: Context) -> OodDetector | None:
    """Return the detector, and print its threshold's rate; None for a rate of 0, or without validation images."""
    if not rate:
        return None
    if not validator.has_images:
        context.say("warning: there is no ood_score: no validation images show which distances are usual")
        return None
    rows = validator.tensors.manifest.totals.by_split
    progress = Progress("train", total=sum(min(MAX_ROWS, rows.get(split, 0)) for split in ("train", "val")))
    train, validation = (_read_features(network, validator, split, progress) for split in ("train", "val"))
    detector = OodDetector.fit(train, validation, rate)
    context.say(
        f"ood_score: the distance from {len(train):,} training images, above 1 for {detector.rate:.1%} of images like "
        f"the {len(validation):,} validation images"
    )
    if detector.rate > rate:
        context.say(f"ood_rate {rate:g} needs {round(1 / rate) - 1:,} validation images; with {len(validation):,} the "
                    f"threshold is the largest of their distances")  # fmt: skip
    return detector


def _read_features(network: torch.nn.Module, validator: Validator, split: str, progress: Progress) -> Floats:
    """Return the inputs of the head for the first `MAX_ROWS` images of a split, float32 [N, D], as predict has them."""
    parts: list[Floats] = []
    exact = replace(validator, autocast=contextlib.nullcontext)
    with HeadInputs(network) as inputs, contextlib.closing(exact.predict(network, lambda: None, split)) as predictions:
        for _, labels in predictions:
            parts.append(inputs.read().cpu().numpy())
            progress.add(len(labels), "features for ood_score")
            if sum(map(len, parts)) >= MAX_ROWS:
                break
    return np.concatenate(parts)[:MAX_ROWS]
