"""TFRecord shards of `tf.train.Example`, each with an index, and `features.json`, by which `tfdata.read` reads them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..store.headers import sniff
from .example import example, record
from .pictures import as_png, plain_shape
from .place import Place, Written
from .samples import Sample, Source
from .shards import Shard, Work

FEATURES = "features.json"


class TFRecordForm:
    """Raw tensors as `image/raw`, whatever their channels. Files of pictures as `image/encoded`: JPEG and PNG as they
    are, and as a PNG of the same pixels whatever TensorFlow reads not at all or not as the mill does."""

    planned: ClassVar[bool] = True
    as_png: ClassVar[bool] = True

    def __init__(self, work: Work) -> None:
        self._source, self._crc32c = work.source, _crc32c()
        self._again: Counter[str] = Counter()
        work.notes["reencoded"] = self._again
        self._classes = [name.encode() for name in work.source.classes]

    def encode(self, sample: Sample) -> tuple[bytes, str]:
        """The serialized Example, and the format that was encoded again or nothing."""
        image, shape, again = self._image(sample)
        height, width, channels = shape
        texts = {"label_text": [self._classes[one] for one in sample.label_ids], "image_id": [sample.image_id.encode()]}
        numbers = {"image/height": [height], "image/width": [width], "image/channels": [channels]}
        numbers |= {"label": list(sample.label_ids)} | ({"copy": [sample.copy]} if self._source.has_copies else {})
        return example({name: [value] for name, value in image.items()} | texts, numbers), again

    def _image(self, sample: Sample) -> tuple[dict[str, bytes], tuple[int, int, int], str]:
        data = sample.data
        if isinstance(data, np.ndarray):
            height, width, channels = data.shape
            return {"image/raw": data.tobytes(), "image/format": b"raw"}, (height, width, channels), ""
        shape = None if sample.warned else plain_shape(data)
        again = "" if shape else sniff(data)
        if shape is None:
            data, shape = as_png(data, sample.image_id)
        return {"image/encoded": data, "image/format": b"jpeg" if sniff(data) == "JPEG" else b"png"}, shape, again

    def size(self, piece: tuple[bytes, str]) -> int:
        return len(piece[0]) + 16

    def name(self, split: str, number: int, total: int) -> str:
        return f"{split}-{number:05d}-of-{total:05d}.tfrecord"

    def open(self, path: Path) -> Shard:
        return _Records(path, self._crc32c, self._again)

    def finish(self, place: Place, shards: list[Written]) -> list[Written]:
        return [place.put(FEATURES, described(self._source, shards))]


class _Records:
    def __init__(self, path: Path, crc32c: Callable[[bytes], int], again: Counter[str]) -> None:
        self._file, self._crc32c, self._again = path.open("wb"), crc32c, again
        self._index: list[str] = []

    def add(self, piece: tuple[bytes, str]) -> None:
        data, again = piece
        before, after = record(data, self._crc32c)
        begin = self._file.tell()
        for part in (before, data, after):
            self._file.write(part)
        self._index.append(f"{begin} {self._file.tell() - begin}\n")
        if again:
            self._again[again] += 1

    def close(self) -> bytes:
        """The index as DALI's tfrecord2idx makes it: a line a record, its offset and its size, framing included."""
        self._file.close()
        return "".join(self._index).encode()

    def drop(self) -> None:
        self._file.close()


def described(source: Source, shards: list[Written]) -> bytes:
    """`features.json`: what the records hold, and how many there are."""
    names = {"image/raw" if source.is_raw else "image/encoded": "bytes", "image/format": "bytes"}
    names |= dict.fromkeys(["image/height", "image/width", "image/channels"], "int64")
    names |= {"label": "int64", "label_text": "bytes", "image_id": "bytes"}
    names |= {"copy": "int64"} if source.has_copies else {}
    splits: dict[str, Any] = {}
    for split, rows in source.rows.items():
        files = [one.path for one in shards if one.split == split and one.path.endswith(".tfrecord")]
        splits[split] = {"rows": rows, "shards": files}
    about = {
        "features": names, "task": source.dataset.manifest.task, "classes": list(source.classes),
        "image": source.image, "shape": source.image["shape"] if source.is_tensors else [], "splits": splits,
    }  # fmt: skip
    return json.dumps(about, indent=1, ensure_ascii=False).encode() + b"\n"


def _crc32c() -> Callable[[bytes], int]:
    from google_crc32c import value

    crc: Callable[[bytes], int] = value
    return crc
