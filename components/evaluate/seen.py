"""Which test images a model has seen in training: those whose bytes or pixels are among its train and validation rows.

With stable splits there are none. After another split of the same images (a declared split ignored, fractions changed,
`--split exact`) there are many, and a model looks better on them than it is. A model that started from another
model's weights has seen that model's images, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store import uri as uris
from ..store.errors import DatasetError, MillError
from ..store.manifest import Dataset, find_dataset
from ..store.shards import read_columns

Hashes = npt.NDArray[np.uint64]
_COLUMNS = ["sha256", "pixel_hash"]


def content_hash(sha256: Sequence[str | None]) -> Hashes:
    """Return the first 64 bits of SHA-256 digests in hexadecimal, [images]; 0 where there is none."""
    return np.array([int(digest[:16], 16) if digest else 0 for digest in sha256], np.uint64)


@dataclass(frozen=True)
class SeenImages:
    """The test images of a clean dataset: hashes of their ids, ascending, and in the same order those of their content
    and whether the model was trained or validated on them. `unknown`: datasets (kind/fingerprint) by which
    it may have seen more images, but which are gone. 17 bytes an image.
    """

    ids: Hashes
    content: Hashes
    seen: npt.NDArray[np.bool_]
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, model: Dataset, clean: Dataset) -> SeenImages:
        trained_on, unknown = _training_images(model)
        others = [dataset for dataset in trained_on if dataset.uri != clean.uri]  # its splits have no image in common
        ids, content, pixels = _test_images(clean)
        seen = np.zeros(len(ids), np.bool_)
        for dataset in others:
            for split in ("train", "val"):
                for table in read_columns(dataset, "data", _COLUMNS, split):
                    for column, hashes in zip(_COLUMNS, (content, pixels), strict=True):
                        if column in table.column_names:  # an earlier release's dataset may lack one
                            known = content_hash(table.column(column).to_pylist())
                            seen |= np.isin(hashes, known[known > 0])
        order = np.argsort(ids, kind="stable")
        return cls(ids[order], content[order], seen[order], tuple(unknown))

    def described(self) -> dict[str, Any]:
        """Return what the evaluation's manifest says: how many of the images were seen, and what is not known."""
        return {"images": int(self.seen.sum()), "unknown": list(self.unknown)}

    def look_up(self, image_ids: Sequence[str]) -> Iterator[tuple[int, bool]]:
        """Yield (hash of the content, whether the model has seen it) of images of the test split."""
        hashes = id_hashes(image_ids)
        places = np.minimum(np.searchsorted(self.ids, hashes), max(0, len(self.ids) - 1))
        if len(hashes) and (not len(self.ids) or (self.ids[places] != hashes).any()):
            raise DatasetError("a test image of the tensors is not among those of the clean dataset")
        return zip(self.content[places].tolist(), self.seen[places].tolist(), strict=True)


def _training_images(model: Dataset) -> tuple[list[Dataset], list[str]]:
    """Return the clean datasets that a model, and those whose weights it started from, were trained on; and the
    datasets on the way to them that are gone."""
    found: dict[str, Dataset] = {}
    gone: list[str] = []
    models: list[Dataset] = [model]
    visited = {model.uri}
    while models:
        dataset: Dataset | None = models.pop()
        assert dataset is not None
        if (start := _initial_model(dataset)) is not None and start.uri not in visited:
            visited.add(start.uri)
            models.append(start)
        for kind in ("tensors", "clean"):
            uri = dataset.parent_uri(kind)
            dataset = find_dataset(uri)
            if dataset is None or (kind == "clean" and dataset.missing()):
                gone.append(f"{kind}/{uris.basename(uri)}")
                break
        else:
            found[dataset.uri] = dataset
    return list(found.values()), gone


def _initial_model(model: Dataset) -> Dataset | None:
    """Return the model dataset whose weights the training of `model` started from, if it did and it is there."""
    weights = str(model.manifest.config.get("weights") or "")
    if "/" not in weights:  # none, or weights by name
        return None
    try:
        uri = uris.normalize(weights, "weights")
        dataset = find_dataset(uri.rpartition("/")[0] if uri.endswith(".safetensors") else uri)
    except MillError:  # a place that this machine does not see
        return None
    return dataset if dataset is not None and dataset.manifest.kind == "model" else None


def _test_images(clean: Dataset) -> tuple[Hashes, Hashes, Hashes]:
    """Return hashes of the ids, of the bytes and of the pixels (0 where unknown) of the test images, each [images]."""
    parts: list[tuple[Hashes, ...]] = [(np.empty(0, np.uint64),) * 3]
    for table in read_columns(clean, "data", ["image_id", *_COLUMNS], "test"):
        columns = (
            content_hash(table.column(name).to_pylist())
            if name in table.column_names
            else np.zeros(table.num_rows, np.uint64)
            for name in _COLUMNS
        )
        parts.append((id_hashes(table.column("image_id").to_pylist()), *columns))
    ids, content, pixels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return ids, content, pixels


def id_hashes(image_ids: Sequence[str]) -> Hashes:
    """Return 64-bit hashes of image ids, [images]: 8 bytes each, where a million ids would be 100 MB."""
    data = b"".join(hashlib.blake2b(i.encode("utf-8", "surrogatepass"), digest_size=8).digest() for i in image_ids)
    return np.frombuffer(data, np.uint64)
