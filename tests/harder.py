"""A demo dataset whose test images are harder than what was trained on: turned, in other colors, partly covered.

Training and validation images are the demo's, as they are. The test images are those of several demos (another seed
makes other pictures from the same distributions), each with all three changes. How strong they are was settled by eye
and by what `plain` training comes to, before any other recipe was tried: every picture can still be told.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from imagemill.components.download.demo import PlannedFile, draw, generate, plan

TABLE = "labels.csv"
TURN = (20.0, 45.0)
"""Degrees to either side. The demo's own pictures stand up to 23 degrees askew."""
COVERED, BOXES = (0.06, 0.16), 2
"""Share of the picture's central square that each of so many boxes covers."""


def write(folder: Path, demos: int = 4, seed: int = 0) -> int:
    """Write files and `labels.csv` (path, label, split) to `folder`; returns the number of test images.

    Training and validation come from the demo of `seed`, without the copies of test images that it hides there; test
    images from the demos of `seed` to `seed + demos - 1`, 118 of each. A function of the arguments alone.
    """
    rows = []
    of_test = {p.number for p in plan(seed) if p.split == "test"}
    planned_by_path = {p.path: p for p in plan(seed) if p.split in ("train", "val") and p.number not in of_test}
    for file in generate(seed):
        if file.path in planned_by_path:
            _save(folder / file.path, file.data)
            rows.append((file.path, planned_by_path[file.path].label, planned_by_path[file.path].split))
    pictures = sound_pictures(demos, seed)
    for number, planned in pictures:
        path = f"test/{planned.label}/{number}-{Path(planned.path).stem}.jpg"
        picture = harden(draw(number, planned)[0], np.random.default_rng([number, planned.number]))
        _save(folder / path, _jpeg(picture))
        rows.append((path, planned.label, "test"))
    with (folder / TABLE).open("w", newline="") as table:
        csv.writer(table).writerows([("path", "label", "split"), *rows])
    return len(pictures)


def sound_pictures(demos: int, seed: int) -> list[tuple[int, PlannedFile]]:
    """(seed of its demo, picture) of all sound test pictures of several demos."""
    numbers = range(seed, seed + demos)
    return [(n, p) for n in numbers for p in plan(n) if p.split == "test" and p.form and p.fault is None]


def harden(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """An RGB picture turned, in other colors and partly covered; of the same size."""
    return _covered(_colored(_turned(picture, random), random), random)


def _turned(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """About its center; what comes in from outside continues the picture mirrored at its edges."""
    degrees = float(random.uniform(*TURN) * random.choice([-1, 1]))
    pixels = np.asarray(picture)
    height, width = pixels.shape[:2]
    margin = math.ceil(math.hypot(height, width) / 2 - min(height, width) / 2) + 1
    wide = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), "reflect")
    turned = Image.fromarray(wide).rotate(degrees, Image.Resampling.BICUBIC)
    return turned.crop((margin, margin, margin + width, margin + height))


def _colored(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Change light and haze: less contrast, and a gain and an offset for each channel."""
    pixels = np.asarray(picture, np.float32)
    gain = random.uniform(0.6, 1.3, 3).astype(np.float32)
    offset = random.uniform(-30, 30, 3).astype(np.float32)
    contrast = np.float32(random.uniform(0.45, 0.8))
    mean = pixels.mean(axis=(0, 1))
    changed = (mean + contrast * (pixels - mean)) * gain + offset
    return Image.fromarray(np.clip(changed, 0, 255).astype(np.uint8))


def _covered(picture: Image.Image, random: np.random.Generator) -> Image.Image:
    """Boxes of one color each, anywhere in the central square, where the subject is."""
    out, side = picture.copy(), min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    for _ in range(BOXES):
        area, ratio = float(random.uniform(*COVERED)), math.exp(float(random.uniform(math.log(0.5), math.log(2))))
        width, height = round(side * math.sqrt(area * ratio)), round(side * math.sqrt(area / ratio))
        x, y = left + int(random.integers(side - width + 1)), top + int(random.integers(side - height + 1))
        red, green, blue = (int(v) for v in random.integers(0, 256, 3))
        out.paste((red, green, blue), (x, y, x + width, y + height))
    return out


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=90)
    return out.getvalue()


def _save(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
