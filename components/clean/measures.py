"""The measures of a picture (brightness, sharpness, colorfulness and others), and the perceptual hash of 64 bits and
the thumbnails that find its near-duplicates.

Measures are cheap compared with decoding, because they are taken from smaller copies of the picture, made once.

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

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from ..imaging.decoder import Pixels
from ..storage.parallel import cores


@dataclass(frozen=True)
class Measures:
    """The measures of one picture; numbers have 6 digits and are exact as float32.

    From the half-size gray picture (means of 2 x 2 pixels, ITU-R 601):

    Attributes:
        brightness: the mean, 0 (black) to 1 (white).
        contrast: the standard deviation, 0 to 0.5 on the same scale.
        sharpness: the variance of the Laplacian on the scale of 0 to 255 (Pech-Pacheco et al. 2000); the border is
            mirrored. Blurred pictures have little, noise much.
        entropy: of the histogram of 256 values, in bits, 0 to 8.
        colorfulness: M of Hasler and Süsstrunk 2003, 0 (gray) to about 110 (extremely colorful), from the picture
            halved until its shorter side is below 160 pixels.
        phash: the perceptual hash, unsigned, 64 bits; see `compute_phash`.
        thumbnail: 864 bytes to verify a near-duplicate by; see `compare_thumbnails`.
    """

    brightness: float
    contrast: float
    sharpness: float
    entropy: float
    colorfulness: float
    phash: int
    thumbnail: bytes


@dataclass(frozen=True)
class ReducedPicture:
    """The smaller copies of a picture that it is measured by: its gray half, uint8 [h, w], and the result of `shrink`,
    uint8 [h, w] or [h, w, 3]."""

    half_gray: Pixels
    small: Pixels

    @property
    def nbytes(self) -> int:
        return self.half_gray.nbytes + self.small.nbytes


def reduce_picture(pixels: Pixels) -> ReducedPicture:
    """Reduce a picture, uint8 [H, W, 1 or 3], gray or RGB, in any layout."""
    gray = pixels.shape[2] == 1
    picture = pixels[..., 0] if gray else pixels
    half = halve(picture)
    half_gray: Pixels = half if gray else cv2.cvtColor(half, cv2.COLOR_RGB2GRAY)  # type: ignore[assignment]
    return ReducedPicture(half_gray, shrink(picture, half))


def measure(pixels: Pixels) -> Measures:
    """Reduce and measure a picture, as `reduce_picture` and `measure_reduced` do."""
    return measure_reduced([reduce_picture(pixels)])[0]


def measure_reduced(pictures: Sequence[ReducedPicture]) -> list[Measures]:
    """Measure pictures by their smaller copies: many small ones take less time together than one by one."""
    if not pictures:
        return []
    squares = np.stack([to_square(picture.small) for picture in pictures])
    hashes, thumbnails = compute_phashes(squares[..., 0]), encode_thumbnails(squares)
    return [_measure_reduced(*columns) for columns in zip(pictures, hashes, thumbnails, strict=True)]


def _measure_reduced(picture: ReducedPicture, phash: int, thumbnail: bytes) -> Measures:
    half_gray, small = picture.half_gray, picture.small
    mean, deviation = cv2.meanStdDev(half_gray)
    return Measures(
        brightness=_round(float(mean[0, 0]) / 255),
        contrast=_round(float(deviation[0, 0]) / 255),
        sharpness=_round(_compute_moments(cv2.Laplacian(half_gray, cv2.CV_16S, ksize=1))[1]),
        entropy=_round(compute_entropy(half_gray)),
        colorfulness=0.0 if small.ndim == 2 else _round(compute_colorfulness(small)),
        phash=phash,
        thumbnail=thumbnail,
    )


def compute_entropy(gray: Pixels) -> float:
    """Return the entropy of the histogram of a gray picture, uint8 [H, W], in bits."""
    counts = cv2.calcHist([gray], [0], None, [256], [0, 256]).reshape(-1).astype(np.float64)
    counts = counts[counts > 0]
    shares = counts / counts.sum()
    return max(0.0, -float(shares @ np.log2(shares)))


def compute_colorfulness(picture: Pixels) -> float:
    """Return M of Hasler and Süsstrunk 2003, "Measuring colorfulness in natural images", of RGB uint8 [H, W, 3]."""
    red, green, blue = (channel.astype(np.int16) for channel in cv2.split(picture))
    mean_rg, variance_rg = _compute_moments(red - green)
    mean_yb, variance_yb = _compute_moments(red + green - 2 * blue)  # of twice the paper's yb
    spread = (variance_rg + variance_yb / 4) ** 0.5
    return float(spread + 0.3 * (mean_rg**2 + mean_yb**2 / 4) ** 0.5)


def _compute_moments(values: cv2.typing.MatLike) -> tuple[float, float]:
    """Return mean and variance of int16 [H, W]: sums of whole numbers, so exact, and a tenth of meanStdDev's time."""
    mean = float(cv2.mean(values)[0])
    squares = float(cv2.norm(values, cv2.NORM_L2SQR))
    return mean, max(0.0, squares / values.size - mean * mean)


