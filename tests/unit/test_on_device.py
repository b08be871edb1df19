"""Augmentation in batches, on torch's cpu device: against torchvision op by op, against each image alone, against the
CPU engine. The same lines run on a GPU."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.train.augment.augmentation import Augmentation
from imagemill.components.train.augment.cpu_engine import CpuEngine
from imagemill.components.train.augment.device_colors import BLUR_KERNEL, FUNCTIONS, add_noise
from imagemill.components.train.augment.device_engine import MAX_SAMPLES, DeviceEngine, compute_reductions
from imagemill.components.train.augment.params import OPERATION_IDS, OPERATIONS, AugmentParams, make_seed_params
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.recipe_values import PLAIN

SIZE = 61
"""Odd, and no multiple of 8 or 16."""
Pixels = npt.NDArray[np.uint8]


pytestmark = pytest.mark.usefixtures("one_thread")


def photo(seed: int, height: int = SIZE, width: int = SIZE) -> Pixels:
    """Detail at every scale, with some values at both ends."""
    random = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for side in (4, 8, 16, 32):
        coarse = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
        image += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / side**0.6
    return np.clip(image / image.max() * 300 - 20, 0, 255).astype(np.uint8)


def photos(count: int, height: int = SIZE, width: int = SIZE) -> Pixels:
    return np.stack([photo(seed, height, width) for seed in range(count)])


def drawn(count: int, operations: Any = None, values: Any = None, **others: Any) -> AugmentParams:
    """Images of `SIZE` as they are, with these operations [B] or [B, K]."""
    base = make_seed_params(0, 0, 0, count)
    if operations is not None:
        names = np.array(operations, dtype=object).reshape(count, -1)
        base = AugmentParams(
            base.matrix,
            np.vectorize(OPERATION_IDS.__getitem__)(names).astype(np.int8),
            np.asarray(values, np.float32).reshape(names.shape),
            base.seeds,
            base.erase,
        )
    return AugmentParams(**{**base.__dict__, **others})


def engine(size: int = SIZE, colors: int = 3, channels: int = 3) -> Callable[[Pixels, AugmentParams], Pixels]:
    made = DeviceEngine(size, colors, np.arange(100, 100 + channels, dtype=np.uint8), "cpu")

    def run(images: Pixels, what: AugmentParams) -> Pixels:
        found = made(torch.from_numpy(images), what)
        assert found.dtype == torch.uint8 and found.is_contiguous()
        return found.numpy()

    return run


def differences(one: Pixels, other: Pixels) -> npt.NDArray[np.int64]:
    return np.abs(one.astype(np.int64) - other.astype(np.int64))


VALUES = {
    "Brightness": (0.0, 0.1, 0.7, 1.0, 1.3, 1.9), "Contrast": (0.0, 0.1, 0.7, 1.0, 1.3, 1.9),
    "Color": (0.0, 0.1, 0.7, 1.0, 1.3, 1.9), "Hue": (-0.5, -0.21, 0.0, 0.07, 0.33, 0.5), "Grayscale": (0.0,) * 6,
    "Posterize": (0, 1, 4, 6, 7, 8), "Solarize": (0, 17, 60, 128.5, 200, 255), "Invert": (0.0,) * 6,
    "AutoContrast": (0.0,) * 6, "Equalize": (0.0,) * 6, "Sharpness": (0.0, 0.1, 0.7, 1.0, 1.3, 1.9),
    "Blur": (0.1, 0.5, 0.9, 1.3, 1.7, 2.0),
}  # fmt: skip
TORCHVISION: dict[str, Callable[[torch.Tensor, float], Any]] = {
    "Brightness": tv.adjust_brightness, "Contrast": tv.adjust_contrast, "Color": tv.adjust_saturation,
    "Hue": tv.adjust_hue, "Grayscale": lambda image, _: tv.rgb_to_grayscale(image, len(image)),
    "Posterize": lambda image, bits: tv.posterize(image, int(bits)), "Solarize": tv.solarize,
    "Invert": lambda image, _: tv.invert(image), "AutoContrast": lambda image, _: tv.autocontrast(image),
    "Equalize": lambda image, _: tv.equalize(image), "Sharpness": tv.adjust_sharpness,
    "Blur": lambda image, sigma: tv.gaussian_blur(image, [BLUR_KERNEL] * 2, [sigma] * 2),
}  # fmt: skip
EXACT = ("Brightness", "Grayscale", "Posterize", "Solarize", "Invert", "AutoContrast", "Equalize")
"""Tables, or whole numbers. The others may round a float32's last digit otherwise: 1 of 255, in one of a thousand."""


