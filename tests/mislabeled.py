"""The demo dataset with wrong labels planted among its training images, and what came of a search for them.

The demo has a few mislabeled training images of its own; they count as wrong ones too. Validation and test images
keep their labels: what is asked is whether a model that learned from wrong labels can tell them.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imagemill.components.download.demo import CLASSES, generate, plan

TABLE = "labels.csv"


def plant(folder: Path, share: float, seed: int, demo_seed: int = 0) -> dict[str, str]:
    """Write the demo's files and `labels.csv` (path, label, split) to `folder`; return image_id → true class of every
    training image whose label is wrong there.

    `share` of the sound training images, those that have no copies and no damage, get another class, each with the
    same probability (uniform noise). A function of the arguments alone.
    """
    files = [planned for planned in plan(demo_seed) if planned.label]
    copies = Counter(planned.number for planned in files)
    sound = [p for p in files if p.split == "train" and p.fault is None and copies[p.number] == 1 and not p.damage]
    random = np.random.default_rng([seed, round(1e6 * share)])
    chosen = random.choice(len(sound), round(share * len(sound)), replace=False)
    wrong_labels = {
        sound[i].path: str(random.choice([c for c in CLASSES if c != sound[i].label])) for i in sorted(chosen)
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file in generate(demo_seed):
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_bytes(file.data)
    with (folder / TABLE).open("w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(["path", "label", "split"])
        rows.writerows([p.path, wrong_labels.get(p.path, p.label), p.split] for p in files)
    wrong = {p.path: p.shown for p in files if p.split == "train" and p.shown and p.shown != p.label}
    return wrong | {path: path.split("/")[1] for path in wrong_labels}


@dataclass(frozen=True)
class SearchResult:
    """The result of a search: `hits` of `suspects` are wrong indeed, of `wrong` in all; `suggested` of the hits have
    the true class as suggestion."""

    wrong: int
    suspects: int
    hits: int
    suggested: int

    @property
    def precision(self) -> float:
        return self.hits / self.suspects if self.suspects else 0.0

    @property
    def recall(self) -> float:
        return self.hits / self.wrong if self.wrong else 1.0


def compare(suspects: Iterable[tuple[str, str]], wrong: dict[str, str], seen: Collection[str]) -> SearchResult:
    """(image_id, suggested class) of the suspects against the planted truth, of the images that were `seen`."""
    truth = {image_id: name for image_id, name in wrong.items() if image_id in seen}
    rows = list(suspects)
    hits = [(image_id, name) for image_id, name in rows if image_id in truth]
    return SearchResult(len(truth), len(rows), len(hits), sum(truth[image_id] == name for image_id, name in hits))
