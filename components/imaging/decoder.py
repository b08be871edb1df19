"""The decoder of source images and of the images that clean stores: it defines what a valid image is.

The format is told from the bytes, never the name; pixels, bytes and side lengths are capped before anything is decoded;
EXIF orientation is applied; palette, alpha, CMYK, 16-bit and gray become the color asked for. There are two modes:

- **strict** (clean, and new images for a model): a plain JPEG, whose header `headers` parses, is decoded by
  libjpeg-turbo (simplejpeg) alone if it gives no warning. On a warning, and for all other formats, Pillow decides:
  an image that it decodes is kept (a JPEG with libjpeg-turbo's `warning`), one that it refuses is rejected.
- **lenient** (resize, for images that clean has vetted): JPEGs may be decoded at a fraction of their size, and
  libjpeg-turbo's warnings are ignored; plain PNG, WebP and BMP are decoded by OpenCV; the rest as above.

The JPEGs in tensor datasets are decoded by `imaging/tensors.py:decode_column` (for train, evaluate and export), and
those of clean datasets by `resize/gpu.py` where resize has a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from ..storage.parallel import Budget
from .headers import Header, parse_jpeg_header, parse_plain_header, parse_webp_size, sniff
from .pillow_decoder import (
    ORIENTATION_TAG,
    ImageRejected,
    Pixels,
    apply_orientation,
    convert_to_pixels,
    open_image,
    read_orientation,
    summarize_decoder_error,
)
from .pixel_options import COLORS, DecodeLimits

__all__ = [
    "NO_LIMITS", "Decoded", "ImageRejected", "LenientDecoding", "Pixels", "convert_color", "decode", "keep_min_side",
]  # fmt: skip

_CHANNEL_INDEX = {"red": 0, "green": 1, "blue": 2}
_STORED_MODE = {"rgb": "RGB", "gray": "L", "red": "L", "green": "L", "blue": "L"}
"""Pillow's mode of a file that holds exactly the pixels of a color; a single channel is stored as gray."""

Image.MAX_IMAGE_PIXELS = None  # our own limits are checked before decoding, without a warning in between
warnings.filterwarnings("ignore", module=r"PIL\.")

DEFAULT_LIMITS = DecodeLimits()
NO_LIMITS = DecodeLimits(2**62, 2**62, 2**62)
"""For images that clean has let pass under its own limits."""

