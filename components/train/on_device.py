"""The augmentation engine for batches on a device: what `Drawn` says, computed for all images at once.

Geometry is one `grid_sample` of the whole batch (bilinear, black outside). The colour operations run by kind: the
images that have one are taken together, each with its own value. Which images those are is known on the host, and
everything that was drawn goes to the device in a few small copies, so nothing here makes the host wait for it.

An image that is made smaller would alias under a bilinear filter, whose reach is one pixel of the input. So where an
axis is reduced by more than `REDUCED`, several samples are averaged along it, set so far apart that their filter has
the variance of the triangle that an antialiased bilinear resize uses.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .device_colors import NEED_COLOR, TABLE, noise
from .drawn import NUMBER, OPERATIONS, Drawn
from .feed import put

if TYPE_CHECKING:
    import torch

REDUCED = 1.3
"""Input pixels for one of the output, from which on samples are averaged."""
SAMPLES = 16
"""Along an axis at most; reductions beyond 12 alias a little."""
VALUES = 2**25
"""Of one operation at a time: it takes up to 24 bytes for each (equalize), 800 MB."""

Matrices = npt.NDArray[np.float64]


class DeviceEngine:
    """uint8 [B, H, W, C] on the device → uint8 [B, size, size, C]. Operations change the first `color_channels` alone;
    a box is erased to `erase_value`, uint8 [C]."""

    def __init__(
        self, size: int, color_channels: int, erase_value: npt.NDArray[np.uint8], device: torch.device | str
    ) -> None:
        import torch

        self._size, self._colors = size, color_channels
        self._erased = put(np.asarray(erase_value, np.uint8), torch.device(device))

    def __call__(self, images: torch.Tensor, drawn: Drawn) -> torch.Tensor:
        import torch

        with torch.no_grad():
            planes = moved(images, drawn.matrix, self._size)
            operate(planes[:, : self._colors], drawn)
            out = planes.permute(0, 2, 3, 1)
            if (drawn.erase[:, 2] > 0).any():
                within = boxes(put(drawn.erase.astype(np.int64), images.device), self._size)
                out = torch.where(within[..., None], self._erased, out)
            return out.contiguous()


def moved(images: torch.Tensor, matrix: Matrices, size: int) -> torch.Tensor:
    """uint8 [B, H, W, C] → uint8 [B, C, size, size], memory of its own. `matrix` [B, 3, 3] as `Drawn` has it."""
    import torch

    height, width = images.shape[1:3]
    if (whole := _whole_pixels(matrix, height, width, size)) is not None:
        rows, columns = (put(index, images.device) for index in whole)
        image = torch.arange(len(images), device=images.device)
        taken = images[image[:, None, None], rows[:, :, None], columns[:, None, :]]
        return taken.permute(0, 3, 1, 2).contiguous()
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    taps = _taps(matrix, size)
    kinds, kind = np.unique(taps, axis=0, return_inverse=True)
    if len(kinds) == 1:
        return _sampled(pixels, matrix, size, *kinds[0])
    out = torch.empty((*pixels.shape[:2], size, size), dtype=torch.uint8, device=images.device)
    for index, taps in enumerate(kinds):
        which = np.flatnonzero(kind.ravel() == index)
        chosen = put(which, images.device)
        out.index_copy_(0, chosen, _sampled(pixels.index_select(0, chosen), matrix[which], size, *taps))
    return out


def _whole_pixels(
    matrix: Matrices, height: int, width: int, size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """Rows and columns of the input, int64 [B, size] each, where every matrix only mirrors, or moves by whole pixels,
    and shows nothing from outside; else None."""
    m = matrix / matrix[:, 2:, 2:]
    scale, start = m[:, [1, 0], [1, 0]], m[:, [1, 0], [2, 2]]
    others = m[:, [0, 1, 2, 2], [1, 0, 0, 1]]
    first = start + 0.5 * (scale - 1)  # pixel i has its centre at i + 0.5
    last = first + scale * (size - 1)
    plain = (others == 0).all() and (np.abs(scale) == 1).all() and (np.abs(first - first.round()) < 1e-6).all()
    edge = np.array([height, width]) - 1
    if not plain or (np.minimum(first, last) < -1e-6).any() or (np.maximum(first, last) > edge + 1e-6).any():
        return None
    found = first[:, :, None] + scale[:, :, None] * np.arange(size)
    rows, columns = found.round().astype(np.int64).transpose(1, 0, 2)
    return rows, columns


def reductions(matrix: Matrices, size: int) -> npt.NDArray[np.float64]:
    """float64 [B, 2]: input pixels for a step of one along x and along y, in the middle of the output."""
    middle = matrix @ np.array([size / 2, size / 2, 1.0])
    at, scale = middle[:, :2] / middle[:, 2:], middle[:, 2:]
    steps = [(matrix[:, :2, axis] - at * matrix[:, 2:, axis]) / scale for axis in (0, 1)]
    return np.stack([np.hypot(*step.T) for step in steps], 1)


def _taps(matrix: Matrices, size: int) -> npt.NDArray[np.int64]:
    """int64 [B, 2]: samples along x and y for a pixel."""
    reduced = reductions(matrix, size)
    return np.where(reduced > REDUCED, np.clip(np.ceil(1.25 * reduced), 2, SAMPLES), 1).astype(np.int64)


def _sampled(pixels: torch.Tensor, matrix: Matrices, size: int, across: int, down: int) -> torch.Tensor:
    """float [b, C, H, W] → uint8 [b, C, size, size], of as many samples for a pixel."""
    import torch
    from torch.nn.functional import grid_sample

    grid = _Grid(matrix, pixels.shape[2], pixels.shape[3], size, pixels.device)
    reduced = reductions(matrix, size)
    xs, ys = _offsets(reduced[:, 0], across), _offsets(reduced[:, 1], down)
    total: torch.Tensor | None = None
    for x in xs:
        for y in ys:
            found = grid_sample(pixels, grid.at(x, y), mode="bilinear", padding_mode="zeros", align_corners=False)
            total = found if total is None else total.add_(found)
    assert total is not None
    return total.div_(across * down).round_().to(torch.uint8) if across * down > 1 else total.round_().to(torch.uint8)


def _offsets(reduced: npt.NDArray[np.float64], samples: int) -> list[npt.NDArray[np.float32]]:
    """Where the samples lie about the middle of a pixel of the output, in such pixels: float32 [b] each.

    A triangle of half-width s has variance s² / 6, the bilinear filter 1 / 6; n samples d apart add d² (n² - 1) / 12.
    """
    if samples == 1:
        return [np.zeros(len(reduced), np.float32)]
    apart = np.sqrt(2 * np.maximum(reduced**2 - 1, 0) / (samples**2 - 1)) / reduced
    return [((index - (samples - 1) / 2) * apart).astype(np.float32) for index in range(samples)]


class _Grid:
    """Places in the input for every pixel of the output, as `grid_sample` counts them: -1 to 1 over the image.

    Sums of products of float32, never a matrix product, which a GPU may cut to TF32 with its 10 bits.
    """

    def __init__(self, matrix: Matrices, height: int, width: int, size: int, device: torch.device) -> None:
        import torch

        scaled = np.array([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]]) @ matrix
        scaled /= scaled[:, 2:, 2:]
        self._flat = bool((scaled[:, 2, :2] == 0).all())
        self._m = put(scaled.astype(np.float32), device)
        self._limits = put(_limits(matrix, height, width, size), device)
        self._centres = torch.arange(size, device=device, dtype=torch.float32) + 0.5
        self._device = device

    def at(self, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> torch.Tensor:
        """float32 [b, size, size, 2], moved by x and y [b] in pixels of the output."""
        import torch

        xs = self._centres + put(x, self._device)[:, None]
        ys = self._centres + put(y, self._device)[:, None]

        def row(index: int) -> torch.Tensor:
            m = self._m[:, index]
            return (m[:, :1] * xs)[:, None, :] + (m[:, 1:2] * ys + m[:, 2:])[:, :, None]

        found = torch.stack((row(0), row(1)), 3)
        if not self._flat:
            depth = row(2)
            found /= torch.where(depth.abs() < 1e-6, 1e-6, depth)[..., None]
        limit = self._limits[:, None, None]
        return torch.minimum(torch.maximum(found, -limit), limit)


def _limits(matrix: Matrices, height: int, width: int, size: int) -> npt.NDArray[np.float32]:
    """float32 [B, 2]: of images of which the output shows nothing outside, the centres of the outermost pixels.

    Half a pixel at the border belongs to the image, too: its colour reaches as far, as in any resize, and does not fade
    into the black outside. Where something outside shows, it fades, as in torchvision's affine.
    """
    corners = np.array([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]], np.float64).T
    x, y, depth = (matrix @ corners).transpose(1, 0, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = x / depth, y / depth
    slack = 1e-6 * max(height, width)
    inside = (depth > 0) & (x >= -slack) & (x <= width + slack) & (y >= -slack) & (y <= height + slack)
    centres = np.array([1 - 1 / width, 1 - 1 / height])
    return np.where(inside.all(1)[:, None], centres, 1e6).astype(np.float32)


def operate(colors: torch.Tensor, drawn: Drawn) -> None:
    """The operations of every image in their order, in place: uint8 [B, 1 or 3, S, S], which may be a view."""
    if not drawn.operations.any():
        return
    order = np.argsort(drawn.operations, axis=0, kind="stable")
    numbers = np.take_along_axis(drawn.operations, order, 0)
    which = put(order.astype(np.int64).T, colors.device)
    values = put(np.take_along_axis(drawn.values, order, 0).T, colors.device)
    noisy = bool((drawn.operations == NUMBER["Noise"]).any())
    seeds = put(drawn.seeds, colors.device) if noisy else None
    at_once = max(1, VALUES // math.prod(colors.shape[1:]))
    for turn in range(drawn.operations.shape[1]):
        for number in np.unique(numbers[:, turn]):
            name = OPERATIONS[number]
            if name == "None" or (name in NEED_COLOR and colors.shape[1] == 1):
                continue
            first, last = np.searchsorted(numbers[:, turn], [number, number + 1])
            for start in range(first, last, at_once):
                part = slice(start, min(start + at_once, last))
                _replace(colors, name, which[turn, part], values[turn, part], seeds)


def _replace(
    colors: torch.Tensor, name: str, which: torch.Tensor, values: torch.Tensor, seeds: torch.Tensor | None
) -> None:
    part = colors.index_select(0, which)
    if seeds is not None and name == "Noise":
        done = noise(part, values, seeds.index_select(0, which))
    else:
        done = TABLE[name](part, values)
    colors.index_copy_(0, which, done)


def boxes(erase: torch.Tensor, size: int) -> torch.Tensor:
    """int64 [B, 4] (top, left, height, width) → bool [B, size, size], true within."""
    import torch

    at = torch.arange(size, device=erase.device)
    top, left, height, width = (number[:, None] for number in erase.unbind(1))
    rows, columns = (at >= top) & (at < top + height), (at >= left) & (at < left + width)
    return rows[:, :, None] & columns[:, None, :]
