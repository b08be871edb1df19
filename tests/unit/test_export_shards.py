"""Shards read back by readers that are not ours: tarfile and WebDataset, Hugging Face datasets and Arrow."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import exports
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from imagemill.components.dataset.index import read_rows
from imagemill.components.dataset.manifest import Dataset

SIZE = 6000
"""Bytes of a shard, so that there are several."""


def stored(source: Dataset, split: str) -> list[dict[str, Any]]:
    """The rows of a clean split in the index's order."""
    label = "label_ids" if source.manifest.task == "multi" else "label_id"
    columns = ["image_id", "image.bytes", label, "shuffle_index"]
    return [row for table in read_rows(source, columns, split) for row in table.to_pylist()]


def test_tars_are_bounded_and_indexed(tmp_path: Path) -> None:
    source = exports.tensors(str(tmp_path / "tensors" / "01"), (32, 32, 3))
    exports.run(source, "webdataset", tmp_path / "out", 20_000)
    for split in ("train", "val"):
        index = json.loads((tmp_path / "out" / f"{split}-index.json").read_text())
        assert (index["__kind__"], index["wids_version"], index["name"]) == ("wids-shard-index-v1", 1, split)
        paths = sorted(p.name for p in (tmp_path / "out").glob(f"{split}-*.tar"))
        assert [shard["url"] for shard in index["shardlist"]] == paths and len(paths) > 2
        assert paths[0] == f"{split}-000000.tar"
        for shard in index["shardlist"]:
            path = tmp_path / "out" / shard["url"]
            with tarfile.open(path) as tar:
                assert shard["nsamples"] == sum(m.name.endswith(".json") for m in tar)
            # The blocks of the samples; at its end a tar has two more, and is filled up to a record of twenty.
            assert path.stat().st_size == shard["filesize"] <= 20_000 + tarfile.RECORDSIZE
        assert sum(shard["nsamples"] for shard in index["shardlist"]) == 20


def web(folder: Path, split: str) -> list[dict[str, Any]]:
    import webdataset

    urls = [str(p) for p in sorted(folder.glob(f"{split}-*.tar"))]
    return list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil"))


@pytest.mark.parametrize(("channels", "color"), [(5, "rgb"), (3, "lab")])
def test_webdataset_reads_raw_tensors_as_arrays(tmp_path: Path, channels: int, color: str) -> None:
    shape = (8, 8, channels)
    source = exports.tensors(str(tmp_path / "tensors" / "01"), shape, color=color, edges=["sobel"])
    exports.run(source, "webdataset", tmp_path / "out")
    rows = web(tmp_path / "out", "train")
    assert len(rows) == 20
    for number, row in enumerate(rows):
        assert row["npy"].dtype == np.uint8
        assert np.array_equal(row["npy"], exports.pixels_of(shape, "train", number))


def test_webdataset_has_several_labels_and_copies_in_json(tmp_path: Path) -> None:
    source = exports.tensors(str(tmp_path / "tensors" / "01"), multi=True, copies=1)
    exports.run(source, "webdataset", tmp_path / "out")
    for number, row in enumerate(web(tmp_path / "out", "train")):
        ids = [label_id for label_id in range(3) if number >> label_id & 1]
        assert "cls" not in row
        assert row["json"] == {
            "image_id": f"train/{number // 2}.jpg", "split": "train", "copy": number % 2,
            "label_ids": ids, "labels": ["abc"[label_id] for label_id in ids],
        }  # fmt: skip


def load(folder: Path, cache: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.load_dataset(str(folder), cache_dir=str(cache))


def test_parquet_has_the_stored_bytes_and_hugging_face_features(tmp_path: Path) -> None:
    source = exports.clean_single(str(tmp_path / "clean" / "01"))
    exports.run(source, "huggingface", tmp_path / "out", SIZE)
    for split in ("train", "val", "test"):
        paths = sorted((tmp_path / "out" / "data").glob(f"{split}-*"))
        assert [p.name for p in paths] == [f"{split}-{n:05d}.parquet" for n in range(len(paths))]
        rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
        expected = stored(source, split)
        assert [(r["image"]["bytes"], r["label"], r["image_id"]) for r in rows] == [
            (r["image"]["bytes"], r["label_id"], r["image_id"]) for r in expected
        ]
        assert not any("/" in row["image"]["path"] for row in rows)
        features = json.loads(pq.read_schema(paths[0]).metadata[b"huggingface"])["info"]["features"]
        assert features["image"] == {"_type": "Image"}
        assert features["label"] == {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}
    assert len(list((tmp_path / "out" / "data").glob("train-*"))) > 2


def test_dataset_card_lists_splits_and_features(tmp_path: Path) -> None:
    source = exports.tensors(str(tmp_path / "tensors" / "01"))
    exports.run(source, "huggingface", tmp_path / "out")
    card = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert card["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*.parquet"}, {"split": "val", "path": "data/val-*.parquet"},
    ]  # fmt: skip
    assert [(s["name"], s["num_examples"]) for s in card["dataset_info"]["splits"]] == [("train", 20), ("val", 20)]
    assert card["dataset_info"]["features"][1]["dtype"] == {"class_label": {"names": {"0": "a", "1": "b", "2": "c"}}}


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_hugging_face_loads_tensors_with_several_labels_and_copies(tmp_path: Path, encoding: str) -> None:
    shape = (16, 16, 3)
    source = exports.tensors(str(tmp_path / "tensors" / "01"), shape, encoding, multi=True, copies=3)
    exports.run(source, "huggingface", tmp_path / "out")
    jpegs = {}
    for part in read_rows(source, ["image_id", "copy", "image"]):
        jpegs |= {(row["image_id"], row["copy"]): row["image"] for row in part.to_pylist()}
    loaded = load(tmp_path / "out", tmp_path / "cache")
    for split, split_dataset in loaded.items():
        labels = split_dataset.features["labels"]
        assert labels.feature.names == ["a", "b", "c"]
        assert len(split_dataset) == 20
        for number, row in enumerate(split_dataset):
            assert row["labels"] == [label_id for label_id in range(3) if number >> label_id & 1]
            assert (row["image_id"], row["copy"]) == (f"{split}/{number // 4}.jpg", number % 4)
            expected = exports.pixels_of(shape, split, number)
            if encoding == "jpeg":
                expected = exports.render_rgb(jpegs[row["image_id"], row["copy"]])
            assert np.array_equal(np.asarray(row["image"]), expected)
