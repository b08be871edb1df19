"""Datasets as they lie in a workspace: the one module of these tests that knows manifests, files and columns.

A test asks for images by their id, or for what makes two datasets the same. If the layout changes, this module does.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

MANIFEST = "_manifest.json"
Pixels = npt.NDArray[np.uint8]
Row = dict[str, Any]


@dataclass(frozen=True)
class Dataset:
    """A finished dataset on this machine's disk."""

    folder: Path

    @cached_property
    def manifest(self) -> Row:
        manifest: Row = json.loads((self.folder / MANIFEST).read_text())
        return manifest

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def classes(self) -> list[str]:
        return list(self.manifest["classes"])

    @property
    def totals(self) -> Row:
        """Rows, rejected, by_split, by_class, by_reason."""
        totals: Row = self.manifest["totals"]
        return totals

    @property
    def parent_fingerprints(self) -> list[str]:
        return [parent["fingerprint"] for parent in self.manifest["parents"]]

    def files(self, role: str = "data") -> list[Path]:
        """The listed files of a role, in the dataset's folder."""
        return [self.folder / file["uri"] for file in self.manifest["files"] if file["role"] == role]

    def part_files(self) -> list[Path]:
        """The Parquet files that hold the dataset's images, and others that the index leaves out."""
        return [self.part_file(part["key"]) for part in self.manifest["parts"]]

    def part_file(self, key: str) -> Path:
        """The Parquet file of a part, which lies beside those of other datasets."""
        return self.folder.parent.parent / "parts" / self.manifest["kind"] / f"{key}.parquet"

    def table(self, role: str) -> list[Row]:
        """All rows of the listed files of a role."""
        return [row for file in self.files(role) for row in pq.read_table(file).to_pylist()]

    def rows(self) -> list[Row]:
        """The images that the dataset holds: the rows of its index, each with the columns of its part."""
        index = self.table("index")
        images: list[Row] = []
        for part in self.manifest["parts"]:
            stored = pq.read_table(self.part_file(part["key"])).to_pylist()
            assert len(stored) == part["rows"]
            for row in index:
                if row["part"] == part["key"]:
                    assert part["split"] in ("", row["split"])
                    images.append(stored[row["row"]] | row)
        assert len(images) == len(index), "the index names a part that the manifest does not list"
        return images

    def stored_bytes(self) -> list[tuple[str, str, str]]:
        """(role, split, sha256) of every listed file and part, proven against the bytes that lie there."""
        listed = [(self.folder / file["uri"], file["role"], file) for file in self.manifest["files"]]
        listed += [(self.part_file(part["key"]), "part", part) for part in self.manifest["parts"]]
        entries = []
        for path, role, entry in listed:
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            assert (len(data), digest) == (entry["bytes"], entry["sha256"]), path
            entries.append((role, entry["split"], digest))
        return sorted(entries)


def open_dataset(uri: str | Path) -> Dataset:
    return Dataset(Path(uri))


def list_datasets(workspace: Path, kind: str) -> list[Dataset]:
    """Return the finished datasets of a kind."""
    return [Dataset(path.parent) for path in sorted(workspace.glob(f"{kind}/*/{MANIFEST}"))]


def check_complete(workspace: Path) -> None:
    """Check that every dataset that exists in a workspace is whole, to the byte."""
    for manifest in workspace.glob(f"*/*/{MANIFEST}"):
        Dataset(manifest.parent).stored_bytes()


