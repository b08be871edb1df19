"""Names of exported files and folders: safe wherever they lead, and never the same twice."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import exports
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imagemill.components.export import imagefolder as names

DEVICES = {"con", "prn", "aux", "nul", "com1", "lpt9"}
text = st.text(
    alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("./_-\\~ aA\0")), max_size=40
)


def assert_safe(name: str) -> None:
    assert name and len(name.encode()) <= 200
    assert not set(name) & set('/\\\0\n\r:*?"<>|') and name.isprintable()
    assert not name.startswith((".", "-", " ", "__")) and not name.endswith((".", " ")) and ".." not in name
    assert name.partition(".")[0].strip().casefold() not in DEVICES
    assert unicodedata.normalize("NFC", name) == name


@given(text, st.integers(0, 3), st.booleans())
@example("../../x", 0, False)
@example("con.tar.gz", 0, False)
@example("x" * 300, 0, False)
def test_file_names_are_safe_for_every_id(image_id: str, copy: int, taken: bool) -> None:
    assert_safe(names.make_image_name(image_id, copy, taken))


@given(st.lists(text, unique=True, max_size=8))
@example(["a/b.jpg", "a__b.jpg", "a_/b.jpg", "a.jpg", "a.png", "A.JPG"])
def test_names_within_a_folder_differ_without_regard_to_case(ids: list[str]) -> None:
    keys = [names.hash_kept_name("train/c", image_id, 0) for image_id in ids]
    file_names = [
        names.make_image_name(image_id, 0, keys.count(key) > 1) for image_id, key in zip(ids, keys, strict=True)
    ]
    folded = [unicodedata.normalize("NFC", name.casefold()) for name in file_names]
    assert len(set(folded)) == len(ids)


@given(st.lists(text, unique=True, max_size=8))
@example(list(exports.EVIL_CLASSES))
def test_classes_have_folders_of_their_own(classes: list[str]) -> None:
    folders = names.make_class_folders(tuple(classes))
    for name in folders:
        assert_safe(name)
    assert len({unicodedata.normalize("NFC", name.casefold()) for name in folders}) == len(classes)


def test_id_equal_to_a_generated_name_gets_another_name() -> None:
    name = names.make_image_name("../x.jpg", 0, False)
    assert names.make_image_name(f"{name}.jpg", 0, False) != name


@pytest.mark.parametrize(
    ("image_id", "name"),
    [("Abyssinian_101.jpg", "Abyssinian_101"), ("cat/001.jpeg", "cat__001"), ("日本/写真.png", "日本__写真"),
     ("v1.2 b", "v1.2 b")],
)  # fmt: skip
def test_a_usual_id_stays_readable(image_id: str, name: str) -> None:
    assert names.make_image_name(image_id, 0, False) == name
    assert names.make_image_name(image_id, 2, False) == f"{name}-copy2"


def test_nothing_leaves_the_output(tmp_path: Path) -> None:
    source = exports.clean_evil(str(tmp_path / "w" / "clean" / "01"))
    before = set(tmp_path.rglob("*"))
    for form in ("imagefolder", "webdataset", "tfrecord", "huggingface"):
        exports.run(source, form, tmp_path / "out" / form)
    new = {p for p in tmp_path.rglob("*") if p not in before}
    assert all(p == tmp_path / "out" or (tmp_path / "out") in p.parents for p in new)
    assert not any(p.is_symlink() for p in new)
