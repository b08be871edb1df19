"""Datasets to export, made without the steps: every kind of file, names that lead astray, tensors of any form."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cleaned
import numpy as np
import numpy.typing as npt
import photos
import pyarrow as pa
from cleaned import Row
from PIL import Image
from placed import place

from imagemill.components.clean.schema import make_clean_schema
from imagemill.components.dataset.index import make_clean_index, make_tensors_index
from imagemill.components.dataset.kinds import CleanExtra, CleanImage, ImageSpec, StoredCopies, TensorsExtra
from imagemill.components.dataset.manifest import Dataset, Manifest, Totals, commit
from imagemill.components.dataset.shards import Layout
from imagemill.components.export.config import SHARD_BYTES, ExportConfig
from imagemill.components.export.export import export
from imagemill.components.imaging.tensors import encode_jpeg

Pixels = npt.NDArray[np.uint8]
EVIL = (
    "../../x.jpg", "/etc/passwd.jpg", "a/../../b.jpg", "nul\0byte.jpg", "CON", "con.jpg", "n" * 300 + ".jpg", "..", ".",
    " ", "trailing. .jpg", "Case.jpg", "case.jpg", "a__b.jpg", "a/b.jpg", "a_/b.jpg", "é.jpg",
    "C:\\windows\\x.jpg", "https://host/p.jpg?a=1", "x.jpg", "x.png", "-rf.jpg", "..\\..\\y.jpg", "日本/写真.jpg",
    "=cmd().jpg", "e\u0301.jpg", "new\nline.jpg",
)  # fmt: skip
"""Image ids that are trouble as file names, alone or beside one another."""
EVIL_CLASSES = ("../../c", "CON", "Cat", "a/b", "cat", "n" * 300, "on", "ünï")


def run(dataset: Dataset, form: str, output: Path | str, shard_bytes: int = SHARD_BYTES) -> dict[str, Any]:
    return export(ExportConfig(dataset.uri, form, str(output), shard_bytes))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def render_rgb(data: bytes) -> Pixels:
    """uint8 [H, W, 3]: what a careful viewer shows of a file; alpha over white, EXIF obeyed. By Pillow alone."""
    from PIL import ImageOps

    image: Image.Image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), layered)
    return np.asarray(image.convert("RGB"))


def odd_files() -> dict[str, bytes]:
    """Make a file of each kind that readers handle differently, by name."""
    random = np.random.default_rng(5)
    base = np.clip(random.normal(120, 30, (24, 31, 3)), 0, 255).astype(np.uint8)
    photo, gray = Image.fromarray(base), Image.fromarray(base[:, :, 0])
    alpha = np.dstack([base, random.integers(0, 256, base.shape[:2], np.uint8)])
    turned = Image.Exif()
    turned[0x0112] = 6
    images: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "plain.jpg": (photo, "JPEG", {}), "gray.jpg": (gray, "JPEG", {}), "plain.png": (photo, "PNG", {}),
        "gray.png": (gray, "PNG", {}), "palette.png": (photo.quantize(64), "PNG", {}),
        "alpha.png": (Image.fromarray(alpha), "PNG", {}), "turned.jpg": (photo, "JPEG", {"exif": turned}),
        "cmyk.jpg": (photo.convert("CMYK"), "JPEG", {}), "bits.png": (gray.point(lambda v: v > 127, "1"), "PNG", {}),
        "deep.png": (Image.fromarray(base[:, :, 0].astype(np.uint16) * 257), "PNG", {}),
        "one.gif": (photo.quantize(64), "GIF", {}), "one.bmp": (photo, "BMP", {}), "one.tif": (photo, "TIFF", {}),
        "one.webp": (photo, "WEBP", {"lossless": True}), "progressive.jpg": (photo, "JPEG", {"progressive": True}),
    }  # fmt: skip
    return {name: photos.saved(picture, kind, **options) for name, (picture, kind, options) in images.items()}


def clean_single(uri: str, classes: Sequence[str] = ("cat", "dog", "owl"), each: int = 12) -> Dataset:
    """Small JPEG and PNG of every class in all splits, and the odd files among training's."""
    rows = [
        Row(
            f"{name}/{number:03d}.jpg", name, ("train", "train", "val", "test")[number % 4],
            cleaned.picture(f"{name}{number}", kind="PNG" if number % 3 == 0 else "JPEG"),
        )
        for name in classes for number in range(each)
    ]  # fmt: skip
    rows += [Row(f"odd/{name}", classes[0], "train", data) for name, data in odd_files().items()]
    return cleaned.cleaned(uri, rows, classes=classes)


