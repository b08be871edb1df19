"""Find the test images that a model has seen in training: those whose bytes or pixels are among its train and
validation rows.

With stable splits there are none. After another split of the same images (a declared split ignored, fractions changed,
`--split exact`) there are many, and a model's scores on them are too high. A model that started from another model's
weights has seen that model's images, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataset.index import PartRows, list_part_rows, read_index, read_part_rows, read_rows
from ..dataset.kinds import SeenImages
from ..dataset.manifest import Dataset, Part, find_dataset
from ..storage import uri as uris
from ..storage.errors import DatasetError

Hashes = npt.NDArray[np.uint64]
_COLUMNS = ["sha256", "pixel_hash"]


def parse_content_hashes(sha256: Sequence[str | None]) -> Hashes:
    """Return the first 64 bits of SHA-256 digests in hexadecimal, [images]; 0 where there is none."""
    return np.array([int(digest[:16], 16) if digest else 0 for digest in sha256], np.uint64)


def hash_ids(image_ids: Sequence[str]) -> Hashes:
    """Return 64-bit hashes of image ids, [images]: 8 bytes each, where a million ids would be 100 MB."""
    data = b"".join(hashlib.blake2b(i.encode("utf-8", "surrogatepass"), digest_size=8).digest() for i in image_ids)
    return np.frombuffer(data, np.uint64)


def locate_ids(sorted_hashes: Hashes, image_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the index of each id's hash in `sorted_hashes`, [images]; DatasetError where one is missing."""
    hashes = hash_ids(image_ids)
    index = np.minimum(np.searchsorted(sorted_hashes, hashes), max(0, len(sorted_hashes) - 1))
    if len(hashes) and (not len(sorted_hashes) or (sorted_hashes[index] != hashes).any()):
        raise DatasetError("a test image of the tensors is not among those of the clean dataset")
    return index


@dataclass(frozen=True)
class TrainingOverlap:
    """Test images of a clean dataset, [images] each, in ascending order of `id_hashes`: `content_hashes`, and `is_seen`
    where the model was trained or validated on the image. `missing`: datasets (kind/fingerprint) with which it may have
    seen more images, but which no longer exist. 17 bytes an image.
    """

    id_hashes: Hashes
    content_hashes: Hashes
    is_seen: npt.NDArray[np.bool_]
    missing: tuple[str, ...]

    @classmethod
    def find(cls, model: Dataset, clean: Dataset) -> TrainingOverlap:
        trained_on, missing = _find_training_datasets(model)
        ids, content, pixels = _read_test_hashes(clean)
        is_seen = np.zeros(len(ids), np.bool_)
        for table in _read_training_rows([dataset for dataset in trained_on if dataset.uri != clean.uri]):
            for column, hashes in zip(_COLUMNS, (content, pixels), strict=True):
                if column in table.column_names:  # an earlier release's dataset may lack one
                    training = parse_content_hashes(table.column(column).to_pylist())
                    is_seen |= np.isin(hashes, training[training > 0])
        order = np.argsort(ids, kind="stable")
        return cls(ids[order], content[order], is_seen[order], tuple(missing))

    def summarize(self) -> SeenImages:
        """Return the manifest's entry."""
        return SeenImages(int(self.is_seen.sum()), list(self.missing))

    def look_up(self, image_ids: Sequence[str]) -> Iterator[tuple[int, bool]]:
        """Return (content hash, whether the model has seen it) of images of the test split."""
        index = locate_ids(self.id_hashes, image_ids)
        return zip(self.content_hashes[index].tolist(), self.is_seen[index].tolist(), strict=True)


def _read_training_rows(datasets: Sequence[Dataset]) -> Iterator[pa.Table]:
    """Yield the hashes of the training and validation images of clean datasets.

    Each part is read once: snapshots share parts, and a model may have started from that of the week before, as did
    that one.
    """
    selected: dict[str, tuple[Dataset, Part, set[int]]] = {}
    for dataset in datasets:
        for split in ("train", "val"):
            for rows in list_part_rows(dataset, read_index(dataset, ["part", "row"], split)):
                _, _, numbers = selected.setdefault(rows.part.key, (dataset, rows.part, set()))
                numbers.update(rows.rows.tolist())
    for dataset, part, numbers in selected.values():
        rows_of_part = PartRows(part, np.array(sorted(numbers), np.int32), pa.table({}))
        yield from read_part_rows(dataset, rows_of_part, _COLUMNS)


def _find_training_datasets(model: Dataset) -> tuple[list[Dataset], list[str]]:
    """Return the clean datasets that a model, and those whose weights it started from, were trained on; and the
    ancestors (kind/fingerprint) that no longer exist."""
    clean: dict[str, Dataset] = {}
    missing: list[str] = []
    models: list[Dataset] = [model]
    visited = {model.uri}
    while models:
        dataset = models.pop()
        for uri in dataset.parent_uris("model"):  # whose weights its training started from
            if (initial := find_dataset(uri)) is None:
                missing.append(f"model/{uris.basename(uri)}")
            elif uri not in visited:
                visited.add(uri)
                models.append(initial)
        for uri in dataset.parent_uris("tensors"):  # with the unlabeled ones of another domain
            tensors = find_dataset(uri)
            trained_on = find_dataset(tensors.parent_uri("clean")) if tensors else None
            if tensors is None:
                missing.append(f"tensors/{uris.basename(uri)}")
            elif trained_on is None or trained_on.missing():
                missing.append(f"clean/{uris.basename(tensors.parent_uri('clean'))}")
            else:
                clean[trained_on.uri] = trained_on
    return list(clean.values()), missing


def _read_test_hashes(clean: Dataset) -> tuple[Hashes, Hashes, Hashes]:
    """Return hashes of the ids, of the bytes and of the pixels (0 where unknown) of the test images, each [images]."""
    parts: list[tuple[Hashes, ...]] = [(np.empty(0, np.uint64),) * 3]
    for table in read_rows(clean, ["image_id", *_COLUMNS], "test"):
        columns = (
            parse_content_hashes(table.column(name).to_pylist())
            if name in table.column_names
            else np.zeros(table.num_rows, np.uint64)
            for name in _COLUMNS
        )
        parts.append((hash_ids(table.column("image_id").to_pylist()), *columns))
    ids, content, pixels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return ids, content, pixels
