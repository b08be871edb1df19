"""A perceptual hash of 64 bits, and the small picture by which two pictures with like hashes are compared.

Re-encoding and resizing turn 0 to 3 of the hash's bits. A crop turns more, since it shifts everything: the finer a
detail, the more. The usual DCT hash (Zauner 2010; `phash` of imagehash: the signs of 64 frequencies of the picture)
has half its bits in details so fine that a crop of 5 % at a corner turns more than 10. This hash takes its bits from
coarse frequencies only, and makes up for their small number by taking them from six maps of the picture: its
brightness, its distance from the mean, that where it is busy, how busy it is, and which way its edges run. How busy
a place is changes slowly over the picture however fine its details are.

All of it is arithmetic on integers (in doubles, below 2^53, where sums are exact in any order), so that the same
pixels have the same hash on every processor, and flat pictures have the hash 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from ..store.images import Pixels

cv2.setNumThreads(1)  # pictures are measured in several threads at once

Floats = npt.NDArray[np.float32]

SIDE = 32
"""A picture is hashed at 32 x 32 pixels."""

LUMA, CHROMA = 24, 12
THUMBNAIL_BYTES = LUMA * LUMA + 2 * CHROMA * CHROMA

SAME = 0.32
"""Two pictures whose `differences` is below this are near twins. On photographs twins by re-encoding and resizing are
below 0.10 and twins by a crop of 5 % below 0.28, different photographs above 0.56; pages of different text in the same
layout are above 0.35."""

ASPECT = 0.08
"""Near twins' ratios of width to height differ by no more than this factor: 5 % off one side, and rounded sides."""

_SMALL = 160
_MAPS = (14, 10, 10, 10, 10, 10)  # bits of each map, from its lowest frequencies up
_CROP = 0.05
_NOISE = 16.0  # grey levels squared: flat pictures differ by noise, which must not count as structure
_CHUNK = 1024  # pairs compared at once, some 60 MB


