"""Download as a step: the dataset contract, what is cached, what a kill leaves, and sources in S3."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from imagemill.components.download import STEP, raw
from imagemill.components.download.config import DownloadConfig
from imagemill.components.store import uri as uris
from imagemill.components.store.errors import TransientError
from imagemill.components.store.filesystem import store_for
from imagemill.components.store.manifest import MANIFEST, Dataset, parse_manifest, read_dataset
from imagemill.components.store.shards import read_columns

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
    tables = read_columns(dataset, "data", raw.RAW.names)
    return {row["image_id"]: row for table in tables for row in table.to_pylist()}


def content(record: dict[str, Any]) -> dict[str, Any]:
    """The manifest without when it was written and where the source was."""
    manifest: dict[str, Any] = json.loads(store_for(record["uri"]).read(f"{record['uri']}/{MANIFEST}"))
    manifest.pop("created")
    manifest["extra"].pop("source")
    manifest["extra"].pop("dataset_name")
    return manifest


def test_the_dataset_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw, "SHARD_BYTES", 5000)
    source = write(tmp_path / "in", images() | {"cat/notes.txt": b"text", "cat/.hidden.jpg": b"x"})
    dataset = dataset_of(run(tmp_path / "ws", source, tmp_path))
    manifest = dataset.manifest
    assert dataset.uri == str(tmp_path / "ws" / "raw" / dataset.fingerprint)
    assert len(manifest.files) == 2
    for file in manifest.files:
        path = Path(dataset.locate(file))
        assert file.uri.startswith("../_shards/part-") and path.parent == tmp_path / "ws" / "raw" / "_shards"
        data = path.read_bytes()
        assert (file.sha256, file.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert file.sha256[:16] in file.uri
        assert pq.read_metadata(path).num_rows == file.rows
        assert pq.read_schema(path).equals(raw.RAW)
    assert manifest.totals.rows == 6 and manifest.totals.bytes == 6 * 2004
    assert manifest.totals.by_class == {"cat": 3, "dog": 3} and manifest.classes == ("cat", "dog")
    assert manifest.extra["skipped"]["count"] == 2
    for image_id, row in rows_of(dataset).items():
        assert row["image"] == images()[image_id] and row["label"] == image_id.split("/")[0]
        assert row["sha256"] == hashlib.sha256(row["image"]).hexdigest()
    assert not list((tmp_path / "ws").rglob(".scratch-*")), "scratch space is left behind"


def test_the_ledger_says_which_raw_a_listing_gave(tmp_path: Path) -> None:
    record = run(tmp_path / "ws", write(tmp_path / "in", images()), tmp_path)
    (known,) = (tmp_path / "ws" / "sources").iterdir()
    assert json.loads(known.read_text())["raw"] == f"raw/{record['fingerprint']}"
    latest = json.loads((tmp_path / "ws" / "names" / "in" / "latest" / "raw.json").read_text())
    assert latest["fingerprint"] == record["fingerprint"]


def test_raw_is_named_by_what_was_read_not_by_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "in", images())
    first = run(tmp_path / "ws", folder, tmp_path)
    backwards = {f"./{name}": name for name in sorted(images(), reverse=True)}
    monkeypatch.setattr(raw, "SHARD_BYTES", 3000)
    second = run(tmp_path / "ws2", tar(tmp_path / "x.tar.gz", folder, backwards), tmp_path)
    assert first["fingerprint"] == second["fingerprint"]
    assert content(first)["files"] != content(second)["files"], "the test should have sharded it otherwise"
    third = run(tmp_path / "ws", tmp_path / "x.tar.gz", tmp_path)
    assert (third["state"], third["uri"]) == ("cached", first["uri"])


def test_what_did_not_change_is_cached_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in", images())
    first = run(tmp_path / "ws", source, tmp_path)
    monkeypatch.setattr(raw, "_read_source", None)
    second = run(tmp_path / "ws", source, tmp_path)
    assert (first["state"], second["state"]) == ("ran", "cached")
    assert second["uri"] == first["uri"] and second["metrics"] == first["metrics"]


def test_touch_changes_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "in", images())
    first = run(tmp_path / "ws", source, tmp_path)
    before = (Path(first["uri"]) / MANIFEST).read_bytes()
    os.utime(source / "cat" / "001.jpg", (1, 1))
    second = run(tmp_path / "ws", source, tmp_path)
    assert (second["state"], second["uri"]) == ("cached", first["uri"])
    assert (Path(first["uri"]) / MANIFEST).read_bytes() == before


def test_a_file_with_the_same_size_and_time_is_seen_only_by_rerun(tmp_path: Path) -> None:
    """A listing tells size and time; who forges both (`cp -p` of as many bytes) must say `--rerun download`."""
    source = write(tmp_path / "in", images())
    first = run(tmp_path / "ws", source, tmp_path)
    file = source / "cat" / "001.jpg"
    found = file.stat()
    file.write_bytes(photograph(77))
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert run(tmp_path / "ws", source, tmp_path)["uri"] == first["uri"]
    again = run(tmp_path / "ws", source, tmp_path, "--rerun", "download")
    assert again["state"] == "ran" and again["fingerprint"] != first["fingerprint"]
    assert rows_of(dataset_of(again))["cat/001.jpg"]["image"] == photograph(77)


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "edited"])
def test_any_change_gives_a_new_raw_and_keeps_the_old(tmp_path: Path, change: str) -> None:
    source = write(tmp_path / "in", images())
    first = run(tmp_path / "ws", source, tmp_path)
    file = source / "cat" / "001.jpg"
    if change == "added":
        write(source, {"cat/new.jpg": photograph(99)})
    elif change == "removed":
        file.unlink()
    elif change == "renamed":
        file.rename(source / "dog" / "001.jpg")
    else:
        file.write_bytes(photograph(98))
    second = run(tmp_path / "ws", source, tmp_path)
    assert second["state"] == "ran" and second["fingerprint"] != first["fingerprint"]
    assert len(rows_of(dataset_of(first))) == 6
    assert len(rows_of(dataset_of(second))) == {"added": 7, "removed": 5}.get(change, 6)


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    source = write(tmp_path / "in", images())
    dataset = dataset_of(run(tmp_path / "ws", source, tmp_path))
    shard = Path(dataset.locate(dataset.manifest.files[0]))
    shard.unlink()
    again = run(tmp_path / "ws", source, tmp_path)
    assert again["uri"] == dataset.uri and shard.exists() and len(rows_of(dataset_of(again))) == 6


def test_two_files_of_one_normal_name_are_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", images())
    names = {"cat/001.jpg": "cat/001.jpg", "dog/x.jpg": "dog/000.jpg", "dog/./x.jpg": "dog/002.jpg"}
    record = run(tmp_path / "ws", tar(tmp_path / "x.tar.gz", folder, names), tmp_path)
    assert record["exit_code"] == 2
    assert "image_id: expected every path once, found 'dog/x.jpg' 2 times" in record["error"]
    assert not list((tmp_path / "ws" / "raw").rglob(MANIFEST))


def test_a_damaged_archive_is_exit_2_and_leaves_nothing_visible(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", images())
    target = tar(tmp_path / "x.tar.gz", folder, {name: name for name in images()})
    os.truncate(target, target.stat().st_size // 2)
    record = run(tmp_path / "ws", target, tmp_path)
    assert record["exit_code"] == 2 and "damaged" in record["error"]
    assert not list((tmp_path / "ws" / "raw").rglob(MANIFEST))


def test_a_table_gives_rows_in_its_order_with_nulls_for_what_is_not_there(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", images(2))
    (folder / "t.csv").write_text("path,label,split\ndog/000.jpg,a,test\nnone.jpg,b,\ncat/001.jpg,,train\n")
    found = rows_of(dataset_of(run(tmp_path / "ws", folder / "t.csv", tmp_path, dataset="csv")))
    assert {n: (r["image"] is None, r["label"], r["split"]) for n, r in found.items()} == {
        "dog/000.jpg": (False, "a", "test"),
        "none.jpg": (True, "b", None),
        "cat/001.jpg": (False, None, "train"),
    }
    assert found["none.jpg"]["sha256"] is None


def row_digest(*said: Any) -> bytes:
    return hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).digest()


def short_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def name_of(*digests: bytes) -> str:
    """The fingerprint as DESIGN has it: kind, version and the sorted rows."""
    joined = hashlib.sha256(b"".join(sorted(digests))).hexdigest()
    return short_digest({"kind": "raw", "version": 2, "rows": joined})


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_table_of_the_old_columns_gives_the_rows_and_the_digests_that_it_gave(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", images(2))
    (folder / "t.csv").write_text("path,label,split\ndog/000.jpg,a,test\nnone.jpg,b,\ncat/001.jpg,,train\n")
    record = run(tmp_path / "ws", folder / "t.csv", tmp_path, dataset="csv")
    one, two = sha(photograph(0)), sha(photograph(1))
    nothing = {"group": None, "boxes": [], "mask": None}
    assert list(rows_of(dataset_of(record)).values()) == [
        {"image_id": "dog/000.jpg", "image": photograph(0), "sha256": one, "label": "a", "split": "test", **nothing},
        {"image_id": "none.jpg", "image": None, "sha256": None, "label": "b", "split": None, **nothing},
        {"image_id": "cat/001.jpg", "image": photograph(1), "sha256": two, "label": None, "split": "train", **nothing},
    ]
    assert record["fingerprint"] == name_of(
        row_digest("dog/000.jpg", one, "a", "test", ""),
        row_digest("none.jpg", None, "b", None, ""),
        row_digest("cat/001.jpg", two, None, "train", ""),
    )
    assert sorted(dataset_of(record).manifest.extra) == ["dataset_name", "skipped", "source"]


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


def test_a_table_gives_groups_boxes_and_masks(tmp_path: Path) -> None:
    record = run(tmp_path / "ws", annotated(tmp_path / "in", *ANNOTATED), tmp_path, dataset="csv")
    found = rows_of(dataset_of(record))
    head = {"name": "head", "xmin": float(np.float32(0.1)), "ymin": 1.0, "xmax": float(np.float32(9.7)), "ymax": 8.0}
    tail = {"name": "tail", "xmin": 2.0, "ymin": 3.0, "xmax": 4.0, "ymax": 5.0}
    assert {n: (r["label"], r["split"], r["group"], r["boxes"], r["mask"]) for n, r in found.items()} == {
        "dog/000.jpg": ("dog|brown", "train", "p1", [head, tail], b"mask of 0"),
        "cat/001.jpg": ("cat", "train", None, [], b"mask of 1"),
        "dog/002.jpg": ("dog", None, "p2", [], None),
    }
    assert all(row["image"] == images()[name] for name, row in found.items())
    with_all = short_digest({"boxes": [head, tail], "mask": sha(b"mask of 0")})
    with_mask = short_digest({"boxes": [], "mask": sha(b"mask of 1")})
    assert record["fingerprint"] == name_of(
        row_digest("dog/000.jpg", sha(photograph(0)), "dog|brown", "train", with_all, "p1"),
        row_digest("cat/001.jpg", sha(photograph(1)), "cat", "train", with_mask),
        row_digest("dog/002.jpg", sha(photograph(2)), "dog", None, "", "p2"),
    )
    assert "missing_masks" not in dataset_of(record).manifest.extra
    assert run(tmp_path / "ws", tmp_path / "in" / "t.csv", tmp_path, dataset="csv")["state"] == "cached"


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("p2", "p3", False),
        ("dog,,p2,", "dog,,,", False),
        (",head", ",nose", False),
        ("0.1,1,9.7", "0.1,1,9.6", False),
        (ANNOTATED[2], "", False),
        ("cat,train,,masks/1.png", "cat,train,,", False),
        ("cat,train,,masks/1.png", "cat,train,,masks/0.png", False),
        ("dog,,p2,", "dog,, p2 ,", True),
        ("2,3,4,5", "2.0,3,+4,5e0", True),
    ],
)
def test_whatever_a_table_says_of_an_image_names_the_raw(tmp_path: Path, old: str, new: str, same: bool) -> None:
    first = run(tmp_path / "ws", annotated(tmp_path / "in", *ANNOTATED), tmp_path, dataset="csv")
    lines = "\n".join(ANNOTATED).replace(old, new).split("\n")
    assert lines != list(ANNOTATED)
    second = run(tmp_path / "ws", annotated(tmp_path / "in", *lines), tmp_path, dataset="csv")
    assert (first["exit_code"], second["exit_code"]) == (0, 0)
    assert (second["fingerprint"] == first["fingerprint"]) is same
    assert second["state"] == ("cached" if same else "ran")


def test_a_changed_mask_gives_a_new_raw(tmp_path: Path) -> None:
    table = annotated(tmp_path / "in", *ANNOTATED)
    first = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    write(tmp_path / "in", {"masks/1.png": b"a mask drawn anew"})
    second = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    assert second["state"] == "ran" and second["fingerprint"] != first["fingerprint"]
    assert rows_of(dataset_of(second))["cat/001.jpg"]["mask"] == b"a mask drawn anew"


def test_missing_masks_end_no_run_and_are_counted_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{name},{name[:3]},,,gone/{n}.png,,,,," for n, name in enumerate(images(4))]
    table = annotated(tmp_path / "in", *lines, "none.jpg,dog,,,gone/9.png,,,,,")
    record = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    found = dataset_of(record)
    missing = [{"path": name, "mask": f"gone/{n}.png", "why": "not there"} for n, name in enumerate(images(4))]
    assert found.manifest.extra["missing_masks"] == {"count": 4, "files": missing}
    assert [row["mask"] for row in rows_of(found).values()] == [None] * 5
    said = "but does not have: 4; their images go without one: gone/0.png (not there), gone/1.png (not there), " \
        "gone/2.png (not there) and 1 more"  # fmt: skip
    assert capsys.readouterr().err.count(said) == 1
    assert run(tmp_path / "ws", table, tmp_path, dataset="csv")["state"] == "cached"
    assert capsys.readouterr().err.count(said) == 1, "of a cached raw it is true still"
    write(tmp_path / "in", {"gone/0.png": b"found"})
    again = dataset_of(run(tmp_path / "ws", table, tmp_path, dataset="csv"))
    assert again.manifest.extra["missing_masks"] == {"count": 3, "files": missing[1:]}
    assert rows_of(again)["dog/000.jpg"]["mask"] == b"found"


def test_a_wrong_cell_of_a_table_is_exit_2_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "_read_source", None)
    table = annotated(tmp_path / "in", *ANNOTATED, "dog/000.jpg,dog,train,p1,masks/0.png,2,3,4,5,")
    record = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    assert record["exit_code"] == 2
    assert f"{table}, lines 2 and 6 (label): expected one label of 'dog/000.jpg'" in record["error"]


def test_one_file_by_two_spellings_is_refused(tmp_path: Path) -> None:
    table = annotated(tmp_path / "in", "cat/001.jpg,cat,,,,1,2,3,4,", "./cat/001.jpg,dog,,,,1,2,3,4,")
    record = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    assert record["exit_code"] == 2 and "found 'cat/001.jpg' 2 times" in record["error"]


def breaks_off_at(name: str) -> Any:
    row: Any = raw._row

    def breaks_off(member: Any, labels: Any) -> Any:
        if member.path == name:
            raise TransientError("the network")
        return row(member, labels)

    return breaks_off


def test_groups_boxes_and_missing_masks_survive_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ("cat/003.jpg,cat,,,gone/3.png,,,,,", *ANNOTATED, "late.jpg,dog,,,,,,,,")
    table = annotated(tmp_path / "in", *lines)
    monkeypatch.setattr(raw, "SHARD_BYTES", 10)
    whole = run(tmp_path / "whole", table, tmp_path, dataset="csv")
    with monkeypatch.context() as patch:
        patch.setattr(raw, "_row", breaks_off_at("late.jpg"))
        assert run(tmp_path / "ws", table, tmp_path, dataset="csv")["exit_code"] == 75
    capsys.readouterr()
    resumed = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    assert "going on after 4 files" in capsys.readouterr().err
    assert content(resumed) == content(whole)
    assert content(resumed)["extra"]["missing_masks"]["count"] == 1
    assert rows_of(dataset_of(resumed)) == rows_of(dataset_of(whole))


def test_a_shard_of_before_there_were_groups_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in", images())
    whole = run(tmp_path / "whole", source, tmp_path)
    monkeypatch.setattr(raw, "SHARD_BYTES", 10)
    with monkeypatch.context() as patch:
        patch.setattr(raw, "RAW", raw.RAW.remove(raw.RAW.get_field_index("group")))
        patch.setattr(raw, "_row", breaks_off_at("dog/000.jpg"))
        assert run(tmp_path / "ws", source, tmp_path)["exit_code"] == 75
    record = run(tmp_path / "ws", source, tmp_path)
    assert record["fingerprint"] == whole["fingerprint"]
    schemas = [pq.read_schema(dataset_of(record).locate(file)).names for file in dataset_of(record).manifest.files]
    assert ["group" in names for names in schemas] == [False] * 3 + [True] * 3


def test_large_masks_count_for_the_size_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is buffered is bounded by bytes: a mask may be larger than its image."""
    monkeypatch.setattr(raw, "SHARD_BYTES", 50_000)
    files = images(4) | {f"{n}.png": bytes(60_000) for n in range(4)}
    table = annotated(write(tmp_path / "in", files), *(f"{p},{p[:3]},,,{n}.png,,,,," for n, p in enumerate(images(4))))
    dataset = dataset_of(run(tmp_path / "ws", table, tmp_path, dataset="csv"))
    assert [file.rows for file in dataset.manifest.files] == [1, 1, 1, 1]
    assert dataset.manifest.totals.bytes == 4 * 2004, "totals count the images"


