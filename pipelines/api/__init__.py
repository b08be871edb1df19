"""Imagemill from Python: `imagemill.open` reads the datasets of a workspace.

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
        """Return the images as a `datasets.Dataset`, whose column `image` decodes for raw and clean."""
        import datasets

        is_picture = self.dataset.manifest.kind in ("raw", "clean")
        names = [name for name in self._list_columns() if name != "thumbnail"]

        def generate() -> Iterator[dict[str, Any]]:
            for table in self.arrow(names):
                for row in table.to_pylist():
                    if isinstance(row.get("image"), bytes) and is_picture:
                        row["image"] = {"bytes": row["image"], "path": None}
                    yield row

        loaded = datasets.Dataset.from_generator(generate, fingerprint=f"{self.dataset.fingerprint}{self.split}")
        return loaded.cast_column("image", datasets.Image()) if is_picture else loaded
