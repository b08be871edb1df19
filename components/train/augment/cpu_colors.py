"""Color operations on the CPU: one image changed in place by its list of sampled operations.

Pixels are those of torchvision's `transforms.v2.functional` on uint8, which truncates fractions where it does not
round. An operation that depends on one channel's value alone is a lookup table of 256; consecutive tables become one,
so that the pixels are read once. Exact are Brightness, Posterize, Solarize, Invert, AutoContrast, Equalize, Grayscale
and Jpeg, and Contrast but for a level that the last bit of its mean decides, in one of a thousand images. Color,
Sharpness, Blur (a kernel of five pixels, the border mirrored) and, seldom, Hue differ by 1 of 255. Noise has other
random numbers, of the same standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from ...imaging.decoder import Pixels
from .params import OPERATION_IDS, OPERATIONS

Table = npt.NDArray[np.uint8]
"""Lookup table: [256] for all channels, or [C, 256]."""
_LEVELS = np.arange(256, dtype=np.float32)
_IDENTITY_TABLE = np.arange(256, dtype=np.uint8)
_ALL_LEVELS_IMAGE = _IDENTITY_TABLE.reshape(16, 16)
TRUNCATE = -0.49995
"""Added before OpenCV rounds, so that it truncates: torchvision's weights of gray are ten-thousandths."""
_GRAY_WEIGHTS = np.array([0.2989, 0.587, 0.114])


class LazyImage:
    """An image uint8 [H, W, 1 or 3], contiguous, that is changed in place; `spare` is memory of the same shape.

    `table` is the lookup table that is not yet applied, and `shortcut` a faster function with the same result."""

    def __init__(self, pixels: Pixels, spare: Pixels, seed: int) -> None:
        self.pixels, self.spare, self.seed = pixels, spare, seed
        self.table: Table | None = None
        self.shortcut: Callable[[LazyImage], None] | None = None

    @property
    def is_gray(self) -> bool:
        return bool(self.pixels.shape[2] == 1)

    def add_table(self, table: Table, shortcut: Callable[[LazyImage], None] | None = None) -> None:
        """Look up every value in one more table, after the pending one."""
        if self.table is None:
            self.table, self.shortcut = table, shortcut
            return
        self.table = table[self.table] if table.ndim == 1 else np.stack([channel[self.table] for channel in table])
        self.shortcut = None

    def flush(self) -> Pixels:
        """Apply the pending table and return the pixels."""
        table, shortcut, self.table, self.shortcut = self.table, self.shortcut, None, None
        if shortcut:
            shortcut(self)
        elif table is not None and (table.ndim == 1 or self.is_gray):
            cv2.LUT(drop_single_channel(self.pixels), table.reshape(-1), dst=drop_single_channel(self.pixels))
        elif table is not None:
            planes = [cv2.LUT(plane, channel) for plane, channel in zip(cv2.split(self.pixels), table, strict=True)]
            cv2.merge(planes, dst=self.pixels)
        return self.pixels

    def swap(self) -> None:
        """Make the pixels written into `spare` the image."""
        self.pixels, self.spare = self.spare, self.pixels


def apply_color_operations(image: LazyImage, operations: list[int], values: list[float]) -> Pixels:
    """Apply the operations, by their ids in params.py, in their order; return the pixels, in one of the two memories of
    `image`."""
    for operation, value in zip(operations, values, strict=True):
        if operation:
            _FUNCTIONS[operation](image, value)
    return image.flush()


def _adjust_brightness(image: LazyImage, factor: float) -> None:
    _scale(image, factor, 0.0)


def _adjust_contrast(image: LazyImage, factor: float) -> None:
    pixels = image.flush()
    mean = np.float32(cv2.mean(pixels if image.is_gray else _to_gray(pixels))[0])
    _scale(image, factor, float(np.float32(1.0 - factor) * mean))