def test_a_workspace_inside_the_source_does_not_feed_on_itself(tmp_path: Path) -> None:
    source = write(tmp_path / "in", images())
    first = run(source / "mill", source, tmp_path)
    write(source / "mill", {"runs/plots/confusion.png": b"\x89PNG\r\n\x1a\n"})
    second = run(source / "mill", source, tmp_path)
    assert (second["state"], second["uri"]) == ("cached", first["uri"])
    assert len(rows_of(dataset_of(first))) == 6 and dataset_of(first).manifest.extra["skipped"]["count"] == 0


SCRIPT = """
import sys, time
from imagemill.components.download import STEP, raw
raw.SHARD_BYTES, raw.SKIPPED_NAMES, row = 10_000, 3, raw._row
def slow(*arguments):
    time.sleep(float(sys.argv[1]))
    return row(*arguments)
raw._row = slow
sys.exit(STEP.main(sys.argv[2:]))
"""


def start(workspace: Path, source: Path, slow: float) -> subprocess.Popen[bytes]:
    arguments = ["--dataset", "folder", "--source", str(source), "--workspace", str(workspace)]
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(slow), *arguments], stderr=subprocess.PIPE)


def finish(workspace: Path, source: Path) -> tuple[dict[str, Any], str]:
    process = start(workspace, source, 0)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said.decode()
    (manifest,) = (workspace / "raw").glob(f"*/{MANIFEST}")
    return content({"uri": str(manifest.parent)}), said.decode()


