"""The demo dataset: some 750 labeled pictures, generated without a network, with known faults among them.

`plan` lists the files and their faults, `generate` makes their bytes one by one, `list_faults` lists the faults that
the steps after download must find. Every picture has its own stream of random numbers, PCG64 seeded by (seed, number),
so it depends on no other picture; the same seed gives the same bytes under the same Pillow and NumPy.

The splits are declared by the paths: `train/<class>/<n>.<ending>`, `val/...`, `test/...`. One class, the star, has
about 60 % of the others' pictures.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
from PIL import Image

from ..storage.parallel import cores, map_ordered
from .demo_shapes import CLASSES, FORMS, encode, render

DEMO_VERSION: int = 1  # to be raised when the same seed must give other bytes

_COUNTS = {"train": (100, 60), "val": (13, 8), "test": (21, 13)}  # pictures of a class, pictures of the small class
_SMALL_CLASS = "star"
_KEPT_FIRST = ("test", "val", "train")  # of two copies the clean step keeps the one whose split comes first here
_SHORT_SIDE = (90, 440)  # pixels
_LONGEST = 700  # pixels
_MISLABELLED = 8
_COPIES_IN_TRAIN, _COPIES_OF_TEST, _COPIES_OF_PIXELS = 8, 2, 3
_RARE_FORMS = {
    "png": 54, "webp": 28, "gif": 20, "tiff": 20, "png_rgba": 18, "png_palette": 18, "bmp": 14, "jpeg_long_ending": 14,
    "jpeg_grey": 12, "jpeg_cmyk": 9, "png_named_jpg": 4, "gif_named_jpg": 3, "jpeg_turned_3": 4, "jpeg_turned_6": 6,
    "jpeg_turned_8": 6, "png_16_bit": 1,
}  # fmt: skip
"""Number of pictures of each form; the others are JPEGs."""


@dataclass(frozen=True)
class DemoFile:
    """One file of the demo. `path`: unique and normalized, with '/' between its parts; says split and class."""

    path: str
    data: bytes


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        path: the file that has it; of two copies the one that is to be rejected.
        kind: 'broken', 'oversized', 'unsupported', 'duplicate_bytes', 'duplicate_pixels', 'mislabelled' or
            'not_an_image'.
        detail: the path of the copy to keep, the class that a mislabeled picture shows, else a few words.
        reason: the code under which the clean step must reject the file; '' where it must keep it (mislabelled) or
            where download has skipped it (not_an_image).
    """

    path: str
    kind: str
    detail: str
    reason: str


@dataclass(frozen=True)
class PlannedFile:
    """One file to be generated: its path, content, format and fault.

    Attributes:
        path: as in `DemoFile`; `split` and `label` are its first two parts, or '' for a file outside the classes.
        number: the stream of random numbers that draws the picture; copies share it.
        shown: the class in the picture.
        form: the format, a key of `FORMS`.
        damage: the change of the bytes afterwards, a key of `_DAMAGES`, or ''.
        fault: the fault of the file, if any.
    """

    path: str
    split: str
    label: str
    number: int
    shown: str
    form: str
    damage: str = ""
    fault: Fault | None = None


def plan(seed: int = 0) -> list[PlannedFile]:
    """List all files in path order, without drawing pictures; `seed` is 0 or more."""
    rng = _make_rng(seed, 0)
    pictures = _mislabel(_plan_pictures(rng), rng)
    copies = _plan_copies(pictures, rng)
    damaged = [
        PlannedFile("", split, label, number, label, form, damage)
        for number, ((split, form, damage), label) in enumerate(zip(_BAD_FILES, cycle(CLASSES)), len(pictures) + 1)
    ]
    named = _assign_paths(pictures + copies + damaged, rng)
    faults = _find_damage_faults(named) | _find_copy_faults(named) | _find_label_faults(named)
    strays = [
        PlannedFile(path, "", "", 0, "", "", path, Fault(path, "not_an_image", detail, ""))
        for path, (detail, _) in _STRAYS.items()
    ]
    return sorted([replace(p, fault=faults.get(p.path)) for p in named] + strays, key=lambda p: p.path)


def generate(seed: int = 0) -> Iterator[DemoFile]:
    """Generate all files in path order, on all cores; a few of them are held at a time."""
    yield from map_ordered(
        plan(seed), lambda planned: DemoFile(planned.path, _make_data(seed, planned)), cores(), lambda _: 0
    )


def list_faults(seed: int = 0) -> list[Fault]:
    """List the planted faults in path order."""
    return [planned.fault for planned in plan(seed) if planned.fault]


def _make_rng(seed: int, number: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, number))))