def _scale(image: LazyImage, factor: float, constant: float) -> None:
    """Multiply every value by a factor and add a constant. OpenCV's weighted sum takes half as long as a table, and is
    used where it gives the table for all levels: near a whole number the last bit could decide otherwise."""
    table = np.clip(_LEVELS * np.float32(factor) + np.float32(constant), 0, 255).astype(np.uint8)

    def weighted_sum(values: Pixels, out: Pixels | None) -> Pixels:
        return np.asarray(cv2.addWeighted(values, factor, values, 0, constant + TRUNCATE, dst=out), np.uint8)

    def shortcut(image: LazyImage) -> None:
        weighted_sum(_merge_channels(image.pixels), _merge_channels(image.pixels))

    image.add_table(table, shortcut if np.array_equal(weighted_sum(_ALL_LEVELS_IMAGE, None).ravel(), table) else None)


def _to_gray(pixels: Pixels) -> Pixels:
    """Return torchvision's gray of RGB, truncated: uint8 [H, W]."""
    return np.asarray(cv2.transform(pixels, np.array([[*_GRAY_WEIGHTS, TRUNCATE]], np.float32)), np.uint8)


def _adjust_saturation(image: LazyImage, factor: float) -> None:
    """Blend the image with its gray, as one matrix; half a level is what truncating the gray takes on average."""
    if image.is_gray:
        return
    blend = factor * np.eye(3) + (1 - factor) * np.tile(_GRAY_WEIGHTS, (3, 1))
    constant = np.full((3, 1), (factor - 1) * 0.5 + TRUNCATE)
    cv2.transform(image.flush(), np.hstack([blend, constant]).astype(np.float32), dst=image.spare)
    image.swap()


def _adjust_hue(image: LazyImage, turns: float) -> None:
    if image.is_gray or not turns:
        return
    hsv = cv2.cvtColor(image.flush().astype(np.float32), cv2.COLOR_RGB2HSV)
    rotation: Any = (360.0 * (turns % 1.0), 0, 0, 0)
    cv2.add(hsv, rotation, dst=hsv)
    # torchvision multiplies by a little less than 256 and truncates.
    cv2.convertScaleAbs(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dst=image.pixels, alpha=255.999 / 255, beta=TRUNCATE)


def _grayscale(image: LazyImage, _: float) -> None:
    if not image.is_gray:
        cv2.cvtColor(_to_gray(image.flush()), cv2.COLOR_GRAY2RGB, dst=image.pixels)


def _posterize(image: LazyImage, bits: float) -> None:
    kept_bits = int(bits)
    mask = ((1 << kept_bits) - 1) << (8 - kept_bits)

    def shortcut(image: LazyImage) -> None:
        pixels = _merge_channels(image.pixels)
        cv2.bitwise_and(pixels, np.array([[mask]], np.float64), dst=pixels)

    image.add_table(_IDENTITY_TABLE & np.uint8(mask), shortcut)


def _solarize(image: LazyImage, threshold: float) -> None:
    def shortcut(image: LazyImage) -> None:
        pixels = _merge_channels(image.pixels)
        is_above = cv2.compare(pixels, np.array([[threshold]]), cv2.CMP_GE, dst=_merge_channels(image.spare))
        cv2.bitwise_xor(pixels, is_above, dst=pixels)

    image.add_table(np.where(np.float32(threshold) <= _LEVELS, ~_IDENTITY_TABLE, _IDENTITY_TABLE), shortcut)


def _invert(image: LazyImage, _: float) -> None:
    def shortcut(image: LazyImage) -> None:
        cv2.bitwise_not(_merge_channels(image.pixels), dst=_merge_channels(image.pixels))

    image.add_table(~_IDENTITY_TABLE, shortcut)


