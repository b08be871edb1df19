"""Download as a step: the dataset contract, cached sources, and changes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from downloading import content, dataset_of, images, photograph, rows_of, run, tar, write

from imagemill.components.dataset.manifest import MANIFEST, parse_manifest, read_dataset
from imagemill.components.download import raw
from imagemill.components.download.config import DownloadConfig
from imagemill.components.storage import uri as uris


def test_dataset_follows_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert manifest.extra.skipped.count == 2
    for image_id, row in rows_of(dataset).items():
        assert row["image"] == images()[image_id] and row["label"] == image_id.split("/")[0]
        assert row["sha256"] == hashlib.sha256(row["image"]).hexdigest()
    assert not list((tmp_path / "ws").rglob(".scratch-*")), "scratch space is left behind"


def test_listing_is_recorded_with_its_raw_dataset(tmp_path: Path) -> None:
    record = run(tmp_path / "ws", write(tmp_path / "in", images()), tmp_path)
    (record_file,) = (tmp_path / "ws" / "sources").iterdir()
    assert json.loads(record_file.read_text())["raw"] == f"raw/{record['fingerprint']}"
    latest = json.loads((tmp_path / "ws" / "names" / "in" / "latest" / "raw.json").read_text())
    assert latest["fingerprint"] == record["fingerprint"]


def test_fingerprint_does_not_depend_on_order_and_sharding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "in", images())
    first = run(tmp_path / "ws", folder, tmp_path)
    backwards = {f"./{name}": name for name in sorted(images(), reverse=True)}
    monkeypatch.setattr(raw, "SHARD_BYTES", 3000)
    second = run(tmp_path / "ws2", tar(tmp_path / "x.tar.gz", folder, backwards), tmp_path)
    assert first["fingerprint"] == second["fingerprint"]
    assert content(first)["files"] != content(second)["files"], "the test should have sharded it otherwise"
    third = run(tmp_path / "ws", tmp_path / "x.tar.gz", tmp_path)
    assert (third["state"], third["uri"]) == ("cached", first["uri"])


def test_unchanged_source_is_cached_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_change_with_the_same_size_and_time_requires_rerun(tmp_path: Path) -> None:
    """A listing tells size and time; who forges both (`cp -p` of as many bytes) must say `--rerun download`."""
    source = write(tmp_path / "in", images())
    first = run(tmp_path / "ws", source, tmp_path)
    file = source / "cat" / "001.jpg"
    status = file.stat()
    file.write_bytes(photograph(77))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(tmp_path / "ws", source, tmp_path)["uri"] == first["uri"]
    rerun = run(tmp_path / "ws", source, tmp_path, "--rerun", "download")
    assert rerun["state"] == "ran" and rerun["fingerprint"] != first["fingerprint"]
    assert rows_of(dataset_of(rerun))["cat/001.jpg"]["image"] == photograph(77)


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "edited"])
def test_any_change_gives_a_new_raw_dataset(tmp_path: Path, change: str) -> None:
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
    second = run(tmp_path / "ws", source, tmp_path)
    assert second["uri"] == dataset.uri and shard.exists() and len(rows_of(dataset_of(second))) == 6


def test_duplicate_image_ids_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", images())
    names = {"cat/001.jpg": "cat/001.jpg", "dog/x.jpg": "dog/000.jpg", "dog/./x.jpg": "dog/002.jpg"}
    record = run(tmp_path / "ws", tar(tmp_path / "x.tar.gz", folder, names), tmp_path)
    assert record["exit_code"] == 2
    assert "image_id: expected every path once, found 'dog/x.jpg' 2 times" in record["error"]
    assert not list((tmp_path / "ws" / "raw").rglob(MANIFEST))


def test_damaged_archive_exits_with_2_and_commits_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", images())
    target = tar(tmp_path / "x.tar.gz", folder, {name: name for name in images()})
    os.truncate(target, target.stat().st_size // 2)
    record = run(tmp_path / "ws", target, tmp_path)
    assert record["exit_code"] == 2 and "damaged" in record["error"]
    assert not list((tmp_path / "ws" / "raw").rglob(MANIFEST))


def test_workspace_inside_the_source_is_skipped(tmp_path: Path) -> None:
    source = write(tmp_path / "in", images())
    first = run(source / "mill", source, tmp_path)
    write(source / "mill", {"runs/plots/confusion.png": b"\x89PNG\r\n\x1a\n"})
    second = run(source / "mill", source, tmp_path)
    assert (second["state"], second["uri"]) == ("cached", first["uri"])
    assert len(rows_of(dataset_of(first))) == 6 and dataset_of(first).manifest.extra.skipped.count == 0


def test_file_added_while_read_is_in_the_next_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in", images())
    make_row: Any = raw._make_row

    def add_file(member: Any, labels: Any) -> Any:
        write(source, {"cat/000-late.jpg": photograph(1234)})
        return make_row(member, labels)

    monkeypatch.setattr(raw, "_make_row", add_file)
    assert len(rows_of(dataset_of(run(tmp_path / "ws", source, tmp_path)))) == 6
    monkeypatch.setattr(raw, "_make_row", make_row)
    assert len(rows_of(dataset_of(run(tmp_path / "ws", source, tmp_path)))) == 7


def test_manifests_hold_no_absolute_uris(tmp_path: Path) -> None:
    record = run(tmp_path / "ws", write(tmp_path / "in", images()), tmp_path)
    moved = (tmp_path / "ws").rename(tmp_path / "moved")
    uri = uris.join(str(moved), "raw", record["fingerprint"])
    assert len(rows_of(read_dataset(uri, "raw"))) == 6
    manifest = parse_manifest((Path(uri) / MANIFEST).read_bytes(), uri)
    assert DownloadConfig(dataset="folder", source=manifest.extra.source).dataset_name() == "in"
