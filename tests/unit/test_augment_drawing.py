"""Sampled parameters of a batch: dependence on seed, epoch and number; probabilities, ranges, crops, RGB operations."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import augmented
import numpy as np
import photos
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from imagemill.components.train.augment.augmentation import Augmentation
from imagemill.components.train.augment.params import (
    CROP_RATIO,
    OPERATION_IDS,
    AugmentParams,
    InputSpec,
    make_params,
    sample_crop_boxes,
)

FULL: dict[str, Any] = {
    "crop_scale": 0.3, "flip": "true", "vertical_flip": "true", "rotate": 15.0, "translate": 0.1, "zoom": 0.2,
    "shear": 8.0, "perspective": 0.2, "brightness": 0.4, "contrast": 0.3, "saturation": 0.5, "hue": 0.1,
    "grayscale": 0.2, "blur": 0.3, "noise": 0.4, "jpeg_artifacts": 0.25, "erasing": 0.35, "policy": "randaugment",
}  # fmt: skip
SPEC = InputSpec(48, 48, 40)


def draw_params(
    count: int = 500, spec: InputSpec = SPEC, epoch: int = 1, number: int = 2, **options: Any
) -> AugmentParams:
    return make_params(augmented.config(**options), spec, epoch, number, count)


def find_differences(first: AugmentParams, second: AugmentParams) -> set[str]:
    return {
        name for name in first.__dataclass_fields__ if not np.array_equal(getattr(first, name), getattr(second, name))
    }


def test_parameters_depend_on_seed_epoch_and_batch_number_only() -> None:
    params = draw_params(**FULL)
    assert not find_differences(params, draw_params(**FULL))
    for change in ({"seed": 1}, {"epoch": 2}, {"number": 3}):
        assert find_differences(params, draw_params(**{**FULL, **change})) == set(params.__dataclass_fields__)
    assert (
        params.matrix.shape == (500, 3, 3) and params.operations.dtype == np.int8 and params.values.dtype == np.float32
    )
    assert params.operations.shape == params.values.shape == (500, 2 + 4 + 4) and params.erase.dtype == np.int32
    assert len(np.unique(params.seeds)) == 500 and params.seeds.dtype == np.int64 and params.seeds.min() >= 0
    assert (params.values[params.operations == 0] == 0).all()
    assert len(params.select_rows(slice(3, 7))) == 4


def test_changing_one_option_changes_its_own_parameters_only() -> None:
    full = draw_params(**FULL)
    assert find_differences(full, draw_params(**{**FULL, "erasing": 0.0})) == {"erase"}
    assert find_differences(full, draw_params(**{**FULL, "blur": 0.0})) == {"operations", "values"}
    without_policy = draw_params(**{**FULL, "policy": "none"})
    assert find_differences(full, without_policy) == {"matrix", "operations", "values"}
    np.testing.assert_array_equal(full.operations[:, 2:], without_policy.operations)
    without_rotation = draw_params(**{**FULL, "rotate": 0.0, "policy": "none"})
    assert find_differences(without_policy, without_rotation) == {"matrix"}
    np.testing.assert_array_equal(
        draw_params(crop_scale=0.3).matrix[:, 0, 0], np.abs(draw_params(crop_scale=0.3, flip="true").matrix[:, 0, 0])
    )


def test_shares_and_ranges_are_those_of_the_config() -> None:
    params = draw_params(20_000, **{**FULL, "policy": "none"})
    shares = {"Grayscale": 0.2, "Blur": 0.3, "Noise": 0.4, "Jpeg": 0.25}
    ranges = {"Brightness": (0.6, 1.4), "Contrast": (0.7, 1.3), "Color": (0.5, 1.5), "Hue": (-0.1, 0.1),
              "Blur": (0.1, 2.0), "Noise": (0.0, 25.0)}  # fmt: skip
    for name in {*shares, *ranges}:
        is_drawn = params.operations == OPERATION_IDS[name]
        assert abs(is_drawn.any(1).mean() - shares.get(name, 1.0)) < 0.012, name
        if name in ranges:
            low, high = ranges[name]
            assert kstest(params.values[is_drawn], "uniform", (low, high - low)).pvalue > 1e-3, name
    quality = params.values[params.operations == OPERATION_IDS["Jpeg"]]
    assert set(np.unique(quality)) == set(range(30, 91))
    jitter = [OPERATION_IDS[name] for name in ("Brightness", "Contrast", "Color", "Hue")]
    places = np.stack([(params.operations == operation).argmax(1) for operation in jitter])
    orders, counts = np.unique(places, axis=1, return_counts=True)
    assert orders.shape[1] == 24 and np.abs(counts / 20_000 - 1 / 24).max() < 0.008  # an order for each image
    names = [OPERATION_IDS[n] for n in ("Grayscale", "Blur", "Noise", "Jpeg")]
    assert all(set(np.unique(params.operations[:, 4 + slot])) == {0, n} for slot, n in enumerate(names))


def test_erased_boxes_are_small_and_inside() -> None:
    boxes = draw_params(20_000, erasing=0.35).erase
    has_box = boxes[:, 2] > 0
    assert abs(has_box.mean() - 0.35) < 0.012 and (boxes[~has_box] == 0).all()
    top, left, height, width = boxes[has_box].T
    assert min(top.min(), left.min()) == 0 and (top + height).max() == (left + width).max() == 40
    assert max(height.max(), width.max()) < 40
    share, ratio = height * width / 1600, height / width
    assert share.min() > 0.012 and share.max() < 0.22 and ratio.min() > 0.22 and ratio.max() < 4.2
    assert abs(np.log(ratio).mean()) < 0.05


def test_flips_mirror_half_of_the_images_and_geometry_lies_in_its_range() -> None:
    draw = partial(draw_params, 4000, InputSpec(40, 40, 40))
    params = draw(flip="true")
    mirrored = params.matrix[:, 0, 0] == -1
    assert abs(mirrored.mean() - 0.5) < 0.04 and (params.matrix[:, 1, 1] == 1).all()
    signs = draw(flip="true", vertical_flip="true").matrix[:, [0, 1], [0, 1]]
    assert abs(np.corrcoef(signs.T)[0, 1]) < 0.06
    turned = draw(rotate=30.0).matrix
    angle = np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert kstest(angle, "uniform", (-30, 60)).pvalue > 1e-3
    center = np.einsum("bij,j->bi", turned, [20, 20, 1])
    np.testing.assert_allclose(center, np.tile([20, 20, 1], (4000, 1)), atol=1e-9)
    shifted = draw(translate=0.2).matrix[:, :2, 2]
    assert set(np.unique(shifted)) == set(range(-8, 9))
    zoomed = draw(zoom=0.5).matrix[:, 0, 0]
    assert kstest(1 / zoomed, "uniform", (0.5, 1.0)).pvalue > 1e-3
    tilted = draw(perspective=0.5).matrix
    for x, y in ((0, 0), (40, 0), (40, 40), (0, 40)):  # of the output's corners nothing of the picture is seen
        u, v, w = np.einsum("bij,j->ib", tilted, [x, y, 1])
        assert (w > 0).all() and ((np.abs(u / w - 20) >= 20 - 1e-9) | (np.abs(v / w - 20) >= 20 - 1e-9)).all()


@given(st.integers(0, 10**6), st.integers(1, 64), st.integers(1, 64), st.floats(0.05, 1))
@settings(max_examples=100, deadline=None)
def test_crops_lie_inside_and_have_the_area_and_ratio_asked_for(
    seed: int, height: int, width: int, smallest: float
) -> None:
    boxes = sample_crop_boxes(np.random.default_rng(seed), 20, height, width, smallest)
    top, left, h, w = boxes.T
    assert boxes.min() >= 0 and min(h.min(), w.min()) >= 1
    assert (top + h <= height).all() and (left + w <= width).all()
    if height == width == 64:
        assert ((h + 0.5) * (w + 0.5) >= smallest * 64 * 64 - 64).all()
        assert (CROP_RATIO[0] - 0.1 <= w / h).all() and (w / h <= CROP_RATIO[1] + 0.2).all()


def test_crops_are_distributed_as_in_torchvision() -> None:
    import torch
    from torchvision.transforms.v2 import RandomResizedCrop

    transform = RandomResizedCrop(32, scale=(0.25, 1.0))
    torch.manual_seed(1)
    image = torch.zeros(3, 96, 96)
    expected = np.array([[p[k] for k in ("top", "left", "height", "width")]
                      for p in (transform.make_params([image]) for _ in range(3000))])  # fmt: skip
    boxes = sample_crop_boxes(np.random.default_rng(4), 12_000, 96, 96, 0.25)
    for column in range(4):
        assert kstest(boxes[:, column], expected[:, column]).pvalue > 1e-3, column
    long = sample_crop_boxes(np.random.default_rng(4), 50, 300, 20, 0.9)  # no try fits: the middle of it
    np.testing.assert_array_equal(long, np.tile([(300 - 27) // 2, 0, 27, 20], (50, 1)))


def test_without_crops_every_window_of_the_stored_image_is_used() -> None:
    params = draw_params(3000, InputSpec(44, 43, 40))
    assert {(x, y) for x, y in params.matrix[:, :2, 2].tolist()} == {(x, y) for x in range(4) for y in range(5)}
    assert (params.matrix[:, [0, 1], [0, 1]] == 1).all()


@pytest.mark.parametrize("color", ["ycbcr", "lab"])
def test_operations_for_rgb_are_left_out_of_other_color_spaces(color: str) -> None:
    params, rgb = draw_params(spec=InputSpec(48, 48, 40, color), **FULL), draw_params(**FULL)
    assert set(np.unique(params.operations)) == {0, *(OPERATION_IDS[n] for n in ("Sharpness", "Blur", "Noise"))}
    np.testing.assert_array_equal(params.matrix, rgb.matrix)
    is_applied = params.operations != 0
    np.testing.assert_array_equal(params.operations[is_applied], rgb.operations[is_applied])


def make_augmentation(
    side: int = 48, size: int = 40, channels: int = 3, color: str = "rgb", **options: Any
) -> Augmentation:
    return Augmentation(augmented.config(**options), augmented.image(side, size, channels, color))


def make_images(count: int, side: int = 48, channels: int = 3) -> Any:
    photographs = np.stack([photos.made(n, side, side) for n in range(count)])
    return np.ascontiguousarray(np.concatenate([photographs, photographs], axis=3)[..., :channels])


@pytest.mark.parametrize(
    ("channels", "color"), [(3, "rgb"), (1, "gray"), (4, "rgb"), (6, "rgb"), (2, "gray"), (3, "lab")]
)
def test_augmentation_of_any_channels_is_the_same_by_any_number_of_threads(channels: int, color: str) -> None:
    stored = make_images(24, 48, channels)
    before = stored.copy()
    augmentation = make_augmentation(channels=channels, color=color, **FULL)
    params = augmentation.make_params(3, 4, 24)
    augmented_images = augmentation.apply(stored, params)
    assert augmented_images.shape == (24, 40, 40, channels) and augmented_images.dtype == np.uint8
    assert augmentation.size == 40
    np.testing.assert_array_equal(stored, before)
    assert len({image.tobytes() for image in augmented_images}) == 24
    with ThreadPoolExecutor(4) as pool:
        parts = [slice(start, start + 3) for start in range(0, 24, 3)]
        by_threads = pool.map(lambda part: augmentation.apply(stored[part], params.select_rows(part)), parts)
        np.testing.assert_array_equal(np.concatenate(list(by_threads)), augmented_images)
    second = make_augmentation(channels=channels, color=color, **FULL)
    np.testing.assert_array_equal(second.apply(stored, second.make_params(3, 4, 24)), augmented_images)


def test_off_changes_nothing_and_a_flip_mirrors_half() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 3)).astype(np.uint8)
    off = make_augmentation(4, 4)
    np.testing.assert_array_equal(off.apply(stored, off.make_params(0, 0, 400)), stored)
    flips = make_augmentation(4, 4, flip="true")
    flipped = flips.apply(stored, flips.make_params(0, 0, 400))
    mirrored = (flipped == stored[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (flipped == stored).all((1, 2, 3))).all() and 150 < mirrored.sum() < 250


def test_erased_boxes_have_the_mean_color() -> None:
    eraser = make_augmentation(40, 40, erasing=1.0)
    params = eraser.make_params(0, 0, 8)
    erased = eraser.apply(make_images(8, 40), params)
    for image, (top, left, height, width) in zip(erased, params.erase, strict=True):
        assert (image[top : top + height, left : left + width] == (124, 116, 104)).all()  # 255 times ImageNet's mean
