"""The pictures of the demo: a shape drawn into a scene, and the scene written in one of many image formats.

A picture is a soft, blurred background with a few distractors and one subject in front of it, which lies in the
central square of the picture whatever its aspect ratio. A class decides only the layout of the subject's two
tones: as stripes or squares on a round or square panel, or as an outline repeated inwards. Colours, place, size,
angle, light and background come from the same distributions for every class.

Arrays only go through operations that IEEE 754 rounds alike on every CPU: square roots, but no sines, which are taken
of single numbers. Resampling and encoding are Pillow's.
"""

from __future__ import annotations

import colorsys
import io
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.TiffImagePlugin import TiffImageFile

CLASSES: tuple[str, ...] = ("checkerboard", "circle", "cross", "star", "stripes", "triangle")

_SUPERSAMPLE = 3
_PATTERNS = ("checkerboard", "stripes")
_PANELS = ("circle", "square")  # the outlines that a pattern is cut to
_ORIENTATION = 0x0112  # the EXIF tag
_STRIP_BYTE_COUNTS = 279  # the TIFF tag

Point = tuple[float, float]
Color = NDArray[np.float32]
Rng = np.random.Generator


def render(shape: str, rng: Rng, width: int, height: int) -> Image.Image:
    """Draw the picture of a class of `CLASSES` from its own stream of random numbers, in RGB."""
    back, tones = _choose_colors(rng)
    scene = _draw_background(rng, width, height, back)
    short = min(width, height)
    radius = short * float(rng.uniform(0.36, 0.47))
    slack = short / 2 - radius - 0.01 * short
    cx = width / 2 + float(rng.uniform(-slack, slack))
    cy = height / 2 + float(rng.uniform(-slack, slack))
    side = max(8, round(2 * radius))
    angle = float(rng.uniform(-0.4, 0.4))

    outline = shape if shape not in _PATTERNS else _PANELS[int(rng.integers(len(_PANELS)))]
    corners = _make_corners(outline, angle, float(rng.uniform(0.88, 1.0)))
    if shape in _PATTERNS:
        weight = _draw_pattern(shape, side, float(rng.uniform(6.5, 9.5)), angle + float(rng.uniform(-0.6, 0.6)))
    else:
        weight = _draw_nested_outlines(corners, side)
    mask, inner = _draw_polygon_mask(corners, side, (0.98,)), _draw_polygon_mask(corners, side, (0.92,))
    subject = _shade(rng, weight, tones, side)

    left, top = round(cx - side / 2), round(cy - side / 2)
    _draw_shadow(scene, mask, (left + round(0.05 * side), top + round(0.07 * side)))
    rim = tuple(int(v) for v in tones[0] * np.float32(0.45))
    scene.paste(rim, (left, top), mask)
    scene.paste(subject, (left, top), inner)
    return _add_grain(rng, scene)


def _choose_colors(rng: Rng) -> tuple[tuple[Color, Color], tuple[Color, Color]]:
    """Choose two background and two subject colors, float32 RGB of 0 to 255, that differ in lightness."""
    dark_back = bool(rng.random() < 0.5)
    low, high = (0.12, 0.42) if dark_back else (0.62, 0.95)
    back_hue = float(rng.random())
    backs = [_choose_color(back_hue + float(rng.uniform(-0.12, 0.12)), rng, (0.15, 0.6), (low, high)) for _ in range(2)]
    hue = back_hue + float(rng.uniform(0.2, 0.8))
    light = _choose_color(hue, rng, (0.35, 0.8), (0.85, 1.0))
    deep = _choose_color(hue + float(rng.uniform(-0.15, 0.15)), rng, (0.6, 0.95), (0.35, 0.55))
    # The first tone lies along the outline, so that one stands off from the background, the second from the first.
    return (backs[0], backs[1]), ((light, deep) if dark_back else (deep, light))


