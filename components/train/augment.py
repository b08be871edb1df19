"""What is random per epoch: random resized crop and flip, each image with parameters of its own, on uint8.

Semantics and defaults of the crop follow torchvision's RandomResizedCrop (ratio 3/4 to 4/3, ten tries, then the
largest central crop), Szegedy et al., "Going Deeper with Convolutions", 2014.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..store.resample import resample

Pixels = npt.NDArray[np.uint8]
RATIO = (3 / 4, 4 / 3)


class Augment:
    """uint8 [B, H, W, C] → [B, size, size, C]. The parameters of a batch depend on (seed, epoch, number) alone.

    Of images that are stored larger than `size` the crops are taken of all that is stored; without crops, of the
    centre and anywhere around it, as far as there is something.
    """

    def __init__(self, seed: int, size: int, crop_scale: float, flip: bool) -> None:
        self._seed, self._size, self._crop_scale, self._flip = seed, size, crop_scale, flip

    def __call__(self, images: Pixels, epoch: int, number: int) -> Pixels:
        random = np.random.default_rng([self._seed, epoch, number])
        size = self._size
        out = np.empty((len(images), size, size, images.shape[3]), np.uint8)
        for index, image in enumerate(images):
            if self._crop_scale < 1:
                top, left, height, width = crop_box(random, image.shape[0], image.shape[1], self._crop_scale)
                part = np.ascontiguousarray(image[top : top + height, left : left + width])
                image = resample(part, size, size)
            elif image.shape[0] > size:
                top, left = (int(random.integers(image.shape[axis] - size + 1)) for axis in (0, 1))
                image = image[top : top + size, left : left + size]
            if self._flip and random.random() < 0.5:
                image = image[:, ::-1]
            out[index] = image
        return out


def crop_box(random: np.random.Generator, height: int, width: int, smallest: float) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels of a crop with an area of `smallest` to 1 of the image's."""
    area = height * width
    for _ in range(10):
        target = area * random.uniform(smallest, 1)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
    h, w = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    return (height - h) // 2, (width - w) // 2, h, w
