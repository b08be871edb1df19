"""Pictures for tests of pixels: real photographs of Oxford-IIIT Pet where the sample is there, and made ones."""

from __future__ import annotations

import functools
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from imagemill.components.imaging.decoder import decode

Pixels = npt.NDArray[np.uint8]
SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "pets"
NAMES = ("made", "Abyssinian_101", "Bengal_150", "Abyssinian_34")
"""Names for `photo`: a made one that is always there, two photographs, and a GIF."""


@functools.cache
def _archive(name: str) -> dict[str, bytes]:
    if not (SAMPLE / name).exists():
        pytest.skip("the shared sample of Oxford-IIIT Pet is not beside the repository")
    with tarfile.open(SAMPLE / name) as archive:
        members = [m for m in archive if m.isfile() and not m.name.rpartition("/")[2].startswith("._")]
        return {m.name: (archive.extractfile(m) or io.BytesIO()).read() for m in members}


def pet(stem: str) -> bytes:
    """The file of a photograph; skips the test where there is no sample."""
    return _archive("images.tar.gz")[f"images/{stem}.jpg"]


def trimap(stem: str) -> bytes:
    """The PNG of its trimap: 1 pet, 2 background, 3 border."""
    return _archive("annotations.tar.gz")[f"annotations/trimaps/{stem}.png"]


def made(seed: int = 0, width: int = 200, height: int = 152) -> Pixels:
    """uint8 [H, W, 3] like a photograph: noise of 1/f spectrum in related colors, edges, and a little grain."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)) + 1 / max(width, height)
    layers = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency**1.3).real for _ in range(3)]
    light = layers[0] / layers[0].std()
    y, x = np.mgrid[:height, :width]
    light = light + 1.5 * (np.hypot(x - width * 0.6, y - height * 0.4) < 0.2 * min(width, height))
    rgb = np.stack([120 + 35 * light + 15 * layer / layer.std() for layer in layers], axis=2)
    return np.clip(rgb + rng.normal(0, 3, rgb.shape), 0, 255).astype(np.uint8)


@functools.cache
def photo(name: str) -> Pixels:
    """uint8 [H, W, 3], read-only: the one of `NAMES`."""
    pixels = made() if name == "made" else decode(pet(name)).pixels
    pixels.flags.writeable = False
    return pixels


def saved(picture: Any, kind: str = "PNG", **options: Any) -> bytes:
    """Return the file of an image, or of pixels: uint8 [H, W] or [H, W, 1 or 3]."""
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(picture[:, :, 0] if picture.shape[2:] == (1,) else picture)
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def exif(orientation: int) -> Image.Exif:
    """EXIF data with an orientation, 1 to 8."""
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def max_difference(first: Any, second: Any) -> int:
    """Return the largest difference of two images of one shape, in levels."""
    assert first.shape == second.shape
    return int(np.abs(first.astype(int) - second.astype(int)).max())
