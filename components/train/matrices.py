"""Geometry as matrices, for many images at once: float64 [B, 3, 3], from homogeneous output coordinates to input ones.

Coordinates are continuous, see drawn.py. A sequence of changes is the product of their matrices in the same order:
the last one is nearest to the output. Angles and signs follow torchvision.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
"""[B], or one number for all."""


def identity(count: int) -> Floats:
    return np.tile(np.eye(3), (count, 1, 1))


def compose(first: Floats, then: Floats) -> Floats:
    """One change of the picture, and then another."""
    return np.asarray(first @ then, np.float64)


def box(boxes: npt.NDArray[np.int64], size: int) -> Floats:
    """A box of the input, of `boxes` [B, 4] (top, left, height, width), fills the output of `size` pixels a side."""
    y, x, h, w = boxes.T
    made = identity(len(y))
    made[:, 0, 0], made[:, 0, 2], made[:, 1, 1], made[:, 1, 2] = w / size, x, h / size, y
    return made


def mirror(where: npt.NDArray[np.bool_], size: int, axis: int) -> Floats:
    """Mirrored where it says so: axis 0 from left to right, 1 upside down."""
    made = identity(len(where))
    made[:, axis, axis] = np.where(where, -1, 1)
    made[:, axis, 2] = np.where(where, size, 0)
    return made


def affine(
    angle: Floats, across: Floats, down: Floats, scale: Floats, shear_x: Floats, shear_y: Floats, centre: Floats
) -> Floats:
    """The inverse of torchvision's `affine`: angles in degrees, `angle` clockwise, shifts in pixels, both coordinates
    of its fixed point are `centre`.

    RotateScaleShear = R(angle) S(scale) SHy(shear_y) SHx(shear_x), as `_get_inverse_affine_matrix` has it.
    """
    turn, x, y = np.radians(angle), np.radians(shear_x), np.radians(shear_y)
    a = np.cos(turn - y) / np.cos(y)
    b = -a * np.tan(x) - np.sin(turn)
    c = np.sin(turn - y) / np.cos(y)
    d = -c * np.tan(x) + np.cos(turn)
    made = identity(len(a))
    made[:, 0, 0], made[:, 0, 1], made[:, 1, 0], made[:, 1, 1] = d / scale, -b / scale, -c / scale, a / scale
    moved = np.stack([centre + across, centre + down], axis=1)
    made[:, :2, 2] = centre[:, None] - np.einsum("bij,bj->bi", made[:, :2, :2], moved)
    return made


def quadrilateral(corners: Floats, size: int) -> Floats:
    """The square of `size` is drawn into the quadrilateral: `corners` [B, 4, 2] are where (0, 0), (size, 0),
    (size, size) and (0, size) come to lie in the output, as (x, y).

    Eight linear equations an image: Heckbert, "Fundamentals of Texture Mapping and Image Warping", 1989, 2.2.
    """
    count = len(corners)
    square = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float64)
    x, y = corners[..., 0], corners[..., 1]
    one, zero = np.ones_like(x), np.zeros_like(x)
    u, v = (np.broadcast_to(square[:, axis], (count, 4)) for axis in (0, 1))
    left = np.concatenate(
        [
            np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], axis=2),
            np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], axis=2),
        ],
        axis=1,
    )
    found = np.linalg.solve(left, np.concatenate([u, v], axis=1)[..., None])[..., 0]
    return np.concatenate([found, np.ones((count, 1))], axis=1).reshape(count, 3, 3)
