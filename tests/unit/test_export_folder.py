"""Image folders, read back by torchvision, by Hugging Face's imagefolder and by Pillow."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import exports
import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from imagemill.components.dataset.index import read_rows
from imagemill.components.dataset.manifest import Dataset


def read_originals(source: Dataset) -> dict[str, tuple[bytes, str, Any]]:
    """Every row of a clean dataset: its bytes, split and label or labels."""
    label = "label_ids" if source.manifest.task == "multi" else "label_id"
    rows_by_id = {}
    for split in ("train", "val", "test"):
        for table in read_rows(source, ["image_id", "image.bytes", label], split):
            for row in table.to_pylist():
                rows_by_id[row["image_id"]] = (row["image"]["bytes"], split, row[label])
    return rows_by_id


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("color", ["gray", "green"])
def test_one_channel_is_a_gray_png(tmp_path: Path, color: str) -> None:
    source = exports.tensors(str(tmp_path / "tensors" / "01"), (16, 16, 1), color=color)
    exports.run(source, "imagefolder", tmp_path / "out")
    for row in table(tmp_path / "out" / "labels.csv"):
        image = Image.open(tmp_path / "out" / row["file_name"])
        number = int(row["image_id"].partition("/")[2].partition(".")[0])
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), exports.pixels_of((16, 16, 1), row["split"], number)[:, :, 0])


def test_jpeg_tensors_are_those_very_bytes_and_copies_lie_beside(tmp_path: Path) -> None:
    source = exports.tensors(str(tmp_path / "tensors" / "01"), encoding="jpeg", copies=1)
    exports.run(source, "imagefolder", tmp_path / "out")
    stored = {}
    for part in read_rows(source, ["image_id", "copy", "image"]):
        stored |= {(row["image_id"], row["copy"]): row["image"] for row in part.to_pylist()}
    listed = table(tmp_path / "out" / "labels.csv")
    assert len(listed) == len(stored) == 40
    for row in listed:
        assert (tmp_path / "out" / row["file_name"]).read_bytes() == stored[row["image_id"], int(row["copy"])]
        assert row["file_name"].endswith("-copy1.jpg" if row["copy"] == "1" else ".jpg")


def test_several_labels_are_a_table_that_hugging_face_reads(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    source = exports.clean_multi(str(tmp_path / "clean" / "01"))
    exports.run(source, "imagefolder", tmp_path / "out")
    expected = read_originals(source)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 12, "validation": 12}
    for rows in loaded.values():
        for row in rows:
            data, _, labels = expected[row["image_id"]]
            assert json.loads(row["label_ids"]) == labels
            assert json.loads(row["labels"]) == [source.manifest.classes[label_id] for label_id in labels]
            assert np.array_equal(np.asarray(row["image"].convert("RGB")), exports.render_rgb(data))


def test_names_that_lead_astray_lead_to_their_images(tmp_path: Path) -> None:
    source = exports.clean_evil(str(tmp_path / "clean" / "01"))
    exports.run(source, "imagefolder", tmp_path / "out")
    listed, expected = table(tmp_path / "out" / "labels.csv"), read_originals(source)
    assert {row["image_id"] for row in listed} == set(expected)
    for row in listed:
        path = tmp_path / "out" / row["file_name"]
        assert path.resolve() == path.absolute() and path.parent.parent == tmp_path / "out" / "train"
        assert path.read_bytes() == expected[row["image_id"]][0]
    assert len({row["file_name"].casefold() for row in listed}) == len(expected)
    read = ImageFolder(str(tmp_path / "out" / "train"))
    assert len(read) == len(expected)