def draw(seed: int, planned: PlannedFile) -> tuple[Image.Image, np.random.Generator]:
    """Draw the picture of a planned file, as RGB, before it is turned, encoded or damaged; return it and its stream."""
    rng = _make_rng(seed, planned.number)
    low, high = _SHORT_SIDE
    short = round(low * (high / low) ** float(rng.random()))
    long = min(_LONGEST, round(short * float(rng.uniform(1.0, 1.75))))
    width, height = (long, short) if rng.random() < 0.65 else (short, long)
    return render(planned.shown, rng, width, height), rng


def _make_data(seed: int, planned: PlannedFile) -> bytes:
    if planned.path in _STRAYS:
        return _STRAYS[planned.path][1]
    if planned.damage and not planned.form:
        return _DAMAGES[planned.damage].apply(b"", _make_rng(seed, planned.number))
    image, rng = draw(seed, planned)
    data = encode(image, planned.form, rng)
    return _DAMAGES[planned.damage].apply(data, rng) if planned.damage else data


def _plan_pictures(rng: np.random.Generator) -> list[PlannedFile]:
    """Plan the pictures, without copies, damage and paths; each rare form occurs as often as `_RARE_FORMS` says."""
    folders = [
        (split, label)
        for split, (usual, small) in _COUNTS.items()
        for label in CLASSES
        for _ in range(small if label == _SMALL_CLASS else usual)
    ]
    forms = [form for form, count in _RARE_FORMS.items() for _ in range(count)]
    forms += ["jpeg"] * (len(folders) - len(forms))
    order = rng.permutation(len(folders))
    return [PlannedFile("", split, label, 1 + i, label, forms[order[i]]) for i, (split, label) in enumerate(folders)]


def _mislabel(pictures: list[PlannedFile], rng: np.random.Generator) -> list[PlannedFile]:
    """Let some of the training pictures show another class than that of their folder."""
    train = [i for i, p in enumerate(pictures) if p.split == "train"]
    mislabelled = list(pictures)
    for i in rng.choice(train, _MISLABELLED, replace=False):
        others = [name for name in CLASSES if name != pictures[i].label]
        mislabelled[i] = replace(pictures[i], shown=others[int(rng.integers(len(others)))])
    return mislabelled


def _plan_copies(pictures: list[PlannedFile], rng: np.random.Generator) -> list[PlannedFile]:
    """Plan copies, all in train; a copy has its original's number, so that it is drawn and written alike."""
    sound = [p for p in pictures if p.shown == p.label]
    train = [p for p in sound if p.split == "train" and p.form != "png"]
    test = [p for p in sound if p.split == "test"]
    lossless = [p for p in sound if p.split == "train" and p.form == "png"]
    copies = [train[i] for i in rng.choice(len(train), _COPIES_IN_TRAIN, replace=False)]
    copies += [replace(test[i], split="train") for i in rng.choice(len(test), _COPIES_OF_TEST, replace=False)]
    copies += [replace(lossless[i], form="bmp") for i in rng.choice(len(lossless), _COPIES_OF_PIXELS, replace=False)]
    return copies


def _assign_paths(files: list[PlannedFile], rng: np.random.Generator) -> list[PlannedFile]:
    """Number the files of every folder in random order, so that a name does not reveal the fault."""
    next_number: Counter[tuple[str, str]] = Counter()
    named = []
    for i in rng.permutation(len(files)):
        p = files[i]
        next_number[p.split, p.label] += 1
        ending = _DAMAGES[p.damage].ending if p.damage else FORMS[p.form][0]
        named.append(replace(p, path=f"{p.split}/{p.label}/{next_number[p.split, p.label]:04d}.{ending}"))
    return named


def _find_damage_faults(files: list[PlannedFile]) -> dict[str, Fault]:
    faults = {}
    for p in files:
        if p.damage:
            damage = _DAMAGES[p.damage]
            faults[p.path] = Fault(p.path, damage.kind, damage.detail, damage.reason)
        elif p.form in ("tiff_float", "tiff_lab"):
            detail = "32-bit float samples" if p.form == "tiff_float" else "L*a*b* bands"
            faults[p.path] = Fault(p.path, "unsupported", detail, "unsupported_bands")
    return faults


def _find_copy_faults(files: list[PlannedFile]) -> dict[str, Fault]:
    by_number: defaultdict[int, list[PlannedFile]] = defaultdict(list)
    for p in files:
        by_number[p.number].append(p)
    faults = {}
    for group in by_number.values():
        kept, *rest = sorted(group, key=lambda p: (_KEPT_FIRST.index(p.split), p.path))
        for p in rest:
            kind = "duplicate_bytes" if p.form == kept.form else "duplicate_pixels"
            faults[p.path] = Fault(p.path, kind, kept.path, kind)
    return faults


