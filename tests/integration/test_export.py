"""`imagemill export` as a command: interrupted and resumed, on S3, and on a real pipeline's datasets."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import cleaned
import exports
import mill
import numpy as np
import pytest
from PIL import Image

from imagemill.components.dataset.kinds import CleanExtra
from imagemill.components.dataset.manifest import Manifest, Totals, commit
from imagemill.components.dataset.shards import read_columns
from imagemill.components.imaging.tensors import decode_column
from imagemill.components.storage.store import get_store

if TYPE_CHECKING:
    from conftest import Finished

FORMATS = ("imagefolder", "tfrecord", "webdataset", "huggingface")


def make_command(dataset: str, form: str, output: Path | str, *more: str) -> list[str]:
    return ["export", dataset, "--format", form, "--output", str(output), *more]


def test_command_reports_output_and_rows(tmp_path: Path) -> None:
    source = exports.tensors(str(tmp_path / "tensors" / "01"))
    result = mill.run(*make_command(source.uri, "webdataset", "out", "--shard-bytes", "9000", "--json"), cwd=tmp_path)
    assert result.rc == 0, result.stderr
    assert result.json["output"] == str(tmp_path / "out") and result.json["state"] == "ran"
    assert result.json["totals"]["rows"] == 40 and result.json["by_split"]["train"]["rows"] == 20
    assert len(list((tmp_path / "out").glob("train-*.tar"))) > 1
    assert "done: 40 images (train 20, val 20)" in result.stderr
    second = mill.run(
        *make_command(f"{source.uri}/_manifest.json", "webdataset", "out", "--shard-bytes", "9000"), cwd=tmp_path
    )
    assert (second.rc, second.stdout) == (0, f"{tmp_path / 'out'}\n") and "there already" in second.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere", "--format", "webdataset", "--output", "out"],
            "dataset: expected the URI of a finished dataset (a folder with _manifest.json)",
        ),
        (["SOURCE", "--format", "zip", "--output", "out"], "--format: expected one of imagefolder, tfrecord"),
        (["SOURCE", "--format", "webdataset", "--output", "full"], "--output: expected an empty place, or this export"),
        (["SOURCE", "--format", "webdataset", "--output", "ftp://x/y"], "--output: expected a folder or s3://"),
        (["SOURCE", "--format", "webdataset", "--output", "out", "--shard-bytes", "1GB"], "--shard-bytes: expected"),
        (["SOURCE", "--format", "webdataset", "--output", "out", "--shard-bytes", "0"], "--shard-bytes: expected"),
        (["SOURCE", "--format", "webdataset"], "--output"),
    ],
)
def test_invalid_input_exits_with_2_and_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    source = exports.tensors(str(tmp_path / "tensors" / "01"), rows=2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "else.txt").touch()
    words = [source.uri if word == "SOURCE" else word for word in arguments]
    result = run_in_process(["export", *words], tmp_path)
    assert result[0] == 2 and message in result[1] and len(result[1].splitlines()) == 1, result
    assert exports.tree(tmp_path / "full") == {"else.txt": b""} and not (tmp_path / "out").exists()


def run_in_process(words: list[str], folder: Path) -> tuple[int, str]:
    """Run the command in this process; return its exit code and stderr."""
    import contextlib

    from imagemill.pipelines.cli.main import main

    stderr = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stderr(stderr):
        code = main(words)
    return code, stderr.getvalue()


@pytest.mark.parametrize("form", FORMATS)
def test_killed_export_resumes_to_the_same_bytes(tmp_path: Path, form: str) -> None:
    check_killed_export(tmp_path, form, kills=1, rows=300)


@pytest.mark.proof
@pytest.mark.parametrize("form", FORMATS)
def test_export_killed_many_times_resumes_to_the_same_bytes(tmp_path: Path, form: str) -> None:
    check_killed_export(tmp_path, form, kills=10, rows=2000)


def check_killed_export(folder: Path, form: str, kills: int, rows: int) -> None:
    """Kill an export `kills` times at random moments, let it finish, and compare it with an uninterrupted one."""
    source = exports.tensors(str(folder / "tensors" / "01"), (96, 96, 3), rows=rows)
    words = make_command(source.uri, form, folder / "out", "--shard-bytes", "300000")
    started = time.monotonic()
    exports.run(source, form, folder / "whole", 300_000)
    whole, rng, killed = time.monotonic() - started, random.Random(form), 0
    while killed < kills:
        process = mill.start(words)
        assert process.stderr is not None and " images of " in process.stderr.readline()
        time.sleep(rng.uniform(0.1, 0.8) * whole)
        if process.poll() is None:
            mill.kill_group(process)
        if (folder / "out" / "_export.json").exists():  # it was faster: this one does not count
            process.communicate()
            shutil.rmtree(folder / "out")
            whole *= 0.7
            continue
        killed += 1
        assert (folder / "out" / "_export.started.json").exists()
    result = mill.run(*words)
    assert result.rc == 0, result.stderr
    assert exports.tree(folder / "out") == exports.tree(folder / "whole")


@pytest.mark.parametrize("form", FORMATS)
def test_export_to_s3_equals_the_local_one(tmp_path: Path, s3_workspace: str, form: str) -> None:
    local = exports.tensors(str(tmp_path / "tensors" / "01"), (32, 32, 3))
    exports.run(local, form, tmp_path / "out", 20_000)
    remote = exports.tensors(f"{s3_workspace}/tensors/01", (32, 32, 3))
    output = f"{s3_workspace}/exports/{form}"
    assert exports.run(remote, form, output, 20_000)["state"] == "ran"
    store = get_store(output)
    exported = {entry.uri[len(output) + 1 :]: store.read(entry.uri) for entry in store.list(output)}
    expected = exports.tree(tmp_path / "out")
    # The marker names its source, and another commit of the same dataset has another time.
    assert json.loads(exported.pop("_export.json"))["files"] == json.loads(expected.pop("_export.json"))["files"]
    assert exported == expected
    assert exports.run(remote, form, output, 20_000)["state"] == "cached"


def test_unfinished_export_on_s3_resumes(tmp_path: Path, s3_workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from imagemill.components.export import output_folder
    from imagemill.components.storage.errors import UserError

    source, output = exports.tensors(str(tmp_path / "tensors" / "01"), (32, 32, 3)), f"{s3_workspace}/out"
    exports.run(source, "webdataset", tmp_path / "out", 20_000)
    with monkeypatch.context() as patch:
        patch.setattr(output_folder.OutputFolder, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            exports.run(source, "webdataset", output, 20_000)
    store = get_store(output)
    store.discard(f"{output}/train-000001.tar")
    damaged = store.read(f"{output}/train-000000.tar")
    store.put(f"{output}/train-000000.tar", b"x" * len(damaged))
    with pytest.raises(UserError, match="unfinished"):
        exports.run(source, "imagefolder", output)
    exports.run(source, "webdataset", output, 20_000)
    exported = {entry.uri[len(output) + 1 :]: store.read(entry.uri) for entry in store.list(output)}
    assert exported == exports.tree(tmp_path / "out")
    store.put(f"{s3_workspace}/else/thesis.txt", b"dear")
    with pytest.raises(UserError, match="thesis"):
        exports.run(source, "webdataset", f"{s3_workspace}/else")


def interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def test_datasets_of_a_pipeline_are_exported_unchanged(finished_once: Finished, tmp_path: Path) -> None:
    clean, tensors = (mill.dataset_of(finished_once.result, kind) for kind in ("clean", "tensors"))
    exports.run(clean, "imagefolder", tmp_path / "folder")
    with (tmp_path / "folder" / "labels.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    photos = {row["image_id"]: tmp_path / "folder" / row["file_name"] for row in listed}
    assert len(listed) == clean.manifest.totals.rows > 40
    for name, path in photos.items():
        assert path.read_bytes() == (finished_once.photos / name).read_bytes()
        assert path.parent.name == name.partition("/")[0]
    exports.run(tensors, "webdataset", tmp_path / "web")
    order = [row["image_id"] for row in listed if row["split"] == "train"]
    assert read_web_ids(tmp_path / "web", "train") == order, "clean and tensors have one order"
    shape = tensors.manifest.image.shape
    stored = [
        decode_column(t.column("image"), tensors.manifest.image)
        for t in read_columns(tensors, "data", ["image"], "train")
    ]
    for expected, (_, data) in zip(
        np.concatenate(stored), read_web_dataset(tmp_path / "web", "train", ".png"), strict=True
    ):
        assert expected.shape == shape and np.array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)


def read_web_dataset(folder: Path, split: str, ending: str) -> list[tuple[str, bytes]]:
    entries = []
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            entries += [(m.name, (tar.extractfile(m) or io.BytesIO()).read()) for m in tar if m.name.endswith(ending)]
    return entries


def read_web_ids(folder: Path, split: str) -> list[str]:
    return [json.loads(data)["image_id"] for _, data in read_web_dataset(folder, split, ".json")]


@pytest.mark.proof
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    """Twice the images need no more memory: the peak of the whole process, 1.2 GB of JPEG against 0.6."""
    peaks = [measure_peak_memory(tmp_path / str(files), files) for files in (10, 20)]
    assert peaks[1] < 900 * 2**20 and peaks[1] - peaks[0] < 60 * 2**20, peaks


def measure_peak_memory(folder: Path, files: int) -> int:
    """Return the peak resident set, in bytes, of an export of `files` times 60 MB."""
    uri, noise = str(folder / "clean" / "01"), np.random.default_rng(0)
    listed = []
    for part in range(files):
        rows = []
        for number in range(60):
            pixels = noise.integers(0, 256, (700, 700, 3), np.uint8)
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "JPEG", quality=95, subsampling=0)
            rows.append(cleaned.Row(f"{part}/{number}.jpg", data=data.getvalue()))
        listed += cleaned.draft(uri, rows, row_group_rows=4).manifest.files
    totals = Totals(rows=60 * files, by_split={"train": 60 * files})
    commit(
        uri,
        Manifest(
            "clean", "01", classes=("cat",), files=tuple(listed), totals=totals, extra=CleanExtra(dataset_name="t")
        ),
    )
    words = [*mill.COMMAND, *make_command(uri, "webdataset", folder / "out")]
    code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
    code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    process = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    shutil.rmtree(folder)
    return int(process.stdout.splitlines()[-1]) * 1024
