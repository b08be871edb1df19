"""What is put behind the foreground of a copy: pictures of a folder or prefix, or smooth fields of colour.

Replacing what is behind the object keeps a model from learning the place instead of the thing (Dwibedi et al., "Cut,
Paste and Learn", 2017; Xiao et al., "Noise or Signal: The Role of Image Backgrounds in Object Recognition", 2020).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from ..store import uri as uris
from ..store.errors import MillError, UserError, wrong
from ..store.filesystem import get_store
from ..store.fingerprint import canonical_json, digest
from ..store.images import NO_LIMITS, Decoded, ImageRejected, Pixels, convert_color, decode

FIELD = "backgrounds"
ENDINGS = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "tif", "tiff", "bmp")
"""What a folder's pictures are called; their format is told from their bytes."""
CACHE_BYTES = 96 * 2**20
"""Of decoded pictures in a process."""
GRID = (2, 5)
"""Colours a side of a field, the last excluded."""
_STRIP = 2**18
"""Pixels that are blended at a time."""


@dataclass(frozen=True)
class Background:
    """A picture of the folder: its name in it, its size in bytes, and what its content is told by (a sha256 on disk,
    an ETag in an object store)."""

    name: str
    size: int
    content: str


def list_backgrounds(folder: str) -> tuple[Background, ...]:
    """The pictures below a folder or prefix, by name. UserError where there is none."""
    place = uris.normalize(folder, FIELD).rstrip("/")
    store, found = get_store(place), []
    for entry in store.list(place):
        name = entry.uri.removeprefix(f"{place}/")
        if name.rpartition(".")[2].lower() in ENDINGS and not name.rpartition("/")[2].startswith("."):
            content = entry.validator if uris.is_s3(place) else hashlib.sha256(store.read(entry.uri)).hexdigest()
            found.append(Background(name, entry.size, content))
    if not found:
        raise wrong(FIELD, f"a folder or prefix that holds pictures ({', '.join(ENDINGS)})", folder)
    return tuple(sorted(found, key=lambda one: one.name))


def digest_of(pictures: Sequence[Background]) -> str:
    """What counts of them."""
    return digest([[one.name, one.size, one.content] for one in pictures])


def write_listing(uri: str, pictures: Sequence[Background]) -> None:
    """Put the list where every worker can read it; it is work in progress, named by its content."""
    get_store(uri).put_if_absent(uri, canonical_json([asdict(one) for one in pictures]))


@lru_cache(maxsize=4)
def read_listing(uri: str) -> tuple[Background, ...]:
    return tuple(Background(**one) for one in json.loads(get_store(uri).read(uri)))


class _Cache:
    """Decoded pictures of this process, the last used ones, up to so many bytes. Safe to use from threads."""

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._held: OrderedDict[tuple[str, str, int], Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, str, int]) -> Pixels | None:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: tuple[str, str, int], pixels: Pixels) -> None:
        with self._lock:
            if key not in self._held and pixels.nbytes <= self._most:
                self._held[key] = pixels
                self._bytes += pixels.nbytes
            while self._bytes > self._most:
                self._bytes -= self._held.popitem(last=False)[1].nbytes


_cache = _Cache(CACHE_BYTES)


def picture(folder: str, one: Background, color: str, height: int, width: int) -> Pixels:
    """uint8 [height, width, channels of `color`], the picture's centre, covering all of it.

    It is held with a short side of the next power of two, so that what comes out depends on nothing that was asked for
    before.
    """
    side = 1 << (max(height, width) - 1).bit_length()
    uri = uris.join(uris.normalize(folder, FIELD), one.name)
    key = (f"{uri}#{one.content}", color, side)
    pixels = _cache.get(key)
    if pixels is None:
        pixels = _read(uri, one, color, side)
        _cache.put(key, pixels)
    return cover(pixels, height, width)


def _read(uri: str, one: Background, color: str, side: int) -> Pixels:
    try:
        data = get_store(uri).read(uri)
    except FileNotFoundError:
        data = b""
    changed = len(data) != one.size
    if not uris.is_s3(uri):
        changed = changed or hashlib.sha256(data).hexdigest() != one.content
    if changed:
        raise wrong(f"{FIELD}: {uri}", "the picture that was there when resize began", "another one, or none")
    try:
        pixels = decode(data, color).pixels
    except ImageRejected as error:
        raise UserError(f"{FIELD}: expected {uri} to be a picture, found {error}") from None
    smaller = side / min(pixels.shape[:2])
    if smaller >= 1:
        return pixels
    return cover(pixels, *(max(side, round(smaller * length)) for length in pixels.shape[:2]))


def cover(pixels: Pixels, height: int, width: int) -> Pixels:
    """uint8 [H, W, C] → [height, width, C]: the largest centre of that shape, by area, or linearly where it grows."""
    import cv2

    rows, columns = pixels.shape[:2]
    scale = max(height / rows, width / columns)
    part_rows, part_columns = min(rows, max(1, round(height / scale))), min(columns, max(1, round(width / scale)))
    top, left = (rows - part_rows) // 2, (columns - part_columns) // 2
    part = pixels[top : top + part_rows, left : left + part_columns]
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(part, (width, height), interpolation=how), np.uint8).reshape(height, width, -1)


def colour_field(seed: int, color: str, height: int, width: int) -> Pixels:
    """uint8 [height, width, channels of `color`]: a few colours, one running smoothly into the other."""
    import cv2

    random = np.random.default_rng(seed)
    grid = random.integers(0, 256, (*random.integers(*GRID, 2), 3), np.uint8)
    smooth = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return convert_color(np.ascontiguousarray(smooth), color)


def foreground(mask: bytes, image: Decoded) -> Pixels | None:
    """The mask that clean kept of an image → uint8 [h, w] of its decoded pixels: the share of the foreground in each,
    255 for all of it. None where it shows none."""
    import cv2

    height, width = image.height, image.width
    try:
        found = decode(mask, "gray", limits=NO_LIMITS).pixels
    except ImageRejected as error:
        raise MillError(f"a mask that clean kept does not decode ({error}); this is an error of imagemill's") from None
    if found.shape[:2] != (height, width):
        raise MillError(
            f"a mask that clean kept has {found.shape[1]} x {found.shape[0]} pixels, not {width} x {height}"
        )
    rows, columns = image.pixels.shape[:2]
    if image.divisor > 1:  # the last pixels are of what lies beyond the image, too: the decoder goes on with its border
        beyond = ((0, rows * image.divisor - height), (0, columns * image.divisor - width))
        whole = np.pad(found[:, :, 0], beyond, "edge")
        found = np.asarray(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)
    return found.reshape(rows, columns) if found.any() else None


def composite(pixels: Pixels, share: Pixels, behind: Pixels) -> Pixels:
    """uint8 [h, w, C]: the pixels where `share` (uint8 [h, w]) is 255, what is behind where it is 0, both between."""
    out = np.empty_like(behind)
    rows = max(1, _STRIP // pixels.shape[1])
    for top in range(0, len(pixels), rows):
        part = slice(top, top + rows)
        weight = share[part, :, None].astype(np.uint16)
        out[part] = (pixels[part] * weight + behind[part] * (255 - weight) + 127) // 255
    return out
