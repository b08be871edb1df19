"""More planted rows: valid images of rare kinds, some that 8 bits can't hold, copies, and wrong annotations."""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image
from planted import Bed, saved

ORIENTATION = 0x0112
KEPT_FIRST = ("test", "val", "train")
"""Of copies the one in test stays before the one in val before the one in train; then the smallest image_id."""
_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip
"""How an upright picture is stored under each EXIF orientation."""


def turned(upright: Image.Image, orientation: int, kind: str, **options: Any) -> bytes:
    """A file that is `upright` once its EXIF orientation is applied."""
    stored = upright.transpose(_BACK[orientation]) if orientation in _BACK else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(stored, kind, exif=exif, **options)


def oddities(bed: Bed) -> None:
    """Valid images of rare kinds: all must be kept, and as they are."""
    for mode in ("1", "L", "P", "RGBA", "LA", "CMYK", "I;16"):
        for kind, options in _MODES[mode]:
            name = f"{mode.replace(';', '')}.{kind.lower()}"
            bed.add(f"mode {mode}", name, saved(_of_mode(bed, mode), kind, **options), "")
    for mode in ("CMYK", "L", "RGB"):
        for options in ({}, {"progressive": True}, {"quality": 30, "optimize": True}, {"restart_marker_rows": 2}):
            bed.add(f"jpeg {mode}", "odd.jpg", saved(bed.picture(mode), "JPEG", **options), "")
    for number in range(3):
        ycck = simplejpeg.encode_jpeg(np.array(bed.picture("CMYK")), 60 + 15 * number, "CMYK", "444")
        assert b"Adobe" in ycck, "an Adobe marker says that it is YCCK"
        bed.add("jpeg YCCK", "adobe.jpg", ycck, "")
        bed.add("jpeg of RGB", "adobe.jpg", saved(bed.picture(), "JPEG", keep_rgb=True, subsampling=0), "")
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        for orientation in range(9):
            data = turned(bed.picture(width=90, height=70), orientation, kind)
            plant = bed.add("EXIF orientation", f"{orientation}.{kind.lower()}", data, "")
            assert plant.size == (90, 70)
    for kind, number in (("GIF", 5), ("WEBP", 3), ("PNG", 4)):
        frames = [bed.picture(width=80, height=60) for _ in range(number)]
        frames = [frame.quantize(64) for frame in frames] if kind == "GIF" else frames
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=40)
        bed.add("animation", f"moving.{kind.lower()}", data, "")
    frames = [bed.picture(width=80, height=60) for _ in range(3)]
    bed.add("several pages", "pages.tif", saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]), "")
    bed.add("several pages", "two.jpg", saved(frames[1], "MPO", save_all=True, append_images=frames[2:]), "")
    for name, data in _by_hand(bed).items():
        bed.add("rare forms", name, data, "")
    for side in (1, 2, 7):
        bed.add("tiny", "tiny.png", saved(bed.picture(width=side, height=side)), "")


