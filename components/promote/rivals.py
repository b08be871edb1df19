"""The report's section on challenger and champion, side by side on the images that the gate compares them on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..store.labels import SINGLE
from ..store.manifest import Dataset
from .difference import ClassCounts, difference
from .paired import Pair, has_content
from .quality import BAR_ENDS, ends


def rivals(challenger: Dataset, champion: Dataset) -> dict[str, Any]:
    """Both models' scores on the images that the gate compares them on, and F1 by class, the largest gain first, as
    bars from `zero` (percent of the width). `why` says why there is no comparison where there is none."""
    nothing: dict[str, Any] = {"rows": [], "omitted": 0, "zero": 0.0}
    tasks = [one.manifest.extra.get("model_task", SINGLE) for one in (challenger, champion)]
    if tasks[0] != tasks[1]:
        return nothing | {"why": "One of them gives an image one label, the other several: they can't be compared."}
    if not all(has_content(one) for one in (challenger, champion)):
        return nothing | {"why": "The champion's evaluation is an earlier release's: they are not compared here."}
    pair = Pair.read(challenger, champion)
    if not len(pair.labels.classes):
        return nothing | {"why": "No test image is left that both can be compared on."}
    ours, theirs = (scores["f1"] for scores in reversed(ClassCounts.of(pair).scores()))
    rows: list[dict[str, Any]] = [
        {"label": name, "challenger": float(new), "champion": float(old), "gain": float(new - old)}
        for name, new, old, images in zip(pair.classes, ours, theirs, _support(pair), strict=True)
        if images
    ]
    rows.sort(key=lambda row: (-row["gain"], row["label"]))
    most, least = (max([sign * row["gain"] for row in rows] + [0.0]) for sign in (1, -1))
    span = (most + least) or 1.0
    for row in rows:
        row["left"] = 100 * (least + min(0.0, row["gain"])) / span
        row["width"] = 100 * abs(row["gain"]) / span
    omitted = max(0, len(rows) - 2 * BAR_ENDS)
    both = {metric: difference(pair, metric) for metric in ("top1", "macro_f1")}
    about = {"images": pair.images, "left_out": pair.left_out, "new": pair.new, "both": both}
    return about | {"rows": ends(rows), "omitted": omitted, "zero": 100 * least / span, "why": ""}


def _support(pair: Pair) -> list[int]:
    """Images of each class that count."""
    return [int(number) for number in np.bincount(pair.labels.classes, minlength=len(pair.classes))]
