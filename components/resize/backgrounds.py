"""Backgrounds for augmented copies: pictures of a folder or prefix, or smooth fields of color.

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

from ..dataset.manifest import canonical_json, digest
from ..imaging.decoder import NO_LIMITS, Decoded, ImageRejected, Pixels, convert_color, decode
from ..storage import uri as uris
from ..storage.errors import MillError, UserError, wrong
from ..storage.store import get_store

FIELD = "backgrounds"
ENDINGS = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "tif", "tiff", "bmp")
"""Extensions of a folder's pictures; their format is detected from their bytes."""
CACHE_BYTES = 96 * 2**20
"""Bytes of decoded pictures that a process holds."""
GRID_SIDES = (2, 5)
"""Range of the colors on a side of a field, the last excluded."""
_STRIP_PIXELS = 2**18
"""Pixels that are blended at a time."""


@dataclass(frozen=True)
class Background:
    """A picture of the folder: its name, its size in bytes, and a validator of its content (a sha256 on disk, an ETag
    in an object store)."""

    name: str
    size: int
    content: str


def list_backgrounds(folder: str) -> tuple[Background, ...]:
    """Return the pictures below a folder or prefix, sorted by name. UserError if there is none."""
    root = uris.normalize(folder, FIELD).rstrip("/")
    store, pictures = get_store(root), []
    for entry in store.list(root):
        name = entry.uri.removeprefix(f"{root}/")
        if name.rpartition(".")[2].lower() in ENDINGS and not name.rpartition("/")[2].startswith("."):
            content = entry.validator if uris.is_s3(root) else hashlib.sha256(store.read(entry.uri)).hexdigest()
            pictures.append(Background(name, entry.size, content))
    if not pictures:
        raise wrong(FIELD, f"a folder or prefix that holds pictures ({', '.join(ENDINGS)})", folder)
    return tuple(sorted(pictures, key=lambda picture: picture.name))


def digest_pictures(pictures: Sequence[Background]) -> str:
    """Return the digest of the pictures' names, sizes and content, which counts in the fingerprint."""
    return digest([[picture.name, picture.size, picture.content] for picture in pictures])


def write_listing(uri: str, pictures: Sequence[Background]) -> None:
    """Write the list of pictures for the workers; it is work in progress, named by its content."""
    get_store(uri).put_if_absent(uri, canonical_json([asdict(picture) for picture in pictures]))


@lru_cache(maxsize=4)
def read_listing(uri: str) -> tuple[Background, ...]:
    return tuple(Background(**entry) for entry in json.loads(get_store(uri).read(uri)))


class _PictureCache:
    """Least-recently-used cache of decoded pictures, of up to `max_bytes`. Safe to use from threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._pictures: OrderedDict[tuple[str, str, int], Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, str, int]) -> Pixels | None:
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
            return self._pictures.get(key)

    def put(self, key: tuple[str, str, int], pixels: Pixels) -> None:
        with self._lock:
            if key not in self._pictures and pixels.nbytes <= self._max_bytes:
                self._pictures[key] = pixels
                self._bytes += pixels.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._pictures.popitem(last=False)[1].nbytes


_cache = _PictureCache(CACHE_BYTES)


def read_picture(folder: str, picture: Background, color: str, height: int, width: int) -> Pixels:
    """Return the center of a picture as uint8 [height, width, channels of `color`].

    The cache holds it with a short side of the next power of two, so that the result does not depend on which size was
    read first.
    """
    side = 1 << (max(height, width) - 1).bit_length()
    uri = uris.join(uris.normalize(folder, FIELD), picture.name)
    key = (f"{uri}#{picture.content}", color, side)
    pixels = _cache.get(key)
    if pixels is None:
        pixels = _decode_picture(uri, picture, color, side)
        _cache.put(key, pixels)
    return resize_to_cover(pixels, height, width)


def _decode_picture(uri: str, picture: Background, color: str, side: int) -> Pixels:
    """Read and decode a picture, its short side at most `side`. UserError if it has changed or can't be decoded."""
    try:
        data = get_store(uri).read(uri)
    except FileNotFoundError:
        data = b""
    changed = len(data) != picture.size
    if not uris.is_s3(uri):
        changed = changed or hashlib.sha256(data).hexdigest() != picture.content
    if changed:
        raise wrong(f"{FIELD}: {uri}", "the picture that was there when resize began", "another one, or none")
    try:
        pixels = decode(data, color).pixels
    except ImageRejected as error:
        raise UserError(f"{FIELD}: expected {uri} to be a picture, found {error}") from None
    scale = side / min(pixels.shape[:2])
    if scale >= 1:
        return pixels
    return resize_to_cover(pixels, *(max(side, round(scale * length)) for length in pixels.shape[:2]))


def resize_to_cover(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resize the largest center crop of that aspect ratio: uint8 [H, W, C] → [height, width, C].

    Area interpolation to smaller sizes, linear to larger ones.
    """
    import cv2

    rows, columns = pixels.shape[:2]
    scale = max(height / rows, width / columns)
    crop_rows, crop_columns = min(rows, max(1, round(height / scale))), min(columns, max(1, round(width / scale)))
    top, left = (rows - crop_rows) // 2, (columns - crop_columns) // 2
    crop = pixels[top : top + crop_rows, left : left + crop_columns]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(crop, (width, height), interpolation=interpolation), np.uint8).reshape(
        height, width, -1
    )


def make_color_field(seed: int, color: str, height: int, width: int) -> Pixels:
    """Return uint8 [height, width, channels of `color`]: a few random colors, interpolated smoothly."""
    import cv2

    random = np.random.default_rng(seed)
    grid = random.integers(0, 256, (*random.integers(*GRID_SIDES, 2), 3), np.uint8)
    smooth = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return convert_color(np.ascontiguousarray(smooth), color)


def decode_foreground(mask: bytes, image: Decoded) -> Pixels | None:
    """Decode the mask that clean kept of an image: uint8 [h, w] of its decoded pixels, the share of the foreground.

    255 is all foreground. None if the mask has no foreground.
    """
    import cv2

    height, width = image.height, image.width
    try:
        share = decode(mask, "gray", limits=NO_LIMITS).pixels
    except ImageRejected as error:
        raise MillError(f"a mask that clean kept does not decode ({error}): internal error; please report it") from None
    if share.shape[:2] != (height, width):
        raise MillError(
            f"a mask that clean kept has {share.shape[1]} x {share.shape[0]} pixels, not {width} x {height}"
        )
    rows, columns = image.pixels.shape[:2]
    if image.divisor > 1:  # the decoder pads the border of an image whose sides the divisor does not divide
        padding = ((0, rows * image.divisor - height), (0, columns * image.divisor - width))
        padded = np.pad(share[:, :, 0], padding, "edge")
        share = np.asarray(cv2.resize(padded, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)
    return share.reshape(rows, columns) if share.any() else None


def composite(pixels: Pixels, share: Pixels, background: Pixels) -> Pixels:
    """Blend uint8 [h, w, C] over a background of the same shape by `share`, uint8 [h, w]: 255 is all foreground."""
    blended = np.empty_like(background)
    strip_rows = max(1, _STRIP_PIXELS // pixels.shape[1])
    for top in range(0, len(pixels), strip_rows):
        strip = slice(top, top + strip_rows)
        weight = share[strip, :, None].astype(np.uint16)
        blended[strip] = (pixels[strip] * weight + background[strip] * (255 - weight) + 127) // 255
    return blended