_MODES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "1": [("PNG", {}), ("BMP", {}), ("TIFF", {"compression": "group4"})],
    "L": [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("GIF", {})],
    "P": [("PNG", {}), ("PNG", {"bits": 4}), ("GIF", {}), ("BMP", {}), ("TIFF", {}), ("PNG", {"transparency": 3}),
          ("PNG", {"transparency": bytes(range(0, 256, 8))}), ("GIF", {"transparency": 2}), ("GIF", {"interlace": 1})],
    "RGBA": [("PNG", {}), ("WEBP", {"lossless": True}), ("WEBP", {"quality": 70}), ("TIFF", {}), ("BMP", {})],
    "LA": [("PNG", {}), ("TIFF", {})],
    "CMYK": [("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
    "I;16": [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
}  # fmt: skip


def _of_mode(bed: Bed, mode: str) -> Image.Image:
    if mode == "P":
        return bed.picture().quantize(16)
    if mode == "I;16":
        gray = np.array(bed.picture("L")).astype(np.uint16)
        return Image.fromarray(gray * 257 - bed.random.integers(0, 2, gray.shape).astype(np.uint16) * (gray > 0))
    picture = bed.picture("L" if mode == "LA" else mode)
    if mode in ("RGBA", "LA"):
        slope = np.linspace(0, 255, picture.width * picture.height).reshape(picture.height, picture.width)
        picture.putalpha(Image.fromarray(slope.astype(np.uint8)))
    return picture


def _by_hand(bed: Bed) -> dict[str, bytes]:
    """Make files that Pillow reads but does not write."""
    sixteen = np.array(bed.picture()).astype(np.uint16) * 257
    webp, tiff = (cv2.cvtColor(np.array(bed.picture()), cv2.COLOR_RGB2BGR) for _ in range(2))
    upside_down = bytearray(saved(bed.picture(), "BMP"))
    upside_down[22:26] = struct.pack("<i", -struct.unpack("<i", upside_down[22:26])[0])
    jpeg = saved(bed.picture(), "JPEG")
    gif = saved(bed.picture().quantize(64), "GIF")
    return {
        "16-bit-rgb.png": cv2.imencode(".png", sixteen)[1].tobytes(),
        "opencv.webp": cv2.imencode(".webp", webp)[1].tobytes(),
        "opencv.tiff": cv2.imencode(".tiff", tiff)[1].tobytes(),
        "top-down.bmp": bytes(upside_down),
        "big-endian-16.tiff": saved(Image.frombytes("I;16B", (40, 30), sixteen[:30, :40, 0].tobytes()), "TIFF"),
        "big.tiff": saved(bed.picture(), "TIFF", big_tiff=True),
        "comment.jpg": jpeg[:2] + b"\xff\xfe\x00\x08hello!" + jpeg[2:],
        "broken-exif.jpg": jpeg[:2] + b"\xff\xe1\x00\x0cExif\0\0junk" + saved(bed.picture(), "JPEG")[2:],
        "fill-bytes.jpg": jpeg[:2] + b"\xff\xff\xff\xfe\x00\x04hi" + saved(bed.picture(), "JPEG")[2:],
        "one-byte-more.jpg": saved(bed.picture(), "JPEG") + b"\n",
        "87.gif": b"GIF87a" + gif[6:],
        "icc.jpg": saved(bed.picture(), "JPEG", icc_profile=b"\0" * 200),
        "text.png": _with_chunk(saved(bed.picture()), b"tEXt", b"Comment\0hello"),
    }  # fmt: skip


def _with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:33] + chunk + png[33:]


def unsupported(bed: Bed) -> None:
    """Whole images that 8 bits a band can't represent without a guess."""
    for number in range(4):
        gray = np.array(bed.picture("L"))
        plane: npt.NDArray[Any] = gray.astype(np.float32) / 7 - 100 * number
        if number == 2:
            plane = gray.astype(np.int32) << 12
        options = {"compression": "tiff_lzw"} if number == 3 else {}
        bed.add(
            "float and 32-bit TIFF", "deep.tif", saved(Image.fromarray(plane), "TIFF", **options), "unsupported_bands"
        )
    bands = cv2.imencode(".tiff", np.array(bed.picture()).astype(np.float32))[1].tobytes()
    bed.add("float and 32-bit TIFF", "three-bands.tif", bands, "unsupported_bands")
    bed.add("LAB TIFF", "lab.tif", saved(_lab(bed.picture()), "TIFF"), "unsupported_bands")


def _lab(picture: Image.Image) -> Image.Image:
    return Image.frombytes("LAB", picture.size, cv2.cvtColor(np.array(picture), cv2.COLOR_RGB2LAB).tobytes())


def twelve_bits(bed: Bed) -> None:
    """JPEGs whose frame header says 12 bits a sample, as medical ones do: extended and progressive."""
    for progressive in (False, True):
        data = bytearray(saved(bed.picture(), "JPEG", progressive=progressive))
        at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
        data[at + 1] = 0xC2 if progressive else 0xC1
        data[at + 4] = 12
        bed.add("12-bit JPEG", "deep.jpg", bytes(data), "unsupported_bands")


def copies(bed: Bed, groups: int = 24) -> None:
    """Groups of the same bytes, and of the same pixels in other formats; one of each group must be kept."""
    for number in range(groups):
        picture = bed.picture().quantize(64).convert("RGB")  # 64 colors go into a GIF without loss
        jpeg = saved(picture, "JPEG")
        decoded = Image.open(io.BytesIO(jpeg)).convert("RGB")
        gray = picture.convert("L")
        files = (
            [("a.jpg", jpeg)] * (2 + number % 4),
            [("a.jpg", jpeg), ("a.jpg", jpeg), ("b.jpg", jpeg[:2] + b"\xff\xfe\x00\x06copy" + jpeg[2:])],
            [(f"a.{kind}", saved(picture, kind, **options)) for kind, options in _LOSSLESS],
            [(f"{n}.png", turned(picture, n, "PNG")) for n in bed.random.permutation(range(1, 9)).tolist()],
            [("gray.png", saved(gray)), ("color.png", saved(gray.convert("RGB"))), ("gray.bmp", saved(gray, "BMP"))],
            [("a.jpg", jpeg), ("a.png", saved(decoded)), ("a.png", saved(decoded)), ("a.tiff", saved(decoded, "TIFF"))],
        )[number % 6]
        _plant_group(bed, "copies", files, ["cat"] * len(files), "keep")


_LOSSLESS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("png", {}), ("gif", {}), ("bmp", {}), ("tiff", {"compression": "tiff_lzw"}), ("webp", {"lossless": True})
)  # fmt: skip


def conflicts(bed: Bed, policy: str, groups: int = 20) -> int:
    """Groups of the same pixels, half of them with one label that contradicts the others, half with a tie."""
    for number in range(groups):
        picture = bed.picture()
        files = [(f"{n}.{kind}", saved(picture, kind)) for n, kind in enumerate(("png", "bmp", "tiff", "png"))]
        labels = (["cat", "dog"], ["cat", "cat", "dog"], ["dog", "cat", "cat", "dog"], ["dog", "dog", "cat", "dog"])
        chosen = labels[number % 4]
        _plant_group(bed, "label conflict", files[: len(chosen)], chosen, policy)
    return groups


