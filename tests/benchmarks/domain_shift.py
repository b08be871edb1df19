"""What `--domain-adversarial` gains on images that look different from those with labels.

    python tests/benchmarks/domain_shift.py [--seeds 5] [--epochs 20] [--image-size 48] [--train 600] [--test 600]
                                            [--lite0] [--flags "--recipe plain"] [--variants NAME ...] [--json FILE]

The source has the demo's shapes on plain backgrounds of one color, the target the same shapes on dead leaves: discs and
rectangles that cover one another, whose sizes follow a power law, with a texture of the spectrum 1/f, as photographs
have both (Lee, Mumford and Huang, "Occlusion models for natural images", 2001). Each seed draws its own images and
trains once on the source alone and once with the target's images, of which no label is used; the epoch is chosen on
validation images of the source. *Labels of the target* is trained on the target's training images with their labels:
what there is to gain. Printed is top-1 on test images of both, mean over the seeds, and the 95% interval (Student) of
the paired difference to training on the source alone. The models are those of `imagemill train`; with `--lite0` they
begin with EfficientNet-Lite0's ImageNet weights.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from lite0 import BACKBONE, write_weights
from stored import commit_tensors, make_rows

from imagemill.components.dataset.kinds import ImageSpec, TensorsExtra
from imagemill.components.dataset.manifest import Dataset, Parent, read_dataset
from imagemill.components.download import demo_shapes
from imagemill.components.models.artifact import load_model
from imagemill.components.train import STEP
from imagemill.components.train.loop.validation import Validator

SOURCE, ADVERSARIAL, LABELS = "source alone", "domain-adversarial", "labels of the target"
LEAVES, LEAF_SIZES = 60, (0.03, 0.6)
"""Dead leaves on an image, and their radii as shares of its side."""
Rng = np.random.Generator


def draw_plain(rng: Rng, width: int, height: int, colors: tuple[Any, Any]) -> Image.Image:
    """Draw a background of one color."""
    return Image.new("RGB", (width, height), tuple(int(value) for value in colors[0]))


def draw_leaves(rng: Rng, width: int, height: int, colors: tuple[Any, Any]) -> Image.Image:
    """Draw dead leaves of any color with a 1/f texture; radii r have the density r^-3."""
    image = Image.new("RGB", (width, height), tuple(rng.integers(20, 235, 3).tolist()))
    draw, (low, high) = ImageDraw.Draw(image), LEAF_SIZES
    for _ in range(LEAVES):
        radius = min(width, height) / math.sqrt(rng.uniform(high**-2, low**-2))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        color = tuple(rng.integers(10, 245, 3).tolist())
        if rng.random() < 0.5:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
        else:
            turns = (rng.uniform(0, math.pi) + k * math.pi / 2 for k in range(4))
            draw.polygon([(x + radius * math.cos(a), y + radius * math.sin(a)) for a in turns], fill=color)
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequencies[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(height, width))) / frequencies
    texture = np.fft.irfft2(spectrum, (height, width))
    pixels = np.asarray(image, np.float32) + (25 * texture / texture.std()).astype(np.float32)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def draw_images(number: int, size: int, background: Any, rng: Rng) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Return uint8 [number, size, size, 3] and class ids."""
    labels = [n % len(demo_shapes.CLASSES) for n in range(number)]
    with patch.object(demo_shapes, "_draw_background", background):
        images = [
            demo_shapes.render(demo_shapes.CLASSES[label], rng, 2 * size, 2 * size).resize(
                (size, size), Image.Resampling.BOX
            )
            for label in labels
        ]
    return np.stack([np.asarray(image) for image in images]), labels


def write_tensors(workspace: Path, name: str, sizes: dict[str, int], side: int, background: Any, rng: Rng) -> Dataset:
    """Write a tensors dataset with that many images of each split."""
    uri = str(workspace / "tensors" / name)
    rows = [
        row for split, number in sizes.items() for row in make_rows(split, *draw_images(number, side, background, rng))
    ]
    image = ImageSpec((side, side, 3), mean=(0.5,) * 3, std=(0.5,) * 3)
    parents, extra = (Parent(f"../../clean/{name}", name, ""),), TensorsExtra(dataset_name=name)
    return commit_tensors(
        uri,
        rows,
        (side, side, 3),
        64,
        parents=parents,
        classes=demo_shapes.CLASSES,
        image=image,
        extra=extra,
    )


