"""What `imagemill run` makes of four sets without any option, beside scikit-learn on the same images.

    python tests/benchmarks/recipes.py [--sets digits imbalanced demo pets] [--seeds 3] [--pets FOLDER]
                                       [--workspace FOLDER] [--json FILE] [--set name=value ...]

*digits*: scikit-learn's 1,797 of 8 x 8 pixels. *imbalanced*: 364 images of 32 pixels in six classes of 160 to 8, and 40
test images of each. *demo*: the demo. *pets*: a sample of Oxford-IIIT Pet as frozen_features.py splits it (its first
split), with EfficientNet-Lite0's ImageNet weights; FOLDER holds `images.tar.gz`. Each run is the real command with
another `--seed`. scikit-learn fits a logistic regression and an SVC, both with balanced classes, to the
images that train and validation have: on the frozen features where there are weights, else on the pixels of the
tensors, at most 32 a side; the better one on the test images counts. The bar is two points of macro-F1 under that.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mill
import numpy as np
from frozen_features import write_tables
from lite0 import BACKBONE, INPUT, write_weights
from PIL import Image

from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.models.features import find_features, read_features
from imagemill.components.train.data.batches import iter_batches

BAR = 0.02
COUNTS, TEST_IMAGES = (160, 90, 54, 34, 18, 8), 40
PIXELS = 32
"""Side at most of the images whose pixels are features."""
Row = tuple[str, str, Image.Image]
"""Split, label and image."""


def draw_digits() -> Iterator[Row]:
    """Yield scikit-learn's digits, a fifth of each for test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    _, test = train_test_split(np.arange(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=0)
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "test" if number in set(test.tolist()) else "trainval"
        yield split, str(label), Image.fromarray((pixels * 255 / 16).astype(np.uint8))


def draw_imbalanced() -> Iterator[Row]:
    """Yield images of 32 pixels: of each class a soft pattern of colors, shifted, in changing light, under noise."""
    random = np.random.default_rng(0)
    for label, count in enumerate(COUNTS):
        pattern = random.integers(0, 256, (5, 5, 3)).astype(np.uint8)
        smooth = np.asarray(Image.fromarray(pattern).resize((44, 44), Image.Resampling.BICUBIC), np.float32)
        for number in range(count + TEST_IMAGES):
            x, y = random.integers(0, 13, 2)
            image = 128 + (smooth[y : y + 32, x : x + 32] - 128) * random.uniform(0.3, 1) + random.uniform(-40, 40)
            image = np.clip(image + random.normal(0, 45, image.shape), 0, 255)
            yield "trainval" if number < count else "test", f"pattern {label}", Image.fromarray(image.astype(np.uint8))


def write_images(rows: Iterator[Row], folder: Path) -> Path:
    """Write the images as PNG, and return their table of path, label and split."""
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "labels.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        for number, (split, label, image) in enumerate(rows):
            image.save(folder / f"{number}.png")
            writer.writerow((f"{number}.png", label, split))
    return table


def list_arguments(name: str, folder: Path, pets: str) -> list[str]:
    """Return the arguments of `imagemill run` for a set, whose images are written."""
    if name == "demo":
        return []
    if name == "pets":
        table = write_tables(Path(pets) / "images.tar.gz", folder / "pets")[0]
        weights = write_weights(folder / "lite0.safetensors")
        return ["--dataset", "csv", "--source", str(table), "--backbone", BACKBONE, "--weights", str(weights), *INPUT]
    rows = {"digits": draw_digits, "imbalanced": draw_imbalanced}[name]()
    return ["--dataset", "csv", "--source", str(write_images(rows, folder / name))]


def score_scikit_learn(tensors_uri: str, model_uri: str) -> dict[str, float]:
    """Return the macro-F1 on the test images of both classifiers of scikit-learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    features = find_features(read_dataset(model_uri, "model"))

    def read(split: str) -> tuple[Any, Any]:
        if features:
            return read_features(features, split)
        batches = list(iter_batches(read_dataset(tensors_uri, "tensors"), split, 256))
        images = np.concatenate([batch.images for batch in batches])
        side = min(PIXELS, images.shape[1])
        small = [np.asarray(Image.fromarray(image.squeeze()).resize((side, side), Image.Resampling.BOX)).ravel()
                 for image in images]  # fmt: skip
        return np.stack(small) / 255, np.concatenate([batch.labels for batch in batches])

    parts = [read(split) for split in ("train", "val")]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    test_x, test_y = read("test")
    classifiers = {
        "logistic regression": LogisticRegression(class_weight="balanced", max_iter=2000),
        "SVC": SVC(class_weight="balanced"),
    }
    scores = {}
    for name, classifier in classifiers.items():
        predicted = make_pipeline(StandardScaler(), classifier).fit(x, y).predict(test_x)
        scores[name] = float(f1_score(test_y, predicted, average="macro"))
    return scores


def measure(arguments: list[str], name: str, seed: int) -> dict[str, Any]:
    """Return one run's macro-F1, its train step's seconds, and those of scikit-learn on the same images."""
    result = mill.run(
        *["run", "--json", "--name", name, "--seed", str(seed), "--promote", "never", "--review", "false", *arguments],
        timeout=8 * 3600,
    )
    if result.rc:
        sys.exit(result.stderr)
    step = result.json["steps"]["train"]
    row = {"set": name, "seed": seed, "macro_f1": result.json["metrics"]["macro_f1"]}
    row |= {"top1": result.json["metrics"]["top1"], "seconds": step["seconds"], "cpu": result.worked}
    return row | score_scikit_learn(result.json["tensors"], result.json["model"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["digits", "imbalanced", "demo"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pets", default="")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="more parameters, for all")
    parser.add_argument("--workspace", default="")
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    more = [word for pair in given.set for word in (f"--{pair.partition('=')[0]}", pair.partition("=")[2])]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given.workspace or scratch).absolute()
        for name in given.sets:
            arguments = [*list_arguments(name, folder, given.pets), "--workspace", str(folder / "workspace"), *more]
            for seed in range(given.seeds):
                rows.append(measure(arguments, name, seed))
                print(json.dumps(rows[-1]), flush=True)
    print("| set | macro-F1 | logistic regression | SVC | within 2 points | training, s |\n" + "|---" * 6 + "|")
    for name in given.sets:
        own = [row for row in rows if row["set"] == name]
        scores = [statistics.mean(row[key] for row in own) for key in ("macro_f1", "logistic regression", "SVC")]
        each = ", ".join(f"{row['macro_f1']:.3f}" for row in own)
        passed = "yes" if scores[0] >= max(scores[1:]) - BAR else "no"
        seconds = statistics.mean(row["seconds"] for row in own)
        print(f"| {name} | {scores[0]:.3f} ({each}) | {scores[1]:.3f} | {scores[2]:.3f} | {passed} | {seconds:.0f} |")
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