def _plant_group(bed: Bed, kind: str, files: list[tuple[str, bytes]], labels: list[str], policy: str) -> None:
    """Files of equal pixels, each with the reason that follows from the policy and from who is kept first."""
    splits = bed.random.choice(["train", "train", "val", "test"], len(files)).tolist()
    winner = ""
    if policy == "drop_minority" and len(votes := Counter(labels).most_common()) > 1:
        winner = votes[0][0] if votes[0][1] > votes[1][1] else ""
    start = len(bed.plants)
    paths = [f"{start + n:04d}" for n in range(len(files))]
    losers = policy != "keep" and len(set(labels)) > 1
    remaining = [n for n, label in enumerate(labels) if not losers or label == winner]
    remaining.sort(key=lambda n: (KEPT_FIRST.index(splits[n]), paths[n]))
    for n, (name, data) in enumerate(files):
        if n not in remaining:
            reason = "label_conflict"
        elif n == remaining[0]:
            reason = ""
        else:
            reason = "duplicate_bytes" if data == files[remaining[0]][1] else "duplicate_pixels"
        bed.add(kind, name, data, reason, label=labels[n], split=splits[n])


def unlabeled(bed: Bed) -> None:
    """Rows without a label, and rows whose file is not there."""
    for label in ("", " ", "\t", ""):
        bed.add("no label", "picture.png", bed.coded("png"), "no_label", label=label)
    bed.add("no label", "broken-too.png", b"", "no_label", label="")
    for ending in ("jpg", "png", "tif"):
        bed.add("not there", f"gone.{ending}", None, "missing_file")


def against_the_rules(bed: Bed) -> dict[str, Any]:
    """Plant rows that only strict options reject; return these options. The class list is `cat`, `dog` and `rare`."""
    for width, height in ((31, 90), (90, 31), (16, 16), (1, 400)):
        bed.add("too small", "small.png", saved(bed.picture(width=width, height=height)), "too_small")
    bed.add("just large enough", "edge.png", saved(bed.picture(width=32, height=32)), "")
    for width, height in ((129, 32), (33, 133), (900, 40)):
        bed.add("extreme sides", "long.png", saved(bed.picture(width=width, height=height)), "extreme_aspect")
    for width, height in ((128, 32), (33, 132)):
        bed.add("just not extreme", "edge.png", saved(bed.picture(width=width, height=height)), "")
    for number, color in enumerate(("black", "white", "gray", "teal", "#010203")):
        blank = Image.new("RGB", (60 + number, 50), color)
        bed.add("blank", "blank.png", saved(blank), "blank")
    for label in ("cow", "cow", "Cat", "Cat", "cat;dog", "cat;dog"):
        bed.add("unknown label", "picture.jpg", bed.coded("jpeg"), "unknown_label", label=label)
    bed.add("rare class", "picture.jpg", bed.coded("jpeg"), "rare_class", label="rare")
    _boxes(bed)
    _masks(bed)
    return {
        "min_side": 32, "max_aspect": 4.0, "min_contrast": 0.01, "unknown_labels": "reject", "rare_classes": "drop",
        "rare_below": 2, "roi": "largest", "background": "fill",
    }  # fmt: skip


def _boxes(bed: Bed) -> None:
    for box in ((400, 10, 460, 60), (10, 500, 60, 560), (-50, 10, -3, 60), (10, -90, 60, -8), (101, 1, 110, 20)):
        cells = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(str, box), strict=True))
        bed.add("box without area", "boxed.png", saved(bed.picture(width=100, height=90)), "bad_box", cells=cells)
    for box in ((1, 1, 60, 50), (20, 20, 500, 500), (-20, -20, 70, 70)):
        cells = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(str, box), strict=True))
        bed.add("box that reaches in", "boxed.png", saved(bed.picture(width=100, height=90)), "", cells=cells)


def _masks(bed: Bed) -> None:
    half = np.zeros((70, 90), np.uint8)
    half[:, 30:] = 1
    valid = saved(Image.fromarray(half))
    flip = bytearray(valid)
    flip[len(valid) // 2] ^= 4
    invalid = {
        "cut": valid[:60], "empty": b"", "text": b"no mask", "size": saved(Image.fromarray(half[:60])),
        "background": saved(Image.fromarray(half * 0)), "color": saved(Image.new("RGB", (90, 70))),
        "jpeg": saved(Image.fromarray(half), "JPEG"), "flip": bytes(flip),
    }  # fmt: skip
    for name, mask in invalid.items():
        bed.add("bad mask", f"{name}.png", saved(bed.picture(width=90, height=70)), "bad_mask", mask=mask)
    for _ in range(3):
        bed.add("good mask", "masked.png", saved(bed.picture(width=90, height=70)), "", mask=valid)
