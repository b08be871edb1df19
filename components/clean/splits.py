"""Split and order as hashes of the content: an image keeps both, whatever else joins the dataset."""

from __future__ import annotations

import hashlib

SPLITS = ("train", "val", "test")


def shuffle_index(sha256: str) -> int:
    """The image's place in the shuffled order: a 63-bit hash of its content, uniform in [0, 2⁶³)."""
    return int.from_bytes(_hash("shuffle", sha256), "big") >> 1


def split_position(sha256: str) -> float:
    """The image's place in [0, 1) on which the fractions are marked off: another hash of its content."""
    return int.from_bytes(_hash("split", sha256), "big") / 2**64


def choose_split(sha256: str, declared: str | None, val_fraction: float, test_fraction: float) -> str:
    """`train`, `val` or `test`. A declared split wins; `trainval` is divided, and so is what is undeclared.

    Validation is marked off from 0 and test from 1, so that neither fraction moves the images of the other.
    """
    if declared in SPLITS:
        return str(declared)
    place = split_position(sha256)
    if place < val_fraction:
        return "val"
    return "test" if declared != "trainval" and place >= 1 - test_fraction else "train"


def _hash(salt: str, sha256: str) -> bytes:
    return hashlib.sha256(f"{salt}:{sha256}".encode()).digest()[:8]
