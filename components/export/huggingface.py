"""Parquet as the Hugging Face hub has it: pictures and class names declared, and a card that says what is where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .names import image_name
from .pictures import ending, png
from .place import Place, Written
from .samples import Sample, Source
from .shards import Shard, Work

ROW_GROUP_BYTES = 16 * 2**20
ROW_GROUP_ROWS = 1000


class HuggingFaceForm:
    """`data/<split>-00000-of-00001.parquet`, columns `image`, `label` (`labels`), `image_id`; and `README.md`."""

    planned: ClassVar[bool] = True
    as_png: ClassVar[bool] = False

    def __init__(self, work: Work) -> None:
        self._source, self._schema = work.source, schema(work.source)
        self._bytes: dict[str, int] = {}

    def encode(self, sample: Sample) -> dict[str, Any]:
        """A row."""
        raw = isinstance(sample.data, np.ndarray)
        data = png(sample.data) if isinstance(sample.data, np.ndarray) else sample.data
        name = image_name(sample.image_id, sample.copy, taken=False)
        path = f"{name}.{'png' if raw else ending(data, sample.image_id)}"
        row: dict[str, Any] = {"image": {"bytes": data, "path": path}, "image_id": sample.image_id}
        row |= {"copy": sample.copy} if self._source.has_copies else {}
        return row | ({"labels": sample.label_ids} if self._source.multi else {"label": sample.label_ids[0]})

    def size(self, piece: dict[str, Any]) -> int:
        return len(piece["image"]["bytes"])

    def name(self, split: str, number: int, total: int) -> str:
        return f"data/{split}-{number:05d}-of-{total:05d}.parquet"

    def open(self, path: Path) -> Shard:
        return _Parquet(path, self._schema)

    def finish(self, place: Place, shards: list[Written]) -> list[Written]:
        return [place.put("README.md", card(self._source, shards).encode())]


class _Parquet:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema, self._rows, self._held = schema, list[dict[str, Any]](), 0
        packed = {"image.bytes": "none", "image.path": "zstd"}  # pictures are compressed already
        packed |= {name: "zstd" for name in schema.names if name != "image"}
        self._writer = pq.ParquetWriter(path, schema, compression=packed, use_dictionary=False, write_statistics=False)

    def add(self, piece: dict[str, Any]) -> None:
        self._rows.append(piece)
        self._held += len(piece["image"]["bytes"])
        if self._held >= ROW_GROUP_BYTES or len(self._rows) >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=self._schema)
            self._writer.write_table(table, row_group_size=len(self._rows))
            self._rows, self._held = [], 0

    def close(self) -> bytes:
        self._flush()
        self._writer.close()
        return b""

    def drop(self) -> None:
        self._writer.close()


def schema(source: Source) -> pa.Schema:
    """The columns, with the features that `datasets` reads from the metadata. All are nullable: it asks for that."""
    label = {"names": list(source.classes), "_type": "ClassLabel"}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields: list[tuple[str, pa.DataType, dict[str, Any]]] = [("image", image, {"_type": "Image"})]
    if source.multi:
        fields.append(("labels", pa.list_(pa.int64()), {"feature": label, "_type": "Sequence"}))
    else:
        fields.append(("label", pa.int64(), label))
    fields.append(("image_id", pa.string(), {"dtype": "string", "_type": "Value"}))
    if source.has_copies:
        fields.append(("copy", pa.int32(), {"dtype": "int32", "_type": "Value"}))
    about = {"info": {"features": {name: feature for name, _, feature in fields}}}
    return pa.schema([(name, kind) for name, kind, _ in fields], metadata={"huggingface": json.dumps(about)})


def card(source: Source, shards: list[Written]) -> str:
    """The dataset card: YAML that `datasets` reads, and a few lines for people."""
    import yaml

    held = {split: [s for s in shards if s.split == split] for split in source.rows}
    sizes = {split: sum(s.bytes for s in files) for split, files in held.items()}
    about = {
        "task_categories": ["image-classification"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in held],
            }
        ],
        "dataset_info": {
            "features": _features(source),
            "splits": [
                {"name": split, "num_bytes": sizes[split], "num_examples": rows} for split, rows in source.rows.items()
            ],
            "download_size": sum(sizes.values()),
            "dataset_size": sum(sizes.values()),
        },
    }
    front = yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=120)
    lines = [f"| {split} | {rows:,} |" for split, rows in source.rows.items()]
    manifest = source.dataset.manifest
    name = " ".join(str(manifest.extra.get("dataset_name") or "images").split())
    text = [
        "---", f"{front}---", "", f"# {name}", "",
        f"{len(source.classes)} classes. Exported by imagemill from the {manifest.kind} dataset "
        f"`{manifest.fingerprint}`; `image_id` is the image's name there.", "",
        "| split | images |", "|---|---:|", *lines, "",
    ]  # fmt: skip
    return "\n".join(text)


def _features(source: Source) -> list[dict[str, Any]]:
    names = {"class_label": {"names": {str(number): name for number, name in enumerate(source.classes)}}}
    label: dict[str, Any] = {"name": "labels", "sequence": names} if source.multi else {"name": "label", "dtype": names}
    found = [{"name": "image", "dtype": "image"}, label, {"name": "image_id", "dtype": "string"}]
    return [*found, {"name": "copy", "dtype": "int32"}] if source.has_copies else found
