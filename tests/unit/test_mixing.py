"""MixUp and CutMix: labels in the exact proportion of the pixels, equal on every device."""

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
from imagemill.components.train.augment.augmentation import CUTMIX, MIXUP, NONE, Mixing
from imagemill.components.train.config import TrainConfig

CLASSES = 7
BASE = TrainConfig(mixup=0.4, mixup_probability=0.5, cutmix=1.0, cutmix_probability=0.5)
ALWAYS_MIXUP = {"mixup_probability": 1.0, "cutmix_probability": 0.0}
ALWAYS_CUTMIX = {"mixup_probability": 0.0, "cutmix_probability": 1.0}


def make_mixing(task: str = SINGLE, classes: int = CLASSES, **values: Any) -> Mixing:
    return Mixing(replace(BASE, **values), classes, task)


def make_batch(count: int, height: int = 9, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i holds i + 1 everywhere, in float32, and is of class i."""
    images = (torch.arange(count, dtype=torch.float32) + 1)[:, None, None, None].expand(count, 2, height, width)
    return images.contiguous(), torch.arange(count)


@given(seed=st.integers(0, 10**6), number=st.integers(0, 50), count=st.integers(2, 9), is_cutmix=st.booleans())
@settings(max_examples=60, deadline=None)
def test_labels_have_the_proportion_of_the_pixels(seed: int, number: int, count: int, is_cutmix: bool) -> None:
    """With one class an image, each image's pixels are counted and compared with its label."""
    images, labels = make_batch(count)
    mix = make_mixing(seed=seed, classes=count, **(ALWAYS_CUTMIX if is_cutmix else ALWAYS_MIXUP))
    mixed, targets = mix(images, labels, 3, number)
    params = mix.make_params(count, 9, 12, 3, number)
    assert params.method == (CUTMIX if is_cutmix else MIXUP)
    assert sorted(params.partner.tolist()) == list(range(count)) and (params.partner != np.arange(count)).all()
    assert mixed.shape == images.shape and mixed.dtype == images.dtype and targets.shape == (count, count)
    assert torch.allclose(targets.sum(1), torch.ones(count))
    for row, (image, target) in enumerate(zip(mixed, targets, strict=True)):
        other = int(params.partner[row])
        if is_cutmix:
            own = (image[0] == row + 1).double().mean()
            assert ((image[0] == row + 1) | (image[0] == other + 1)).all() and (image[0] == image[1]).all()
        else:
            own = (image.double().mean() - other - 1) / (row - other)
        assert float(target[row]) == pytest.approx(float(own), abs=1e-5)
        assert float(target[other]) == pytest.approx(1 - float(own), abs=1e-5)


def test_cutmix_pastes_one_box_of_the_partner() -> None:
    mix = make_mixing(**ALWAYS_CUTMIX)
    images = torch.rand(8, 3, 20, 30)
    for number in range(20):
        mixed, _ = mix(images, torch.arange(8) % CLASSES, 0, number)
        params = mix.make_params(8, 20, 30, 0, number)
        for row, (top, left, bottom, right) in enumerate(params.box.tolist()):
            expected = images[row].clone()
            expected[:, top:bottom, left:right] = images[params.partner[row], :, top:bottom, left:right]
            assert torch.equal(mixed[row], expected)


def test_lambda_of_a_clipped_box_is_its_area_in_the_image() -> None:
    mix = make_mixing(**ALWAYS_CUTMIX)
    batches = [mix.make_params(64, 50, 80, 0, number) for number in range(60)]
    box = np.concatenate([params.box for params in batches])
    share = np.concatenate([params.lam for params in batches])
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    assert np.allclose(1 - share, area / 4000) and (box >= 0).all() and (box <= [50, 80, 50, 80]).all()
    clipped = (box[:, :2] == 0).any(1) | (box[:, 2:] == [50, 80]).any(1)
    assert 0.2 < clipped.mean() < 0.95
    # Of boxes that are whole the sides have the image's ratio, and the area is uniform, as Beta(1, 1) is.
    whole = box[~clipped]
    assert np.abs((whole[:, 2] - whole[:, 0]) / 50 - (whole[:, 3] - whole[:, 1]) / 80).max() <= 1 / 50


def test_proportion_of_each_image_follows_the_beta_distribution() -> None:
    share = np.concatenate([make_mixing(**ALWAYS_MIXUP).make_params(100, 8, 8, 0, n).lam
                            for n in range(40)])  # fmt: skip
    assert len(np.unique(share)) > 3900
    assert share.mean() == pytest.approx(0.5, abs=0.03)
    assert share.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)  # of Beta(0.4, 0.4)