_PIXELS_IN_FLIGHT = Budget(2 * DecodeLimits.pixels)
"""Pixels that the threads of this process decode at a time: two of the largest images, or many usual ones."""
_SMALL_PIXELS = 2**21
_NO_WAIT: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    `pixels`: uint8 [height, width, channels], upright; `width`, `height`: of the full upright image, in pixels;
    `as_stored`: the bytes hold exactly these pixels, in this color, upright; `divisor`: of a scaled decode, the number
    by which both sides were divided (rounded up).
    """

    pixels: Pixels
    width: int
    height: int
    format: str
    warning: str = ""
    as_stored: bool = True
    divisor: int = 1


MinSize = Callable[[int, int], tuple[int, int]]
"""(width, height) of the full image, as it is stored → the least (width, height) that a scaled decode must keep."""


def keep_min_side(side: int) -> MinSize:
    """Return a `MinSize` by which both sides keep at least `side` pixels."""
    return lambda width, height: (side, side)


@dataclass(frozen=True)
class LenientDecoding:
    """Options for decoding images that clean has vetted: smaller, a little less exactly, into memory of the caller's.

    `min_size`: see `MinSize`; None decodes in full size. `fast`: use libjpeg-turbo's quicker transform and upsampling,
    within 1 of 255 on photographs. `buffer`: uint8, flat; where it is large enough the pixels lie in it, until it is
    used again. `vetted`: whether clean has decoded the image strictly before; if not, OpenCV is not used, for it keeps
    silent about some damage and writes to stderr about other.
    """

    min_size: MinSize | None = None
    fast: bool = False
    buffer: Pixels | None = None
    vetted: bool = True


def decode(
    data: bytes, color: str = "rgb", *, lenient: LenientDecoding | None = None, limits: DecodeLimits = DEFAULT_LIMITS
) -> Decoded:
    """Decode any supported image to uint8 [height, width, channels of `color`].

    The one channel of a gray image is its red, green and blue alike, so that a channel that was stored alone is that
    channel again. Without `lenient` an image that Pillow refuses is rejected; `lenient` is for images that clean has
    vetted.

    Raises ImageRejected for bytes that are no valid image, and MemoryError where the pixels do not fit in memory.
    """
    if not data:
        raise ImageRejected("empty_file", "0 bytes")
    if len(data) > limits.bytes:
        raise ImageRejected("too_many_bytes", f"{len(data):,} bytes, at most {limits.bytes:,}")
    format = sniff(data)
    if not format:
        raise ImageRejected("not_an_image", f"no known image signature; begins with {data[:16]!r}")
    header = parse_jpeg_header(data) if format == "JPEG" else None
    if header and (decoded := _decode_plain_jpeg(data, header, color, lenient, limits)):
        return decoded
    if (
        lenient
        and lenient.vetted
        and format != "JPEG"
        and (decoded := _decode_with_opencv(data, format, color, limits))
    ):
        return decoded
    return _decode_with_pillow(data, format, color, lenient, limits)


def _decode_with_opencv(data: bytes, format: str, color: str, limits: DecodeLimits) -> Decoded | None:
    """Decode a plain PNG, WebP or BMP whose channels are those that `color` needs; None for others.

    OpenCV takes four fifths of Pillow's time, a third for BMP, and does not hold the interpreter's lock, but it keeps
    silent about damage: only for what clean has decoded strictly.
    """
    import cv2

    header = parse_plain_header(data, format)
    if header is None or (header.channels == 1) != (
        _decode_color(color, "L" if header.channels == 1 else "RGB") == "gray"
    ):
        return None
    width, height, channels = header
    _check_size(width, height, limits)
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    with _reserve_pixels(width * height):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None or image.shape[:2] != (height, width):
            return None
        pixels = np.asarray(image, np.uint8).reshape(height, width, channels)
        as_stored = _STORED_MODE.get(color) == ("L" if channels == 1 else "RGB")
        return Decoded(convert_color(pixels, color), width, height, format, "", as_stored)


def _decode_plain_jpeg(
    data: bytes, header: Header, color: str, lenient: LenientDecoding | None, limits: DecodeLimits
) -> Decoded | None:
    """Decode a JPEG with a plain header, as `_decode_with_pillow` does.

    None where libjpeg-turbo refuses it or, unless lenient, warns.
    """
    width, height, channels = header
    _check_size(width, height, limits)
    mode = "L" if channels == 1 else "RGB"
    with _reserve_pixels(width * height):
        try:
            pixels = _decode_jpeg(data, _decode_color(color, mode), lenient, (width, height))
        except ValueError:
            return None
        as_stored, divisor = mode == _STORED_MODE.get(color), _divisor_of((width, height), pixels)
        return Decoded(convert_color(pixels, color), width, height, "JPEG", "", as_stored, divisor)


def _decode_with_pillow(
    data: bytes, format: str, color: str, lenient: LenientDecoding | None, limits: DecodeLimits
) -> Decoded:
    """Decode any image: Pillow reads the header and the pixels, but a JPEG's pixels are read by libjpeg-turbo first."""
    if format == "WEBP":  # Pillow allocates the canvas when it opens one
        _check_size(*parse_webp_size(data), limits)
    image = open_image(data, format)
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageRejected("corrupt", f"declares {width} x {height} pixels")
    _check_size(width, height, limits)
    turns_itself = format == "TIFF" and image.tag_v2.get(ORIENTATION_TAG, 1) in range(2, 9)  # type: ignore[attr-defined]
    with _reserve_pixels(width * height):
        pixels, warning = _decode_pixels(data, image, format, _decode_color(color, image.mode), lenient)
        pixels = convert_color(pixels, color)
    # Only now: asking a PNG for its EXIF loads it, and a load that failed once succeeds the second time;
    # a TIFF turns itself upright when it loads, and then says so.
    orientation = read_orientation(image)
    divisor = _divisor_of(image.size, pixels) if format == "JPEG" else 1
    is_direct = image.mode == _STORED_MODE.get(color) and "transparency" not in image.info
    as_stored = is_direct and orientation == 1 and not turns_itself
    pixels = apply_orientation(pixels, orientation)
    if format != "JPEG":
        height, width = pixels.shape[:2]
    elif orientation >= 5:
        width, height = height, width
    return Decoded(pixels, width, height, format, warning, as_stored, divisor)


def _decode_color(color: str, mode: str) -> str:
    """Return the color, `rgb` or `gray`, that an image of Pillow's `mode` is decoded to before `convert_color`."""
    return "gray" if color == "gray" or (color in _CHANNEL_INDEX and mode == "L") else "rgb"


