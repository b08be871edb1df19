"""Geometric transforms as matrices, for many images at once: float64 [B, 3, 3], from homogeneous output coordinates to
input ones.

Coordinates are continuous, see params.py. A sequence of transforms is the product of their matrices in the same order:
the last one is nearest to the output. Angles and signs follow torchvision.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
"""[B], or one number for all."""


def make_identity(count: int) -> Floats:
    return np.tile(np.eye(3), (count, 1, 1))


def compose(first: Floats, second: Floats) -> Floats:
    """Return the matrices of a transform followed by another."""
    return np.asarray(first @ second, np.float64)


def make_crop(boxes: npt.NDArray[np.int64], size: int) -> Floats:
    """Resize a box of the input, one of `boxes` [B, 4] (top, left, height, width), to an output of `size` pixels a
    side."""
    y, x, h, w = boxes.T
    matrix = make_identity(len(y))
    matrix[:, 0, 0], matrix[:, 0, 2], matrix[:, 1, 1], matrix[:, 1, 2] = w / size, x, h / size, y
    return matrix


def make_flip(is_flipped: npt.NDArray[np.bool_], size: int, axis: int) -> Floats:
    """Flip the images where `is_flipped` [B]: axis 0 horizontally, 1 vertically."""
    matrix = make_identity(len(is_flipped))
    matrix[:, axis, axis] = np.where(is_flipped, -1, 1)
    matrix[:, axis, 2] = np.where(is_flipped, size, 0)
    return matrix


def make_affine(
    angle: Floats, shift_x: Floats, shift_y: Floats, scale: Floats, shear_x: Floats, shear_y: Floats, center: Floats
) -> Floats:
    """Return the inverse of torchvision's `affine`: angles in degrees, `angle` clockwise, shifts in pixels; both
    coordinates of its fixed point are `center`.

    RotateScaleShear = R(angle) S(scale) SHy(shear_y) SHx(shear_x), as in `_get_inverse_affine_matrix`.
    """
    rotation, x, y = np.radians(angle), np.radians(shear_x), np.radians(shear_y)
    a = np.cos(rotation - y) / np.cos(y)
    b = -a * np.tan(x) - np.sin(rotation)
    c = np.sin(rotation - y) / np.cos(y)
    d = -c * np.tan(x) + np.cos(rotation)
    matrix = make_identity(len(a))
    matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1] = d / scale, -b / scale, -c / scale, a / scale
    shifted = np.stack([center + shift_x, center + shift_y], axis=1)
    matrix[:, :2, 2] = center[:, None] - np.einsum("bij,bj->bi", matrix[:, :2, :2], shifted)
    return matrix


def make_perspective(corners: Floats, size: int) -> Floats:
    """Map the square of `size` into a quadrilateral: `corners` [B, 4, 2] are the positions (x, y) in the output of
    (0, 0), (size, 0), (size, size) and (0, size).

    Eight linear equations an image: Heckbert, "Fundamentals of Texture Mapping and Image Warping", 1989, 2.2.
    """
    count = len(corners)
    square = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float64)
    x, y = corners[..., 0], corners[..., 1]
    ones, zeros = np.ones_like(x), np.zeros_like(x)
    u, v = (np.broadcast_to(square[:, axis], (count, 4)) for axis in (0, 1))
    equations = np.concatenate(
        [
            np.stack([x, y, ones, zeros, zeros, zeros, -u * x, -u * y], axis=2),
            np.stack([zeros, zeros, zeros, x, y, ones, -v * x, -v * y], axis=2),
        ],
        axis=1,
    )
    solution = np.linalg.solve(equations, np.concatenate([u, v], axis=1)[..., None])[..., 0]
    return np.concatenate([solution, np.ones((count, 1))], axis=1).reshape(count, 3, 3)
