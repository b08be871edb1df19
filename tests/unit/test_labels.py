"""Labels: what a folder, a file name or a table says of a file, and how a wrong table is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.download.columns import read_table
from imagemill.components.download.config import DownloadConfig
from imagemill.components.download.dataset_kinds import (
    FilenameLabeller,
    FolderLabeller,
    Labels,
    TableLabeller,
    open_dataset,
)
from imagemill.components.storage.errors import UserError

JPEG = b"\xff\xd8\xff\xe0"


@pytest.mark.parametrize(
    ("path", "label", "split"),
    [
        ("cat/1.jpg", "cat", None),
        ("a/b/cat/1.jpg", "cat", None),
        ("1.jpg", None, None),
        ("train/cat/1.jpg", "cat", "train"),
        ("Valid/cat/1.jpg", "cat", "val"),
        ("TESTING/cat/1.jpg", "cat", "test"),
        ("pets/train/cat/1.jpg", "cat", "train"),
        ("a/b/train/cat/1.jpg", "cat", None),
        ("test/1.jpg", "test", None),
        ("./train//cat/../dog/1.jpg", "dog", "train"),
        ("train\\cat\\1.jpg", "cat", "train"),
    ],
)
def test_folder_labels(path: str, label: str | None, split: str | None) -> None:
    assert FolderLabeller().labels(path, 0) == Labels(label, split)


@pytest.mark.parametrize(
    ("pattern", "path", "label"),
    [
        (DownloadConfig.label_pattern, "images/Egyptian_Mau_14.jpg", "Egyptian_Mau"),
        (DownloadConfig.label_pattern, "images/noname.jpg", None),
        (r"^(\d+)-(?P<label>[a-z]+)", "12-cat.jpg", "cat"),
        (r"(cat)?x", "x.jpg", None),
        (r"()x", "x.jpg", None),
    ],
)
def test_filename_labels(pattern: str, path: str, label: str | None) -> None:
    assert FilenameLabeller(pattern).labels(path, 0) == Labels(label)


@pytest.mark.parametrize("pattern", ["([", "nogroup", "(?:x)", "(a){99999999999}", "(" * 5000])
def test_a_wrong_label_pattern_is_the_users_error(pattern: str) -> None:
    with pytest.raises(UserError, match=r"^label_pattern: expected a regular expression"):
        DownloadConfig(dataset="filename", source="x", label_pattern=pattern).check()


@settings(deadline=None)
@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_folder_labels_are_part_of_the_path(folder: str, name: str) -> None:
    label = FolderLabeller().labels(f"{folder}/{name}", 0).label
    assert label is None or label != ""


PLAIN = [{"path": "a.jpg", "label": "cat"}]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"path,label\na.jpg,cat\n", PLAIN),
        (b"\xef\xbb\xbfpath,label\r\na.jpg,cat\r\n", PLAIN),
        (b"path;label\na.jpg;cat\n", PLAIN),
        (b"path\tlabel\na.jpg\tcat", PLAIN),
        (b' "Path" , LABEL\n"a.jpg","cat"\n', PLAIN),
        (b'label,path\n"a ""big"", old\ncat","x,y.jpg"\n', [{"label": 'a "big", old\ncat', "path": "x,y.jpg"}]),
        (
            b"path,label\na,007\nb,NA\nc,\n",
            [{"path": p, "label": t} for p, t in (("a", "007"), ("b", "NA"), ("c", ""))],
        ),
    ],
    ids=["plain", "BOM and CRLF", "semicolon", "tab", "quotes", "separators and newlines in quotes", "numbers and NA"],
)
def test_forms_of_a_table(data: bytes, expected: list[dict[str, str]]) -> None:
    assert read_table(data, "t.csv").to_pylist() == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"file,label\na,b\n", "a column named path"),
        (b"path,class\na,b\n", "a column named label"),
        (b"", "a column named path"),
        (b"path,label\n", "at least one row"),
        (b"path,label\na,b\nc\n", "2 columns"),
        (b"path,label\na,b,c\n", "2 columns"),
        (b"path,label,path\na,b,c\n", "one column named 'path'"),
        (b"path,label\na,b\n  ,c\n", r"line 3 \(path\)"),
        (b"path,label\na\0b,c\n", r"line 2 \(path\)"),
        (b"path,label\na,b\nftp://h/x,c\n", "found 'ftp://"),
        (b"path,label,split\na,b,sometimes\n", "sometimes"),
        (b"path,label\na,caf\xe9\n", "UTF8"),
        ("path,label\na,b\n".encode("utf-16"), "a column named path"),
    ],
)
def test_error_of_a_table_names_line_and_column(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_table(data, "t.csv")
    assert str(error.value).startswith("t.csv")


def test_table_labels_and_splits_are_trimmed_and_mapped() -> None:
    labeller = TableLabeller(read_table(b"path,label,split\na, cat ,Dev\nb,,\nc,dog,trainval\n", "t.csv"))
    labels = [labeller.labels("", number) for number in range(3)]
    assert labels == [Labels("cat", "val"), Labels(None, None), Labels("dog", "trainval")]


def test_table_has_group_and_boxes_and_empty_cells_are_none() -> None:
    sides = b"1,2,3,4.5"
    data = b"path,label,group,xmin,ymin,xmax,ymax\na,cat, p1 ," + sides + b"\nb,dog, ,,,,\na,cat,p1,5,6,7,8\n"
    labeller = TableLabeller(read_table(data, "t.csv"))
    first = {"name": "", "xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4.5}
    second = {"name": "", "xmin": 5, "ymin": 6, "xmax": 7, "ymax": 8}
    assert labeller.labels("", 0) == Labels("cat", boxes=[first, second], group="p1")
    assert labeller.labels("", 1) == Labels("dog")


def test_several_labels_in_a_cell_are_kept_as_text() -> None:
    labeller = TableLabeller(read_table(b"path,label\na, cat | dog;x \nb,|\n", "t.csv"))
    assert [labeller.labels("", n).label for n in range(2)] == ["cat | dog;x", "|"]


def write(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(JPEG)
    return folder


def opened(tmp_path: Path, **values: str) -> None:
    open_dataset(DownloadConfig(workspace=str(tmp_path / "ws"), **values))  # type: ignore[arg-type]


def unreadable(*_: object) -> bytes:
    raise AssertionError("an image was read")


@pytest.mark.parametrize("dataset", ["folder", "filename", "csv"])
def test_one_class_is_refused_before_anything_is_read(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in", "cat/cat_1.jpg", "cat/cat_2.jpg")
    if dataset == "csv":
        source = source / "t.csv"
        source.write_text("path,label\ncat/cat_1.jpg,cat\ncat/cat_2.jpg, cat\n")
    monkeypatch.setattr("imagemill.components.download.sources.ListingSource._read", unreadable)
    monkeypatch.setattr("imagemill.components.download.table.TableSource._read", unreadable)
    with pytest.raises(UserError, match=r"at least two classes .* found only 'cat'"):
        opened(tmp_path, dataset=dataset, source=str(source))


@pytest.mark.parametrize(
    ("labels", "refused"),
    [(["a|b", "b"], ""), (["a|b", "b|a"], ""), (["a|b", "a|b "], "only 'a|b'"), (["a|b", ""], "only 'a|b'")],
)
def test_a_table_of_several_labels_needs_two_different_cells(labels: list[str], refused: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in", "0.jpg", "1.jpg") / "t.csv"
    source.write_text("path,label\n" + "".join(f"{n}.jpg,{label}\n" for n, label in enumerate(labels)))
    if refused:
        with pytest.raises(UserError, match=f"at least two classes .* found {re.escape(refused)}"):
            opened(tmp_path, dataset="csv", source=str(source))
    else:
        opened(tmp_path, dataset="csv", source=str(source))


def test_files_in_no_folder_have_no_class(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one folder a class.*found none"):
        opened(tmp_path, dataset="folder", source=str(write(tmp_path / "in", "1.jpg", "2.jpg")))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "a folder or archive that is there"),
        ("empty", "with nothing in it"),
        ("text", "with no image in it"),
    ],
)
def test_folder_without_images_is_a_user_error(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "text", "cat/a.txt", ".hidden/cat/1.jpg")
    with pytest.raises(UserError, match=message):
        opened(tmp_path, dataset="folder", source=str(tmp_path / source))


@pytest.mark.parametrize("dataset", ["folder", "filename", "csv"])
def test_a_source_is_needed(dataset: str) -> None:
    with pytest.raises(UserError, match=r"^source: "):
        DownloadConfig(dataset=dataset).check()


def test_a_source_beside_the_demo_is_refused_without_its_password() -> None:
    with pytest.raises(UserError, match="nothing with --dataset demo") as error:
        DownloadConfig(source="http://me:s3cr3t@host/x?s3cr3t").check()
    assert "s3cr3t" not in str(error.value)
    with pytest.raises(UserError, match="a path, s3://") as error:
        DownloadConfig(dataset="folder", source="ftp://me:s3cr3t@host/x").check()
    assert "s3cr3t" not in str(error.value)
