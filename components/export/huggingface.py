"""Parquet for Hugging Face `datasets`: columns with declared features, and a dataset card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .image_files import encode_png, get_extension
from .imagefolder import make_image_name
from .output_folder import ExportedFile, OutputFolder
from .samples import ExportSource, Sample
from .shards import ExportContext, ShardFile

ROW_GROUP_BYTES = 16 * 2**20
ROW_GROUP_ROWS = 1000


class HuggingFaceFormat:
    """`data/<split>-00000.parquet`, columns `image`, `label` (`labels`), `image_id`; and `README.md`."""

    def __init__(self, context: ExportContext) -> None:
        self._source, self._schema = context.source, make_schema(context.source)

    def encode(self, sample: Sample) -> dict[str, Any]:
        """Return a row."""
        data = encode_png(sample.data) if isinstance(sample.data, np.ndarray) else sample.data
        name = make_image_name(sample.image_id, sample.copy, is_taken=False)
        path = f"{name}.{get_extension(data, sample.image_id)}"
        row: dict[str, Any] = {"image": {"bytes": data, "path": path}, "image_id": sample.image_id}
        row |= {"copy": sample.copy} if self._source.has_copies else {}
        return row | ({"labels": sample.label_ids} if self._source.is_multi_label else {"label": sample.label_ids[0]})

    def record_size(self, record: dict[str, Any]) -> int:
        return len(record["image"]["bytes"])

    def shard_name(self, split: str, number: int) -> str:
        return f"data/{split}-{number:05d}.parquet"

    def open_shard(self, path: Path) -> ShardFile:
        return _ParquetFile(path, self._schema)

    def write_metadata(self, output: OutputFolder, shards: list[ExportedFile]) -> list[ExportedFile]:
        return [output.put("README.md", make_card(self._source, shards).encode())]


class _ParquetFile:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema, self._rows, self._bytes = schema, list[dict[str, Any]](), 0
        compression = {"image.bytes": "none", "image.path": "zstd"}  # image files are compressed already
        compression |= {name: "zstd" for name in schema.names if name != "image"}
        self._writer = pq.ParquetWriter(
            path, schema, compression=compression, use_dictionary=False, write_statistics=False
        )

    def add(self, record: dict[str, Any]) -> None:
        self._rows.append(record)
        self._bytes += len(record["image"]["bytes"])
        if self._bytes >= ROW_GROUP_BYTES or len(self._rows) >= ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_pylist(self._rows, schema=self._schema)
            self._writer.write_table(table, row_group_size=len(self._rows))
            self._rows, self._bytes = [], 0

    def close(self) -> bytes:
        self._flush()
        self._writer.close()
        return b""

    def abort(self) -> None:
        self._writer.close()


def make_schema(source: ExportSource) -> pa.Schema:
    """Return the columns, with the features that `datasets` reads from the metadata; it needs nullable columns."""
    label = {"names": list(source.classes), "_type": "ClassLabel"}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields: list[tuple[str, pa.DataType, dict[str, Any]]] = [("image", image, {"_type": "Image"})]
    if source.is_multi_label:
        fields.append(("labels", pa.list_(pa.int64()), {"feature": label, "_type": "Sequence"}))
    else:
        fields.append(("label", pa.int64(), label))
    fields.append(("image_id", pa.string(), {"dtype": "string", "_type": "Value"}))
    if source.has_copies:
        fields.append(("copy", pa.int32(), {"dtype": "int32", "_type": "Value"}))
    features = {"info": {"features": {name: feature for name, _, feature in fields}}}
    return pa.schema([(name, kind) for name, kind, _ in fields], metadata={"huggingface": json.dumps(features)})


def make_card(source: ExportSource, shards: list[ExportedFile]) -> str:
    """Return the dataset card: YAML that `datasets` reads, and a description."""
    import yaml

    sizes = {split: sum(shard.bytes for shard in shards if shard.split == split) for split in source.rows}
    metadata = {
        "task_categories": ["image-classification"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in source.rows],
            }
        ],
        "dataset_info": {
            "features": _describe_features(source),
            "splits": [
                {"name": split, "num_bytes": sizes[split], "num_examples": rows} for split, rows in source.rows.items()
            ],
            "download_size": sum(sizes.values()),
            "dataset_size": sum(sizes.values()),
        },
    }
    front_matter = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=120)
    lines = [f"| {split} | {rows:,} |" for split, rows in source.rows.items()]
    manifest = source.dataset.manifest
    name = " ".join((manifest.extra.dataset_name or "images").split())
    text = [
        "---", f"{front_matter}---", "", f"# {name}", "",
        f"{len(source.classes)} classes. Exported by imagemill from the {manifest.kind} dataset "
        f"`{manifest.fingerprint}`; `image_id` is the image's name there.", "",
        "| split | images |", "|---|---:|", *lines, "",
    ]  # fmt: skip
    return "\n".join(text)


def _describe_features(source: ExportSource) -> list[dict[str, Any]]:
    names = {"class_label": {"names": {str(number): name for number, name in enumerate(source.classes)}}}
    label: dict[str, Any] = (
        {"name": "labels", "sequence": names} if source.is_multi_label else {"name": "label", "dtype": names}
    )
    features = [{"name": "image", "dtype": "image"}, label, {"name": "image_id", "dtype": "string"}]
    return [*features, {"name": "copy", "dtype": "int32"}] if source.has_copies else features