def reference(image: Pixels, name: str, value: float) -> Pixels:
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return np.asarray(TORCHVISION[name](planes, float(np.float32(value))).permute(1, 2, 0).numpy())


def agrees(found: Pixels, wanted: Pixels, name: str) -> None:
    apart = differences(found, wanted)
    assert apart.max() <= (0 if name in EXACT else 1), name
    assert (apart > 0).mean() <= 1e-3, name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VALUES)
def test_an_operation_is_torchvisions(name: str, channels: int) -> None:
    images = np.ascontiguousarray(photos(6)[..., :channels])
    images[0, :, :, 0] = 77  # of one value: nothing to stretch or equalize
    found = engine(colors=channels, channels=channels)(images, drawn(6, [name] * 6, VALUES[name]))
    if channels == 1 and name in ("Color", "Hue", "Grayscale"):
        assert (found == images).all()
        return
    agrees(found, np.stack([reference(*one) for one in zip(images, [name] * 6, VALUES[name], strict=True)]), name)
    assert name in ("Color", "Grayscale") or (found[1:] != images[1:]).any()


def test_every_operation_is_compared_with_something() -> None:
    assert {*VALUES, "None", "Noise", "Jpeg"} == set(OPERATIONS)
    assert {*FUNCTIONS, "None", "Noise"} == set(OPERATIONS)


@pytest.mark.parametrize("quality", [5, 30, 50, 75, 90, 100])
@pytest.mark.parametrize("side", [SIZE, 64])
def test_jpeg_is_libjpegs_but_for_rounding(quality: int, side: int) -> None:
    """Pillow's encoder with accurate transforms: half a level on average, and 1% of the values more than 8 apart (a
    coefficient that lies between two steps may go either way)."""
    for channels in (1, 3):
        images = np.stack([photo(seed, side, side) for seed in range(6)])[..., :channels]
        wanted = []
        for image in images:
            out = io.BytesIO()
            Image.fromarray(image.squeeze()).save(out, "JPEG", quality=quality, subsampling=2)
            wanted.append(np.asarray(Image.open(out)).reshape(image.shape))
        planes = torch.from_numpy(images).permute(0, 3, 1, 2)
        found = FUNCTIONS["Jpeg"](planes, torch.full((6,), float(quality))).permute(0, 2, 3, 1).numpy()
        apart = differences(found, np.stack(wanted))
        assert apart.mean() < 0.6 and (apart > 8).mean() < (0.01 if quality > 5 else 0.03)
        assert quality > 75 or apart.mean() < 0.2 * differences(images, np.stack(wanted)).mean(), "it did something"


