"""Augmentation of batches on torch's CPU device, compared with torchvision operation by operation, with each image
alone, and with the CPU engine. The same code runs on a GPU."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from augmented import apply_torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.train.augment.augmentation import Augmentation
from imagemill.components.train.augment.cpu_engine import CpuEngine
from imagemill.components.train.augment.device_colors import FUNCTIONS, add_noise
from imagemill.components.train.augment.device_engine import MAX_SAMPLES, DeviceEngine, compute_reductions
from imagemill.components.train.augment.params import OPERATION_IDS, OPERATIONS, AugmentParams, make_seed_params
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.recipe_values import PLAIN

SIZE = 61
"""Odd, and no multiple of 8 or 16."""
Pixels = npt.NDArray[np.uint8]


pytestmark = pytest.mark.usefixtures("one_thread")


def make_photo(seed: int, height: int = SIZE, width: int = SIZE) -> Pixels:
    """Return an image with detail at every scale and some values at both ends of the range."""
    random = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for side in (4, 8, 16, 32):
        coarse = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
        image += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / side**0.6
    return np.clip(image / image.max() * 300 - 20, 0, 255).astype(np.uint8)


def make_photos(count: int, height: int = SIZE, width: int = SIZE) -> Pixels:
    return np.stack([make_photo(seed, height, width) for seed in range(count)])


def make_params(count: int, operations: Any = None, values: Any = None, **others: Any) -> AugmentParams:
    """Return parameters of images of `SIZE` without geometry, with these operations [B] or [B, K]."""
    base = make_seed_params(0, 0, 0, count)
    if operations is not None:
        names = np.array(operations, dtype=object).reshape(count, -1)
        ids = np.vectorize(OPERATION_IDS.__getitem__)(names).astype(np.int8)
        base = replace(base, operations=ids, values=np.asarray(values, np.float32).reshape(names.shape))
    return replace(base, **others)


def apply(images: Pixels, params: AugmentParams, size: int = SIZE, colors: int = 3, channels: int = 3) -> Pixels:
    """Augment a batch on torch's CPU device."""
    engine = DeviceEngine(size, colors, np.arange(100, 100 + channels, dtype=np.uint8), "cpu")
    output = engine(torch.from_numpy(images), params)
    assert output.dtype == torch.uint8 and output.is_contiguous()
    return output.numpy()


def absolute_difference(first: Pixels, second: Pixels) -> npt.NDArray[np.int64]:
    return np.abs(first.astype(np.int64) - second.astype(np.int64))


VALUES = {
    "Brightness": (0.0, 0.1, 0.7, 1.0, 1.3, 1.9), "Contrast": (0.0, 0.1, 0.7, 1.0, 1.3, 1.9),
    "Color": (0.0, 0.1, 0.7, 1.0, 1.3, 1.9), "Hue": (-0.5, -0.21, 0.0, 0.07, 0.33, 0.5), "Grayscale": (0.0,) * 6,
    "Posterize": (0, 1, 4, 6, 7, 8), "Solarize": (0, 17, 60, 128.5, 200, 255), "Invert": (0.0,) * 6,
    "AutoContrast": (0.0,) * 6, "Equalize": (0.0,) * 6, "Sharpness": (0.0, 0.1, 0.7, 1.0, 1.3, 1.9),
    "Blur": (0.1, 0.5, 0.9, 1.3, 1.7, 2.0),
}  # fmt: skip
EXACT = ("Brightness", "Grayscale", "Posterize", "Solarize", "Invert", "AutoContrast", "Equalize")
"""Tables, or whole numbers. The others may round a float32's last digit otherwise: 1 of 255, in one of a thousand."""


def assert_agrees(output: Pixels, expected: Pixels, name: str) -> None:
    difference = absolute_difference(output, expected)
    assert difference.max() <= (0 if name in EXACT else 1), name
    assert (difference > 0).mean() <= 1e-3, name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VALUES)
def test_operation_matches_torchvision(name: str, channels: int) -> None:
    images = np.ascontiguousarray(make_photos(6)[..., :channels])
    images[0, :, :, 0] = 77  # of one value: nothing to stretch or equalize
    output = apply(images, make_params(6, [name] * 6, VALUES[name]), colors=channels, channels=channels)
    if channels == 1 and name in ("Color", "Hue", "Grayscale"):
        assert (output == images).all()
        return
    expected = [apply_torchvision(image, name, value) for image, value in zip(images, VALUES[name], strict=True)]
    assert_agrees(output, np.stack(expected), name)
    assert name in ("Color", "Grayscale") or (output[1:] != images[1:]).any()