def recorded(workspace: Path) -> int:
    """Finished shards. Scratch folders come and go beside them: one that goes while it is looked at is no error."""
    try:
        return len(list((workspace / "raw" / "_shards" / "_work").glob("*/*.json")))
    except FileNotFoundError:
        return 0


def kill_after(workspace: Path, source: Path, shards: int) -> None:
    process = start(workspace, source, 0.01)
    give_up = time.monotonic() + 60
    while recorded(workspace) < shards:
        assert process.poll() is None and time.monotonic() < give_up
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list((workspace / "raw").rglob(MANIFEST)), "it was too quick to be killed"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write(tmp_path / "in", images(100) | {f"cat/{n:03d}.txt": b"text" for n in range(0, 100, 9)})


def test_a_killed_download_goes_on_and_ends_as_if_nothing_had_been(tmp_path: Path, many: Path) -> None:
    expected, _ = finish(tmp_path / "whole", many)
    assert len(expected["files"]) == 20 and expected["extra"]["skipped"]["count"] == 12
    kill_after(tmp_path / "ws", many, 3)
    kill_after(tmp_path / "ws", many, 9)
    found, said = finish(tmp_path / "ws", many)
    assert "going on after" in said
    assert found == expected


def test_a_source_that_changed_after_the_kill_is_read_anew(tmp_path: Path, many: Path) -> None:
    kill_after(tmp_path / "ws", many, 3)
    write(many, {"cat/001.jpg": photograph(555, 100)})
    found, said = finish(tmp_path / "ws", many)
    assert "going on after" not in said
    assert found == finish(tmp_path / "whole", many)[0]


