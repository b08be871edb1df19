"""The colour operations of `drawn.OPERATIONS` on a batch, every image with a value of its own.

uint8 [b, C, H, W] and values float32 [b] → uint8 of the same shape; 1 or 3 channels. Each is torchvision v2's operation
of that name (`torchvision.transforms.v2.functional`), in the same order of the same arithmetic in float32, cut or
rounded where torchvision cuts or rounds. Nothing here asks the device for a number, so the host never waits; and no
image's result depends on the others of its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .device_jpeg import jpeg

if TYPE_CHECKING:
    import torch

Operation = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]

NEED_COLOR = ("Color", "Hue", "Grayscale")
"""One channel they leave as it is."""
BLUR_KERNEL = 5
"""Taps of the Gaussian along each axis, as the CPU engine has it."""


def _each(values: torch.Tensor) -> torch.Tensor:
    """[b] as [b, 1, 1, 1]."""
    return values[:, None, None, None]


def _gray(image: torch.Tensor) -> torch.Tensor:
    """Whole numbers as float32 [b, 1, H, W] (ITU-R BT.601, with torchvision's digits)."""
    if image.shape[1] == 1:
        return image.float()
    red, green, blue = image.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1).floor_()


def _blend(image: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    import torch

    share = _each(factor)
    return torch.addcmul(image.mul(share), 1.0 - share, other).clamp_(0, 255).to(torch.uint8)


def brightness(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    import torch

    return image.mul(_each(factor)).clamp_(0, 255).to(torch.uint8)


def contrast(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Towards or away from the mean of its grey; summed in float64, so that it is the same in every batch."""
    import torch

    mean = _gray(image).mean((1, 2, 3), keepdim=True, dtype=torch.float64).float()
    return _blend(image, mean, factor)


def color(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _blend(image, _gray(image), factor)


def grayscale(image: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    import torch

    return _gray(image).to(torch.uint8).expand(image.shape)


def hue(image: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """By way of HSV, as Pillow and torchvision have it."""
    import torch

    pixels = image.float().mul_(1.0 / 255)
    low, high = torch.aminmax(pixels, dim=1)
    red, green, _ = pixels.unbind(1)
    range_ = high - low
    gray = range_ == 0
    saturation = range_ / torch.where(gray, 1.0, high)
    r, g, b = ((high[:, None] - pixels) / torch.where(gray, 1.0, range_)[:, None]).unbind(1)
    of_red = high == red
    angle = torch.where(of_red, b - g, torch.where(high == green, 2.0 + r - b, 4.0 + g - r))
    angle = angle.mul_(1.0 / 6.0).add_(1.0).fmod_(1.0).add_(turns[:, None, None]).remainder_(1.0)
    return _from_hsv(angle, saturation, high).mul_(255 + 1.0 - 1e-3).to(torch.uint8)


def _from_hsv(angle: torch.Tensor, saturation: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Float32 [b, H, W] each, in [0, 1] → [b, 3, H, W]."""
    import torch

    sixth = angle * 6
    sector = sixth.floor()
    part = saturation * (sixth - sector)
    sector = sector.remainder_(6)
    falling = (1.0 - part).mul_(value).clamp_(0, 1)
    rising = (part + (1.0 - saturation)).mul_(value).clamp_(0, 1)
    low = (1.0 - saturation).mul_(value).clamp_(0, 1)

    def channel(shift: int) -> torch.Tensor:
        """Red by its sector of the circle; green and blue are the same, that many sectors on."""
        at = (sector + shift).remainder_(6)
        slope = torch.where(at == 1, falling, rising)
        return torch.where((at == 0) | (at == 5), value, torch.where((at == 1) | (at == 4), slope, low))

    return torch.stack((channel(0), channel(4), channel(2)), 1)


def posterize(image: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    import torch

    dropped = 8 - bits.round().to(torch.int32)
    mask = torch.bitwise_left_shift(torch.full_like(dropped, 255), dropped).bitwise_and_(255)
    return image & _each(mask.to(torch.uint8))


def solarize(image: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(image >= _each(threshold), image.bitwise_not(), image)


def invert(image: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return image.bitwise_not()


def auto_contrast(image: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Each channel stretched to 0 to 255; one of a single value stays."""
    import torch

    low, high = image.amin((2, 3), keepdim=True).float(), image.amax((2, 3), keepdim=True).float()
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low) * (1.0 / 255))
    return (image - torch.where(flat, 0.0, low)).div_(scale).clamp_(0, 255).to(torch.uint8)


def equalize(image: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Pillow's table of each channel's histogram, which is counted in whole numbers: exact, whatever the order."""
    from torchvision.transforms.v2 import functional as tv

    found: torch.Tensor = tv.equalize(image)  # batched as it is
    return found


def sharpness(image: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Towards or away from a 3x3 mean that counts the centre five times; the outermost pixels stay."""
    import torch

    height, width = image.shape[2:]
    if height <= 2 or width <= 2:
        return image
    out = image.float()
    rows = out[:, :, :-2] + out[:, :, 1:-1] + out[:, :, 2:]
    inner = out[:, :, 1:-1, 1:-1]
    # Whole numbers below 2^24 and thirteenths, of which none is a half: rounded without error.
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner).div_(13).round_()
    inner.add_((smooth - inner) * _each(1.0 - factor))
    return out.clamp_(0, 255).to(torch.uint8)


def blur(image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian of `BLUR_KERNEL` taps, across and then down; mirrored at the border, as torchvision's gaussian_blur."""
    import torch
    from torch.nn.functional import pad

    side = min(BLUR_KERNEL, 2 * min(image.shape[2:]) - 1)  # a mirror shows no more than there is
    reach = side // 2
    at = torch.arange(-reach, reach + 1, device=image.device, dtype=torch.float32)
    weights = torch.softmax(-0.5 * (at / sigma.clamp_min(1e-3)[:, None]) ** 2, 1)
    out = pad(image.float(), (reach,) * 4, mode="reflect")
    for dim in (3, 2):
        size = image.shape[dim]
        taps = (out.narrow(dim, tap, size) * _each(weights[:, tap]) for tap in range(side))
        total = next(taps)
        for tap in taps:
            total += tap
        out = total
    return out.round_().clamp_(0, 255).to(torch.uint8)


def noise(image: torch.Tensor, sigma: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """Gaussian noise, cut to whole steps and added; a function of each image's seed alone, the same on every device
    up to the last digit of a logarithm.

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
    steps = normal.mul_(_each(sigma)).trunc_()
    return steps.add_(image).clamp_(0, 255).to(torch.uint8)


def _hash(x: torch.Tensor) -> torch.Tensor:
    """32 bits in an int64."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = (x ^ (x >> shift)) * factor & 0xFFFFFFFF
    return x ^ (x >> 15)


TABLE: dict[str, Operation] = {
    "Brightness": brightness, "Contrast": contrast, "Color": color, "Hue": hue, "Grayscale": grayscale,
    "Posterize": posterize, "Solarize": solarize, "Invert": invert, "AutoContrast": auto_contrast,
    "Equalize": equalize, "Sharpness": sharpness, "Blur": blur, "Jpeg": jpeg,
}  # fmt: skip
"""All but `None` and `Noise`, which takes seeds, too."""
