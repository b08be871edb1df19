"""Oxford-IIIT Pet: splits, boxes and trimaps, of a small archive pair."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from test_archives import make_tar

from imagemill.components.dataset.index import read_rows
from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.download.config import DownloadConfig
from imagemill.components.download.dataset_kinds import parse_boxes, read_annotations
from imagemill.components.download.download import download
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import UserError

JPEG = b"\xff\xd8\xff\xe0"


def make_xml(*boxes: tuple[str, str]) -> bytes:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{left}</xmin><ymin>2</ymin><xmax>30.7</xmax><ymax>40</ymax></bndbox></object>"
        for name, left in boxes
    )
    return f"<annotation>{objects}</annotation>".encode()


IMAGES = {
    "images/Great_Pyrenees_1.jpg": JPEG + b"1",
    "images/Great_Pyrenees_2.jpg": JPEG + b"2",
    "images/pug_10.jpg": JPEG + b"3",
    "images/pug_11.jpg": JPEG + b"4",
    "images/pug_10.mat": b"MATLAB",
}
ANNOTATIONS = {
    "annotations/trainval.txt": b"#Image CLASS-ID\nGreat_Pyrenees_1 1 2 1\npug_10 2 2 2\n\n",
    "annotations/test.txt": b"Great_Pyrenees_2 1 2 1\n",
    "annotations/xmls/pug_10.xml": make_xml(("dog", "1.1"), ("dog", "5")),
    "annotations/xmls/._pug_10.xml": b"junk",
    "annotations/trimaps/pug_10.png": b"\x89PNG trimap",
    "annotations/trimaps/._pug_11.png": b"junk",
    "annotations/._trimaps": b"junk",
}


def write_archives(folder: Path, annotations: dict[str, bytes] = ANNOTATIONS, compress: bool = False) -> Path:
    """Write plain tar files under the name `.tar.gz`, as the official ones sometimes are, or gzipped ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, files in (("images", IMAGES), ("annotations", annotations)):
        data = make_tar(files)
        (folder / f"{name}.tar.gz").write_bytes(gzip.compress(data) if compress else data)
    return folder


def run_download(workspace: Path, **values: str) -> tuple[Dataset, dict[str, dict[str, Any]]]:
    opened = Workspace.open(str(workspace))
    config = DownloadConfig(dataset="pets", workspace=str(workspace), **values)  # type: ignore[arg-type]
    dataset = read_dataset(download(config, Context("download", opened, "run", False)).uri, "raw")
    rows: dict[str, dict[str, Any]] = {}
    for table in read_rows(dataset, ["image_id", "image", "sha256", "label", "split", "boxes", "mask"]):
        rows |= {row["image_id"]: row for row in table.to_pylist()}
    return dataset, rows


@pytest.mark.parametrize("compress", [False, True], ids=["plain tar named .tar.gz", "gzipped"])
def test_archives_give_labels_splits_boxes_and_masks(tmp_path: Path, compress: bool) -> None:
    dataset, rows = run_download(tmp_path / "ws", source=str(write_archives(tmp_path / "in", compress=compress)))
    assert {name: (row["label"], row["split"]) for name, row in rows.items()} == {
        "images/Great_Pyrenees_1.jpg": ("Great_Pyrenees", "trainval"),
        "images/Great_Pyrenees_2.jpg": ("Great_Pyrenees", "test"),
        "images/pug_10.jpg": ("pug", "trainval"),
        "images/pug_11.jpg": ("pug", None),
    }
    boxes = rows["images/pug_10.jpg"]["boxes"]
    assert [(b["name"], round(b["xmin"], 4), round(b["xmax"], 4)) for b in boxes] == [
        ("dog", 1.1, 30.7),
        ("dog", 5.0, 30.7),
    ]
    assert {name: row["mask"] for name, row in rows.items() if row["mask"]} == {"images/pug_10.jpg": b"\x89PNG trimap"}
    assert rows["images/pug_11.jpg"]["boxes"] == []
    assert list(dataset.manifest.extra.skipped.files) == [
        {"path": "images/pug_10.mat", "why": "no image by name or content"}
    ]


def test_other_annotations_give_another_raw_dataset(tmp_path: Path) -> None:
    first, _ = run_download(tmp_path / "ws", source=str(write_archives(tmp_path / "in")))
    changed = ANNOTATIONS | {"annotations/xmls/pug_10.xml": make_xml(("dog", "1.2"))}
    second, rows = run_download(tmp_path / "ws", source=str(write_archives(tmp_path / "in2", changed)))
    assert second.fingerprint != first.fingerprint
    assert len(rows["images/pug_10.jpg"]["boxes"]) == 1


def test_annotations_may_be_elsewhere_and_the_source_an_archive(tmp_path: Path) -> None:
    beside, _ = run_download(tmp_path / "ws", source=str(write_archives(tmp_path / "in") / "images.tar.gz"))
    moved = (tmp_path / "in" / "annotations.tar.gz").rename(tmp_path / "a.tar")
    elsewhere, _ = run_download(tmp_path / "ws2", source=str(tmp_path / "in" / "images.tar.gz"), annotations=str(moved))
    assert beside.fingerprint == elsewhere.fingerprint


@pytest.mark.parametrize(("missing", "field"), [("images", "source"), ("annotations", "annotations")])
def test_a_missing_archive_is_named(tmp_path: Path, missing: str, field: str) -> None:
    source = write_archives(tmp_path / "in")
    (source / f"{missing}.tar.gz").unlink()
    with pytest.raises(UserError, match=rf"^{field}: .*{missing}\.tar\.gz"):
        run_download(tmp_path / "ws", source=str(source))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations/test.txt": b"pug_10 1 1 1\n"}, r"test.txt, line 1: pug_10 is in trainval.txt and in test.txt"),
        ({"annotations/xmls/pug_10.xml": b"<annotation>"}, r"pug_10.xml: expected Pascal VOC XML"),
        ({"annotations/xmls/pug_10.xml": make_xml(("dog", ""))}, r"pug_10.xml: expected Pascal VOC XML"),
    ],
)
def test_invalid_annotations_are_named(tmp_path: Path, change: dict[str, bytes], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_download(tmp_path / "ws", source=str(write_archives(tmp_path / "in", ANNOTATIONS | change)))


def test_archive_without_lists_is_a_user_error(tmp_path: Path) -> None:
    files = {name: data for name, data in ANNOTATIONS.items() if not name.endswith("test.txt")}
    write_archives(tmp_path, files)
    with pytest.raises(UserError, match=r"^annotations: expected an archive with test\.txt"):
        read_annotations(str(tmp_path / "annotations.tar.gz"))


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e39", "one", ""])
def test_box_requires_finite_numbers(number: str) -> None:
    with pytest.raises(UserError, match="expected Pascal VOC XML"):
        parse_boxes(make_xml(("dog", number)), "x.xml")


def test_xml_entities_are_not_expanded() -> None:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    text = f'<!DOCTYPE a [<!ENTITY l0 "lol">{laughs}]><annotation><object><name>&l11;</name></object></annotation>'
    with pytest.raises(UserError):
        parse_boxes(text.encode(), "x.xml")
    with pytest.raises(UserError, match="at most 1,048,576 bytes"):
        parse_boxes(bytes(2**20 + 1), "x.xml")