def test_noise_has_its_spread_and_is_a_function_of_the_seed() -> None:
    gray = torch.full((3, 3, 200, 200), 128, dtype=torch.uint8)
    sigma, seeds = torch.tensor([10.0, 25.0, 10.0]), torch.tensor([7, 2**62 + 5, 8])
    found = add_noise(gray, sigma, seeds).double() - 128
    for one, wanted in zip(found, sigma.tolist(), strict=True):
        # Cut towards zero, as torchvision does: half a step less on either side.
        assert abs(float(one.mean())) < 4 * wanted / math.sqrt(one.numel()) and wanted - 0.7 < float(one.std()) < wanted
        within = float((one.abs() <= wanted).double().mean())
        assert abs(within - math.erf((math.floor(wanted) + 1) / wanted / math.sqrt(2))) < 0.01
        neighbours = torch.corrcoef(torch.stack([one[:, :, 1:].flatten(), one[:, :, :-1].flatten()]))
        assert abs(float(neighbours[0, 1])) < 0.01
    same = add_noise(gray[:1], sigma[:1], seeds[:1])
    assert torch.equal(same[0].double() - 128, found[0])
    far = add_noise(gray[:1], sigma[:1], torch.tensor([7 + 2**40])).double() - 128
    for other in (found[2], far):
        between = torch.corrcoef(torch.stack([found[0].flatten(), other.flatten()]))
        assert abs(float(between[0, 1])) < 0.01, "seeds that are near by one digit have nothing in common"


# Geometry: matrices made of torchvision's own parameters.