def test_multi_hot_labels_are_mixed_as_vectors() -> None:
    images, _ = make_batch(6)
    labels = torch.randint(0, 2, (6, CLASSES), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for chances in (ALWAYS_MIXUP, ALWAYS_CUTMIX):
        mix = make_mixing(MULTI, **chances)
        _, targets = mix(images, labels, 0, 4)
        params = mix.make_params(6, 9, 12, 0, 4)
        share = torch.tensor(params.lam, dtype=torch.float32)[:, None]
        assert torch.allclose(targets, share * labels + (1 - share) * labels[params.partner]) and targets.max() <= 1
        assert targets.dtype == torch.float32


def test_methods_are_chosen_with_the_given_probabilities() -> None:
    def count_methods(**values: float) -> Counter[str]:
        return Counter(
            make_mixing(**values).make_params(4, 8, 8, epoch, n).method for epoch in range(4) for n in range(500)
        )

    counts = count_methods(mixup_probability=0.3, cutmix_probability=0.5)
    assert abs(counts[MIXUP] - 600) < 80 and abs(counts[CUTMIX] - 1000) < 90 and abs(counts[NONE] - 400) < 75
    assert count_methods(mixup=0.0).keys() == {NONE, CUTMIX}, "an alpha of 0 turns a method off"
    both = count_methods(mixup_probability=1.0, cutmix_probability=0.5)
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
def test_unmixed_batch_is_returned_unchanged(count: int, values: dict[str, float]) -> None:
    images, labels = make_batch(count)
    for number in range(20):
        mixed, targets = make_mixing(**values)(images, labels, 0, number)
        assert mixed is images and targets is labels


def test_mixing_depends_on_seed_epoch_and_number() -> None:
    images, labels = torch.rand(6, 3, 10, 10), torch.arange(6)
    first = make_mixing(seed=1, **ALWAYS_MIXUP)(images, labels, 2, 3)
    repeated = make_mixing(seed=1, **ALWAYS_MIXUP)(images, labels, 2, 3)
    assert all(torch.equal(*pair) for pair in zip(first, repeated, strict=True))
    others = [
        make_mixing(seed=1, **ALWAYS_MIXUP)(images, labels, *position) for position in ((1, 3), (2, 4), (2, 3, 6))
    ]
    others.append(make_mixing(seed=2, **ALWAYS_MIXUP)(images, labels, 2, 3))
    assert not any(torch.equal(first[0], other[0]) for other in others)


def test_ranks_mix_a_batch_by_the_same_method() -> None:
    for number in range(30):
        methods = {
            make_mixing(mixup_probability=0.4).make_params(4, 8, 8, 0, number, first).method for first in (0, 4, 8)
        }
        assert len(methods) == 1


def test_half_precision_and_memory_format_are_kept() -> None:
    images = torch.rand(6, 3, 10, 10).to(torch.bfloat16).to(memory_format=torch.channels_last)
    for chances in (ALWAYS_MIXUP, ALWAYS_CUTMIX):
        mixed, targets = make_mixing(**chances)(images, torch.arange(6), 0, 0)
        assert mixed.dtype == torch.bfloat16 and targets.dtype == torch.float32
        assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("is_cutmix", [False, True])
def test_gpu_matches_cpu_without_host_synchronization(is_cutmix: bool) -> None:
    mix = make_mixing(**(ALWAYS_CUTMIX if is_cutmix else ALWAYS_MIXUP))
    images, labels = torch.rand(32, 3, 40, 40), torch.arange(32) % CLASSES
    batch = images.cuda(), labels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixed = mix(*batch, 0, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for tensor, expected in zip(mixed, mix(images, labels, 0, 0), strict=True):
        torch.testing.assert_close(tensor.cpu(), expected)
