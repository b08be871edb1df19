"""`imagemill export` as a command: interrupted and resumed, on S3, and on a real pipeline's datasets."""

from __future__ import annotations

import io
import json
import random
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import exports
import mill
import pytest

from imagemill.components.storage.store import get_store

if TYPE_CHECKING:
    pass

FORMATS = ("imagefolder", "tfrecord", "webdataset", "huggingface")


def make_command(dataset: str, form: str, output: Path | str, *more: str) -> list[str]:
    return ["export", dataset, "--format", form, "--output", str(output), *more]


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
