"""The one decoder: every mode and format against Pillow, orientation, and decodes that are scaled."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
from encoded import HEIGHT, ORIENTATION, WIDTH, picture, pixels_of, png_chunk, reason
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import exif as with_orientation
from photos import saved
from PIL import Image, ImageOps
from PIL import __version__ as PILLOW

from imagemill.components.imaging.decoder import ImageRejected, LenientDecoding, decode, keep_min_side
from imagemill.components.imaging.headers import FORMATS, sniff

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow talks about broken files


def over_white(rgba: Image.Image) -> Image.Image:
    rgba = rgba.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def translucent() -> Image.Image:
    image = picture("RGBA")
    image.putalpha(Image.fromarray(np.linspace(0, 255, WIDTH * HEIGHT).astype(np.uint8).reshape(HEIGHT, WIDTH)))
    return image


LOSSLESS = [(mode, kind, {}) for mode in ("RGB", "L", "P") for kind in ("PNG", "BMP", "TIFF")] + [
    ("RGB", "TIFF", {"compression": "tiff_lzw"}), ("RGB", "WEBP", {"lossless": True}), ("1", "PNG", {}),
    ("1", "BMP", {}), ("1", "TIFF", {"compression": "group4"}), ("P", "GIF", {}), ("CMYK", "TIFF", {}),
]  # fmt: skip


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize(("mode", "kind", "options"), LOSSLESS)
def test_lossless_modes_decode_to_pillows_conversion(mode: str, kind: str, options: dict[str, Any], color: str) -> None:
    source = picture(mode)
    decoded = decode(saved(source, kind, **options), color)
    expected = pixels_of(source.convert({"rgb": "RGB", "gray": "L"}[color]))
    np.testing.assert_array_equal(decoded.pixels, expected)
    assert (decoded.width, decoded.height, decoded.format, decoded.warning) == (WIDTH, HEIGHT, kind, "")
    assert decoded.pixels.dtype == np.uint8 and decoded.pixels.flags.c_contiguous


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg_pixels_equal_those_of_pillow(mode: str, options: dict[str, Any]) -> None:
    data = saved(picture(mode), "JPEG", **options)
    expected = pixels_of(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data).pixels - expected).max() <= 2  # two builds of libjpeg-turbo


def test_cmyk_and_ycck_pixels_equal_those_of_pillow() -> None:
    data = saved(picture("CMYK"), "JPEG")
    np.testing.assert_array_equal(decode(data).pixels, pixels_of(Image.open(io.BytesIO(data)).convert("RGB")))
    assert decode(data, "gray").pixels.shape == (HEIGHT, WIDTH, 1)


@pytest.mark.skipif(int(PILLOW.split(".")[0]) < 13, reason="Pillow before 13 does not read its own")
def test_ycbcr_tiff_becomes_rgb() -> None:
    decoded = decode(saved(picture("YCbCr"), "TIFF"))
    assert np.abs(decoded.pixels.astype(int) - pixels_of(picture())).max() <= 3


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP"), ("LA", "PNG")])
def test_alpha_is_laid_over_white(mode: str, kind: str) -> None:
    source = translucent().convert(mode)
    data = saved(source, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    decoded = decode(data)
    np.testing.assert_array_equal(decoded.pixels, pixels_of(over_white(source)))
    assert decoded.pixels[0, 0].tolist() == [255, 255, 255] and not decoded.as_stored


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")])
def test_an_opaque_alpha_channel_changes_no_pixel(mode: str, kind: str) -> None:
    source = picture("RGB").convert(mode)
    data = saved(source, kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode(data).pixels, pixels_of(source.convert("RGB")))


def test_palette_transparency_is_laid_over_white() -> None:
    image = Image.new("P", (4, 2))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.putdata([0, 1, 2, 0, 1, 2, 0, 1])
    for kind, transparency in (("PNG", 1), ("PNG", b"\xff\x00\xff"), ("GIF", 1)):
        data = saved(image, kind, transparency=transparency)
        pixels = decode(data).pixels
        assert pixels[0].tolist() == [[200, 0, 0], [255, 255, 255], [0, 0, 200], [200, 0, 0]]
        assert decode(data, "gray").pixels[0, 1, 0] == 255


def test_transparent_colors_of_rgb_and_gray_pngs_are_laid_over_white() -> None:
    rgb = Image.new("RGB", (2, 1), (10, 20, 30))
    rgb.putpixel((1, 0), (1, 2, 3))
    decoded = decode(saved(rgb, "PNG", transparency=(1, 2, 3)))
    assert decoded.pixels[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert not decoded.as_stored
    gray = Image.new("L", (2, 1), 7)
    gray.putpixel((1, 0), 9)
    decoded = decode(saved(gray, "PNG", transparency=9), "gray")
    assert decoded.pixels[0, :, 0].tolist() == [7, 255]
    assert not decoded.as_stored, "a reader of the stored bytes would see the color that is transparent"


def test_pa_tiff_and_pa_png_are_read() -> None:
    source = picture("RGB").convert("P").convert("PA")
    try:
        data = saved(source, "TIFF")
    except (KeyError, OSError):
        pytest.skip("this Pillow writes no PA")
    np.testing.assert_array_equal(decode(data).pixels, pixels_of(source.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_keeps_its_high_byte(kind: str) -> None:
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    data = saved(Image.fromarray(values), kind)
    assert decode(data, "gray").pixels[0, :, 0].tolist() == [0, 0, 1, 0x12, 0xFF]
    assert decode(data).pixels[0, 3].tolist() == [0x12] * 3
    assert not decode(data, "gray").as_stored


def test_16_bit_big_endian_tiff() -> None:
    values = np.array([[0, 0x1234, 0xFFFF]], ">u2")
    data = saved(Image.frombytes("I;16B", (3, 1), values.tobytes()), "TIFF")
    assert decode(data, "gray").pixels[0, :, 0].tolist() == [0, 0x12, 0xFF]


def test_16_bit_rgb_png_keeps_its_high_bytes() -> None:
    row = np.array([[0x1234, 0xABCD, 0x00FF], [0xFFFF, 0x0100, 0x8000]], ">u2")
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(b"\0" + row.tobytes()), b"IEND": b""}
    body = b"".join(png_chunk(name, data) for name, data in chunks.items())
    assert decode(b"\x89PNG\r\n\x1a\n" + body).pixels[0].tolist() == [[0x12, 0xAB, 0x00], [0xFF, 0x01, 0x80]]


@pytest.mark.parametrize("values", [[0, 70_000], [-1, 5], [0, 2**31 - 1]])
def test_32_bit_values_beyond_16_bits_are_refused(values: list[int]) -> None:
    data = saved(Image.fromarray(np.array([values], np.int32)), "TIFF")
    assert reason(data) == "unsupported_bands"


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_modes_without_an_8_bit_meaning_are_refused(mode: str) -> None:
    source = Image.fromarray(np.full((3, 4), 0.5, np.float32)) if mode == "F" else Image.new("LAB", (4, 3))
    assert reason(saved(source, "TIFF")) == "unsupported_bands"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation_is_decoded(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert decoded.pixels.shape == (6, 8, 3) and (decoded.pixels == (200, 0, 0)).all()


def test_first_image_of_an_mpo_is_decoded() -> None:
    first, second = picture(), ImageOps.mirror(picture())
    decoded = decode(saved(first, "MPO", save_all=True, append_images=[second]))
    assert decoded.format == "JPEG"
    np.testing.assert_array_equal(decoded.pixels, decode(saved(first, "JPEG")).pixels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = saved(picture(), kind, exif=with_orientation(orientation), **options)
    # Pillow's TIFF plugin turns while it loads: the reference is the picture itself, not what Pillow loads.
    upright = saved(picture(), kind, **options)
    turned = Image.open(io.BytesIO(upright)).convert("RGB")
    turned.getexif()[ORIENTATION] = orientation
    expected = pixels_of(ImageOps.exif_transpose(turned)).astype(int)
    decoded = decode(data)
    assert decoded.pixels.shape == expected.shape
    assert np.abs(decoded.pixels - expected).max() <= (2 if kind == "JPEG" else 0)
    assert (decoded.height, decoded.width) == expected.shape[:2]
    assert decoded.as_stored == (orientation == 1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage, long enough to parse"]
)
def test_broken_exif_means_upright(kind: str, exif: bytes) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode(saved(picture(), kind, exif=exif, **options))
    assert decoded.pixels.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(decoded.pixels, decode(saved(picture(), kind, **options)).pixels)


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_does_not_exist_means_upright(orientation: int) -> None:
    decoded = decode(saved(picture(), "JPEG", exif=with_orientation(orientation)))
    assert decoded.pixels.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("kind", FORMATS)
def test_format_is_detected_from_the_bytes(kind: str) -> None:
    assert sniff(saved(picture(), kind)) == kind == decode(saved(picture(), kind)).format


@pytest.mark.parametrize(
    "data", [b"<svg/>", b"BMW is a car, not a bitmap", b"RIFF....WAVEfmt ", b"\xff\xd8", b"%PDF-1.7", b"\0" * 64]
)
def test_other_bytes_are_not_an_image(data: bytes) -> None:
    assert reason(data) == "not_an_image"


@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 200))
@settings(max_examples=80, deadline=None)
def test_scaled_decode_is_not_smaller_than_the_requested_size(width: int, height: int, min_side: int) -> None:
    data = simplejpeg.encode_jpeg(np.full((height, width, 3), 90, np.uint8))
    decoded = decode(data, lenient=LenientDecoding(keep_min_side(min_side) if min_side else None))
    assert min(decoded.pixels.shape[:2]) >= min(min_side, width, height)
    assert (decoded.width, decoded.height) == (width, height)
    if min_side == 0:
        assert decoded.pixels.shape[:2] == (height, width)


def test_scaled_decode_is_smaller_where_allowed() -> None:
    data = simplejpeg.encode_jpeg(np.zeros((400, 800, 3), np.uint8))
    assert decode(data, lenient=LenientDecoding(keep_min_side(100))).pixels.shape == (100, 200, 3)


def test_width_and_height_of_a_scaled_and_turned_jpeg_are_those_of_the_upright_picture() -> None:
    decoded = decode(
        saved(picture("RGB", 800, 400), "JPEG", exif=with_orientation(6)), lenient=LenientDecoding(keep_min_side(50))
    )
    assert (decoded.width, decoded.height) == (400, 800)
    assert decoded.pixels.shape == (100, 50, 3)


@pytest.mark.parametrize(("mode", "kind", "colors"), [
    ("RGB", "JPEG", ["rgb"]), ("L", "JPEG", ["gray"]), ("RGB", "PNG", ["rgb"]), ("L", "PNG", ["gray"]),
    ("P", "PNG", []), ("RGBA", "PNG", []),
])  # fmt: skip
def test_as_stored_tells_whether_the_bytes_hold_these_pixels(mode: str, kind: str, colors: list[str]) -> None:
    data = saved(picture(mode), kind)
    assert [color for color in ("rgb", "gray") if decode(data, color).as_stored] == colors


def test_a_look_at_a_broken_image_writes_nothing_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    """OpenCV's libpng would: what clean may have rejected is left to Pillow."""
    data = bytearray(saved(picture("RGB", 40, 30), "PNG"))
    at = data.index(b"IDAT") + 4
    data[at : at + 2] = b"\0\0"  # no zlib header
    length = int.from_bytes(data[at - 8 : at - 4], "big")
    data[at + length : at + length + 4] = zlib.crc32(data[at - 4 : at + length]).to_bytes(4, "big")
    with pytest.raises(ImageRejected):
        decode(bytes(data), lenient=LenientDecoding(keep_min_side(16), vetted=False))
    assert capfd.readouterr().err == ""
