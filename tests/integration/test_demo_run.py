"""Whole KFP pipeline run locally on the demo: planted faults, totals, schemas, the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mill
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.components.download import demo
from imagemill.components.imaging.decoder import decode

KINDS = ("raw", "clean", "tensors", "model", "evaluation")
SIDE = 64
"""Of the images. Most of the time goes into training, which takes a third of it at half the default's side; the
bar is the same. The default's own is a proof."""


def run_imagemill(*words: str) -> mill.Result:
    """A run that must succeed."""
    result = mill.run("run", "--json", *words, timeout=900)
    assert result.rc == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("python3 photos") / "mill")


@pytest.fixture(scope="module")
def options(workspace: str) -> list[str]:
    return ["--workspace", workspace, "--image-size", str(SIDE)]


@pytest.fixture(scope="module")
def run(options: list[str]) -> dict[str, Any]:
    return run_imagemill(*options).json


def read_manifest(uri: str) -> dict[str, Any]:
    return json.loads((Path(uri) / "_manifest.json").read_text())


def read_tables(uri: str, role: str = "data", split: str | None = None) -> pa.Table:
    """All files of a role by plain pyarrow, as the manifest lists them."""
    files = [f for f in read_manifest(uri)["files"] if f["role"] == role and split in (None, f["split"])]
    return pa.concat_tables(pq.ParquetFile((Path(uri) / f["uri"]).resolve()).read() for f in files)


def test_run_reports_every_dataset_and_step(run: dict[str, Any]) -> None:
    assert run["status"] == "succeeded" and run["name"] == "demo" and run["promoted"] is True
    assert list(run["steps"]) == ["download", "clean", "resize", "train", "evaluate", "promote"]
    assert {step["state"] for step in run["steps"].values()} == {"ran"}
    for kind in KINDS:
        assert read_manifest(run[kind])["kind"] == kind
    assert "<html" in Path(run["report"]).read_text()


def test_model_reaches_the_required_score(run: dict[str, Any]) -> None:
    assert run["metrics"]["macro_f1"] > 0.9
    assert read_manifest(run["evaluation"])["totals"]["rows"] >= 100


@pytest.mark.proof
def test_default_model_reaches_the_required_score(tmp_path: Path) -> None:
    result = run_imagemill("--workspace", str(tmp_path / "mill"))
    assert result.json["metrics"]["macro_f1"] > 0.9
    print(f"{result.seconds:.0f} s, of which {result.worked:.0f} s of work: {result.json['metrics']}")


def test_every_planted_fault_is_found(run: dict[str, Any]) -> None:
    rejected = {row["image_id"]: row for row in read_tables(run["clean"], "rejected").to_pylist()}
    kept_ids = set(read_tables(run["clean"]).column("image_id").to_pylist())
    skipped = {file["path"] for file in read_manifest(run["raw"])["extra"]["skipped"]["files"]}
    faults = demo.list_faults()
    assert {(f.path, f.reason) for f in faults if f.reason} == {(r["image_id"], r["reason"]) for r in rejected.values()}
    for fault in faults:
        if fault.kind == "mislabelled":
            assert fault.path in kept_ids
        if fault.kind == "not_an_image":
            assert fault.path in skipped
        if fault.kind.startswith("duplicate"):
            assert fault.detail in rejected[fault.path]["detail"] and fault.detail in kept_ids


def test_planted_faults_are_recorded_in_the_manifest(run: dict[str, Any]) -> None:
    planted = read_manifest(run["raw"])["extra"]["planted"]
    assert [(p["path"], p["kind"], p["detail"], p["reason"]) for p in planted] == [
        (f.path, f.kind, f.detail, f.reason) for f in demo.list_faults()
    ]


def test_rows_add_up(run: dict[str, Any]) -> None:
    raw = read_tables(run["raw"]).column("image_id").to_pylist()
    kept_ids = read_tables(run["clean"]).column("image_id").to_pylist()
    rejected = read_tables(run["clean"], "rejected").column("image_id").to_pylist()
    assert sorted(raw) == sorted(kept_ids + rejected) and len(set(raw)) == len(raw)
    totals = read_manifest(run["clean"])["totals"]
    assert (totals["rows"], totals["rejected"]) == (len(kept_ids), len(rejected))
    assert sum(totals["by_reason"].values()) == len(rejected)
    assert sum(totals["by_split"].values()) == sum(totals["by_class"].values()) == len(kept_ids)
    assert sorted(read_tables(run["tensors"]).column("image_id").to_pylist()) == sorted(kept_ids)


