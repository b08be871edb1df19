"""Policies: every table, magnitude, sign and pixel is torchvision's; what is drawn how often; what presets narrow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import augmented
import numpy as np
import photos
import pytest
import torch
from scipy.stats import chi2_contingency
from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy, InterpolationMode, RandAugment, TrivialAugmentWide

from imagemill.components.train.augment import policy
from imagemill.components.train.augment.cpu_engine import CpuEngine
from imagemill.components.train.augment.params import (
    OPERATION_IDS,
    AugmentParams,
    InputSpec,
    convert_policy_ops,
    make_params,
)
from imagemill.components.train.augment.policy import (
    AUTO_POLICIES,
    NAMES,
    PolicyOps,
    make_matrix,
    restrict_ops,
    sample_ops,
)

SIZE = 64
SETS = ("imagenet", "cifar10", "svhn")
SMOOTH = InterpolationMode.BILINEAR
THEIRS: dict[str, Any] = {
    "randaugment": RandAugment(interpolation=SMOOTH), "trivialaugment": TrivialAugmentWide(interpolation=SMOOTH),
    **{name: AutoAugment(AutoAugmentPolicy(name), interpolation=SMOOTH) for name in SETS},
}  # fmt: skip
GEOMETRY = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def config(name: str, **options: Any) -> Any:
    kind = {"policy_set": name, "policy": "autoaugment"} if name in SETS else {"policy": name}
    return augmented.config(**{**kind, **options})


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("size", [32, 64, 224, 381])
def test_magnitudes_equal_those_of_torchvision(name: str, size: int) -> None:
    space = THEIRS[name]._AUGMENTATION_SPACE
    table = policy.compute_magnitudes("autoaugment" if name in SETS else name, size)
    bins = 10 if name in SETS else 31
    assert table.shape == (len(NAMES), bins)
    for operation, (values, signed) in space.items():
        index = NAMES.index(operation)
        magnitudes = values(bins, size, size)
        expected = np.zeros(bins) if magnitudes is None else magnitudes.double().numpy()
        np.testing.assert_array_equal(table[index], expected, operation)
        assert signed == policy._IS_SIGNED[index]


@pytest.mark.parametrize("name", SETS)
def test_sub_policies_equal_those_of_torchvision(name: str) -> None:
    expected = [
        tuple((operation, share, -1 if magnitude is None else magnitude) for operation, share, magnitude in pair)
        for pair in THEIRS[name]._policies
    ]
    assert list(AUTO_POLICIES[name]) == expected


def count_torchvision(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[Any, ...]]:
    """Count what torchvision samples for `count` images: tuples of (operation, value)."""
    transform, calls = THEIRS[name], []
    monkeypatch.setattr(
        transform, "_apply_image_or_video_transform", lambda image, n, m, **_: calls.append((n, m)) or image
    )
    image, counts = torch.zeros((3, SIZE, SIZE), dtype=torch.uint8), Counter[tuple[Any, ...]]()
    torch.manual_seed(5)
    for _ in range(count):
        calls.clear()
        transform(image)
        counts[tuple(make_key(*call) for call in calls if call[0] != "Identity")] += 1
    return counts


def make_key(name: str, value: float) -> tuple[str, float]:
    return name, round(float(value), 4) + 0.0


def count_ours(name: str, count: int) -> Counter[tuple[Any, ...]]:
    chosen = sample_ops(config(name), np.random.default_rng(11), count, SIZE)
    return Counter(
        tuple(make_key(NAMES[index], value) for index, value in zip(*row, strict=True) if NAMES[index] != "Identity")
        for row in zip(chosen.indices.tolist(), chosen.magnitudes.tolist(), strict=True)
    )


@pytest.mark.parametrize("name", THEIRS)
def test_operations_are_distributed_as_in_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square over whole outcomes, sequence and values and signs, rare ones counted together."""
    count = 6000
    our_counts, torchvision_counts = count_ours(name, 4 * count), count_torchvision(name, count, monkeypatch)
    common = [key for key in our_counts | torchvision_counts if our_counts[key] + torchvision_counts[key] >= 40]
    table = np.array([[counts[key] for key in common] for counts in (our_counts, torchvision_counts)])
    rest = np.array([[sum(counts.values())] for counts in (our_counts, torchvision_counts)]) - table.sum(
        1, keepdims=True
    )
    table = np.hstack([table, rest]) if rest.all() else table
    assert len(common) > 15 and chi2_contingency(table).pvalue > 1e-3
    assert not set(torchvision_counts) - set(our_counts) or name == "randaugment"  # of whose pairs there are many
    if name == "trivialaugment":
        assert (
            set(our_counts) >= set(torchvision_counts) and len(our_counts) > 300
        )  # every operation at every magnitude and sign
    skewed = table.copy()
    skewed[0, 0] += 0.06 * table[0].sum()  # the test would have seen one operation drawn more often
    assert chi2_contingency(skewed).pvalue < 1e-3


def single(name: str, value: float) -> PolicyOps:
    return PolicyOps(np.array([[NAMES.index(name)]]), np.array([[value]]))


