"""Configuration of an export, and its checks."""

from __future__ import annotations

from dataclasses import dataclass

from ..dataset.manifest import MANIFEST, Dataset, normalize_dataset_uri, read_dataset
from ..storage import uri as uris
from ..storage.errors import wrong
from .output_folder import ExportIdentity

VERSION = 2
"""Raised when the same dataset must give other files."""
FORMATS = ("imagefolder", "tfrecord", "webdataset", "huggingface")
KINDS = ("clean", "tensors")
SPLITS = ("train", "val", "test")
SHARD_BYTES = 256 * 10**6


@dataclass(frozen=True)
class ExportConfig:
    """Configuration of an export: URI of a clean or tensors dataset or its manifest, one of `FORMATS`, and a folder or
    prefix.

    `shard_bytes`: approximate size of a shard (imagefolder has none).
    """

    dataset: str
    format: str
    output: str
    shard_bytes: int = SHARD_BYTES

    def check(self) -> None:
        """Raise UserError for an invalid value."""
        if self.format not in FORMATS:
            raise wrong("--format", f"one of {', '.join(FORMATS)}", self.format)
        if not self.dataset.strip():
            raise wrong("dataset", f"the URI or path of a dataset (a folder with {MANIFEST})", self.dataset)
        if not self.output.strip():
            raise wrong("--output", "a folder or s3://bucket/prefix", self.output)
        if self.shard_bytes < 1:
            raise wrong("--shard-bytes", "a number of bytes, 1 or more", self.shard_bytes)

    def open_dataset(self) -> Dataset:
        """Return the dataset; UserError if it does not exist or is of a kind without images."""
        dataset = read_dataset(normalize_dataset_uri(self.dataset, "dataset"))
        if dataset.manifest.kind not in KINDS:
            raise wrong("dataset", "a clean or tensors dataset", f"{self.dataset} of kind {dataset.manifest.kind}")
        return dataset

    def output_uri(self, dataset: Dataset) -> str:
        """Return the output's URI; UserError if it lies in the dataset, or the dataset in it."""
        uri = uris.normalize(self.output, "--output")
        if f"{uri}/".startswith(f"{dataset.uri}/") or dataset.uri.startswith(f"{uri}/"):
            raise wrong("--output", "a place apart from the dataset", self.output)
        return uri

    def identity(self, dataset: Dataset) -> ExportIdentity:
        """Return the values that decide whether an export that exists is this one."""
        return ExportIdentity(
            export=self.format,
            export_version=VERSION,
            kind=dataset.manifest.kind,
            fingerprint=dataset.fingerprint,
            manifest_sha256=dataset.manifest_sha256,
            shard_bytes=None if self.format == "imagefolder" else self.shard_bytes,
        )
