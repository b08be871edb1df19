"""How often `--flip auto` turns flips off, by set and number of training images.

    python tests/benchmarks/mirrored.py [--pets FOLDER] [--samples 20]

Random samples of digits and of the imbalanced set (recipes.py), which have a side, of the demo, which has none, and of
Pets, as 37 breeds and as cats and dogs, where FOLDER holds `images.tar.gz`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import harder
import numpy as np
from frozen_features import write_tables
from PIL import Image
from recipes import draw_digits, draw_imbalanced

from imagemill.components.download.demo import draw
from imagemill.components.imaging.decoder import Pixels
from imagemill.components.train.mirror_probe import compare_mirrored

SIDE = 32
Labeled = list[tuple[str, Pixels]]


def _shrink(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))


def read_sets(pets: str) -> Iterator[tuple[str, Labeled]]:
    """Yield name, and label and pixels of each image, of every set."""
    yield "digits", [(label, _shrink(image)) for _, label, image in draw_digits()]
    yield "imbalanced", [(label, _shrink(image)) for split, label, image in draw_imbalanced() if split != "test"]
    yield "demo", [(plan.label, _shrink(draw(seed, plan)[0])) for seed, plan in harder.sound_pictures(5, 0)]
    if pets:
        with tempfile.TemporaryDirectory() as folder:
            write_tables(Path(pets) / "images.tar.gz", Path(folder))
            paths = sorted(Path(folder).rglob("*.jpg"))
            breeds = [(path.stem.rpartition("_")[0], _shrink(Image.open(path))) for path in paths]
        yield "pets", breeds
        yield "cats and dogs", [("cat" if breed[0].isupper() else "dog", pixels) for breed, pixels in breeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pets", default="")
    parser.add_argument("--samples", type=int, default=20)
    given = parser.parse_args()
    print("| set | images | flips off | known | known mirrored |\n" + "|---" * 5 + "|")
    for name, rows in read_sets(given.pets):
        labels = np.unique([label for label, _ in rows], return_inverse=True)[1]
        images = np.stack([pixels for _, pixels in rows])
        for size, samples in ((200, given.samples), (600, max(1, given.samples // 5))):
            orders = [np.random.default_rng(seed).permutation(len(labels))[:size] for seed in range(samples)]
            tests = [test for order in orders if (test := compare_mirrored(images[order], labels[order]))]
            known, mirrored = (np.mean(shares) for shares in (
                [test.known / test.images for test in tests], [test.known_mirrored / test.images for test in tests],
            ))  # fmt: skip
            off = f"{sum(test.flips_hurt for test in tests)} of {len(tests)}"
            print(f"| {name} | {min(size, len(labels))} | {off} | {known:.2f} | {mirrored:.2f} |", flush=True)


if __name__ == "__main__":
    main()
