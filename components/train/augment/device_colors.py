"""The color operations of `params.OPERATIONS` on a batch, every image with a value of its own.

uint8 [b, C, H, W] and values float32 [b] → uint8 of the same shape; 1 or 3 channels. Each is torchvision v2's operation
of that name (`torchvision.transforms.v2.functional`), in the same order of the same arithmetic in float32, truncated
or rounded where torchvision does. Nothing here reads a number from the device, so the host never waits; and no image's
result depends on the others of its batch.

JPEG artifacts are those of ITU-T T.81's quantization in 8x8 blocks, without an encoder. They follow libjpeg's defaults
(jcdctmgr.c, jcsample.c, jdsample.c): the standard tables scaled by quality, YCbCr with chroma subsampled 4:2:0, a
triangle filter for upsampling. The entropy coding is lossless and is left out. libjpeg's transforms are integer ones,
these float32, so that some pixels differ by a level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
Operation = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]

NEED_COLOR = ("Color", "Hue", "Grayscale")
"""They leave a single channel as it is."""
BLUR_KERNEL = 5
"""Taps of the Gaussian along each axis, as in the CPU engine."""


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


def _per_image(values: torch.Tensor) -> torch.Tensor:
    """View [b] as [b, 1, 1, 1]."""
    return values[:, None, None, None]


def _to_gray(image: torch.Tensor) -> torch.Tensor:
    """Return whole numbers as float32 [b, 1, H, W] (ITU-R BT.601, with torchvision's digits)."""
    if image.shape[1] == 1:
        return image.float()
    red, green, blue = image.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1).floor_()