def _round(value: float) -> float:
    """Return the float32 that is nearest to the value at 6 digits."""
    return float(np.float32(float(f"{value:.6g}")))


cv2.setNumThreads(1)  # pictures are measured in several threads at once

Floats = npt.NDArray[np.float32]

SIDE = 32
"""A picture is hashed at 32 x 32 pixels."""

LUMA, CHROMA = 24, 12
THUMBNAIL_BYTES = LUMA * LUMA + 2 * CHROMA * CHROMA

MAX_DIFFERENCE = 0.32
"""Two pictures whose thumbnails differ by less than this (`compare_thumbnails`) are near-duplicates. On photographs
re-encoding and resizing are below 0.15 and a crop of 5 % is below 0.28, different photographs are above 0.55. Pages
of different text in the same layout are above 0.35; flat shapes of one color in one place that differ in little of
the area can't be told apart."""

MAX_LOG_ASPECT_RATIO = 0.08
"""Maximum distance of near-duplicates' logarithms of width by height: 5 % off one side, and rounded sides."""

_SHRUNK_SIDE = 160
_BITS_OF_MAPS = (14, 10, 10, 10, 10, 10)  # bits of each map, from its lowest frequencies up
_CROP = 0.05
_NOISE_VARIANCE = 16.0  # gray levels squared: flat pictures differ by noise, which must not count as structure
_MAX_GRID_DIFFERENCE = 1.0  # of the coarse difference; photographs that differ by a crop are below 0.75
_HASHED_TOGETHER = 8  # squares whose maps, 0.4 MB, fit in a core's cache
_CHUNK = 256  # pairs that a thread compares at once, some 15 MB


