"""Changed sources: only changed files are read and stored, and the raw dataset equals one read from nothing."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from downloading import dataset_of, images, photograph, rows_of, run, write

from imagemill.components.dataset.kinds import FileList
from imagemill.components.dataset.manifest import Dataset
from imagemill.components.download import sources

KB = 1_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "in", images(40) | {"cat/notes.txt": b"text", "dog/noending": photograph(500)})


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten photographs in a part."""
    for module in ("download", "rows"):
        monkeypatch.setattr(f"imagemill.components.download.{module}.PART_BYTES", 20 * KB)


def stored_bytes(workspace: Path) -> int:
    return sum(file.stat().st_size for file in workspace.rglob("*") if file.is_file())


def check_equals_fresh(record: dict[str, Any], source: Path | str, tmp_path: Path, **options: Any) -> Dataset:
    """Check a raw dataset against one that is made from nothing; return it."""
    fresh = dataset_of(run(tmp_path / f"fresh-{random.getrandbits(40)}", source, tmp_path, **options))
    grown = dataset_of(record)
    assert grown.fingerprint == fresh.fingerprint and rows_of(grown) == rows_of(fresh)
    assert grown.manifest.totals == fresh.manifest.totals and grown.manifest.classes == fresh.manifest.classes
    for kind in ("skipped", "missing_masks"):
        lists = [getattr(dataset.manifest.extra, kind) or FileList() for dataset in (grown, fresh)]
        assert lists[0].count == lists[1].count
        assert sorted(map(str, lists[0].files)) == sorted(map(str, lists[1].files))
    assert not grown.missing()
    return grown


def test_only_changed_files_are_read(tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = dataset_of(run(tmp_path / "ws", source, tmp_path))
    write(source, {"cat/new.jpg": photograph(900), "cat/001.jpg": photograph(901), "dog/more.txt": b"text"})
    (source / "dog" / "000.jpg").unlink()
    capsys.readouterr()
    record = run(tmp_path / "ws", source, tmp_path)
    stderr = capsys.readouterr().err
    assert f"43 files: 40 as in raw/{first.fingerprint}, 2 new, 1 changed, 1 removed" in stderr
    check_equals_fresh(record, source, tmp_path)
    assert len(rows_of(first)) == 41, "the old snapshot is as it was"


def test_one_percent_more_files_stores_about_one_percent_more_bytes(tmp_path: Path) -> None:
    source = write(
        tmp_path / "in", {f"{'cat' if n % 2 else 'dog'}/{n:04d}.jpg": photograph(n, 20_000) for n in range(1000)}
    )
    run(tmp_path / "ws", source, tmp_path)
    before = stored_bytes(tmp_path / "ws")
    write(source, {f"cat/new-{n}.jpg": photograph(5000 + n, 20_000) for n in range(10)})
    run(tmp_path / "ws", source, tmp_path)
    assert stored_bytes(tmp_path / "ws") - before < 0.02 * before


def make_table(folder: Path, rng: random.Random, previous: dict[str, str]) -> Path:
    """A table of random rows; a row of `previous` is unchanged with probability 0.8."""
    rows = {}
    for name in [*sorted(path.name for path in folder.glob("*.jpg")), "gone-1.jpg", "gone-2.jpg"]:
        if rng.random() < 0.1:
            continue
        cells = [rng.choice(["cat", "dog"]), rng.choice(["", "train", "test"]), rng.choice(["", "g1", "g2"])]
        cells.append(rng.choice(["", "masks/1.png", "masks/2.png", "masks/none.png"]))
        cells += rng.choice([["", "", "", ""], ["0.1", "1", "9.7", "8"], ["2", "3", "4", "5"]])
        rows[name] = previous[name] if name in previous and rng.random() < 0.8 else ",".join([name, *cells])
    previous.clear()
    previous |= rows
    table = folder / "t.csv"
    lines = rng.sample(sorted(rows.values()), len(rows))
    table.write_text("\n".join(["path,label,split,group,mask,xmin,ymin,xmax,ymax", *lines]) + "\n")
    return table


@pytest.mark.parametrize("seed", range(2))
def test_any_history_of_a_table_equals_a_fresh_read(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, previous = random.Random(seed), dict[str, str]()
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 2500)
    monkeypatch.setattr("imagemill.components.download.table.MAX_FILE_BYTES", 2500)
    folder = write(tmp_path / "in", {f"{n:03d}.jpg": photograph(n) for n in range(40)})
    write(folder, {"masks/1.png": b"one", "masks/2.png": b"two", "large.jpg": bytes(2501)})
    for step in range(5):
        table = make_table(folder, rng, previous)
        if rng.random() < 0.3:
            write(folder, {"masks/1.png": rng.randbytes(9)})
        if rng.random() < 0.3:
            write(folder, {"masks/2.png": bytes(2600)})
        for name in rng.sample(range(40), 2):
            write(folder, {f"{name:03d}.jpg": photograph(rng.getrandbits(30))})
        (folder / f"{rng.randrange(40):03d}.jpg").unlink(missing_ok=True)
        write(folder, {f"new-{step}.jpg": photograph(rng.getrandbits(30))})
        record = run(tmp_path / "ws", table, tmp_path, "--name", "weekly", dataset="csv")
        check_equals_fresh(record, table, tmp_path, dataset="csv")


def test_verify_content_detects_changes_that_the_listing_hides(tmp_path: Path, source: Path) -> None:
    run(tmp_path / "ws", source, tmp_path)
    file = source / "cat" / "001.jpg"
    status = file.stat()
    file.write_bytes(photograph(77))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    write(source, {"dog/new.jpg": photograph(700)})
    trusting = rows_of(dataset_of(run(tmp_path / "ws", source, tmp_path)))
    assert trusting["cat/001.jpg"]["image"] == photograph(1)
    before = stored_bytes(tmp_path / "ws" / "parts")
    record = run(tmp_path / "ws", source, tmp_path, "--verify", "content")
    check_equals_fresh(record, source, tmp_path)
    assert stored_bytes(tmp_path / "ws" / "parts") - before < 20 * KB, "one row differs"
    assert run(tmp_path / "ws", source, tmp_path)["uri"] == record["uri"], "the listing leads there now"
    assert run(tmp_path / "ws", source, tmp_path, "--verify", "content")["state"] == "cached"