def _blend(image: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    import torch

    weight = _per_image(factor)
    return torch.addcmul(image.mul(weight), 1.0 - weight, other).clamp_(0, 255).to(torch.uint8)


def adjust_brightness(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    import torch

    return image.mul(_per_image(factor)).clamp_(0, 255).to(torch.uint8)


def adjust_contrast(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with the mean of the gray, which is summed in float64, so that it is the same in every batch."""
    import torch

    mean = _to_gray(image).mean((1, 2, 3), keepdim=True, dtype=torch.float64).float()
    return _blend(image, mean, factor)


def adjust_saturation(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _blend(image, _to_gray(image), factor)


def grayscale(image: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    import torch

    return _to_gray(image).to(torch.uint8).expand(image.shape)


def adjust_hue(image: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the hue in HSV, as in Pillow and torchvision."""
    import torch

    pixels = image.float().mul_(1.0 / 255)
    low, high = torch.aminmax(pixels, dim=1)
    red, green, _ = pixels.unbind(1)
    chroma = high - low
    is_gray = chroma == 0
    saturation = chroma / torch.where(is_gray, 1.0, high)
    r, g, b = ((high[:, None] - pixels) / torch.where(is_gray, 1.0, chroma)[:, None]).unbind(1)
    angle = torch.where(high == red, b - g, torch.where(high == green, 2.0 + r - b, 4.0 + g - r))
    angle = angle.mul_(1.0 / 6.0).add_(1.0).fmod_(1.0).add_(turns[:, None, None]).remainder_(1.0)
    return _from_hsv(angle, saturation, high).mul_(255 + 1.0 - 1e-3).to(torch.uint8)


def _from_hsv(angle: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Convert HSV, float32 [b, H, W] each, in [0, 1] → RGB [b, 3, H, W]."""
    import torch

    sixth = angle * 6
    sector = sixth.floor()
    position = saturation * (sixth - sector)
    sector = sector.remainder_(6)
    falling = (1.0 - position).mul_(value).clamp_(0, 1)
    rising = (position + (1.0 - saturation)).mul_(value).clamp_(0, 1)
    low = (1.0 - saturation).mul_(value).clamp_(0, 1)

    def channel(shift: int) -> torch.Tensor:
        """Return red by its sector of the circle; green and blue are the same, `shift` sectors on."""
        index = (sector + shift).remainder_(6)
        slope = torch.where(index == 1, falling, rising)
        return torch.where((index == 0) | (index == 5), value, torch.where((index == 1) | (index == 4), slope, low))

    return torch.stack((channel(0), channel(4), channel(2)), 1)


def posterize(image: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    import torch

    dropped_bits = 8 - bits.round().to(torch.int32)
    mask = torch.bitwise_left_shift(torch.full_like(dropped_bits, 255), dropped_bits).bitwise_and_(255)
    return image & _per_image(mask.to(torch.uint8))


def solarize(image: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(image >= _per_image(threshold), image.bitwise_not(), image)


def invert(image: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return image.bitwise_not()


def autocontrast(image: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0 to 255; one of a single value stays."""
    import torch

    low, high = image.amin((2, 3), keepdim=True).float(), image.amax((2, 3), keepdim=True).float()
    is_constant = low == high
    scale = torch.where(is_constant, 1.0, (high - low) * (1.0 / 255))
    return (image - torch.where(is_constant, 0.0, low)).div_(scale).clamp_(0, 255).to(torch.uint8)


def equalize(image: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Apply Pillow's table of each channel's histogram, counted in whole numbers: exact in any order."""
    from torchvision.transforms.v2 import functional as tv

    equalized: torch.Tensor = tv.equalize(image)  # takes batches
    return equalized


def adjust_sharpness(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Blend with a 3x3 mean that counts the center five times; the outermost pixels stay."""
    import torch

    height, width = image.shape[2:]
    if height <= 2 or width <= 2:
        return image
    out = image.float()
    rows = out[:, :, :-2] + out[:, :, 1:-1] + out[:, :, 2:]
    inner = out[:, :, 1:-1, 1:-1]
    # Whole numbers below 2^24 and thirteenths, of which none is a half: rounded without error.
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner).div_(13).round_()
    inner.add_((smooth - inner) * _per_image(1.0 - factor))
    return out.clamp_(0, 255).to(torch.uint8)


def gaussian_blur(image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Convolve with `BLUR_KERNEL` taps along x, then y; mirrored at the border, as torchvision's gaussian_blur."""
    import torch
    from torch.nn.functional import pad

    num_taps = min(BLUR_KERNEL, 2 * min(image.shape[2:]) - 1)  # reflection can't exceed the image
    radius = num_taps // 2
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
    weights = torch.softmax(-0.5 * (offsets / sigma.clamp_min(1e-3)[:, None]) ** 2, 1)
    out = pad(image.float(), (radius,) * 4, mode="reflect")
    for dim in (3, 2):
        size = image.shape[dim]
        taps = (out.narrow(dim, tap, size) * _per_image(weights[:, tap]) for tap in range(num_taps))
        total = next(taps)
        for tap in taps:
            total += tap
        out = total
    return out.round_().clamp_(0, 255).to(torch.uint8)


def add_noise(image: torch.Tensor, sigma: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """Add Gaussian noise, truncated to whole levels; a function of each image's seed alone, the same on every device up
    to the last digit of a logarithm.

    Value i of an image is `erfinv` of a hash of i and the seed: Wellons' two-round 32-bit hash with TheIronBorn's
    constants (https://github.com/skeeto/hash-prospector, issue 19), whose factors are below 2^31, so that int64 holds
    the products.
    """
    import torch

    low = _hash(seeds & 0xFFFFFFFF)
    key = _hash(low ^ (seeds >> 32 & 0xFFFFFFFF))
    counter = torch.arange(image[0].numel(), device=image.device)
    bits = _hash(_hash(counter) ^ key[:, None])
    # An odd number of 2^-24: within (-1, 1), and float32 holds it.
    uniform = ((bits >> 9) * 2 + 1 - 2**23).float().mul_(2.0**-23)
    normal = torch.erfinv(uniform).mul_(2**0.5).view(image.shape)
    levels = normal.mul_(_per_image(sigma)).trunc_()
    return levels.add_(image).clamp_(0, 255).to(torch.uint8)


def _hash(x: torch.Tensor) -> torch.Tensor:
    """Hash 32 bits, in an int64."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = (x ^ (x >> shift)) * factor & 0xFFFFFFFF
    return x ^ (x >> 15)


FUNCTIONS: dict[str, Operation] = {
    "Brightness": adjust_brightness, "Contrast": adjust_contrast, "Color": adjust_saturation, "Hue": adjust_hue,
    "Grayscale": grayscale, "Posterize": posterize, "Solarize": solarize, "Invert": invert,
    "AutoContrast": autocontrast, "Equalize": equalize, "Sharpness": adjust_sharpness, "Blur": gaussian_blur,
    "Jpeg": compress_jpeg,
}  # fmt: skip
"""All but `None` and `Noise`, which needs seeds, too."""
