"""Views of an image, and the mean of a model's outputs for them."""

from __future__ import annotations

import pytest
import torch

from imagemill.components.dataset.labels import MULTI, SINGLE
from imagemill.components.evaluate.inference import FIVE_CROPS, FLIP, NONE, average_views, make_views


def make_images(side: int) -> torch.Tensor:
    """float [2, 3, side, side], every pixel another number."""
    return torch.arange(2 * 3 * side * side, dtype=torch.float32).reshape(2, 3, side, side)


@pytest.mark.parametrize("stored", [8, 12])
def test_single_view_is_the_center_and_flip_adds_its_mirror_image(stored: int) -> None:
    images, offset = make_images(stored), (stored - 8) // 2
    center = images[..., offset : offset + 8, offset : offset + 8]
    [plain] = make_views(images, 8, NONE)
    first, second = make_views(images, 8, FLIP)
    assert torch.equal(plain, center) and torch.equal(first, center) and torch.equal(second, center.flip(3))


def test_five_crops_cover_the_stored_image() -> None:
    images = make_images(12)
    views = list(make_views(images, 8, FIVE_CROPS))
    corners = [(2, 2), (0, 0), (0, 4), (4, 0), (4, 4)]
    assert len(views) == 5
    for view, (top, left) in zip(views, corners, strict=True):
        assert torch.equal(view, images[..., top : top + 8, left : left + 8])


@pytest.mark.parametrize("side", [16, 33])
def test_five_crops_without_a_margin_have_the_input_size(side: int) -> None:
    views = list(make_views(make_images(side), side, FIVE_CROPS))
    assert [tuple(view.shape) for view in views] == [(2, 3, side, side)] * 5
    top_left, bottom_right = (views[n][0, 0].mean().item() for n in (1, 4))
    assert top_left < views[0][0, 0].mean().item() < bottom_right, "each is another part"
    flat = torch.full((1, 3, side, side), 0.25)
    assert all(torch.allclose(view, flat) for view in make_views(flat, side, FIVE_CROPS))


@pytest.mark.parametrize("task", [SINGLE, MULTI])
def test_averaged_probabilities_are_the_mean(task: str) -> None:
    logits = [torch.randn(6, 4, generator=torch.Generator().manual_seed(n)) * 3 for n in range(5)]
    act = torch.sigmoid if task == MULTI else lambda z: z.softmax(1)
    mean = torch.stack([act(z) for z in logits]).mean(0)
    assert torch.allclose(act(average_views(logits, task)), mean, atol=1e-6)
    assert average_views(logits[:1], task) is logits[0]


@pytest.mark.parametrize("task", [SINGLE, MULTI])
def test_mean_of_saturated_logits_is_finite(task: str) -> None:
    logits = torch.tensor([[90.0, -90.0], [-200.0, 200.0]])
    mean_logits = average_views([logits, logits], task)
    assert torch.isfinite(mean_logits).all()
    if task == MULTI:
        assert torch.allclose(mean_logits, logits)
    else:
        assert torch.allclose(mean_logits[:, 0] - mean_logits[:, 1], logits[:, 0] - logits[:, 1])
