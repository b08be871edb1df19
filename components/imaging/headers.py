"""Image headers, parsed from the bytes in microseconds: the format by its signature, sizes of plain files.

Pillow takes twenty times longer and holds the interpreter's lock meanwhile. It stays the arbiter: a header is parsed
here only if it is one that Pillow opens, with the same result. Whatever is broken, rare or may turn the image (EXIF
and XMP live in a JPEG's APP1) is left to Pillow.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)

_SOF = frozenset((0xC0, 0xC1, 0xC2))
"""Baseline, extended and progressive frames, Huffman-coded."""
_DHT, _SOS, _DQT, _DRI, _COM = 0xC4, 0xDA, 0xDB, 0xDD, 0xFE
_APP0, _APP1, _APP2, _APP13, _APP14, _APP15 = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xEF
_SKIPPED_SEGMENTS = frozenset((_DHT, _SOS, _DRI, _COM, *range(_APP2 + 1, _APP13), _APP15))
"""Segments of which only the length matters here."""
_NEUTRAL_PNG_CHUNKS = frozenset((b"IDAT", b"IEND", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"sRGB", b"bKGD"))
"""Chunks that do not change how the pixels are shown, or that Pillow ignores as well."""


class Header(NamedTuple):
    """Header of an upright image of 8 bits a channel: sides in pixels, and 1 channel (gray) or 3 (color)."""

    width: int
    height: int
    channels: int


def sniff(data: bytes) -> str:
    """Return the format by its signature, one of `FORMATS`, or an empty string."""
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
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    return ""


def parse_jpeg_header(data: bytes) -> Header | None:
    """Parse a JPEG up to its first scan (ITU-T T.81, annex B); None where Pillow must be asked."""
    header: Header | None = None
    position, size = 2, len(data)
    while position + 4 <= size:
        marker = data[position + 1]
        length = data[position + 2] << 8 | data[position + 3]
        start, position, lead = position + 4, position + 2 + length, data[position]
        if lead != 0xFF or length < 2 or position > size:
            return None
        if marker in _SOF:
            if header is not None:
                return None
            header = _parse_jpeg_frame(data[start:position])
            if header is None:
                return None
        elif marker not in _SKIPPED_SEGMENTS and not _is_neutral_segment(marker, data, start, position):
            return None
        if marker == _SOS:
            return header
    return None


def parse_jpeg_precision(data: bytes) -> int:
    """Return the bits a sample that the first frame header declares, of any kind of frame; 0 where there is none."""
    position = 2
    while position + 5 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (_DHT, 0xC8, 0xCC):
            return data[position + 4]
        elif marker == _SOS:
            return 0
        else:
            position += 2 + (data[position + 2] << 8 | data[position + 3])
    return 0


def _parse_jpeg_frame(body: bytes) -> Header | None:
    """Parse a frame header: precision, height, width, number of components, and three bytes for each of them."""
    if len(body) < 6 or body[0] != 8 or body[5] not in (1, 3) or len(body) != 6 + 3 * body[5]:
        return None
    width, height = body[3] << 8 | body[4], body[1] << 8 | body[2]
    return Header(width, height, body[5]) if width and height else None


def _is_neutral_segment(marker: int, data: bytes, start: int, end: int) -> bool:
    """Return whether Pillow, which reads this segment, finds nothing in it that matters and nothing wrong."""
    if marker == _DQT:
        return _holds_whole_tables(data, start, end)
    if marker == _APP0:  # of JFIF the version is read
        return end - start >= 7 or not data.startswith(b"JFIF", start, end)
    if marker == _APP2:  # several pictures in one file; a piece of a color profile, with its number
        is_mpf = data.startswith(b"MPF\0", start, end)
        return not is_mpf and (end - start >= 14 or not data.startswith(b"ICC_PROFILE\0", start, end))
    if marker == _APP13:
        return not data.startswith(b"Photoshop 3.0\0", start, end)
    if marker == _APP14:  # of Adobe's the version is read; the color transform is the decoder's affair
        return end - start >= 7 or not data.startswith(b"Adobe", start, end)
    return False


def _holds_whole_tables(data: bytes, position: int, end: int) -> bool:
    """Return whether complete quantization tables, of 8 or 16 bits, fill the segment."""
    while position < end:
        position += 65 if data[position] < 16 else 129
    return position == end


def parse_plain_header(data: bytes, format: str) -> Header | None:
    """Parse a PNG, WEBP or BMP of the simplest form: 8 bits a channel, gray or RGB, upright, nothing transparent.

    None where the full decoder must look.
    """
    if format == "PNG":
        return _parse_png(data)
    if format == "WEBP":
        return _parse_webp(data)
    return _parse_bmp(data) if format == "BMP" else None


def _parse_png(data: bytes) -> Header | None:
    """PNG (third edition) 11.2 and 11.3: 8 bits, color type 0 or 2, not interlaced, complete up to IEND."""
    if len(data) < 45 or data[12:16] != b"IHDR":
        return None
    width, height, bits, color_type, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    if bits != 8 or color_type not in (0, 2) or interlaced or not width or not height:
        return None
    position = 33
    while position + 12 <= len(data):
        chunk = data[position + 4 : position + 8]
        if chunk not in _NEUTRAL_PNG_CHUNKS:
            return None
        position += 12 + int.from_bytes(data[position : position + 4], "big")
        if chunk == b"IEND":
            return Header(width, height, 1 if color_type == 0 else 3) if position <= len(data) else None
    return None


def _parse_webp(data: bytes) -> Header | None:
    """RFC 9649, 2.5: the simple lossy form has no alpha, no EXIF and no animation."""
    if data[12:16] != b"VP8 " or len(data) < 30 or data[23:26] != b"\x9d\x01\x2a":
        return None
    if 8 + int.from_bytes(data[4:8], "little") > len(data):
        return None
    width, height = parse_webp_size(data)
    return Header(width, height, 3) if width and height else None


def _parse_bmp(data: bytes) -> Header | None:
    """Windows' BITMAPINFOHEADER with 24 bits a pixel, uncompressed, bottom-up."""
    if len(data) < 54:
        return None
    _, _, offset, header_size, width, height, planes, bits, *_ = struct.unpack_from("<IIIIiiHH", data, 2)
    compression = int.from_bytes(data[30:34], "little")
    if (header_size, planes, bits, compression) != (40, 1, 24, 0) or width < 1 or height < 1:
        return None
    row_bytes = (width * 3 + 3) // 4 * 4
    return Header(width, height, 3) if offset >= 54 and offset + row_bytes * height <= len(data) else None


def parse_webp_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of a WebP's canvas, from its first chunk (RFC 9649); (0, 0) where that is none."""
    chunk, body = data[12:16], data[20:30]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if chunk == b"VP8L":
        packed = int.from_bytes(body[1:5], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return 0, 0


def is_lossless_webp(data: bytes) -> bool:
    """Return whether the first frame of a WebP is lossless (RFC 9649: its chunk is VP8L, else VP8)."""
    position = 12
    while position + 8 <= len(data):
        chunk, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if chunk in (b"VP8L", b"VP8 "):
            return chunk == b"VP8L"
        position += 24 if chunk == b"ANMF" else 8 + size + size % 2  # a frame's chunks follow its header of 16 bytes
    return False
