"""TFRecord shards of `tf.train.Example`, each with an index, and `features.json`, which `tfdata.read` reads.

They are written without TensorFlow: in Protocol Buffers' wire format (tensorflow/core/example/example.proto and
feature.proto; https://protobuf.dev/programming-guides/encoding) and the framing of
https://www.tensorflow.org/tutorials/load_data/tfrecord. A map is written in the order of its keys.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..imaging.headers import sniff
from .image_files import convert_to_png, read_plain_shape
from .output_folder import ExportedFile, OutputFolder
from .samples import ExportSource, Sample
from .shards import ExportContext, ShardFile

_MASK = 0xA282EAD8
_LENGTH_DELIMITED = 2
_BYTES_LIST, _INT64_LIST = 1, 3


def serialize_example(texts: Mapping[str, Sequence[bytes]], numbers: Mapping[str, Sequence[int]]) -> bytes:
    """Serialize a `tf.train.Example` of lists of bytes and lists of 64-bit integers, by name; lists may be empty."""
    features = {name: _encode_bytes_list(value) for name, value in texts.items()}
    features |= {name: _encode_int64_list(value) for name, value in numbers.items()}
    entries = (
        _encode_field(1, _encode_field(1, name.encode()) + _encode_field(2, features[name]))
        for name in sorted(features)
    )
    return _encode_field(1, b"".join(entries))


def _encode_bytes_list(values: Sequence[bytes]) -> bytes:
    return _encode_field(_BYTES_LIST, b"".join(_encode_field(1, value) for value in values))


def _encode_int64_list(values: Sequence[int]) -> bytes:
    packed = b"".join(_encode_varint(value & 0xFFFFFFFFFFFFFFFF) for value in values)
    return _encode_field(_INT64_LIST, _encode_field(1, packed) if packed else b"")


def _encode_field(number: int, payload: bytes) -> bytes:
    return _encode_varint(number << 3 | _LENGTH_DELIMITED) + _encode_varint(len(payload)) + payload


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def frame_record(data: bytes, crc32c: Callable[[bytes], int]) -> tuple[bytes, bytes]:
    """Return header and footer of `data` in a TFRecord file: its length with a masked CRC, and its own masked CRC."""
    length = struct.pack("<Q", len(data))
    return length + _mask_crc(crc32c(length)), _mask_crc(crc32c(data))


def _mask_crc(crc: int) -> bytes:
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


FEATURES = "features.json"


class TFRecordFormat:
    """Raw tensors as `image/raw`, with any channels; image files as `image/encoded`.

    JPEG and PNG keep their bytes; a file that TensorFlow can't read, or decodes to other pixels, becomes a PNG.
    """

    def __init__(self, context: ExportContext) -> None:
        from google_crc32c import value

        self._source, self._crc32c = context.source, value
        self._reencoded: Counter[str] = Counter()
        context.notes["reencoded"] = self._reencoded
        self._classes = [name.encode() for name in context.source.classes]

    def encode(self, sample: Sample) -> tuple[bytes, str]:
        """Return the serialized Example, and the original format if the image was encoded again."""
        image, shape, reencoded = self._encode_image(sample)
        height, width, channels = shape
        label_names = [self._classes[label_id] for label_id in sample.label_ids]
        texts = {"label_text": label_names, "image_id": [sample.image_id.encode()]}
        numbers = {"image/height": [height], "image/width": [width], "image/channels": [channels]}
        numbers |= {"label": list(sample.label_ids)} | ({"copy": [sample.copy]} if self._source.has_copies else {})
        return serialize_example({name: [value] for name, value in image.items()} | texts, numbers), reencoded

    def _encode_image(self, sample: Sample) -> tuple[dict[str, bytes], tuple[int, int, int], str]:
        data = sample.data
        if isinstance(data, np.ndarray):
            height, width, channels = data.shape
            return {"image/raw": data.tobytes(), "image/format": b"raw"}, (height, width, channels), ""
        shape = None if sample.has_warning else read_plain_shape(data)
        reencoded = "" if shape else sniff(data)
        if shape is None:
            data, shape = convert_to_png(data, sample.image_id)
        return {"image/encoded": data, "image/format": b"jpeg" if sniff(data) == "JPEG" else b"png"}, shape, reencoded

    def record_size(self, record: tuple[bytes, str]) -> int:
        return len(record[0]) + 16

    def shard_name(self, split: str, number: int) -> str:
        return f"{split}-{number:05d}.tfrecord"

    def open_shard(self, path: Path) -> ShardFile:
        return _TFRecordFile(path, self._crc32c, self._reencoded)

    def write_metadata(self, output: OutputFolder, shards: list[ExportedFile]) -> list[ExportedFile]:
        return [output.put(FEATURES, describe_features(self._source, shards))]


class _TFRecordFile:
    def __init__(self, path: Path, crc32c: Callable[[bytes], int], reencoded: Counter[str]) -> None:
        self._file, self._crc32c, self._reencoded = path.open("wb"), crc32c, reencoded
        self._index: list[str] = []

    def add(self, record: tuple[bytes, str]) -> None:
        data, reencoded = record
        header, footer = frame_record(data, self._crc32c)
        begin = self._file.tell()
        for part in (header, data, footer):
            self._file.write(part)
        self._index.append(f"{begin} {self._file.tell() - begin}\n")
        if reencoded:
            self._reencoded[reencoded] += 1

    def close(self) -> bytes:
        """Return the index as DALI's tfrecord2idx makes it: a line a record, its offset and its size with framing."""
        self._file.close()
        return "".join(self._index).encode()

    def abort(self) -> None:
        self._file.close()


def describe_features(source: ExportSource, shards: list[ExportedFile]) -> bytes:
    """Return `features.json`: the features of the records, the classes, and each split's rows and shards."""
    names = {"image/raw" if source.is_raw else "image/encoded": "bytes", "image/format": "bytes"}
    names |= dict.fromkeys(["image/height", "image/width", "image/channels"], "int64")
    names |= {"label": "int64", "label_text": "bytes", "image_id": "bytes"}
    names |= {"copy": "int64"} if source.has_copies else {}
    splits: dict[str, Any] = {}
    for split, rows in source.rows.items():
        files = [file.path for file in shards if file.split == split and file.path.endswith(".tfrecord")]
        splits[split] = {"rows": rows, "shards": files}
    image = source.dataset.manifest.image
    description = {
        "features": names, "task": source.dataset.manifest.task, "classes": list(source.classes),
        "image": image.to_dict() if image else {}, "shape": source.image.shape if source.is_tensors else [],
        "splits": splits,
    }  # fmt: skip
    return json.dumps(description, indent=1, ensure_ascii=False).encode() + b"\n"
