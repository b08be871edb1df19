"""Test-time augmentation: several views of an image, and the mean of what the model makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..store.labels import MULTI

if TYPE_CHECKING:
    import torch

NONE, FLIP, FIVE_CROPS = "none", "flip", "five_crops"
CROP = 0.875
"""Side of the five crops where nothing is stored around what the model sees, as a share of the image's (224 / 256)."""


def views(images: torch.Tensor, size: int, how: str) -> Iterator[torch.Tensor]:
    """Normalized images float [B, C, H, W], H = W >= size → views float [B, C, size, size], one at a time.

    `none`: the centre. `flip`: that, and its mirror image. `five_crops`: the centre and the four corners (Krizhevsky
    et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012), of all that is stored where that
    is larger than the model's own size, else of `CROP` of the side, resized back.
    """
    stored = images.shape[-1]
    if how == FIVE_CROPS:
        side = size if stored > size else max(1, round(CROP * stored))
        for top, left in _corners_and_centre(stored - side):
            yield _sized(images[..., top : top + side, left : left + side], size)
        return
    at = (stored - size) // 2
    plain = images[..., at : at + size, at : at + size]
    yield plain
    if how == FLIP:
        yield plain.flip(-1)


def _corners_and_centre(room: int) -> tuple[tuple[int, int], ...]:
    """(top, left), the centre first."""
    return (room // 2, room // 2), (0, 0), (0, room), (room, 0), (room, room)


def _sized(images: torch.Tensor, size: int) -> torch.Tensor:
    from torch.nn import functional

    if images.shape[-1] == size:
        return images
    return functional.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


def combined(logits: Sequence[torch.Tensor], task: str) -> torch.Tensor:
    """Logits float [B, C] whose probabilities are the mean of those of several views' logits: without a detour by
    probabilities, which are rounded to 0 and 1. Of one view its own."""
    import torch
    from torch.nn import functional

    if len(logits) == 1:
        return logits[0]
    every = torch.stack(list(logits))
    if task == MULTI:
        return functional.logsigmoid(every).logsumexp(0) - functional.logsigmoid(-every).logsumexp(0)
    return every.log_softmax(2).logsumexp(0) - math.log(len(logits))