def test_boxes_with_fractions_survive_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    row: Any = raw._row

    def breaks_off(member: Any, labels: Any) -> Any:
        if "beagle" in member.path:
            raise TransientError("the network")
        return row(member, labels)

    monkeypatch.setattr(raw, "_row", breaks_off)
    assert run(tmp_path / "ws", source, tmp_path, dataset="pets")["exit_code"] == 75
    monkeypatch.setattr(raw, "_row", row)
    assert run(tmp_path / "ws", source, tmp_path, dataset="pets")["fingerprint"] == whole["fingerprint"]


def test_a_change_while_it_is_read_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in", images())
    row: Any = raw._row

    def grows(member: Any, labels: Any) -> Any:
        write(source, {"cat/000-late.jpg": photograph(1234)})
        return row(member, labels)

    monkeypatch.setattr(raw, "_row", grows)
    run(tmp_path / "ws", source, tmp_path)
    assert not (tmp_path / "ws" / "sources").exists()
    monkeypatch.setattr(raw, "_row", row)
    assert len(rows_of(dataset_of(run(tmp_path / "ws", source, tmp_path)))) == 7


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[str, Any]]:
    """A bucket at moto's server, for quick tests: it checks no credentials."""
    import boto3
    from moto.server import ThreadedMotoServer

    from imagemill.components.store import s3

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
            patch.setenv(name, "when_required")
        s3.shared_s3.cache_clear()
        s3._pyarrow_s3.cache_clear()
        client = boto3.client("s3")
        client.create_bucket(Bucket="pictures")
        client.create_bucket(Bucket="mill")
        for name, data in images().items():
            client.put_object(Bucket="pictures", Key=name, Body=data)
        yield "s3://mill/ws", client
    s3.shared_s3.cache_clear()
    s3._pyarrow_s3.cache_clear()
    server.stop()


