"""Colour operations on the CPU: one picture changed in place, by the list of what was drawn for it.

Pixels are those of torchvision's `transforms.v2.functional` on uint8, which cuts fractions off where it does not round.
What depends on one channel's value alone is a table of 256; tables that follow one another become one, so that the
pixels are gone over once. Exact are Brightness, Posterize, Solarize, Invert, AutoContrast, Equalize, Grayscale and
Jpeg, and Contrast but for a level that the last bit of its mean decides, in one of a thousand pictures. Color,
Sharpness, Blur (a kernel of five pixels, the border mirrored) and, seldom, Hue differ by 1 of 255. Noise is another, of
the same spread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from ..store.images import Pixels
from .drawn import NUMBER, OPERATIONS

Table = npt.NDArray[np.uint8]
"""[256] for all channels, or [C, 256]."""
_LEVELS = np.arange(256, dtype=np.float32)
_STEPS = np.arange(256, dtype=np.uint8)
_SQUARE = _STEPS.reshape(16, 16)
CUT = -0.49995
"""Added before OpenCV rounds, so that it cuts off: torchvision's weights of grey are ten-thousandths."""
_GREY = np.array([0.2989, 0.587, 0.114])


class Canvas:
    """A picture uint8 [H, W, 1 or 3], contiguous, that is changed in place; `spare` is memory of the same shape.

    `table` is what is still to be done to every value, and `direct` a faster way to do just that."""

    def __init__(self, pixels: Pixels, spare: Pixels, seed: int) -> None:
        self.pixels, self.spare, self.seed = pixels, spare, seed
        self.table: Table | None = None
        self.direct: Callable[[Canvas], None] | None = None

    @property
    def grey(self) -> bool:
        return bool(self.pixels.shape[2] == 1)

    def then(self, table: Table, direct: Callable[[Canvas], None] | None = None) -> None:
        """One more table after what there is."""
        if self.table is None:
            self.table, self.direct = table, direct
            return
        self.table = table[self.table] if table.ndim == 1 else np.stack([one[self.table] for one in table])
        self.direct = None

    def settle(self) -> Pixels:
        """The pixels, with everything done that was still to be done."""
        table, direct, self.table, self.direct = self.table, self.direct, None, None
        if direct:
            direct(self)
        elif table is not None and (table.ndim == 1 or self.grey):
            cv2.LUT(_flat(self.pixels), table.reshape(-1), dst=_flat(self.pixels))
        elif table is not None:
            planes = [cv2.LUT(plane, one) for plane, one in zip(cv2.split(self.pixels), table, strict=True)]
            cv2.merge(planes, dst=self.pixels)
        return self.pixels

    def swap(self) -> None:
        """What was written into `spare` is the picture."""
        self.pixels, self.spare = self.spare, self.pixels


def recolour(canvas: Canvas, operations: list[int], values: list[float]) -> Pixels:
    """The picture after the operations, by their numbers in drawn.py and in their order; in one of the two memories."""
    for operation, value in zip(operations, values, strict=True):
        if operation:
            _DO[operation](canvas, value)
    return canvas.settle()


def _brightness(canvas: Canvas, factor: float) -> None:
    _scaled(canvas, factor, 0.0)


def _contrast(canvas: Canvas, factor: float) -> None:
    pixels = canvas.settle()
    mean = np.float32(cv2.mean(pixels if canvas.grey else _luma(pixels))[0])
    _scaled(canvas, factor, float(np.float32(1.0 - factor) * mean))


def _scaled(canvas: Canvas, factor: float, constant: float) -> None:
    """Every value times a factor and a constant more. OpenCV's sum takes half as long as a table, and is taken where it
    gives the table for all levels: near a whole number the last bit could decide otherwise."""
    table = np.clip(_LEVELS * np.float32(factor) + np.float32(constant), 0, 255).astype(np.uint8)

    def summed(values: Pixels, out: Pixels | None) -> Pixels:
        return np.asarray(cv2.addWeighted(values, factor, values, 0, constant + CUT, dst=out), np.uint8)

    def direct(canvas: Canvas) -> None:
        summed(_rows(canvas.pixels), _rows(canvas.pixels))

    canvas.then(table, direct if np.array_equal(summed(_SQUARE, None).ravel(), table) else None)


def _luma(pixels: Pixels) -> Pixels:
    """torchvision's grey of RGB, cut off: uint8 [H, W]."""
    return np.asarray(cv2.transform(pixels, np.array([[*_GREY, CUT]], np.float32)), np.uint8)


def _color(canvas: Canvas, factor: float) -> None:
    """A mix of the picture with its grey, as one matrix; half a step is what cutting its grey off takes on average."""
    if canvas.grey:
        return
    mix = factor * np.eye(3) + (1 - factor) * np.tile(_GREY, (3, 1))
    constant = np.full((3, 1), (factor - 1) * 0.5 + CUT)
    cv2.transform(canvas.settle(), np.hstack([mix, constant]).astype(np.float32), dst=canvas.spare)
    canvas.swap()


def _hue(canvas: Canvas, turns: float) -> None:
    if canvas.grey or not turns:
        return
    hsv = cv2.cvtColor(canvas.settle().astype(np.float32), cv2.COLOR_RGB2HSV)
    turned: Any = (360.0 * (turns % 1.0), 0, 0, 0)
    cv2.add(hsv, turned, dst=hsv)
    # torchvision multiplies by a little less than 256 and cuts off.
    cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dst=canvas.pixels, alpha=255.999 / 255, beta=CUT)