def list_files(workspace: Path) -> dict[str, str]:
    """Return the sha256 of each file of finished datasets, by path; not records of runs, names and work in progress."""
    kinds = ("parts", "raw", "clean", "tensors", "features", "model", "evaluation")
    files = (path for kind in kinds for path in workspace.glob(f"{kind}/**/*") if path.is_file())
    return {
        str(path.relative_to(workspace)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if "_work" not in path.parts
    }


def raw_images(raw: str | Path) -> dict[str, Row]:
    """Return the images of a raw dataset by id: bytes, label, split as declared, group."""
    rows = open_dataset(raw).rows()
    images = {
        row["image_id"]: {"bytes": row["image"], "label": row["label"], "split": row["split"], "group": row["group"]}
        for row in rows
    }
    assert len(images) == len(rows), "an image_id stands twice"
    return images


def kept_images(clean: str | Path) -> dict[str, Row]:
    """Return the kept images of a clean dataset by id: bytes, label, label_id, split, width, height and measures."""
    rows = open_dataset(clean).rows()
    images = {row["image_id"]: row | {"bytes": row["image"]["bytes"]} for row in rows}
    assert len(images) == len(rows), "an image_id stands twice"
    return images


def rejected_images(clean: str | Path) -> dict[str, str]:
    """Return the reason of each rejected image by id; each has a detail beside it."""
    rows = open_dataset(clean).table("rejected")
    assert all(row["detail"] for row in rows)
    reasons = {row["image_id"]: row["reason"] for row in rows}
    assert len(reasons) == len(rows), "an image_id stands twice"
    return reasons


def near_duplicate_pairs(clean: str | Path) -> int:
    """Return the number of pairs of near-duplicates that a clean dataset reports."""
    return int(open_dataset(clean).manifest["extra"]["found"]["near_duplicates"]["pairs"])


def tensor_images(tensors: str | Path) -> dict[str, list[Row]]:
    """Return the rows of each image by id, its copies after it: split, label_id, pixels uint8 [H, W, C]."""
    dataset = open_dataset(tensors)
    image = dataset.manifest["image"]
    assert image["dtype"] == "uint8" and image["encoding"] == "raw"
    images: dict[str, list[Row]] = {}
    for row in dataset.rows():
        pixels = np.frombuffer(row["image"], np.uint8).reshape(image["shape"])
        entry = {"split": row["split"], "label_id": row["label_id"], "pixels": pixels, "copy": row.get("copy", 0)}
        images.setdefault(row["image_id"], []).append(entry)
    return {image_id: sorted(rows, key=lambda entry: entry["copy"] or 0) for image_id, rows in images.items()}


def normalization(tensors: str | Path) -> tuple[list[float], list[float]]:
    """Return mean and spread of each channel, of pixels in [0, 1]."""
    image = open_dataset(tensors).manifest["image"]
    return image["mean"], image["std"]


def predictions(evaluation: str | Path) -> list[Row]:
    """Return the prediction of each test image: image_id, label_id, predicted_id, label_probability, top_ids, …"""
    return open_dataset(evaluation).table("data")


def metrics(evaluation: str | Path) -> dict[str, float]:
    scores: dict[str, float] = open_dataset(evaluation).manifest["extra"]["metrics"]
    return scores


def per_class(evaluation: str | Path) -> list[Row]:
    """Return class, precision, recall, f1 and support of each class."""
    rows: list[Row] = open_dataset(evaluation).manifest["extra"]["per_class"]
    return rows


def suspects(evaluation: str | Path) -> list[str]:
    """Return the ids of the training images that look mislabeled, the surest first."""
    rows = [row for row in open_dataset(evaluation).table("suspects") if row["rank"] > 0]
    return [row["image_id"] for row in sorted(rows, key=lambda row: row["rank"])]


def weights_file(model: str | Path) -> Path:
    """Return the model's weights (safetensors)."""
    return next(path for path in open_dataset(model).files() if path.suffix == ".safetensors")


def onnx_file(model: str | Path) -> Path:
    return next(path for role in ("onnx", "data") for path in open_dataset(model).files(role) if path.suffix == ".onnx")


def planted_faults(raw: str | Path) -> list[Row]:
    """Return the faults that the demo planted: path, kind, and the reason for which clean must reject it, or none."""
    faults: list[Row] = open_dataset(raw).manifest["extra"]["planted"]
    return faults


def promotions(workspace: Path, name: str) -> list[Row]:
    """Return the log of promotions, oldest first."""
    files = sorted((workspace / "names" / name / "promotions").glob("*.json"), key=lambda path: int(path.stem))
    return [json.loads(path.read_text()) for path in files]


def champion(workspace: Path, name: str) -> str:
    """Return the fingerprint of the champion, empty where there is none."""
    log = promotions(workspace, name)
    return Path(log[-1]["model"]).name if log else ""


def rows_by_content(clean: str | Path) -> dict[str, tuple[str, str, str]]:
    """Return what a clean dataset holds, whatever its files: sha256 of the stored bytes, label and split by id."""
    return {
        image_id: (hashlib.sha256(row["bytes"]).hexdigest(), row["label"], row["split"])
        for image_id, row in kept_images(clean).items()
    }


def pixels_by_content(tensors: str | Path) -> dict[str, list[tuple[str, str, str]]]:
    """Return what tensors hold, whatever their files: sha256 of the pixels, class and split by id."""
    classes = open_dataset(tensors).classes
    return {
        image_id: [
            (hashlib.sha256(row["pixels"].tobytes()).hexdigest(), classes[row["label_id"]], row["split"])
            for row in rows
        ]
        for image_id, rows in tensor_images(tensors).items()
    }