def test_every_operation_has_a_reference() -> None:
    assert {*VALUES, "None", "Noise", "Jpeg"} == set(OPERATIONS)
    assert {*FUNCTIONS, "None", "Noise"} == set(OPERATIONS)


@pytest.mark.parametrize("quality", [5, 30, 50, 75, 90, 100])
@pytest.mark.parametrize("side", [SIZE, 64])
def test_jpeg_matches_libjpeg_up_to_rounding(quality: int, side: int) -> None:
    """Pillow's encoder with accurate transforms: half a level on average, and 1% of the values more than 8 apart (a
    coefficient that lies between two steps may go either way)."""
    for channels in (1, 3):
        images = np.stack([make_photo(seed, side, side) for seed in range(6)])[..., :channels]
        expected = []
        for image in images:
            out = io.BytesIO()
            Image.fromarray(image.squeeze()).save(out, "JPEG", quality=quality, subsampling=2)
            expected.append(np.asarray(Image.open(out)).reshape(image.shape))
        planes = torch.from_numpy(images).permute(0, 3, 1, 2)
        output = FUNCTIONS["Jpeg"](planes, torch.full((6,), float(quality))).permute(0, 2, 3, 1).numpy()
        difference = absolute_difference(output, np.stack(expected))
        assert difference.mean() < 0.6 and (difference > 8).mean() < (0.01 if quality > 5 else 0.03)
        assert quality > 75 or difference.mean() < 0.2 * absolute_difference(images, np.stack(expected)).mean(), (
            "it did something"
        )


def test_noise_has_the_given_deviation_and_depends_on_the_seed_only() -> None:
    gray = torch.full((3, 3, 200, 200), 128, dtype=torch.uint8)
    sigma, seeds = torch.tensor([10.0, 25.0, 10.0]), torch.tensor([7, 2**62 + 5, 8])
    noise = add_noise(gray, sigma, seeds).double() - 128
    for plane, deviation in zip(noise, sigma.tolist(), strict=True):
        # Cut towards zero, as torchvision does: half a step less on either side.
        assert abs(float(plane.mean())) < 4 * deviation / math.sqrt(plane.numel())
        assert deviation - 0.7 < float(plane.std()) < deviation
        within = float((plane.abs() <= deviation).double().mean())
        assert abs(within - math.erf((math.floor(deviation) + 1) / deviation / math.sqrt(2))) < 0.01
        neighbors = torch.corrcoef(torch.stack([plane[:, :, 1:].flatten(), plane[:, :, :-1].flatten()]))
        assert abs(float(neighbors[0, 1])) < 0.01
    same = add_noise(gray[:1], sigma[:1], seeds[:1])
    assert torch.equal(same[0].double() - 128, noise[0])
    distant = add_noise(gray[:1], sigma[:1], torch.tensor([7 + 2**40])).double() - 128
    for other in (noise[2], distant):
        between = torch.corrcoef(torch.stack([noise[0].flatten(), other.flatten()]))
        assert abs(float(between[0, 1])) < 0.01, "seeds that are near by one digit have nothing in common"


# Geometry: matrices made of torchvision's own parameters.


def center_matrix(matrix: npt.ArrayLike, height: int, width: int) -> npt.NDArray[np.float64]:
    """Return a matrix about the image's middle, as torchvision has it, in coordinates from the corner."""
    shift = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
    return shift @ np.asarray(matrix, np.float64) @ np.linalg.inv(shift)


@pytest.mark.parametrize(
    ("angle", "translate", "scale", "shear"),
    [(0, (7, -4), 1.0, (0, 0)), (30, (0, 0), 1.0, (0, 0)), (-135, (3, 9), 1.2, (8, -5)), (10, (0, 0), 0.85, (-25, 0))],
)
def test_affine_matches_torchvision(angle: float, translate: Any, scale: float, shear: Any) -> None:
    from torchvision.transforms.functional import _get_inverse_affine_matrix

    images = make_photos(2)
    inverse = _get_inverse_affine_matrix([0.0, 0.0], angle, list(translate), scale, list(shear))
    matrix = center_matrix(np.array([*inverse, 0, 0, 1]).reshape(3, 3), SIZE, SIZE)
    output = apply(images, make_params(2, matrix=np.stack([matrix] * 2)))
    expected = tv.affine(
        torch.from_numpy(images).permute(0, 3, 1, 2), angle, list(translate), scale, list(shear),
        interpolation=InterpolationMode.BILINEAR,
    )  # fmt: skip
    difference = absolute_difference(output, expected.permute(0, 2, 3, 1).numpy())
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    assert (output == 0).any() and (output != images).any()


