"""What the load benchmark reads: the same pixels in every form, each image with its number stamped into it.

<folder>/pixels.u8       uint8 [images, 224, 224, 3], the truth that all else is compared with
         labels.npy      int64 [images]: number modulo CLASSES
         photos/<c>/     the 500x375 JPEGs that the pixels were resized from
         jpg/<c>/ png/<c>/   ready images of 224 in a folder a class
         tensors-raw/ tensors-jpeg/   datasets of the mill, laid out as the resize step does
         tar-jpg/ tar-npy/   shards for WebDataset
         arrow/          for Hugging Face datasets: FixedSizeList, and Array3D
         lance/          for Lance, FixedSizeList
         litdata/        made by load_peers.py, in an interpreter that has litdata
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import simplejpeg
from load_cells import CLASSES, SIZE, STAMP_BLOCK, STAMP_LEFT, STAMP_TOP, Place

from imagemill.components.dataset.index import make_tensors_index, write_index
from imagemill.components.dataset.kinds import ImageSpec, TensorsExtra
from imagemill.components.dataset.manifest import Dataset, Manifest, Part, Totals, commit, digest
from imagemill.components.dataset.parts import PartFolder
from imagemill.components.dataset.shards import Layout
from imagemill.components.imaging.geometry import Geometry, decode_and_resize
from imagemill.components.imaging.pixel_options import RAW
from imagemill.components.imaging.tensors import encode_jpeg
from imagemill.components.resize.tensor_part import TensorSpec
from imagemill.components.storage import uri as uris
from imagemill.components.storage.parallel import cores, map_ordered

WIDTH, HEIGHT, BASES = 500, 375, 48
QUALITY, SUBSAMPLING = 90, "420"
PART_IMAGES = 1_600
"""Photographs of 500x375 of which a raw part is full."""
SHARDS = 32
"""Of the tars: so many that every worker of every cell has several."""

Pixels = npt.NDArray[np.uint8]


def make_pixels(place: Place, bases: list[Pixels]) -> None:
    """The photographs, their pixels at 224 and their labels. `bases`: uint8 [375, 500, 3], used again and again."""
    geometry = Geometry(SIZE)
    pixels = np.memmap(place.folder / "pixels.u8", np.uint8, "w+", shape=(place.images, SIZE, SIZE, 3))

    def one(number: int) -> None:
        photo = bases[number % len(bases)].copy()
        bits = np.array([number >> bit & 1 for bit in range(16)], np.uint8).reshape(4, 4, 1)
        patch = np.kron(bits, np.ones((STAMP_BLOCK, STAMP_BLOCK, 1), np.uint8)) * 255
        photo[STAMP_TOP : STAMP_TOP + len(patch), STAMP_LEFT : STAMP_LEFT + len(patch)] = patch
        data = simplejpeg.encode_jpeg(photo, QUALITY, "RGB", SUBSAMPLING)
        _file(place, "photos", number, "jpg").write_bytes(data)
        pixels[number] = decode_and_resize(data, geometry)

    for _ in map_ordered(range(place.images), one, cores(), lambda number: WIDTH * HEIGHT):
        pass
    pixels.flush()
    np.save(place.folder / "labels.npy", np.arange(place.images, dtype=np.int64) % CLASSES)
    (place.folder / "place.json").write_text(json.dumps({"images": place.images}))


def _file(place: Place, kind: str, number: int, ending: str) -> Path:
    path = place.folder / kind / f"c{number % CLASSES}" / f"{number:06d}.{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def jpegs(place: Place) -> Iterator[bytes]:
    """Every image of 224 as a JPEG, in order."""
    pixels = place.pixels()
    work: Callable[[int], bytes] = lambda number: encode_jpeg(pixels[number], QUALITY, SUBSAMPLING)  # noqa: E731
    return map_ordered(range(place.images), work, cores(), lambda number: SIZE * SIZE)


def make_folder(place: Place, ending: str) -> None:
    """Ready images of 224, `jpg` or `png`."""
    if ending == "jpg":
        for number, data in enumerate(jpegs(place)):
            _file(place, "jpg", number, "jpg").write_bytes(data)
        return
    import cv2

    pixels = place.pixels()

    def one(number: int) -> None:
        path = str(_file(place, "png", number, "png"))
        assert cv2.imwrite(path, pixels[number][..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 3])

    for _ in map_ordered(range(place.images), one, cores(), lambda number: SIZE * SIZE):
        pass


def make_tensors(place: Place, encoding: str, workspace: str = "") -> Dataset:
    """A dataset as the resize step lays it out, of clean parts of `PART_IMAGES` images. `workspace`: a URI; the place's
    own folder by default."""
    name = "0123456789abcdef"
    uri = uris.join(workspace or str(place.folder), f"tensors-{encoding}", name)
    spec = TensorSpec(Geometry(SIZE), encoding=encoding)
    folder = PartFolder(uris.join(workspace or str(place.folder), "parts", "tensors"))
    encoded = jpegs(place) if encoding != RAW else iter(())
    parts, rows = [], []
    for first in range(0, place.images, PART_IMAGES):
        numbers = range(first, min(first + PART_IMAGES, place.images))
        parts.append(_write_part(place, folder, spec, numbers, encoded))
        rows += [(f"{number:06d}", parts[-1].key, number - first, 0) for number in numbers]
    columns = [pa.array(list(column)) for column in zip(*rows, strict=True)]
    columns += [pa.array(place.labels().astype(np.int32)), pa.array(["train"] * place.images)]
    schema = make_tensors_index("single")
    files = write_index(uri, pa.table([c.cast(f.type) for c, f in zip(columns, schema, strict=True)], schema=schema))
    image = ImageSpec((SIZE, SIZE, 3), SIZE, encoding=encoding, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    names = tuple(f"c{number}" for number in range(CLASSES))
    totals = Totals(rows=place.images, by_split={"train": place.images})
    manifest = Manifest("tensors", name, classes=names, files=tuple(files), totals=totals, image=image)
    return commit(uri, replace(manifest, parts=tuple(parts), extra=TensorsExtra()))


def _write_part(place: Place, folder: PartFolder, spec: TensorSpec, numbers: range, encoded: Iterator[bytes]) -> Part:
    schema, pixels = spec.schema(), place.pixels()
    with folder.open_writer(Layout(schema, plain=True)) as writer:
        for start in range(numbers.start, numbers.stop, spec.group_rows):
            group = range(start, min(start + spec.group_rows, numbers.stop))
            if spec.encoding == RAW:
                column = _fixed(pixels[group.start : group.stop])
            else:
                column = pa.array([next(encoded) for _ in group], pa.binary())
            ids = pa.array([f"{number:06d}" for number in group])
            rows = pa.array([number - numbers.start for number in group], pa.int32())
            writer.add_table(pa.Table.from_arrays([column, ids, rows], schema=schema))
        return writer.publish_part(f"{digest([spec.encoding, numbers.start])}-train", "train")


def _fixed(pixels: Pixels) -> pa.Array:
    kind = pa.binary(int(np.prod(pixels.shape[1:])))
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(pixels), [None, pa.py_buffer(np.ascontiguousarray(pixels))])


def make_tars(place: Place, ending: str) -> None:
    """WebDataset's shards: `<number>.jpg` or `<number>.npy`, and `<number>.cls`."""
    folder = place.folder / f"tar-{ending}"
    folder.mkdir()
    pixels, encoded = place.pixels(), jpegs(place) if ending == "jpg" else iter(())
    for shard in range(min(SHARDS, place.images)):
        with tarfile.open(folder / f"{shard:04d}.tar", "w") as tar:
            for number in np.array_split(np.arange(place.images), min(SHARDS, place.images))[shard].tolist():
                data = next(encoded) if ending == "jpg" else _npy(pixels[number])
                _add(tar, f"{number:06d}.{ending}", data)
                _add(tar, f"{number:06d}.cls", str(number % CLASSES).encode())