@dataclass(frozen=True)
class Score:
    """Top-1 on the test images of both domains, the kept epoch, and the last epoch's domain accuracy, if any."""

    source: float
    target: float
    best_epoch: int
    domain_accuracy: float | None


def compute_top1(model: Dataset, tensors: Dataset) -> float:
    """Return top-1 on the test split."""
    network, _ = load_model(model)
    validator = Validator(tensors, 128, torch.device("cpu"), nullcontext)
    pairs = [(logits.argmax(1).numpy(), labels) for logits, labels in validator.predict(network, lambda: None, "test")]
    return float(np.mean(np.concatenate([predicted == labels for predicted, labels in pairs])))


def train_seed(folder: Path, seed: int, given: argparse.Namespace) -> dict[str, Score]:
    """Draw the images of a seed, and return the scores of each variant."""
    rng, workspace = np.random.default_rng(seed), folder / str(seed)
    rows = {"train": given.train, "val": max(60, given.train // 5), "test": given.test}
    source = write_tensors(workspace, "0" * 15 + "1", rows, given.image_size, draw_plain, rng)
    target = write_tensors(workspace, "0" * 15 + "2", rows, given.image_size, draw_leaves, rng)
    variants = {
        SOURCE: [source.uri], ADVERSARIAL: [source.uri, "--domain-adversarial", target.uri], LABELS: [target.uri],
    }  # fmt: skip
    weights = ["--backbone", BACKBONE, "--weights", str(folder / "lite0.safetensors")] if given.lite0 else []
    scores = {}
    for variant in given.variants:
        result = workspace / "result.json"
        words = ["--workspace", str(workspace), "--seed", str(seed), "--epochs", str(given.epochs)]
        words += ["--result", str(result), "--tensorboard", "false", "--tensors", *variants[variant]]
        words += [*weights, *given.flags.split()]
        if STEP.main(words):
            sys.exit(f"{variant}: train failed")
        model = read_dataset(json.loads(result.read_text())["uri"], "model")
        extra: Any = model.manifest.extra
        accuracy = extra.history[-1].get("domain_accuracy")
        scores[variant] = Score(compute_top1(model, source), compute_top1(model, target), extra.best_epoch, accuracy)
        print(f"seed {seed} {variant}: {scores[variant]}", flush=True)
    return scores


def compute_interval(differences: list[float]) -> tuple[float, float]:
    """Return the 95% interval of the mean by Student's distribution."""
    mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    margin = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return mean - margin, mean + margin


def format_table(scores: list[dict[str, Score]]) -> str:
    """Return the results as Markdown."""
    columns = defaultdict(list)
    for by_variant in scores:
        for variant, score in by_variant.items():
            columns[variant].append(score)
    lines = [
        "| training | source | target | difference on the target | by seed | domain accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for variant, column in columns.items():
        differences = [score.target - first.target for score, first in zip(column, columns[SOURCE], strict=True)]
        cells = ["", ""]
        if variant != SOURCE and len(column) > 1:
            low, high = compute_interval(differences)
            cells = [f"{statistics.mean(differences):+.3f} ({low:+.3f} to {high:+.3f})"]
            cells += [", ".join(f"{difference:+.3f}" for difference in differences)]
        accuracies = [score.domain_accuracy for score in column if score.domain_accuracy is not None]
        means = [statistics.mean(getattr(score, domain) for score in column) for domain in ("source", "target")]
        cells = [f"{means[0]:.3f}", f"{means[1]:.3f}", *cells]
        cells.append(f"{statistics.mean(accuracies):.2f}" if accuracies else "")
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=48)
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--test", type=int, default=600)
    parser.add_argument("--lite0", action="store_true")
    parser.add_argument("--flags", default="")
    parser.add_argument("--variants", nargs="+", default=[SOURCE, ADVERSARIAL, LABELS])
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="imagemill-shift-") as folder:
        if given.lite0:
            write_weights(Path(folder) / "lite0.safetensors")
        scores = [train_seed(Path(folder), seed, given) for seed in range(given.seeds)]
    print(format_table(scores))
    if given.json:
        rows = [{variant: vars(score) for variant, score in by_variant.items()} for by_variant in scores]
        Path(given.json).write_text(json.dumps(vars(given) | {"scores": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
