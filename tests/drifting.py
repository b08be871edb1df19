"""Rows of clean datasets drawn at random, for tests and benchmarks of drift."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from imagemill.components.clean.drift import compare_rows
from imagemill.components.metrics.drift import Comparison

SPREAD = 0.15
"""The standard deviation of the brightness."""
SHARES = np.array([0.3, 0.2, 0.12, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02])
"""The classes' shares."""


def draw_table(rng: np.random.Generator, start: int, rows: int, darker: float = 0.0, more: float = 0.0) -> pa.Table:
    """Rows as clean has them: measures that depend on one another, sizes with frequent values, ten classes.

    Args:
        start: of the hashes, which count up.
        darker: in standard deviations of the brightness.
        more: added to the share of the third class, and taken from the others alike.
    """
    common = rng.normal(size=rows)
    shares = SHARES * (1 - more / (1 - SHARES[2]))
    shares[2] = SHARES[2] + more
    return pa.table(
        {
            "sha256": [str(number) for number in range(start, start + rows)],
            "label": rng.choice([f"class {number}" for number in range(10)], rows, p=shares),
            "width": rng.choice([500, 640, 1024, 333], rows, p=[0.5, 0.3, 0.15, 0.05]),
            "height": rng.choice([375, 500], rows),
            "brightness": 0.5 + SPREAD * (rng.normal(size=rows) - darker),
            "contrast": 0.2 + 0.05 * common,
            "sharpness": np.exp(6 + common + rng.normal(size=rows)),
            "entropy": 7 + 0.3 * common,
            "colorfulness": np.maximum(0, rng.normal(30, 25, rows)),
            "bytes_per_pixel": np.exp(common / 2 - 1),
        }
    )


def draw_week(rng: np.random.Generator, rows: int, new: int, darker: float = 0.0, more: float = 0.0) -> Comparison:
    """Compare `rows` rows and `new` more with those `rows`."""
    reference, added = draw_table(rng, 0, rows), draw_table(rng, rows, new, darker, more)
    return compare_rows(pa.concat_tables([reference, added]), reference, {})


def draw_features(
    rng: np.random.Generator, rows: int, shift: float = 0.0, dimensions: int = 256
) -> npt.NDArray[np.float32]:
    """Draw features float32 [rows, dimensions] of a few groups of images, each direction with less spread than the one
    before; `shift`: in standard deviations, along one direction of the leading ones."""
    spread = 1 / np.sqrt(np.arange(1, dimensions + 1))
    centers = np.random.default_rng(0).normal(size=(10, dimensions)) * spread
    features = centers[rng.integers(0, 10, rows)] + rng.standard_t(5, (rows, dimensions)) * spread
    features[:, :4] += shift / 2 * np.sqrt(8 / 3) * spread[:4]  # the variances are 1, of the groups, and 5/3
    return features.astype(np.float32)