def _npy(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    np.save(out, pixels)
    return out.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def make_arrow(place: Place, form: str) -> None:
    """What Hugging Face datasets maps into memory, 100 rows a record batch: `fixed`, a FixedSizeList of uint8 an image,
    or `array3d`, the feature that the library has for this."""
    import datasets

    folder = place.folder / f"arrow-{form}"
    folder.mkdir()
    pixels, labels = place.pixels(), place.labels()
    kind: Any = datasets.Array3D((SIZE, SIZE, 3), "uint8")
    if form == "fixed":
        kind = datasets.Sequence(datasets.Value("uint8"), length=SIZE * SIZE * 3)
    schema = datasets.Features({"image": kind, "label": datasets.Value("int64")}).arrow_schema
    with pa.OSFile(str(folder / "data.arrow"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, place.images, 100):
            part = np.ascontiguousarray(pixels[start : start + 100])
            flat: pa.Array = pa.array(part.reshape(-1))
            if form == "fixed":
                image = pa.FixedSizeListArray.from_arrays(flat, SIZE * SIZE * 3)
            else:
                for length in (3, SIZE, SIZE):
                    flat = pa.ListArray.from_arrays(np.arange(0, len(flat) + 1, length, dtype=np.int32), flat)
                image = pa.ExtensionArray.from_storage(schema.field("image").type, flat)
            writer.write_batch(pa.record_batch([image, pa.array(labels[start : start + 100])], schema=schema))


def make_lance(place: Place) -> None:
    """A Lance dataset in its own format: a FixedSizeList of uint8 an image, and its label."""
    import lance

    pixels, labels = place.pixels(), place.labels()
    image_type = pa.list_(pa.uint8(), SIZE * SIZE * 3)
    schema = pa.schema([("image", image_type), ("label", pa.int64())])

    def iter_batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, place.images, 100):
            flat = np.ascontiguousarray(pixels[start : start + 100]).reshape(-1)
            image = pa.FixedSizeListArray.from_arrays(pa.array(flat), type=image_type)
            yield pa.record_batch([image, pa.array(labels[start : start + 100])], schema=schema)

    lance.write_dataset(iter_batches(), str(place.folder / "lance"), schema=schema)


MAKERS: dict[str, Callable[[Place], object]] = {
    "tensors-raw": lambda place: make_tensors(place, "raw"),
    "tensors-jpeg": lambda place: make_tensors(place, "jpeg"),
    "jpg": lambda place: make_folder(place, "jpg"),
    "png": lambda place: make_folder(place, "png"),
    "tar-jpg": lambda place: make_tars(place, "jpg"),
    "tar-npy": lambda place: make_tars(place, "npy"),
    "arrow-fixed": lambda place: make_arrow(place, "fixed"),
    "lance": make_lance,
    "arrow-array3d": lambda place: make_arrow(place, "array3d"),
}
