"""Local cache of tensor files: verified, limited in size, shared between processes, safe for readers."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imagemill.components.dataset.manifest import File
from imagemill.components.storage.errors import DatasetError, TransientError, UserError
from imagemill.components.train.data.cache import PartCache


def store_file(folder: Path, name: str, content: bytes) -> tuple[str, File]:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return str(folder / name), File(name, "data", "train", 1, len(content), hashlib.sha256(content).hexdigest())


def read_cached(cache: PartCache, uri: str, file: File) -> bytes:
    handle = cache.open(uri, file)
    try:
        return os.pread(handle, 10**6, 0)
    finally:
        os.close(handle)


@pytest.fixture
def cache(tmp_path: Path) -> PartCache:
    return PartCache.create(str(tmp_path / "cache"), max_bytes=250)


def test_a_file_is_fetched_once(cache: PartCache, tmp_path: Path) -> None:
    uri, file = store_file(tmp_path / "far", "a.parquet", b"a" * 100)
    assert read_cached(cache, uri, file) == b"a" * 100
    Path(uri).unlink()
    assert read_cached(cache, uri, file) == b"a" * 100
    another_process = PartCache.create(str(tmp_path / "cache"), max_bytes=250)
    assert read_cached(another_process, uri, file) == b"a" * 100


def test_file_with_another_hash_is_refused(cache: PartCache, tmp_path: Path) -> None:
    uri, file = store_file(tmp_path / "far", "a.parquet", b"a" * 100)
    Path(uri).write_bytes(b"b" * 100)
    with pytest.raises(DatasetError, match="expected content with sha256"):
        cache.open(uri, file)
    Path(uri).unlink()
    with pytest.raises(DatasetError, match="expected a file that the manifest lists, found none"):
        cache.open(uri, file)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"]


@pytest.mark.parametrize("damage", [b"", b"b" * 100, b"a" * 99])
def test_a_damaged_copy_is_fetched_again(cache: PartCache, tmp_path: Path, damage: bytes) -> None:
    uri, file = store_file(tmp_path / "far", "a.parquet", b"a" * 100)
    (tmp_path / "cache" / f"{file.sha256}.parquet").write_bytes(damage)
    assert read_cached(cache, uri, file) == b"a" * 100


def test_oldest_files_are_evicted(cache: PartCache, tmp_path: Path) -> None:
    files = [store_file(tmp_path / "far", f"{name}.parquet", name.encode() * 100) for name in "abc"]
    for number, file in enumerate(files):
        read_cached(cache, *file)
        os.utime(tmp_path / "cache" / f"{file[1].sha256}.parquet", (number, number))
        assert sum(p.stat().st_size for p in (tmp_path / "cache").iterdir()) <= 250
    left = {p.stem for p in (tmp_path / "cache").glob("*.parquet")}
    assert left == {files[1][1].sha256, files[2][1].sha256}


def test_open_file_is_readable_after_eviction(cache: PartCache, tmp_path: Path) -> None:
    first, *others = [store_file(tmp_path / "far", f"{name}.parquet", name.encode() * 200) for name in "abc"]
    handle = cache.open(*first)
    for file in others:
        read_cached(cache, *file)
    assert not (tmp_path / "cache" / f"{first[1].sha256}.parquet").exists()
    assert os.pread(handle, 1000, 0) == b"a" * 200
    os.close(handle)


def test_copy_evicted_before_opening_is_read(cache: PartCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by another thread that makes room, between any two calls of this one."""
    uri, file = store_file(tmp_path / "far", "a.parquet", b"a" * 100)
    replace, os_open = Path.replace, os.open

    def replace_and_delete(source: Path, target: Path) -> Path:
        replace(source, target).unlink()
        return target

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_and_delete)
        assert read_cached(cache, uri, file) == b"a" * 100
    assert read_cached(cache, uri, file) == b"a" * 100
    other, opened_paths = PartCache.create(str(tmp_path / "cache"), max_bytes=250), []

    def open_and_delete(path: Path, *flags: int) -> int:
        handle = os_open(path, *flags)
        if str(path).endswith(".parquet"):
            opened_paths.append(path)
            Path(path).unlink()
        return handle

    monkeypatch.setattr(os, "open", open_and_delete)
    assert read_cached(other, uri, file) == b"a" * 100
    assert len(opened_paths) == 1


def test_default_folder_belongs_to_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = PartCache.create().folder
    assert folder == tmp_path / f"imagemill-cache-{os.getuid()}" and folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UserError, match=r"cache_dir: expected a folder of your own, found .*-12345, which is another"):
        PartCache.create()
    assert PartCache.create(str(folder)).folder == folder


def test_deleted_folder_is_made_again(cache: PartCache, tmp_path: Path) -> None:
    uri, file = store_file(tmp_path / "far", "a.parquet", b"a" * 100)
    read_cached(cache, uri, file)
    shutil.rmtree(tmp_path / "cache")
    assert read_cached(cache, uri, file) == b"a" * 100


def test_unreadable_copy_leaks_no_file(cache: PartCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, file = store_file(tmp_path / "far", "a.parquet", b"a" * 100)
    read_cached(cache, uri, file)
    other = PartCache.create(str(tmp_path / "cache"), max_bytes=250)
    before = len(list(Path("/proc/self/fd").iterdir()))

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", fail)
    with pytest.raises(TransientError, match="Input/output error"):
        other.open(uri, file)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_many_threads_fetch_a_file_once(cache: PartCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, file = store_file(tmp_path / "far", "a.parquet", b"a" * 100)
    fetched: list[str] = []
    fetch = PartCache._fetch
    monkeypatch.setattr(PartCache, "_fetch", lambda self, *a: (fetched.append(a[0]), fetch(self, *a))[1])
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda _: read_cached(cache, uri, file), range(8)))
    assert contents == [b"a" * 100] * 8 and fetched == [uri]


def test_only_old_temporary_files_are_deleted(cache: PartCache, tmp_path: Path) -> None:
    young, old = (tmp_path / "cache" / name for name in (".young.tmp", ".old.tmp"))
    for path in (young, old):
        path.write_bytes(b"x" * 100)
    os.utime(old, (0, 0))
    read_cached(cache, *store_file(tmp_path / "far", "a.parquet", b"a" * 100))
    assert young.exists() and not old.exists()
