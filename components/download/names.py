"""What a file's path says: its normal form, whether it promises an image, whether it is the system's own."""

from __future__ import annotations

import posixpath
import unicodedata

from ..store.choices import has_image_extension
from ..store.headers import sniff
from ..store.uri import is_hidden
from .archives import Member, Skipped

PATH_LIMIT = 4096
"""Characters of a path: no file system has longer ones, and label patterns are searched in them."""


def image_id(path: str) -> str:
    """A path in its normal form: relative, '/' between parts, no '.' or '..', Unicode NFC, valid UTF-8."""
    parts = posixpath.normpath(path.replace("\\", "/")).split("/")
    return "/".join(p if p.isascii() else _text(p) for p in parts if p not in ("", ".", ".."))


def _text(name: str) -> str:
    """A name that is no UTF-8 is read as Latin-1, so that different names stay different."""
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair
        raw = name.encode("utf-8", "replace")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return unicodedata.normalize("NFC", text)


def skipped(path: str, why: str) -> Skipped:
    return Skipped(image_id(path)[:PATH_LIMIT], why)


def classify(path: str, data: bytes) -> Member | Skipped:
    """An image candidate by its name or its bytes; everything else is skipped."""
    name = image_id(path)
    if not name or len(name) > PATH_LIMIT:
        return skipped(path, "a name that is no path" if not name else "a name longer than any path")
    if is_hidden(name):
        return skipped(path, "a hidden file")
    if has_image_extension(name) or sniff(data[:32]):
        return Member(name, data)
    return skipped(path, "no image by name or content")
