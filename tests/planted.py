"""A source with planted faults: every file known by name, with the reason for which cleaning must reject it, or none.

Files are made from real photographs where the sample of Oxford-IIIT Pet lies beside the repository, else from made
ones. Each damaged file has a picture of its own, so that no two decode to the same pixels unless that is planted.
Whether a damaged file is still a valid image is for Pillow to say (`judge`), not for what is tested.
"""

from __future__ import annotations

import csv
import functools
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import photos
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
ENDINGS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp"}
SPLITS = ("train", "train", "val", "test")
LABELS = ("cat", "dog")
PIXELS, SIDE, BYTES = 178_956_970, 65_500, 256 * 2**20
"""The limits that cleaning promises: pixels as Pillow's own for an error, side as libjpeg's."""
CODINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 85}),
    "jpeg progressive": ("JPEG", {"quality": 85, "progressive": True}),
    "jpeg 444": ("JPEG", {"quality": 92, "subsampling": 0}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {"quality": 80, "method": 0}),
    "webp lossless": ("WEBP", {"lossless": True, "method": 0, "quality": 20}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "bmp": ("BMP", {}),
}
"""What is damaged: by name, a format and how Pillow writes it."""


@dataclass(frozen=True)
class Plant:
    """A row of the source. `data` None: the table names it, but it is not there. `reason`: nothing where it must be
    kept, with `size` (width, height) upright. `cells`: more columns of the table; `mask`: a file beside it."""

    path: str
    data: bytes | None
    kind: str
    reason: str
    label: str
    split: str
    size: tuple[int, int] | None = None
    cells: dict[str, str] = field(default_factory=dict)
    mask: bytes | None = None


@functools.cache
def stems() -> tuple[str, ...]:
    """The photographs of the sample, by name; none where it is not there."""
    if not (photos.SAMPLE / "MANIFEST.csv").exists():
        return ()
    with (photos.SAMPLE / "MANIFEST.csv").open(newline="") as file:
        return tuple(Path(row["image"]).stem for row in csv.DictReader(file))


@functools.lru_cache(32)
def _photograph(number: int) -> Image.Image:
    names = stems()
    if not names:
        return Image.fromarray(photos.made(number, 240, 200))
    return Image.open(io.BytesIO(photos.pet(names[number % len(names)]))).convert("RGB")


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    return photos.saved(picture.quantize(64) if kind == "GIF" and picture.mode == "RGB" else picture, kind, **options)


def signed(data: bytes) -> bool:
    """Return whether the bytes begin as one of `FORMATS` does, as far as its specification fixes the beginning."""
    if data[:2] == b"BM":  # two letters are no signature: the size of the header behind them is one of seven
        return int.from_bytes(data[14:18], "little") in (12, 40, 52, 56, 64, 108, 124)
    tiff = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", *tiff)
    return data.startswith(starts) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def judge(data: bytes) -> tuple[str, tuple[int, int] | None]:
    """(no reason, size upright) where Pillow decodes all of it, else (the reason, None)."""
    if not data:
        return "empty_file", None
    if not signed(data):
        return "not_an_image", None
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = picture.size
        if width * height > PIXELS:
            return "too_many_pixels", None
        if max(width, height) > SIDE:
            return "side_too_long", None
        picture.load()
        if picture.mode in ("F", "LAB", "HSV") or (picture.mode == "I" and np.asarray(picture).max() > 0xFFFF):
            return "unsupported_bands", None
        return "", ImageOps.exif_transpose(picture).size
    except Exception:  # Pillow raises anything on broken bytes
        return "unsupported_bands" if _strange_bands(data) else "corrupt", None


def _strange_bands(data: bytes) -> bool:
    """Return whether Pillow parses the header as that of a TIFF, without a mode for its bands, or as that of a JPEG of
    9 to 16 bits a sample, which a flipped bit can cause."""
    for reader in (TiffImageFile, JpegImageFile):
        try:
            reader(io.BytesIO(data))
        except SyntaxError as error:
            bits = re.search(r"cannot handle (\d+)-bit layers", str(error))
            if "unknown pixel mode" in str(error) or (bits and 8 < int(bits[1]) <= 16):
                return True
        except Exception:
            continue
    return False


