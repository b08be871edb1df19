"""File and folder names made of image ids and class names: readable, safe on every system, never the same twice.

A name that is safe as it stands is kept, its slashes as `__`, unless another of its folder is the same on a system
where case does not count. Every other one is a slug of it and 128 bits of the sha256 of the whole; a kept name never
looks like that. No name has a slash, begins with a dot or is one of Windows' devices, so that none leads elsewhere.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter

SLASH = "__"
LONGEST = 150
"""Bytes in UTF-8 of a kept name; file systems take 255, and an ending is still to come."""
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{d}{n}" for d in ("com", "lpt") for n in "0123456789¹²³"
}
_ENDING = re.compile(r"\.(jpe?g|jfif|png|gif|bmp|tiff?|webp)$", re.IGNORECASE)
_MADE = re.compile(r"-[0-9a-f]{32}$", re.IGNORECASE)
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_MARKS = frozenset("_-.+=@, ()'&")
"""What a kept name may have besides letters and digits of any language."""


def kept(text: str) -> str:
    """`text` as a name with its slashes flattened, or nothing where that would not be safe. Two texts may share it."""
    flat = text.replace("/", SLASH)
    if unicodedata.normalize("NFC", flat) != flat:
        return ""
    if not flat or len(flat.encode("utf-8", "replace")) > LONGEST or not all(map(_is_plain, flat)):
        return ""
    if flat.startswith((".", "-", " ", "__", "~")) or flat.endswith((".", " ")) or ".." in flat:
        return ""
    if flat.partition(".")[0].strip().casefold() in _DEVICES or _MADE.search(flat):
        return ""
    return flat


def _is_plain(character: str) -> bool:
    """A letter, number or accent of any language, but none that some systems pass over in a name."""
    if character in _MARKS:
        return True
    return unicodedata.category(character)[0] in "LNM" and not _UNSEEN.match(character)


def made(text: str, whole: str) -> str:
    """A name for `text` that no other `whole` has: `last_part-<32 hex digits>`."""
    slug = re.sub(r"[^A-Za-z0-9_]+", "_", text.rpartition("/")[2])[:60].strip("_") or "x"
    return f"{slug}-{hashlib.sha256(whole.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def stem(image_id: str) -> str:
    """The id without the ending of an image."""
    return _ENDING.sub("", image_id)


def image_text(image_id: str, copy: int) -> str:
    """What a file is named by: its stem, and the number of an augmented copy."""
    return f"{stem(image_id)}-copy{copy}" if copy else stem(image_id)


def image_name(image_id: str, copy: int, taken: bool) -> str:
    """The name of an image's file without its ending; `taken`: another image of the folder has the kept one."""
    text = image_text(image_id, copy)
    return ("" if taken else kept(text)) or made(text, f"{copy}/{image_id}")


def collision_key(folder: str, image_id: str, copy: int) -> int:
    """64 bits that two kept names of a folder have in common when a file system may take them for one."""
    name = unicodedata.normalize("NFC", kept(image_text(image_id, copy)).casefold())
    return int.from_bytes(hashlib.blake2b(f"{folder}/{name}".encode(), digest_size=8).digest())


def class_names(classes: tuple[str, ...]) -> list[str]:
    """A folder name for every class, no two alike, not even where case does not count."""
    plain = [kept(name) for name in classes]
    folded = [unicodedata.normalize("NFC", name.casefold()) for name in plain]
    often = Counter(folded)
    return [
        name if name and often[fold] == 1 else made(original, original)
        for name, fold, original in zip(plain, folded, classes, strict=True)
    ]
