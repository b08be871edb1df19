"""Every kind of bad file is rejected for its reason, and every odd but valid one is kept."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import layout
import numpy as np
import pictures
import pytest
from commands import Workspace
from PIL import Image


def picture(number: int, mode: str = "RGB", side: int = 64) -> Image.Image:
    return Image.fromarray(pictures.smooth_pixels(number, side, side)).convert(mode)


def declare_size(png: bytes, width: int, height: int) -> bytes:
    """Return a PNG whose header names another size."""
    data = bytearray(png)
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def flip_bytes(data: bytes, start: int, count: int) -> bytes:
    changed = bytearray(data)
    for place in range(start, start + count):
        changed[place] ^= 0xFF
    return bytes(changed)


def with_orientation(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return pictures.encode(image, "JPEG", quality=95, exif=exif)


def gray_16_bit(number: int) -> bytes:
    gray = np.asarray(picture(number, "L")).astype(np.uint16) * 257
    return pictures.encode(Image.fromarray(gray), "PNG")


def animation(number: int) -> bytes:
    out = io.BytesIO()
    frames = [picture(number + offset, "P") for offset in range(2)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def float_tiff(number: int) -> bytes:
    return pictures.encode(Image.fromarray(np.asarray(picture(number, "L")).astype(np.float32) / 3), "TIFF")


@dataclass(frozen=True)
class Case:
    """A file by name and bytes, the reason for which it must be rejected (empty: kept), and its upright size then."""

    name: str
    data: bytes
    reason: str
    size: tuple[int, int] = (64, 64)


JPEG, PNG = pictures.encode(picture(1), "JPEG", quality=92), pictures.encode(picture(2), "PNG")
CASES = {
    "truncated JPEG": Case("a.jpg", cut(pictures.encode(picture(3), "JPEG"), 0.6), "corrupt"),
    "JPEG without its last bytes": Case("b.jpg", pictures.encode(picture(4), "JPEG", quality=95)[:-30], "corrupt"),
    "truncated PNG": Case("c.png", cut(pictures.encode(picture(5)), 0.5), "corrupt"),
    "PNG with damaged data": Case("d.png", flip_bytes(pictures.encode(picture(6)), 400, 40), "corrupt"),
    "JPEG of a header alone": Case("e.jpg", JPEG[:200], "corrupt"),
    "empty file": Case("f.jpg", b"", "empty_file"),
    "text under an image's name": Case("g.jpg", b"there is no picture in this file\n" * 20, "not_an_image"),
    "web page under an image's name": Case("h.png", b"<!DOCTYPE html><html><body>404</body></html>", "not_an_image"),
    "zeros": Case("i.jpg", bytes(5000), "not_an_image"),
    "PDF under an image's name": Case("j.jpg", b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n" * 9, "not_an_image"),
    "bomb that declares 16 gigapixels": Case("k.png", declare_size(PNG, 40_000, 40_000), "too_many_pixels"),
    "side above 65,500": Case("l.png", pictures.encode(Image.new("L", (65_501, 2), 9)), "side_too_long"),
    "float TIFF": Case("m.tif", float_tiff(7), "unsupported_bands"),
    "PNG under a JPEG's name": Case("n.jpg", pictures.encode(picture(8)), ""),
    "JPEG under a PNG's name": Case("o.png", pictures.encode(picture(9), "JPEG"), ""),
    "CMYK JPEG": Case("p.jpg", pictures.encode(picture(10, "CMYK"), "JPEG", quality=95), ""),
    "palette PNG": Case("q.png", pictures.encode(picture(11).quantize(64)), ""),
    "gray JPEG": Case("r.jpg", pictures.encode(picture(12, "L"), "JPEG"), ""),
    "16-bit PNG": Case("s.png", gray_16_bit(13), ""),
    "RGBA PNG": Case("t.png", pictures.encode(picture(14, "RGBA")), ""),
    "one-bit PNG": Case("u.png", pictures.encode(picture(15, "1")), ""),
    "animated GIF": Case("v.gif", animation(16), ""),
    "progressive JPEG": Case("w.jpg", pictures.encode(picture(18), "JPEG", progressive=True), ""),
    "WebP": Case("x.webp", pictures.encode(picture(19), "WEBP"), ""),
    "TIFF": Case("y.tif", pictures.encode(picture(20), "TIFF", compression="tiff_lzw"), ""),
    "BMP": Case("z.bmp", pictures.encode(picture(21), "BMP"), ""),
    "turned by EXIF": Case("turned.jpg", with_orientation(picture(22).crop((0, 0, 64, 40)), 6), "", (40, 64)),
    "bytes behind a JPEG": Case("tail.jpg", pictures.encode(picture(23), "JPEG") + b"#!/bin/sh\n" * 9, ""),
    "one pixel": Case("pixel.png", pictures.encode(Image.new("RGB", (1, 1), "teal")), "", (1, 1)),
}


@dataclass(frozen=True)
class Cleaned:
    kept: dict[str, layout.Row]
    rejected: dict[str, str]


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Cleaned:
    folder = tmp_path_factory.mktemp("bad")
    rows = []
    for number, case in enumerate(CASES.values()):
        pictures.write(folder / "source" / case.name, case.data)
        rows.append({"path": case.name, "label": ("cat", "dog")[number % 2], "split": "train"})
    for number in range(4):  # something to keep beside them
        pictures.write(folder / "source" / f"good{number}.png", pictures.encode(picture(100 + number)))
        rows.append({"path": f"good{number}.png", "label": ("cat", "dog")[number % 2], "split": "test"})
    workspace = Workspace(str(folder / "work"))
    clean = workspace.clean(workspace.download("csv", pictures.write_table(folder / "source" / "labels.csv", rows)))
    return Cleaned(layout.kept_images(clean), layout.rejected_images(clean))


@pytest.mark.parametrize("name", CASES)
def test_file_is_kept_or_rejected_for_its_reason(name: str, cleaned: Cleaned) -> None:
    case = CASES[name]
    assert cleaned.rejected.get(case.name, "") == case.reason
    assert (case.name in cleaned.kept) == (not case.reason)
    if not case.reason:
        row = cleaned.kept[case.name]
        assert row["bytes"] == case.data, "where no pixel changes, the bytes are the source's"
        assert (row["width"], row["height"]) == case.size


@pytest.mark.parametrize(
    ("options", "reason", "name"),
    [
        (["--min-side", "48"], "too_small", "small.png"),
        (["--max-aspect", "3"], "extreme_aspect", "long.png"),
        (["--min-contrast", "0.02"], "blank", "blank.png"),
        (["--max-pixels", "20000"], "too_many_pixels", "large.png"),
        (["--max-side", "150"], "side_too_long", "large.png"),
    ],
)
def test_limit_rejects_what_breaks_it(
    options: list[str], reason: str, name: str, limits: tuple[Workspace, str]
) -> None:
    workspace, raw = limits
    rejected = layout.rejected_images(workspace.clean(raw, *options))
    assert rejected.get(name) == reason
    assert not [image_id for image_id in rejected if image_id.startswith("plain")]
    assert not layout.rejected_images(workspace.clean(raw)), "without limits all are kept"


@pytest.fixture(scope="module")
def limits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str]:
    """A raw dataset with plain pictures and one that breaks each limit."""
    folder = tmp_path_factory.mktemp("limits")
    files = {f"plain{number}.png": picture(200 + number) for number in range(4)} | {
        "small.png": picture(300, side=40).resize((40, 60)), "blank.png": Image.new("RGB", (64, 64), "gray"),
        "long.png": picture(301).resize((160, 50)).crop((0, 0, 150, 48)), "large.png": picture(302, side=160),
    }  # fmt: skip
    rows = []
    for number, (name, image) in enumerate(files.items()):
        pictures.write(folder / name, pictures.encode(image))
        rows.append({"path": name, "label": ("cat", "dog")[number % 2]})
    workspace = Workspace(str(folder / "work"))
    return workspace, workspace.download("csv", pictures.write_table(folder / "labels.csv", rows))
