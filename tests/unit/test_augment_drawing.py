"""What is drawn for a batch: a function of seed, epoch and number; shares, ranges, crops, and what needs RGB."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
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


def drawn(count: int = 500, spec: InputSpec = SPEC, epoch: int = 1, number: int = 2, **wanted: Any) -> AugmentParams:
    return make_params(augmented.config(**wanted), spec, epoch, number, count)


def differs(one: AugmentParams, other: AugmentParams) -> set[str]:
    return {name for name in one.__dataclass_fields__ if not np.array_equal(getattr(one, name), getattr(other, name))}


def test_it_is_a_function_of_seed_epoch_and_number() -> None:
    one = drawn(**FULL)
    assert not differs(one, drawn(**FULL))
    for other in ({"seed": 1}, {"epoch": 2}, {"number": 3}):
        assert differs(one, drawn(**{**FULL, **other})) == set(one.__dataclass_fields__)
    assert one.matrix.shape == (500, 3, 3) and one.operations.dtype == np.int8 and one.values.dtype == np.float32
    assert one.operations.shape == one.values.shape == (500, 2 + 4 + 4) and one.erase.dtype == np.int32
    assert len(np.unique(one.seeds)) == 500 and one.seeds.dtype == np.int64 and one.seeds.min() >= 0
    assert (one.values[one.operations == 0] == 0).all()
    assert len(one.select_rows(slice(3, 7))) == 4


def test_a_kind_of_change_leaves_the_others_as_they_were() -> None:
    one = drawn(**FULL)
    assert differs(one, drawn(**{**FULL, "erasing": 0.0})) == {"erase"}
    assert differs(one, drawn(**{**FULL, "blur": 0.0})) == {"operations", "values"}
    policy = drawn(**{**FULL, "policy": "none"})
    assert differs(one, policy) == {"matrix", "operations", "values"}
    np.testing.assert_array_equal(one.operations[:, 2:], policy.operations)
    without = drawn(**{**FULL, "rotate": 0.0, "policy": "none"})
    assert differs(policy, without) == {"matrix"}
    np.testing.assert_array_equal(
        drawn(crop_scale=0.3).matrix[:, 0, 0], np.abs(drawn(crop_scale=0.3, flip="true").matrix[:, 0, 0])
    )


def test_shares_and_ranges_are_those_of_the_config() -> None:
    what = drawn(20_000, **{**FULL, "policy": "none"})
    shares = {"Grayscale": 0.2, "Blur": 0.3, "Noise": 0.4, "Jpeg": 0.25}
    ranges = {"Brightness": (0.6, 1.4), "Contrast": (0.7, 1.3), "Color": (0.5, 1.5), "Hue": (-0.1, 0.1),
              "Blur": (0.1, 2.0), "Noise": (0.0, 25.0)}  # fmt: skip
    for name in {*shares, *ranges}:
        there = what.operations == OPERATION_IDS[name]
        assert abs(there.any(1).mean() - shares.get(name, 1.0)) < 0.012, name
        if name in ranges:
            low, high = ranges[name]
            assert kstest(what.values[there], "uniform", (low, high - low)).pvalue > 1e-3, name
    quality = what.values[what.operations == OPERATION_IDS["Jpeg"]]
    assert set(np.unique(quality)) == set(range(30, 91))
    places = np.stack(
        [(what.operations == OPERATION_IDS[n]).argmax(1) for n in ("Brightness", "Contrast", "Color", "Hue")]
    )
    orders, counts = np.unique(places, axis=1, return_counts=True)
    assert orders.shape[1] == 24 and np.abs(counts / 20_000 - 1 / 24).max() < 0.008  # an order for each image
    names = [OPERATION_IDS[n] for n in ("Grayscale", "Blur", "Noise", "Jpeg")]
    assert all(set(np.unique(what.operations[:, 4 + at])) == {0, n} for at, n in enumerate(names))


def test_erased_boxes_are_small_and_inside() -> None:
    boxes = drawn(20_000, erasing=0.35).erase
    there = boxes[:, 2] > 0
    assert abs(there.mean() - 0.35) < 0.012 and (boxes[~there] == 0).all()
    top, left, height, width = boxes[there].T
    assert min(top.min(), left.min()) == 0 and (top + height).max() == (left + width).max() == 40
    assert max(height.max(), width.max()) < 40
    share, ratio = height * width / 1600, height / width
    assert share.min() > 0.012 and share.max() < 0.22 and ratio.min() > 0.22 and ratio.max() < 4.2
    assert abs(np.log(ratio).mean()) < 0.05


def test_flips_mirror_half_of_them_and_shapes_lie_in_their_range() -> None:
    what = drawn(4000, InputSpec(40, 40, 40), flip="true")
    mirrored = what.matrix[:, 0, 0] == -1
    assert abs(mirrored.mean() - 0.5) < 0.04 and (what.matrix[:, 1, 1] == 1).all()
    both = drawn(4000, InputSpec(40, 40, 40), flip="true", vertical_flip="true").matrix[:, [0, 1], [0, 1]]
    assert abs(np.corrcoef(both.T)[0, 1]) < 0.06
    turned = drawn(4000, InputSpec(40, 40, 40), rotate=30.0).matrix
    angle = np.degrees(np.arctan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert kstest(angle, "uniform", (-30, 60)).pvalue > 1e-3
    centre = np.einsum("bij,j->bi", turned, [20, 20, 1])
    np.testing.assert_allclose(centre, np.tile([20, 20, 1], (4000, 1)), atol=1e-9)
    shifted = drawn(4000, InputSpec(40, 40, 40), translate=0.2).matrix[:, :2, 2]
    assert set(np.unique(shifted)) == set(range(-8, 9))
    zoomed = drawn(4000, InputSpec(40, 40, 40), zoom=0.5).matrix[:, 0, 0]
    assert kstest(1 / zoomed, "uniform", (0.5, 1.0)).pvalue > 1e-3
    seen = drawn(4000, InputSpec(40, 40, 40), perspective=0.5).matrix
    for x, y in ((0, 0), (40, 0), (40, 40), (0, 40)):  # of the output's corners nothing of the picture is seen
        u, v, w = np.einsum("bij,j->ib", seen, [x, y, 1])
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


def test_crops_are_spread_as_torchvisions() -> None:
    import torch
    from torchvision.transforms.v2 import RandomResizedCrop

    theirs = RandomResizedCrop(32, scale=(0.25, 1.0))
    torch.manual_seed(1)
    image = torch.zeros(3, 96, 96)
    there = np.array([[p[k] for k in ("top", "left", "height", "width")]
                      for p in (theirs.make_params([image]) for _ in range(3000))])  # fmt: skip
    mine = sample_crop_boxes(np.random.default_rng(4), 12_000, 96, 96, 0.25)
    for column in range(4):
        assert kstest(mine[:, column], there[:, column]).pvalue > 1e-3, column
    long = sample_crop_boxes(np.random.default_rng(4), 50, 300, 20, 0.9)  # no try fits: the middle of it
    np.testing.assert_array_equal(long, np.tile([(300 - 27) // 2, 0, 27, 20], (50, 1)))


def test_without_crops_every_window_of_what_is_stored_is_seen() -> None:
    what = drawn(3000, InputSpec(44, 43, 40))
    assert {(x, y) for x, y in what.matrix[:, :2, 2].tolist()} == {(x, y) for x in range(4) for y in range(5)}
    assert (what.matrix[:, [0, 1], [0, 1]] == 1).all()


@pytest.mark.parametrize("color", ["ycbcr", "lab"])
def test_what_presumes_rgb_is_left_out_of_other_colours(color: str) -> None:
    what, rgb = drawn(spec=InputSpec(48, 48, 40, color), **FULL), drawn(**FULL)
    assert set(np.unique(what.operations)) == {0, *(OPERATION_IDS[n] for n in ("Sharpness", "Blur", "Noise"))}
    np.testing.assert_array_equal(what.matrix, rgb.matrix)
    kept = what.operations != 0
    np.testing.assert_array_equal(what.operations[kept], rgb.operations[kept])


def augmentation(side: int = 48, size: int = 40, channels: int = 3, color: str = "rgb", **wanted: Any) -> Augmentation:
    return Augmentation(augmented.config(**wanted), augmented.image(side, size, channels, color), "cpu")


def images(count: int, side: int = 48, channels: int = 3) -> Any:
    made = np.stack([photos.made(n, side, side) for n in range(count)])
    return np.ascontiguousarray(np.concatenate([made, made], axis=3)[..., :channels])


@pytest.mark.parametrize(
    ("channels", "color"), [(3, "rgb"), (1, "gray"), (4, "rgb"), (6, "rgb"), (2, "gray"), (3, "lab")]
)
def test_any_channels_come_out_augmented_the_same_by_any_threads(channels: int, color: str) -> None:
    stored = images(24, 48, channels)
    before = stored.copy()
    one = augmentation(channels=channels, color=color, **FULL)
    what = one.make_params(3, 4, 24)
    found = one.apply_on_cpu(stored, what)
    assert (
        found.shape == (24, 40, 40, channels) and found.dtype == np.uint8 and one.size == 40 and not one.runs_on_device
    )
    np.testing.assert_array_equal(stored, before)
    assert len({image.tobytes() for image in found}) == 24
    with ThreadPoolExecutor(4) as pool:
        parts = [slice(start, start + 3) for start in range(0, 24, 3)]
        again = list(pool.map(lambda part: one.apply_on_cpu(stored[part], what.select_rows(part)), parts))
    np.testing.assert_array_equal(np.concatenate(again), found)
    other = augmentation(channels=channels, color=color, **FULL)
    np.testing.assert_array_equal(other.apply_on_cpu(stored, other.make_params(3, 4, 24)), found)


def test_off_changes_nothing_and_a_flip_mirrors_half() -> None:
    stored = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 3)).astype(np.uint8)
    off = augmentation(4, 4)
    np.testing.assert_array_equal(off.apply_on_cpu(stored, off.make_params(0, 0, 400)), stored)
    flips = augmentation(4, 4, flip="true")
    found = flips.apply_on_cpu(stored, flips.make_params(0, 0, 400))
    mirrored = (found == stored[:, :, ::-1]).all((1, 2, 3))
    assert (mirrored | (found == stored).all((1, 2, 3))).all() and 150 < mirrored.sum() < 250


def test_erased_boxes_have_the_mean_colour() -> None:
    one = augmentation(40, 40, erasing=1.0)
    what = one.make_params(0, 0, 8)
    found = one.apply_on_cpu(images(8, 40), what)
    for image, (top, left, height, width) in zip(found, what.erase, strict=True):
        assert (image[top : top + height, left : left + width] == (124, 116, 104)).all()  # 255 times ImageNet's mean


def test_on_a_gpu_the_batch_engine_works_and_pipelines_do_not() -> None:
    about = augmented.image(48, 40)
    assert Augmentation(augmented.config(), about, "cuda").runs_on_device
    assert not Augmentation(augmented.config(augment_pipeline="light"), about, "cuda").runs_on_device


def test_the_device_engine_draws_the_same() -> None:
    import torch

    one = augmentation(**{**FULL, "noise": 0.0, "jpeg_artifacts": 0.0, "perspective": 0.0, "zoom": 0.0})
    what, stored = one.make_params(0, 0, 16), images(16)
    found = one.apply_on_device(torch.from_numpy(stored), what).numpy().astype(int)
    assert found.shape == (16, 40, 40, 3)
    assert (
        np.abs(found - one.apply_on_cpu(stored, what)).mean()
        < 4
        < np.abs(found - one.apply_on_cpu(stored[::-1], what)).mean()
    )