def test_schemas_by_plain_pyarrow(run: dict[str, Any]) -> None:
    raw = read_tables(run["raw"]).schema
    assert raw.field("image").type == pa.binary() and raw.field("mask").type == pa.binary()
    assert raw.field("boxes").type.value_type.names == ["name", "xmin", "ymin", "xmax", "ymax"]
    clean = read_tables(run["clean"]).schema
    assert clean.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert clean.field("label_id").type == pa.int32() and clean.field("shuffle_index").type == pa.int64()
    assert b"huggingface" in clean.metadata
    tensors = read_tables(run["tensors"]).schema
    assert tensors.field("image").type == pa.binary(SIDE * SIDE * 3) and not tensors.field("image").nullable
    assert tensors.names == ["image", "label_id", "image_id"]


def test_declared_splits_are_respected_and_labels_encoded(run: dict[str, Any]) -> None:
    classes = read_manifest(run["clean"])["classes"]
    assert classes == sorted(demo.CLASSES)
    for row in read_tables(run["clean"]).select(["image_id", "split", "label", "label_id"]).to_pylist():
        assert row["image_id"].split("/")[:2] == [row["split"], row["label"]]
        assert classes[row["label_id"]] == row["label"]


def test_tensors_are_the_clean_images_in_shuffled_order(run: dict[str, Any]) -> None:
    clean_rows = read_tables(run["clean"]).select(["image_id", "shuffle_index"]).to_pylist()
    order = {row["image_id"]: row["shuffle_index"] for row in clean_rows}
    for split in ("train", "val", "test"):
        indices = [order[i] for i in read_tables(run["tensors"], split=split).column("image_id").to_pylist()]
        assert indices == sorted(indices)
    clean = {r["image_id"]: r for r in read_tables(run["clean"], split="val").to_pylist()}
    for row in read_tables(run["tensors"], split="val").to_pylist()[:20]:
        pixels = decode(clean[row["image_id"]]["image"]["bytes"]).pixels
        image = np.frombuffer(row["image"], np.uint8).reshape(SIDE, SIDE, 3)
        assert row["label_id"] == clean[row["image_id"]]["label_id"]
        assert abs(float(image.mean()) - float(crop_middle(pixels).mean())) < 3


def crop_middle(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the square that the default geometry keeps of an image: 7/8 of the short side."""
    height, width = pixels.shape[:2]
    side = min(height, width) * 7 // 8
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


def test_parquet_layout_of_tensors(run: dict[str, Any]) -> None:
    for file in read_manifest(run["tensors"])["files"]:
        metadata = pq.ParquetFile((Path(run["tensors"]) / file["uri"]).resolve()).metadata
        for group in range(metadata.num_row_groups):
            column = metadata.row_group(group).column(0)
            assert column.compression == "UNCOMPRESSED" and column.statistics is None
            assert not any("DICTIONARY" in encoding for encoding in column.encodings)
            assert column.total_uncompressed_size <= 32 * 2**20


def test_every_manifest_names_the_bytes_of_its_parents(run: dict[str, Any]) -> None:
    import hashlib

    for kind in KINDS:
        for parent in read_manifest(run[kind])["parents"]:
            data = (Path(run[kind]) / parent["uri"] / "_manifest.json").resolve().read_bytes()
            assert hashlib.sha256(data).hexdigest() == parent["manifest_sha256"]
        for file in read_manifest(run[kind])["files"]:
            data = (Path(run[kind]) / file["uri"]).resolve().read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])


def test_second_run_is_cached_and_logs_steps_only(run: dict[str, Any], workspace: str, options: list[str]) -> None:
    second = run_imagemill(*options)
    assert set(second.states.values()) == {"cached"}, second.stderr
    assert all(second.json[kind] == run[kind] for kind in KINDS)
    assert second.worked < 5
    for step in run["steps"]:
        assert f"[{step}] " in second.stderr
    assert "KFP" not in second.stderr and "executor" not in second.stderr.lower()
    log = Path(workspace) / "runs" / run["run"] / "log.txt"
    assert "KFP Executor" in log.read_text()


def test_clean_loads_as_images_in_hugging_face_datasets(run: dict[str, Any], tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    listed = [f for f in read_manifest(run["clean"])["files"] if f["split"] == "val"]
    files = [str((Path(run["clean"]) / f["uri"]).resolve()) for f in listed]
    loaded = datasets.load_dataset("parquet", data_files={"val": files}, split="val", cache_dir=str(tmp_path))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded[0]["image"].size == (loaded[0]["width"], loaded[0]["height"]) or loaded[0]["image"].getexif()