def _choose_color(hue: float, rng: Rng, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    rgb = colorsys.hsv_to_rgb(hue % 1.0, float(rng.uniform(*saturation)), float(rng.uniform(*value)))
    return np.array([round(255 * v) for v in rgb], np.float32)


def _draw_background(rng: Rng, width: int, height: int, colors: tuple[Color, Color]) -> Image.Image:
    """Draw a gradient with clouds and distractors, at half size: enlarging it puts it out of focus."""
    size = (max(2, width // 2), max(2, height // 2))
    n = 9
    angle = float(rng.uniform(0, 2 * math.pi))
    ys, xs = np.mgrid[0:n, 0:n].astype(np.float32) / np.float32(n - 1) - np.float32(0.5)
    t = np.clip(np.float32(0.5) + np.float32(math.cos(angle)) * xs + np.float32(math.sin(angle)) * ys, 0, 1)[..., None]
    field = colors[0] * (1 - t) + colors[1] * t
    field = field + rng.integers(-22, 23, (n, n, 1)).astype(np.float32)
    small = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
    scene = small.resize(size, Image.Resampling.BICUBIC)
    _draw_distractors(rng, scene, colors)
    return scene.resize((width, height), Image.Resampling.BICUBIC)


def _draw_distractors(rng: Rng, scene: Image.Image, colors: tuple[Color, Color]) -> None:
    """Draw 3 to 8 small translucent discs, boxes and lines of lightened or darkened background colors, in place."""
    draw = ImageDraw.Draw(scene, "RGBA")
    width, height = scene.size
    for _ in range(int(rng.integers(3, 9))):
        tone = np.clip(colors[int(rng.integers(2))] + np.float32(rng.choice([-70, -45, 45, 70])), 0, 255)
        fill = (int(tone[0]), int(tone[1]), int(tone[2]), int(rng.integers(70, 150)))
        x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height))
        r = min(width, height) * float(rng.uniform(0.03, 0.10))
        kind = int(rng.integers(3))
        angle = float(rng.uniform(0, math.pi))
        if kind == 0:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif kind == 1:
            turns = (angle + k * math.pi / 2 for k in range(4))
            draw.polygon([(x + r * math.cos(a), y + r * math.sin(a)) for a in turns], fill=fill)
        else:
            dx, dy = 4 * r * math.cos(angle), 4 * r * math.sin(angle)
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=fill, width=max(1, round(r / 4)))


def _make_corners(outline: str, angle: float, squeeze: float) -> list[Point]:
    """Return the outline as a polygon in the unit disc, turned by `angle` radians, its width scaled by `squeeze`."""
    if outline == "circle":
        raw = [(math.cos(k * math.pi / 36), math.sin(k * math.pi / 36)) for k in range(72)]
    elif outline == "square":
        raw = [(-0.71, -0.71), (0.71, -0.71), (0.71, 0.71), (-0.71, 0.71)]
    elif outline == "cross":
        arm = ((0.32, 0.94), (0.32, 0.32), (0.94, 0.32))
        quarters = ((1, 0), (0, 1), (-1, 0), (0, -1))
        raw = [(x * c + y * s, y * c - x * s) for c, s in quarters for x, y in arm]
    elif outline == "triangle":
        raw = [(math.sin(k * math.tau / 3), -math.cos(k * math.tau / 3)) for k in range(3)]
    else:
        reach = (1.0, 0.42)
        raw = [(reach[k % 2] * math.sin(k * math.pi / 5), -reach[k % 2] * math.cos(k * math.pi / 5)) for k in range(10)]
    cos, sin = math.cos(angle), math.sin(angle)
    return [(squeeze * x * cos - y * sin, squeeze * x * sin + y * cos) for x, y in raw]


def _draw_polygon_mask(corners: list[Point], side: int, scales: tuple[float, ...]) -> Image.Image:
    """Draw the polygon at falling scales, white and black in turn, antialiased: an L image of side x side."""
    big = side * _SUPERSAMPLE
    mask = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(mask)
    for k, scale in enumerate(scales):
        points = [(big / 2 * (1 + scale * x), big / 2 * (1 + scale * y)) for x, y in corners]
        draw.polygon(points, fill=255 * (1 - k % 2))
    return mask.reduce(_SUPERSAMPLE)


def _draw_nested_outlines(corners: list[Point], side: int) -> NDArray[np.float32]:
    """Draw the outline repeated inwards: the second tone's share, float32 (side, side) of 0 to 1."""
    return np.asarray(_draw_polygon_mask(corners, side, (0.70, 0.46, 0.22)), np.float32) * np.float32(1 / 255)


