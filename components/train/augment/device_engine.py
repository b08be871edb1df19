"""The augmentation engine for batches on a device: `AugmentParams` applied to all images at once.

Geometry is one `grid_sample` of the whole batch (bilinear, black outside). The color operations run by kind: the images
that have one are gathered, each with its own value. Which images those are is known on the host, and all parameters go
to the device in a few small copies, so that nothing here makes the host wait for it.

An image that is reduced would alias under a bilinear filter, whose reach is one pixel of the input. So where an axis is
reduced by more than `ANTIALIAS_ABOVE`, several samples are averaged along it, spaced so that their filter has the
variance of the triangle that an antialiased bilinear resize uses.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..data.prefetcher import copy_to_device
from .device_colors import FUNCTIONS, NEED_COLOR, add_noise
from .params import OPERATION_IDS, OPERATIONS, AugmentParams

if TYPE_CHECKING:
    import torch

ANTIALIAS_ABOVE = 1.3
"""Input pixels per output pixel."""
MAX_SAMPLES = 16
"""Along an axis; reductions beyond 12 alias a little."""
MAX_VALUES = 2**25
"""Of one operation at a time: it takes up to 24 bytes for each (equalize), 800 MB."""

Matrices = npt.NDArray[np.float64]


class DeviceEngine:
    """Applies parameters to a batch on the device: uint8 [B, H, W, C] → uint8 [B, size, size, C].

    Operations change the first `color_channels` alone; `erase_value` uint8 [C] fills erased boxes.
    """

    def __init__(
        self, size: int, color_channels: int, erase_value: npt.NDArray[np.uint8], device: torch.device | str
    ) -> None:
        import torch

        self._size, self._color_channels = size, color_channels
        self._erase_value = copy_to_device(np.asarray(erase_value, np.uint8), torch.device(device))

    def __call__(self, images: torch.Tensor, params: AugmentParams) -> torch.Tensor:
        import torch

        with torch.no_grad():
            planes = warp_batch(images, params.matrix, self._size)
            apply_operations(planes[:, : self._color_channels], params)
            out = planes.permute(0, 2, 3, 1)
            if (params.erase[:, 2] > 0).any():
                is_erased = make_box_masks(copy_to_device(params.erase.astype(np.int64), images.device), self._size)
                out = torch.where(is_erased[..., None], self._erase_value, out)
            return out.contiguous()


def warp_batch(images: torch.Tensor, matrix: Matrices, size: int) -> torch.Tensor:
    """Transform uint8 [B, H, W, C] → uint8 [B, C, size, size], new memory. `matrix` [B, 3, 3] as in `AugmentParams`."""
    import torch

    height, width = images.shape[1:3]
    if (indices := _find_whole_pixels(matrix, height, width, size)) is not None:
        rows, columns = (copy_to_device(index, images.device) for index in indices)
        image = torch.arange(len(images), device=images.device)
        pixels = images[image[:, None, None], rows[:, :, None], columns[:, None, :]]
        return pixels.permute(0, 3, 1, 2).contiguous()
    pixels = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    samples = _count_samples(matrix, size)
    groups, group_of_image = np.unique(samples, axis=0, return_inverse=True)
    if len(groups) == 1:
        return _sample(pixels, matrix, size, *groups[0])
    out = torch.empty((*pixels.shape[:2], size, size), dtype=torch.uint8, device=images.device)
    for group, (samples_x, samples_y) in enumerate(groups):
        in_group = np.flatnonzero(group_of_image.ravel() == group)
        index = copy_to_device(in_group, images.device)
        sampled = _sample(pixels.index_select(0, index), matrix[in_group], size, samples_x, samples_y)
        out.index_copy_(0, index, sampled)
    return out


def _find_whole_pixels(
    matrix: Matrices, height: int, width: int, size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """Return rows and columns of the input, int64 [B, size] each, where every matrix only flips, or shifts by whole
    pixels, and shows nothing from outside; else None."""
    m = matrix / matrix[:, 2:, 2:]
    scale, start = m[:, [1, 0], [1, 0]], m[:, [1, 0], [2, 2]]
    off_diagonal = m[:, [0, 1, 2, 2], [1, 0, 0, 1]]
    first = start + 0.5 * (scale - 1)  # pixel i has its center at i + 0.5
    last = first + scale * (size - 1)
    is_whole = (np.abs(scale) == 1).all() and (np.abs(first - first.round()) < 1e-6).all()
    edge = np.array([height, width]) - 1
    is_inside = (np.minimum(first, last) >= -1e-6).all() and (np.maximum(first, last) <= edge + 1e-6).all()
    if not is_whole or not is_inside or (off_diagonal != 0).any():
        return None
    indices = first[:, :, None] + scale[:, :, None] * np.arange(size)
    rows, columns = indices.round().astype(np.int64).transpose(1, 0, 2)
    return rows, columns


def compute_reductions(matrix: Matrices, size: int) -> npt.NDArray[np.float64]:
    """Return float64 [B, 2]: input pixels for a step of one along x and along y, at the center of the output."""
    center = matrix @ np.array([size / 2, size / 2, 1.0])
    position, depth = center[:, :2] / center[:, 2:], center[:, 2:]
    steps = [(matrix[:, :2, axis] - position * matrix[:, 2:, axis]) / depth for axis in (0, 1)]
    return np.stack([np.hypot(*step.T) for step in steps], 1)


def _count_samples(matrix: Matrices, size: int) -> npt.NDArray[np.int64]:
    """Return int64 [B, 2]: samples along x and y for a pixel."""
    reductions = compute_reductions(matrix, size)
    samples = np.clip(np.ceil(1.25 * reductions), 2, MAX_SAMPLES)
    return np.where(reductions > ANTIALIAS_ABOVE, samples, 1).astype(np.int64)


def _sample(pixels: torch.Tensor, matrix: Matrices, size: int, samples_x: int, samples_y: int) -> torch.Tensor:
    """Transform float [b, C, H, W] → uint8 [b, C, size, size], each pixel a mean of samples."""
    import torch
    from torch.nn.functional import grid_sample

    grid = _Grid(matrix, pixels.shape[2], pixels.shape[3], size, pixels.device)
    reductions = compute_reductions(matrix, size)
    offsets_x, offsets_y = _sample_offsets(reductions[:, 0], samples_x), _sample_offsets(reductions[:, 1], samples_y)
    total: torch.Tensor | None = None
    for x in offsets_x:
        for y in offsets_y:
            sample = grid_sample(pixels, grid.shift(x, y), mode="bilinear", padding_mode="zeros", align_corners=False)
            total = sample if total is None else total.add_(sample)
    assert total is not None
    samples = samples_x * samples_y
    return total.div_(samples).round_().to(torch.uint8) if samples > 1 else total.round_().to(torch.uint8)


def _sample_offsets(reductions: npt.NDArray[np.float64], samples: int) -> list[npt.NDArray[np.float32]]:
    """Return the positions of the samples relative to the center of an output pixel, in such pixels: float32 [b] each.

    A triangle of half-width s has variance s² / 6, the bilinear filter 1 / 6; n samples d apart add d² (n² - 1) / 12.
    """
    if samples == 1:
        return [np.zeros(len(reductions), np.float32)]
    distance = np.sqrt(2 * np.maximum(reductions**2 - 1, 0) / (samples**2 - 1)) / reductions
    return [((index - (samples - 1) / 2) * distance).astype(np.float32) for index in range(samples)]


class _Grid:
    """Input positions of every output pixel in `grid_sample`'s coordinates: -1 to 1 over the image.

    Sums of products of float32, never a matrix product, which a GPU may compute in TF32 with its 10 bits.
    """

    def __init__(self, matrix: Matrices, height: int, width: int, size: int, device: torch.device) -> None:
        import torch

        scaled = np.array([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]]) @ matrix
        scaled /= scaled[:, 2:, 2:]
        self._is_affine = bool((scaled[:, 2, :2] == 0).all())
        self._matrix = copy_to_device(scaled.astype(np.float32), device)
        self._limits = copy_to_device(_compute_limits(matrix, height, width, size), device)
        self._centers = torch.arange(size, device=device, dtype=torch.float32) + 0.5
        self._device = device

    def shift(self, x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> torch.Tensor:
        """Return the grid shifted by x and y [b] output pixels: float32 [b, size, size, 2]."""
        import torch

        xs = self._centers + copy_to_device(x, self._device)[:, None]
        ys = self._centers + copy_to_device(y, self._device)[:, None]

        def multiply_row(index: int) -> torch.Tensor:
            m = self._matrix[:, index]
            return (m[:, :1] * xs)[:, None, :] + (m[:, 1:2] * ys + m[:, 2:])[:, :, None]

        grid = torch.stack((multiply_row(0), multiply_row(1)), 3)
        if not self._is_affine:
            depth = multiply_row(2)
            grid /= torch.where(depth.abs() < 1e-6, 1e-6, depth)[..., None]
        limit = self._limits[:, None, None]
        return torch.minimum(torch.maximum(grid, -limit), limit)


def _compute_limits(matrix: Matrices, height: int, width: int, size: int) -> npt.NDArray[np.float32]:
    """Return float32 [B, 2], the largest grid coordinates: the centers of the outermost pixels, for images of which the
    output shows nothing outside; else no limit.

    Half a pixel at the border belongs to the image, too: its color reaches as far, as in any resize, and does not fade
    into the black outside. Where something outside shows, it fades, as in torchvision's affine.
    """
    corners = np.array([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]], np.float64).T
    x, y, depth = (matrix @ corners).transpose(1, 0, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = x / depth, y / depth
    slack = 1e-6 * max(height, width)
    is_inside = (depth > 0) & (x >= -slack) & (x <= width + slack) & (y >= -slack) & (y <= height + slack)
    centers = np.array([1 - 1 / width, 1 - 1 / height])
    return np.where(is_inside.all(1)[:, None], centers, 1e6).astype(np.float32)


def apply_operations(colors: torch.Tensor, params: AugmentParams) -> None:
    """Apply the operations of every image in their order, in place: uint8 [B, 1 or 3, S, S], which may be a view."""
    if not params.operations.any():
        return
    order = np.argsort(params.operations, axis=0, kind="stable")
    sorted_ids = np.take_along_axis(params.operations, order, 0)
    rows = copy_to_device(order.astype(np.int64).T, colors.device)
    values = copy_to_device(np.take_along_axis(params.values, order, 0).T, colors.device)
    has_noise = bool((params.operations == OPERATION_IDS["Noise"]).any())
    seeds = copy_to_device(params.seeds, colors.device) if has_noise else None
    max_images = max(1, MAX_VALUES // math.prod(colors.shape[1:]))
    for position in range(params.operations.shape[1]):
        for operation in np.unique(sorted_ids[:, position]):
            name = OPERATIONS[operation]
            if name == "None" or (name in NEED_COLOR and colors.shape[1] == 1):
                continue
            first, end = np.searchsorted(sorted_ids[:, position], [operation, operation + 1])
            for start in range(first, end, max_images):
                part = slice(start, min(start + max_images, end))
                _apply_operation(colors, name, rows[position, part], values[position, part], seeds)


def _apply_operation(
    colors: torch.Tensor, name: str, rows: torch.Tensor, values: torch.Tensor, seeds: torch.Tensor | None
) -> None:
    images = colors.index_select(0, rows)
    if seeds is not None and name == "Noise":
        result = add_noise(images, values, seeds.index_select(0, rows))
    else:
        result = FUNCTIONS[name](images, values)
    colors.index_copy_(0, rows, result)


def make_box_masks(boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Return bool [B, size, size], true within the boxes int64 [B, 4] (top, left, height, width)."""
    import torch

    positions = torch.arange(size, device=boxes.device)
    top, left, height, width = (column[:, None] for column in boxes.unbind(1))
    in_rows, in_columns = (
        (positions >= start) & (positions < start + length) for start, length in ((top, height), (left, width))
    )
    return in_rows[:, :, None] & in_columns[:, None, :]
