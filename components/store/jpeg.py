"""The header of a plain JPEG, read from its bytes in microseconds (ITU-T T.81, annex B).

Pillow takes twenty times longer and holds the interpreter's lock meanwhile. It stays the arbiter: a header is read
here only if it is one that Pillow opens, with what Pillow would say of it. Whatever is broken, rare or may turn the
image (EXIF and XMP live in APP1) is left to Pillow.
"""

from __future__ import annotations

from typing import NamedTuple

_SOF = frozenset((0xC0, 0xC1, 0xC2))
"""Baseline, extended and progressive frames, Huffman-coded."""
_DHT, _SOS, _DQT, _DRI, _COM = 0xC4, 0xDA, 0xDB, 0xDD, 0xFE
_APP0, _APP1, _APP2, _APP13, _APP14, _APP15 = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xEF
_PASSED_OVER = frozenset((_DHT, _SOS, _DRI, _COM, *range(_APP2 + 1, _APP13), _APP15))
"""Segments of which only the length matters here."""


class Header(NamedTuple):
    """Of an upright image of 8 bits: its sides in pixels, and 1 component (grey) or 3 (colour)."""

    width: int
    height: int
    components: int


def plain_header(data: bytes) -> Header | None:
    """The header up to the first scan, or None where Pillow must be asked."""
    found: Header | None = None
    at, size = 2, len(data)
    while at + 4 <= size:
        marker = data[at + 1]
        length = data[at + 2] << 8 | data[at + 3]
        start, at, lead = at + 4, at + 2 + length, data[at]
        if lead != 0xFF or length < 2 or at > size:
            return None
        if marker in _SOF:
            if found is not None:
                return None
            found = _frame(data[start:at])
            if found is None:
                return None
        elif marker not in _PASSED_OVER and not _is_read_alike(marker, data, start, at):
            return None
        if marker == _SOS:
            return found
    return None


def sample_bits(data: bytes) -> int:
    """The precision that the first frame header declares, of any kind of frame; 0 where there is none."""
    at = 2
    while at + 5 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (_DHT, 0xC8, 0xCC):
            return data[at + 4]
        elif marker == _SOS:
            return 0
        else:
            at += 2 + (data[at + 2] << 8 | data[at + 3])
    return 0


def _frame(body: bytes) -> Header | None:
    """The frame header: precision, height, width, number of components, and three bytes for each of them."""
    if len(body) < 6 or body[0] != 8 or body[5] not in (1, 3) or len(body) != 6 + 3 * body[5]:
        return None
    width, height = body[3] << 8 | body[4], body[1] << 8 | body[2]
    return Header(width, height, body[5]) if width and height else None


def _is_read_alike(marker: int, data: bytes, start: int, end: int) -> bool:
    """A segment that Pillow looks into, of a form in which it finds nothing that matters and nothing wrong."""
    if marker == _DQT:
        return _are_tables(data, start, end)
    if marker == _APP0:  # of JFIF the version is read
        return end - start >= 7 or not data.startswith(b"JFIF", start, end)
    if marker == _APP2:  # several pictures in one file; a piece of a colour profile, with its number
        is_mpf = data.startswith(b"MPF\0", start, end)
        return not is_mpf and (end - start >= 14 or not data.startswith(b"ICC_PROFILE\0", start, end))
    if marker == _APP13:
        return not data.startswith(b"Photoshop 3.0\0", start, end)
    if marker == _APP14:  # of Adobe's the version is read; the colour transform is the decoder's affair
        return end - start >= 7 or not data.startswith(b"Adobe", start, end)
    return False


def _are_tables(data: bytes, at: int, end: int) -> bool:
    """Whole quantization tables, of 8 or 16 bits, fill the segment."""
    while at < end:
        at += 65 if data[at] < 16 else 129
    return at == end
