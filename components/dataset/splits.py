"""Split and order of images, as hashes of their content: an image keeps both as the dataset grows.

`choose_exact_splits` is the exception that a user has to ask for: it holds the fractions in every class, at the price
that an image may change sides when the dataset grows.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SPLITS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
UNDECLARED, TRAINVAL = 3, 4
"""Codes of what a source may declare besides the three: nothing, or a part that is divided into train and val."""

Codes = npt.NDArray[np.uint8]


def compute_shuffle_index(sha256: str) -> int:
    """Return an image's position in the shuffled order: a 63-bit hash of its content, uniform in [0, 2⁶³)."""
    return int.from_bytes(_hash("shuffle", sha256), "big") >> 1


def compute_split_position(sha256: str, group: str | None = None) -> float:
    """Return the position in [0, 1) that decides the split: another hash of the content, or of the group, so that the
    images of one patient or product are never in two splits."""
    digest = _hash("split group", group) if group else _hash("split", sha256)
    return int.from_bytes(digest, "big") / 2**64


def encode_splits(column: pa.ChunkedArray) -> Codes:
    """Return the codes, uint8 [N], of what a source declares; other text and nulls are undeclared."""
    import pyarrow.compute as pc

    indices = pc.index_in(column, pa.array([*SPLITS, "trainval"])).combine_chunks().fill_null(-1).to_numpy()
    codes: Codes = np.array([*range(len(SPLITS)), TRAINVAL, UNDECLARED], np.uint8)[indices]
    return codes


def choose_splits(
    declared: Codes, positions: npt.NDArray[np.float64], val_fraction: float, test_fraction: float
) -> Codes:
    """Return split codes [N] by the rows' `positions` in [0, 1), each row by itself.

    A declared split wins; `trainval` and undeclared images are divided. Validation is cut off from 0 and test from 1,
    so that neither fraction moves the images of the other.
    """
    is_val = positions < val_fraction
    is_test = (declared != TRAINVAL) & (positions >= 1 - test_fraction)
    splits = np.where(is_val, VAL, np.where(is_test, TEST, TRAIN))
    return np.where(declared < UNDECLARED, declared, splits).astype(np.uint8)


def choose_exact_splits(
    declared: Codes, labels: npt.NDArray[np.int32], positions: npt.NDArray[np.float64], fractions: tuple[float, float]
) -> Codes:
    """Return split codes [N] that hold the (val, test) `fractions` in every class to the nearest image.

    A class keeps at least one training image.

    Args:
        declared: [N] codes: `UNDECLARED`, `TRAINVAL` or a split, which wins.
        labels: [N] classes.
        positions: [N], by which the images of a class are ordered; images of equal position (a group) stay together,
            so that the fractions then hold to the nearest group.
        fractions: shares of val and test.
    """
    splits = np.where(declared < UNDECLARED, declared, TRAIN).astype(np.uint8)
    for part, (val, test) in ((UNDECLARED, fractions), (TRAINVAL, (fractions[0], 0.0))):
        rows = np.flatnonzero(declared == part)
        order = rows[np.lexsort((positions[rows], labels[rows]))]
        edges = np.flatnonzero(np.diff(labels[order])) + 1
        for members in np.split(order, edges) if len(order) else ():
            _divide(splits, members, positions[members], val, test)
    return splits


def _divide(
    splits: Codes, members: npt.NDArray[np.int64], positions: npt.NDArray[np.float64], val: float, test: float
) -> None:
    """Assign the first of `members` to val and the last to test, moving each cut to the nearest end of a group."""
    number = len(members)
    ends = np.concatenate([[0], np.flatnonzero(np.diff(positions)) + 1, [number]])
    low = int(ends[np.abs(ends - val * number).argmin()])
    high = int(ends[np.abs(ends - (number - test * number)).argmin()])
    if low >= high:  # no image would be left for training
        low, high = (0, int(ends[1])) if len(ends) > 2 else (0, number)
    splits[members[:low]] = VAL
    splits[members[high:]] = TEST


def choose_fold_splits(positions: npt.NDArray[np.float64], fold: int, folds: int, val_fraction: float) -> Codes:
    """Return split codes [N] of one fold of cross-validation: images with `positions` in [fold / folds, (fold + 1) /
    folds) are test, the next `val_fraction` around the unit circle are val.

    Over all folds each image is test once, whatever other images there are.
    """
    is_test = np.minimum(positions * folds, folds - 1).astype(np.int64) == fold
    is_val = (positions - (fold + 1) / folds) % 1.0 < val_fraction
    return np.where(is_test, TEST, np.where(is_val, VAL, TRAIN)).astype(np.uint8)


def _hash(salt: str, sha256: str) -> bytes:
    return hashlib.sha256(f"{salt}:{sha256}".encode()).digest()[:8]
