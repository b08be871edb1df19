"""The kernel for very large images: JPEGs decoded and resampled on a GPU (nvJPEG, through torchvision).

It is written against a torch device; on `cpu` the same lines run, which is what the tests compare. A picture is
decoded at its full size and resampled in float32, so its pixels differ from the CPU kernel's by a level here and there.
All that is no plain JPEG, in grey or YCbCr, goes through the CPU's kernel: which way an image goes depends on its bytes
alone.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from ..store.choices import COLORS
from ..store.errors import TransientError
from ..store.headers import sniff
from ..store.images import Pixels, convert_color
from ..store.resample import MAX_ASPECT_RATIO, Geometry, center_square, compute_edges, decode_and_resize, pad_to_square
from .work import Kernel

if TYPE_CHECKING:
    import torch

INTERPOLATIONS = ("bilinear", "bicubic")
"""What torch resamples with antialiasing on every device."""
BATCH_PIXELS = 128 * 10**6
"""Decoded at a time: 384 MB of uint8. One image may exceed it alone."""
BATCH_IMAGES = 64
_ORIENTATION = 0x0112
_FLIPPED = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""EXIF 2.32, 4.6.4.A: the axes of [C, H, W] that are turned round, after height and width are exchanged from 5 on."""


class Stored(NamedTuple):
    """Of a JPEG that the GPU may decode: its sides as they are stored, grey or not, and its EXIF orientation."""

    width: int
    height: int
    gray: bool
    orientation: int

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) of the picture as it is seen."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def kernel_on(device: str) -> Kernel:
    """The kernel for a torch device: `cuda`, or `cpu` for tests."""

    def kernel(images: Sequence[bytes], geometry: Geometry) -> Iterator[Pixels]:
        headers = [header_of(data) for data in images]
        for begin, end in batches_of(headers):
            some = _decoded(images[begin:end], headers[begin:end], geometry, device)
            for data, header, picture in zip(images[begin:end], headers[begin:end], some, strict=True):
                if header is None or picture is None:
                    yield decode_and_resize(data, geometry)
                else:
                    yield finished(resampled(_turned(picture, header.orientation), geometry), geometry)

    return kernel


def header_of(data: bytes) -> Stored | None:
    """What is to be known of a plain JPEG, grey or YCbCr in 8 bits; None for anything else."""
    if sniff(data) != "JPEG":
        return None
    try:
        opened = Image.open(io.BytesIO(data), formats=["JPEG"])
        orientation = opened.getexif().get(_ORIENTATION, 1)
    except Exception:  # of a header that Pillow does not like, the CPU's kernel knows what to think
        return None
    if opened.format != "JPEG" or opened.mode not in ("L", "RGB"):  # several pictures in one file, CMYK
        return None
    if opened.mode == "RGB" and not _is_ycbcr(opened):
        return None
    if max(opened.size) > MAX_ASPECT_RATIO * min(opened.size):
        return None
    known = isinstance(orientation, int) and 1 <= orientation <= 8
    return Stored(*opened.size, opened.mode == "L", orientation if known else 1)


def _is_ycbcr(opened: Image.Image) -> bool:
    """Not RGB as it is, which Adobe's marker or the components' names may say and nvJPEG does not look at."""
    transform = opened.info.get("adobe_transform", 1 if "adobe" not in opened.info else 0)
    names = tuple(component[0] for component in getattr(opened, "layer", ()))
    return transform == 1 and names == (1, 2, 3)


def batches_of(headers: Sequence[Stored | None]) -> Iterator[tuple[int, int]]:
    """[begin, end) of neighbours to decode together: by their pixels, and by their number."""
    begin = pixels = 0
    for at, header in enumerate(headers):
        size = header.width * header.height if header else 0
        if at > begin and (pixels + size > BATCH_PIXELS or at - begin >= BATCH_IMAGES):
            yield begin, at
            begin, pixels = at, 0
        pixels += size
    if begin < len(headers):
        yield begin, len(headers)


