"""Perceptual hash compared with its definition, and recall and precision of hash and thumbnails on near duplicates.

The photographs are the sample of Oxford-IIIT Pet beside the repository; tests that need it are skipped without it."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import photos
import pytest
from PIL import Image, ImageDraw

from imagemill.components.clean.measures import (
    MAX_DIFFERENCE,
    THUMBNAIL_BYTES,
    compare_thumbnails,
    compute_phashes,
    encode_thumbnails,
    halve,
    have_similar_aspect,
    measure,
    measure_reduced,
    reduce_picture,
    shrink,
    to_square,
)
from imagemill.components.imaging.decoder import ImageRejected, decode

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "pets" / "images.tar.gz"
FILTERS = (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.HAMMING)

Pixels = npt.NDArray[np.uint8]
Rng = np.random.Generator
Change = Callable[[Pixels, Rng], Pixels]


def difference(a: bytes, b: bytes) -> float:
    """Return the difference of two thumbnails."""
    return float(compare_thumbnails(*(np.frombuffer(data, np.uint8)[None] for data in (a, b)))[0])


@cache
def read_photographs(step: int = 1) -> list[Pixels]:
    """Return every `step`-th photograph of the sample, RGB."""
    if not SAMPLE.is_file():
        pytest.skip("the pets sample (../shared/data/pets) is not there")
    pictures = []
    with tarfile.open(SAMPLE) as tar:
        for number, member in enumerate(sorted(tar.getmembers(), key=lambda m: m.name)):
            if number % step or not (stream := tar.extractfile(member) if member.isfile() else None):
                continue
            try:
                pictures.append(decode(stream.read()).pixels)
            except ImageRejected:  # the archive has a few files that are no images
                continue
    return pictures


def reencode(pixels: Pixels, kind: str, **options: int) -> Pixels:
    return decode(photos.saved(pixels, kind, **options)).pixels


def reencode_jpeg(pixels: Pixels, random: Rng) -> Pixels:
    return reencode(pixels, "JPEG", quality=int(random.integers(50, 96)), subsampling=int(random.integers(3)))


def reencode_other_format(pixels: Pixels, random: Rng) -> Pixels:
    if random.random() < 0.3:
        return reencode(pixels, "PNG")
    return reencode(pixels, "WEBP", quality=int(random.integers(50, 96)), method=0)


def resize(pixels: Pixels, random: Rng) -> Pixels:
    factor = 2 ** float(random.uniform(-1, 1))
    size = [max(1, round(side * factor)) for side in pixels.shape[1::-1]]
    return np.asarray(Image.fromarray(pixels).resize((size[0], size[1]), FILTERS[random.integers(len(FILTERS))]))


def crop(pixels: Pixels, across: float, down: float) -> Pixels:
    """Return 95 % of width and height; `across` and `down` are the shares of the rest cut off at the left and top."""
    height, width = pixels.shape[:2]
    new_height, new_width = round(height * 0.95), round(width * 0.95)
    top, left = round((height - new_height) * down), round((width - new_width) * across)
    return pixels[top : top + new_height, left : left + new_width]


def crop_corner(pixels: Pixels, random: Rng) -> Pixels:
    return crop(pixels, *random.integers(0, 2, 2))


CHANGES: dict[str, tuple[Change, int, float]] = {  # the change, the radius, the recall asked for
    "jpeg": (reencode_jpeg, 3, 0.99),
    "png or webp": (reencode_other_format, 3, 0.99),
    "resized": (resize, 3, 0.99),
    "resized, then jpeg": (lambda p, r: reencode_jpeg(resize(p, r), r), 3, 0.99),
    "cropped at the center": (lambda p, r: crop(p, 0.5, 0.5), 10, 0.97),
    "cropped at a corner": (crop_corner, 10, 0.97),
    "cropped anywhere, then jpeg": (lambda p, r: reencode_jpeg(crop(p, *r.random(2)), r), 10, 0.97),
}


def measure_all(pictures: list[Pixels]) -> tuple[npt.NDArray[np.uint64], Pixels]:
    """Return hashes uint64 [N] and thumbnails uint8 [N, 864]."""
    measures = [measure(p) for p in pictures]
    thumbnails = np.frombuffer(b"".join(m.thumbnail for m in measures), np.uint8).reshape(-1, THUMBNAIL_BYTES)
    return np.array([m.phash for m in measures], np.uint64), thumbnails


def measure_recall(pictures: list[Pixels], change: Change, radius: int, seed: int = 0) -> tuple[float, float, float]:
    """Return the shares of changed pictures matched by the hash, verified by the thumbnail, and both."""
    random = np.random.default_rng(seed)
    hashes, thumbnails = measure_all(pictures)
    changed_hashes, changed_thumbnails = measure_all([change(p, random) for p in pictures])
    matched = np.bitwise_count(hashes ^ changed_hashes) <= radius
    verified = compare_thumbnails(thumbnails, changed_thumbnails) < MAX_DIFFERENCE
    return float(matched.mean()), float(verified.mean()), float((matched & verified).mean())


def compare_all(pictures: list[Pixels]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Return hash distances uint8 [P] and thumbnail differences float32 [P] of every two pictures."""
    hashes, thumbnails = measure_all(pictures)
    first, second = np.triu_indices(len(pictures), 1)
    return np.bitwise_count(hashes[first] ^ hashes[second]), compare_thumbnails(thumbnails[first], thumbnails[second])


