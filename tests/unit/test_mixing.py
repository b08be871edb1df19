"""MixUp and CutMix: labels in the exact proportion of the pixels, and the same numbers wherever it runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.dataset.labels import MULTI, SINGLE
from imagemill.components.train.augment.mixing import CUTMIX, MIXUP, NONE, Mixing
from imagemill.components.train.config import TrainConfig

CLASSES = 7
BASE = TrainConfig(mixup=0.4, mixup_probability=0.5, cutmix=1.0, cutmix_probability=0.5)


def mixing(task: str = SINGLE, classes: int = CLASSES, **values: Any) -> Mixing:
    return Mixing(replace(BASE, **values), classes, task)


def batch(count: int, height: int = 9, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i holds i + 1 everywhere, in float32, and is of class i."""
    images = (torch.arange(count, dtype=torch.float32) + 1)[:, None, None, None].expand(count, 2, height, width)
    return images.contiguous(), torch.arange(count)


@given(seed=st.integers(0, 10**6), number=st.integers(0, 50), count=st.integers(2, 9), cut=st.booleans())
@settings(max_examples=60, deadline=None)
def test_labels_have_the_proportion_of_the_pixels(seed: int, number: int, count: int, cut: bool) -> None:
    """With one class an image, each image's pixels are counted and compared with its label."""
    chances = {"mixup_probability": 1.0 - cut, "cutmix_probability": float(cut)}
    images, labels = batch(count)
    mix = mixing(seed=seed, classes=count, **chances)
    found, targets = mix(images, labels, 3, number)
    what = mix.make_params(count, 9, 12, 3, number)
    assert what.method == (CUTMIX if cut else MIXUP)
    assert sorted(what.partner.tolist()) == list(range(count)) and (what.partner != np.arange(count)).all()
    assert found.shape == images.shape and found.dtype == images.dtype and targets.shape == (count, count)
    assert torch.allclose(targets.sum(1), torch.ones(count))
    for row, (one, target) in enumerate(zip(found, targets, strict=True)):
        other = int(what.partner[row])
        if cut:
            own = (one[0] == row + 1).double().mean()
            assert ((one[0] == row + 1) | (one[0] == other + 1)).all() and (one[0] == one[1]).all()
        else:
            own = (one.double().mean() - other - 1) / (row - other)
        assert float(target[row]) == pytest.approx(float(own), abs=1e-5)
        assert float(target[other]) == pytest.approx(1 - float(own), abs=1e-5)


def test_the_box_is_one_box_of_the_partners_pixels() -> None:
    mix = mixing(mixup_probability=0.0, cutmix_probability=1.0)
    images = torch.rand(8, 3, 20, 30)
    for number in range(20):
        found, _ = mix(images, torch.arange(8) % CLASSES, 0, number)
        what = mix.make_params(8, 20, 30, 0, number)
        for row, (top, left, bottom, right) in enumerate(what.box.tolist()):
            wanted = images[row].clone()
            wanted[:, top:bottom, left:right] = images[what.partner[row], :, top:bottom, left:right]
            assert torch.equal(found[row], wanted)


def test_a_box_at_the_border_counts_with_what_is_left_of_it() -> None:
    mix = mixing(mixup_probability=0.0, cutmix_probability=1.0)
    drawn = [mix.make_params(64, 50, 80, 0, number) for number in range(60)]
    box = np.concatenate([one.box for one in drawn])
    share = np.concatenate([one.lam for one in drawn])
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    assert np.allclose(1 - share, area / 4000) and (box >= 0).all() and (box <= [50, 80, 50, 80]).all()
    clipped = (box[:, :2] == 0).any(1) | (box[:, 2:] == [50, 80]).any(1)
    assert 0.2 < clipped.mean() < 0.95
    # Of boxes that are whole the sides have the image's ratio, and the area is uniform, as Beta(1, 1) is.
    whole = box[~clipped]
    assert np.abs((whole[:, 2] - whole[:, 0]) / 50 - (whole[:, 3] - whole[:, 1]) / 80).max() <= 1 / 50


def test_every_image_has_a_proportion_of_its_own_by_beta() -> None:
    share = np.concatenate([mixing(cutmix_probability=0.0, mixup_probability=1.0).make_params(100, 8, 8, 0, n).lam
                            for n in range(40)])  # fmt: skip
    assert len(np.unique(share)) > 3900
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    assert share.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)  # of Beta(0.4, 0.4)