def halve(picture: Pixels, first: bool = False) -> Pixels:
    """Means of 2 x 2 pixels, [H // 2, W // 2, ...]; an odd side loses its last row or column, or its `first`.

    Dropping it keeps to whole factors of two, where INTER_AREA takes a tenth of the time. A side of 1 stays 1.
    """
    height, width = picture.shape[:2]
    size = (max(1, width // 2), max(1, height // 2))
    if height > 1 and width > 1 and (height | width) & 1:
        y, x = (height & 1, width & 1) if first else (0, 0)
        picture = picture[y : y + 2 * size[1], x : x + 2 * size[0]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def shrink(picture: Pixels, half: Pixels) -> Pixels:
    """The picture halved (`half` is the first step) until its shorter side is below 160 pixels.

    Rows are dropped at the far and the near end in turn, so that the rest stays in its place.
    """
    if min(picture.shape[:2]) < _SMALL:
        return picture
    small, first = half, True
    while min(small.shape[:2]) >= _SMALL:
        small, first = halve(small, first), not first
    return small


def to_square(small: Pixels) -> Pixels:
    """A shrunk picture, RGB or grey → uint8 [32, 32, 3] of Y, Cr, Cb (ITU-R 601), or [32, 32] of Y."""
    square = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return square if square.ndim == 2 else cv2.cvtColor(square, cv2.COLOR_RGB2YCrCb)  # type: ignore[return-value]


def phash(luma: Pixels) -> int:
    """The hash of a square's Y, uint8 [32, 32]: unsigned, 64 bits."""
    basis, chosen = _basis()
    bits = (_maps(luma) @ basis).reshape(-1)[chosen] > 0
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _maps(luma: Pixels) -> npt.NDArray[np.float64]:
    """[6, 32 * 32]: Y, its distance from the mean, that times the edges, the edges, and their two directions."""
    maps = np.zeros((6, SIDE, SIDE))
    y, far, busy, edges, upright, slanted = maps
    y[:] = luma
    right, down = np.zeros((2, SIDE, SIDE))
    np.subtract(y[:, 2:], y[:, :-2], out=right[:, 1:-1])
    np.subtract(y[2:], y[:-2], out=down[1:-1])
    np.multiply(right, down, out=slanted)
    np.abs(right, out=right)
    np.abs(down, out=down)
    np.add(right, down, out=edges)
    np.subtract(right, down, out=upright)
    y -= np.rint(y.mean())
    np.abs(y, out=far)
    np.multiply(y, edges, out=busy)
    return maps.reshape(6, -1)


@cache
def _basis() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """The lowest 14 frequencies of a DCT under a window that fades towards the borders, where crops cut: whole
    numbers [1024, 14], each summing to 0; and which of the 6 x 14 products with the maps are bits."""
    at = (np.arange(SIDE) + 0.5) / SIDE
    fade = np.sqrt(np.sin(np.pi * at))
    window = np.outer(fade, fade)
    pairs = sorted(((i, j) for i in range(5) for j in range(5)), key=lambda p: (p[0] ** 2 + p[1] ** 2, p))
    columns = []
    for i, j in pairs[1 : 1 + max(_MAPS)]:
        wave = np.outer(np.cos(np.pi * i * at), np.cos(np.pi * j * at))
        wave -= (wave * window).sum() / window.sum()
        whole = np.rint(wave * window * 2**15)
        whole[SIDE // 2, SIDE // 2] -= whole.sum()
        columns.append(whole.reshape(-1))
    chosen = [number * max(_MAPS) + k for number, count in enumerate(_MAPS) for k in range(count)]
    return np.stack(columns, axis=1), np.array(chosen)


def thumbnail(square: Pixels) -> bytes:
    """The square at 24 x 24 pixels of Y and 12 x 12 of Cr and Cb, 864 bytes; without colour Cr = Cb = 128."""
    luma = square if square.ndim == 2 else cv2.extractChannel(square, 0)
    small = cv2.resize(luma, (LUMA, LUMA), interpolation=cv2.INTER_AREA).tobytes()
    if square.ndim == 2:
        return small + _COLOURLESS
    return small + cv2.resize(square, (CHROMA, CHROMA), interpolation=cv2.INTER_AREA)[..., 1:].tobytes()


_COLOURLESS = bytes([128]) * (2 * CHROMA * CHROMA)


def same_aspect(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Whether ratios of width to height are near enough for twins; float [P] each."""
    return np.abs(np.log(np.asarray(a, np.float64) / np.asarray(b, np.float64))) <= ASPECT


def difference(a: bytes, b: bytes) -> float:
    """How much two thumbnails differ: see `differences`."""
    rows = [np.frombuffer(data, np.uint8)[None] for data in (a, b)]
    return float(differences(*rows)[0])


def differences(a: Pixels, b: Pixels) -> Floats:
    """How much the pictures of each pair of thumbnails differ, uint8 [P, 864] twice → float32 [P].

    The root of the mean squared difference over the mean variance of the two: 0 for equal pictures, about 1.4 for
    unrelated ones. A pair is compared as it is, and as if the one were the other with 5 % of its width and height cut
    off, at nine places and both ways; the least counts. Up to about 25,000 pairs a second.
    """
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != THUMBNAIL_BYTES:
        raise ValueError(f"thumbnails are uint8 [P, {THUMBNAIL_BYTES}] twice, not {a.shape} and {b.shape}")
    found = np.empty(len(a), np.float32)
    for at in range(0, len(a), _CHUNK):
        chunk = slice(at, at + _CHUNK)
        found[chunk] = _differences(_planes(a[chunk]), _planes(b[chunk]))
    return found


def _planes(thumbnails: Pixels) -> tuple[Floats, Floats]:
    """Y as float32 [P, 24, 24, 1] and chroma as [P, 12, 12, 2], smoothed a little: resampling does that too."""
    luma, chroma = np.split(thumbnails.astype(np.float32), [LUMA * LUMA], axis=1)
    planes = luma.reshape(-1, LUMA, LUMA, 1), chroma.reshape(-1, CHROMA, CHROMA, 2)
    return _both_ways(planes[0], _smoothing(LUMA)), _both_ways(planes[1], _smoothing(CHROMA))


def _differences(a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> Floats:
    scale = (_variance(a) + _variance(b)) / 2 + np.float32(_NOISE)
    least = _squared(a, b)
    for whole, part in ((a, b), (b, a)):
        for crop in _crops(whole):
            np.minimum(least, _squared(crop, part), out=least)
    return np.sqrt(least / scale)


def _variance(planes: tuple[Floats, Floats]) -> Floats:
    luma, chroma = planes
    total: Floats = luma.var(axis=(1, 2)).sum(axis=1) + chroma.var(axis=(1, 2)).sum(axis=1)
    return total


def _squared(a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> Floats:
    """The mean squared distance of the pairs' Y and chroma, float32 [P]."""
    found = np.zeros(len(a[0]), np.float32)
    for one, other, places in zip(a, b, (LUMA * LUMA, CHROMA * CHROMA), strict=True):
        apart = (one - other).reshape(len(one), -1)
        found += np.einsum("pk,pk->p", apart, apart) / np.float32(places)
    return found


def _crops(planes: tuple[Floats, Floats]) -> Iterator[tuple[Floats, Floats]]:
    """The pictures without 5 % of their height and width, cut at nine places, at their full size again."""
    for y in range(3):
        luma, chroma = (np.einsum("ij,pjkc->pikc", _crop(p.shape[1])[y], p, optimize=True) for p in planes)
        for x in range(3):
            yield (
                np.einsum("ij,pkjc->pkic", _crop(LUMA)[x], luma, optimize=True),
                np.einsum("ij,pkjc->pkic", _crop(CHROMA)[x], chroma, optimize=True),
            )


def _both_ways(plane: Floats, operator: Floats) -> Floats:
    found: Floats = np.einsum("ij,pjkc,lk->pilc", operator, plane, operator, optimize=True)
    return found


@cache
def _smoothing(side: int) -> Floats:
    """The weights 0.1, 0.8, 0.1 along a side, float32 [side, side]; at the ends the border counts twice."""
    matrix = 0.8 * np.eye(side) + 0.1 * (np.eye(side, k=1) + np.eye(side, k=-1))
    matrix[0, 0] += 0.1
    matrix[-1, -1] += 0.1
    return matrix.astype(np.float32)


@cache
def _crop(side: int) -> Floats:
    """Cubic interpolation of 95 % of a side to all of it, float32 [3, side, side]: from its start, middle and end."""
    sharpness = -0.6
    matrix = np.zeros((3, side, side))
    for number, offset in enumerate((0, _CROP / 2, _CROP)):
        at = (offset + (1 - _CROP) * (np.arange(side) + 0.5) / side) * side - 0.5
        for step in range(-1, 3):
            source = np.floor(at).astype(int) + step
            t = np.abs(at - source)
            near = (sharpness + 2) * t**3 - (sharpness + 3) * t**2 + 1
            far = sharpness * (t**3 - 5 * t**2 + 8 * t - 4)
            np.add.at(matrix[number], (np.arange(side), source.clip(0, side - 1)), np.where(t <= 1, near, far))
    return matrix.astype(np.float32)
