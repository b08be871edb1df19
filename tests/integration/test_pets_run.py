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
pytestmark = pytest.mark.skipif(not SAMPLE.is_dir(), reason="the pets sample (../shared/data/pets) is not there")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    words = ["run", "--dataset", "pets", "--source", str(SAMPLE), "--image-size", "64", "--epochs", "1", "--json"]
    words += ["--workspace", str(tmp_path_factory.mktemp("pets"))]
    done = subprocess.run(
        [sys.executable, "-m", "imagemill.pipelines.cli", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def rows(uri: str) -> dict[str, dict[str, Any]]:
    files = json.loads((Path(uri) / "_manifest.json").read_text())["files"]
    listed: list[dict[str, Any]] = []
    for file in files:
        if file["role"] == "data":
            columns = ["image_id", "label", "label_id", "split", "format"]
            listed += pq.ParquetFile((Path(uri) / file["uri"]).resolve()).read(columns=columns).to_pylist()
    return {Path(row["image_id"]).stem: row for row in listed}


def test_all_images_are_kept_and_disguises_seen_through(run: dict[str, Any]) -> None:
    kept = rows(run["clean"])
    assert len(kept) == 337
    assert kept["Abyssinian_34"]["format"] == "GIF" and kept["Abyssinian_5"]["format"] == "PNG"
    assert len({row["label_id"] for row in kept.values()}) == 37


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
    kept = rows(run["clean"])
    assert {stem for stem, row in kept.items() if row["split"] == "test"} == lists["test"] & set(kept)
    assert {row["split"] for stem, row in kept.items() if stem in lists["trainval"]} == {"train", "val"}


def test_result_has_the_fields_that_others_rely_on(run: dict[str, Any]) -> None:
    wanted = {"status", "name", "raw", "clean", "tensors", "model", "evaluation"}
    wanted |= {"report", "metrics", "promoted", "steps"}
    assert wanted <= set(run) and run["name"] == "pets"
    assert {"top1", "macro_f1"} <= set(run["metrics"])
