"""Sources: normal names, what is an image candidate, and the same members from every kind of place."""

from __future__ import annotations

import os
import posixpath
import tarfile
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from downloading import write
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.download import sources
from imagemill.components.download import table as table_module
from imagemill.components.download.archives import PATH_LIMIT, Member, Skipped, classify, normalize_path
from imagemill.components.download.config import DownloadConfig
from imagemill.components.download.dataset_kinds import FilenameLabeller
from imagemill.components.download.sources import ArchiveSource, ListingSource, open_source
from imagemill.components.download.streams import read_small
from imagemill.components.download.table import TableSource
from imagemill.components.storage.errors import TransientError, UserError
from imagemill.components.storage.uri import is_hidden

JPEG = b"\xff\xd8\xff\xe0"
SURROGATES = st.text(st.characters(exclude_categories=()), max_size=60)
PATHS = st.lists(
    st.sampled_from(["a", "B.jpg", "..", ".", "", "e\u0301", "\udce9", "\ud800", "C:", "\\", " "]), max_size=8
)


@settings(deadline=None)
@given(SURROGATES | PATHS.map("/".join) | PATHS.map("\\".join))
def test_image_id_is_idempotent_relative_and_valid_utf8(path: str) -> None:
    image_id = normalize_path(path)
    assert normalize_path(image_id) == image_id
    assert image_id.encode().decode() == image_id
    assert not image_id.startswith("/") and "\\" not in image_id
    assert not {"", ".", ".."} & set(image_id.split("/")) or image_id == ""


@settings(deadline=None)
@given(st.lists(st.text("abcé. -_", min_size=1, max_size=8), min_size=1, max_size=5).map("/".join))
def test_image_id_keeps_a_normal_path(path: str) -> None:
    if posixpath.normpath(path) == path and not path.startswith(("/", ".")):
        assert normalize_path(path) == path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("./a//x.jpg", "a/x.jpg"),
        ("/abs/x.jpg", "abs/x.jpg"),
        ("../../etc/x.jpg", "etc/x.jpg"),
        ("a/../b/x.jpg", "b/x.jpg"),
        ("C:\\cats\\x.jpg", "C:/cats/x.jpg"),
        ("e\u0301.jpg", "é.jpg"),
        (os.fsdecode(b"ni\xf1o/\xc3\xbc.jpg"), "niño/ü.jpg"),
        ("..", ""),
    ],
)
def test_image_id_by_example(path: str, expected: str) -> None:
    assert normalize_path(path) == expected


def test_names_in_latin_1_stay_different() -> None:
    assert normalize_path(os.fsdecode(b"caf\xe9.jpg")) != normalize_path(os.fsdecode(b"caf\xe8.jpg"))


@pytest.mark.parametrize(
    ("path", "hidden"),
    [(".DS_Store", True), ("a/._x.jpg", True), (".git/x.jpg", True), ("__MACOSX/a/x.jpg", True),
     ("a/x.jpg", False), ("a.b/x.y.jpg", False), ("../x.jpg", False), ("./x.jpg", False)],
)  # fmt: skip
def test_hidden_files(path: str, hidden: bool) -> None:
    assert is_hidden(path) is hidden


@pytest.mark.parametrize(
    ("path", "data", "reason"),
    [
        ("x.JPG", b"no image at all", ""),
        ("noending", JPEG, ""),
        ("x.txt", JPEG, ""),
        ("x.txt", b"text", "no image by name or content"),
        ("x", b"", "no image by name or content"),
        ("a\\.hidden\\x.jpg", JPEG, "a hidden file"),
        ("../..", JPEG, "a name that is no path"),
        ("x" * (PATH_LIMIT + 1) + ".jpg", JPEG, "a name longer than any path"),
    ],
)
def test_files_are_classified_as_candidates_or_skipped(path: str, data: bytes, reason: str) -> None:
    candidate = classify(path, data)
    assert (candidate.why if isinstance(candidate, Skipped) else "") == reason
    assert len(candidate.path) <= PATH_LIMIT


@pytest.mark.parametrize("unit", ["a", "_1", "_", "1_", "_1."])
def test_the_default_label_pattern_is_quick_on_the_longest_names(unit: str) -> None:
    started = time.thread_time()
    FilenameLabeller(DownloadConfig.label_pattern).labels((unit * PATH_LIMIT)[:PATH_LIMIT], 0)
    assert time.thread_time() - started < 2


FILES = {
    "cat/1.jpg": JPEG + b"1",
    "cat/2.jpg": b"broken",
    "dog/noending": JPEG + b"2",
    "dog/notes.txt": b"text",
    "dog/._1.jpg": JPEG,
    ".git/x.jpg": JPEG,
}