@pytest.mark.parametrize("name", CHANGES)
def test_near_duplicates_are_matched_and_verified(name: str) -> None:
    change, radius, min_recall = CHANGES[name]
    matched, verified, matched_and_verified = measure_recall(read_photographs(4), change, radius)
    assert verified == 1 and matched_and_verified == matched
    assert matched >= (min_recall if radius == 3 else 0.95), "few photographs: one missed weighs more than 1 %"


def test_different_photographs_do_not_match() -> None:
    distances, differences = compare_all(read_photographs(4))
    assert differences.min() > MAX_DIFFERENCE + 0.15
    assert (distances <= 3).sum() == 0 and (distances <= 10).mean() < 1e-3


BASE = {"shape": "ellipse", "radius": 50, "at": (100, 100), "color": (200, 40, 40), "ground": (245, 245, 240)}


def draw_shape(**changed: object) -> Pixels:
    """Return one flat shape on a plain ground, 240 x 200."""
    spec = {**BASE, **changed}
    image = Image.new("RGB", (240, 200), spec["ground"])  # type: ignore[arg-type]
    (x, y), r = spec["at"], spec["radius"]  # type: ignore[misc]
    draw = ImageDraw.Draw(image)
    if spec["shape"] == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=spec["color"])  # type: ignore
    else:
        getattr(draw, str(spec["shape"]))((x - r, y - r, x + r, y + r), fill=spec["color"])
    return np.asarray(image)


@pytest.mark.parametrize(
    "changed",
    [
        {"shape": "rectangle"}, {"shape": "triangle"}, {"color": (40, 130, 40)}, {"color": (40, 40, 200)},
        {"ground": (20, 20, 60)}, {"at": (140, 100)}, {"at": (100, 125)}, {"radius": 35}, {"radius": 70},
    ],
)  # fmt: skip
def test_different_flat_shapes_do_not_match(changed: dict[str, object]) -> None:
    thumbnail, changed_thumbnail = (measure(p).thumbnail for p in (draw_shape(), draw_shape(**changed)))
    assert difference(thumbnail, changed_thumbnail) > MAX_DIFFERENCE


def test_noise_matches_and_blank_pictures_do_not() -> None:
    """Grain does not make two pictures of a drawing; two kinds of plain ground are two pictures."""
    random = np.random.default_rng(0)
    grainy = [(draw_shape() + random.normal(0, 4, (200, 240, 1))).clip(0, 255).astype(np.uint8) for _ in range(2)]
    assert difference(*(measure(p).thumbnail for p in grainy)) < MAX_DIFFERENCE
    coarse = [np.kron(random.integers(0, 256, (8, 8, 1)), np.ones((20, 20, 3))).astype(np.uint8) for _ in range(2)]
    assert difference(*(measure(p).thumbnail for p in coarse)) > MAX_DIFFERENCE
    plain = [measure(np.full((90, 120, 3), value, np.uint8)) for value in (200, 190)]
    assert [m.phash for m in plain] == [0, 0]
    assert difference(*(m.thumbnail for m in plain)) > MAX_DIFFERENCE
    assert difference(plain[0].thumbnail, plain[0].thumbnail) == 0


