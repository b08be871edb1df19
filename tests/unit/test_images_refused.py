"""Images that the decoder rejects: bombs, truncated files, garbage; and those kept with a warning."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import simplejpeg
from encoded import HEIGHT, WIDTH, jpeg_header, picture, png_chunk, png_header, reason
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import exif as with_orientation
from photos import saved
from PIL import Image

from imagemill.components.clean.config import REASONS
from imagemill.components.imaging.decoder import ImageRejected, LenientDecoding, decode
from imagemill.components.imaging.headers import FORMATS
from imagemill.components.imaging.pixel_options import DecodeLimits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow talks about broken files


def gif_header(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0)


def bmp_header(width: int, height: int) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def webp_header(width: int, height: int) -> bytes:
    """An animated WebP whose one frame of 1 x 1 lies on a large canvas: valid, and 16 bytes a pixel to decode."""
    frame = saved(Image.new("RGB", (1, 1), "red"), "WEBP", lossless=True)[12:]
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    anmf = b"\0" * 6 + b"\0" * 6 + b"\x0a\0\0" + b"\0" + frame
    body = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas
    body += b"ANIM" + struct.pack("<I", 6) + b"\0" * 6
    body += b"ANMF" + struct.pack("<I", len(anmf)) + anmf
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def tiff_header(width: int, height: int) -> bytes:
    data = bytearray(saved(Image.new("L", (3, 5)), "TIFF"))
    for tag, value in ((256, width), (257, height)):
        offset = data.index(struct.pack("<H", tag), int.from_bytes(data[4:8], "little"))
        data[offset : offset + 12] = struct.pack("<HHII", tag, 4, 1, value)
    return bytes(data)


BOMBS = {
    "PNG": png_header(30_000, 30_000) + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)),
    "GIF": gif_header(30_000, 30_000) + b"\x02\x02\x4c\x01\0;",
    "BMP": bmp_header(30_000, 30_000),
    "JPEG": jpeg_header(30_000, 30_000),
    "WEBP": webp_header(30_000, 30_000),
    "TIFF": tiff_header(30_000, 30_000),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_decompression_bomb_is_rejected_by_its_header(kind: str) -> None:
    assert len(BOMBS[kind]) < 2_000
    decode(saved(picture("L"), kind))  # plugins are loaded
    started = time.thread_time()  # of work: a busy machine lets one wait
    assert reason(BOMBS[kind]) == "too_many_pixels"
    assert time.thread_time() - started < 0.1


def test_decompression_bombs_are_rejected_without_allocating_their_pixels() -> None:
    """The process may not grow by more than 200 MB."""
    code = (
        "import resource, sys\n"
        "from imagemill.components.imaging.decoder import ImageRejected, decode\n"
        "import PIL.WebPImagePlugin, PIL.TiffImagePlugin\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)\n"
        "for data in eval(sys.stdin.read()):\n"
        "    try: decode(data)\n"
        "    except ImageRejected as error: print(error.reason)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], input=repr(list(BOMBS.values())), capture_output=True, text=True, check=False
    )
    assert process.stdout.split() == ["too_many_pixels"] * len(BOMBS), process.stderr


def test_each_cap_is_exact() -> None:
    data = saved(picture("RGB", 30, 20), "PNG")
    decode(data, limits=DecodeLimits(pixels=600, side=30, bytes=len(data)))
    assert reason(data, limits=DecodeLimits(pixels=599)) == "too_many_pixels"
    assert reason(data, limits=DecodeLimits(side=29)) == "side_too_long"
    assert reason(data, limits=DecodeLimits(bytes=len(data) - 1)) == "too_many_bytes"


def pillow_takes(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data)).load()
    except Exception:
        return False
    return True


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("percent", range(0, 100, 5))
def test_truncated_files_are_rejected(kind: str, percent: int) -> None:
    data = saved(picture("RGB", 120, 90), kind)
    cut = data[: len(data) * percent // 100]
    if percent == 0:
        assert reason(cut) == "empty_file"
    elif kind == "JPEG" and pillow_takes(cut):
        assert decode(cut).warning
    else:
        assert reason(cut) in ("corrupt", "not_an_image")


def test_jpeg_that_pillow_decodes_with_a_warning_is_kept_with_the_warning() -> None:
    data = saved(picture("RGB", 120, 90), "JPEG")
    offset = data.index(b"\xff\xda")  # start of scan: bytes between two segments draw "extraneous bytes before marker"
    decoded = decode(data[:offset] + b"\x00" * 7 + data[offset:])
    assert "extraneous" in decoded.warning.lower()
    np.testing.assert_allclose(decoded.pixels.astype(int), decode(data).pixels, atol=2)
    assert decode(data).warning == ""


@pytest.mark.parametrize("place", [11, 12])
def test_lenient_decoding_rejects_jpegs_that_libjpeg_gives_up_on(place: int) -> None:
    """A JPEG that libjpeg gives up on after a warning: without `strict` simplejpeg returns memory as it was."""
    data = saved(picture("L"), "JPEG", progressive=True)
    offset = data.index(b"\xff\xda") + place
    broken = data[:offset] + b"\xff" + data[offset + 1 :]
    unwritten = simplejpeg.decode_jpeg(broken, "GRAY", strict=False, buffer=np.full((HEIGHT, WIDTH, 1), 77, np.uint8))
    assert (unwritten == 77).all(), "simplejpeg says it now: the test needs another picture, and images.py no check"
    assert reason(broken, lenient=LenientDecoding()) == reason(broken) == "corrupt"


def test_lenient_decoding_keeps_the_rows_before_a_truncation() -> None:
    data = saved(picture("RGB", 120, 90), "JPEG")
    decoded = decode(data[: len(data) * 3 // 4], lenient=LenientDecoding())
    assert not decoded.warning and decoded.pixels.shape == (90, 120, 3)
    np.testing.assert_array_equal(decoded.pixels[:40], decode(data).pixels[:40])


@pytest.mark.parametrize("kind", FORMATS)
def test_rejections_have_the_same_message_each_time(kind: str) -> None:
    """Messages are stored: an object's address would change the dataset's bytes."""
    original = saved(picture(), kind)
    for data in (original[:20], original[:8] + b"\xff" * 40, original[: len(original) // 3]):
        messages = set()
        for _ in range(3):
            padding = bytearray(1000)  # so that the next object lies elsewhere
            with pytest.raises(ImageRejected) as error:
                decode(bytes(data))
            messages.add(str(error.value))
            assert " at 0x" not in str(error.value)
            del padding
        assert len(messages) == 1


SIGNATURES = [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"BM"]
SIGNATURES += [b"RIFF\x40\0\0\0WEBP" + chunk for chunk in (b"VP8 ", b"VP8X", b"VP8L")]
SIGNATURES += [b"BM" + b"\0" * 12 + b"\x28\0\0\0"]


def only_rejects(data: bytes) -> None:
    try:
        decoded = decode(data, limits=DecodeLimits(pixels=1_000_000))
    except ImageRejected as error:
        assert error.reason in REASONS and error.detail
    else:
        assert decoded.pixels.dtype == np.uint8 and decoded.pixels.shape == (decoded.height, decoded.width, 3)


@given(st.sampled_from(SIGNATURES), st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_garbage_behind_a_signature_raises_nothing_but_a_rejection(signature: bytes, garbage: bytes) -> None:
    only_rejects(signature + garbage)


SMALL = [saved(picture("RGB", 16, 12), kind) for kind in ("JPEG", "PNG", "BMP", "TIFF", "GIF")]
SMALL += [saved(picture(mode, 16, 12), kind) for mode, kind in (("CMYK", "JPEG"), ("P", "PNG"), ("RGBA", "WEBP"))]
SMALL += [
    saved(picture("RGB", 16, 12), "TIFF", compression=c) for c in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg")
]
SMALL += [saved(picture("RGB", 16, 12), kind, exif=with_orientation(6)) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]


@given(st.sampled_from(SMALL), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8))
@settings(max_examples=500, deadline=None)
def test_flipped_bytes_raise_nothing_but_a_rejection(data: bytes, flips: list[tuple[float, int]]) -> None:
    changed = bytearray(data)
    for place, value in flips:
        changed[min(len(data) - 1, int(place * len(data)))] = value
    only_rejects(bytes(changed))