def apply_ours(pixels: Any, chosen: PolicyOps) -> tuple[Any, Any]:
    """Return the pixels that the operations make of an image, as int64, and the ids of those on colors."""
    operations, values = convert_policy_ops(chosen)
    params = AugmentParams(
        make_matrix(chosen, SIZE), operations, values, np.zeros(1, np.int64), np.zeros((1, 4), np.int32)
    )
    return CpuEngine(SIZE, 3, np.zeros(3, np.uint8))(pixels[None], params)[0].astype(int), operations


def values_of(name: str) -> Iterator[tuple[str, float]]:
    table = policy.compute_magnitudes("autoaugment" if name in SETS else name, SIZE)
    for operation, (_, signed) in THEIRS[name]._AUGMENTATION_SPACE.items():
        for index in (0, 5, table.shape[1] - 1):
            for sign in (1, -1) if signed else (1,):
                yield operation, sign * table[NAMES.index(operation), index]


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment", "svhn"])
def test_each_operation_gives_the_pixels_of_torchvision(name: str) -> None:
    pixels = np.ascontiguousarray(photos.made(5, SIZE, SIZE) // 2 + 40)
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    for operation, value in values_of(name):
        chosen = single(operation, value)
        expected = THEIRS[name]._apply_image_or_video_transform(image, operation, value, interpolation=SMOOTH,
                                                                fill=THEIRS[name]._fill)  # fmt: skip
        actual, operations = apply_ours(pixels, chosen)
        difference = np.abs(actual - expected.numpy().transpose(1, 2, 0))
        limit = 1.5 if operation in GEOMETRY else 0.5 if operation in ("Color", "Sharpness") else 0
        assert difference.mean() <= limit, (operation, value, difference.mean())
        assert (operations[0, 0] == 0) == (operation in (*GEOMETRY, "Identity"))


def test_geometric_operations_are_applied_in_order() -> None:
    """Folded into one matrix: against torchvision's two, where both see pixels."""
    pixels = np.ascontiguousarray(photos.made(5, SIZE, SIZE))
    expected = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    steps = [("ShearX", 0.2), ("Rotate", -20.0), ("TranslateY", 7.6)]
    for operation, value in steps:
        expected = THEIRS["randaugment"]._apply_image_or_video_transform(expected, operation, value, SMOOTH, {})
    chosen = PolicyOps(np.array([[NAMES.index(n) for n, _ in steps]]), np.array([[v for _, v in steps]]))
    difference = np.abs(apply_ours(pixels, chosen)[0] - expected.numpy().transpose(1, 2, 0))[24:40, 24:40]
    assert difference.mean() < 6  # theirs is smoothed three times
    other = PolicyOps(chosen.indices[:, ::-1], chosen.magnitudes[:, ::-1])
    assert np.abs(make_matrix(other, SIZE) - make_matrix(chosen, SIZE)).max() > 1


@pytest.mark.parametrize("preset", ["ocr", "medical"])
@pytest.mark.parametrize("name", THEIRS)
def test_presets_limit_geometry_and_no_policy_mirrors(preset: str, name: str) -> None:
    limits = policy.GEOMETRY_LIMITS[preset]
    free = sample_ops(config(name), np.random.default_rng(3), 3000, SIZE)
    bound = restrict_ops(free, preset, SIZE)
    limit_by_operation = {"Rotate": limits.rotate, "Shear": limits.shear, "Translate": limits.translate * SIZE}
    for index, operation in enumerate(NAMES):
        magnitudes, free_magnitudes = (np.abs(ops.magnitudes[ops.indices == index]) for ops in (bound, free))
        limit = next((value for key, value in limit_by_operation.items() if operation.startswith(key)), np.inf)
        np.testing.assert_array_equal(magnitudes, np.minimum(free_magnitudes, limit))
    np.testing.assert_array_equal(np.sign(bound.magnitudes), np.sign(free.magnitudes))
    for preset_ in (preset, "photo"):
        matrix = make_matrix(restrict_ops(free, preset_, SIZE), SIZE)
        assert (np.linalg.det(matrix[:, :2, :2]) > 0).all()
    params = make_params(config(name, preset=preset), InputSpec(SIZE, SIZE, SIZE), 0, 0, 500)
    turned = np.degrees(np.abs(np.arctan2(params.matrix[:, 1, 0], params.matrix[:, 1, 1])))
    assert turned.max() <= 2.3 * limits.rotate + 2 * np.degrees(np.arctan(limits.shear))  # of two operations


@pytest.mark.parametrize("name", THEIRS)
def test_preset_fashion_keeps_colors(name: str) -> None:
    """Only brightness, contrast and sharpness remain; the other parameters are as without the preset."""
    params = make_params(config(name, preset="fashion"), InputSpec(SIZE, SIZE, SIZE), 0, 0, 800)
    assert set(np.unique(params.operations)) <= {
        0,
        *(OPERATION_IDS[n] for n in ("Brightness", "Contrast", "Sharpness")),
    }
    free = make_params(config(name), InputSpec(SIZE, SIZE, SIZE), 0, 0, 800)
    assert (free.operations == OPERATION_IDS["Equalize"]).any()
    np.testing.assert_array_equal(free.matrix, params.matrix)
    is_applied = params.operations != 0
    np.testing.assert_array_equal(free.values[is_applied], params.values[is_applied])
