"""Download of tables: their rows, groups, boxes and masks, and how these name the raw dataset."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from downloading import ANNOTATED, annotated, dataset_of, images, photograph, rows_of, run, write

from imagemill.components.download import raw


def test_a_table_gives_rows_in_its_order_with_nulls_for_what_is_not_there(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", images(2))
    (folder / "t.csv").write_text("path,label,split\ndog/000.jpg,a,test\nnone.jpg,b,\ncat/001.jpg,,train\n")
    found = rows_of(dataset_of(run(tmp_path / "ws", folder / "t.csv", tmp_path, dataset="csv")))
    assert {n: (r["image"] is None, r["label"], r["split"]) for n, r in found.items()} == {
        "dog/000.jpg": (False, "a", "test"),
        "none.jpg": (True, "b", None),
        "cat/001.jpg": (False, None, "train"),
    }
    assert found["none.jpg"]["sha256"] is None


def row_digest(*said: Any) -> bytes:
    return hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).digest()


def short_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def name_of(*digests: bytes) -> str:
    """The fingerprint as DESIGN has it: kind, version and the sorted rows."""
    joined = hashlib.sha256(b"".join(sorted(digests))).hexdigest()
    return short_digest({"kind": "raw", "version": 2, "rows": joined})


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_table_of_the_old_columns_gives_the_rows_and_the_digests_that_it_gave(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", images(2))
    (folder / "t.csv").write_text("path,label,split\ndog/000.jpg,a,test\nnone.jpg,b,\ncat/001.jpg,,train\n")
    record = run(tmp_path / "ws", folder / "t.csv", tmp_path, dataset="csv")
    one, two = sha(photograph(0)), sha(photograph(1))
    nothing = {"group": None, "boxes": [], "mask": None}
    assert list(rows_of(dataset_of(record)).values()) == [
        {"image_id": "dog/000.jpg", "image": photograph(0), "sha256": one, "label": "a", "split": "test", **nothing},
        {"image_id": "none.jpg", "image": None, "sha256": None, "label": "b", "split": None, **nothing},
        {"image_id": "cat/001.jpg", "image": photograph(1), "sha256": two, "label": None, "split": "train", **nothing},
    ]
    assert record["fingerprint"] == name_of(
        row_digest("dog/000.jpg", one, "a", "test", ""),
        row_digest("none.jpg", None, "b", None, ""),
        row_digest("cat/001.jpg", two, None, "train", ""),
    )
    assert sorted(dataset_of(record).manifest.extra.to_dict()) == ["dataset_name", "skipped", "source"]


def test_a_table_gives_groups_boxes_and_masks(tmp_path: Path) -> None:
    record = run(tmp_path / "ws", annotated(tmp_path / "in", *ANNOTATED), tmp_path, dataset="csv")
    found = rows_of(dataset_of(record))
    head = {"name": "head", "xmin": float(np.float32(0.1)), "ymin": 1.0, "xmax": float(np.float32(9.7)), "ymax": 8.0}
    tail = {"name": "tail", "xmin": 2.0, "ymin": 3.0, "xmax": 4.0, "ymax": 5.0}
    assert {n: (r["label"], r["split"], r["group"], r["boxes"], r["mask"]) for n, r in found.items()} == {
        "dog/000.jpg": ("dog|brown", "train", "p1", [head, tail], b"mask of 0"),
        "cat/001.jpg": ("cat", "train", None, [], b"mask of 1"),
        "dog/002.jpg": ("dog", None, "p2", [], None),
    }
    assert all(row["image"] == images()[name] for name, row in found.items())
    with_all = short_digest({"boxes": [head, tail], "mask": sha(b"mask of 0")})
    with_mask = short_digest({"boxes": [], "mask": sha(b"mask of 1")})
    assert record["fingerprint"] == name_of(
        row_digest("dog/000.jpg", sha(photograph(0)), "dog|brown", "train", with_all, "p1"),
        row_digest("cat/001.jpg", sha(photograph(1)), "cat", "train", with_mask),
        row_digest("dog/002.jpg", sha(photograph(2)), "dog", None, "", "p2"),
    )
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
def test_whatever_a_table_says_of_an_image_names_the_raw(tmp_path: Path, old: str, new: str, same: bool) -> None:
    first = run(tmp_path / "ws", annotated(tmp_path / "in", *ANNOTATED), tmp_path, dataset="csv")
    lines = "\n".join(ANNOTATED).replace(old, new).split("\n")
    assert lines != list(ANNOTATED)
    second = run(tmp_path / "ws", annotated(tmp_path / "in", *lines), tmp_path, dataset="csv")
    assert (first["exit_code"], second["exit_code"]) == (0, 0)
    assert (second["fingerprint"] == first["fingerprint"]) is same
    assert second["state"] == ("cached" if same else "ran")


def test_a_changed_mask_gives_a_new_raw(tmp_path: Path) -> None:
    table = annotated(tmp_path / "in", *ANNOTATED)
    first = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    write(tmp_path / "in", {"masks/1.png": b"a mask drawn anew"})
    second = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    assert second["state"] == "ran" and second["fingerprint"] != first["fingerprint"]
    assert rows_of(dataset_of(second))["cat/001.jpg"]["mask"] == b"a mask drawn anew"


def test_missing_masks_end_no_run_and_are_counted_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{name},{name[:3]},,,gone/{n}.png,,,,," for n, name in enumerate(images(4))]
    table = annotated(tmp_path / "in", *lines, "none.jpg,dog,,,gone/9.png,,,,,")
    record = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    found = dataset_of(record)
    missing = [{"path": name, "mask": f"gone/{n}.png", "why": "not there"} for n, name in enumerate(images(4))]
    assert found.manifest.extra.missing_masks.to_dict() == {"count": 4, "files": missing}
    assert [row["mask"] for row in rows_of(found).values()] == [None] * 5
    said = "but does not have: 4; their images go without one: gone/0.png (not there), gone/1.png (not there), " \
        "gone/2.png (not there) and 1 more"  # fmt: skip
    assert capsys.readouterr().err.count(said) == 1
    assert run(tmp_path / "ws", table, tmp_path, dataset="csv")["state"] == "cached"
    assert capsys.readouterr().err.count(said) == 1, "of a cached raw it is true still"
    write(tmp_path / "in", {"gone/0.png": b"found"})
    again = dataset_of(run(tmp_path / "ws", table, tmp_path, dataset="csv"))
    assert again.manifest.extra.missing_masks.to_dict() == {"count": 3, "files": missing[1:]}
    assert rows_of(again)["dog/000.jpg"]["mask"] == b"found"


def test_a_wrong_cell_of_a_table_is_exit_2_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "_read_source", None)
    table = annotated(tmp_path / "in", *ANNOTATED, "dog/000.jpg,dog,train,p1,masks/0.png,2,3,4,5,")
    record = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    assert record["exit_code"] == 2
    assert f"{table}, lines 2 and 6 (label): expected one label of 'dog/000.jpg'" in record["error"]


def test_one_file_by_two_spellings_is_refused(tmp_path: Path) -> None:
    table = annotated(tmp_path / "in", "cat/001.jpg,cat,,,,1,2,3,4,", "./cat/001.jpg,dog,,,,1,2,3,4,")
    record = run(tmp_path / "ws", table, tmp_path, dataset="csv")
    assert record["exit_code"] == 2 and "found 'cat/001.jpg' 2 times" in record["error"]


def test_large_masks_count_for_the_size_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is buffered is bounded by bytes: a mask may be larger than its image."""
    monkeypatch.setattr(raw, "SHARD_BYTES", 50_000)
    files = images(4) | {f"{n}.png": bytes(60_000) for n in range(4)}
    table = annotated(write(tmp_path / "in", files), *(f"{p},{p[:3]},,,{n}.png,,,,," for n, p in enumerate(images(4))))
    dataset = dataset_of(run(tmp_path / "ws", table, tmp_path, dataset="csv"))
    assert [file.rows for file in dataset.manifest.files] == [1, 1, 1, 1]
    assert dataset.manifest.totals.bytes == 4 * 2004, "totals count the images"
