"""Paths of files: their normal form, and the classification of files as image candidates."""

from __future__ import annotations

import posixpath
import unicodedata

from ..imaging.choices import has_image_extension
from ..imaging.headers import sniff
from ..storage.uri import is_hidden
from .archives import Member, Skipped

PATH_LIMIT = 4096
"""Maximum characters of a path; no file system has longer ones, and label patterns are searched in them."""


_REMOVED_PARTS = frozenset(("", ".", ".."))


def normalize_path(path: str) -> str:
    """Return the normal form of a path: relative, '/' between parts, no '.' or '..', Unicode NFC, valid UTF-8."""
    if path.isascii() and "\\" not in path and _REMOVED_PARTS.isdisjoint(path.split("/")):
        return path  # nearly all paths are in normal form, and each is looked at several times
    parts = posixpath.normpath(path.replace("\\", "/")).split("/")
    return "/".join(part if part.isascii() else _to_unicode(part) for part in parts if part not in _REMOVED_PARTS)


def _to_unicode(name: str) -> str:
    """Return a name in NFC; one that is no UTF-8 is decoded as Latin-1, so that different names stay different."""
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair
        raw = name.encode("utf-8", "replace")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return unicodedata.normalize("NFC", text)


def make_skipped(path: str, why: str) -> Skipped:
    return Skipped(normalize_path(path)[:PATH_LIMIT], why)


def classify(path: str, data: bytes) -> Member | Skipped:
    """Return a Member for an image candidate, by its name or its bytes, and Skipped for any other file."""
    name = normalize_path(path)
    if not name or len(name) > PATH_LIMIT:
        return make_skipped(path, "a name that is no path" if not name else "a name longer than any path")
    if is_hidden(name):
        return make_skipped(path, "a hidden file")
    if has_image_extension(name) or sniff(data[:32]):
        return Member(name, data)
    return make_skipped(path, "no image by name or content")