def _grayscale(canvas: Canvas, _: float) -> None:
    if not canvas.grey:
        cv2.cvtColor(_luma(canvas.settle()), cv2.COLOR_GRAY2RGB, dst=canvas.pixels)


def _posterize(canvas: Canvas, bits: float) -> None:
    kept = int(bits)
    mask = ((1 << kept) - 1) << (8 - kept)

    def direct(canvas: Canvas) -> None:
        cv2.bitwise_and(_rows(canvas.pixels), np.array([[mask]], np.float64), dst=_rows(canvas.pixels))

    canvas.then(_STEPS & np.uint8(mask), direct)


def _solarize(canvas: Canvas, threshold: float) -> None:
    def direct(canvas: Canvas) -> None:
        above = cv2.compare(_rows(canvas.pixels), np.array([[threshold]]), cv2.CMP_GE, dst=_rows(canvas.spare))
        cv2.bitwise_xor(_rows(canvas.pixels), above, dst=_rows(canvas.pixels))

    canvas.then(np.where(np.float32(threshold) <= _LEVELS, ~_STEPS, _STEPS), direct)


def _invert(canvas: Canvas, _: float) -> None:
    def direct(canvas: Canvas) -> None:
        cv2.bitwise_not(_rows(canvas.pixels), dst=_rows(canvas.pixels))

    canvas.then(~_STEPS, direct)


def _autocontrast(canvas: Canvas, _: float) -> None:
    found = [cv2.minMaxLoc(plane)[:2] for plane in cv2.split(canvas.settle())]
    low, high = np.array(found, np.float32).T[..., None]
    same = low == high
    scale = np.where(same, np.float32(1), (high - low) * np.float32(1 / 255))
    canvas.then(np.clip((_LEVELS - np.where(same, np.float32(0), low)) / scale, 0, 255).astype(np.uint8))


def _equalize(canvas: Canvas, _: float) -> None:
    planes = cv2.split(canvas.settle())
    counts = np.stack([cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel() for plane in planes]).astype(np.int32)
    highest = counts[np.arange(len(counts)), 255 - (counts[:, ::-1] > 0).argmax(axis=1)]
    step = ((planes[0].size - highest) // 255)[:, None]
    tables = np.zeros(counts.shape, np.uint8)
    tables[:, 1:] = np.minimum((np.cumsum(counts, axis=1)[:, :-1] + step // 2) // np.maximum(step, 1), 255)
    canvas.then(np.where(step > 0, tables, _STEPS))


def _sharpness(canvas: Canvas, factor: float) -> None:
    """Away from (or towards) its own blur by ones around a five, of thirteen: nine of a box's mean and four of itself.
    The outermost pixels stay."""
    pixels, out = canvas.settle(), canvas.spare
    if min(pixels.shape[:2]) <= 2:
        return
    cv2.blur(_flat(pixels), (3, 3), dst=_flat(out))
    share = 9 / 13 * (1 - factor)
    cv2.addWeighted(pixels, 1 - share, out, share, CUT, dst=out)
    out[0], out[-1], out[:, 0], out[:, -1] = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
    canvas.swap()


def _blur(canvas: Canvas, sigma: float) -> None:
    pixels = _flat(canvas.settle())
    cv2.GaussianBlur(pixels, (5, 5), sigma, dst=_flat(canvas.spare), borderType=cv2.BORDER_REFLECT_101)
    canvas.swap()


def _noise(canvas: Canvas, sigma: float) -> None:
    pixels = _rows(canvas.settle())
    noise = np.empty(pixels.shape, np.int16)
    cv2.setRNGSeed(canvas.seed & 0x7FFFFFFF)  # OpenCV has a generator in each thread
    cv2.randn(noise, np.zeros(1), np.array([sigma]))
    cv2.add(pixels, noise, dst=pixels, dtype=cv2.CV_8U)


def _jpeg(canvas: Canvas, quality: float) -> None:
    """By OpenCV's encoder, for simplejpeg's always takes the fast, less exact transform."""
    pixels = canvas.settle()
    if not canvas.grey:
        cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR, dst=canvas.spare)
    source = pixels if canvas.grey else canvas.spare
    data = cv2.imencode(".jpg", source, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    kind = "GRAY" if canvas.grey else "RGB"
    simplejpeg.decode_jpeg(data, kind, fastdct=False, fastupsample=False, buffer=pixels)


def _rows(pixels: Pixels) -> Pixels:
    """[H, W * C] of the same memory: channels that are treated alike are one to OpenCV."""
    return pixels.reshape(len(pixels), -1)


def _flat(pixels: Pixels) -> Pixels:
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


_DO: dict[int, Callable[[Canvas, float], None]] = {
    NUMBER[name]: function
    for name, function in zip(
        OPERATIONS[1:],
        (
            _brightness, _contrast, _color, _hue, _grayscale, _posterize, _solarize, _invert, _autocontrast,
            _equalize, _sharpness, _blur, _noise, _jpeg,
        ),
        strict=True,
    )
}  # fmt: skip
