"""Compute frozen features: one pass of the pretrained network over the tensors, file by file, each kept when done.

Files of features are shared shards, `features/_shards/`, with a record by tensors file, network and weights.
So only new files of a dataset that has grown are computed, and so it is after an interruption.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..dataset.kinds import FeaturesExtra
from ..dataset.labels import MULTI
from ..dataset.manifest import (
    Dataset,
    File,
    Manifest,
    Totals,
    commit,
    digest,
    find_damaged,
    find_intact_dataset,
    fingerprint,
)
from ..dataset.shards import Layout, ShardWriter, read_columns
from ..dataset.workspace import SHARED_SHARDS
from ..models.features import KIND, HeadInputs, make_schema, make_table
from ..step.progress import Progress
from ..step.step import Context
from ..storage import uri as uris
from ..storage.errors import TransientError
from .config import CHAMPION, TrainConfig
from .data.cache import ShardCache
from .expected_input import describe_conversion
from .loop.distributed import Communicator
from .loop.head_solver import get_linear_head
from .loop.validation import Validator
from .pretrained_weights import identify_weights

if TYPE_CHECKING:
    import torch

VERSION = 1
"""Raised when the same network and image must give other features."""
MAX_IMAGES = 200_000
"""Images of a split from which on no further file is read."""
BATCH_SIZE = 128
ROW_GROUP = 4096


def identify_features(config: TrainConfig, tensors: Manifest) -> dict[str, Any]:
    """Return what features depend on beside the pixels: the network, its weights, and how images are normalized.

    Empty where there are none: without pretrained weights, for images with several labels, and with the champion's
    weights, which have seen the labels, unless a head is to be solved on them (`start` is set then).
    """
    is_champion = config.start == CHAMPION
    if not config.weights or tensors.task == MULTI or (is_champion and config.head != "solved"):
        return {}
    identity: dict[str, Any] = {"backbone": config.backbone, **identify_weights(config)}
    if is_champion:
        identity["start"] = config.start
    return identity | describe_conversion(config, tensors.image_spec)


@dataclass
class FeatureComputer:
    """Computes the features of a tensors dataset.

    Args:
        network: with the pretrained weights; its modes are restored, its weights never changed.
        identity: of the network and its weights (`identify_features`).
        before_batch: is called before each batch, and may raise.
    """

    network: torch.nn.Module
    tensors: Dataset
    identity: Mapping[str, Any]
    device: torch.device
    context: Context
    threads: int = 0
    cache: ShardCache | None = None
    before_batch: Callable[[], None] = lambda: None
    _progress: Progress = field(init=False)

    def run(self) -> Dataset:
        """Return the features: those that are there, or computed now."""
        workspace, tensors = self.context.workspace, self.tensors
        uri = workspace.dataset_uri(KIND, fingerprint(KIND, VERSION, [tensors.fingerprint], self.identity))
        if existing := find_intact_dataset(uri):
            return existing
        selected = [file for split in ("train", "val", "test") for file in self._select_files(split)]
        self._progress = Progress("train", total=sum(file.rows for file in selected))
        folder = workspace.at(KIND, SHARED_SHARDS)
        records = [self._find_or_compute(file, folder) for file in selected]
        files = [File(**record["file"]) for record in records]
        by_split: dict[str, int] = {}
        for file in files:
            by_split[file.split] = by_split.get(file.split, 0) + file.rows
        totals = Totals(rows=sum(by_split.values()), bytes=sum(file.bytes for file in files), by_split=by_split)
        relative = uris.relpath(folder, uri)
        extra = FeaturesExtra(tensors.name, records[0]["dimensions"])
        return commit(uri, Manifest(
            KIND, uris.basename(uri), parents=(tensors.as_parent(uri),), config=dict(self.identity),
            classes=tensors.manifest.classes, totals=totals, extra=extra,
            files=tuple(replace(file, uri=f"{relative}/{file.uri}") for file in files),
        ))  # fmt: skip

    def _select_files(self, split: str) -> list[File]:
        """Return the split's files from the first on until they hold `MAX_IMAGES`."""
        selected: list[File] = []
        for file in self.tensors.files("data", split):
            if not file.rows:
                continue
            if sum(other.rows for other in selected) >= MAX_IMAGES:
                break
            selected.append(file)
        return selected

    def _find_or_compute(self, file: File, folder: str) -> dict[str, Any]:
        """Return the record of a file's features: `file` below `folder`, and the number of `dimensions`."""
        workspace = self.context.workspace
        image = self.tensors.manifest.image_spec.to_dict()
        work = {"version": VERSION, "tensors": file.sha256, "image": image, **self.identity}
        key = digest(work)
        record = workspace.read_work_record(folder, key)
        if record:
            existing = File(**record["file"])
            if not find_damaged({uris.join(folder, existing.uri): existing.bytes}):
                self._progress.leave_out(file.rows)
                return record | {"file": asdict(replace(existing, split=file.split))}
        computed, dimensions = self._compute(file, folder)
        write = workspace.replace_work_record if record else workspace.write_work_record
        record = {"file": asdict(computed), "dimensions": dimensions}
        write(folder, key, record)
        return record

    def _compute(self, file: File, folder: str) -> tuple[File, int]:
        """Write the features of a tensors file; return their file, and the number of dimensions."""
        manifest = replace(self.tensors.manifest, files=(file,))
        single = Dataset(self.tensors.uri, manifest, self.tensors.manifest_sha256)
        ids = pa.chunked_array(
            [table.column("image_id").combine_chunks() for table in read_columns(single, "data", ["image_id"])],
            pa.string(),
        ).combine_chunks()
        validator = Validator(single, BATCH_SIZE, self.device, contextlib.nullcontext, self.threads, self.cache)
        features, labels = [], []
        predictions = validator.predict(self.network, self.before_batch, file.split)
        with HeadInputs(self.network) as inputs, contextlib.closing(predictions):
            for _, batch_labels in predictions:
                features.append(inputs.read().cpu().numpy())
                labels.append(batch_labels)
                self._progress.add(len(batch_labels), "features of the frozen network")
        matrix = np.concatenate(features)
        with ShardWriter(folder, Layout(make_schema(matrix.shape[1]), plain=True)) as writer:
            for start in range(0, len(matrix), ROW_GROUP):
                rows = slice(start, start + ROW_GROUP)
                writer.add_table(make_table(ids[rows], np.concatenate(labels)[rows], matrix[rows]))
            return writer.publish(file.split, split=file.split), matrix.shape[1]


def make_features(
    network: torch.nn.Module, tensors: Dataset, config: TrainConfig, device: torch.device, context: Context,
    comm: Communicator,
) -> Dataset | None:  # fmt: skip
    """Return the features of the tensors under a network that has its pretrained weights and is not trained yet.

    None where `identify_features` finds nothing, or the head is not one linear layer. TransientError where the process
    is asked to stop: the files that are done stay.
    """
    identity = identify_features(config, tensors.manifest)
    if not identity or get_linear_head(network) is None:
        return None

    import torch

    def stop_if_requested() -> None:
        if comm.stop.is_requested:
            raise TransientError(f"stopped by {comm.stop.signal_name}: the files of features that are done are kept")

    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    is_remote = tensors.uri.startswith("s3://")
    cache = ShardCache.create(config.cache_dir, config.cache_bytes) if is_remote else None
    threads = config.load_threads or 0
    return FeatureComputer(network, tensors, identity, device, context, threads, cache, stop_if_requested).run()
