"""The one image decoder: what it returns is a valid image, for every step alike.

The format is told from the bytes, never the name; pixels, bytes and side lengths are capped before anything
is decoded; EXIF orientation is applied; palette, alpha, CMYK, 16-bit and grey become the colour asked for.
JPEG goes through libjpeg-turbo (simplejpeg), strictly, with Pillow as the arbiter of its warnings:
what Pillow decodes is kept with `warning`, what it refuses is rejected. A plain JPEG never meets Pillow: its header
is read here, and its decoder has nothing to say. Everything else goes through Pillow.
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

from . import plain
from .choices import COLORS, Limits
from .jpeg import Header, plain_header
from .parallel import Budget
from .pillow import open_image, short, to_color
from .pixels import ORIENTATION, ImageRejected, Pixels, orientation_of, upright

__all__ = [
    "FORMATS", "VETTED", "Decoded", "ImageRejected", "Lenient", "Pixels", "at_least", "decode",
    "in_color", "sniff",
]  # fmt: skip

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
_CHANNEL = {"red": 0, "green": 1, "blue": 2}
_STORED_AS = {"rgb": "RGB", "gray": "L", "red": "L", "green": "L", "blue": "L"}
"""Pillow's mode of a file that holds just the pixels of a colour; a single channel is stored as grey."""
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)

Image.MAX_IMAGE_PIXELS = None  # our own limits are checked before decoding, without a warning in between
warnings.filterwarnings("ignore", module=r"PIL\.")


VETTED = Limits(2**62, 2**62, 2**62)
"""No limits: for what clean has let pass under its own."""

_PIXELS_IN_FLIGHT = Budget(2 * Limits.pixels)
"""Pixels that the threads of this process decode at a time: two of the largest images, or many usual ones."""


_SMALL = 2**21
_AT_ONCE: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True)
class Decoded:
    """A decoded image: `pixels` uint8 [height, width, channels], upright; `width` and `height` in pixels of
    the full upright image; `as_stored`: the bytes hold just these pixels, in this colour, upright; `divisor`: of a
    scaled decode, by what both sides were divided (rounded up)."""

    pixels: Pixels
    width: int
    height: int
    format: str
    warning: str = ""
    as_stored: bool = True
    divisor: int = 1


DEFAULT_LIMITS = Limits()


