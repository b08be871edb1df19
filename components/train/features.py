"""Compute frozen features: one pass of the pretrained network over the tensors, part by part, each made once.

A part of features is a function of a part of tensors, the network and its weights, and has every row of it. So only new
parts of a dataset that has grown are computed, and so it is after an interruption; the index says which rows count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.index import read_index, write_index
from ..dataset.kinds import FeaturesExtra
from ..dataset.labels import MULTI
from ..dataset.manifest import Dataset, Manifest, Part, Totals, commit, find_intact_dataset, fingerprint
from ..dataset.parts import PartFolder, PartRecord, make_part_key
from ..dataset.shards import Layout
from ..models.features import KIND, HeadInputs, make_schema, make_table
from ..step.progress import Progress
from ..step.step import Context
from ..storage import uri as uris
from ..storage.errors import TransientError
from .config import CHAMPION, TrainConfig
from .data.cache import PartCache
from .data.tensors import TensorSplit
from .expected_input import describe_conversion
from .loop.distributed import Communicator
from .loop.head_solver import get_linear_head
from .loop.validation import Validator
from .pretrained_weights import identify_weights

if TYPE_CHECKING:
    import torch

VERSION = 2
"""Raised when the same network and image must give other features."""
MAX_IMAGES = 200_000
"""Images of a split from which on no further part is read."""
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
    cache: PartCache | None = None
    before_batch: Callable[[], None] = lambda: None
    _progress: Progress = field(init=False)

    def run(self) -> Dataset:
        """Return the features: those that are there, or computed now."""
        workspace, tensors = self.context.workspace, self.tensors
        uri = workspace.dataset_uri(KIND, fingerprint(KIND, VERSION, [tensors.fingerprint], self.identity))
        if existing := find_intact_dataset(uri):
            return existing
        folder = PartFolder.of(workspace, KIND)
        selected = [part for split in ("train", "val", "test") for part in self._select_parts(split)]
        image = tensors.manifest.image_spec.to_dict()
        values = {"image": image, **self.identity}
        keys = {part.key: make_part_key(KIND, VERSION, part.key, values) for part in selected}
        records = folder.find(keys.values())
        missing = [part for part in selected if keys[part.key] not in records]
        self._progress = Progress("train", total=sum(part.rows for part in missing))
        for part in missing:
            records[keys[part.key]] = folder.add(self._compute(part, keys[part.key], folder))
        parts = [replace(records[keys[part.key]].files[0], split=part.split) for part in selected]
        index = read_index(tensors)
        names = [keys.get(key) for key in index.column("part").to_pylist()]
        position = index.schema.get_field_index("part")
        index = index.set_column(position, "part", pa.array(names, pa.string()))
        index = index.filter(pc.is_valid(index.column("part")))
        splits = index.column("split").to_pylist()
        by_split = {split: splits.count(split) for split in ("train", "val", "test")}
        totals = Totals(rows=index.num_rows, bytes=sum(part.bytes for part in parts), by_split=by_split)
        dimensions = records[keys[selected[0].key]].facts["dimensions"]
        return commit(uri, Manifest(
            KIND, uris.basename(uri), parents=(tensors.as_parent(uri),), config=dict(self.identity),
            classes=tensors.manifest.classes, totals=totals, extra=FeaturesExtra(tensors.name, dimensions),
            parts=tuple(parts), files=tuple(write_index(uri, index)),
        ))  # fmt: skip

    def _select_parts(self, split: str) -> list[Part]:
        """Return the split's parts from the first on until they hold `MAX_IMAGES`."""
        selected: list[Part] = []
        for part in self.tensors.parts(split):
            if sum(other.rows for other in selected) >= MAX_IMAGES:
                break
            selected.append(part)
        return selected

    def _compute(self, part: Part, key: str, folder: PartFolder) -> PartRecord:
        """Write the features of all rows of a part of tensors; the record's facts are the number of `dimensions`."""
        validator = Validator(self.tensors, BATCH_SIZE, self.device, contextlib.nullcontext, self.threads, self.cache)
        features = []
        images = TensorSplit.from_part(self.tensors, part, self.cache)
        predictions = validator.predict(self.network, self.before_batch, images)
        with HeadInputs(self.network) as inputs, contextlib.closing(predictions):
            for _, batch_labels in predictions:
                features.append(inputs.read().cpu().numpy())
                self._progress.add(len(batch_labels), "features of the frozen network")
        matrix = np.concatenate(features)
        with folder.open_writer(Layout(make_schema(matrix.shape[1]), plain=True)) as writer:
            for start in range(0, len(matrix), ROW_GROUP):
                writer.add_table(make_table(matrix[start : start + ROW_GROUP]))
            return PartRecord(key, (writer.publish_part(key),), {"dimensions": matrix.shape[1]})


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
            raise TransientError(f"stopped by {comm.stop.requested_by}: the files of features that are done are kept")

    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    is_remote = tensors.uri.startswith("s3://")
    cache = PartCache.create(config.cache_dir, config.cache_bytes) if is_remote else None
    threads = config.load_threads or 0
    return FeatureComputer(network, tensors, identity, device, context, threads, cache, stop_if_requested).run()
