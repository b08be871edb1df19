"""The header of a plain JPEG, read from its bytes: for every byte string the same as by way of Pillow."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
import simplejpeg
from encoded import jpeg_header, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import exif as with_orientation
from photos import saved
from PIL import Image, ImageOps

from imagemill.components.imaging import decoder as images
from imagemill.components.imaging.decoder import ImageRejected, LenientDecoding, decode, keep_min_side
from imagemill.components.imaging.headers import Header, parse_jpeg_header, parse_jpeg_precision
from imagemill.components.imaging.pixel_options import DecodeLimits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

LIMITS = DecodeLimits(pixels=40_000, side=300)
WIDTH, HEIGHT = 37, 23
SOS, SOF0, DQT = b"\xff\xda", b"\xff\xc0", b"\xff\xdb"
XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="6"/>'
PHOTOSHOP = b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\x03abc\0"


def segment(marker: int, payload: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def insert_bytes(data: bytes, segment: bytes, before: bytes = b"") -> bytes:
    """`what` before the first marker `before`, or at once after the start of the image."""
    offset = data.index(before) if before else 2
    return data[:offset] + segment + data[offset:]


def changed(data: bytes, marker: bytes, offset: int, new: bytes) -> bytes:
    """Other bytes at `offset` from a marker."""
    at = data.index(marker) + offset
    return data[:at] + new + data[at + len(new) :]


def with_thumbnail() -> bytes:
    exif = with_orientation(1)
    exif.get_ifd(1)[0x0201] = 8
    return insert_bytes(PLAIN, segment(0xE1, exif.tobytes() + saved(picture("RGB", 8, 6), "JPEG")))


PLAIN = saved(picture(), "JPEG")
GRAY = saved(picture("L"), "JPEG")
PLAIN_ONES = {
    "plain": PLAIN,
    "gray": GRAY,
    "progressive": saved(picture(), "JPEG", progressive=True),
    "progressive gray": saved(picture("L"), "JPEG", progressive=True),
    "4:4:4": saved(picture(), "JPEG", subsampling=0),
    "4:1:1": simplejpeg.encode_jpeg(np.asarray(picture()), colorsubsampling="411"),
    "4:4:0": simplejpeg.encode_jpeg(np.asarray(picture()), colorsubsampling="440"),
    "restart markers": saved(picture("RGB", 120, 90), "JPEG", restart_marker_blocks=2),
    "restart rows": saved(picture("RGB", 120, 90), "JPEG", restart_marker_rows=1),
    "adobe rgb": saved(picture(), "JPEG", keep_rgb=True),
    "adobe ycc": insert_bytes(PLAIN, segment(0xEE, b"Adobe\0\x64\0\0\0\0\x01")),
    "adobe without a transform": insert_bytes(PLAIN, segment(0xEE, b"Adobe\0\x64")),
    "adobe says rgb": insert_bytes(PLAIN, segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"), SOF0),
    "adobe says ycck": insert_bytes(PLAIN, segment(0xEE, b"Adobe\0\x64\0\0\0\0\x02")),
    "app14 of others": insert_bytes(PLAIN, segment(0xEE, b"Ad")),
    "comment": saved(picture(), "JPEG", comment=b"a comment"),
    "comment before the scan": insert_bytes(PLAIN, segment(0xFE, b"\xff\xda\xff\xe1"), SOS),
    "profile": saved(picture(), "JPEG", icc_profile=b"x" * 70_000),
    "flashpix": insert_bytes(PLAIN, segment(0xE2, b"FPXR\0" + PLAIN[:50])),
    "thumbnail in JFXX": insert_bytes(PLAIN, segment(0xE0, b"JFXX\0\x10" + saved(picture("RGB", 8, 6), "JPEG"))),
    "app0 of others": insert_bytes(PLAIN, segment(0xE0, b"JFI")),
    "app13 of others": insert_bytes(PLAIN, segment(0xED, b"Photoshop")),
    "other apps": insert_bytes(PLAIN, b"".join(segment(0xE0 + n, b"app") for n in (3, 4, 8, 12, 15))),
    "empty segments": insert_bytes(
        PLAIN, segment(0xFE, b"") + segment(0xE2, b"") + segment(0xEE, b"") + segment(0xE0, b"")
    ),
    "extended": PLAIN.replace(SOF0, b"\xff\xc1", 1),
    "said to be progressive": PLAIN.replace(SOF0, b"\xff\xc2", 1),
    "empty tables": insert_bytes(PLAIN, segment(0xDB, b"") + segment(0xC4, b"")),
    "16-bit table": insert_bytes(PLAIN, segment(0xDB, b"\x13" + b"\0\x01" * 64)),
    "trailing bytes": PLAIN + b"trailing \xff\xe1",
    "another picture behind": PLAIN + saved(picture(), "JPEG", exif=with_orientation(6)),
    "no end": PLAIN[:-2],
    "half": PLAIN[: len(PLAIN) * 3 // 4],
    "no tables": PLAIN.replace(DQT, b"\xff\xfe"),
    "too many pixels": jpeg_header(201, 200),
    "too long": jpeg_header(301, 2),
    "tall": simplejpeg.encode_jpeg(np.zeros((200, 100, 3), np.uint8)),
}
"""Their headers are read here, whether or not what follows can be decoded."""

PILLOWS = {
    "cmyk": saved(picture("CMYK"), "JPEG"),
    "exif": saved(picture(), "JPEG", exif=with_orientation(6)),
    "exif upright": saved(picture(), "JPEG", exif=with_orientation(1)),
    "broken exif": saved(picture(), "JPEG", exif=b"Exif\0\0garbage"),
    "exif before the scan": insert_bytes(PLAIN, segment(0xE1, with_orientation(8).tobytes()), SOS),
    "xmp": insert_bytes(PLAIN, segment(0xE1, XMP)),
    "xmp of a gray one": insert_bytes(GRAY, segment(0xE1, XMP)),
    "thumbnail in exif": with_thumbnail(),
    "app1 of others": insert_bytes(PLAIN, segment(0xE1, b"anything")),
    "mpo": saved(picture(), "MPO", save_all=True, append_images=[ImageOps.mirror(picture())]),
    "mpf": insert_bytes(PLAIN, segment(0xE2, b"MPF\0II*\0\x08\0\0\0\0\0")),
    "mpf broken": insert_bytes(PLAIN, segment(0xE2, b"MPF\0garbage")),
    "short profile": insert_bytes(PLAIN, segment(0xE2, b"ICC_PROFILE\0\x01")),
    "photoshop": insert_bytes(PLAIN, segment(0xED, PHOTOSHOP)),
    "photoshop cut": insert_bytes(PLAIN, segment(0xED, PHOTOSHOP[:20])),
    "short jfif": insert_bytes(PLAIN, segment(0xE0, b"JFIF\0")),
    "short adobe": insert_bytes(PLAIN, segment(0xEE, b"Adobe\0")),
    "12 bits": changed(PLAIN, SOF0, 4, b"\x0c"),
    "two components": changed(PLAIN, SOF0, 9, b"\x02"),
    "four components": changed(PLAIN, SOF0, 9, b"\x04"),
    "zero width": changed(PLAIN, SOF0, 7, b"\0\0"),
    "zero height": changed(PLAIN, SOF0, 5, b"\0\0"),
    "zero height and DNL": insert_bytes(changed(PLAIN, SOF0, 5, b"\0\0"), segment(0xDC, b"\0\x17"), b"\xff\xd9"),
    "DNL before the scan": insert_bytes(PLAIN, segment(0xDC, b"\0\x05"), SOS),
    "arithmetic": PLAIN.replace(SOF0, b"\xff\xc9", 1),
    "arithmetic, progressive": PLAIN.replace(SOF0, b"\xff\xca", 1),
    "lossless": PLAIN.replace(SOF0, b"\xff\xc3", 1),
    "DAC": insert_bytes(PLAIN, segment(0xCC, b"\0\0"), SOS),
    "hierarchical": insert_bytes(PLAIN, segment(0xDE, PLAIN[PLAIN.index(SOF0) + 4 :][:15]), SOF0),
    "two frames": insert_bytes(PLAIN, PLAIN[PLAIN.index(SOF0) :][:19], SOS),
    "frame too long": PLAIN.replace(SOF0 + b"\0\x11", SOF0 + b"\0\x12", 1),
    "frame too short": PLAIN.replace(SOF0 + b"\0\x11", SOF0 + b"\0\x10", 1),
    "frame with a byte to spare": PLAIN.replace(
        SOF0 + PLAIN[PLAIN.index(SOF0) + 2 :][:17], SOF0 + b"\0\x12" + PLAIN[PLAIN.index(SOF0) + 4 :][:15] + b"\0", 1
    ),
    "no frame": PLAIN.replace(SOF0, b"\xff\xfe", 1),
    "fill byte": insert_bytes(PLAIN, b"\xff", SOS),
    "fill bytes": insert_bytes(PLAIN, b"\xff\xff\xff", DQT),
    "junk": insert_bytes(PLAIN, b"junk", SOS),
    "zeros": insert_bytes(PLAIN, b"\0" * 7, SOS),
    "escaped": insert_bytes(PLAIN, b"\xff\0", SOS),
    "a restart marker": insert_bytes(PLAIN, b"\xff\xd0", SOS),
    "TEM": insert_bytes(PLAIN, b"\xff\x01", SOS),
    "two starts": PLAIN[:2] + PLAIN,
    "an end first": insert_bytes(PLAIN, b"\xff\xd9", SOF0),
    "JPG0": insert_bytes(PLAIN, segment(0xF0, b"abc")),
    "length of 0": insert_bytes(PLAIN, b"\xff\xfe\0\0"),
    "length of 1": insert_bytes(PLAIN, b"\xff\xfe\0\x01"),
    "length beyond the end": insert_bytes(PLAIN, b"\xff\xfe\xff\xff"),
    "table too short": insert_bytes(PLAIN, segment(0xDB, b"\0" + b"\x01" * 63)),
    "table too long": insert_bytes(PLAIN, segment(0xDB, b"\0" + b"\x01" * 65)),
    "cut in the header": PLAIN[: PLAIN.index(SOS)],
    "cut in the start of the scan": PLAIN[: PLAIN.index(SOS) + 6],
    "cut in a length": PLAIN[: PLAIN.index(SOF0) + 3],
    "the signature alone": b"\xff\xd8\xff",
}
"""Pillow is asked about these."""

VARIANTS = PLAIN_ONES | PILLOWS


def decode_outcome(data: bytes, color: str, strict: bool, min_side: int) -> tuple[Any, ...]:
    """Return the reason of a rejection, or all fields of the decoded image."""
    try:
        enough = keep_min_side(min_side) if min_side else None
        decoded = decode(data, color, lenient=None if strict else LenientDecoding(enough), limits=LIMITS)
    except ImageRejected as error:
        return error.reason, error.detail
    assert decoded.pixels.flags.c_contiguous
    return decoded.pixels.shape, vars(decoded) | {"pixels": decoded.pixels.tobytes()}


def assert_equal_outcomes(data: bytes) -> None:
    for color, strict, min_side in (("rgb", True, 0), ("gray", False, 0), ("red", False, 9)):
        result = decode_outcome(data, color, strict, min_side)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(images, "parse_jpeg_header", lambda data: None)
            assert result == decode_outcome(data, color, strict, min_side)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_jpeg_is_decoded_as_by_way_of_pillow(name: str) -> None:
    assert_equal_outcomes(VARIANTS[name])


@pytest.mark.parametrize("name", PLAIN_ONES)
def test_headers_that_are_read_here(name: str) -> None:
    data = PLAIN_ONES[name]
    with Image.open(io.BytesIO(data)) as opened:
        assert parse_jpeg_header(data) == Header(*opened.size, len(opened.getbands()))


@pytest.mark.parametrize("name", PILLOWS)
def test_headers_that_are_left_to_pillow(name: str) -> None:
    assert parse_jpeg_header(PILLOWS[name]) is None


def test_a_plain_jpeg_never_meets_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any) -> None:
        raise AssertionError("Pillow was asked")

    monkeypatch.setattr(images, "open_image", opened)
    assert decode(PLAIN).pixels.shape == (HEIGHT, WIDTH, 3) and decode(GRAY, "red").as_stored
    with pytest.raises(AssertionError):
        decode(PILLOWS["exif"])


@pytest.mark.parametrize("name", ["plain", "progressive gray", "exif", "adobe rgb", "mpo"])
def test_cut_anywhere(name: str) -> None:
    data = VARIANTS[name]
    scan = data.index(SOS) + 16
    for end in [*range(3, scan, 3), *range(scan, len(data), max(1, (len(data) - scan) // 25))]:
        assert_equal_outcomes(data[:end])


@given(st.sampled_from(sorted(VARIANTS)), st.data())
@settings(max_examples=150, deadline=None)
def test_bytes_changed_anywhere(name: str, draw: st.DataObject) -> None:
    data = bytearray(VARIANTS[name])
    header = max(4, bytes(data).find(SOS) + 14)  # most changes there: behind it both ways are one
    places = st.one_of(st.integers(2, min(header, len(data)) - 1), st.integers(2, len(data) - 1))
    for place, value in draw.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=5)):
        data[place] = value
    assert_equal_outcomes(bytes(data))


LEADS = (b"JFIF", b"Exif\0\0", b"Adobe", b"MPF\0", b"ICC_PROFILE\0", b"Photoshop 3.0\0", b"8BIM", XMP[:29], b"")
MARKERS = [0xC0, 0xC2, 0xC4, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE]


def a_segment(marker: int, payload: bytes, more: int) -> bytes:
    """A segment whose length may be wrong by `more`."""
    return struct.pack(">BBH", 0xFF, marker, (len(payload) + 2 + more) & 0xFFFF) + payload


SEGMENTS = st.builds(
    a_segment,
    st.one_of(st.sampled_from(MARKERS), st.integers(0, 255)),
    st.builds(bytes.__add__, st.sampled_from(LEADS), st.binary(max_size=20)),
    st.sampled_from([0, 0, 0, 0, -2, -1, 1, 40]),
)


@given(
    st.sampled_from(["plain", "gray", "progressive"]), st.lists(SEGMENTS, max_size=3), st.sampled_from([b"", DQT, SOS])
)
@settings(max_examples=150, deadline=None)
def test_segments_put_in_anywhere(name: str, segments: list[bytes], before: bytes) -> None:
    assert_equal_outcomes(insert_bytes(VARIANTS[name], b"".join(segments), before))


@pytest.mark.parametrize("lead", [b"", b"\xff\xff", b"\xff\xfe\0\x04hi"])
def test_samples_of_other_than_8_bits_are_unsupported(lead: bytes) -> None:
    deep = changed(PLAIN, SOF0, 4, b"\x0c")
    deep = deep[:2] + lead + deep[2:]
    assert parse_jpeg_precision(deep) == 12 and parse_jpeg_precision(PLAIN) == 8
    with pytest.raises(ImageRejected) as error:
        decode(deep)
    assert error.value.reason == "unsupported_bands" and "12 bits" in error.value.detail
    assert not any(map(parse_jpeg_precision, (PLAIN[:2], b"\xff\xd8\xff\xe0\0\0\xff", b"")))
