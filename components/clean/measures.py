"""The measures of a picture: brightness, sharpness, colorfulness and others, and the hash that finds its near twins.

They are cheap compared with decoding, because they are taken from smaller copies of the picture, made once.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..imaging.decoder import Pixels
from .phash import compute_phash, halve, make_thumbnail, shrink, to_square


@dataclass(frozen=True)
class Measures:
    """The measures of one picture; numbers have 6 digits and are exact as float32.

    From the half-size grey picture (means of 2 x 2 pixels, ITU-R 601):

    Attributes:
        brightness: the mean, 0 (black) to 1 (white).
        contrast: the standard deviation, 0 to 0.5 on the same scale.
        sharpness: the variance of the Laplacian on the scale of 0 to 255 (Pech-Pacheco et al. 2000); the border is
            mirrored. Blurred pictures have little, noise much.
        entropy: of the histogram of 256 values, in bits, 0 to 8.
        colorfulness: M of Hasler and Süsstrunk 2003, 0 (grey) to about 110 (extremely colourful), from the picture
            halved until its shorter side is below 160 pixels.
        phash: the perceptual hash, unsigned, 64 bits; see `compute_phash`.
        thumbnail: 864 bytes to verify a twin by; see `phash.compare_thumbnails`.
    """

    brightness: float
    contrast: float
    sharpness: float
    entropy: float
    colorfulness: float
    phash: int
    thumbnail: bytes


def measure(pixels: Pixels) -> Measures:
    """Measure a picture, uint8 [H, W, 1 or 3], grey or RGB, in any layout."""
    grey = pixels.shape[2] == 1
    picture = pixels[..., 0] if grey else pixels
    half = halve(picture)
    half_grey: Pixels = half if grey else cv2.cvtColor(half, cv2.COLOR_RGB2GRAY)  # type: ignore[assignment]
    small = shrink(picture, half)
    square = to_square(small)
    mean, deviation = cv2.meanStdDev(half_grey)
    return Measures(
        brightness=_round(float(mean[0, 0]) / 255),
        contrast=_round(float(deviation[0, 0]) / 255),
        sharpness=_round(_compute_moments(cv2.Laplacian(half_grey, cv2.CV_16S, ksize=1))[1]),
        entropy=_round(compute_entropy(half_grey)),
        colorfulness=0.0 if grey else _round(compute_colorfulness(small)),
        phash=compute_phash(square if grey else square[..., 0]),
        thumbnail=make_thumbnail(square),
    )


def compute_entropy(grey: Pixels) -> float:
    """Return the entropy of the histogram of a grey picture, uint8 [H, W], in bits."""
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).reshape(-1).astype(np.float64)
    counts = counts[counts > 0]
    shares = counts / counts.sum()
    return max(0.0, -float(shares @ np.log2(shares)))


def compute_colorfulness(picture: Pixels) -> float:
    """Return M of Hasler and Süsstrunk 2003, "Measuring colorfulness in natural images", of RGB uint8 [H, W, 3]."""
    red, green, blue = cv2.split(picture)
    mean_rg, variance_rg = _compute_moments(cv2.subtract(red, green, dtype=cv2.CV_16S))
    red_green, twice_blue = cv2.add(red, green, dtype=cv2.CV_16S), cv2.add(blue, blue, dtype=cv2.CV_16S)
    mean_yb, variance_yb = _compute_moments(cv2.subtract(red_green, twice_blue))  # of twice the paper's yb
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
