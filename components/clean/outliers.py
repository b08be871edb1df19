"""Images far from the rest of the dataset in some measure, by a score that outliers themselves can't blunt.

Modified z-score of Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993: distance from the median in
units of the median absolute deviation, scaled to standard deviations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .verdicts import Verdict, Verdicts

SCALE_MAD, SCALE_MEAN = 0.6745, 0.7979
"""Median and mean of the absolute deviation of a standard normal variable."""
LOGARITHMIC = frozenset({"sharpness", "aspect_ratio", "bytes_per_pixel"})
"""Measures that vary by factors: their logarithms are compared (of 1 + sharpness, which may be 0)."""
NAMED = 20
"""So many outliers of a measure, the farthest, are named in the manifest."""


def find_outliers(verdicts: Verdicts, names: tuple[str, ...], threshold: float, policy: str) -> None:
    """Count and name the outliers of each measure, and drop them where `policy` is drop."""
    table, rows = verdicts.table, np.flatnonzero(verdicts.alive)
    found: dict[str, Any] = {}
    worst: dict[int, Verdict] = {}
    for name in names if table.measured and len(rows) else ():
        values = table.measures[name][rows]
        scores = robust_scores(comparable(name, values))
        far = np.flatnonzero(scores > threshold)
        if not len(far):
            continue
        farthest = far[np.argsort(-scores[far], kind="stable")]
        ids = table.names(rows[farthest[:NAMED]])
        median = float(np.median(values))
        found[name] = {
            "count": len(far),
            "median": round(median, 6),
            "examples": [
                {
                    "image_id": ids[int(rows[i])].image_id,
                    "value": round(float(values[i]), 6),
                    "score": round(float(scores[i]), 2),
                }
                for i in farthest[:NAMED]
            ],
        }
        if policy == "drop":
            for i in farthest:
                said = f"{name} {values[i]:.4g}, {scores[i]:.1f} spreads from the median {median:.4g}"
                worst.setdefault(int(rows[i]), Verdict("outlier", said))
    for row, verdict in worst.items():
        verdicts.drop(row, verdict)
    verdicts.found["outliers"] = found


def comparable(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The values on the scale on which their distances mean something."""
    wide = values.astype(np.float64)
    if name not in LOGARITHMIC:
        return wide
    return np.log1p(wide) if name == "sharpness" else np.log(np.maximum(wide, 1e-9))


def robust_scores(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[N] scores, none negative. Where half of the values are equal the mean deviation takes the median's place;
    where all are, nothing is an outlier."""
    away = np.abs(values - np.median(values))
    spread = float(np.median(away)) / SCALE_MAD
    if spread < 1e-9:
        spread = float(away.mean()) / SCALE_MEAN
    scores: npt.NDArray[np.float64] = away / spread if spread >= 1e-9 else np.zeros_like(away)
    return scores
