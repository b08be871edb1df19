"""Imagemill from Python: `imagemill.open` reads the datasets of a workspace.

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from imagemill.components.dataset.manifest import Dataset

__all__ = ["OpenDataset", "open"]


def open(uri: str, split: str | None = None) -> OpenDataset:
    """Open a dataset of a workspace by the URI or path of its folder; UserError if there is none.

    `split`: `train`, `val` or `test`; None: all images.
    """
    from imagemill.components.dataset.manifest import normalize_dataset_uri, read_dataset

    return OpenDataset(read_dataset(normalize_dataset_uri(uri, "uri")), split)


@dataclass(frozen=True)
class OpenDataset:
    """The images of one split, or all, of a raw, clean or tensors dataset."""

    dataset: Dataset
    split: str | None = None

    def arrow(self, columns: Sequence[str] = ()) -> Iterator[pa.Table]:
        """Yield tables of some 8 MB, the index's columns beside those of the images (default: all)."""
        from imagemill.components.dataset.index import read_rows

        return read_rows(self.dataset, list(columns) or self._list_columns(), self.split)

    def _list_columns(self) -> list[str]:
        from imagemill.components.dataset.shards import open_parquet

        locations = [self.dataset.locate(file) for file in self.dataset.files("index")[:1]]
        locations += [self.dataset.locate_part(part) for part in self.dataset.manifest.parts[:1]]
        names: list[str] = []
        for uri in locations:
            with open_parquet(uri) as parquet:
                names += parquet.schema_arrow.names
        return list(dict.fromkeys(names))

    def torch(self) -> Any:
        """Return the images of tensors as a map-style dataset of (uint8 [C, H, W], label), for a `DataLoader`.

        `imagemill.components.train.data.loader.TensorBatches` yields batches faster.
        """
        from imagemill.components.storage.errors import wrong
        from imagemill.components.train.data.loader import TensorImages

        if self.dataset.manifest.kind != "tensors" or self.split is None:
            raise wrong("torch()", "a split of a tensors dataset", f"{self.split} of {self.dataset.manifest.kind}")
        return TensorImages(self.dataset.uri, self.split)

    def to_hf(self) -> Any:
        """Return the images as a `datasets.Dataset`, whose column `image` decodes for raw and clean.

        They are written once to the cache of `datasets`, and mapped into memory.
        """
        import datasets
        import pyarrow as pa
        from datasets.arrow_writer import ArrowWriter

        names = [name for name in self._list_columns() if name != "thumbnail"]
        schema = next(self.arrow(names)).schema.remove_metadata()
        for number, field in enumerate(schema):
            if pa.types.is_dictionary(field.type):
                schema = schema.set(number, field.with_type(field.type.value_type))
        features = datasets.Features.from_arrow_schema(schema)
        if self.dataset.manifest.kind in ("raw", "clean"):
            features["image"] = datasets.Image()

        folder = Path(datasets.config.HF_DATASETS_CACHE) / "imagemill"
        path = folder / f"{self.dataset.fingerprint}-{self.split}.arrow"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}")
            with ArrowWriter(features=features, path=str(unfinished)) as writer:
                for table in self.arrow(names):
                    writer.write_table(table.cast(schema))
                writer.finalize()
            unfinished.replace(path)
        return datasets.Dataset.from_file(str(path))
