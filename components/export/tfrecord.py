"""TFRecord shards of `tf.train.Example`, each with an index, and `features.json`, which `tfdata.read` reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..imaging.headers import sniff
from .image_files import convert_to_png, read_plain_shape
from .output_folder import ExportedFile, OutputFolder
from .samples import ExportSource, Sample
from .shards import ExportContext, ShardFile
from .tf_example import frame_record, serialize_example

FEATURES = "features.json"


class TFRecordFormat:
    """Raw tensors as `image/raw`, with any channels; image files as `image/encoded`.

    JPEG and PNG keep their bytes; a file that TensorFlow can't read, or decodes to other pixels, becomes a PNG.
    """

    has_shard_count: ClassVar[bool] = True
    converts_to_png: ClassVar[bool] = True

    def __init__(self, context: ExportContext) -> None:
        self._source, self._crc32c = context.source, _import_crc32c()
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

    def shard_name(self, split: str, number: int, total: int) -> str:
        return f"{split}-{number:05d}-of-{total:05d}.tfrecord"

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


def _import_crc32c() -> Callable[[bytes], int]:
    from google_crc32c import value

    crc: Callable[[bytes], int] = value
    return crc
