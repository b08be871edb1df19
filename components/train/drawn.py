"""What was drawn for the images of one batch: the one description that both augmentation engines carry out.

Everything random is decided here, on the host and in small numbers; an engine (`on_cpu`, `on_device`) only computes
pixels. All geometry of an image is one transform, applied first; the operations follow in their order; the erased box
comes last. Coordinates are continuous: pixel i of a row covers [i, i + 1), and its centre is i + 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

OPERATIONS = (
    "None", "Brightness", "Contrast", "Color", "Hue", "Grayscale", "Posterize", "Solarize", "Invert", "AutoContrast",
    "Equalize", "Sharpness", "Blur", "Noise", "Jpeg",
)  # fmt: skip
"""By their number. Values: Brightness, Contrast, Color (saturation), Sharpness: torchvision's factor, 1 changes
nothing; Hue: turns of the colour circle in [-0.5, 0.5]; Posterize: bits kept, 0 to 8; Solarize: threshold in [0, 255];
Blur: sigma in pixels; Noise: sigma in steps of 255; Jpeg: quality 1 to 100; the others have none. They change colour
channels only, never edges; those that need colour (Color, Hue, Grayscale) leave one channel as it is."""
NUMBER = {name: number for number, name in enumerate(OPERATIONS)}


@dataclass(frozen=True)
class Drawn:
    """Of B images of a batch: `matrix` float64 [B, 3, 3] takes homogeneous output coordinates (x, y, 1) to input
    ones (divided by their third number); outside of the image all is 0, black. `operations` int8 [B, K] by number, and
    `values` float32 [B, K]. `seeds` int64 [B] for noise. `erase` int32 [B, 4]: top, left, height, width of the box in
    the output, nothing where the height is 0."""

    matrix: npt.NDArray[np.float64]
    operations: npt.NDArray[np.int8]
    values: npt.NDArray[np.float32]
    seeds: npt.NDArray[np.int64]
    erase: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.matrix)

    def rows(self, which: slice) -> Drawn:
        """Of some of the images: the share of one device of a batch that was drawn for all."""
        return replace(self, **{name: getattr(self, name)[which] for name in self.__dataclass_fields__})


def identity(images: int, height: int, width: int, size: int) -> Drawn:
    """Nothing but the centre square of `size` pixels."""
    matrix = np.tile(np.eye(3), (images, 1, 1))
    matrix[:, 0, 2], matrix[:, 1, 2] = (width - size) // 2, (height - size) // 2
    return Drawn(
        matrix,
        np.zeros((images, 0), np.int8),
        np.zeros((images, 0), np.float32),
        np.zeros(images, np.int64),
        np.zeros((images, 4), np.int32),
    )
