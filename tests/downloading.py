"""Helpers for tests of download: small sources, the step run on them, and its outputs."""

from __future__ import annotations

import json
import random
import tarfile
from pathlib import Path
from typing import Any

from imagemill.components.dataset.index import read_rows
from imagemill.components.dataset.manifest import MANIFEST, Dataset, read_dataset
from imagemill.components.download import STEP
from imagemill.components.download.rows import RAW
from imagemill.components.storage.store import get_store

JPEG = b"\xff\xd8\xff\xe0"


def photograph(number: int, size: int = 2000) -> bytes:
    return JPEG + random.Random(number).randbytes(size)


def images(number: int = 6) -> dict[str, bytes]:
    return {f"{'cat' if n % 2 else 'dog'}/{n:03d}.jpg": photograph(n) for n in range(number)}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def tar(target: Path, folder: Path, names: dict[str, str]) -> Path:
    """An archive of the folder's files under other names, in the given order."""
    with tarfile.open(target, "w:gz") as archive:
        for name, file in names.items():
            archive.add(folder / file, name)
    return target


def run(
    workspace: Path | str, source: Path | str, tmp_path: Path, *more: str, dataset: str = "folder"
) -> dict[str, Any]:
    result = tmp_path / "result.json"
    arguments = ["--dataset", dataset, "--source", str(source), "--workspace", str(workspace)]
    code = STEP.main([*arguments, "--result", str(result), *more])
    record: dict[str, Any] = json.loads(result.read_text())
    assert record["exit_code"] == code
    return record


def dataset_of(record: dict[str, Any]) -> Dataset:
    assert record["exit_code"] == 0, record["error"]
    return read_dataset(record["uri"], "raw")


def rows_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    tables = read_rows(dataset, [*RAW.names, "label"])
    return {row["image_id"]: row for table in tables for row in table.to_pylist()}


def content(record: dict[str, Any]) -> dict[str, Any]:
    """The manifest without when it was written and where the source was."""
    manifest: dict[str, Any] = json.loads(get_store(record["uri"]).read(f"{record['uri']}/{MANIFEST}"))
    manifest.pop("created")
    manifest["extra"].pop("source")
    manifest["extra"].pop("dataset_name")
    return manifest


def annotated(folder: Path, *lines: str) -> Path:
    """A table with every column, of photographs that are there."""
    write(folder, images(4) | {"masks/0.png": b"mask of 0", "masks/1.png": b"mask of 1"})
    header = "path,label,split,group,mask,xmin,ymin,xmax,ymax,box_name"
    (folder / "t.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder / "t.csv"


ANNOTATED = (
    "dog/000.jpg,dog|brown,train,p1,masks/0.png,0.1,1,9.7,8,head",
    "cat/001.jpg,cat,train,,masks/1.png,,,,,",
    "dog/000.jpg,dog|brown,train,p1,masks/0.png,2,3,4,5,tail",
    "dog/002.jpg,dog,,p2,,,,,,",
)
