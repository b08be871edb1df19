"""Download as a step: the dataset contract, cached sources, and changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from downloading import content, dataset_of, images, photograph, rows_of, run, tar, write

from imagemill.components.dataset.manifest import MANIFEST, parse_manifest, read_dataset
from imagemill.components.download.config import DownloadConfig
from imagemill.components.storage import uri as uris


def test_fingerprint_does_not_depend_on_order_and_parts(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", images())
    first = run(tmp_path / "ws", folder, tmp_path)
    backwards = {f"./{name}": name for name in sorted(images(), reverse=True)}
    second = run(tmp_path / "ws2", tar(tmp_path / "x.tar.gz", folder, backwards), tmp_path)
    assert first["fingerprint"] == second["fingerprint"]
    assert content(first)["parts"] != content(second)["parts"], "an archive is dealt to several parts"
    third = run(tmp_path / "ws", tmp_path / "x.tar.gz", tmp_path)
    assert (third["state"], third["uri"]) == ("cached", first["uri"])


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


@pytest.mark.parametrize("lost", ["index", "part"])
def test_lost_file_is_made_again(tmp_path: Path, lost: str) -> None:
    source = write(tmp_path / "in", images())
    dataset = dataset_of(run(tmp_path / "ws", source, tmp_path))
    index, part = dataset.locate(dataset.manifest.files[0]), dataset.locate_part(dataset.manifest.parts[0])
    file = Path(index if lost == "index" else part)
    file.unlink()
    second = run(tmp_path / "ws", source, tmp_path)
    assert second["uri"] == dataset.uri and file.exists() and len(rows_of(dataset_of(second))) == 6


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


def test_manifests_hold_no_absolute_uris(tmp_path: Path) -> None:
    record = run(tmp_path / "ws", write(tmp_path / "in", images()), tmp_path)
    moved = (tmp_path / "ws").rename(tmp_path / "moved")
    uri = uris.join(str(moved), "raw", record["fingerprint"])
    assert len(rows_of(read_dataset(uri, "raw"))) == 6
    manifest = parse_manifest((Path(uri) / MANIFEST).read_bytes(), uri)
    assert DownloadConfig(dataset="folder", source=manifest.extra.source).dataset_name() == "in"