def sniff(data: bytes) -> str:
    """The format by its signature, one of `FORMATS`, or an empty string."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return ""


Enough = Callable[[int, int], tuple[int, int]]
"""(width, height) of the full image, as it is stored → the least (width, height) that a scaled decode must keep."""


def at_least(side: int) -> Enough:
    """Both sides keep at least so many pixels."""
    return lambda width, height: (side, side)


@dataclass(frozen=True)
class Lenient:
    """How resize may decode what clean has vetted: smaller, a little less exactly, and into memory of its own.

    `enough`: see there. `fast`: with libjpeg-turbo's quicker transform and upsampling, within 1 of 255 on photographs.
    `scratch`: uint8, flat; where it is large enough the pixels lie in it, until it is used again. `vetted`: False for
    images that clean may have rejected, which OpenCV would write about to the process's own stderr.
    """

    enough: Enough | None = None
    fast: bool = False
    scratch: Pixels | None = None
    vetted: bool = True


def decode(
    data: bytes, color: str = "rgb", *, lenient: Lenient | None = None, limits: Limits = DEFAULT_LIMITS
) -> Decoded:
    """Decode any supported image to uint8 [height, width, channels of `color`].

    A grey image has red, green and blue alike. Its one channel is what `red`, `green` and `blue` mean of it, so
    that a channel that was stored alone is that channel again.
    Without `lenient` every byte of the image must decode (clean); with it is for what clean has vetted (resize).

    Raises ImageRejected, and nothing else, for bytes that are no valid image.
    """
    if not data:
        raise ImageRejected("empty_file", "0 bytes")
    if len(data) > limits.bytes:
        raise ImageRejected("too_many_bytes", f"{len(data):,} bytes, at most {limits.bytes:,}")
    kind = sniff(data)
    if not kind:
        raise ImageRejected("not_an_image", f"no known image signature; begins with {data[:16]!r}")
    header = plain_header(data) if kind == "JPEG" else None
    if header and (found := _decode_plain_jpeg(data, header, color, lenient, limits)):
        return found
    if lenient and lenient.vetted and kind != "JPEG" and (found := _decode_plain(data, kind, color, limits)):
        return found
    return _decode(data, kind, color, lenient, limits)


def _decode_plain(data: bytes, kind: str, color: str, limits: Limits) -> Decoded | None:
    """A PNG, WebP or BMP of the simplest form whose channels are those that are wanted, else None."""
    header = plain.plain_header(data, kind)
    if header is None or (header.channels == 1) != (_source(color, "L" if header.channels == 1 else "RGB") == "gray"):
        return None
    width, height, channels = header
    _check_size(width, height, limits)
    with _held(width * height):
        pixels = plain.decode_plain(data, header)
        if pixels is None:
            return None
        as_stored = _STORED_AS.get(color) == ("L" if channels == 1 else "RGB")
        return Decoded(in_color(pixels, color), width, height, kind, "", as_stored)


def _decode_plain_jpeg(
    data: bytes, header: Header, color: str, lenient: Lenient | None, limits: Limits
) -> Decoded | None:
    """What `_decode` would say of a JPEG whose header is known, or None where its decoder has something to say."""
    width, height, components = header
    _check_size(width, height, limits)
    mode = "L" if components == 1 else "RGB"
    with _held(width * height):
        try:
            pixels = _turbo(data, _source(color, mode), lenient, (width, height))
        except ValueError:
            return None
        as_stored, divisor = mode == _STORED_AS.get(color), _divided((width, height), pixels)
        return Decoded(in_color(pixels, color), width, height, "JPEG", "", as_stored, divisor)


def _decode(data: bytes, kind: str, color: str, lenient: Lenient | None, limits: Limits) -> Decoded:
    """Any image, its header read by Pillow."""
    if kind == "WEBP":  # Pillow makes the canvas when it opens one
        _check_size(*_webp_size(data), limits)
    opened = open_image(data, kind)
    width, height = opened.size
    if width < 1 or height < 1:
        raise ImageRejected("corrupt", f"declares {width} x {height} pixels")
    _check_size(width, height, limits)
    turns_itself = kind == "TIFF" and opened.tag_v2.get(ORIENTATION, 1) in range(2, 9)  # type: ignore[attr-defined]
    with _held(width * height):
        pixels, warning = _pixels(data, opened, kind, _source(color, opened.mode), lenient)
        pixels = in_color(pixels, color)
    # Only now: asking a PNG for its EXIF loads it, and a load that failed once succeeds the second time;
    # a TIFF turns itself upright when it loads, and then says so.
    orientation = orientation_of(opened)
    divisor = _divided(opened.size, pixels) if kind == "JPEG" else 1
    direct = opened.mode == _STORED_AS.get(color) and "transparency" not in opened.info
    as_stored = direct and orientation == 1 and not turns_itself
    pixels = upright(pixels, orientation)
    if kind != "JPEG":
        height, width = pixels.shape[:2]
    elif orientation >= 5:
        width, height = height, width
    return Decoded(pixels, width, height, kind, warning, as_stored, divisor)


def _source(color: str, mode: str) -> str:
    """What an image of Pillow's `mode` is decoded as, `rgb` or `gray`, before `in_color` makes `color` of it."""
    return "gray" if color == "gray" or (color in _CHANNEL and mode == "L") else "rgb"


