"""Out-of-distribution scores: how far an image's features are from those of the images that a model was trained on.

The distance is to the k-th nearest training image, of inputs of the head of length 1 (Sun, Ming, Zhu and Li,
"Out-of-Distribution Detection with Deep Nearest Neighbors", 2022). The threshold is a conformal one, from validation
images that the distances have not seen: of n of them the ceil((n + 1)(1 - rate))-th smallest distance, which a further
image of the same distribution exceeds with a probability of at most `rate` (Laxhammar and Falkman, "Conformal
prediction for distribution-independent anomaly detection in streaming vessel data", 2010). Few validation images allow
no small rate: the threshold is the largest of their distances then, and the rate 1 / (n + 1).

Train fits a detector and stores it with the model; evaluate and predict read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dataset.manifest import Dataset, File
from ..dataset.shards import publish_bytes
from ..storage.errors import DatasetError
from ..storage.store import get_store
from .features import Floats

OOD = "ood"
"""Role of the file of a model that holds its detector."""
MAX_ROWS = 10_000
"""Training images whose features are stored: 2 bytes a feature each, 26 MB of 1,280."""
NEIGHBORS = 5
_CHUNK = 20_000_000
"""Similarities that are in memory at a time."""


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
        from safetensors import SafetensorError
        from safetensors.numpy import load

        for file in model.files(OOD):
            uri = model.locate(file)
            try:
                arrays = load(get_store(uri).read(uri))
                return cls(arrays["bank"], float(arrays["threshold"][0]), float(arrays["rate"][0]))
            except (SafetensorError, KeyError, FileNotFoundError) as error:
                raise DatasetError(f"{uri}: expected an out-of-distribution detector, found {error!r}") from None
        return None


def normalize(features: Floats) -> Floats:
    """Return features [N, D] of length 1; those of length 0 as they are."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(lengths > 0, lengths, 1), np.float32)
