"""What pixels are, everywhere: their colours, the way up, and the error of those that are no image."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

T = TypeVar("T", bound=np.generic)
Pixels = npt.NDArray[np.uint8]
ORIENTATION = 0x0112
"""The number of EXIF's tag."""


class ImageRejected(Exception):
    """No valid image. `reason` is one of the reject codes, `detail` says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def orientation_of(opened: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; anything else (0 occurs, and broken EXIF) means upright."""
    try:
        value = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # EXIF is an annotation: the image counts, not its label
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(pixels: npt.NDArray[T], orientation: int) -> npt.NDArray[T]:
    """[H, W, …] as stored, upright (EXIF 2.32, 4.6.4.A: where the 0th row and column of the stored image belong)."""
    if orientation == 1:
        return pixels
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
