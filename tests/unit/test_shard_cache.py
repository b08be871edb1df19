"""The local cache of tensor files: checked, bounded, shared, and no reader loses what it reads."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from pathlib import Path

import pytest

from imagemill.components.dataset.manifest import File
from imagemill.components.storage.errors import DatasetError, TransientError, UserError
from imagemill.components.train.data.cache import ShardCache


def stored(folder: Path, name: str, content: bytes) -> tuple[str, File]:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return str(folder / name), File(name, "data", "train", 1, len(content), hashlib.sha256(content).hexdigest())


def read(cache: ShardCache, uri: str, file: File) -> bytes:
    handle = cache.open(uri, file)
    try:
        return os.pread(handle, 10**6, 0)
    finally:
        os.close(handle)


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache.create(str(tmp_path / "cache"), max_bytes=250)


def test_a_file_is_fetched_once(cache: ShardCache, tmp_path: Path) -> None:
    uri, file = stored(tmp_path / "far", "a.parquet", b"a" * 100)
    assert read(cache, uri, file) == b"a" * 100
    Path(uri).unlink()
    assert read(cache, uri, file) == b"a" * 100
    assert read(ShardCache.create(str(tmp_path / "cache"), max_bytes=250), uri, file) == b"a" * 100, (
        "by another process, too"
    )


def test_what_is_not_what_the_manifest_says_is_refused(cache: ShardCache, tmp_path: Path) -> None:
    uri, file = stored(tmp_path / "far", "a.parquet", b"a" * 100)
    Path(uri).write_bytes(b"b" * 100)
    with pytest.raises(DatasetError, match="expected content with sha256"):
        cache.open(uri, file)
    Path(uri).unlink()
    with pytest.raises(DatasetError, match="expected a file that the manifest lists, found none"):
        cache.open(uri, file)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"]


@pytest.mark.parametrize("damage", [b"", b"b" * 100, b"a" * 99])
def test_a_damaged_copy_is_fetched_again(cache: ShardCache, tmp_path: Path, damage: bytes) -> None:
    uri, file = stored(tmp_path / "far", "a.parquet", b"a" * 100)
    (tmp_path / "cache" / f"{file.sha256}.parquet").write_bytes(damage)
    assert read(cache, uri, file) == b"a" * 100


def test_the_oldest_go_when_there_is_no_room(cache: ShardCache, tmp_path: Path) -> None:
    files = [stored(tmp_path / "far", f"{name}.parquet", name.encode() * 100) for name in "abc"]
    for number, one in enumerate(files):
        read(cache, *one)
        os.utime(tmp_path / "cache" / f"{one[1].sha256}.parquet", (number, number))
        assert sum(p.stat().st_size for p in (tmp_path / "cache").iterdir()) <= 250
    left = {p.stem for p in (tmp_path / "cache").glob("*.parquet")}
    assert left == {files[1][1].sha256, files[2][1].sha256}


def test_a_file_in_use_stays_readable_when_it_has_gone(cache: ShardCache, tmp_path: Path) -> None:
    first, *others = [stored(tmp_path / "far", f"{name}.parquet", name.encode() * 200) for name in "abc"]
    handle = cache.open(*first)
    for one in others:
        read(cache, *one)
    assert not (tmp_path / "cache" / f"{first[1].sha256}.parquet").exists()
    assert os.pread(handle, 1000, 0) == b"a" * 200
    os.close(handle)


def test_a_copy_whose_name_goes_at_once_is_read_all_the_same(
    cache: ShardCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another thread that makes room, between any two calls of this one."""
    uri, file = stored(tmp_path / "far", "a.parquet", b"a" * 100)
    replace, os_open = Path.replace, os.open

    def replaced(source: Path, target: Path) -> Path:
        replace(source, target).unlink()
        return target

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replaced)
        assert read(cache, uri, file) == b"a" * 100
    assert read(cache, uri, file) == b"a" * 100
    other, taken = ShardCache.create(str(tmp_path / "cache"), max_bytes=250), []

    def opened(path: Path, *flags: int) -> int:
        handle = os_open(path, *flags)
        if str(path).endswith(".parquet"):
            taken.append(path)
            Path(path).unlink()
        return handle

    monkeypatch.setattr(os, "open", opened)
    assert read(other, uri, file) == b"a" * 100
    assert len(taken) == 1


def test_the_usual_folder_is_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = ShardCache.create().folder
    assert mine == tmp_path / f"imagemill-cache-{os.getuid()}" and mine.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match=r"cache_dir: expected a folder of your own, found .*-12345, which is another"):
        ShardCache.create()
    assert ShardCache.create(str(mine)).folder == mine


def test_a_folder_that_is_cleared_away_is_made_again(cache: ShardCache, tmp_path: Path) -> None:
    uri, file = stored(tmp_path / "far", "a.parquet", b"a" * 100)
    read(cache, uri, file)
    shutil.rmtree(tmp_path / "cache")
    assert read(cache, uri, file) == b"a" * 100


def test_a_copy_that_cant_be_read_is_no_leak(
    cache: ShardCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, file = stored(tmp_path / "far", "a.parquet", b"a" * 100)
    read(cache, uri, file)
    other, before = (
        ShardCache.create(str(tmp_path / "cache"), max_bytes=250),
        len(list(Path("/proc/self/fd").iterdir())),
    )

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", broken)
    with pytest.raises(TransientError, match="Input/output error"):
        other.open(uri, file)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_many_threads_fetch_a_file_once(cache: ShardCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, file = stored(tmp_path / "far", "a.parquet", b"a" * 100)
    fetched: list[str] = []
    fetch = ShardCache._fetch
    monkeypatch.setattr(ShardCache, "_fetch", lambda self, *a: (fetched.append(a[0]), fetch(self, *a))[1])
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(read(cache, uri, file))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"a" * 100] * 8 and fetched == [uri]


def test_what_another_is_writing_is_left_alone_and_what_a_killed_one_left_is_not(
    cache: ShardCache, tmp_path: Path
) -> None:
    young, old = (tmp_path / "cache" / name for name in (".young.tmp", ".old.tmp"))
    for path in (young, old):
        path.write_bytes(b"x" * 100)
    os.utime(old, (0, 0))
    read(cache, *stored(tmp_path / "far", "a.parquet", b"a" * 100))
    assert young.exists() and not old.exists()