def compute_by_definition(luma: Pixels) -> tuple[list[float], list[int]]:
    """The 64 sums whose signs are the hash, as the module's text has them, in plain loops over frequencies."""
    y = luma.astype(float)
    right, down = np.zeros((2, 32, 32))
    right[:, 1:-1], down[1:-1] = y[:, 2:] - y[:, :-2], y[2:] - y[:-2]
    edges, far = abs(right) + abs(down), y - np.rint(y.mean())
    maps = [(y, 14), (abs(far), 10), (far * edges, 10), (edges, 10), (abs(right) - abs(down), 10), (right * down, 10)]
    at = (np.arange(32) + 0.5) / 32
    window = np.sqrt(np.outer(np.sin(np.pi * at), np.sin(np.pi * at)))
    frequencies = sorted(((i, j) for i in range(32) for j in range(32)), key=lambda f: (f[0] ** 2 + f[1] ** 2, f[0]))
    sums = []
    for values, count in maps:
        centered = values - (values * window).sum() / window.sum()
        for i, j in frequencies[1 : 1 + count]:
            wave = np.cos(np.pi * i * at)[:, None] * np.cos(np.pi * j * at)
            sums.append(float((centered * window * wave).sum()))
    return sums, [int(s > 0) for s in sums]


@pytest.mark.parametrize("seed", range(4))
def test_hash_follows_its_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    luma = cv2.resize(random.integers(0, 256, (5 + 9 * seed,) * 2, dtype=np.uint8), (32, 32))
    sums, bits = compute_by_definition(np.asarray(luma, np.uint8))
    hash_bits = f"{compute_phashes(np.asarray(luma, np.uint8)[None])[0]:064b}"
    differing = [abs(s) for s, bit, sign in zip(sums, hash_bits, bits, strict=True) if int(bit) != sign]
    assert max(differing, default=0) < 10, "only sums that the rounding of the basis can turn"
    assert 12 < sum(bits) < 52


def test_hash_is_the_same_on_every_machine() -> None:
    """The same number everywhere: datasets that were made elsewhere are searched together."""
    y, x = np.indices((32, 32))
    assert compute_phashes(((x * x + 3 * y * y + 7 * x * y) % 256).astype(np.uint8)[None]) == [0x54974C6FB2DAE655]


