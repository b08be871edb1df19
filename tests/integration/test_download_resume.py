"""Interrupted downloads: the next one ends with the same dataset."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from downloading import (
    ANNOTATED,
    annotated,
    content,
    dataset_of,
    images,
    make_failing_row,
    photograph,
    rows_of,
    run,
    tar,
    write,
)

from imagemill.components.dataset.manifest import MANIFEST
from imagemill.components.download import raw


def test_groups_boxes_and_missing_masks_are_kept_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("cat/003.jpg,cat,,,gone/3.png,,,,,", *ANNOTATED, "late.jpg,dog,,,,,,,,")
    table = annotated(tmp_path / "in", *lines)
    monkeypatch.setattr(raw, "SHARD_BYTES", 10)
    whole = run(tmp_path / "whole", table, tmp_path, dataset="csv")
    with monkeypatch.context() as patch:
        patch.setattr(raw, "_make_row", make_failing_row("late.jpg"))
        assert run(tmp_path / "ws", table, tmp_path, dataset="csv")["exit_code"] == 75
    capsys.readouterr()
    resumed = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    assert "resuming after 4 files" in capsys.readouterr().err
    assert content(resumed) == content(whole)
    assert content(resumed)["extra"]["missing_masks"]["count"] == 1
    assert rows_of(dataset_of(resumed)) == rows_of(dataset_of(whole))


def test_shard_without_the_group_column_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in", images())
    whole = run(tmp_path / "whole", source, tmp_path)
    monkeypatch.setattr(raw, "SHARD_BYTES", 10)
    with monkeypatch.context() as patch:
        patch.setattr(raw, "RAW", raw.RAW.remove(raw.RAW.get_field_index("group")))
        patch.setattr(raw, "_make_row", make_failing_row("dog/000.jpg"))
        assert run(tmp_path / "ws", source, tmp_path)["exit_code"] == 75
    record = run(tmp_path / "ws", source, tmp_path)
    assert record["fingerprint"] == whole["fingerprint"]
    schemas = [pq.read_schema(dataset_of(record).locate(file)).names for file in dataset_of(record).manifest.files]
    assert ["group" in names for names in schemas] == [False] * 3 + [True] * 3


SCRIPT = """
import sys, time
from imagemill.components.download import STEP, contents, raw
raw.SHARD_BYTES, contents.SKIPPED_NAMES, row = 10_000, 3, raw._make_row
def slow(*arguments):
    time.sleep(float(sys.argv[1]))
    return row(*arguments)
raw._make_row = slow
sys.exit(STEP.main(sys.argv[2:]))
"""


def start_download(workspace: Path, source: Path, slow: float) -> subprocess.Popen[bytes]:
    arguments = ["--dataset", "folder", "--source", str(source), "--workspace", str(workspace)]
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(slow), *arguments], stderr=subprocess.PIPE)


def finish_download(workspace: Path, source: Path) -> tuple[dict[str, Any], str]:
    process = start_download(workspace, source, 0)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr.decode()
    (manifest,) = (workspace / "raw").glob(f"*/{MANIFEST}")
    return content({"uri": str(manifest.parent)}), stderr.decode()


def count_finished_shards(workspace: Path) -> int:
    """Return the number of finished shards. Scratch folders come and go beside them; a missing one is no error."""
    try:
        return len(list((workspace / "raw" / "_shards" / "_work").glob("*/*.json")))
    except FileNotFoundError:
        return 0


def kill_after(workspace: Path, source: Path, shards: int) -> None:
    process = start_download(workspace, source, 0.01)
    give_up = time.monotonic() + 60
    while count_finished_shards(workspace) < shards:
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list((workspace / "raw").rglob(MANIFEST)), "it was too quick to be killed"


@pytest.fixture
def hundred_images(tmp_path: Path) -> Path:
    return write(tmp_path / "in", images(100) | {f"cat/{n:03d}.txt": b"text" for n in range(0, 100, 9)})


def test_killed_download_resumes_to_the_same_dataset(tmp_path: Path, hundred_images: Path) -> None:
    expected, _ = finish_download(tmp_path / "whole", hundred_images)
    assert len(expected["files"]) == 20 and expected["extra"]["skipped"]["count"] == 12
    kill_after(tmp_path / "ws", hundred_images, 3)
    kill_after(tmp_path / "ws", hundred_images, 9)
    content_, stderr = finish_download(tmp_path / "ws", hundred_images)
    assert "resuming after" in stderr
    assert content_ == expected


def test_source_changed_after_the_kill_is_read_again(tmp_path: Path, hundred_images: Path) -> None:
    kill_after(tmp_path / "ws", hundred_images, 3)
    write(hundred_images, {"cat/001.jpg": photograph(555, 100)})
    content_, stderr = finish_download(tmp_path / "ws", hundred_images)
    assert "resuming after" not in stderr
    assert content_ == finish_download(tmp_path / "whole", hundred_images)[0]


def test_fractional_boxes_are_kept_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a retry reads back from a shard must count as what was written: boxes are stored as float32."""
    sides = "<xmin>0.1</xmin><ymin>1.3</ymin><xmax>9.7</xmax><ymax>8.9</ymax>"
    box = f"<a><object><name>dog</name><bndbox>{sides}</bndbox></object></a>"
    annotations = {"trainval.txt": b"pug_1 1\npug_2 1\n", "test.txt": b"beagle_1 1\n", "xmls/pug_1.xml": box.encode()}
    photographs = {f"images/{name}.jpg": photograph(n) for n, name in enumerate(("pug_1", "pug_2", "beagle_1"))}
    source = write(tmp_path / "made", annotations | photographs)
    tar(source / "images.tar.gz", source, {name: name for name in photographs})
    tar(source / "annotations.tar.gz", source, {name: name for name in annotations})
    whole = run(tmp_path / "whole", source, tmp_path, dataset="pets")
    monkeypatch.setattr(raw, "SHARD_BYTES", 10)
    with monkeypatch.context() as patch:
        patch.setattr(raw, "_make_row", make_failing_row("images/beagle_1.jpg"))
        assert run(tmp_path / "ws", source, tmp_path, dataset="pets")["exit_code"] == 75
    assert run(tmp_path / "ws", source, tmp_path, dataset="pets")["fingerprint"] == whole["fingerprint"]