def _find_label_faults(files: list[PlannedFile]) -> dict[str, Fault]:
    return {p.path: Fault(p.path, "mislabelled", p.shown, "") for p in files if p.shown != p.label}


# Damage of the bytes


@dataclass(frozen=True)
class _Damage:
    """A way to damage a file: the ending of its name, its entry in `list_faults`, and the change of its bytes."""

    ending: str
    reason: str
    detail: str
    apply: Callable[[bytes, np.random.Generator], bytes]
    kind: str = "broken"


def _make_garbage(rng: np.random.Generator, size: int) -> bytes:
    """Return random bytes below 0xFF, none of which can pass for a JPEG marker."""
    return rng.integers(0, 255, size, np.uint8).tobytes()


def _overwrite_idat(png: bytes, rng: np.random.Generator) -> bytes:
    """Overwrite the start of the compressed pixels; 0x0F is a compression method that zlib does not know."""
    start = png.index(b"IDAT") + 4
    return png[:start] + b"\x0f\x0f" + _make_garbage(rng, 62) + png[start + 64 :]


def _make_bomb(_: bytes, rng: np.random.Generator) -> bytes:
    """Make a valid PNG of 30000 x 30000 black 1-bit pixels in 110 kB.

    Each block is 1000 rows of zeros (3751 bytes a row), deflated and closed by an empty stored block, so that blocks
    can be strung together. Written out, because zlib's output differs between its versions.
    """
    side, rows = 30_000, 1000
    row_bytes = side // 8 + 1
    block = bytes.fromhex("ecc1010d000000c2a0f74f6d0e37a000") + bytes(3633) + bytes.fromhex("e0df000000ffff")
    adler = ((side * row_bytes) % 65521 << 16) | 1  # of that many zeros
    stream = b"\x78\x9c" + block * (side // rows) + b"\x03\x00" + struct.pack(">I", adler)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_make_png_chunk, (b"IHDR", b"IDAT", b"IEND"), (header, stream, b"")))


def _make_png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


_ERROR_PAGE = (
    b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head>\n"
    b"<body><h1>Not Found</h1><p>The requested image was not found on this server.</p></body></html>\n"
)

_DAMAGES = {
    "cut_jpeg": _Damage("jpg", "corrupt", "a JPEG that ends in the middle", lambda data, _: data[: len(data) // 2]),
    "garbage": _Damage(
        "jpg", "corrupt", "a JPEG header, then random bytes", lambda data, rng: data[:20] + _make_garbage(rng, 4000)
    ),
    "cut_png": _Damage("png", "corrupt", "a PNG that ends in the middle", lambda data, _: data[: len(data) // 2]),
    "idat": _Damage("png", "corrupt", "a PNG whose compressed pixels are overwritten", _overwrite_idat),
    "empty": _Damage("jpg", "empty_file", "no bytes at all", lambda data, _: b""),
    "text": _Damage("jpg", "not_an_image", "a line of text", lambda data, _: b"photo to follow, see mail of Monday\n"),
    "html": _Damage("png", "not_an_image", "a server's error page", lambda data, _: _ERROR_PAGE),
    "bomb": _Damage("png", "too_many_pixels", "30000 x 30000 pixels in 110 kB", _make_bomb, "oversized"),
}

# (split, form, damage); the classes follow each other in turn
_BAD_FILES = (
    ("train", "jpeg", "cut_jpeg"),
    ("train", "jpeg", "cut_jpeg"),
    ("val", "jpeg", "cut_jpeg"),
    ("test", "jpeg", "cut_jpeg"),
    ("train", "jpeg", "garbage"),
    ("test", "jpeg", "garbage"),
    ("train", "", "empty"),
    ("train", "", "text"),
    ("val", "", "html"),
    ("train", "png", "idat"),
    ("test", "png", "idat"),
    ("train", "png", "cut_png"),
    ("train", "", "bomb"),
    ("train", "tiff_float", ""),
    ("train", "tiff_lab", ""),
)

# path -> (description, bytes): files that are often found beside images, which download skips
_STRAYS = {
    "README.txt": ("a text beside the images", b"Shapes drawn by Imagemill. Splits and classes are the folders.\n"),
    "train/Thumbs.db": ("a file manager's cache", bytes.fromhex("d0cf11e0a1b11ae1") + bytes(504)),
    "test/.DS_Store": ("a file manager's notes", b"\x00\x00\x00\x01Bud1" + bytes(504)),
}
