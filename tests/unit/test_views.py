"""Views of an image, and the mean of what a model makes of them."""

from __future__ import annotations

import pytest
import torch

from imagemill.components.dataset.labels import MULTI, SINGLE
from imagemill.components.evaluate.inference import FIVE_CROPS, FLIP, NONE, average_views, make_views


def picture(side: int) -> torch.Tensor:
    """float [2, 3, side, side], every pixel another number."""
    return torch.arange(2 * 3 * side * side, dtype=torch.float32).reshape(2, 3, side, side)


@pytest.mark.parametrize("stored", [8, 12])
def test_one_view_is_the_centre_and_flip_adds_its_mirror_image(stored: int) -> None:
    images, at = picture(stored), (stored - 8) // 2
    centre = images[..., at : at + 8, at : at + 8]
    [plain] = make_views(images, 8, NONE)
    first, second = make_views(images, 8, FLIP)
    assert torch.equal(plain, centre) and torch.equal(first, centre) and torch.equal(second, centre.flip(3))


def test_five_crops_are_of_all_that_is_stored() -> None:
    images = picture(12)
    found = list(make_views(images, 8, FIVE_CROPS))
    corners = [(2, 2), (0, 0), (0, 4), (4, 0), (4, 4)]
    assert len(found) == 5
    for view, (top, left) in zip(found, corners, strict=True):
        assert torch.equal(view, images[..., top : top + 8, left : left + 8])


@pytest.mark.parametrize("side", [16, 33])
def test_five_crops_without_a_margin_have_the_size_that_the_network_takes(side: int) -> None:
    found = list(make_views(picture(side), side, FIVE_CROPS))
    assert [tuple(view.shape) for view in found] == [(2, 3, side, side)] * 5
    top_left, bottom_right = (found[n][0, 0].mean().item() for n in (1, 4))
    assert top_left < found[0][0, 0].mean().item() < bottom_right, "each is another part"
    flat = torch.full((1, 3, side, side), 0.25)
    assert all(torch.allclose(view, flat) for view in make_views(flat, side, FIVE_CROPS))


@pytest.mark.parametrize("task", [SINGLE, MULTI])
def test_probabilities_are_the_mean(task: str) -> None:
    logits = [torch.randn(6, 4, generator=torch.Generator().manual_seed(n)) * 3 for n in range(5)]
    act = torch.sigmoid if task == MULTI else lambda z: z.softmax(1)
    mean = torch.stack([act(z) for z in logits]).mean(0)
    assert torch.allclose(act(average_views(logits, task)), mean, atol=1e-6)
    assert average_views(logits[:1], task) is logits[0]


@pytest.mark.parametrize("task", [SINGLE, MULTI])
def test_certainty_does_not_become_infinite(task: str) -> None:
    sure = torch.tensor([[90.0, -90.0], [-200.0, 200.0]])
    found = average_views([sure, sure], task)
    assert torch.isfinite(found).all()
    if task == MULTI:
        assert torch.allclose(found, sure)
    else:
        assert torch.allclose(found[:, 0] - found[:, 1], sure[:, 0] - sure[:, 1])