def _turbo(data: bytes, color: str, lenient: Lenient | None, size: tuple[int, int]) -> Pixels:
    """A JPEG of that size (width, height) by libjpeg-turbo in `rgb` or `gray`. ValueError for what it refuses and,
    unless lenient, for its warnings."""
    options: dict[str, Any] = {"colorspace": "RGB" if color == "rgb" else "GRAY"}
    if lenient is None:
        pixels: Pixels = simplejpeg.decode_jpeg(data, **options)
        return pixels
    divisor = _divisor(size, lenient.enough)
    width, height = (-(-side // divisor) for side in size)
    if divisor > 1:
        options |= {"min_height": height, "min_width": width}
    elif lenient.fast:  # of no use to a scaled decode
        options |= {"fastdct": True, "fastupsample": True}
    try:
        pixels = simplejpeg.decode_jpeg(data, **options, **_into(lenient.scratch, width * height * 3))
        return pixels
    except ValueError:
        # Without `strict` simplejpeg keeps even a fatal error to itself, and returns memory that nobody has written:
        # so into other bytes once more, and what is not the same then has not been decoded.
        pixels = simplejpeg.decode_jpeg(data, **options, strict=False)
        again = ~pixels
        simplejpeg.decode_jpeg(data, **options, strict=False, buffer=again)
        if not np.array_equal(pixels, again):
            raise
        return pixels


def _divisor(size: tuple[int, int], enough: Enough | None) -> int:
    """A half, a quarter or an eighth of the size: where libjpeg-turbo is quick and exact. Other eighths are neither
    (three of them: slower than a half, and 0.7 of 255 off where that is 0.2)."""
    if enough is None:
        return 1
    least = enough(*size)
    return next((d for d in (8, 4, 2) if all(-(-s // d) >= n for s, n in zip(size, least, strict=True))), 1)


def _divided(size: tuple[int, int], pixels: Pixels) -> int:
    """By what both sides of (width, height) were divided to become these pixels."""
    return next(d for d in (1, 2, 4, 8) if tuple(-(-side // d) for side in size) == pixels.shape[1::-1])


def _into(scratch: Pixels | None, needed: int) -> dict[str, Any]:
    return {"buffer": scratch} if scratch is not None and scratch.size >= needed else {}


def in_color(pixels: Pixels, color: str) -> Pixels:
    """uint8 [H, W, 3] RGB → uint8 [H, W, channels of `color`]; the one channel of an image that has no more stays.

    Grey is the luma of ITU-R BT.601, within 1 of what the decoders make of a coloured image.
    """
    if pixels.shape[2] == COLORS[color] == 1 or color == "rgb":
        return pixels
    if color in _CHANNEL:
        at = _CHANNEL[color]
        return np.ascontiguousarray(pixels[:, :, at : at + 1])
    import cv2

    if color == "gray":
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, None].astype(np.uint8, copy=False)
    out = np.empty_like(pixels, order="C")
    if color == "lab":
        cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB, out)
    else:
        swapped = cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb)
        cv2.mixChannels([swapped], [out], [0, 0, 1, 2, 2, 1])  # OpenCV has Cr before Cb
    return out


def _held(pixels: int) -> AbstractContextManager[None]:
    """Wait until so many pixels may be decoded. Small images never wait: a core's worth of them is little memory."""
    return _PIXELS_IN_FLIGHT.hold(pixels) if pixels > _SMALL else _AT_ONCE


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        raise ImageRejected("too_many_pixels", f"declares {width:,} x {height:,} pixels, at most {limits.pixels:,}")
    if max(width, height) > limits.side:
        raise ImageRejected("side_too_long", f"declares {width:,} x {height:,} pixels, at most {limits.side:,} a side")


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) of the canvas, from the first chunk (RFC 9649); (0, 0) where that is none."""
    chunk, body = data[12:16], data[20:30]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        packed = int.from_bytes(body[1:5], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return 0, 0


def _pixels(data: bytes, opened: Image.Image, kind: str, color: str, lenient: Lenient | None) -> tuple[Pixels, str]:
    """The pixels as stored, in `rgb` or `gray`, and the decoder's warning."""
    warning = ""
    if kind == "JPEG" and opened.mode in ("RGB", "L"):
        try:
            return _turbo(data, color, lenient, opened.size), ""
        except ValueError as error:
            warning = short(error)
    try:
        opened.load()
        pixels = to_color(opened, color)
    except MemoryError:
        raise
    except ImageRejected:
        raise
    except Exception as error:  # decoders raise anything on broken bytes, which are in memory: not a storage error
        raise ImageRejected("corrupt", f"a {kind} that does not decode: {short(error)}") from None
    return pixels, warning
