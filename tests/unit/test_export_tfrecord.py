"""TFRecord files by a reader of the test's own: checksums by table, messages by Google's protobuf."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exports
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_export_shards import stored

from imagemill.components.export.image_files import read_plain_shape
from imagemill.components.export.tfrecord import serialize_example


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) by a table: RFC 3720, appendix B.4."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


TABLE = [_entry(n) for n in range(256)]


NUMBERS = ("image/height", "image/width", "image/channels", "label", "copy")


def unmasked(crc: int) -> int:
    turned = (crc - 0xA282EAD8) & 0xFFFFFFFF
    return (turned >> 17 | turned << 15) & 0xFFFFFFFF


def records(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(offset, whole size, payload) of each record, its checksums checked."""
    with path.open("rb") as file:
        while head := file.read(12):
            begin = file.tell() - 12
            (length,), (crc,) = struct.unpack("<Q", head[:8]), struct.unpack("<I", head[8:])
            assert unmasked(crc) == crc32c(head[:8])
            data = file.read(length)
            (crc,) = struct.unpack("<I", file.read(4))
            assert len(data) == length and unmasked(crc) == crc32c(data)
            yield begin, file.tell() - begin, data


@pytest.fixture(scope="module")
def message() -> Any:
    """tf.train.Example, made from a description of feature.proto and example.proto."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    F = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    for name, kind in (("BytesList", F.TYPE_BYTES), ("FloatList", F.TYPE_FLOAT), ("Int64List", F.TYPE_INT64)):
        list_type = file.message_type.add(name=name)
        list_type.field.add(name="value", number=1, type=kind, label=F.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("BytesList", "FloatList", "Int64List"), 1):
        field = feature.field.add(name=name.lower(), number=number, type=F.TYPE_MESSAGE, label=F.LABEL_OPTIONAL)
        field.type_name, field.oneof_index = f".tf.{name}", 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=F.TYPE_STRING, label=F.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=F.TYPE_MESSAGE, label=F.LABEL_OPTIONAL, type_name=".tf.Feature")
    map_type = ".tf.Features.FeatureEntry"
    features.field.add(name="feature", number=1, type=F.TYPE_MESSAGE, label=F.LABEL_REPEATED, type_name=map_type)
    top = file.message_type.add(name="Example")
    top.field.add(name="features", number=1, type=F.TYPE_MESSAGE, label=F.LABEL_OPTIONAL, type_name=".tf.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


def parse_example(message: Any, data: bytes) -> dict[str, Any]:
    """The features of a serialized Example by name, as lists."""
    features = message.FromString(data).features.feature
    for name, feature in features.items():  # an empty list has a kind, too: TensorFlow refuses a wrong one
        integers = name in NUMBERS or name.startswith("n:")
        assert feature.WhichOneof("kind") == ("int64list" if integers else "byteslist"), name
    return {name: list(getattr(feature, feature.WhichOneof("kind")).value) for name, feature in features.items()}


def read(folder: Path, split: str, message: Any) -> list[dict[str, Any]]:
    """Every record of a split, its shards and their indices checked."""
    rows, paths = [], sorted(folder.glob(f"{split}-*.tfrecord"))
    assert [p.name for p in paths] == [f"{split}-{n:05d}.tfrecord" for n in range(len(paths))]
    for path in paths:
        index = [tuple(map(int, line.split())) for line in path.with_suffix(".index").read_text().splitlines()]
        entries = list(records(path))
        assert [(begin, size) for begin, size, _ in entries] == index
        rows += [parse_example(message, data) for _, _, data in entries]
    return rows


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    st.dictionaries(names.map("t:{}".format), st.lists(st.binary(max_size=300), max_size=3), max_size=4),
    st.dictionaries(names.map("n:{}".format), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), max_size=4),
)
def test_protobuf_parses_every_example(
    message: Any, texts: dict[str, list[bytes]], numbers: dict[str, list[int]]
) -> None:
    assert parse_example(message, serialize_example(texts, numbers)) == texts | numbers


def test_clean_images_are_exported_upright_as_jpeg_or_png(tmp_path: Path, message: Any) -> None:
    source = exports.clean_single(str(tmp_path / "clean" / "01"))
    result = exports.run(source, "tfrecord", tmp_path / "out", 8000)
    for split in ("train", "val", "test"):
        rows, expected = read(tmp_path / "out", split, message), stored(source, split)
        assert len(rows) == len(expected)
        for row, expected_row in zip(rows, expected, strict=True):
            original, (data,) = expected_row["image"]["bytes"], row["image/encoded"]
            is_copied = expected_row["image_id"].rpartition("/")[2] not in AGAIN
            assert (data == original) == is_copied, expected_row["image_id"]
            image = Image.open(io.BytesIO(data))
            assert image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L", "P", "1")
            assert [image.format.lower().encode()] == row["image/format"]
            pixels = np.asarray(image.convert("RGB"))
            difference = np.abs(pixels.astype(int) - exports.render_rgb(original))
            name = expected_row["image_id"]
            assert difference.max() <= (4 if name.endswith("turned.jpg") else 0), name
            shape = row["image/height"] + row["image/width"] + row["image/channels"]
            assert shape == [image.height, image.width, 1 if image.mode in ("L", "1") else 3]
            assert row["label"] == [expected_row["label_id"]]
            assert row["label_text"] == [source.manifest.classes[expected_row["label_id"]].encode()]
            assert row["image_id"] == [expected_row["image_id"].encode()]
    assert result["notes"]["reencoded"] == {"BMP": 1, "GIF": 1, "JPEG": 2, "PNG": 2, "TIFF": 1, "WEBP": 1}
    assert len(list((tmp_path / "out").glob("train-*.tfrecord"))) > 2


AGAIN = {"alpha.png", "turned.jpg", "cmyk.jpg", "deep.png", "one.gif", "one.bmp", "one.tif", "one.webp"}
"""What TensorFlow reads not at all, or other than the mill."""


@pytest.mark.parametrize(("name", "plain"), [(name, name not in AGAIN) for name in sorted(exports.odd_files())])
def test_tensorflow_reads_the_records(name: str, plain: bool) -> None:
    assert (read_plain_shape(exports.odd_files()[name]) is not None) == plain


def test_a_color_png_of_16_bits_is_no_plain_one() -> None:
    import cv2

    deep = np.random.default_rng(0).integers(0, 65536, (6, 5, 3), np.uint16)
    assert read_plain_shape(cv2.imencode(".png", deep)[1].tobytes()) is None
    assert read_plain_shape(cv2.imencode(".png", deep.astype(np.uint8))[1].tobytes()) == (6, 5, 3)


@pytest.mark.parametrize(("channels", "color"), [(1, "gray"), (3, "rgb"), (3, "lab"), (5, "rgb")])
def test_raw_tensors_are_exported_raw(tmp_path: Path, message: Any, channels: int, color: str) -> None:
    shape = (12, 12, channels)
    source = exports.tensors(str(tmp_path / "tensors" / "01"), shape, color=color)
    exports.run(source, "tfrecord", tmp_path / "out", 2000)
    rows = read(tmp_path / "out", "train", message)
    assert len(rows) == 20
    for number, row in enumerate(rows):
        pixels = np.frombuffer(row["image/raw"][0], np.uint8)
        assert np.array_equal(pixels.reshape(shape), exports.pixels_of(shape, "train", number))
        assert (row["image/format"], row["label"]) == ([b"raw"], [number % 3])
    features = json.loads((tmp_path / "out" / "features.json").read_text())
    assert features["shape"] == list(shape) and features["classes"] == ["a", "b", "c"]
    assert features["splits"]["train"]["rows"] == 20
    assert set(features["features"]) == set(rows[0])


def test_jpeg_tensors_of_several_labels_and_copies(tmp_path: Path, message: Any) -> None:
    source = exports.tensors(str(tmp_path / "tensors" / "01"), encoding="jpeg", multi=True, copies=1)
    exports.run(source, "tfrecord", tmp_path / "out")
    for number, row in enumerate(read(tmp_path / "out", "val", message)):
        ids = [label_id for label_id in range(3) if number >> label_id & 1]
        assert (row["label"], row["copy"]) == (ids, [number % 2])
        assert row["label_text"] == ["abc"[label_id].encode() for label_id in ids]
        image = Image.open(io.BytesIO(row["image/encoded"][0]))
        assert image.format == "JPEG" and image.size == (16, 16)


def test_an_image_that_drew_a_warning_is_encoded_again(tmp_path: Path, message: Any) -> None:
    import cleaned

    rows = [cleaned.Row("odd.jpg", warning="premature end"), cleaned.Row("fine.jpg")]
    exports.run(cleaned.cleaned(str(tmp_path / "clean" / "01"), rows), "tfrecord", tmp_path / "out")
    formats = {row["image_id"][0]: row["image/format"] for row in read(tmp_path / "out", "train", message)}
    assert formats == {b"odd.jpg": [b"png"], b"fine.jpg": [b"jpeg"]}
