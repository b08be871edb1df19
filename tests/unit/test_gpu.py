"""The kernel for a GPU on the device `cpu`, against the CPU's own; which device is chosen; its actors on real Ray."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import photos
import pytest
import torch
import torchvision
from cleaned import Row, cleaned, picture
from PIL import Image

from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.imaging.decoder import Pixels
from imagemill.components.imaging.geometry import Geometry, decode_and_resize
from imagemill.components.resize import device as devices
from imagemill.components.resize import resize
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.resize.device import choose_device, sample_mean_pixels
from imagemill.components.resize.gpu import (
    make_kernel,
    parse_header,
)
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import TransientError

kernel = make_kernel("cpu")


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft shapes and a little grain, and a corner that shows which way up it is."""
    random = np.random.default_rng([seed, width, height])
    small = random.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    soft[: height // 4, : width // 4] = (250, 20, 20)
    return Image.fromarray(np.clip(soft + random.normal(0, 3, soft.shape), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    return photos.saved(image, kind, **({"quality": 92} if kind == "JPEG" else {}) | options)


def mean_difference(first: Pixels, second: Pixels) -> float:
    return float(np.abs(first.astype(int) - second).mean())


PHOTOS = [encoded(photo(1200, 900)), encoded(photo(700, 1100), progressive=True), encoded(photo(640, 481).convert("L")),
          encoded(photo(300, 260)), encoded(photo(260, 200), subsampling=0)]  # fmt: skip


GEOMETRIES = [
    *(Geometry(96, mode) for mode in ("crop", "squash", "letterbox")),
    *(Geometry(96, color=color) for color in ("gray", "red", "blue", "ycbcr", "lab")),
    Geometry(96, "letterbox", "lab"), Geometry(96, interpolation="bicubic"), Geometry(96, stored=104, resize=110),
    Geometry(64, "crop", resize=64), Geometry(96, "letterbox", edges=("sobel",)),
    Geometry(96, "squash", "gray", edges=("sobel",)), Geometry(300),
]  # fmt: skip


@pytest.mark.parametrize(
    "geometry", GEOMETRIES, ids=lambda g: f"{g.mode}-{g.color}-{g.interpolation}-{g.kept}-{'-'.join(g.edges)}"
)
def test_pixels_are_those_of_the_cpu(geometry: Geometry) -> None:
    """The mean difference is below 0.35 of 255: the CPU decodes at a part of the size where that is enough."""
    for data, pixels in zip(PHOTOS, kernel(PHOTOS, geometry), strict=True):
        expected = decode_and_resize(data, geometry)
        assert pixels.shape == geometry.shape and pixels.dtype == np.uint8 and parse_header(data)
        assert mean_difference(pixels[:, :, :3], expected[:, :, :3]) < 0.35
        assert np.array_equal(pixels == 0, expected == 0) or geometry.mode != "letterbox" or geometry.edges or (
            mean_difference((pixels == 0).astype(np.uint8), (expected == 0).astype(np.uint8)) < 0.01
        ), "black is where it should be"  # fmt: skip


def test_real_photographs_equal_those_of_the_cpu() -> None:
    """The mean over 60 of them within 0.25, where the CPU's own kernel is allowed 0.3 from Pillow."""
    archive = Path(__file__).parents[3] / "shared" / "data" / "pets" / "images.tar.gz"
    if not archive.is_file():
        pytest.skip("the pets sample (../shared/data/pets) is not there")
    with tarfile.open(archive) as tar:
        files = islice((tar.extractfile(member) for member in tar if member.name.endswith(".jpg")), 60)
        images = [file.read() for file in files if file]
    pairs = zip(images, kernel(images, Geometry(224)), strict=True)
    differences = [mean_difference(pixels, decode_and_resize(data, Geometry(224))) for data, pixels in pairs]
    assert len(differences) == 60 and np.mean(differences) < 0.25 and max(differences) < 0.6
    assert sum(parse_header(data) is not None for data in images) > 55


def test_canny_is_computed_from_the_resized_pixels() -> None:
    edges = Geometry(96, edges=("sobel", "canny"), canny_low=30, canny_high=60)
    as_it_is = replace(edges, resize=96)
    for plain, pixels in zip(kernel(PHOTOS, Geometry(96)), kernel(PHOTOS, edges), strict=True):
        np.testing.assert_array_equal(pixels, decode_and_resize(encoded(Image.fromarray(plain), "PNG"), as_it_is))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["crop", "letterbox"])
def test_photographs_come_out_upright(orientation: int, mode: str) -> None:
    data = encoded(photo(500, 300), exif=photos.exif(orientation))
    header = parse_header(data)
    assert header and header.orientation == orientation
    upright = decode_and_resize(data, Geometry(80, mode))
    assert mean_difference(next(kernel([data], Geometry(80, mode))), upright) < 0.3
    if orientation > 1:
        plain = decode_and_resize(encoded(photo(500, 300)), Geometry(80, mode))
        assert mean_difference(plain, upright) > 5, "or else this test says nothing"


SMALL = photo(90, 60)
OTHERS = {
    "png": encoded(SMALL, "PNG"), "webp": encoded(SMALL, "WEBP"), "gif": encoded(SMALL.convert("P"), "GIF"),
    "cmyk": encoded(SMALL.convert("CMYK")), "rgb as it is": encoded(SMALL, keep_rgb=True),
    "several in one": encoded(SMALL, "MPO", save_all=True, append_images=[photo(90, 60, 1)]),
    "very long": encoded(photo(1800, 30)),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_images_that_the_device_cannot_decode_are_done_by_the_cpu(name: str) -> None:
    """The pixels are exactly those of the CPU, also within a batch of other images."""
    data = OTHERS[name]
    assert parse_header(data) is None
    images = list(kernel([PHOTOS[0], data, PHOTOS[1]], Geometry(64)))
    np.testing.assert_array_equal(images[1], decode_and_resize(data, Geometry(64)))
    np.testing.assert_array_equal(images[0], next(kernel([PHOTOS[0]], Geometry(64))))


def test_a_header_that_is_none_is_the_cpus() -> None:
    assert [parse_header(data) for data in (b"", PHOTOS[0][:30], b"\xff\xd8\xff" + bytes(50))] == [None] * 3


def test_images_that_the_device_fails_to_decode_are_done_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other images of the batch are decoded on the device."""
    real, asked = torchvision.io.decode_jpeg, []
    refused = torch.from_numpy(np.frombuffer(PHOTOS[1], np.uint8).copy())

    def refusing(tensors: list[torch.Tensor], *options: Any) -> Any:
        asked.append(len(tensors))
        if any(torch.equal(tensor, refused) for tensor in tensors):
            raise RuntimeError("nvjpegDecode failed: 5")
        return real(tensors, *options)

    expected = list(kernel(PHOTOS, Geometry(64)))
    monkeypatch.setattr(torchvision.io, "decode_jpeg", refusing)
    images = list(kernel(PHOTOS, Geometry(64)))
    assert asked[0] == 5 - 1 + 1 and 1 in asked
    np.testing.assert_array_equal(images[1], decode_and_resize(PHOTOS[1], Geometry(64)))
    for number in (0, 2, 3, 4):
        np.testing.assert_array_equal(images[number], expected[number])


def test_a_device_that_is_full_or_broken_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", full)
    with pytest.raises(TransientError, match="--gpu-share"):
        list(kernel(PHOTOS, Geometry(64)))
    monkeypatch.setattr(torchvision.io, "decode_jpeg", broken)
    if not torch.cuda.is_available():
        with pytest.raises(TransientError, match="the GPU no longer works"):
            list(make_kernel("cuda")(PHOTOS, Geometry(64)))


# Which device it is.


@pytest.fixture
def clean(tmp_path: Path) -> Dataset:
    rows = [Row(f"{n}.jpg", "ab"[n % 2], "train" if n % 4 else "val", picture(str(n), (300, 200))) for n in range(24)]
    rows.sort(key=lambda row: row.columns("ab")["shuffle_index"])
    Workspace.open(str(tmp_path))
    return cleaned(str(tmp_path / "clean" / "01"), rows)


@pytest.fixture
def a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that seems to have one."""
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(devices, "_DRIVERS", (str(tmp_path / "nvidiactl"),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def choose(clean: Dataset, **options: Any) -> tuple[str, list[str]]:
    messages: list[str] = []
    config = ResizeConfig(workspace="/x", clean=clean.uri, image_size=16, **options)
    return choose_device(config, clean, messages.append), messages


def test_the_mean_is_that_of_the_images(clean: Dataset) -> None:
    assert sample_mean_pixels(clean) == 300 * 200


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "cpu"),
        ({"gpu_pixels": 300 * 200}, "cuda"),
        ({"gpu_pixels": 300 * 200 + 1}, "cpu"),
        ({"device": "cuda"}, "cuda"),
        ({"device": "cpu", "gpu_pixels": 1}, "cpu"),
        ({"gpu_pixels": 1, "interpolation": "lanczos"}, "cpu"),
        ({"gpu_pixels": 1, "copies": 2}, "cpu"),
    ],
)
def test_the_gpu_is_for_large_images(clean: Dataset, options: dict[str, Any], expected: str) -> None:
    device, messages = choose(clean, **options)
    assert device == expected and len(messages) == (device == "cuda")


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize(
    ("option", "value", "reason"), [("copies", 2, "copies to make"), ("interpolation", "area", "area")]
)
def test_options_that_the_gpu_does_not_support_are_reported(
    clean: Dataset, option: str, value: Any, reason: str
) -> None:
    device, messages = choose(clean, device="cuda", **{option: value})
    assert device == "cpu" and len(messages) == 1 and reason in messages[0]


def test_missing_gpu_is_reported_in_one_line(clean: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device, messages = choose(clean, device="cuda")
    assert device == "cpu" and messages == [
        "device: expected a GPU, found none that torch can use: images are resized on the CPU, and the tensors are "
        "those of cpu"
    ]
    assert choose(clean, gpu_pixels=1) == ("cpu", [])


# Actors on real Ray.


def resized(clean: Dataset, run: str) -> Dataset:
    workspace = Workspace.open(clean.uri.rpartition("/clean/")[0])
    config = ResizeConfig(workspace=workspace.uri, clean=clean.uri, image_size=16, resize_workers=2, device="cuda")
    return read_dataset(resize.resize(config, Context("resize", workspace, run, bool(run))).uri, "tensors")