def test_a_bucket_a_prefix_and_an_archive_in_s3_give_what_the_folder_gives(
    tmp_path: Path, bucket: tuple[str, Any]
) -> None:
    workspace, client = bucket
    folder = write(tmp_path / "in", images())
    local = run(tmp_path / "ws", folder, tmp_path)
    for name, data in images().items():
        client.put_object(Bucket="mill", Key=f"in/{name}", Body=data)
    client.put_object(Bucket="mill", Key="in/", Body=b"")
    client.upload_file(str(tar(tmp_path / "x.tar.gz", folder, {n: n for n in images()})), "mill", "x.tar.gz")
    for source in ("s3://pictures", "s3://mill/in/", "s3://mill/x.tar.gz"):
        assert dataset_of(run(workspace, source, tmp_path)).fingerprint == local["fingerprint"], source
    assert run(workspace, "s3://mill/in", tmp_path)["state"] == "cached"


def test_an_object_that_changed_in_s3_is_read_again(tmp_path: Path, bucket: tuple[str, Any]) -> None:
    workspace, client = bucket
    for name, data in images().items():
        client.put_object(Bucket="mill", Key=f"changes/{name}", Body=data)
    first = run(workspace, "s3://mill/changes", tmp_path)
    client.put_object(Bucket="mill", Key="changes/cat/001.jpg", Body=photograph(321))
    second = run(workspace, "s3://mill/changes", tmp_path)
    assert second["state"] == "ran" and second["fingerprint"] != first["fingerprint"]


