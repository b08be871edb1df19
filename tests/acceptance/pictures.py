"""Pictures and sources made on the spot: every one depends on its own seed alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

COLORS = {"blue": (40, 70, 200), "green": (50, 180, 60), "red": (210, 50, 40), "gold": (220, 180, 40)}
Pixels = npt.NDArray[np.uint8]


def noisy_pixels(seed: str, color: str = "gray", low: int = 40, high: int = 90, noise: float = 40) -> Pixels:
    """Make uint8 [H, W, 3]: noise in a color, sides from `low` to `high`."""
    random = np.random.default_rng(list(seed.encode()))
    height, width = (int(side) for side in random.integers(low, high + 1, 2))
    base = np.array(COLORS.get(color, (128, 128, 128)))
    return np.clip(base + random.normal(0, noise, (height, width, 3)), 0, 255).astype(np.uint8)


def smooth_pixels(seed: int, width: int, height: int) -> Pixels:
    """Make uint8 [height, width, 3] with low frequencies, as photographs have, and a little noise."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    image = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return np.clip(image + random.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def encode(pixels: Pixels | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def add_picture(folder: Path, label: str, number: int, color: str | None = None) -> Path:
    """Write `<folder>/<label>/<number>.<ending>`, JPEG or PNG, in the label's color unless another one is named."""
    png = number % 5 == 0
    pixels = noisy_pixels(f"{label}-{number}", color or label)
    data = encode(pixels, "PNG") if png else encode(pixels, "JPEG", quality=90)
    return write(folder / label / f"{number:03d}.{'png' if png else 'jpg'}", data)


def make_folder(folder: Path, labels: Sequence[str] = ("blue", "green", "red"), each: int = 14) -> Path:
    """Make a folder source of noisy pictures in their class's color."""
    for label in labels:
        for number in range(each):
            add_picture(folder, label, number)
    return folder


def write_table(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Write a csv with the columns of all rows."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(columns), *(",".join(row.get(name, "") for name in columns) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path
