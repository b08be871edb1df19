"""Download of tables: rows, groups, boxes and masks, and the fingerprint of the raw dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from downloading import ANNOTATED, annotated, dataset_of, images, rows_of, run, write


def test_rows_and_fingerprint_of_groups_boxes_and_masks(tmp_path: Path) -> None:
    record = run(tmp_path / "ws", annotated(tmp_path / "in", *ANNOTATED), tmp_path, dataset="csv")
    rows = rows_of(dataset_of(record))
    head = {"name": "head", "xmin": float(np.float32(0.1)), "ymin": 1.0, "xmax": float(np.float32(9.7)), "ymax": 8.0}
    tail = {"name": "tail", "xmin": 2.0, "ymin": 3.0, "xmax": 4.0, "ymax": 5.0}
    assert {n: (r["label"], r["split"], r["group"], r["boxes"], r["mask"]) for n, r in rows.items()} == {
        "dog/000.jpg": ("dog|brown", "train", "p1", [head, tail], b"mask of 0"),
        "cat/001.jpg": ("cat", "train", None, [], b"mask of 1"),
        "dog/002.jpg": ("dog", None, "p2", [], None),
    }
    assert all(row["image"] == images()[name] for name, row in rows.items())
    assert dataset_of(record).manifest.extra.missing_masks is None
    assert run(tmp_path / "ws", tmp_path / "in" / "t.csv", tmp_path, dataset="csv")["state"] == "cached"


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("p2", "p3", False),
        ("dog,,p2,", "dog,,,", False),
        (",head", ",nose", False),
        ("0.1,1,9.7", "0.1,1,9.6", False),
        (ANNOTATED[2], "", False),
        ("cat,train,,masks/1.png", "cat,train,,", False),
        ("cat,train,,masks/1.png", "cat,train,,masks/0.png", False),
        ("dog,,p2,", "dog,, p2 ,", True),
        ("2,3,4,5", "2.0,3,+4,5e0", True),
    ],
)
def test_fingerprint_counts_every_column(tmp_path: Path, old: str, new: str, same: bool) -> None:
    first = run(tmp_path / "ws", annotated(tmp_path / "in", *ANNOTATED), tmp_path, dataset="csv")
    lines = "\n".join(ANNOTATED).replace(old, new).split("\n")
    assert lines != list(ANNOTATED)
    second = run(tmp_path / "ws", annotated(tmp_path / "in", *lines), tmp_path, dataset="csv")
    assert (first["exit_code"], second["exit_code"]) == (0, 0)
    assert (second["fingerprint"] == first["fingerprint"]) is same
    assert second["state"] == ("cached" if same else "ran")


def test_changed_mask_gives_a_new_raw_dataset(tmp_path: Path) -> None:
    table = annotated(tmp_path / "in", *ANNOTATED)
    first = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    write(tmp_path / "in", {"masks/1.png": b"a mask drawn anew"})
    second = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    assert second["state"] == "ran" and second["fingerprint"] != first["fingerprint"]
    assert rows_of(dataset_of(second))["cat/001.jpg"]["mask"] == b"a mask drawn anew"


def test_missing_masks_are_counted_and_warned_about_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{name},{name[:3]},,,gone/{n}.png,,,,," for n, name in enumerate(images(4))]
    table = annotated(tmp_path / "in", *lines, "none.jpg,dog,,,gone/9.png,,,,,")
    record = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    dataset = dataset_of(record)
    missing = [{"path": name, "mask": f"gone/{n}.png", "why": "not there"} for n, name in enumerate(images(4))]
    assert dataset.manifest.extra.missing_masks.to_dict() == {"count": 4, "files": missing}
    assert [row["mask"] for row in rows_of(dataset).values()] == [None] * 5
    warning = "but does not have: 4; their images go without one: gone/0.png (not there), gone/1.png (not there), " \
        "gone/2.png (not there) and 1 more"  # fmt: skip
    assert capsys.readouterr().err.count(warning) == 1
    assert run(tmp_path / "ws", table, tmp_path, dataset="csv")["state"] == "cached"
    assert capsys.readouterr().err.count(warning) == 1, "of a cached raw it is true still"
    write(tmp_path / "in", {"gone/0.png": b"found"})
    second = dataset_of(run(tmp_path / "ws", table, tmp_path, dataset="csv"))
    assert second.manifest.extra.missing_masks.to_dict() == {"count": 3, "files": missing[1:]}
    assert rows_of(second)["dog/000.jpg"]["mask"] == b"found"


def test_invalid_cell_is_refused_before_an_image_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagemill.components.download.download._read_snapshot", None)
    table = annotated(tmp_path / "in", *ANNOTATED, "dog/000.jpg,dog,train,p1,masks/0.png,2,3,4,5,")
    record = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    assert record["exit_code"] == 2
    assert f"{table}, lines 2 and 6 (label): expected one label of 'dog/000.jpg'" in record["error"]


def test_file_under_two_spellings_is_refused(tmp_path: Path) -> None:
    table = annotated(tmp_path / "in", "cat/001.jpg,cat,,,,1,2,3,4,", "./cat/001.jpg,dog,,,,1,2,3,4,")
    record = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    assert record["exit_code"] == 2 and "found 'cat/001.jpg' 2 times" in record["error"]
