"""Spend the level of significance over the comparisons that the same test images have decided.

Each challenger that a champion is compared with has another chance to look better by luck, and the champion that is
chosen so has a score that is too high (Dwork et al., "The Reusable Holdout", 2015). So the level is spent: of a level
of 5% the first comparison with a champion gets `FIRST_SHARE`, the k-th one `FIRST_SHARE` / k. Comparisons with one
champion are positively correlated, for its luck is in all of them (Dunnett, "A Multiple Comparison Procedure for
Comparing Several Treatments with a Control", 1955): of independent challengers that gain just `min_gain`, one or more
of 52 pass with a probability of 5%, of 520 with 5.4%; of equal ones far fewer do. A comparison counts with the share of
today's images that it was made on, so that images that are new give the level back, and so does a new champion.

Which images earlier comparisons were made on is known from a sketch of their content, the `SKETCH` lowest hashes (Cohen
and Kaplan, "Summarizing Data Using Bottom-k Sketches", 2007), which is exact up to so many images.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

FIRST_SHARE = 0.36
SKETCH = 512
Hashes = npt.NDArray[np.uint64]


def level_left(level: float, uses: float) -> float:
    """Return the level of a comparison before which the images have decided `uses` times."""
    return FIRST_SHARE * level / (1 + uses)


def sketch(content: Hashes) -> str:
    """Return the lowest of the content hashes as text, 11 kB at most."""
    lowest = np.unique(content)[:SKETCH]
    return base64.b64encode(lowest.astype("<u8").tobytes()).decode()


def shared_images(today: str, earlier: str) -> float:
    """Return the share of today's images that an earlier comparison was made on, from both sketches."""
    ours, theirs = (np.frombuffer(base64.b64decode(text), "<u8") for text in (today, earlier))
    for one in (ours, theirs):
        if len(one) == SKETCH:  # above its highest hash a sketch says nothing
            ours, theirs = ours[ours <= one[-1]], theirs[theirs <= one[-1]]
    return float(np.isin(ours, theirs).mean()) if len(ours) else 0.0


def count_uses(today: str, challenger: str, comparisons: Iterable[Mapping[str, Any]]) -> float:
    """Return how often today's images have decided between a champion and other challengers than this one.

    `comparisons`: the records of verdicts on that champion, with the `challenger_model` and the `sketch` of the images.
    Several with one challenger, by other rules, count as the one with the most of today's images.
    """
    shares: dict[str, float] = {}
    for record in comparisons:
        model = str(record.get("challenger_model", ""))
        if model != challenger and "sketch" in record:
            shares[model] = max(shares.get(model, 0.0), shared_images(today, str(record["sketch"])))
    return sum(shares.values())