def _draw_pattern(shape: str, side: int, cells: float, turn: float) -> NDArray[np.float32]:
    """Draw stripes or squares, `cells` to a side: the second tone's share, float32 (side, side) of 0 to 1."""
    ticks = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / side)
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    u = _compute_triangle_wave(ticks[None, :] * cos + ticks[:, None] * sin)
    if shape == "checkerboard":
        u = u * _compute_triangle_wave(ticks[:, None] * cos - ticks[None, :] * sin)
    # A ramp of about one pixel instead of a step: edges without stairs.
    share: NDArray[np.float32] = np.clip(u * np.float32(side / cells) + np.float32(0.5), 0, 1)
    return share


def _compute_triangle_wave(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a triangle wave of period 2 between -0.5 and 0.5, which crosses zero at every half-integer."""
    wave: NDArray[np.float32] = np.abs(x % np.float32(2) - np.float32(1)) - np.float32(0.5)
    return wave


def _shade(rng: Rng, weight: NDArray[np.float32], tones: tuple[Color, Color], side: int) -> Image.Image:
    """Draw the subject's surface, RGB side x side: its tones under a light from one side, with some cloudy texture."""
    n = 8
    angle = float(rng.uniform(0, math.tau))
    ys, xs = np.mgrid[0:n, 0:n].astype(np.float32) / np.float32(n - 1) - np.float32(0.5)
    dx, dy = xs - np.float32(0.3 * math.cos(angle)), ys - np.float32(0.3 * math.sin(angle))
    light = np.float32(1.16) - np.float32(0.55) * np.sqrt(dx * dx + dy * dy)
    light = light * np.float32(128) + rng.integers(-7, 8, (n, n)).astype(np.float32)
    lit = Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    factor = np.asarray(lit, np.float32)[..., None] * np.float32(1 / 128)
    surface = tones[0] + (tones[1] - tones[0]) * weight[..., None]
    return Image.fromarray(np.clip(surface * factor, 0, 255).astype(np.uint8))


def _draw_shadow(scene: Image.Image, mask: Image.Image, position: tuple[int, int]) -> None:
    """Darken the scene under a blurred, shifted copy of the mask, in place."""
    small = max(4, mask.width // 10)
    soft = mask.resize((small, small), Image.Resampling.BOX).resize(mask.size, Image.Resampling.BICUBIC)
    scene.paste((12, 12, 16), position, soft.point([v * 2 // 5 for v in range(256)]))


def _add_grain(rng: Rng, scene: Image.Image) -> Image.Image:
    """Add the same noise of a few gray levels to the three channels, as a sensor does in dim light."""
    strength = int(rng.integers(2, 8))
    noise = rng.integers(-strength, strength + 1, (scene.height, scene.width), np.int16)
    return Image.fromarray(np.clip(np.asarray(scene) + noise[..., None], 0, 255).astype(np.uint8))


def encode(image: Image.Image, form: str, rng: Rng) -> bytes:
    """Write an upright RGB picture in a form of `FORMS`. `rng` decides where that leaves a choice (JPEG quality,
    subsampling, lossy or not)."""
    out = io.BytesIO()
    FORMS[form][1](image, out, rng)
    return out.getvalue()


Writer = Callable[[Image.Image, io.BytesIO, Rng], None]
Convert = Callable[[Image.Image], Image.Image]


def _write_jpeg(image: Image.Image, out: io.BytesIO, rng: Rng) -> None:
    quality, sampling, progressive = int(rng.integers(55, 96)), int(rng.integers(3)), bool(rng.random() < 0.15)
    image.save(out, "JPEG", quality=quality, subsampling=sampling, progressive=progressive)


def _save(form: str, convert: Convert | None = None, quality: tuple[int, int] | None = None, **options: Any) -> Writer:
    """Return a writer in one of Pillow's formats. `quality`: the range that it is drawn from."""

    def write(image: Image.Image, out: io.BytesIO, rng: Rng) -> None:
        drawn = {"quality": int(rng.integers(*quality))} if quality else {}
        (convert(image) if convert else image).save(out, form, **drawn, **options)

    return write


def _make_turned_jpeg_writer(orientation: int, turn: Image.Transpose) -> Writer:
    """Make a writer of pixels stored turned, with the EXIF orientation that turns them back."""

    def write(image: Image.Image, out: io.BytesIO, rng: Rng) -> None:
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        image.transpose(turn).save(out, "JPEG", quality=int(rng.integers(75, 96)), exif=exif)

    return write


def _make_transparent(image: Image.Image) -> Image.Image:
    """Return the picture opaque in the middle and half transparent in the corners."""
    ys, xs = np.mgrid[0:16, 0:16].astype(np.float32) - np.float32(7.5)
    alpha = np.clip(420 - np.float32(28) * np.sqrt(xs * xs + ys * ys), 110, 255).astype(np.uint8)
    image = image.copy()
    image.putalpha(Image.fromarray(alpha).resize(image.size, Image.Resampling.BICUBIC))
    return image


def _to_16_bits(image: Image.Image) -> Image.Image:
    """Return the picture in gray, with 16 bits a sample."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * np.uint16(257))


def _to_float(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L"), np.float32) * np.float32(1 / 255))


def _to_lab(image: Image.Image) -> Image.Image:
    """Return three bands that are not RGB: L*a*b*, which Pillow reads but does not convert."""
    return Image.frombytes("LAB", image.size, image.tobytes())


def _quantize(image: Image.Image) -> Image.Image:
    return image.quantize(128, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def _write_tiff(image: Image.Image, out: io.BytesIO, rng: Rng) -> None:
    compressed = rng.random() < 0.5
    image.save(out, "TIFF", compression="tiff_lzw" if compressed else None)
    if compressed:
        _zero_padding(out)


def _zero_padding(tiff: io.BytesIO) -> None:
    """Zero the byte between compressed strips of an odd length and the directory: libtiff leaves it unset in Pillow
    before 13 (seen in 11.3 to 12.3), so that one picture would have other bytes each time."""
    with TiffImageFile(io.BytesIO(tiff.getvalue())) as written:
        end = 8 + sum(written.tag_v2[_STRIP_BYTE_COUNTS])
    (directory,) = struct.unpack_from("<I", tiff.getvalue(), 4)
    if end == directory - 1:
        tiff.getbuffer()[end] = 0


_PNG, _GIF = _save("PNG", compress_level=1), _save("GIF", _quantize)
# form -> (the ending of the file's name, the writer); the last two have to be rejected by clean
FORMS: dict[str, tuple[str, Writer]] = {
    "jpeg": ("jpg", _write_jpeg),
    "jpeg_long_ending": ("jpeg", _write_jpeg),
    "jpeg_grey": ("jpg", _save("JPEG", lambda image: image.convert("L"), (70, 96))),
    "jpeg_cmyk": ("jpg", _save("JPEG", lambda image: image.convert("CMYK"), (75, 96))),
    "jpeg_turned_3": ("jpg", _make_turned_jpeg_writer(3, Image.Transpose.ROTATE_180)),
    "jpeg_turned_6": ("jpg", _make_turned_jpeg_writer(6, Image.Transpose.ROTATE_90)),
    "jpeg_turned_8": ("jpg", _make_turned_jpeg_writer(8, Image.Transpose.ROTATE_270)),
    "png": ("png", _PNG),
    "png_rgba": ("png", _save("PNG", _make_transparent, compress_level=1)),
    "png_palette": ("png", _save("PNG", _quantize, compress_level=1)),
    "png_16_bit": ("png", _save("PNG", _to_16_bits, compress_level=1)),
    "png_named_jpg": ("jpg", _PNG),
    "gif": ("gif", _GIF),
    "gif_named_jpg": ("jpg", _GIF),
    "webp": ("webp", _save("WEBP", quality=(60, 96), method=0)),
    "bmp": ("bmp", _save("BMP")),
    "tiff": ("tif", _write_tiff),
    "tiff_float": ("tif", _save("TIFF", _to_float)),
    "tiff_lab": ("tif", _save("TIFF", _to_lab)),
}