def clean_evil(uri: str) -> Dataset:
    rows = [Row(name, EVIL_CLASSES[0], "train", cleaned.picture(f"{n}")) for n, name in enumerate(EVIL)]
    rows += [Row(f"{n}.jpg", label, "train", cleaned.picture(f"c{n}")) for n, label in enumerate(EVIL_CLASSES)]
    return cleaned.cleaned(uri, rows, classes=EVIL_CLASSES)


def clean_multi(uri: str, classes: Sequence[str] = ("cat", "dog", "owl"), each: int = 12) -> Dataset:
    """Images with none, one or several labels."""
    rows = []
    for split in ("train", "val"):
        for number in range(each):
            ids = [label for label in range(len(classes)) if number >> label & 1]
            row = Row(f"m/{split}{number}.jpg", classes[0], split).columns(classes)
            rows.append(row | {"label": "|".join(classes[label_id] for label_id in ids), "label_ids": ids})
    placed = place(uri, rows, Layout(make_clean_schema(), row_group_rows=5), make_clean_index("multi"))
    totals = Totals(rows=2 * each, by_split={"train": each, "val": each})
    manifest = Manifest(
        "clean", uri.rpartition("/")[2], task="multi", classes=tuple(classes), totals=totals, **placed,
        image=CleanImage("rgb", 3), extra=CleanExtra(dataset_name="toy"),
    )  # fmt: skip
    return commit(uri, manifest)


def tensors(
    uri: str, shape: tuple[int, int, int] = (16, 16, 3), encoding: str = "raw", color: str = "rgb", rows: int = 20,
    multi: bool = False, copies: int = 0, edges: Sequence[str] = (),
) -> Dataset:  # fmt: skip
    """Random pixels in two splits; image n of `train` is `pixels_of(shape, "train", n)`."""
    image_type = pa.binary() if encoding == "jpeg" else pa.binary(int(np.prod(shape)))
    names = [("image", image_type), ("image_id", pa.string()), ("source_row", pa.int32()), ("copy", pa.int32())]
    layout = Layout(pa.schema([pa.field(name, kind, nullable=False) for name, kind in names]), True, row_group_rows=3)
    records = [_tensor_row(shape, encoding, split, n, multi, copies) for split in ("train", "val") for n in range(rows)]
    task = "multi" if multi else "single"
    placed = place(uri, records, layout, make_tensors_index(task), by_split=True)
    image = ImageSpec(
        shape, shape[0], color, edges=tuple(edges), encoding=encoding, mean=(0.5,) * shape[2], std=(0.25,) * shape[2]
    )
    manifest = Manifest(
        "tensors", uri.rpartition("/")[2], task=task, classes=("a", "b", "c"), **placed,
        totals=Totals(rows=2 * rows, by_split={"train": rows, "val": rows}), image=image,
        extra=TensorsExtra(dataset_name="toy", copies=StoredCopies("x", copies) if copies else None),
    )  # fmt: skip
    return commit(uri, manifest)


def pixels_of(shape: tuple[int, int, int], split: str, number: int) -> Pixels:
    seed = int.from_bytes(hashlib.sha256(f"{split}{number}".encode()).digest()[:8])
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, shape[2]), np.uint8)
    return coarse.repeat(-(-shape[0] // 4), 0).repeat(-(-shape[1] // 4), 1)[: shape[0], : shape[1]]


def _tensor_row(
    shape: tuple[int, int, int], encoding: str, split: str, n: int, multi: bool, copies: int
) -> dict[str, Any]:
    pixels = np.ascontiguousarray(pixels_of(shape, split, n))
    row: dict[str, Any] = {"image": encode_jpeg(pixels, 90, "444") if encoding == "jpeg" else pixels.tobytes()}
    row |= {"label_ids": [label_id for label_id in range(3) if n >> label_id & 1]} if multi else {"label_id": n % 3}
    number, copy = divmod(n, copies + 1)
    return row | {"image_id": f"{split}/{number}.jpg", "source_row": number, "copy": copy, "split": split}
