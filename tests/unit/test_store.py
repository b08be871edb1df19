"""Folder as an object store: atomic puts, S3's order of keys, and classes of errors; URIs."""

from __future__ import annotations

import multiprocessing
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.dataset.manifest import resolve_uri
from imagemill.components.storage import uri as uris
from imagemill.components.storage.errors import DatasetError, TransientError, UserError
from imagemill.components.storage.store import LocalStore, map_disk_errors

STORE = LocalStore()
PAYLOAD = 200_000
NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..")
)


def test_one_of_16_threads_puts_its_content(tmp_path: Path) -> None:
    for number in range(20):
        target = str(tmp_path / f"race-{number}" / "object")
        barrier = threading.Barrier(16)
        won: list[int] = []

        def put(value: int, target: str = target, barrier: threading.Barrier = barrier, won: list[int] = won) -> None:
            barrier.wait()
            if STORE.put_if_absent(target, bytes([value]) * PAYLOAD):
                won.append(value)

        threads = [threading.Thread(target=put, args=(value,)) for value in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert Path(target).read_bytes() == bytes(won) * PAYLOAD
        assert [path.name for path in Path(target).parent.iterdir()] == ["object"], "no temporary file is left"


def _put_objects(folder: str, value: int, ready: threading.Barrier) -> list[int]:
    wins = []
    for number in range(30):
        ready.wait()
        if LocalStore().put_if_absent(f"{folder}/{number}", bytes([value]) * PAYLOAD):
            wins.append(number)
    return wins


def _race_in_process(folder: str, value: int, ready: threading.Barrier, results: multiprocessing.Queue[object]) -> None:
    results.put((value, _put_objects(folder, value, ready)))


def test_one_of_8_processes_puts_its_content(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(8), context.Queue()
    workers = [
        context.Process(target=_race_in_process, args=(str(tmp_path), value, ready, results)) for value in range(8)
    ]
    for worker in workers:
        worker.start()
    wins = dict(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    winner = {number: value for value, numbers in wins.items() for number in numbers}
    assert sorted(winner) == list(range(30)) and sum(map(len, wins.values())) == 30
    for number, value in winner.items():
        assert (tmp_path / str(number)).read_bytes() == bytes([value]) * PAYLOAD


def test_put_if_absent_does_not_replace(tmp_path: Path) -> None:
    target = str(tmp_path / "a")
    assert STORE.put_if_absent(target, b"first")
    assert not STORE.put_if_absent(target, b"second")
    assert STORE.read(target) == b"first"


def test_put_replaces_atomically(tmp_path: Path) -> None:
    target = str(tmp_path / "hint.json")
    STORE.put(target, b"a" * PAYLOAD)
    contents, stop = set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            data = STORE.read(target)
            contents.add((data[:1], len(data), len(set(data))))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50):
        STORE.put(target, (b"a", b"b")[number % 2] * PAYLOAD)
    stop.set()
    reader.join()
    assert contents <= {(b"a", PAYLOAD, 1), (b"b", PAYLOAD, 1)}


def publish_file(tmp_path: Path, data: bytes, target: Path) -> None:
    path = STORE.scratch(str(tmp_path / "_work")) / "file"
    path.write_bytes(data)
    STORE.publish(path, str(target))
    assert not path.exists()


def test_publish_is_idempotent(tmp_path: Path) -> None:
    target = tmp_path / "data" / "part-0123.parquet"
    publish_file(tmp_path, b"content", target)
    before = target.stat()
    publish_file(tmp_path, b"content", target)
    after = target.stat()
    assert target.read_bytes() == b"content"
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns), "a second writer changes nothing"


def test_publish_replaces_a_truncated_file(tmp_path: Path) -> None:
    """The name says the content, so a file of another size under it is damage."""
    target = tmp_path / "data" / "part-0123.parquet"
    publish_file(tmp_path, b"content", target)
    target.write_bytes(b"con")
    publish_file(tmp_path, b"content", target)
    assert target.read_bytes() == b"content"


@given(st.lists(st.lists(NAMES, min_size=1, max_size=3), max_size=12))
@settings(max_examples=60, deadline=None)
def test_listing_is_in_the_order_of_s3_keys(tmp_path_factory: pytest.TempPathFactory, names: list[list[str]]) -> None:
    """S3 lists by the UTF-8 bytes of the whole key, in which `a.txt` comes before `a/b`."""
    root = tmp_path_factory.mktemp("list")
    keys = set()
    for parts in names:
        target = root.joinpath(*parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"x")
        except OSError:  # a name is both a file and a folder
            continue
        keys.add("/".join(parts))
    listed = [entry.uri.removeprefix(f"{root}/") for entry in STORE.list(str(root))]
    assert listed == sorted(keys, key=lambda key: key.encode())


def test_a_listing_has_size_and_modification_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    os.utime(tmp_path / "a", ns=(5, 1_700_000_000_123_456_789))
    (entry,) = STORE.list(f"{tmp_path}/")
    assert (entry.uri, entry.size, entry.validator) == (f"{tmp_path}/a", 3, "1700000000123456789")
    assert STORE.stat(entry.uri) == entry


def test_links_are_followed_without_cycles(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"there")
    root = tmp_path / "root"
    root.mkdir()
    (root / "file-link").symlink_to(outside / "file")
    (root / "folder-link").symlink_to(outside)
    (root / "circle").symlink_to(root)
    (root / "dangling").symlink_to(tmp_path / "nothing")
    (root / "itself").symlink_to("itself")
    os.mkfifo(root / "pipe")
    (outside / "back").symlink_to(root)
    listed = [(entry.uri, entry.size) for entry in STORE.list(str(root))]
    assert listed == [(f"{root}/file-link", 5), (f"{root}/folder-link/file", 5)]


def test_a_missing_folder_is_empty(tmp_path: Path) -> None:
    assert list(STORE.list(str(tmp_path / "no" / "such"))) == []


def test_missing_object(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for missing in (tmp_path / "no", tmp_path / "no" / "such", tmp_path / "file" / "below"):
        assert STORE.stat(str(missing)) is None
    assert STORE.stat(str(tmp_path)) is None, "a folder is no object"
    with pytest.raises(FileNotFoundError):
        STORE.read(str(tmp_path / "no"))
    with pytest.raises(FileNotFoundError):
        STORE.open(str(tmp_path / "no"))


def test_an_empty_object_opens(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert STORE.open(str(tmp_path / "empty")).read() == b""


@pytest.mark.parametrize(
    "operation",
    [
        lambda uri: STORE.read(uri),
        lambda uri: STORE.open(uri),
        lambda uri: list(STORE.list(uri)),
        lambda uri: STORE.put(uri, b""),
        lambda uri: STORE.put_if_absent(uri, b""),
        lambda uri: STORE.scratch(uri),
    ],
)
def test_path_below_a_file_is_a_user_error(tmp_path: Path, operation: Callable[[str], object]) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file/below"):
        operation(str(tmp_path / "file" / "below"))


def test_publishing_below_a_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "made").write_bytes(b"")
    with pytest.raises(UserError, match="file/below"):
        STORE.publish(tmp_path / "made", str(tmp_path / "file" / "below" / "it"))


def test_reading_a_folder_and_too_long_names_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="directory"):
        STORE.read(str(tmp_path))
    with pytest.raises(UserError, match="too long"):
        STORE.put(str(tmp_path / ("x" * 300)), b"")


def test_unwritable_folder_is_a_user_error() -> None:
    with pytest.raises((UserError, FileNotFoundError)):  # the kernel says that /proc has no such folder
        STORE.put("/proc/imagemill/file", b"")
    with pytest.raises(UserError):
        STORE.put("/sys/kernel/imagemill", b"")


def test_a_full_disk_is_transient() -> None:
    with pytest.raises(TransientError), map_disk_errors("x"), open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
        full.write(b"a")


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    """A workspace is shared: the umask decides, not tempfile's 0600."""
    STORE.put_if_absent(str(tmp_path / "a"), b"")
    (tmp_path / "plain").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_normalize_makes_paths_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somewhere")
    cwd = str(tmp_path.resolve())
    assert uris.normalize("data/../x") == f"{cwd}/x"
    assert uris.normalize("~/data") == "/somewhere/data"
    assert uris.normalize("file:///a%20b/c") == "/a b/c"
    assert uris.normalize("/a//b/") == "/a/b"
    assert uris.normalize("a b#c?d%20") == f"{cwd}/a b#c?d%20"


def test_normalize_s3() -> None:
    assert uris.normalize("s3://bucket") == uris.normalize("s3://bucket/") == "s3://bucket"
    assert uris.normalize("S3://bucket/a/b/") == "s3://bucket/a/b"


@pytest.mark.parametrize(
    "bad",
    ["gs://bucket/x", "s3://", "s3:///key", "https://host/x", "~no-such-user-anywhere/x", "a\0b", "file://host/x"],
)
def test_normalize_refuses(bad: str) -> None:
    with pytest.raises(UserError, match=r"^field: expected"):
        uris.normalize(bad, "field")


def test_normalize_redacts_secrets() -> None:
    with pytest.raises(UserError) as caught:
        uris.normalize("https://me:hunter2@host/x?signature=hunter2", "workspace")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("base", ["/w/clean/01", "s3://bucket/w/clean/01", "s3://bucket/clean/01"])
def test_join_and_relative_are_inverse(base: str) -> None:
    root = base.removesuffix("/clean/01")
    assert uris.join(base, "data", "x.parquet") == f"{base}/data/x.parquet"
    assert uris.join(base, "../../raw/02") == f"{root}/raw/02"
    assert uris.relpath(f"{root}/raw/02", base) == "../../raw/02"
    assert uris.join(base, uris.relpath(f"{root}/raw/02", base)) == f"{root}/raw/02"


@pytest.mark.parametrize(("first", "second"), [("/a", "s3://b/a"), ("s3://b/a", "/a"), ("s3://b/a", "s3://c/a")])
def test_relative_path_between_stores_is_refused(first: str, second: str) -> None:
    with pytest.raises(ValueError, match="different stores"):
        uris.relpath(first, second)


SECRET = st.text(min_size=6, max_size=20).map(lambda text: "S3CR3T" + text)
KINDS = st.sampled_from(["http", "https", "HTTPS", "ftp", "s3", "gs"])


@given(KINDS, SECRET, SECRET, st.sampled_from(["", ":8080"]))
def test_redact_removes_secrets(kind: str, password: str, token: str, port: str) -> None:
    user, token = quote(password, safe=""), quote(token, safe="")
    for login in (f"me:{user}@", f"{user}@", f"{user}:x@"):
        redacted = uris.redact(f"{kind}://{login}host{port}/a/b.tar?token={token}#x")
        if kind != "s3":  # there a question mark is part of the key
            assert "S3CR3T" not in redacted
        assert user not in redacted and f"://host{port}/a/b.tar" in redacted


@pytest.mark.parametrize(
    "uri", ["http://me:S3CR3T/x@host/", "http://me:S3CR3T?x@host/", "http://me:S3CR3T#x@host/", "http://[S3CR3T"]
)
def test_redact_removes_unquoted_secrets(uri: str) -> None:
    assert "S3CR3T" not in uris.redact(uri)


@pytest.mark.parametrize(
    "uri", ["/a/b c?d#e", "s3://bucket/a?b#c@d", "http://[::1]:9000/x", "https://host/~me/a@b.tar"]
)
def test_redact_keeps_other_uris(uri: str) -> None:
    assert uris.redact(uri) == uri


@pytest.mark.parametrize(
    "escape", ["../../x", "a/../../x", "/etc/passwd", "s3://bucket/x", "./../../x", "../a/../../x"]
)
def test_uri_outside_the_workspace_is_refused(escape: str) -> None:
    with pytest.raises(DatasetError, match="not a relative URI"):
        resolve_uri("/w/clean/01", escape, up=1)


def test_scratch_of_a_killed_step_is_deleted(tmp_path: Path) -> None:
    store = LocalStore()
    old, fresh = store.scratch(str(tmp_path)), store.scratch(str(tmp_path))
    (old / "shard.parquet").write_bytes(b"half")
    os.utime(old, (0, 0))
    newest = store.scratch(str(tmp_path))
    assert not old.exists() and fresh.exists() and newest.exists()