def test_perspective_matches_torchvision() -> None:
    from torchvision.transforms.functional import _get_perspective_coeffs

    images, end = make_photos(1), SIZE - 1
    corners = [[0, 0], [end, 0], [end, end], [0, end]]
    moved = [[9, 4], [end - 12, 2], [end - 3, end - 8], [5, end - 15]]
    matrix = np.array([*_get_perspective_coeffs(corners, moved), 1.0]).reshape(3, 3)
    output = apply(images, make_params(1, matrix=matrix[None]))
    expected = tv.perspective(torch.from_numpy(images).permute(0, 3, 1, 2), corners, moved).permute(0, 2, 3, 1).numpy()
    difference = absolute_difference(output, expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def crop(top: float, left: float, height: float, width: float, size: int) -> npt.NDArray[np.float64]:
    return np.array([[width / size, 0, left], [0, height / size, top], [0, 0, 1]])


@pytest.mark.parametrize(
    ("box", "size", "mean_difference", "max_difference"),
    [
        ((0, 0, 90, 120), 130, 0.01, 1),  # made larger: the same, to the border
        ((11, 20, 50, 61), 96, 0.01, 1),  # but where the image goes on torchvision stops at the crop
        ((3, 5, 80, 110), 96, 0.9, 24),  # a little smaller: plain bilinear, torchvision's is a little softer
        ((0, 0, 90, 120), 48, 0.6, 12),  # from 1.3 on samples are averaged
        ((0, 0, 90, 120), 30, 0.6, 12),
        ((2, 1, 85, 118), 17, 0.8, 12),
    ],
)
def test_resized_crop_matches_torchvision(
    box: tuple[int, ...], size: int, mean_difference: float, max_difference: int
) -> None:
    """As it computes in float32; on uint8 it rounds between rows and columns."""
    images = make_photos(2, 90, 120)
    output = apply(images, make_params(2, matrix=np.stack([crop(*box, size)] * 2)), size)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    expected = tv.resized_crop(planes, *box, [size, size], antialias=True).round().permute(0, 2, 3, 1)
    difference = absolute_difference(output, expected.numpy())
    if box[0]:
        difference = difference[:, 1:-1, 1:-1]
    assert difference.mean() < mean_difference and difference.max() <= max_difference


def test_downscaling_is_antialiased() -> None:
    """Stripes of two pixels are gray at a fifth of the size; under a plain bilinear filter they would be stripes."""
    stripes = np.zeros((1, 160, 160, 3), np.uint8)
    stripes[:, :, ::4], stripes[:, :, 1::4] = 255, 255
    output = apply(stripes, make_params(1, matrix=crop(0, 0, 160, 160, 31)[None]), 31)
    assert np.abs(output[:, 2:-2, 2:-2].astype(int) - 127).max() < 16
    turned = center_matrix([[0, -1, 0], [1, 0, 0], [0, 0, 1]], 160, 160) @ crop(0, 0, 160, 160, 31)
    assert compute_reductions(turned[None], 31)[0] == pytest.approx([160 / 31] * 2)
    output = apply(stripes, make_params(1, matrix=turned[None]), 31)
    assert np.abs(output[:, 2:-2, 2:-2].astype(int) - 127).max() < 16
    tiny = apply(np.full((1, 400, 400, 3), 90, np.uint8), make_params(1, matrix=crop(0, 0, 400, 400, 2)[None]), 2)
    assert (tiny == 90).all() and compute_reductions(crop(0, 0, 400, 400, 2)[None], 2).max() > MAX_SAMPLES


def test_flips_and_integer_shifts_are_exact_alone_and_in_a_mixed_batch() -> None:
    """Mirrored and moved images, alone (copied) and beside one that is turned (interpolated): the same to the bit."""
    images = make_photos(5, 70, 80)
    shifted = np.array([[1, 0, 4], [0, 1, 9], [0, 0, 1]], float)
    flipped_horizontally = np.array([[-1, 0, SIZE + 4], [0, 1, 0], [0, 0, 1]], float)
    flipped_vertically = np.array([[1, 0, 2], [0, -1, 70], [0, 0, 1]], float)
    turned = center_matrix([[0.9, -0.3, 0], [0.3, 0.9, 0], [0, 0, 1]], 70, 80)
    matrix = np.stack([shifted, flipped_horizontally, flipped_vertically, 2 * flipped_horizontally, turned])
    plain = apply(images[:4], make_params(4, matrix=matrix[:4]))
    mixed = apply(images, make_params(5, matrix=matrix))
    assert (plain == mixed[:4]).all()
    for row in range(4):
        assert (plain[row] == apply(images[row : row + 1], make_params(1, matrix=matrix[row : row + 1]))).all()
    assert (plain[0] == images[0, 9:, 4:][:SIZE, :SIZE]).all()
    assert (plain[1] == images[1, :SIZE, 4 : SIZE + 4][:, ::-1]).all()
    assert (plain[2] == images[2, 70 - SIZE :, 2:][::-1, :SIZE]).all()
    assert (plain[3] == images[3, :SIZE, 4 : SIZE + 4][:, ::-1]).all(), "a matrix and its multiples are the same"


def test_integer_shift_fills_the_outside_with_black() -> None:
    images = make_photos(1)
    matrix = np.array([[1, 0, -6], [0, 1, 3], [0, 0, 1]], float)[None]
    output = apply(images, make_params(1, matrix=matrix))
    assert (output[0, :, :6] == 0).all() and (output[0, -3:] == 0).all()
    assert (output[0, :-3, 6:] == images[0, 3:, :-6]).all()


# Own parameters for every image.


@st.composite
def augment_params(draw: st.DrawFn) -> AugmentParams:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, num_operations = draw(st.integers(1, 9)), draw(st.integers(0, 3))
    matrix = make_seed_params(0, 0, 0, count).matrix
    if draw(st.booleans()):
        matrix = matrix + random.normal(0, 0.2, matrix.shape) * [[1, 1, 9], [1, 1, 9], [0.002, 0.002, 0]]
    names = random.choice(OPERATIONS, (count, num_operations)) if num_operations else np.zeros((count, 0), object)
    pick = {**VALUES, "None": (0.0,), "Noise": (5.0, 20.0), "Jpeg": (30.0, 70.0)}
    values = [[float(random.choice(pick[name])) for name in row] for row in names]
    erase = random.integers(0, SIZE // 2, (count, 4)) * random.integers(0, 2, (count, 1))
    colors = make_params(count, names, values) if num_operations else make_params(count)
    seeds = random.integers(2**63 - 1, size=count)
    return AugmentParams(matrix, colors.operations, colors.values, seeds, erase.astype(np.int32))


@given(params=augment_params())
@settings(max_examples=15, deadline=None)
def test_batch_equals_its_images_one_by_one(params: AugmentParams) -> None:
    images = make_photos(9)[: len(params)]
    output = apply(images, params)
    alone = [apply(images[row : row + 1], params.select_rows(slice(row, row + 1)))[0] for row in range(len(params))]
    assert (output == np.stack(alone)).all()


def test_operations_are_applied_in_order() -> None:
    images = make_photos(2)
    order = [["Invert", "Brightness", "None"], ["Brightness", "None", "Invert"]]
    output = apply(images, make_params(2, order, [[0, 0.5, 0], [0.5, 0, 0]]))
    dark = partial(apply_torchvision, name="Brightness", value=0.5)
    assert (output[0] == dark(255 - images[0])).all() and (output[1] == 255 - dark(images[1])).all()


@pytest.mark.parametrize("colors", [1, 3])
def test_color_operations_leave_edge_channels_unchanged(colors: int) -> None:
    images = np.concatenate([make_photos(14), make_photos(14)[..., :2]], 3)[..., 3 - colors :]
    names = list(OPERATIONS[1:])
    values = [{**VALUES, "Noise": [20] * 2, "Jpeg": [30] * 2}[name][1] for name in names]
    output = apply(images, make_params(14, names, values), colors=colors, channels=colors + 2)
    assert (output[..., colors:] == images[..., colors:]).all()
    changed = (output[..., :colors] != images[..., :colors]).any((1, 2, 3))
    assert changed.sum() == (14 if colors == 3 else 11)


def test_box_is_erased_to_the_value_of_its_channel() -> None:
    images = np.concatenate([make_photos(3), make_photos(3)[..., :1]], 3)
    erase = np.array([[5, 7, 11, 13], [0, 0, 0, 0], [SIZE - 2, SIZE - 3, 2, 3]], np.int32)
    output = apply(images, make_params(3, ["Invert"] * 3, [0] * 3, erase=erase), channels=4)
    expected = np.concatenate([255 - images[..., :3], images[..., 3:]], 3)
    expected[0, 5:16, 7:20] = expected[2, -2:, -3:] = [100, 101, 102, 103]
    assert (output == expected).all()


# Against the CPU engine, which computes the same with other libraries.

CPU_MEAN = {"Jpeg": 1.3, "Hue": 0.15, "Color": 0.5, "Sharpness": 0.4, "Blur": 0.4}
"""Levels of 255 that the engines differ by on average; JPEG's encoder on the CPU uses the faster, less exact transform.
Other operations: 0."""


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "Noise"])
def test_operation_matches_the_cpu_engine(name: str) -> None:
    images = make_photos(6)
    params = make_params(6, [name] * 6, {**VALUES, "None": [0] * 6, "Jpeg": (5, 30, 50, 75, 90, 95)}[name])
    difference = absolute_difference(apply(images, params), CpuEngine(SIZE, 3, np.zeros(3, np.uint8))(images, params))
    assert difference.mean() <= CPU_MEAN.get(name, 0.0)
    assert name == "Jpeg" or difference.max() <= 1 + (name == "Hue")


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([40, 61, 90]))
@settings(max_examples=20, deadline=None)
def test_geometry_matches_the_cpu_engine(seed: int, size: int) -> None:
    """Turned, sheared, cut out, made larger, and a little perspective. Where the output shows nothing from outside, its
    rim is half a pixel more of the border's color here, and a little darker there. OpenCV before 5 interpolates in
    steps of a 32nd of a pixel: a few more pixels are one level apart."""
    bound = 0.05 if int(cv2.__version__.split(".")[0]) >= 5 else 0.2
    random, images = np.random.default_rng(seed), make_photos(4, 70, 80)
    base = np.stack([crop(*random.uniform(0, 25, 2), *random.uniform(0.8, 1.2, 2) * size, size) for _ in images])
    spread = [[1, 1, 9], [1, 1, 9], [0.003, 0.003, 0]]
    turn = center_matrix(np.eye(3), size, size) + random.normal(0, 0.15, (4, 3, 3)) * spread
    params = make_params(4, matrix=base @ turn)
    mild = compute_reductions(params.matrix, size).max(1) < 1.25  # made smaller, each antialiases in its own way
    difference = absolute_difference(
        apply(images, params, size), CpuEngine(size, 3, np.zeros(3, np.uint8))(images, params)
    )[mild]
    assert not len(difference) or (difference.mean() < bound and (difference > 1).mean() < 0.005)