def about(matrix: npt.ArrayLike, height: int, width: int) -> npt.NDArray[np.float64]:
    """A matrix about the middle, as torchvision has it, in coordinates from the corner."""
    shift = np.array([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
    return shift @ np.asarray(matrix, np.float64) @ np.linalg.inv(shift)


@pytest.mark.parametrize(
    ("angle", "translate", "scale", "shear"),
    [(0, (7, -4), 1.0, (0, 0)), (30, (0, 0), 1.0, (0, 0)), (-135, (3, 9), 1.2, (8, -5)), (10, (0, 0), 0.85, (-25, 0))],
)
def test_affine_is_torchvisions(angle: float, translate: Any, scale: float, shear: Any) -> None:
    from torchvision.transforms.functional import _get_inverse_affine_matrix

    images = photos(2)
    inverse = _get_inverse_affine_matrix([0.0, 0.0], angle, list(translate), scale, list(shear))
    matrix = about(np.array([*inverse, 0, 0, 1]).reshape(3, 3), SIZE, SIZE)
    found = engine()(images, drawn(2, matrix=np.stack([matrix] * 2)))
    wanted = tv.affine(
        torch.from_numpy(images).permute(0, 3, 1, 2), angle, list(translate), scale, list(shear),
        interpolation=InterpolationMode.BILINEAR,
    )  # fmt: skip
    apart = differences(found, wanted.permute(0, 2, 3, 1).numpy())
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01
    assert (found == 0).any() and (found != images).any()


def test_perspective_is_torchvisions() -> None:
    from torchvision.transforms.functional import _get_perspective_coeffs

    images, end = photos(1), SIZE - 1
    corners = [[0, 0], [end, 0], [end, end], [0, end]]
    moved = [[9, 4], [end - 12, 2], [end - 3, end - 8], [5, end - 15]]
    matrix = np.array([*_get_perspective_coeffs(corners, moved), 1.0]).reshape(3, 3)
    found = engine()(images, drawn(1, matrix=matrix[None]))
    wanted = tv.perspective(torch.from_numpy(images).permute(0, 3, 1, 2), corners, moved).permute(0, 2, 3, 1).numpy()
    apart = differences(found, wanted)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01


def crop(top: float, left: float, height: float, width: float, size: int) -> npt.NDArray[np.float64]:
    return np.array([[width / size, 0, left], [0, height / size, top], [0, 0, 1]])


@pytest.mark.parametrize(
    ("box", "size", "mean", "most"),
    [
        ((0, 0, 90, 120), 130, 0.01, 1),  # made larger: the same, to the border
        ((11, 20, 50, 61), 96, 0.01, 1),  # but where the image goes on torchvision stops at the crop
        ((3, 5, 80, 110), 96, 0.9, 24),  # a little smaller: plain bilinear, torchvision's is a little softer
        ((0, 0, 90, 120), 48, 0.6, 12),  # from 1.3 on samples are averaged
        ((0, 0, 90, 120), 30, 0.6, 12),
        ((2, 1, 85, 118), 17, 0.8, 12),
    ],
)
def test_a_resized_crop_is_torchvisions(box: tuple[int, ...], size: int, mean: float, most: int) -> None:
    """As it computes in float32; on uint8 it rounds between rows and columns."""
    images = photos(2, 90, 120)
    found = engine(size)(images, drawn(2, matrix=np.stack([crop(*box, size)] * 2)))
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    wanted = tv.resized_crop(planes, *box, [size, size], antialias=True).round().permute(0, 2, 3, 1)
    apart = differences(found, wanted.numpy())
    if box[0]:
        apart = apart[:, 1:-1, 1:-1]
    assert apart.mean() < mean and apart.max() <= most


def test_what_is_made_smaller_does_not_alias() -> None:
    """Stripes of two pixels are grey at a fifth of the size; under a plain bilinear filter they would be stripes."""
    stripes = np.zeros((1, 160, 160, 3), np.uint8)
    stripes[:, :, ::4], stripes[:, :, 1::4] = 255, 255
    found = engine(31)(stripes, drawn(1, matrix=crop(0, 0, 160, 160, 31)[None]))
    assert np.abs(found[:, 2:-2, 2:-2].astype(int) - 127).max() < 16
    turned = about([[0, -1, 0], [1, 0, 0], [0, 0, 1]], 160, 160) @ crop(0, 0, 160, 160, 31)
    assert compute_reductions(turned[None], 31)[0] == pytest.approx([160 / 31] * 2)
    found = engine(31)(stripes, drawn(1, matrix=turned[None]))
    assert np.abs(found[:, 2:-2, 2:-2].astype(int) - 127).max() < 16
    tiny = engine(2)(np.full((1, 400, 400, 3), 90, np.uint8), drawn(1, matrix=crop(0, 0, 400, 400, 2)[None]))
    assert (tiny == 90).all() and compute_reductions(crop(0, 0, 400, 400, 2)[None], 2).max() > MAX_SAMPLES


def test_whole_pixels_are_copied_and_the_way_does_not_matter() -> None:
    """Mirrored and moved images, alone (copied) and beside one that is turned (interpolated): the same to the bit."""
    images = photos(5, 70, 80)
    here = np.array([[1, 0, 4], [0, 1, 9], [0, 0, 1]], float)
    across = np.array([[-1, 0, SIZE + 4], [0, 1, 0], [0, 0, 1]], float)
    down = np.array([[1, 0, 2], [0, -1, 70], [0, 0, 1]], float)
    turned = about([[0.9, -0.3, 0], [0.3, 0.9, 0], [0, 0, 1]], 70, 80)
    matrix = np.stack([here, across, down, 2 * across, turned])
    plain, mixed = engine()(images[:4], drawn(4, matrix=matrix[:4])), engine()(images, drawn(5, matrix=matrix))
    assert (plain == mixed[:4]).all()
    for row in range(4):
        assert (plain[row] == engine()(images[row : row + 1], drawn(1, matrix=matrix[row : row + 1]))).all()
    assert (plain[0] == images[0, 9:, 4:][:SIZE, :SIZE]).all()
    assert (plain[1] == images[1, :SIZE, 4 : SIZE + 4][:, ::-1]).all()
    assert (plain[2] == images[2, 70 - SIZE :, 2:][::-1, :SIZE]).all()
    assert (plain[3] == images[3, :SIZE, 4 : SIZE + 4][:, ::-1]).all(), "a matrix and its multiples are the same"


def test_outside_is_black_for_whole_pixels_too() -> None:
    images = photos(1)
    matrix = np.array([[1, 0, -6], [0, 1, 3], [0, 0, 1]], float)[None]
    found = engine()(images, drawn(1, matrix=matrix))
    assert (found[0, :, :6] == 0).all() and (found[0, -3:] == 0).all()
    assert (found[0, :-3, 6:] == images[0, 3:, :-6]).all()


# Own parameters for every image.


@st.composite
def anything(draw: st.DrawFn) -> AugmentParams:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, turns = draw(st.integers(1, 9)), draw(st.integers(0, 3))
    matrix = make_seed_params(0, 0, 0, count).matrix
    if draw(st.booleans()):
        matrix = matrix + random.normal(0, 0.2, matrix.shape) * [[1, 1, 9], [1, 1, 9], [0.002, 0.002, 0]]
    names = random.choice(OPERATIONS, (count, turns)) if turns else np.zeros((count, 0), object)
    pick = {**VALUES, "None": (0.0,), "Noise": (5.0, 20.0), "Jpeg": (30.0, 70.0)}
    values = [[float(random.choice(pick[name])) for name in row] for row in names]
    erase = random.integers(0, SIZE // 2, (count, 4)) * random.integers(0, 2, (count, 1))
    what = drawn(count, names, values) if turns else drawn(count)
    seeds = random.integers(2**63 - 1, size=count)
    return AugmentParams(matrix, what.operations, what.values, seeds, erase.astype(np.int32))


@given(what=anything())
@settings(max_examples=15, deadline=None)
def test_a_batch_is_each_image_alone(what: AugmentParams) -> None:
    images = photos(9)[: len(what)]
    found = engine()(images, what)
    alone = [engine()(images[row : row + 1], what.select_rows(slice(row, row + 1)))[0] for row in range(len(what))]
    assert (found == np.stack(alone)).all()


def test_operations_follow_one_another_in_their_order() -> None:
    images = photos(2)
    order = [["Invert", "Brightness", "None"], ["Brightness", "None", "Invert"]]
    found = engine()(images, drawn(2, order, [[0, 0.5, 0], [0.5, 0, 0]]))
    dark = partial(reference, name="Brightness", value=0.5)
    assert (found[0] == dark(255 - images[0])).all() and (found[1] == 255 - dark(images[1])).all()


@pytest.mark.parametrize("colors", [1, 3])
def test_edges_are_moved_but_not_recoloured(colors: int) -> None:
    images = np.concatenate([photos(14), photos(14)[..., :2]], 3)[..., 3 - colors :]
    names = list(OPERATIONS[1:])
    values = [{**VALUES, "Noise": [20] * 2, "Jpeg": [30] * 2}[name][1] for name in names]
    found = engine(colors=colors, channels=colors + 2)(images, drawn(14, names, values))
    assert (found[..., colors:] == images[..., colors:]).all()
    changed = (found[..., :colors] != images[..., :colors]).any((1, 2, 3))
    assert changed.sum() == (14 if colors == 3 else 11)


def test_a_box_is_erased_to_the_value_of_its_channel() -> None:
    images = np.concatenate([photos(3), photos(3)[..., :1]], 3)
    erase = np.array([[5, 7, 11, 13], [0, 0, 0, 0], [SIZE - 2, SIZE - 3, 2, 3]], np.int32)
    found = engine(channels=4)(images, drawn(3, ["Invert"] * 3, [0] * 3, erase=erase))
    wanted = np.concatenate([255 - images[..., :3], images[..., 3:]], 3)
    wanted[0, 5:16, 7:20] = wanted[2, -2:, -3:] = [100, 101, 102, 103]
    assert (found == wanted).all()


# Against the CPU engine, which computes the same with other libraries.

CPU_MEAN = {"Jpeg": 1.3, "Hue": 0.15, "Color": 0.5, "Sharpness": 0.4, "Blur": 0.4}
"""Levels of 255 that the engines differ by on average; JPEG's encoder on the CPU uses the faster, less exact transform.
Other operations: 0."""


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "Noise"])
def test_an_operation_is_the_cpu_engines(name: str) -> None:
    images = photos(6)
    what = drawn(6, [name] * 6, {**VALUES, "None": [0] * 6, "Jpeg": (5, 30, 50, 75, 90, 95)}[name])
    apart = differences(engine()(images, what), CpuEngine(SIZE, 3, np.zeros(3, np.uint8))(images, what))
    assert apart.mean() <= CPU_MEAN.get(name, 0.0)
    assert name == "Jpeg" or apart.max() <= 1 + (name == "Hue")


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([40, 61, 90]))
@settings(max_examples=20, deadline=None)
def test_geometry_is_the_cpu_engines(seed: int, size: int) -> None:
    """Turned, sheared, cut out, made larger, and a little perspective. Where the output shows nothing from outside, its
    rim is half a pixel more of the border's colour here, and a little darker there. OpenCV before 5 interpolates in
    steps of a 32nd of a pixel: a few more pixels are one level apart."""
    bound = 0.05 if int(cv2.__version__.split(".")[0]) >= 5 else 0.2
    random, images = np.random.default_rng(seed), photos(4, 70, 80)
    base = np.stack([crop(*random.uniform(0, 25, 2), *random.uniform(0.8, 1.2, 2) * size, size) for _ in images])
    turn = about(np.eye(3), size, size) + random.normal(0, 0.15, (4, 3, 3)) * [[1, 1, 9], [1, 1, 9], [0.003] * 2 + [0]]
    what = AugmentParams(**{**drawn(4).__dict__, "matrix": base @ turn})
    mild = compute_reductions(what.matrix, size).max(1) < 1.25  # made smaller, each antialiases in its own way
    apart = differences(engine(size)(images, what), CpuEngine(size, 3, np.zeros(3, np.uint8))(images, what))[mild]
    assert not len(apart) or (apart.mean() < bound and (apart > 1).mean() < 0.005)


