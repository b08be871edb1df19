"""The main job on a real sample, where it lies beside the checkout: 337 photographs of 37 breeds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "pets"
pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(not SAMPLE.is_dir(), reason="the pets sample (../shared/data/pets) is not there"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    words = ["run", "--dataset", "pets", "--source", str(SAMPLE), "--image-size", "64", "--epochs", "1", "--json"]
    words += ["--workspace", str(tmp_path_factory.mktemp("pets"))]
    process = subprocess.run(
        [sys.executable, "-m", "imagemill.pipelines.cli", *words], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def read_rows(uri: str) -> dict[str, dict[str, Any]]:
    files = json.loads((Path(uri) / "_manifest.json").read_text())["files"]
    listed: list[dict[str, Any]] = []
    for file in files:
        if file["role"] == "data":
            columns = ["image_id", "label", "label_id", "split", "format"]
            listed += pq.ParquetFile((Path(uri) / file["uri"]).resolve()).read(columns=columns).to_pylist()
    return {Path(row["image_id"]).stem: row for row in listed}


def test_all_images_are_kept_with_their_actual_format(run: dict[str, Any]) -> None:
    rows = read_rows(run["clean"])
    assert len(rows) == 337
    assert rows["Abyssinian_34"]["format"] == "GIF" and rows["Abyssinian_5"]["format"] == "PNG"
    assert len({row["label_id"] for row in rows.values()}) == 37


def test_files_that_are_no_images_are_named(run: dict[str, Any]) -> None:
    skipped = json.loads((Path(run["raw"]) / "_manifest.json").read_text())["extra"]["skipped"]
    assert [f["path"] for f in skipped["files"]] == [f"images/Abyssinian_{n}.mat" for n in (100, 101, 102)]


def test_declared_splits_are_respected(run: dict[str, Any]) -> None:
    import tarfile

    with tarfile.open(SAMPLE / "annotations.tar.gz") as archive:
        lists = {}
        for name in ("trainval", "test"):
            file = archive.extractfile(f"annotations/{name}.txt")
            assert file is not None
            lists[name] = {line.split()[0] for line in file.read().decode().splitlines() if line and line[0] != "#"}
    rows = read_rows(run["clean"])
    assert {stem for stem, row in rows.items() if row["split"] == "test"} == lists["test"] & set(rows)
    assert {row["split"] for stem, row in rows.items() if stem in lists["trainval"]} == {"train", "val"}


def test_result_has_its_documented_fields(run: dict[str, Any]) -> None:
    fields = {"status", "name", "raw", "clean", "tensors", "model", "evaluation"}
    fields |= {"report", "metrics", "promoted", "steps"}
    assert fields <= set(run) and run["name"] == "pets"
    assert {"top1", "macro_f1"} <= set(run["metrics"])
