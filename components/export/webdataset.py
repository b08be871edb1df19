"""Tar shards as WebDataset reads them: members of one key, one sample; the same bytes for the same images."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from .pictures import ending, png
from .place import Place, Written
from .samples import Sample, Source
from .shards import Shard, Work

Members = list[tuple[str, bytes]]


class WebDatasetForm:
    """`<split>-<row>.<jpg, png, …>`, `.cls` (the class's number; not where an image has several) and `.json`.

    Tensors that are no picture (edges, Lab, YCbCr) are `.npy`, uint8 [H, W, C], which WebDataset decodes by itself.
    """

    planned: ClassVar[bool] = False
    as_png: ClassVar[bool] = False

    def __init__(self, work: Work) -> None:
        self._source: Source = work.source

    def encode(self, sample: Sample) -> Members:
        """(name, bytes) of each member."""
        source, labels = self._source, self._source.names(sample)
        about: dict[str, Any] = {"image_id": sample.image_id, "split": sample.split}
        about |= {"copy": sample.copy} if source.has_copies else {}
        members = [self._image(sample)]
        if source.multi:
            about |= {"labels": labels, "label_ids": list(sample.label_ids)}
        else:
            about |= {"label": labels[0], "label_id": sample.label_ids[0]}
            members.append(("cls", str(sample.label_ids[0]).encode()))
        members.append(("json", json.dumps(about, ensure_ascii=False, sort_keys=True).encode()))
        return [(f"{sample.split}-{sample.number:09d}.{kind}", data) for kind, data in members]

    def _image(self, sample: Sample) -> tuple[str, bytes]:
        if not isinstance(sample.data, np.ndarray):
            return ending(sample.data, sample.image_id), sample.data
        if self._source.are_pictures:
            return "png", png(sample.data)
        out = io.BytesIO()
        np.save(out, sample.data, allow_pickle=False)
        return "npy", out.getvalue()

    def size(self, piece: Members) -> int:
        """In the tar, where a member has a header and whole blocks of 512 bytes."""
        return sum(tarfile.BLOCKSIZE - len(data) // -tarfile.BLOCKSIZE * tarfile.BLOCKSIZE for _, data in piece)

    def name(self, split: str, number: int, total: int) -> str:
        return f"{split}-{number:06d}.tar"

    def open(self, path: Path) -> Shard:
        return _Tar(path)

    def finish(self, place: Place, shards: list[Written]) -> list[Written]:
        """`<split>-index.json`, as wids (WebDataset's indexed form) reads it."""
        return [
            place.put(f"{split}-index.json", index(split, [s for s in shards if s.split == split]), split)
            for split in self._source.rows
        ]


class _Tar:
    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed by `close`)

    def add(self, piece: Members) -> None:
        for name, data in piece:
            member = tarfile.TarInfo(name)  # time, owner and group are 0 and nobody
            member.size, member.mode = len(data), 0o644
            self._tar.addfile(member, io.BytesIO(data))

    def close(self) -> bytes:
        self._tar.close()
        return b""

    def drop(self) -> None:
        self._tar.close()


def index(split: str, shards: list[Written]) -> bytes:
    """The list of a split's shards and their samples, URLs relative to the index."""
    listed = [{"url": one.path, "nsamples": one.rows, "filesize": one.bytes} for one in shards]
    about = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": split, "shardlist": listed}
    return json.dumps(about, indent=1).encode() + b"\n"
