"""Features, the inputs of a network's head: those of a frozen pretrained network, a linear probe on them, and
out-of-distribution scores by them.

Train makes a dataset of kind `features` for tensors and pretrained weights; the network has not seen the labels. Train
and evaluate read it. Rows are in the tensors' order.

Out-of-distribution scores say how far an image's features are from those of the images that a model was trained on. The
distance is to the k-th nearest training image, of inputs of the head of length 1 (Sun, Ming, Zhu and Li,
"Out-of-Distribution Detection with Deep Nearest Neighbors", 2022). The threshold is a conformal one, from validation
images that the distances have not seen: of n of them the ceil((n + 1)(1 - rate))-th smallest distance, which a further
image of the same distribution exceeds with a probability of at most `rate` (Laxhammar and Falkman, "Conformal
prediction for distribution-independent anomaly detection in streaming vessel data", 2010). Few validation images allow
no small rate: the threshold is the largest of their distances then, and the rate 1 / (n + 1). Train fits a detector and
stores it with the model; evaluate and predict read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataset.index import read_index, read_rows
from ..dataset.kinds import FeaturesExtra
from ..dataset.manifest import Dataset, File, find_intact_dataset
from ..dataset.shards import publish_bytes
from ..storage.errors import DatasetError
from ..storage.store import get_store
from .blocks import head_modules

if TYPE_CHECKING:
    import torch

KIND = "features"
PROBE = "probe"
"""Role of the file of a model that holds its linear probe."""
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
OOD = "ood"
"""Role of the file of a model that holds its detector."""
MAX_ROWS = 10_000
"""Training images whose features a detector stores: 2 bytes a feature each, 26 MB of 1,280."""
NEIGHBORS = 5
_CHUNK = 20_000_000
"""Similarities that are in memory at a time."""


def make_schema(dimensions: int) -> pa.Schema:
    """Return the column of a part of features: `features` are float32 [dimensions], little-endian."""
    return pa.schema([pa.field("features", pa.binary(4 * dimensions), nullable=False)])


def make_table(features: Floats) -> pa.Table:
    """Return features [N, D] as a table of `make_schema`."""
    data = np.ascontiguousarray(features, "<f4")
    column = pa.Array.from_buffers(pa.binary(4 * data.shape[1]), len(data), [None, pa.py_buffer(data)])
    return pa.table([column], schema=make_schema(data.shape[1]))


class HeadInputs:
    """Context manager that keeps the input of a network's head at each call."""

    def __init__(self, network: torch.nn.Module) -> None:
        self._module = network.get_submodule(head_modules(network)[0])
        self._input: torch.Tensor | None = None

    def __enter__(self) -> HeadInputs:
        self._handle = self._module.register_forward_pre_hook(self._keep_input)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _keep_input(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._input = inputs[0]

    def read(self) -> torch.Tensor:
        """Return the features of the last call, float32 [B, D]; feature maps are averaged over their positions."""
        import torch

        assert self._input is not None
        x = self._input.float()
        if x.ndim > 2:  # a convolution has its channels in front, a linear layer has them last
            x = x.flatten(2).mean(2) if isinstance(self._module, torch.nn.Conv2d) else x.flatten(1, -2).mean(1)
        return x


def find_features(model: Dataset) -> Dataset | None:
    """Return the features that a model was trained beside; None where there are none, or not any more."""
    return next(filter(None, map(find_intact_dataset, model.parent_uris(KIND))), None)


def iter_features(features: Dataset, split: str) -> Iterator[tuple[Floats, Labels]]:
    """Yield (features [N, D], labels [N]) of each row group of a split, in the tensors' order."""
    dimensions = FeaturesExtra.of(features.manifest).dimensions
    for table in read_rows(features, ["label_id", "features"], split):
        column = table.column("features").combine_chunks()
        flat = np.frombuffer(column.buffers()[1], "<f4")
        rows = slice(column.offset * dimensions, (column.offset + len(column)) * dimensions)
        labels = np.asarray(table.column("label_id"))
        yield flat[rows].reshape(-1, dimensions), labels.astype(np.int64)


def read_features(features: Dataset, split: str, max_rows: int | None = None) -> tuple[Floats, Labels]:
    """Return (features [N, D], labels [N]) of the first `max_rows` of a split, in the tensors' order."""
    parts: list[Floats] = [np.empty((0, FeaturesExtra.of(features.manifest).dimensions), np.float32)]
    labels: list[Labels] = [np.empty(0, np.int64)]
    for part, part_labels in iter_features(features, split):
        parts.append(part)
        labels.append(part_labels)
        if max_rows is not None and sum(map(len, labels)) >= max_rows:
            break
    return np.concatenate(parts)[:max_rows], np.concatenate(labels)[:max_rows]


def read_image_ids(features: Dataset, splits: Sequence[str] = ("train", "val", "test")) -> list[str]:
    """Return the ids of a dataset's images, split by split in stored order."""
    return [i for split in splits for i in read_index(features, ["image_id"], split).column("image_id").to_pylist()]


@dataclass(frozen=True)
class LinearProbe:
    """Logits `features @ weight.T + bias`: `weight` float32 [classes, D], `bias` float32 [classes]."""

    weight: Floats
    bias: Floats

    def __call__(self, features: Floats) -> Floats:
        return np.asarray(features @ self.weight.T + self.bias, np.float32)

    def publish(self, model_uri: str) -> File:
        """Write the probe below a model's URI; return its entry of the manifest."""
        from safetensors.numpy import save

        return publish_bytes(model_uri, save(vars(self)), "probe-", ".safetensors", PROBE)

    @classmethod
    def read(cls, model: Dataset) -> LinearProbe | None:
        """Return the probe of a model; None where it has none. DatasetError for a broken file."""
        arrays = _read_arrays(model, PROBE, ("weight", "bias"), "the weights of a linear probe")
        return cls(**arrays) if arrays else None


@dataclass(frozen=True)
class OodDetector:
    """Scores features by their distance from the training images.

    Attributes:
        bank: features of training images, of length 1, float16 [M, D].
        threshold: distance that counts as 1.
        rate: probability that an image like the validation images has a score above 1.
    """

    bank: npt.NDArray[np.float16]
    threshold: float
    rate: float

    @classmethod
    def fit(cls, train: Floats, validation: Floats, rate: float) -> OodDetector:
        """Return the detector of features float32 [M, D] and [n, D]; n is at least 1.

        `rate`: the false alarms that are accepted, above 0 and below 1.
        """
        bank = normalize(train).astype(np.float16)
        distances = np.sort(cls(bank, 1.0, rate).score(validation))
        rank = math.ceil((len(distances) + 1) * (1 - rate) - 1e-9)
        actual = rate if rank <= len(distances) else 1 / (len(distances) + 1)
        threshold = float(distances[min(rank, len(distances)) - 1])
        return cls(bank, max(threshold, 1e-6), actual)

    def score(self, features: Floats) -> Floats:
        """Return the scores of features float32 [B, D], float32 [B]: above 1 is beyond the threshold."""
        bank, neighbors = self.bank.astype(np.float32), min(NEIGHBORS, len(self.bank))
        rows = max(1, _CHUNK // len(bank))
        parts = [np.empty(0, np.float32)]
        for start in range(0, len(features), rows):
            similarities = normalize(features[start : start + rows]) @ bank.T
            nearest = -np.partition(-similarities, neighbors - 1, axis=1)[:, neighbors - 1]
            parts.append(np.sqrt(np.maximum(0, 2 - 2 * nearest)) / self.threshold)
        return np.concatenate(parts).astype(np.float32)

    def publish(self, model_uri: str) -> File:
        """Write the detector below a model's URI; return its entry of the manifest."""
        from safetensors.numpy import save

        arrays = {"bank": self.bank, "threshold": np.array([self.threshold]), "rate": np.array([self.rate])}
        return publish_bytes(model_uri, save(arrays), "ood-", ".safetensors", OOD)

    @classmethod
    def read(cls, model: Dataset) -> OodDetector | None:
        """Return the detector of a model; None where it has none. DatasetError for a broken file."""
        arrays = _read_arrays(model, OOD, ("bank", "threshold", "rate"), "an out-of-distribution detector")
        return cls(arrays["bank"], float(arrays["threshold"][0]), float(arrays["rate"][0])) if arrays else None


def _read_arrays(model: Dataset, role: str, names: Sequence[str], expected: str) -> dict[str, Any]:
    """Return the named arrays of a model's file with that role; empty where it has none. DatasetError for a broken
    file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    for file in model.files(role):
        uri = model.locate(file)
        try:
            arrays = load(get_store(uri).read(uri))
            return {name: arrays[name] for name in names}
        except (SafetensorError, KeyError, FileNotFoundError) as error:
            raise DatasetError(f"{uri}: expected {expected}, found {error!r}") from None
    return {}


def normalize(features: Floats) -> Floats:
    """Return features [N, D] of length 1; those of length 0 as they are."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(lengths > 0, lengths, 1), np.float32)