def halve(picture: Pixels, pad: bool = False) -> Pixels:
    """Return the means of 2 x 2 pixels, [H // 2, W // 2, ...].

    The last row or column of an odd side is left out; with `pad` it is repeated, and the halves are rounded up. A
    side of 1 stays.

    Whole factors of two are what INTER_AREA does ten times as fast as others.
    """
    height, width = picture.shape[:2]
    if pad and (height | width) & 1:
        picture = cv2.copyMakeBorder(picture, 0, height & 1, 0, width & 1, cv2.BORDER_REPLICATE)  # type: ignore[assignment]
        height, width = picture.shape[:2]
    size = (max(1, width // 2), max(1, height // 2))
    return cv2.resize(picture[: 2 * size[1], : 2 * size[0]], size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def shrink(picture: Pixels, half: Pixels) -> Pixels:
    """Halve a picture, of which `half` is the first half, until its shorter side is below 160 pixels.

    Odd rows are left out and repeated in turn, so that the result shows nearly the same extent.
    """
    if min(picture.shape[:2]) < _SHRUNK_SIDE:
        return picture
    small, pad = half, True
    while min(small.shape[:2]) >= _SHRUNK_SIDE:
        small, pad = halve(small, pad), not pad
    return small


def to_square(small: Pixels) -> Pixels:
    """Resize a shrunk picture to uint8 [32, 32, 3] of Y, Cr, Cb (ITU-R 601); a gray one has Cr = Cb = 128."""
    square = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    if square.ndim == 2:
        return cv2.merge([square, _NEUTRAL, _NEUTRAL])  # type: ignore[return-value]
    return cv2.cvtColor(square, cv2.COLOR_RGB2YCrCb)  # type: ignore[return-value]


_NEUTRAL = np.full((SIDE, SIDE), 128, np.uint8)


def compute_phashes(luma: Pixels) -> list[int]:
    """Return the 64-bit unsigned hashes of squares' Y, uint8 [N, 32, 32]."""
    basis, chosen = _make_basis()
    chunks = (luma[start : start + _HASHED_TOGETHER] for start in range(0, len(luma), _HASHED_TOGETHER))
    products = [(_make_maps(chunk) @ basis).reshape(len(chunk), -1) for chunk in chunks]
    bits = np.packbits(np.concatenate(products)[:, chosen] > 0, axis=1)
    return [int.from_bytes(row.tobytes(), "big") for row in bits]


def _make_maps(luma: Pixels) -> npt.NDArray[np.float64]:
    """Return float64 [N * 6, 32 * 32]: of each square Y, its distance from the mean, that times the edges, the edges,
    and their two directions."""
    maps = np.zeros((len(luma), 6, SIDE, SIDE))
    y, far, busy, edges, upright, slanted = maps.swapaxes(0, 1)
    y[:] = luma
    right, down = np.zeros((2, len(luma), SIDE, SIDE))
    np.subtract(y[:, :, 2:], y[:, :, :-2], out=right[:, :, 1:-1])
    np.subtract(y[:, 2:], y[:, :-2], out=down[:, 1:-1])
    np.multiply(right, down, out=slanted)
    np.abs(right, out=right)
    np.abs(down, out=down)
    np.add(right, down, out=edges)
    np.subtract(right, down, out=upright)
    y -= np.rint(y.mean(axis=(1, 2), keepdims=True))
    np.abs(y, out=far)
    np.multiply(y, edges, out=busy)
    return maps.reshape(-1, SIDE * SIDE)


@cache
def _make_basis() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Return the lowest 14 frequencies of a DCT, and which of their 6 x 14 products with the maps are bits.

    The frequencies are whole numbers, float64 [1024, 14], each summing to 0, under a window that fades towards the
    borders, where crops cut.
    """
    at = (np.arange(SIDE) + 0.5) / SIDE
    fade = np.sqrt(np.sin(np.pi * at))
    window = np.outer(fade, fade)
    pairs = sorted(((i, j) for i in range(5) for j in range(5)), key=lambda p: (p[0] ** 2 + p[1] ** 2, p))
    columns = []
    for i, j in pairs[1 : 1 + max(_BITS_OF_MAPS)]:
        wave = np.outer(np.cos(np.pi * i * at), np.cos(np.pi * j * at))
        wave -= (wave * window).sum() / window.sum()
        whole = np.rint(wave * window * 2**15)
        whole[SIDE // 2, SIDE // 2] -= whole.sum()
        columns.append(whole.reshape(-1))
    chosen = [number * max(_BITS_OF_MAPS) + k for number, count in enumerate(_BITS_OF_MAPS) for k in range(count)]
    return np.stack(columns, axis=1), np.array(chosen)


def encode_thumbnails(squares: Pixels) -> list[bytes]:
    """Shrink squares, uint8 [N, 32, 32, 3], to 24 x 24 pixels of Y and 12 x 12 of Cr and Cb each, 864 bytes.

    They are resized as one picture, N squares high: the factors 4/3 and 8/3 divide it where one square ends.
    """
    tall = squares.reshape(-1, SIDE, 3)
    luma = cv2.resize(cv2.extractChannel(tall, 0), (LUMA, LUMA * len(squares)), interpolation=cv2.INTER_AREA)
    chroma = cv2.resize(tall, (CHROMA, CHROMA * len(squares)), interpolation=cv2.INTER_AREA)[..., 1:]
    planes = [plane.reshape(len(squares), -1) for plane in (luma, chroma)]
    return [row.tobytes() for row in np.concatenate(planes, axis=1)]


def have_similar_aspect(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Return whether ratios of width to height, float [P] each, are near enough for near-duplicates: bool [P]."""
    return np.abs(np.log(np.asarray(a, np.float64) / np.asarray(b, np.float64))) <= MAX_LOG_ASPECT_RATIO


def compare_thumbnails(a: Pixels, b: Pixels) -> Floats:
    """Return how much each pair of thumbnails, uint8 [P, 864] twice, differs: float32 [P].

    The root of the mean squared difference over the mean variance of the two: 0 for equal pictures, about 1.4 for
    unrelated ones. A pair is compared as it is, and as if either were the other with 5 % of its width and height cut
    off, at nine places; the smallest difference counts. Where a grid of 6 x 6 means differs by more than 1, as no
    near-duplicates' does, that difference is returned. Two cores do 200,000 unrelated or 18,000 similar pairs a second.
    """
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != THUMBNAIL_BYTES:
        raise ValueError(f"thumbnails are uint8 [P, {THUMBNAIL_BYTES}] twice, not {a.shape} and {b.shape}")
    differences = np.empty(len(a), np.float32)

    def compare(start: int) -> None:
        chunk = slice(start, start + _CHUNK)
        differences[chunk] = _compare_grids(a[chunk], b[chunk])
        near = start + np.flatnonzero(differences[chunk] <= _MAX_GRID_DIFFERENCE)
        differences[near] = _compare_planes(_make_planes(a[near]), _make_planes(b[near]))

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(compare, range(0, len(a), _CHUNK)))
    return differences


def _compare_grids(a: Pixels, b: Pixels) -> Floats:
    grid_a, grid_b = _make_grid(a), _make_grid(b)
    error = grid_a - grid_b
    scale = (grid_a.var(axis=1) + grid_b.var(axis=1)) / 2 + np.float32(_NOISE_VARIANCE)
    differences: Floats = np.sqrt(np.einsum("pk,pk->p", error, error) / np.float32(grid_a.shape[1]) / scale)
    return differences


def _make_grid(thumbnails: Pixels) -> Floats:
    """Return the means of Y in a grid of 6 x 6, float32 [P, 36]."""
    step = LUMA // 6
    luma = thumbnails[:, : LUMA * LUMA].reshape(-1, 6, step, 6, step)
    sums = luma.sum(axis=2, dtype=np.uint16).sum(axis=3, dtype=np.uint16)
    means: Floats = sums.reshape(-1, 36).astype(np.float32) / np.float32(step * step)
    return means


def _make_planes(thumbnails: Pixels) -> tuple[Floats, Floats]:
    """Return Y, float32 [P, 1, 24, 24], and chroma, [P, 2, 12, 12], smoothed a little as resampling does."""
    luma, chroma = np.split(thumbnails.astype(np.float32), [LUMA * LUMA], axis=1)
    channels: Floats = chroma.reshape(-1, CHROMA, CHROMA, 2).transpose(0, 3, 1, 2)
    return _smooth(luma.reshape(-1, 1, LUMA, LUMA)), _smooth(channels)


def _smooth(planes: Floats) -> Floats:
    weights = _make_smoothing_weights(planes.shape[-1])
    return np.asarray(weights @ planes @ weights.T, np.float32)


def _compare_planes(a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> Floats:
    scale = np.full(len(a[0]), _NOISE_VARIANCE, np.float32)
    squared = np.zeros((19, len(a[0])), np.float32)  # as they are; as if b, and as if a, were a crop of the other
    for planes_a, planes_b in zip(a, b, strict=True):
        scale += (_compute_variance(planes_a) + _compute_variance(planes_b)) * np.float32(0.5)
        squared[0] += np.square(planes_a - planes_b).mean(axis=(2, 3)).sum(axis=1)
        squared[1:10] += _compare_crops(planes_a, planes_b).T
        squared[10:] += _compare_crops(planes_b, planes_a).T
    differences: Floats = np.sqrt(squared.min(axis=0) / scale)
    return differences


def _compute_variance(planes: Floats) -> Floats:
    variance: Floats = planes.var(axis=(2, 3)).sum(axis=1)
    return variance


def _compare_crops(whole: Floats, part: Floats) -> Floats:
    """Return the mean squared differences, summed over channels, of `part` from nine crops of `whole`: float32 [P, 9].

    Both are float32 [P, C, n, n]; the crops cut 5 % of height and width off, at nine places.
    """
    count, channels, side, _ = whole.shape
    crops = _make_crop_weights(side)
    error = crops @ (whole.reshape(-1, side, side) @ crops.T)
    error.reshape(-1, 3, side, 3, side)[:] -= part.reshape(-1, 1, side, 1, side)
    np.square(error, out=error)
    thirds = np.repeat(np.eye(3, dtype=np.float32), side, axis=1) / np.float32(side)
    sums: Floats = (thirds @ error @ thirds.T).reshape(count, channels, 9).sum(axis=1)
    return sums


@cache
def _make_smoothing_weights(side: int) -> Floats:
    """Return the weights 0.1, 0.8, 0.1 along a side, float32 [side, side]; at the ends the border counts twice."""
    matrix = 0.8 * np.eye(side) + 0.1 * (np.eye(side, k=1) + np.eye(side, k=-1))
    matrix[0, 0] += 0.1
    matrix[-1, -1] += 0.1
    return matrix.astype(np.float32)


@cache
def _make_crop_weights(side: int) -> Floats:
    """Return the weights of cubic interpolation of 95 % of a side to all of it, at its start, middle and end: float32
    [3 * side, side]."""
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
    return matrix.reshape(3 * side, side).astype(np.float32)
