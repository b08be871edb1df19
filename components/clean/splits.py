"""Split and order as hashes of the content: an image keeps both, whatever else joins the dataset.

`exact_splits` is the exception that a user has to ask for: it holds the fractions in every class, at the price
that an image may change sides when others join.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

SPLITS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
UNDECLARED, TRAINVAL = 3, 4
"""What a source may declare besides the three: nothing, or a part that is divided into train and val."""

Codes = npt.NDArray[np.uint8]


def shuffle_index(sha256: str) -> int:
    """The image's place in the shuffled order: a 63-bit hash of its content, uniform in [0, 2⁶³)."""
    return int.from_bytes(_hash("shuffle", sha256), "big") >> 1


def split_position(sha256: str, group: str | None = None) -> float:
    """The place in [0, 1) on which the fractions are marked off: another hash of the content, or of the group,
    so that the images of one patient or product are never on two sides."""
    found = _hash("split group", group) if group else _hash("split", sha256)
    return int.from_bytes(found, "big") / 2**64


def choose_split(
    sha256: str, declared: str | None, val_fraction: float, test_fraction: float, group: str | None = None
) -> str:
    """`train`, `val` or `test`. A declared split wins; `trainval` is divided, and so is what is undeclared.

    Validation is marked off from 0 and test from 1, so that neither fraction moves the images of the other.
    """
    if declared in SPLITS:
        return str(declared)
    place = split_position(sha256, group)
    if place < val_fraction:
        return "val"
    return "test" if declared != "trainval" and place >= 1 - test_fraction else "train"


def exact_splits(
    declared: Codes, labels: npt.NDArray[np.int64], places: npt.NDArray[np.uint64], fractions: tuple[float, float]
) -> Codes:
    """Split codes [N] that hold the (val, test) `fractions` in every class to the nearest image.

    `declared` [N] as codes (`UNDECLARED`, `TRAINVAL` or a split, which wins); `labels` [N]; `places` [N] orders the
    images of a class, equal ones (a group) stay together, so that the fractions then hold to the nearest group.
    A class keeps at least one training image.
    """
    splits = np.where(declared < UNDECLARED, declared, TRAIN).astype(np.uint8)
    for part, (val, test) in ((UNDECLARED, fractions), (TRAINVAL, (fractions[0], 0.0))):
        rows = np.flatnonzero(declared == part)
        order = rows[np.lexsort((places[rows], labels[rows]))]
        edges = np.flatnonzero(np.diff(labels[order])) + 1
        for members in np.split(order, edges) if len(order) else ():
            _divide(splits, members, places[members], val, test)
    return splits


def _divide(
    splits: Codes, members: npt.NDArray[np.int64], places: npt.NDArray[np.uint64], val: float, test: float
) -> None:
    """Mark the first of `members` as val and the last as test, moving each cut to the nearest end of a group."""
    number = len(members)
    ends = np.concatenate([[0], np.flatnonzero(np.diff(places)) + 1, [number]])
    low = int(ends[np.abs(ends - val * number).argmin()])
    high = int(ends[np.abs(ends - (number - test * number)).argmin()])
    if low >= high:  # nothing would be left to train on
        low, high = (0, int(ends[1])) if len(ends) > 2 else (0, number)
    splits[members[:low]] = VAL
    splits[members[high:]] = TEST


def _hash(salt: str, sha256: str) -> bytes:
    return hashlib.sha256(f"{salt}:{sha256}".encode()).digest()[:8]