@pytest.mark.parametrize("number", [0, 1, 7, 8, 9, 40])
def test_measures_do_not_depend_on_the_pictures_beside(number: int) -> None:
    """Gray and colored pictures of any size have the same measures together as alone."""
    random = np.random.default_rng(number)
    shapes = [(*random.integers(1, 400, 2), random.choice([1, 3])) for _ in range(number)]
    pictures = [np.asarray(random.integers(0, 256, shape) // random.integers(1, 9), np.uint8) for shape in shapes]
    assert measure_reduced([reduce_picture(picture) for picture in pictures]) == [measure(p) for p in pictures]


@pytest.mark.parametrize("number", [1, 2, 3, 26, 2000])
def test_thumbnails_are_resized_one_by_one(number: int) -> None:
    """Squares on top of each other have the same thumbnails as each square resized alone."""
    squares = np.random.default_rng(number).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    for square, thumbnail in zip(squares, encode_thumbnails(squares), strict=True):
        luma = cv2.resize(square[..., 0].copy(), (24, 24), interpolation=cv2.INTER_AREA)
        chroma = cv2.resize(square, (12, 12), interpolation=cv2.INTER_AREA)[..., 1:]
        assert thumbnail == luma.tobytes() + chroma.tobytes()


def test_halving_and_shrinking() -> None:
    steps = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)
    assert halve(steps).tolist() == [[4, 6, 8], [18, 20, 22]]
    padded = halve(steps, pad=True)
    assert padded.shape == (3, 4) and padded[2].tolist() == [29, 31, 33, 34] and padded[0, 3] == 10
    odd = np.zeros((375, 500), np.uint8)
    assert shrink(odd, halve(odd)).shape == (94, 125), "187 rows left, made 188"
    for shape in ((1, 1), (1, 9), (159, 4000), (160, 160), (375, 500), (3001, 2999)):
        picture = np.zeros(shape, np.uint8)
        small = shrink(picture, halve(picture))
        if min(shape) < 160:
            assert small is picture
        else:
            assert 80 <= min(small.shape) < 160
            assert small.shape[0] / small.shape[1] == pytest.approx(shape[0] / shape[1], rel=0.01)


def test_thumbnails_of_gray_and_of_color() -> None:
    random = np.random.default_rng(0)
    gray = np.kron(random.integers(0, 256, (12, 12)), np.ones((20, 20)))[..., None].astype(np.uint8)
    color = np.repeat(gray, 3, axis=2)
    assert measure(gray).thumbnail == measure(color).thumbnail and measure(gray).phash == measure(color).phash
    assert set(measure(gray).thumbnail[576:]) == {128}
    red = to_square(np.full((50, 60, 3), (255, 0, 0), np.uint8))
    assert encode_thumbnails(red[None]) == [bytes([76]) * 576 + bytes([255, 85]) * 144]


def test_differences_are_symmetric_for_any_number_of_pairs() -> None:
    random = np.random.default_rng(0)
    _, thumbnails = measure_all([resize(draw_shape(at=(x, 90)), random) for x in range(60, 180, 8)])
    first, second = np.triu_indices(len(thumbnails), 0)
    differences = compare_thumbnails(thumbnails[first], thumbnails[second])
    np.testing.assert_allclose(
        differences, compare_thumbnails(thumbnails[second], thumbnails[first]), rtol=1e-4, atol=1e-6
    )
    assert differences.dtype == np.float32 and (differences[first == second] == 0).all()
    assert (differences[first != second] > 0).all()
    many = np.resize(np.arange(len(first)), 1000)
    np.testing.assert_allclose(
        compare_thumbnails(thumbnails[first[many]], thumbnails[second[many]]), differences[many], rtol=1e-5
    )
    single = difference(thumbnails[0].tobytes(), thumbnails[3].tobytes())
    assert single == pytest.approx(differences[3], rel=1e-5)
    assert compare_thumbnails(thumbnails[:0], thumbnails[:0]).shape == (0,)
    with pytest.raises(ValueError, match="864"):
        compare_thumbnails(thumbnails[:, :800], thumbnails[:, :800])


def test_crop_matches_in_both_directions() -> None:
    coarse = np.random.default_rng(3).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    whole = np.asarray(cv2.resize(coarse, (480, 360), interpolation=cv2.INTER_CUBIC), np.uint8)
    thumbnails = {(x, y): measure(crop(whole, x, y)).thumbnail for x in (0, 0.5, 1) for y in (0, 0.5, 1)}
    full = measure(whole).thumbnail
    for cut in thumbnails.values():
        assert difference(full, cut) < 0.15 and difference(cut, full) < 0.15
    quarter = measure(whole[:240, :320]).thumbnail
    assert difference(full, quarter) > MAX_DIFFERENCE


def test_brightness_shift_matches() -> None:
    picture = crop(draw_shape(), 0, 0)
    darker = np.maximum(picture, 3) - np.uint8(3)
    assert difference(measure(picture).thumbnail, measure(darker).thumbnail) < MAX_DIFFERENCE / 2


def test_similar_aspect_ratios() -> None:
    ratio = np.array([4 / 3, 4 / 3, 4 / 3, 1.0, 0.5])
    similar = have_similar_aspect(ratio, ratio * [1, 0.95, 1 / 0.95, 1.1, 0.9])
    assert similar.tolist() == [True, True, True, False, False]
