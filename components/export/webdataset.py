"""Tar shards for WebDataset: the members with one key are one sample; the same images give the same bytes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from .image_files import encode_png, get_extension
from .output_folder import ExportedFile, OutputFolder
from .samples import ExportSource, Sample
from .shards import ExportContext, ShardFile

Members = list[tuple[str, bytes]]


class WebDatasetFormat:
    """`<split>-<row>.<jpg, png, …>`, `.cls` (the class id; not for multi-label datasets) and `.json`.

    Tensors that no image file can hold (edges, Lab, YCbCr) are `.npy`, uint8 [H, W, C], which WebDataset can decode.
    """

    def __init__(self, context: ExportContext) -> None:
        self._source: ExportSource = context.source

    def encode(self, sample: Sample) -> Members:
        """Return (name, bytes) of each member."""
        source, labels = self._source, self._source.label_names(sample)
        metadata: dict[str, Any] = {"image_id": sample.image_id, "split": sample.split}
        metadata |= {"copy": sample.copy} if source.has_copies else {}
        members = [self._encode_image(sample)]
        if source.is_multi_label:
            metadata |= {"labels": labels, "label_ids": list(sample.label_ids)}
        else:
            metadata |= {"label": labels[0], "label_id": sample.label_ids[0]}
            members.append(("cls", str(sample.label_ids[0]).encode()))
        members.append(("json", json.dumps(metadata, ensure_ascii=False, sort_keys=True).encode()))
        return [(f"{sample.split}-{sample.number:09d}.{kind}", data) for kind, data in members]

    def _encode_image(self, sample: Sample) -> tuple[str, bytes]:
        if not isinstance(sample.data, np.ndarray):
            return get_extension(sample.data, sample.image_id), sample.data
        if self._source.fits_image_files:
            return "png", encode_png(sample.data)
        out = io.BytesIO()
        np.save(out, sample.data, allow_pickle=False)
        return "npy", out.getvalue()

    def record_size(self, record: Members) -> int:
        """Return the bytes in the tar, where a member has a header and whole blocks of 512 bytes."""
        return sum(tarfile.BLOCKSIZE - len(data) // -tarfile.BLOCKSIZE * tarfile.BLOCKSIZE for _, data in record)

    def shard_name(self, split: str, number: int) -> str:
        return f"{split}-{number:06d}.tar"

    def open_shard(self, path: Path) -> ShardFile:
        return _TarFile(path)

    def write_metadata(self, output: OutputFolder, shards: list[ExportedFile]) -> list[ExportedFile]:
        """Write `<split>-index.json` for wids, WebDataset's indexed reader."""
        return [output.put(f"{split}-index.json", _build_index(split, shards), split) for split in self._source.rows]


class _TarFile:
    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed by `close`)

    def add(self, record: Members) -> None:
        for name, data in record:
            member = tarfile.TarInfo(name)  # with time, owner and group 0, so that bytes do not vary
            member.size, member.mode = len(data), 0o644
            self._tar.addfile(member, io.BytesIO(data))

    def close(self) -> bytes:
        self._tar.close()
        return b""

    def abort(self) -> None:
        self._tar.close()


def _build_index(split: str, shards: list[ExportedFile]) -> bytes:
    """Return the wids index of the shards of a split, with URLs relative to the index."""
    shard_list = [
        {"url": shard.path, "nsamples": shard.rows, "filesize": shard.bytes} for shard in shards if shard.split == split
    ]
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": split, "shardlist": shard_list}
    return json.dumps(index, indent=1).encode() + b"\n"