def _autocontrast(image: LazyImage, _: float) -> None:
    extremes = [cv2.minMaxLoc(plane)[:2] for plane in cv2.split(image.flush())]
    low, high = np.array(extremes, np.float32).T[..., None]
    is_constant = low == high
    scale = np.where(is_constant, np.float32(1), (high - low) * np.float32(1 / 255))
    image.add_table(np.clip((_LEVELS - np.where(is_constant, np.float32(0), low)) / scale, 0, 255).astype(np.uint8))


def _equalize(image: LazyImage, _: float) -> None:
    planes = cv2.split(image.flush())
    counts = np.stack([cv2.calcHist([plane], [0], None, [256], [0, 256]).ravel() for plane in planes]).astype(np.int32)
    last_counts = counts[np.arange(len(counts)), 255 - (counts[:, ::-1] > 0).argmax(axis=1)]
    step = ((planes[0].size - last_counts) // 255)[:, None]
    tables = np.zeros(counts.shape, np.uint8)
    tables[:, 1:] = np.minimum((np.cumsum(counts, axis=1)[:, :-1] + step // 2) // np.maximum(step, 1), 255)
    image.add_table(np.where(step > 0, tables, _IDENTITY_TABLE))


def _adjust_sharpness(image: LazyImage, factor: float) -> None:
    """Blend the image with its blur, a 3x3 kernel of ones around a five over 13: 9/13 of a box mean and 4/13 of the
    pixel itself. The outermost pixels stay."""
    pixels, out = image.flush(), image.spare
    if min(pixels.shape[:2]) <= 2:
        return
    cv2.blur(drop_single_channel(pixels), (3, 3), dst=drop_single_channel(out))
    weight = 9 / 13 * (1 - factor)
    cv2.addWeighted(pixels, 1 - weight, out, weight, TRUNCATE, dst=out)
    out[0], out[-1], out[:, 0], out[:, -1] = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
    image.swap()


def _gaussian_blur(image: LazyImage, sigma: float) -> None:
    pixels = drop_single_channel(image.flush())
    cv2.GaussianBlur(pixels, (5, 5), sigma, dst=drop_single_channel(image.spare), borderType=cv2.BORDER_REFLECT_101)
    image.swap()


def _add_noise(image: LazyImage, sigma: float) -> None:
    pixels = _merge_channels(image.flush())
    noise = np.empty(pixels.shape, np.int16)
    cv2.setRNGSeed(image.seed & 0x7FFFFFFF)  # OpenCV has a generator in each thread
    cv2.randn(noise, np.zeros(1), np.array([sigma]))
    cv2.add(pixels, noise, dst=pixels, dtype=cv2.CV_8U)


def _compress_jpeg(image: LazyImage, quality: float) -> None:
    """Encode and decode as JPEG, by OpenCV's encoder: simplejpeg's always uses the fast, less exact transform."""
    pixels = image.flush()
    if not image.is_gray:
        cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR, dst=image.spare)
    source = pixels if image.is_gray else image.spare
    data = cv2.imencode(".jpg", source, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    colorspace = "GRAY" if image.is_gray else "RGB"
    simplejpeg.decode_jpeg(data, colorspace, fastdct=False, fastupsample=False, buffer=pixels)


def _merge_channels(pixels: Pixels) -> Pixels:
    """View the same memory as [H, W * C]: OpenCV is faster on one channel, where all are treated alike."""
    return pixels.reshape(len(pixels), -1)


def drop_single_channel(pixels: Pixels) -> Pixels:
    """View [H, W, 1] as [H, W]: OpenCV returns one channel so, and writes into no other shape."""
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


_FUNCTIONS: dict[int, Callable[[LazyImage, float], None]] = {
    OPERATION_IDS[name]: function
    for name, function in zip(
        OPERATIONS[1:],
        (
            _adjust_brightness, _adjust_contrast, _adjust_saturation, _adjust_hue, _grayscale, _posterize, _solarize,
            _invert, _autocontrast, _equalize, _adjust_sharpness, _gaussian_blur, _add_noise, _compress_jpeg,
        ),
        strict=True,
    )
}  # fmt: skip
