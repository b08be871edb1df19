"""Find out by the images whether mirrored ones are still of their class, for `--flip auto`.

A classifier on small pixels (an SVC) is cross-validated on training images as they are, and mirrored. Where it knows
many images and far fewer mirrored ones, things have a side: digits, letters, arrows, scans. Mirrored images then are
wrong, or at best never seen in use. Where a class looks as often to the left as to the right, both are known alike; so
they are where pixels tell the classes too badly for an answer, as in most photographs, and flips stay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dataset.labels import MULTI
from ..dataset.manifest import Dataset
from ..imaging.decoder import Pixels
from ..imaging.tensors import shrink
from .data.batches import iter_batches

MAX_IMAGES, FOLDS = 600, 3
MIN_IMAGES = 60
MIN_LOSS = 0.1
"""Share of the images that have to be known less when mirrored, for flips to be off."""
MIN_ERRORS = 4.0
"""Standard errors that they have to be fewer by (McNemar, "Note on the Sampling Error of the Difference Between
Correlated Proportions or Percentages", 1947)."""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MirrorTest:
    """Numbers of images: all, known as they are, known when mirrored, and those that one of both knows alone."""

    images: int
    known: int
    known_mirrored: int
    discordant: int

    @property
    def flips_hurt(self) -> bool:
        loss = self.known - self.known_mirrored
        return loss >= MIN_LOSS * self.images and loss >= MIN_ERRORS * self.discordant**0.5

    def describe(self) -> str:
        """Return a line for log and report, for flips that are off."""
        return (
            f"no flips: a classifier on small pixels knows {self.known / self.images:.0%} of {self.images} training "
            f"images, and {self.known_mirrored / self.images:.0%} of them when they are mirrored (--flip true mirrors)"
        )


def compare_mirrored(images: Pixels, labels: Ids) -> MirrorTest | None:
    """Return the test on images uint8 [N, H, W, C] with labels int64 [N]; None where they are too few."""
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    counts = np.bincount(labels)
    has_enough = (counts >= FOLDS)[labels]
    images, labels = images[has_enough], labels[has_enough]
    if len(images) < MIN_IMAGES or len(np.unique(labels)) < 2:
        return None
    pixels, mirrored = (shrink(array) for array in (images, images[:, :, ::-1]))
    known, known_mirrored = np.zeros(len(labels), bool), np.zeros(len(labels), bool)
    for fitted, held_out in StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(pixels, labels):
        classifier = make_pipeline(StandardScaler(), SVC()).fit(pixels[fitted], labels[fitted])
        known[held_out] = classifier.predict(pixels[held_out]) == labels[held_out]
        known_mirrored[held_out] = classifier.predict(mirrored[held_out]) == labels[held_out]
    discordant = int((known != known_mirrored).sum())
    return MirrorTest(len(labels), int(known.sum()), int(known_mirrored.sum()), discordant)


def probe_flips(tensors: Dataset) -> MirrorTest | None:
    """Return the test on the first training images, which are stored in random order; None without an answer."""
    if tensors.manifest.task == MULTI:
        return None
    images: list[Pixels] = []
    labels: list[Ids] = []
    for batch in iter_batches(tensors, "train", 64, threads=1):
        images.append(np.array(batch.images))
        labels.append(np.array(batch.labels))
        if sum(map(len, labels)) >= MAX_IMAGES:
            break
    return compare_mirrored(np.concatenate(images)[:MAX_IMAGES], np.concatenate(labels)[:MAX_IMAGES])