@pytest.mark.parametrize("local", [True, False], ids=["local table", "table in S3"])
def test_a_table_names_objects_in_s3(tmp_path: Path, bucket: tuple[str, Any], local: bool) -> None:
    workspace, client = bucket
    text = "path,label\ns3://pictures/cat/001.jpg,cat\ns3://pictures/dog/000.jpg,dog\ns3://pictures/none.jpg,dog\n"
    if not local:
        text += "cat/003.jpg,cat\n"
        client.put_object(Bucket="pictures", Key="t.csv", Body=text.encode())
    (tmp_path / "t.csv").write_text(text)
    source = str(tmp_path / "t.csv") if local else "s3://pictures/t.csv"
    found = rows_of(dataset_of(run(workspace, source, tmp_path, dataset="csv")))
    assert found["s3://pictures/cat/001.jpg"]["image"] == photograph(1)
    assert found["s3://pictures/none.jpg"]["image"] is None
    assert local or found["cat/003.jpg"]["image"] == photograph(3)
    assert run(workspace, source, tmp_path, dataset="csv")["state"] == "cached"


@pytest.mark.parametrize("local", [True, False], ids=["local table", "table in S3"])
def test_a_table_names_masks_in_s3(tmp_path: Path, bucket: tuple[str, Any], local: bool) -> None:
    workspace, client = bucket
    client.put_object(Bucket="mill", Key="masks/1.png", Body=b"the mask")
    lines = ["path,label,mask", "s3://pictures/cat/001.jpg,cat,s3://mill/masks/1.png"]
    lines += ["s3://pictures/dog/000.jpg,dog,s3://mill/masks/none.png"]
    if not local:
        client.put_object(Bucket="pictures", Key="beside.png", Body=b"beside")
        lines.append("cat/003.jpg,cat,beside.png")
        client.put_object(Bucket="pictures", Key="m.csv", Body="\n".join(lines).encode())
    (tmp_path / "m.csv").write_text("\n".join(lines))
    source = str(tmp_path / "m.csv") if local else "s3://pictures/m.csv"
    dataset = dataset_of(run(workspace, source, tmp_path, dataset="csv"))
    masks = {name: row["mask"] for name, row in rows_of(dataset).items()}
    assert masks.pop("s3://pictures/cat/001.jpg") == b"the mask" and masks.pop("s3://pictures/dog/000.jpg") is None
    assert masks == ({} if local else {"cat/003.jpg": b"beside"})
    (missing,) = dataset.manifest.extra["missing_masks"]["files"]
    assert missing["mask"] == "s3://mill/masks/none.png"
    client.put_object(Bucket="mill", Key="masks/1.png", Body=b"the mask, mended")
    assert run(workspace, source, tmp_path, dataset="csv")["state"] == "ran"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("s3://nobody/x", "existing bucket"),
        ("s3://mill/nothing", "with nothing in it"),
        ("s3://", "s3://bucket/prefix"),
    ],
)
def test_a_wrong_place_in_s3_is_the_users_error(
    tmp_path: Path, bucket: tuple[str, Any], source: str, told: str
) -> None:
    record = run(bucket[0], source, tmp_path)
    assert record["exit_code"] == 2 and told in record["error"]


def test_a_broken_archive_in_s3_is_the_users_error(tmp_path: Path, bucket: tuple[str, Any]) -> None:
    workspace, client = bucket
    client.put_object(Bucket="mill", Key="broken.tar", Body=b"\x1f\x8b\x08" + bytes(1000))
    assert run(workspace, "s3://mill/broken.tar", tmp_path)["exit_code"] == 2


def test_manifests_hold_no_absolute_uris(tmp_path: Path) -> None:
    record = run(tmp_path / "ws", write(tmp_path / "in", images()), tmp_path)
    moved = (tmp_path / "ws").rename(tmp_path / "moved")
    uri = uris.join(str(moved), "raw", record["fingerprint"])
    assert len(rows_of(read_dataset(uri, "raw"))) == 6
    manifest = parse_manifest((Path(uri) / MANIFEST).read_bytes(), uri)
    assert DownloadConfig(dataset="folder", source=manifest.extra["source"]).dataset_name() == "in"