@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment", "autoaugment"])
def test_augmentation_of_a_training_matches_in_both_engines(policy: str) -> None:
    """Everything but noise at once: half of the images are the same but for some levels of 1, half a level apart on
    average. What is made smaller is antialiased in two ways, which Equalize and AutoContrast may make more of."""
    values: Any = {"flip": "true", "vertical_flip": "true", "crop_scale": 0.6, "rotate": 10.0, "perspective": 0.2}
    values |= {"policy": policy, "brightness": 0.3, "hue": 0.05, "saturation": 0.2, "blur": 0.2, "erasing": 0.3}
    image = ImageSpec((70, 80, 3), SIZE, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3)
    augmentation = Augmentation(replace(TrainConfig(), **{**PLAIN, **values}), image, "cpu")
    images, differences = make_photos(32, 70, 80), []
    for number in range(4):
        params = augmentation.make_params(0, number, 32)
        device_output = augmentation.apply_on_device(torch.from_numpy(images), params).numpy()
        differences.append(
            absolute_difference(augmentation.apply_on_cpu(images, params), device_output).mean((1, 2, 3))
        )
    difference = np.concatenate(differences)
    assert np.median(difference) < 0.4 and difference.mean() < 1 and difference.max() < 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@given(params=augment_params())
@settings(max_examples=50, deadline=None)
def test_gpu_matches_cpu_without_host_synchronization(params: AugmentParams) -> None:
    """Up to one level: a GPU's division and its logarithm round otherwise. JPEG's steps may tip over, and Equalize and
    the like make more of a level."""
    images = make_photos(9)[: len(params)]
    device_engine = DeviceEngine(SIZE, 3, np.zeros(3, np.uint8), "cuda")
    device_images = torch.from_numpy(images).cuda()
    device_engine(device_images, params)  # JPEG's tables are made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = device_engine(device_images, params)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = DeviceEngine(SIZE, 3, np.zeros(3, np.uint8), "cpu")(torch.from_numpy(images), params)
    difference = absolute_difference(output.cpu().numpy(), expected.numpy())
    assert difference.mean() < 0.1 and (difference > 1).mean() < 0.01
