"""What can be said about an export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..store import uri as uris
from ..store.errors import wrong
from ..store.manifest import MANIFEST, Dataset, find_dataset, normalize_dataset_uri

VERSION = 1
"""Raised when the same dataset must give other files."""
FORMATS = ("imagefolder", "tfrecord", "webdataset", "huggingface")
KINDS = ("clean", "tensors")
SPLITS = ("train", "val", "test")
SHARD_BYTES = 256 * 10**6


@dataclass(frozen=True)
class ExportConfig:
    """`dataset`: the URI of a clean or tensors dataset, or of its manifest; `output`: a folder or s3:// prefix;
    `shard_bytes`: about how large a shard becomes (imagefolder has none)."""

    dataset: str
    format: str
    output: str
    shard_bytes: int = SHARD_BYTES

    def check(self) -> None:
        """UserError for what can't be."""
        if self.format not in FORMATS:
            raise wrong("--format", f"one of {', '.join(FORMATS)}", self.format)
        if not self.dataset.strip():
            raise wrong("dataset", f"the URI or path of a dataset (a folder with {MANIFEST})", self.dataset)
        if not self.output.strip():
            raise wrong("--output", "a folder or s3://bucket/prefix", self.output)
        if self.shard_bytes < 1:
            raise wrong("--shard-bytes", "a number of bytes, 1 or more", self.shard_bytes)

    def source(self) -> Dataset:
        """The dataset; UserError when there is none, or one that has no images."""
        where = normalize_dataset_uri(self.dataset, "dataset")
        found = find_dataset(where)
        if found is None:
            raise wrong("dataset", f"a folder with {MANIFEST}", self.dataset)
        if found.manifest.kind not in KINDS:
            raise wrong("dataset", "a clean or tensors dataset", f"{self.dataset} of kind {found.manifest.kind}")
        for file in found.files("data"):
            if file.split not in SPLITS:
                raise wrong(f"{where}/{MANIFEST} (files, split)", f"one of {', '.join(SPLITS)}", file.split)
        return found

    def place(self, source: Dataset) -> str:
        """The output's URI; UserError where it lies in the dataset, or the dataset in it."""
        where = uris.normalize(self.output, "--output")
        if f"{where}/".startswith(f"{source.uri}/") or source.uri.startswith(f"{where}/"):
            raise wrong("--output", "a place apart from the dataset", self.output)
        return where

    def identity(self, source: Dataset) -> dict[str, Any]:
        """What decides every byte of the export, besides the versions of the libraries."""
        shards = {} if self.format == "imagefolder" else {"shard_bytes": self.shard_bytes}
        return {
            "export": self.format, "export_version": VERSION, "kind": source.manifest.kind,
            "fingerprint": source.fingerprint, "manifest_sha256": source.manifest_sha256, **shards,
        }  # fmt: skip