def test_several_labels_are_mixed_as_vectors() -> None:
    images, _ = batch(6)
    labels = torch.randint(0, 2, (6, CLASSES), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for chances in ({"mixup_probability": 1.0, "cutmix_probability": 0.0}, {"mixup_probability": 0.0}):
        mix = mixing(MULTI, **{"cutmix_probability": 1.0, **chances})
        _, targets = mix(images, labels, 0, 4)
        what = mix.make_params(6, 9, 12, 0, 4)
        share = torch.tensor(what.lam, dtype=torch.float32)[:, None]
        assert torch.allclose(targets, share * labels + (1 - share) * labels[what.partner]) and targets.max() <= 1
        assert targets.dtype == torch.float32


def test_each_batch_is_mixed_by_one_method_as_often_as_asked_for() -> None:
    def kinds(**values: float) -> Counter[str]:
        return Counter(mixing(**values).make_params(4, 8, 8, epoch, n).method for epoch in range(4) for n in range(500))

    found = kinds(mixup_probability=0.3, cutmix_probability=0.5)
    assert abs(found[MIXUP] - 600) < 80 and abs(found[CUTMIX] - 1000) < 90 and abs(found[NONE] - 400) < 75
    both = kinds(mixup_probability=1.0, cutmix_probability=0.5)
    assert both[NONE] == 0 and abs(both[MIXUP] - 1333) < 85, "more than 1 together: in their proportion"


@pytest.mark.parametrize(
    ("count", "values"),
    [
        (1, {}),
        (8, {"mixup": 0.0, "cutmix": 0.0}),
        (8, {"mixup_probability": 0.0, "cutmix_probability": 0.0}),
        (8, {"mixup_probability": 1.0, "mixup": 0.0, "cutmix_probability": 0.0}),
        (8, {"mixup_probability": -1.0, "cutmix_probability": -1.0}),
    ],
)
def test_what_is_not_mixed_stays_as_it_is(count: int, values: dict[str, float]) -> None:
    images, labels = batch(count)
    for number in range(20):
        found, targets = mixing(**values)(images, labels, 0, number)
        assert found is images and targets is labels


def test_an_alpha_of_0_leaves_the_other_method_its_share() -> None:
    kinds = {mixing(mixup=0.0).make_params(4, 8, 8, 0, number).method for number in range(50)}
    assert kinds == {NONE, CUTMIX}


def test_it_is_a_function_of_seed_epoch_and_number() -> None:
    images, labels = torch.rand(6, 3, 10, 10), torch.arange(6)
    always = {"mixup_probability": 1.0, "cutmix_probability": 0.0}
    one = mixing(seed=1, **always)(images, labels, 2, 3)
    again = mixing(seed=1, **always)(images, labels, 2, 3)
    assert all(torch.equal(*pair) for pair in zip(one, again, strict=True))
    others = [mixing(seed=1, **always)(images, labels, *where) for where in ((1, 3), (2, 4), (2, 3, 6))]
    others.append(mixing(seed=2, **always)(images, labels, 2, 3))
    assert not any(torch.equal(one[0], other[0]) for other in others)


def test_shares_of_a_batch_are_mixed_by_the_same_method() -> None:
    for number in range(30):
        kinds = {mixing(mixup_probability=0.4).make_params(4, 8, 8, 0, number, first).method for first in (0, 4, 8)}
        assert len(kinds) == 1


def test_half_precision_and_memory_format_are_kept() -> None:
    images = torch.rand(6, 3, 10, 10).to(torch.bfloat16).to(memory_format=torch.channels_last)
    for chances in ({"mixup_probability": 1.0, "cutmix_probability": 0.0}, {"mixup_probability": 0.0}):
        found, targets = mixing(**{"cutmix_probability": 1.0, **chances})(images, torch.arange(6), 0, 0)
        assert found.dtype == torch.bfloat16 and targets.dtype == torch.float32
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("cut", [False, True])
def test_on_a_gpu_it_is_the_same_and_the_host_waits_for_nothing(cut: bool) -> None:
    mix = mixing(mixup_probability=1.0 - cut, cutmix_probability=float(cut))
    images, labels = torch.rand(32, 3, 40, 40), torch.arange(32) % CLASSES
    there = images.cuda(), labels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = mix(*there, 0, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, wanted in zip(found, mix(images, labels, 0, 0), strict=True):
        torch.testing.assert_close(one.cpu(), wanted)