def make_tar(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w") as archive:
        archive.add(folder, ".")
    return target


def by_path(items: list[Member | Skipped]) -> dict[str, bytes | str | None]:
    return {item.path: item.why if isinstance(item, Skipped) else item.data for item in items}


def test_a_folder_and_its_tar_hold_the_same(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", FILES)
    listed = by_path(list(ListingSource(str(folder), 3).members()))
    assert listed == by_path(list(ArchiveSource(str(make_tar(folder, tmp_path / "x.tar"))).members()))
    assert listed["cat/2.jpg"] == b"broken" and listed["dog/noending"] == JPEG + b"2"
    assert listed["dog/notes.txt"] == "no image by name or content"
    assert listed["dog/._1.jpg"] == listed[".git/x.jpg"] == "a hidden file"


def test_a_file_above_the_limit_is_skipped_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 100)
    folder = write(tmp_path / "in", {"a/big.jpg": bytes(101), "a/fits.jpg": bytes(100)})
    items = list(ListingSource(str(folder), 3).members())
    assert isinstance(items[0], Skipped) and "101 bytes" in items[0].why
    assert isinstance(items[1], Member)


def test_folder_that_changes_while_it_is_read_is_transient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "in", {"a/1.jpg": JPEG, "a/2": JPEG})
    source = ListingSource(str(folder), 1)
    entries = list(source._entries())
    monkeypatch.setattr(source, "_entries", lambda: iter(entries))
    Path(entries[0].uri).write_bytes(JPEG[::-1])
    with pytest.raises(TransientError, match="changed while"):
        list(source.members())
    Path(entries[0].uri).unlink()
    with pytest.raises(TransientError, match="gone since"):
        list(source.members())


def test_workspace_inside_the_source_is_skipped(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"cat/1.jpg": JPEG, "dog/1.jpg": JPEG, "mill/raw/x.jpg": JPEG, "mill2/x.jpg": JPEG})
    source = ListingSource(str(folder), 1, str(folder / "mill"))
    before = source.listing()
    write(folder, {"mill/raw/y.jpg": JPEG})
    assert source.listing() == before
    names = ["cat/1.jpg", "dog/1.jpg", "mill2/x.jpg"]
    assert sorted(by_path(list(source.members()))) == sorted(source.paths()) == names


def test_files_without_an_ending_are_listed(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"cat/1": JPEG, "dog/notes.txt": b""})
    assert isinstance(open_source(str(folder), 1), ListingSource)
    assert list(ListingSource(str(folder), 1).paths()) == ["cat/1"]


def test_file_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"a/x.jpg": JPEG})
    (folder / os.fsdecode(b"a/caf\xe9.jpg")).write_bytes(JPEG)
    assert list(by_path(list(ListingSource(str(folder), 1).members()))) == ["a/café.jpg", "a/x.jpg"]
    assert ListingSource(str(folder), 1).listing()


@pytest.mark.parametrize("change", ["grows", "shrinks"])
def test_archive_that_changes_while_it_is_read_is_transient(tmp_path: Path, change: str) -> None:
    folder = write(tmp_path / "in", FILES if change == "grows" else {f"a/{n}.jpg": bytes(3 * 2**20) for n in range(4)})
    target = make_tar(folder, tmp_path / "x.tar")
    members = ArchiveSource(str(target)).members()
    next(members)
    os.truncate(target, target.stat().st_size + 4 if change == "grows" else 2**20)
    with pytest.raises(TransientError, match="changed while it was read"):
        list(members)


