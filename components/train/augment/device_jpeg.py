"""JPEG artifacts on a batch, without an encoder: ITU-T T.81's quantization in 8x8 blocks.

Follows libjpeg's defaults (jcdctmgr.c, jcsample.c, jdsample.c): the standard tables scaled by quality, YCbCr with
chroma subsampled 4:2:0, a triangle filter for upsampling. The entropy coding is lossless and is left out. libjpeg's
transforms are integer ones, these float32, so that some pixels differ by a level.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99,
    *(99,) * 36,
)  # fmt: skip
"""ITU-T T.81, tables K.1 and K.2, row by row."""


def compress_jpeg(image: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """Compress uint8 [b, 1 or 3, H, W] at quality float32 [b] from 1 to 100 → uint8 of the same shape."""
    import torch
    from torch.nn.functional import pad

    height, width = image.shape[2:]
    pixels = pad(image.float(), (0, -width % 16, 0, -height % 16), mode="replicate")
    tables, transform = _constants(image.device)
    steps = _scale_tables(tables, quality)
    if image.shape[1] == 1:
        out = _quantize(pixels, steps[0], transform)
        return out[:, :, :height, :width].to(torch.uint8)
    red, green, blue = (pixels[:, index : index + 1] for index in range(3))
    y = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.cat(((blue - y) * (0.5 / (1 - 0.114)), (red - y) * (0.5 / (1 - 0.299))), 1)
    y = _quantize(y.round_(), steps[0], transform)[:, :, :height, :width]
    small = _quantize(_downsample((chroma + 128).round_()), steps[1], transform)
    small = small[:, :, : -(-height // 2), : -(-width // 2)]  # without the padding
    chroma = _upsample(small)[:, :, :height, :width] - 128
    cb, cr = chroma[:, :1], chroma[:, 1:]
    rgb = torch.cat((y + 1.402 * cr, y - 0.344136286 * cb - 0.714136286 * cr, y + 1.772 * cb), 1)
    return rgb.round_().clamp_(0, 255).to(torch.uint8)


@cache
def _constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two tables [2, 1, 1, 1, 1, 8, 8], and the orthonormal 8-point DCT-II [frequency, position]."""
    import torch

    transform = np.array(
        [
            [math.sqrt((1 if k == 0 else 2) / 8) * math.cos((2 * n + 1) * k * math.pi / 16) for n in range(8)]
            for k in range(8)
        ]
    )
    tables = torch.tensor([_LUMINANCE, _CHROMINANCE], dtype=torch.float32).view(2, 1, 1, 1, 1, 8, 8)
    return tables.to(device), torch.tensor(transform, dtype=torch.float32).to(device)


def _scale_tables(tables: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """Return quantization steps [2, b, 1, 1, 1, 8, 8], by libjpeg's jpeg_quality_scaling and jpeg_add_quant_table for
    baseline files."""
    import torch

    quality = quality.round().clamp(1, 100)
    percent = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)
    return ((tables * percent[:, None, None, None, None, None] + 50) / 100).floor().clamp(1, 255)


def _quantize(planes: torch.Tensor, steps: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
    """Quantize the DCT of float [b, c, 8m, 8n] by `steps` [b, 1, 1, 1, 8, 8], and transform back."""
    b, c, height, width = planes.shape
    blocks = (planes - 128).view(b, c, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = _transform_blocks(blocks, transform) / steps
    rounded = coefficients.abs().add_(0.5).floor_().copysign_(coefficients).mul_(steps)  # halves away from zero
    pixels = _transform_blocks(rounded, transform.T).add_(128).round_().clamp_(0, 255)
    return pixels.transpose(3, 4).reshape(b, c, height, width)


def _transform_blocks(blocks: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiply each block [..., 8, 8] by `matrix` from the left and by its transpose from the right: as sums of
    products of float32, since a GPU may compute a matrix product in TF32, with 10 bits."""
    columns = blocks[..., :1, :] * matrix[:, :1]
    for index in range(1, 8):
        columns.addcmul_(blocks[..., index : index + 1, :], matrix[:, index : index + 1])
    out = columns[..., :1] * matrix[:, 0]
    for index in range(1, 8):
        out.addcmul_(columns[..., index : index + 1], matrix[:, index])
    return out


def _downsample(planes: torch.Tensor) -> torch.Tensor:
    """Average 2x2 pixels; halves are rounded down in one column and up in the next, so that they give no tint."""
    import torch

    total = planes[..., ::2, :] + planes[..., 1::2, :]
    total = total[..., ::2] + total[..., 1::2]
    bias = torch.arange(total.shape[3], device=planes.device) % 2 + 1
    return ((total + bias) / 4).floor()


def _upsample(planes: torch.Tensor) -> torch.Tensor:
    """Double both sides by a triangle filter: 3/4 of the nearer and 1/4 of the farther pixel, rounded at the end."""
    import torch
    from torch.nn.functional import pad

    b, c, height, width = planes.shape
    padded = pad(planes, (1, 1, 1, 1), mode="replicate")
    near = 3 * padded[:, :, 1:-1]
    rows = torch.stack((near + padded[:, :, :-2], near + padded[:, :, 2:]), 3).view(b, c, 2 * height, width + 2)
    near = 3 * rows[..., 1:-1]
    left, right = (near + rows[..., :-2] + 8).div_(16), (near + rows[..., 2:] + 7).div_(16)
    return torch.stack((left, right), 4).view(b, c, 2 * height, 2 * width).floor_()
