"""Oxford-IIIT Pet: splits, boxes and trimaps, of a small archive pair and of a real sample."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from test_archives import make_tar

from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.dataset.shards import read_columns
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.download.config import DownloadConfig
from imagemill.components.download.dataset_kinds import parse_boxes, read_annotations
from imagemill.components.download.raw import download
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import UserError

JPEG = b"\xff\xd8\xff\xe0"
SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "pets"


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
    for table in read_columns(dataset, "data", ["image_id", "image", "sha256", "label", "split", "boxes", "mask"]):
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


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, dict[str, Any]]]:
    if not (SAMPLE / "images.tar.gz").exists():
        pytest.skip("the shared sample of Oxford-IIIT Pet is not beside the repository")
    return run_download(tmp_path_factory.mktemp("sample"), source=str(SAMPLE))


def read_annotation_files() -> dict[str, bytes]:
    with tarfile.open(SAMPLE / "annotations.tar.gz") as archive:
        members = [m for m in archive if m.isfile() and not m.name.rpartition("/")[2].startswith("._")]
        return {m.name: (archive.extractfile(m) or io.BytesIO()).read() for m in members}


def test_sample_has_all_images_unchanged(sample: tuple[Dataset, dict[str, dict[str, Any]]]) -> None:
    dataset, rows = sample
    with (SAMPLE / "MANIFEST.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    listed_hashes = {row["sha256"] for row in listed if row["sha256"]}
    assert len(rows) == 337 == dataset.manifest.totals.rows
    assert len(dataset.manifest.classes) == 37
    for row in rows.values():
        assert hashlib.sha256(row["image"]).hexdigest() == row["sha256"]
        assert row["sha256"] in listed_hashes
    assert sorted(f["path"] for f in dataset.manifest.extra.skipped.files) == [
        f"images/Abyssinian_10{n}.mat" for n in range(3)
    ]


def test_splits_of_the_sample_are_its_lists(sample: tuple[Dataset, dict[str, dict[str, Any]]]) -> None:
    _, rows = sample
    lists = {
        stem: split
        for split in ("trainval", "test")
        for line in read_annotation_files()[f"annotations/{split}.txt"].decode().splitlines()
        if (stem := line.split(" ")[0]) and not line.startswith("#")
    }
    assert {name: row["split"] for name, row in rows.items()} == {name: lists.get(Path(name).stem) for name in rows}
    assert {Path(name).stem for name, row in rows.items() if row["split"] is None} == {"Abyssinian_34", "Abyssinian_82"}


def test_boxes_and_masks_of_the_sample(sample: tuple[Dataset, dict[str, dict[str, Any]]]) -> None:
    _, rows = sample
    files = read_annotation_files()
    assert len(rows["images/Bengal_105.jpg"]["boxes"]) == 2
    for name, row in rows.items():
        stem = Path(name).stem
        assert bool(row["boxes"]) == (f"annotations/xmls/{stem}.xml" in files)
        assert row["mask"] == files.get(f"annotations/trimaps/{stem}.png")
    assert {len(row["boxes"]) for row in rows.values()} == {0, 1, 2}