def test_zip_with_an_unnamed_file_is_damaged(tmp_path: Path) -> None:
    """`ZipInfo.is_dir` looks at the last character of the name."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("cat/1.jpg", JPEG)
    data = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(data.replace(b"cat/1.jpg", b"\0at/1.jpg"))
    with pytest.raises(UserError, match="found one that is damaged"):
        list(ArchiveSource(str(tmp_path / "x.zip")).members())


def make_table_source(uri: str, *paths: str, masks: tuple[str, ...] = ()) -> TableSource:
    columns = {"path": paths} | ({"mask": masks} if masks else {})
    return TableSource(
        uri, "".join(paths).encode(), pa.table(columns, pa.schema(dict.fromkeys(columns, pa.string()))), 2
    )


def test_paths_of_a_table_may_be_relative_absolute_or_of_windows(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"sub/1.jpg": JPEG + b"1", "2.jpg": JPEG + b"2"})
    uri = str(folder / "sub" / "t.csv")
    absolute = str(folder / "2.jpg")
    items = list(
        make_table_source(
            uri, "1.jpg", "../2.jpg", absolute, "..\\sub\\1.jpg", f"file://{absolute}", "no.jpg", ".."
        ).members()
    )
    assert [m.data for m in items if isinstance(m, Member)] == [
        JPEG + b"1", JPEG + b"2", JPEG + b"2", JPEG + b"1", JPEG + b"2", None, None,
    ]  # fmt: skip
    assert [m.path for m in items][:4] == ["1.jpg", "2.jpg", absolute[1:], "sub/1.jpg"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("1.jpg", "http://me:pw@host/data/1.jpg"),
        ("/etc/passwd", "http://me:pw@host/etc/passwd"),
        ("../x/ü #1?.jpg", "http://me:pw@host/x/%C3%BC%20%231%3F.jpg"),
        ("a\\b.jpg", "http://me:pw@host/data/a/b.jpg"),
        ("https://other/y.jpg", "https://other/y.jpg"),
    ],
)
def test_paths_of_a_table_behind_http_are_relative_to_its_url(path: str, expected: str) -> None:
    assert make_table_source("http://me:pw@host/data/t.csv?token=a/b", path)._locate(path) == expected


def test_a_table_behind_http_cannot_name_a_local_file() -> None:
    with pytest.raises(UserError, match="behind http"):
        make_table_source("http://host/t.csv", "x")._locate("file:///etc/passwd")


def test_ids_of_urls_hide_password_and_query_and_stay_different() -> None:
    name = make_table_source("/t.csv", "x")._make_image_id
    assert name("http://me:pw@host:8/a/1.jpg") == "http://host:8/a/1.jpg"
    assert name("http://host/get?id=1") != name("http://host/get?id=2")
    assert "id=" not in name("http://host/get?id=1")
    assert name("s3://bucket//a/1.jpg") == "s3://bucket//a/1.jpg"


def test_masks_of_a_table_are_read_with_their_images(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"sub/1.jpg": JPEG, "m/1.png": b"one", "sub/2.png": b"two", "empty.png": b""})
    masks = ("../m/1.png", "2.png", str(folder / "m" / "1.png"), f"file://{folder}/sub/2.png", "", " ", "../empty.png")
    source = make_table_source(str(folder / "sub" / "t.csv"), *["1.jpg"] * 7, masks=masks)
    members = list(source.members())
    expected = [b"one", b"two", b"one", b"two", None, None, b""]
    assert members == [Member("1.jpg", JPEG, mask) for mask in expected]
    assert list(source.members([5, 6])) == members[5:]


def test_missing_or_too_large_mask_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "MAX_FILE_BYTES", 4)
    folder = write(tmp_path / "in", {"1.jpg": JPEG, "big.png": b"12345", "fits.png": b"1234", "folder/x": b""})
    masks = ("big.png", "fits.png", "none.png", "folder", "none.png")
    source = make_table_source(str(folder / "t.csv"), *["1.jpg"] * 4, "none.jpg", masks=masks)
    big, fits, missing, no_file, no_image = source.members()
    assert big == Member("1.jpg", JPEG, None, Skipped("big.png", "5 bytes, larger than any image may be"))
    assert fits == Member("1.jpg", JPEG, b"1234")
    assert missing == Member("1.jpg", JPEG, None, Skipped("none.png", "not there"))
    assert no_file == Member("1.jpg", JPEG, None, Skipped("folder", "not there"))
    assert no_image == Member("none.jpg", None), "without an image nobody misses its mask"


def test_invalid_mask_is_refused() -> None:
    for uri, mask in (("http://127.0.0.1:9/t.csv", "file:///etc/passwd"), ("s3://bucket/t.csv", "/etc/passwd")):
        with pytest.raises(UserError, match=r"^mask: "):
            list(make_table_source(uri, "x", masks=(mask,)).list_uris())
        with pytest.raises(UserError, match=r"^mask: "):
            make_table_source(uri, "x", masks=(mask,))._add_mask(Member("x", JPEG), mask)
    with pytest.raises(UserError, match=r"^mask: expected a http URL with a host"):
        make_table_source("/t.csv", "x")._add_mask(Member("x", JPEG), "http:///1.png")


def test_small_file_is_limited_in_size_and_required(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"12345")
    assert read_small(str(tmp_path / "t.csv"), "source", 5) == b"12345"
    with pytest.raises(UserError, match="at most 4 bytes"):
        read_small(str(tmp_path / "t.csv"), "source", 4)
    for missing, ending in ((tmp_path / "none.csv", "none.csv'$"), (tmp_path, r"' \(a folder\)$")):
        with pytest.raises(UserError, match=rf"^source: expected a file that is there, found .*{ending}"):
            read_small(str(missing), "source")


def test_member_named_like_a_url_is_a_relative_path() -> None:
    assert classify("http://host/../x.jpg", JPEG) == Member("http:/x.jpg", JPEG)
