"""Image measures compared with plain NumPy implementations, and their response to changes of a picture."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from imagemill.components.clean.measures import THUMBNAIL_BYTES, Measures, compute_colorfulness, measure

Pixels = npt.NDArray[np.uint8]
NUMBERS = ("brightness", "contrast", "sharpness", "entropy", "colorfulness")


def halve(pixels: Pixels) -> Pixels:
    """Means of 2 x 2 pixels, halves rounded up (of 1 x 2 where a side is 1, halves to even), [H // 2, W // 2, C]."""
    for axis in (0, 1):
        if pixels.shape[axis] > 1:
            pixels = pixels[: len(pixels) // 2 * 2] if axis == 0 else pixels[:, : pixels.shape[1] // 2 * 2]
    down, across = (min(side, 2) for side in pixels.shape[:2])
    blocks = pixels.reshape(pixels.shape[0] // down, down, pixels.shape[1] // across, across, -1).astype(int)
    means = blocks.mean(axis=(1, 3))
    return (np.floor(means + 0.5) if down * across == 4 else np.rint(means)).astype(np.uint8)


def to_gray(pixels: Pixels) -> Pixels:
    """ITU-R 601 in fixed point, [H, W]."""
    if pixels.shape[2] == 1:
        return pixels[..., 0]
    red, green, blue = (pixels[..., c].astype(int) for c in range(3))
    return ((red * 9798 + green * 19235 + blue * 3735 + 2**14) >> 15).astype(np.uint8)


def compute_by_definition(pixels: Pixels) -> dict[str, float]:
    gray = to_gray(halve(pixels)).astype(float)
    around = gray
    for axis in (0, 1):
        edge = "reflect" if gray.shape[axis] > 1 else "edge"
        around = np.pad(around, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode=edge)  # type: ignore[call-overload]
    laplacian = around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:] - 4 * around[1:-1, 1:-1]
    shares = [float((gray == value).mean()) for value in range(256)]
    return {
        "brightness": gray.mean() / 255,
        "contrast": gray.std() / 255,
        "sharpness": laplacian.var(),
        "entropy": -sum(p * math.log2(p) for p in shares if p),
    }


def compute_colorfulness_by_definition(pixels: Pixels) -> float:
    red, green, blue = (pixels[..., c].astype(float) for c in range(3))
    rg, yb = red - green, (red + green) / 2 - blue
    return float(math.hypot(rg.std(), yb.std()) + 0.3 * math.hypot(rg.mean(), yb.mean()))


def make_noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def make_scene(height: int = 240, width: int = 320) -> Pixels:
    """A smooth colorful picture with some texture, away from black and white."""
    coarse = np.random.default_rng(5).uniform(60, 190, (6, 8, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return (smooth + make_noise(height, width, 1) / 16).clip(20, 220).astype(np.uint8)


def make_checkerboard() -> Pixels:
    """Black and white squares of 2 x 2 pixels, [16, 20, 1]."""
    return np.kron(np.indices((8, 10)).sum(axis=0) % 2 * 255, np.ones((2, 2)))[..., None].astype(np.uint8)


def make_two_tone() -> Pixels:
    """A quarter of dark gray above light gray, [40, 12, 3]."""
    return np.broadcast_to(np.where(np.arange(40) < 10, 40, 200)[:, None, None], (40, 12, 3)).astype(np.uint8)


PICTURES: dict[str, Callable[[], Pixels]] = {
    "uniform": lambda: np.full((20, 30, 3), 77, np.uint8),
    "checkerboard": make_checkerboard,
    "gradient": lambda: np.tile(np.arange(256, dtype=np.uint8), (64, 1))[..., None],
    "two-tone": make_two_tone,
    "noise": lambda: make_noise(51, 64, 3),
    "gray noise": lambda: make_noise(37, 41, 1),
    "scene": make_scene,
    **{f"{h}x{w}x{c}": lambda h=h, w=w, c=c: make_noise(h, w, c)  # type: ignore[misc]
       for h, w in ((1, 1), (1, 7), (1, 8), (9, 1), (2, 3), (3, 2), (2, 2)) for c in (1, 3)},
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_measures_follow_their_definitions(name: str) -> None:
    pixels = PICTURES[name]()
    measures = measure(pixels)
    for field, value in compute_by_definition(pixels).items():
        assert getattr(measures, field) == pytest.approx(value, rel=6e-6, abs=1e-9), field
    if pixels.shape[2] == 1:
        assert measures.colorfulness == 0
    elif min(pixels.shape[:2]) < 160:
        assert measures.colorfulness == pytest.approx(compute_colorfulness_by_definition(pixels), rel=6e-6, abs=1e-9)
    else:
        assert measures.colorfulness == pytest.approx(compute_colorfulness_by_definition(halve(pixels)), rel=6e-6)
    assert 0 <= measures.phash < 2**64 and len(measures.thumbnail) == THUMBNAIL_BYTES


def test_measures_of_known_pictures() -> None:
    """A board of black and white squares of 2 x 2: each pixel of the half has only opposites around it."""
    board = measure(make_checkerboard())
    assert (board.brightness, board.contrast, board.entropy) == (0.5, 0.5, 1.0)
    assert board.sharpness == (4 * 255) ** 2
    flat = measure(PICTURES["uniform"]())
    assert (flat.contrast, flat.sharpness, flat.entropy, flat.colorfulness, flat.phash) == (0, 0, 0, 0, 0)
    assert flat.brightness == pytest.approx(77 / 255, rel=1e-6)
    assert measure(PICTURES["gradient"]()).entropy == 7.0  # 128 values in the half, equally often
    red = measure(np.full((4, 4, 3), (255, 0, 0), np.uint8))
    assert red.colorfulness == pytest.approx(0.3 * math.hypot(255, 127.5), rel=1e-6)


def test_colorfulness_follows_its_formula() -> None:
    for seed in range(5):
        pixels = make_noise(17, 23, 3, seed=seed) // (seed + 1)
        assert compute_colorfulness(pixels) == pytest.approx(compute_colorfulness_by_definition(pixels), rel=1e-12)
    gray = np.repeat(make_noise(17, 23, 1), 3, axis=2)
    assert compute_colorfulness(gray) == 0


def test_measures_are_exact_in_float32() -> None:
    measures = measure(make_scene())
    for field in NUMBERS:
        value = getattr(measures, field)
        assert type(value) is float and float(np.float32(value)) == value


def test_offset_changes_brightness_only() -> None:
    dark, light = measure(make_scene()), measure(make_scene() + np.uint8(30))
    assert light.brightness - dark.brightness == pytest.approx(30 / 255, abs=1e-6)
    for field in ("contrast", "sharpness", "entropy", "colorfulness"):
        assert getattr(light, field) == pytest.approx(getattr(dark, field), rel=1e-5)
    assert light.phash == dark.phash


def test_sharpness_falls_with_blur() -> None:
    values = [measure(make_scene()).sharpness]
    values += [
        measure(np.asarray(cv2.GaussianBlur(make_scene(), (0, 0), s), np.uint8)).sharpness for s in (0.7, 1.5, 3)
    ]
    assert values == sorted(values, reverse=True) and values[-1] < values[0] / 10


def test_contrast_and_colorfulness_fall_with_a_veil() -> None:
    clear, veiled = measure(make_scene()), measure((make_scene() // 2 + 64).astype(np.uint8))
    assert veiled.contrast == pytest.approx(clear.contrast / 2, rel=0.02)
    assert veiled.colorfulness == pytest.approx(clear.colorfulness / 2, rel=0.05)


@pytest.mark.parametrize("channels", [1, 3])
def test_measures_do_not_depend_on_memory_layout(channels: int) -> None:
    pixels = np.ascontiguousarray(make_scene(201, 333)[..., :channels])
    expected = measure(pixels)
    padded = np.zeros((201, 400, channels), np.uint8)
    padded[:, 20:353] = pixels
    fortran: Pixels = np.asfortranarray(pixels)
    for view in (padded[:, 20:353], fortran, np.ascontiguousarray(pixels[::-1])[::-1], pixels[:, ::-1].copy()[:, ::-1]):
        assert measure(view) == expected
    assert isinstance(expected, Measures)


def test_measure_does_not_change_the_pixels() -> None:
    pixels = make_scene()
    before = pixels.copy()
    measure(pixels)
    assert (pixels == before).all()


@pytest.mark.parametrize("shape", [(65_500, 1), (1, 65_500), (65_500, 2), (3, 65_500)])
def test_the_longest_sides(shape: tuple[int, int]) -> None:
    pixels = make_noise(*shape, 3)
    assert measure(pixels).sharpness == pytest.approx(compute_by_definition(pixels)["sharpness"], rel=6e-6)


def test_sums_of_large_pictures_are_exact() -> None:
    """36 million pixels whose Laplacians are as large as can be: the sum of squares passes 2^44."""
    board = np.tile(np.kron([[0, 255], [255, 0]], np.ones((2, 2))).astype(np.uint8), (1500, 1500))
    assert measure(board[..., None]).sharpness == (4 * 255) ** 2