def _decode_jpeg(data: bytes, color: str, lenient: LenientDecoding | None, size: tuple[int, int]) -> Pixels:
    """Decode a JPEG of that size (width, height) to `rgb` or `gray` with libjpeg-turbo.

    ValueError for what it refuses and, unless lenient, for its warnings.
    """
    options: dict[str, Any] = {"colorspace": "RGB" if color == "rgb" else "GRAY"}
    if lenient is None:
        pixels: Pixels = simplejpeg.decode_jpeg(data, **options)
        return pixels
    divisor = _choose_divisor(size, lenient.min_size)
    width, height = (-(-side // divisor) for side in size)
    if divisor > 1:
        options |= {"min_height": height, "min_width": width}
    elif lenient.fast:  # of no use to a scaled decode
        options |= {"fastdct": True, "fastupsample": True}
    fits = lenient.buffer is not None and lenient.buffer.size >= width * height * 3
    try:
        pixels = simplejpeg.decode_jpeg(data, **options, **({"buffer": lenient.buffer} if fits else {}))
        return pixels
    except ValueError:
        # Without `strict` simplejpeg hides even a fatal error, and returns memory that nobody has written: so decode
        # into other bytes once more, and where the two differ nothing has been decoded.
        pixels = simplejpeg.decode_jpeg(data, **options, strict=False)
        second = ~pixels
        simplejpeg.decode_jpeg(data, **options, strict=False, buffer=second)
        if not np.array_equal(pixels, second):
            raise
        return pixels


def _choose_divisor(size: tuple[int, int], min_size: MinSize | None) -> int:
    """Return 8, 4, 2 or 1: the largest by which (width, height) may be divided.

    libjpeg-turbo is quick and exact for these. Other eighths are neither (three of them: slower than a half, and 0.7
    of 255 off where that is 0.2).
    """
    if min_size is None:
        return 1
    least = min_size(*size)
    return next((d for d in (8, 4, 2) if all(-(-s // d) >= n for s, n in zip(size, least, strict=True))), 1)


def _divisor_of(size: tuple[int, int], pixels: Pixels) -> int:
    """Return the number by which both sides of (width, height) were divided to become these pixels."""
    return next(d for d in (1, 2, 4, 8) if tuple(-(-side // d) for side in size) == pixels.shape[1::-1])


def convert_color(pixels: Pixels, color: str) -> Pixels:
    """Convert uint8 [H, W, 3] RGB to uint8 [H, W, channels of `color`]; the one channel of a gray image stays.

    Gray is the luma of ITU-R BT.601, within 1 of the decoders' own gray of a colored image.
    """
    if pixels.shape[2] == COLORS[color] == 1 or color == "rgb":
        return pixels
    if color in _CHANNEL_INDEX:
        index = _CHANNEL_INDEX[color]
        return np.ascontiguousarray(pixels[:, :, index : index + 1])
    import cv2

    if color == "gray":
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, None].astype(np.uint8, copy=False)
    out = np.empty_like(pixels, order="C")
    if color == "lab":
        cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB, out)
    else:
        ycrcb = cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb)
        cv2.mixChannels([ycrcb], [out], [0, 0, 1, 2, 2, 1])  # OpenCV has Cr before Cb
    return out


def _reserve_pixels(pixels: int) -> AbstractContextManager[None]:
    """Wait until so many pixels may be decoded. Small images never wait: one on each core is little memory."""
    return _PIXELS_IN_FLIGHT.hold(pixels) if pixels > _SMALL_PIXELS else _NO_WAIT


def _check_size(width: int, height: int, limits: DecodeLimits) -> None:
    if width * height > limits.pixels:
        raise ImageRejected("too_many_pixels", f"declares {width:,} x {height:,} pixels, at most {limits.pixels:,}")
    if max(width, height) > limits.side:
        raise ImageRejected("side_too_long", f"declares {width:,} x {height:,} pixels, at most {limits.side:,} a side")


def _decode_pixels(
    data: bytes, image: Image.Image, format: str, color: str, lenient: LenientDecoding | None
) -> tuple[Pixels, str]:
    """Return the pixels as stored, in `rgb` or `gray`, and the decoder's warning."""
    warning = ""
    if format == "JPEG" and image.mode in ("RGB", "L"):
        try:
            return _decode_jpeg(data, color, lenient, image.size), ""
        except ValueError as error:
            warning = summarize_decoder_error(error)
    try:
        image.load()
        return convert_to_pixels(image, color), warning
    except (MemoryError, ImageRejected):
        raise
    except Exception as error:  # decoders raise anything on broken bytes, which are in memory: not a storage error
        raise ImageRejected("corrupt", f"a {format} that does not decode: {summarize_decoder_error(error)}") from None