@pytest.mark.parametrize("policy", ["none", "randaugment", "trivialaugment", "autoaugment"])
def test_what_is_drawn_for_a_training_is_the_same_in_both_engines(policy: str) -> None:
    """Everything but noise at once: half of the images are the same but for some levels of 1, half a level apart on
    average. What is made smaller is antialiased in two ways, which Equalize and AutoContrast may make more of."""
    chosen: Any = {"flip": "true", "vertical_flip": "true", "crop_scale": 0.6, "rotate": 10.0, "perspective": 0.2}
    chosen |= {"policy": policy, "brightness": 0.3, "hue": 0.05, "saturation": 0.2, "blur": 0.2, "erasing": 0.3}
    image = ImageSpec((70, 80, 3), SIZE, mean=(0.4, 0.5, 0.6), std=(0.2,) * 3)
    augmentation = Augmentation(replace(TrainConfig(), **{**PLAIN, **chosen}), image, "cpu")
    images, apart = photos(32, 70, 80), []
    for number in range(4):
        what = augmentation.make_params(0, number, 32)
        there = augmentation.apply_on_device(torch.from_numpy(images), what).numpy()
        apart.append(differences(augmentation.apply_on_cpu(images, what), there).mean((1, 2, 3)))
    found = np.concatenate(apart)
    assert np.median(found) < 0.4 and found.mean() < 1 and found.max() < 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@given(what=anything())
@settings(max_examples=50, deadline=None)
def test_on_a_gpu_it_is_the_same_and_the_host_waits_for_nothing(what: AugmentParams) -> None:
    """Up to one level: a GPU's division and its logarithm round otherwise. JPEG's steps may tip over, and Equalize and
    the like make more of a level."""
    images = photos(9)[: len(what)]
    made = DeviceEngine(SIZE, 3, np.zeros(3, np.uint8), "cuda")
    there = torch.from_numpy(images).cuda()
    made(there, what)  # JPEG's tables are made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = made(there, what)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wanted = DeviceEngine(SIZE, 3, np.zeros(3, np.uint8), "cpu")(torch.from_numpy(images), what)
    apart = differences(found.cpu().numpy(), wanted.numpy())
    assert apart.mean() < 0.1 and (apart > 1).mean() < 0.01
