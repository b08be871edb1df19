"""Make file and folder names of image ids and class names: readable, safe on every system, and unique.

A safe name is kept, its slashes as `__`, unless another one of its folder is equal to it on a case-insensitive file
system. Every other name becomes a slug and 128 bits of the sha256 of the original; a kept name never has that form. No
name has a slash, begins with a dot or is one of Windows' devices, so that none is a path to another folder.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter

SLASH = "__"
MAX_BYTES = 150
"""Bytes in UTF-8 of a kept name; file systems take 255, and an extension is added."""
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{d}{n}" for d in ("com", "lpt") for n in "0123456789¹²³"
}
_EXTENSION = re.compile(r"\.(jpe?g|jfif|png|gif|bmp|tiff?|webp)$", re.IGNORECASE)
_HASH_SUFFIX = re.compile(r"-[0-9a-f]{32}$", re.IGNORECASE)
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_PUNCTUATION = frozenset("_-.+=@, ()'&")
"""Characters that a kept name may have besides letters and digits of any language."""


def flatten(text: str) -> str:
    """Return `text` with its slashes replaced, or an empty string if that is no safe name.

    Two texts may give the same name.
    """
    flat = text.replace("/", SLASH)
    if unicodedata.normalize("NFC", flat) != flat:
        return ""
    if not flat or len(flat.encode("utf-8", "replace")) > MAX_BYTES or not all(map(_is_plain, flat)):
        return ""
    if flat.startswith((".", "-", " ", "__", "~")) or flat.endswith((".", " ")) or ".." in flat:
        return ""
    if flat.partition(".")[0].strip().casefold() in _DEVICES or _HASH_SUFFIX.search(flat):
        return ""
    return flat


def _is_plain(character: str) -> bool:
    """Return whether a character is a letter, number or accent that no file system ignores, or in `_PUNCTUATION`."""
    if character in _PUNCTUATION:
        return True
    return unicodedata.category(character)[0] in "LNM" and not _INVISIBLE.match(character)


def hash_name(text: str, unique_text: str) -> str:
    """Return `last_part-<32 hex digits>`: the last part of `text`, and the hash of `unique_text`."""
    slug = re.sub(r"[^A-Za-z0-9_]+", "_", text.rpartition("/")[2])[:60].strip("_") or "x"
    return f"{slug}-{hashlib.sha256(unique_text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def strip_extension(image_id: str) -> str:
    """Return an image id without an image file's extension."""
    return _EXTENSION.sub("", image_id)


def _get_stem(image_id: str, copy: int) -> str:
    """Return the id without extension, with the number of an augmented copy (0 for none)."""
    return f"{strip_extension(image_id)}-copy{copy}" if copy else strip_extension(image_id)


def make_image_name(image_id: str, copy: int, is_taken: bool) -> str:
    """Return the name of an image file without extension; `is_taken`: another image of its folder has the kept name."""
    text = _get_stem(image_id, copy)
    return ("" if is_taken else flatten(text)) or hash_name(text, f"{copy}/{image_id}")


def hash_kept_name(folder: str, image_id: str, copy: int) -> int:
    """Return a 64-bit hash that is equal for two kept names of a folder which a file system may not distinguish."""
    name = unicodedata.normalize("NFC", flatten(_get_stem(image_id, copy)).casefold())
    return int.from_bytes(hashlib.blake2b(f"{folder}/{name}".encode(), digest_size=8).digest())


def make_class_folders(classes: tuple[str, ...]) -> list[str]:
    """Return a folder name for every class, unique even if case is ignored."""
    kept_names = [flatten(name) for name in classes]
    folded = [unicodedata.normalize("NFC", name.casefold()) for name in kept_names]
    counts = Counter(folded)
    return [
        name if name and counts[fold] == 1 else hash_name(original, original)
        for name, fold, original in zip(kept_names, folded, classes, strict=True)
    ]