class Bed:
    """A source in which faults are planted. `bed.picture()` is a new one every time; what is added is numbered."""

    def __init__(self, seed: int) -> None:
        self.plants: list[Plant] = []
        self.random = np.random.default_rng(seed)
        self._pictures = int(self.random.integers(100))

    def picture(self, mode: str = "RGB", width: int = 0, height: int = 0) -> Image.Image:
        """A window of a photograph, 64 to 128 pixels a side unless told, enlarged where the photograph is small."""
        width, height = (side or int(self.random.integers(64, 129)) for side in (width, height))
        while True:  # an even wall or sky would be a blank image
            window = self._window(width, height)
            if np.asarray(window.convert("L")).std() > 8 or width * height < 4:
                break
        # A color by chance at one place: no two windows are the same.
        window.putpixel((0, 0), tuple(int(v) for v in self.random.integers(0, 256, 3)))
        return window.convert(mode)

    def _window(self, width: int, height: int) -> Image.Image:
        photograph = _photograph(self._pictures // 8)
        self._pictures += 1
        if photograph.width < width or photograph.height < height:
            photograph = photograph.resize((max(photograph.width, width), max(photograph.height, height)))
        left, top = (
            int(self.random.integers(0, room + 1)) for room in (photograph.width - width, photograph.height - height)
        )
        return photograph.crop((left, top, left + width, top + height))

    def coded(self, coding: str, mode: str = "RGB") -> bytes:
        """A new picture in one of `CODINGS`."""
        kind, options = CODINGS[coding]
        return saved(self.picture(mode), kind, **options)

    def add(
        self, kind: str, name: str, data: bytes | None, reason: str | None = None, *, label: str | None = None,
        split: str | None = None, **more: Any,
    ) -> Plant:  # fmt: skip
        """`reason` None: Pillow's verdict. A file that is planted as valid must be so for Pillow, too."""
        number = len(self.plants)
        size = None
        if reason is None or reason == "":
            assert data is not None
            verdict, size = judge(data)
            assert reason is None or verdict == "", f"{kind} {name}: planted as valid, Pillow says {verdict}"
            reason = verdict
        label = LABELS[number % 2] if label is None else label
        split = SPLITS[number // 2 % 4] if split is None else split
        path = f"{kind.replace(' ', '-')}/{number:04d}-{name}"
        self.plants.append(Plant(path, data, kind, reason, label, split, size, **more))
        return self.plants[-1]

    def write(self, folder: Path) -> Path:
        """The files, and the table that names them."""
        names = ["path", "label", "split", *sorted({name for plant in self.plants for name in plant.cells}), "mask"]
        rows = []
        for plant in self.plants:
            row = {"path": plant.path, "label": plant.label, "split": plant.split, "mask": "", **plant.cells}
            if plant.mask is not None:
                row["mask"] = f"masks/{plant.path}.png"
                _write(folder / row["mask"], plant.mask)
            if plant.data is not None:
                _write(folder / plant.path, plant.data)
            rows.append(row)
        with (folder / "labels.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(rows)
        return folder / "labels.csv"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def good(bed: Bed, number: int = 40) -> None:
    for n in range(number):
        coding = list(CODINGS)[n % len(CODINGS)]
        bed.add("good", f"plain.{ENDINGS[CODINGS[coding][0]]}", bed.coded(coding), "")


def truncated(bed: Bed, points: Iterable[float]) -> None:
    """Cut at shares of the length, and by single bytes at both ends."""
    points = list(points)
    for coding, (kind, _) in CODINGS.items():
        for cut in [*points, -1, -2, -3, -8, 2, 5, 11, 16, 33]:
            data = bed.coded(coding)
            length = round(cut * len(data)) if 0 < cut < 1 else int(cut) % len(data)
            bed.add(f"truncated {coding}", f"cut.{ENDINGS[kind]}", data[:length])


def flipped(bed: Bed, each: int) -> None:
    """1 to 16 bits anywhere in the file; and one within the first 200 bytes, where the header is."""
    for coding, (kind, _) in CODINGS.items():
        for number in range(each):
            data = bytearray(bed.coded(coding))
            reach, bits = (200, 1) if number % 3 == 2 else (len(data), 2 ** (number % 5))
            for at in bed.random.integers(0, 8 * reach, bits).tolist():
                data[at // 8] ^= 1 << at % 8
            bed.add(f"bit flips {coding}", f"flipped.{ENDINGS[kind]}", bytes(data))


def zeroed(bed: Bed, each: int) -> None:
    """Blocks of zeros in the middle, and to the end, as a download leaves them that was cut off; nothing but zeros."""
    for coding, (kind, _) in CODINGS.items():
        for number in range(each):
            data = bytearray(bed.coded(coding))
            start = int(bed.random.integers(1, len(data)))
            end = len(data) if number % 2 else min(len(data), start + int(bed.random.integers(1, 1025)))
            data[start:end] = bytes(end - start)
            bed.add(f"zeros in {coding}", f"zeros.{ENDINGS[kind]}", bytes(data))
    for ending, length in (("jpg", 1), ("png", 100), ("gif", 4096), ("webp", 70_000)):
        bed.add("all zeros", f"zeros.{ending}", bytes(length), "not_an_image")
    for ending in ENDINGS.values():
        bed.add("empty", f"empty.{ending}", b"", "empty_file")


def disguised(bed: Bed) -> None:
    """Every format under every other's name."""
    for coding in ("jpeg", "png", "gif", "webp", "tiff", "bmp"):
        for ending in ENDINGS.values():
            if ending != ENDINGS[CODINGS[coding][0]]:
                bed.add("wrong ending", f"{coding}.{ending}", bed.coded(coding), "")


def polyglots(bed: Bed) -> None:
    """Files of two kinds, and other files under an image's name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("payload.txt", "hello " * 50)
    script, page = b"#!/bin/sh\nrm -rf /tmp/nothing\n" * 20, b"<!DOCTYPE html><html><body>404</body></html>" * 9
    for coding in ("jpeg", "jpeg progressive", "png", "gif", "webp", "bmp", "tiff"):
        ending = ENDINGS[CODINGS[coding][0]]
        for description, tail in (
            ("zip", archive.getvalue()),
            ("script", script),
            ("zeros", bytes(64)),
            ("html", page),
        ):
            bed.add("polyglot behind an image", f"{coding}-{description}.{ending}", bed.coded(coding) + tail, "")
    comment = b"\xff\xfe" + struct.pack(">H", 2 + len(page)) + page
    data = bed.coded("jpeg")
    bed.add("polyglot behind an image", "page-in-a-comment.jpg", data[:2] + comment + data[2:], "")
    javascript = bytearray(bed.coded("gif"))
    javascript[6:10] = b"/*" + struct.pack("<H", 128)  # 10,799 pixels wide, which opens a comment of the script
    bed.add("polyglot behind an image", "script.gif", bytes(javascript) + b"*/=1;alert(1)", "")
    bed.add("polyglot, no image", "script.gif", b"GIF89a/*" + b" " * 40 + b"*/=1;alert(1);", "corrupt")
    bed.add("polyglot, no image", "begins.jpg", b"\xff\xd8\xff\xe0" + page, "corrupt")
    bed.add("polyglot, no image", "begins.png", b"\x89PNG\r\n\x1a\n" + page, "corrupt")
    other_files = {
        "page.jpg": page, "script.png": script, "document.jpg": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n" * 9,
        "archive.png": archive.getvalue(), "drawing.jpg": b'<svg xmlns="http://www.w3.org/2000/svg"/>' * 9,
        "text.bmp": b"BMW builds cars and motorcycles. " * 9, "sound.webp": b"RIFF\x24\0\0\0WAVEfmt " + bytes(30),
        "late.jpg": b"\r\n" + bed.coded("jpeg"), "late.gif": b" " + bed.coded("gif"),
        "error.jpg": b'{"error": "access denied"}', "upper.gif": b"gif89a" + bed.coded("gif")[6:],
    }  # fmt: skip
    for name, data in other_files.items():
        bed.add("other file", name, data, "not_an_image")


def too_large(bed: Bed) -> None:
    """Headers that declare more than can be decoded, in some hundred bytes; and a real one."""
    for width, height, reason in ((SIDE, SIDE, "too_many_pixels"), (13_378, 13_378, "too_many_pixels")):
        for name, data in headers(width, height).items():
            bed.add(f"declares {width:,} a side", f"bomb.{ENDINGS[name]}", data, reason)
    for width, height in ((65_501, 2), (1, 65_535)):
        bed.add("side of more than 65,500", "long.png", saved(Image.new("L", (width, height), 9)), "side_too_long")
    bed.add("side of 65,500", "long.png", saved(Image.new("L", (SIDE, 1), 9)), "")
    bed.add("a whole bomb", "whole.png", saved(Image.new("1", (13_400, 13_400))), "too_many_pixels")


def headers(width: int, height: int) -> dict[str, bytes]:
    """Make by format a small file that declares this size; sides of a WebP are at most 2^24, of a JPEG 2^16 - 1."""
    small = Image.new("RGB", (8, 8), "teal")
    png = bytearray(saved(small))
    png[16:24] = struct.pack(">II", width, height)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    jpeg = bytearray(saved(small, "JPEG"))
    offset = jpeg.index(b"\xff\xc0") + 5
    jpeg[offset : offset + 4] = struct.pack(">HH", height, width)
    gif = bytearray(saved(small, "GIF"))
    gif[6:10] = struct.pack("<HH", width, height)
    frame = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1) if gif[10] & 128 else 13)
    gif[frame + 5 : frame + 9] = struct.pack("<HH", width, height)
    bmp = bytearray(saved(small, "BMP"))
    bmp[18:26] = struct.pack("<ii", width, height)
    tiff = bytearray(saved(small, "TIFF"))
    for tag, value in ((256, width), (257, height)):
        offset = tiff.index(struct.pack("<H", tag), int.from_bytes(tiff[4:8], "little"))
        tiff[offset : offset + 12] = struct.pack("<HHII", tag, 4, 1, value)
    webp = bytearray(saved(small, "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]))
    webp[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    files = {"PNG": png, "JPEG": jpeg, "GIF": gif, "BMP": bmp, "TIFF": tiff, "WEBP": webp}
    return {name: bytes(data) for name, data in files.items()}


def outcome_table(plants: Sequence[Plant], found: dict[str, str]) -> tuple[str, list[str]]:
    """(reason, planted, found, recall, precision as a table; what differs). `found`: the reason by image_id."""
    planted = {plant.path: plant.reason for plant in plants}
    lines = [f"{'reason':24}{'planted':>9}{'found':>9}{'recall':>9}{'precision':>11}"]
    for reason in sorted({*planted.values(), *found.values()}):
        planted_ids, found_ids = ({i for i, r in side.items() if r == reason} for side in (planted, found))
        common = len(planted_ids & found_ids)
        shares = [f"{common / len(side):.4f}" if side else "-" for side in (planted_ids, found_ids)]
        lines.append(f"{reason or '(kept)':24}{len(planted_ids):9,}{len(found_ids):9,}{shares[0]:>9}{shares[1]:>11}")
    kinds = {plant.path: plant.kind for plant in plants}
    wrong = [
        f"{path} ({kinds.get(path, '?')}): planted as {planted.get(path, 'nothing')!r}, found {found.get(path)!r}"
        for path in sorted({*planted, *found})
        if planted.get(path) != found.get(path)
    ]
    return "\n".join(lines), wrong
