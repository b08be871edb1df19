"""The color operations of `params.OPERATIONS` on a batch, every image with a value of its own.

uint8 [b, C, H, W] and values float32 [b] → uint8 of the same shape; 1 or 3 channels. Each is torchvision v2's operation
of that name (`torchvision.transforms.v2.functional`), in the same order of the same arithmetic in float32, truncated
or rounded where torchvision does. Nothing here reads a number from the device, so the host never waits; and no image's
result depends on the others of its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .device_jpeg import compress_jpeg

if TYPE_CHECKING:
    import torch

Operation = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]

NEED_COLOR = ("Color", "Hue", "Grayscale")
"""They leave a single channel as it is."""
BLUR_KERNEL = 5
"""Taps of the Gaussian along each axis, as in the CPU engine."""


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