def _decoded(
    images: Sequence[bytes], headers: Sequence[Stored | None], geometry: Geometry, device: str
) -> list[torch.Tensor | None]:
    """uint8 [C, H, W] as stored, on the device, of those that it decodes."""
    from torchvision.io import ImageReadMode

    found: list[torch.Tensor | None] = [None] * len(images)
    for gray in (False, True):
        chosen = [n for n, header in enumerate(headers) if header and _as_gray(header, geometry.color) == gray]
        mode = ImageReadMode.GRAY if gray else ImageReadMode.RGB
        for n, picture in zip(chosen, _read([images[n] for n in chosen], mode, device), strict=True):
            header = headers[n]
            if header and picture is not None and picture.shape[1:] == (header.height, header.width):
                found[n] = picture
    return found


def _as_gray(header: Stored, color: str) -> bool:
    """Whether one channel is all that is decoded: a grey image's only one means each of red, green and blue."""
    return color == "gray" or (header.gray and COLORS[color] == 1)


def _read(images: list[bytes], mode: object, device: str) -> list[torch.Tensor | None]:
    """Decoded together, or one by one where that fails; None for one that fails alone."""
    import torch
    from torchvision.io import decode_jpeg

    if not images:
        return []
    tensors = [torch.from_numpy(np.frombuffer(data, np.uint8).copy()) for data in images]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's decoders will move to another package
            return list(decode_jpeg(tensors, mode, device))
    except torch.OutOfMemoryError as error:
        raise _no_memory(error) from None
    except RuntimeError:
        _prove(device)
        if len(images) == 1:
            return [None]
        return [one for data in images for one in _read([data], mode, device)]


def _prove(device: str) -> None:
    """A GPU that fails once may fail at everything from then on: then it was not the image."""
    import torch

    try:
        torch.ones(1, device=device).add_(1).cpu()
    except RuntimeError as error:
        raise TransientError(f"device: the GPU no longer works: {str(error).splitlines()[0]}") from None


def _no_memory(error: BaseException) -> TransientError:
    return TransientError(
        f"device: expected enough memory on the GPU, found too little ({str(error).splitlines()[0]}); give each worker "
        "more of it (--gpu-share), or resize on the CPU (--device cpu)"
    )


def _turned(picture: torch.Tensor, orientation: int) -> torch.Tensor:
    """[C, H, W] upright."""
    if orientation >= 5:
        picture = picture.transpose(1, 2)
    return picture.flip(_FLIPPED[orientation]) if orientation in _FLIPPED else picture


def resampled(picture: torch.Tensor, geometry: Geometry) -> Pixels:
    """An upright picture, uint8 [C, H, W] → uint8 [h, w, C] in main memory: antialiased in float32 and cropped, not
    yet padded."""
    import torch
    from torch.nn.functional import interpolate

    width, height = geometry.scaled(picture.shape[2], picture.shape[1])
    if picture.shape[1:] != (height, width):
        try:
            made = interpolate(
                picture[None].to(torch.float32).contiguous(), (height, width), mode=geometry.interpolation,
                antialias=True, align_corners=False,
            )  # fmt: skip
        except torch.OutOfMemoryError as error:
            raise _no_memory(error) from None
        picture = made[0].round_().clamp_(0, 255).to(torch.uint8)
    if geometry.mode == "crop":
        top, left, size = center_square(width, height, geometry)
        picture = picture[:, top : top + size, left : left + size]
    found: Pixels = picture.permute(1, 2, 0).contiguous().cpu().numpy()
    return found


def finished(picture: Pixels, geometry: Geometry) -> Pixels:
    """uint8 [h, w, 3 in RGB or the one channel] → uint8 [H, W, C]: colour, edges and what is black around."""
    color = convert_color(pad_to_square(picture, geometry.kept), geometry.color)
    if not geometry.edges:
        return color
    edges = compute_edges(convert_color(picture, "gray"), geometry.edges, geometry.canny_low, geometry.canny_high)
    return np.concatenate([color, pad_to_square(edges, geometry.kept)], axis=2)
