"""Changed sources: only changed files are read and stored, and the raw dataset equals one read from nothing."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from downloading import dataset_of, images, make_failing_row, photograph, rows_of, run, tar, write

from imagemill.components.dataset.kinds import FileList
from imagemill.components.dataset.manifest import Dataset, File
from imagemill.components.download import raw, reuse, sources
from imagemill.components.storage.errors import TransientError
from imagemill.components.storage.store import LocalStore

KB = 1_000


class Reads:
    """Files below a folder that were opened, by their relative paths."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        read, open_stream = LocalStore.read, sources.open_stream

        def count(uri: str) -> None:
            if uri.startswith(f"{folder}/"):
                self.paths.append(uri[len(str(folder)) + 1 :])

        def counted_read(store: LocalStore, uri: str) -> bytes:
            count(uri)
            return read(store, uri)

        def counted_open(uri: str, *more: str) -> Any:
            count(uri)
            return open_stream(uri, *more)

        monkeypatch.setattr(LocalStore, "read", counted_read)
        monkeypatch.setattr(sources, "open_stream", counted_open)

    def take(self) -> list[str]:
        paths, self.paths = sorted(self.paths), []
        return paths


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "in", images(40) | {"cat/notes.txt": b"text", "dog/noending": photograph(500)})


@pytest.fixture
def reads(source: Path, monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(source, monkeypatch)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten photographs in a shard."""
    monkeypatch.setattr(raw, "SHARD_BYTES", 20 * KB)


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


def test_only_changed_files_are_read(
    tmp_path: Path, source: Path, reads: Reads, capsys: pytest.CaptureFixture[str]
) -> None:
    first = dataset_of(run(tmp_path / "ws", source, tmp_path))
    assert len(reads.take()) >= 42
    write(source, {"cat/new.jpg": photograph(900), "cat/001.jpg": photograph(901), "dog/more.txt": b"text"})
    (source / "dog" / "000.jpg").unlink()
    capsys.readouterr()
    record = run(tmp_path / "ws", source, tmp_path)
    assert reads.take() == ["cat/001.jpg", "cat/new.jpg", "dog/more.txt"]
    stderr = capsys.readouterr().err
    assert f"43 files: 40 as in raw/{first.fingerprint}, 2 new, 1 changed, 1 removed" in stderr
    grown = check_equals_fresh(record, source, tmp_path)
    assert set(grown.files()[: len(first.files())]) == set(first.files()), "the old shards are listed again"
    assert sum(len(grown.removed_ids(file)) for file in grown.files()) == 2
    assert len(rows_of(first)) == 41, "the old snapshot is as it was"


def test_one_percent_more_files_stores_about_one_percent_more_bytes(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{'cat' if n % 2 else 'dog'}/{n:04d}.jpg": photograph(n) for n in range(1000)})
    run(tmp_path / "ws", source, tmp_path)
    before = stored_bytes(tmp_path / "ws")
    write(source, {f"cat/new-{n}.jpg": photograph(5000 + n) for n in range(10)})
    run(tmp_path / "ws", source, tmp_path)
    assert stored_bytes(tmp_path / "ws") - before < 0.03 * before
    listing = tmp_path / "ws" / "names" / "in" / "latest" / "listing.parquet"
    assert listing.stat().st_size < 40 * 1010


@pytest.mark.parametrize("seed", range(6))
def test_any_history_of_a_folder_equals_a_fresh_read(
    tmp_path: Path, source: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(reuse, "MAX_SMALL_SHARDS", 3)
    for step in range(5):
        files = sorted(path for path in source.rglob("*.jpg"))
        for path in rng.sample(files, rng.choice([0, 1, 2, len(files) // 3])):
            match rng.choice(["remove", "replace", "touch", "relabel", "forget"]):
                case "remove":
                    path.unlink()
                case "replace":
                    path.write_bytes(photograph(rng.getrandbits(30)))
                case "touch":
                    os.utime(path, (step, step))
                case "relabel":
                    path.rename(source / rng.choice(["cat", "dog"]) / f"moved-{rng.getrandbits(30)}.jpg")
                case "forget":
                    path.rename(path.with_suffix(".txt"))
        write(source, {f"cat/{step}-{n}.jpg": photograph(rng.getrandbits(30)) for n in range(rng.choice([0, 1, 9]))})
        check_equals_fresh(run(tmp_path / "ws", source, tmp_path), source, tmp_path)


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


@pytest.mark.parametrize("seed", range(6))
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


def test_changed_label_is_read_without_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "in", images(40))
    lines = [f"{name},{name[:3]}" for name in images(40)]
    table = folder / "t.csv"
    table.write_text("\n".join(["path,label", *lines]))
    run(tmp_path / "ws", table, tmp_path, dataset="csv")
    reads = Reads(folder, monkeypatch)
    table.write_text("\n".join(["path,label", "dog/000.jpg,cat", *lines[1:]]))
    record = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    assert set(reads.take()) == {"t.csv"}
    assert "0 new, 0 changed, 0 removed, 1 with other labels" in capsys.readouterr().err
    assert rows_of(dataset_of(record))["dog/000.jpg"]["label"] == "cat"
    check_equals_fresh(record, table, tmp_path, dataset="csv")


def test_shard_with_many_removed_rows_is_rewritten(tmp_path: Path, source: Path, reads: Reads) -> None:
    first = dataset_of(run(tmp_path / "ws", source, tmp_path))
    reads.take()
    for name in ("001", "003", "005"):  # of the ten in the first shard, which names begin with cat
        (source / "cat" / f"{name}.jpg").unlink()
    grown = check_equals_fresh(run(tmp_path / "ws", source, tmp_path), source, tmp_path)
    assert reads.paths.count("cat/007.jpg") == 1, "read by the dataset from nothing, not for the copy"
    assert len(set(grown.files()) & set(first.files())) == len(first.files()) - 1
    assert grown.manifest.extra.removed is None


def test_removed_rows_of_a_manifest_are_limited(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "MAX_REMOVED_IDS", 3)
    run(tmp_path / "ws", source, tmp_path)
    for name in ("cat/001", "cat/003", "cat/021", "dog/000", "dog/030"):  # two of the first shard, one of three more
        (source / f"{name}.jpg").unlink()
    grown = check_equals_fresh(run(tmp_path / "ws", source, tmp_path), source, tmp_path)
    assert sorted(map(len, grown.manifest.extra.removed.values())) == [1, 1, 1]


def test_small_shards_are_merged(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, reads: Reads) -> None:
    monkeypatch.setattr(reuse, "MAX_SMALL_SHARDS", 4)
    run(tmp_path / "ws", source, tmp_path)
    for week in range(12):
        write(source, {f"cat/week-{week}.jpg": photograph(1000 + week, 200)})
        reads.take()
        dataset = dataset_of(run(tmp_path / "ws", source, tmp_path))
        assert reads.take() == [f"cat/week-{week}.jpg"], "merged from the old shards"
        assert len(dataset.files()) <= 5 + 4 + 2
    check_equals_fresh(run(tmp_path / "ws", source, tmp_path), source, tmp_path)
    pool = (tmp_path / "ws" / "raw" / "_shards").glob("part-*")
    assert sum(pq.read_metadata(path).num_rows for path in pool) <= 41 + 12 + 3 * 5


@pytest.mark.parametrize("added", [1, 3, 31])
def test_weekly_additions_of_a_year_leave_few_shards_and_few_copies(added: int) -> None:
    """A shard is its bytes in MB: 24 full ones, and an addition a week; small ones are below 32."""
    full, small = 24 * [128], list[int]()
    copied = 0
    for _ in range(52):
        shards = [reuse.EarlierShard(File(str(n), "data", "", 1, size, ""), str(n)) for n, size in enumerate(small)]
        merged = [int(shard.uri) for shard in reuse.choose_merged(shards)]
        total = sum(small[n] for n in merged)
        small = [size for n, size in enumerate(small) if n not in merged]
        copied += total
        full += [128] * (total // 128)
        for size in (total % 128, added):
            if size:
                (small if size < 32 else full).append(size)
        assert len(small) <= reuse.MAX_SMALL_SHARDS + 1
    assert len(full) + len(small) <= 24 + 52 * added // 32 + 20 and copied <= 2 * 52 * added


def test_touched_files_are_not_stored_again(tmp_path: Path, source: Path, reads: Reads) -> None:
    first = dataset_of(run(tmp_path / "ws", source, tmp_path))
    reads.take()
    for path in source.rglob("*.*"):
        os.utime(path, (1, 1))
    write(source, {"dog/new.jpg": photograph(700)})
    second = run(tmp_path / "ws", source, tmp_path)
    assert len(reads.take()) >= 41
    grown = check_equals_fresh(second, source, tmp_path)
    assert set(first.files()) < set(grown.files()) and len(grown.files()) == len(first.files()) + 1
    reads.take()
    write(source, {"dog/newer.jpg": photograph(701)})
    run(tmp_path / "ws", source, tmp_path)
    assert reads.take() == ["dog/newer.jpg"], "the new times are those of the last listing"


def test_verify_content_detects_changes_that_the_listing_hides(tmp_path: Path, source: Path) -> None:
    run(tmp_path / "ws", source, tmp_path)
    file = source / "cat" / "001.jpg"
    status = file.stat()
    file.write_bytes(photograph(77))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    write(source, {"dog/new.jpg": photograph(700)})
    trusting = rows_of(dataset_of(run(tmp_path / "ws", source, tmp_path)))
    assert trusting["cat/001.jpg"]["image"] == photograph(1)
    before = stored_bytes(tmp_path / "ws" / "raw" / "_shards")
    record = run(tmp_path / "ws", source, tmp_path, "--verify", "content")
    check_equals_fresh(record, source, tmp_path)
    assert stored_bytes(tmp_path / "ws" / "raw" / "_shards") - before < 20 * KB, "one row differs"
    assert run(tmp_path / "ws", source, tmp_path)["uri"] == record["uri"], "the listing leads there now"
    assert run(tmp_path / "ws", source, tmp_path, "--verify", "content")["state"] == "cached"


@pytest.mark.parametrize("damage", ["shard", "cut", "manifest", "listing"])
def test_damaged_snapshot_is_not_reused(tmp_path: Path, source: Path, damage: str, reads: Reads) -> None:
    first = dataset_of(run(tmp_path / "ws", source, tmp_path))
    shard = Path(first.locate(first.files()[1]))
    if damage == "shard":
        shard.unlink()
    elif damage == "cut":  # of the same size, but no Parquet file
        shard.write_bytes(bytes(shard.stat().st_size))
    elif damage == "manifest":
        Path(first.uri, "_manifest.json").write_bytes(b"{")
    else:
        (tmp_path / "ws" / "names" / "in" / "latest" / "listing.parquet").write_bytes(b"none")
    write(source, {"dog/new.jpg": photograph(700)})
    reads.take()
    record = run(tmp_path / "ws", source, tmp_path)
    assert len(reads.take()) >= 42
    if damage != "cut":  # whose name is its content's, so that it is taken for what was written
        check_equals_fresh(record, source, tmp_path)


def test_grown_archive_stores_only_new_files(tmp_path: Path, source: Path) -> None:
    names = {name: name for name in images(40)}
    archive = tar(tmp_path / "x.tar.gz", source, names)
    first = dataset_of(run(tmp_path / "ws", archive, tmp_path))
    write(source, {"dog/new.jpg": photograph(700)})
    tar(archive, source, {"dog/new.jpg": "dog/new.jpg"} | dict(list(names.items())[1:]))
    grown = check_equals_fresh(run(tmp_path / "ws", archive, tmp_path), archive, tmp_path)
    assert set(first.files()) < set(grown.files()) and len(grown.files()) == len(first.files()) + 1


def test_duplicate_names_in_a_grown_snapshot_are_refused(tmp_path: Path) -> None:
    folder, lines = write(tmp_path / "in", images(30)), [f"{name},{name[:3]}" for name in images(30)]
    table = folder / "t.csv"
    table.write_text("\n".join(["path,label", *lines]))
    run(tmp_path / "ws", table, tmp_path, dataset="csv")
    table.write_text("\n".join(["path,label", "./dog/000.jpg,dog", *lines]))
    for _ in range(2):  # the second finds the shards of the first
        record = run(tmp_path / "ws", table, tmp_path, dataset="csv")
        assert record["exit_code"] == 2 and "found 'dog/000.jpg' 2 times" in record["error"]
    table.write_text("\n".join(["path,label", *lines[1:]]))
    check_equals_fresh(run(tmp_path / "ws", table, tmp_path, dataset="csv"), table, tmp_path, dataset="csv")


def test_interrupted_growth_resumes_to_the_same_dataset(
    tmp_path: Path, source: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "ws", source, tmp_path)
    for name in ("001", "003", "005"):
        (source / "cat" / f"{name}.jpg").write_bytes(photograph(int(name) + 600))
    write(source, {f"dog/new-{n:02d}.jpg": photograph(700 + n) for n in range(25)})
    with monkeypatch.context() as patch:
        patch.setattr(raw, "_make_row", make_failing_row("dog/new-20.jpg"))
        assert run(tmp_path / "ws", source, tmp_path)["exit_code"] == 75
    reads.take()
    capsys.readouterr()
    record = run(tmp_path / "ws", source, tmp_path)
    assert "resuming after 20 files" in capsys.readouterr().err
    assert reads.take() == [f"dog/new-{n:02d}.jpg" for n in range(17, 25)]
    check_equals_fresh(record, source, tmp_path)


def test_interrupted_copy_of_rows_is_resumed(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows copied by the killed attempt are found in its shards, not in the old ones."""
    run(tmp_path / "ws", source, tmp_path)
    for path in sorted(source.rglob("*.jpg"))[::2]:
        path.unlink()
    copy_rows = reuse.EarlierRows.copy_rows

    def fail_midway(self: reuse.EarlierRows, labeller: Any) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(copy_rows(self, labeller)):
            if number == 15:
                raise TransientError("the disk")
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(reuse.EarlierRows, "copy_rows", fail_midway)
        assert run(tmp_path / "ws", source, tmp_path)["exit_code"] == 75
    grown = check_equals_fresh(run(tmp_path / "ws", source, tmp_path), source, tmp_path)
    assert grown.manifest.extra.removed is None and len(grown.files()) == 3
    listed = sum(pq.read_metadata(grown.locate(file)).num_rows for file in grown.files())
    assert listed == grown.manifest.totals.rows


def test_changed_prefix_in_s3_reads_only_changed_objects(
    tmp_path: Path, s3_workspace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import boto3

    client, bucket = boto3.client("s3"), re.sub("s3://([^/]+)/.*", r"\1", s3_workspace)
    for name, data in images(30).items():
        client.put_object(Bucket=bucket, Key=f"in/{name}", Body=data)
    run(s3_workspace, f"s3://{bucket}/in", tmp_path)
    client.put_object(Bucket=bucket, Key="in/cat/001.jpg", Body=photograph(77))
    client.put_object(Bucket=bucket, Key="in/cat/new.jpg", Body=photograph(78))
    client.put_object(Bucket=bucket, Key="in/cat/003.jpg", Body=photograph(3))  # as it was: the same ETag
    client.delete_object(Bucket=bucket, Key="in/dog/000.jpg")
    capsys.readouterr()
    record = run(s3_workspace, f"s3://{bucket}/in", tmp_path)
    assert "28 as in raw/" in (stderr := capsys.readouterr().err) and "1 new, 1 changed, 1 removed" in stderr
    check_equals_fresh(record, f"s3://{bucket}/in", tmp_path)
