"""The augmentation engine on the CPU: image by image on uint8, in the thread that calls it.

Almost all of its time is spent in OpenCV and torch on whole images, without the interpreter's lock, so threads add up.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from ..store.images import Pixels
from .colours import Canvas, recolour
from .drawn import Drawn
from .warp import warp


class CpuEngine:
    """uint8 [B, H, W, C] → uint8 [B, S, S, C] by what was drawn. `colors`: the first so many channels are colour, the
    others are edges; `erase_value` uint8 [C] fills erased boxes."""

    def __init__(self, size: int, colors: int, erase_value: npt.NDArray[np.uint8]) -> None:
        import cv2

        cv2.setNumThreads(1)  # of its own: there are as many threads as cores already
        self._size, self._colors, self._erase_value = size, colors, erase_value
        self._memory = threading.local()

    def __call__(self, images: Pixels, drawn: Drawn) -> Pixels:
        out = np.empty((len(images), self._size, self._size, images.shape[3]), np.uint8)
        busy = (drawn.operations != 0).any(axis=1).tolist()
        rows = zip(
            images, out, drawn.matrix, busy, drawn.operations, drawn.values, drawn.seeds.tolist(), drawn.erase.tolist(),
            strict=True,
        )  # fmt: skip
        for image, made, matrix, changed, operations, values, seed, (top, left, height, width) in rows:
            warp(image, matrix, made)
            if changed:
                self._recolour(made, operations.tolist(), values.tolist(), seed)
            if height:
                made[top : top + height, left : left + width] = self._erase_value
        return out

    def _recolour(self, made: Pixels, operations: list[int], values: list[float], seed: int) -> None:
        """In place; edges are left alone."""
        colour = made if made.shape[2] == self._colors else np.ascontiguousarray(made[:, :, : self._colors])
        found = recolour(Canvas(colour, self._spare(colour.shape), seed), operations, values)
        if found is not colour or colour is not made:
            made[:, :, : self._colors] = found
        if found is not colour:
            self._memory.spare = found

    def _spare(self, shape: tuple[int, ...]) -> Pixels:
        found: Pixels | None = getattr(self._memory, "spare", None)
        if found is None or found.shape != shape:
            found = self._memory.spare = np.empty(shape, np.uint8)
        return found
