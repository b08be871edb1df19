"""The demo dataset: is it the same for a seed, is it as large as promised, and is every planted fault really there?"""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from imagemill.components.download import demo, demo_shapes

MAGIC = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "GIF": b"GIF8", "BMP": b"BM"}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {file.path: file.data for file in demo.generate(0)}


@pytest.fixture(scope="module")
def planned() -> dict[str, demo.PlannedFile]:
    return {entry.path: entry for entry in demo.plan(0)}


@pytest.fixture(scope="module")
def faults() -> list[demo.Fault]:
    return demo.list_faults(0)


def of_kind(faults: list[demo.Fault], *kinds: str) -> list[demo.Fault]:
    return [fault for fault in faults if fault.kind in kinds]


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_the_same_seed_gives_the_same_bytes(files: dict[str, bytes]) -> None:
    assert {file.path: file.data for file in demo.generate(0)} == files
    assert demo.list_faults(0) == demo.list_faults(0)


def test_the_padding_byte_of_a_compressed_tiff_is_zero(files: dict[str, bytes]) -> None:
    """libtiff leaves it unset with Pillow before 13: the byte between strips of an odd length and the directory."""
    padded = 0
    for data in (data for path, data in files.items() if path.endswith(".tif")):
        if Image.open(io.BytesIO(data)).info["compression"] == "tiff_lzw":
            (directory,) = struct.unpack_from("<I", data, 4)
            spoiled = io.BytesIO(data[: directory - 1] + bytes([data[directory - 1] ^ 0x55]) + data[directory:])
            demo_shapes._zero_padding(spoiled)
            padded += spoiled.getvalue() == data
            assert spoiled.getvalue()[: directory - 1] == data[: directory - 1]
            assert spoiled.getvalue()[directory:] == data[directory:]
    assert padded >= 2


def test_another_seed_gives_other_pictures(files: dict[str, bytes]) -> None:
    other = [file for file in itertools.islice(demo.generate(1), 40) if file.path.count("/") == 2]
    assert {file.data for file in other}.isdisjoint(files.values())
    assert [f.path for f in demo.list_faults(1)] != [f.path for f in demo.list_faults(0)]


def test_a_picture_does_not_depend_on_the_others(files: dict[str, bytes], planned: dict[str, demo.PlannedFile]) -> None:
    path = next(p for p, entry in planned.items() if entry.form == "bmp" and entry.fault is None)
    image = demo.draw(0, planned[path])[0]
    assert np.array_equal(np.asarray(image), np.asarray(decoded(files[path])))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_broken_files_do_not_decode(seed: int) -> None:
    broken = {fault.path: fault for fault in of_kind(demo.list_faults(seed), "broken")}
    planned = [entry for entry in demo.plan(seed) if entry.path in broken]
    for entry in planned:
        data = demo._make_data(seed, entry)
        with pytest.raises((OSError, UnidentifiedImageError)):
            decoded(data)
        has_magic = any(data.startswith(magic) for magic in MAGIC.values())
        reason = "empty_file" if not data else "corrupt" if has_magic else "not_an_image"
        assert broken[entry.path].reason == reason
        assert entry.label and entry.split


def test_the_bomb_is_a_valid_png_of_too_many_pixels(files: dict[str, bytes], faults: list[demo.Fault]) -> None:
    (fault,) = of_kind(faults, "oversized")
    data = files[fault.path]
    assert fault.reason == "too_many_pixels" and len(data) < 200_000
    assert struct.unpack(">II", data[16:24]) == (30_000, 30_000)
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 89_478_485  # Pillow's own; our decoder turns it off
    try:
        with pytest.raises(Image.DecompressionBombError):
            Image.open(io.BytesIO(data))
    finally:
        Image.MAX_IMAGE_PIXELS = before
    at, stream = 8, b""
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        assert zlib.crc32(data[at + 4 : at + 8 + size]) == struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0]
        stream += data[at + 8 : at + 8 + size] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + size
    inflate, total = zlib.decompressobj(), 0
    pending = stream
    while pending:
        total += len(inflate.decompress(pending, 1 << 20))
        pending = inflate.unconsumed_tail
    total += len(inflate.flush())
    assert inflate.eof and total == 30_000 * (30_000 // 8 + 1)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_orientation_turns_the_picture_upright(
    orientation: int, files: dict[str, bytes], planned: dict[str, demo.PlannedFile]
) -> None:
    paths = [path for path, entry in planned.items() if entry.form == f"jpeg_turned_{orientation}"]
    assert len(paths) >= 3
    for path in paths:
        stored = decoded(files[path])
        assert stored.getexif()[0x0112] == orientation
        turned = np.asarray(ImageOps.exif_transpose(stored), np.float32)
        meant = np.asarray(demo.draw(0, planned[path])[0], np.float32)
        assert turned.shape == meant.shape
        assert np.abs(turned - meant).mean() < 12
        assert stored.size != (meant.shape[1], meant.shape[0]) or np.abs(np.asarray(stored) - meant).mean() > 12


def test_color_does_not_give_the_class_away(planned: dict[str, demo.PlannedFile]) -> None:
    """Nearest class mean over the average color of the middle guesses about as well as chance (one in six)."""
    entries = [entry for path, entry in planned.items() if entry.split in ("val", "test") and not entry.damage]
    colors, labels = [], []
    for entry in entries:
        image = demo.draw(0, entry)[0]
        w, h = image.size
        middle = image.crop((w * 3 // 8, h * 3 // 8, w * 5 // 8, h * 5 // 8))
        colors.append(np.asarray(middle, np.float32).mean((0, 1)))
        labels.append(demo.CLASSES.index(entry.shown))
    x, y = np.stack(colors), np.array(labels)
    half = np.arange(len(y)) % 2 == 0
    means = np.stack([x[half & (y == k)].mean(0) for k in range(len(demo.CLASSES))])
    guess = np.linalg.norm(x[~half][:, None] - means[None], axis=2).argmin(1)
    assert (guess == y[~half]).mean() < 0.4
