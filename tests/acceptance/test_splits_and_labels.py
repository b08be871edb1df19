"""Decisions on all images: splits that never move an image, duplicates and leaks as planted, labels and classes."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import layout
import numpy as np
import pictures
import pytest
from commands import Workspace, refuse
from PIL import Image

LABELS = ("blue", "green", "red")


@dataclass(frozen=True)
class Built:
    workspace: Workspace
    source: Path
    clean: str

    @property
    def splits(self) -> dict[str, str]:
        return {image_id: row["split"] for image_id, row in layout.kept_images(self.clean).items()}


def build(folder: Path, source: Path, *options: str, dataset: str = "folder") -> Built:
    workspace = Workspace(str(folder / "work"))
    return Built(workspace, source, workspace.clean(workspace.download(dataset, source), *options))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Some 90 pictures of three classes, splits by hash."""
    folder = tmp_path_factory.mktemp("first")
    return build(folder, pictures.make_folder(folder / "photos", LABELS, each=30))


def copy_source(first: Built, folder: Path) -> Path:
    shutil.copytree(first.source, folder / "photos")
    return folder / "photos"


def check_same_splits(before: dict[str, str], after: dict[str, str]) -> None:
    common = before.keys() & after.keys()
    assert common and {name: before[name] for name in common} == {name: after[name] for name in common}


def test_splits_are_near_their_fractions(first: Built) -> None:
    """Binomial bounds of 1 in 10,000 at 90 images; whichever hash decides."""
    counts = Counter(first.splits.values())
    assert sum(counts.values()) == 90 and 1 <= counts["val"] <= 22 and 1 <= counts["test"] <= 22


def test_splits_stay_when_the_source_grows(first: Built, tmp_path: Path) -> None:
    source = copy_source(first, tmp_path)
    for number in range(30, 50):
        for label in ("amber", *LABELS):
            pictures.add_picture(source, label, number)
    grown = build(tmp_path, source)
    assert len(grown.splits) == 170
    check_same_splits(first.splits, grown.splits)


def test_splits_stay_when_images_are_removed_or_renamed(first: Built, tmp_path: Path) -> None:
    source = copy_source(first, tmp_path)
    for path in sorted(source.rglob("*.*"))[::3]:
        path.unlink()
    renamed = sorted(source.rglob("*.*"))[0]
    before = first.splits[str(renamed.relative_to(source))]
    renamed.rename(renamed.with_stem("another-name"))
    shrunk = build(tmp_path, source)
    check_same_splits(first.splits, shrunk.splits)
    assert shrunk.splits[f"{renamed.parent.name}/another-name{renamed.suffix}"] == before


def test_splits_stay_when_labels_change(first: Built, tmp_path: Path) -> None:
    source = copy_source(first, tmp_path)
    moved = sorted((source / "red").glob("*.*"))[::2]
    (source / "crimson").mkdir()
    for path in moved:
        path.rename(source / "crimson" / path.name)
    relabeled = build(tmp_path, source)
    for path in moved:
        assert relabeled.splits[f"crimson/{path.name}"] == first.splits[f"red/{path.name}"]


def test_groups_are_not_divided(tmp_path: Path) -> None:
    rows = []
    for number in range(60):
        pictures.add_picture(tmp_path, "red", number)
        suffix = "png" if number % 5 == 0 else "jpg"
        rows.append({"path": f"red/{number:03d}.{suffix}", "label": "ab"[number % 2], "group": str(number // 3)})
    table = pictures.write_table(tmp_path / "t.csv", rows)
    splits = build(tmp_path, table, "--test-fraction", "0.3", "--val-fraction", "0.2", dataset="csv").splits
    for group in range(20):
        assert len({splits[row["path"]] for row in rows if row["group"] == str(group)}) == 1


def test_exact_splits_hold_in_every_class(first: Built) -> None:
    options = ["--split", "exact", "--test-fraction", "0.2", "--val-fraction", "0.1"]
    rows = layout.kept_images(first.workspace.clean(layout_parent(first), *options)).values()
    for label in LABELS:
        counts = Counter(row["split"] for row in rows if row["label"] == label)
        assert (counts["test"], counts["val"]) == (6, 3), label


def layout_parent(built: Built) -> str:
    """Return the URI of the raw dataset that a clean one was made of."""
    fingerprint = layout.open_dataset(built.clean).parent_fingerprints[0]
    return str(built.workspace.folder / "raw" / fingerprint)


def test_each_image_is_test_once_over_the_folds(first: Built) -> None:
    tested: Counter[str] = Counter()
    for fold in range(1, 4):
        rows = layout.kept_images(first.workspace.clean(layout_parent(first), "--fold", f"{fold}/3"))
        tested.update(image_id for image_id, row in rows.items() if row["split"] == "test")
    assert set(tested.values()) == {1} and len(tested) == 90


# Duplicates and leaks, planted.


def photograph(seed: int) -> Image.Image:
    """Make a picture of soft shapes that no other one resembles."""
    return Image.fromarray(pictures.smooth_pixels(seed, 160, 120))


@dataclass(frozen=True)
class Planted:
    clean: str
    raw: str
    workspace: Workspace
    kept: dict[str, layout.Row]
    rejected: dict[str, str]


def plant(folder: Path, *, declared: bool) -> Planted:
    """Clean a table of pictures with an exact copy, the same pixels in another format, and near-duplicates."""
    rows: list[dict[str, str]] = []

    def add(name: str, data: bytes, split: str, label: str = "cat") -> None:
        pictures.write(folder / name, data)
        rows.append({"path": name, "label": label} | ({"split": split} if declared or split == "test" else {}))

    for number in range(24):
        split = ("train", "train", "val", "test")[number % 4]
        add(f"plain{number:02d}.png", pictures.encode(photograph(number)), split, ("cat", "dog")[number % 2])
    original = pictures.encode(photograph(500))
    add("a-original.png", original, "train")
    add("b-same-bytes.png", original, "train")
    add("c-other-format.bmp", pictures.encode(photograph(500), "BMP"), "train")
    add("copy-in-train.png", pictures.encode(photograph(501)), "train")
    add("copy-in-test.png", pictures.encode(photograph(501)), "test")
    add("d-recoded-in-test.jpg", pictures.encode(photograph(502), "JPEG", quality=90), "test")
    add("d-recoded-in-train.jpg", pictures.encode(photograph(502).resize((80, 60)), "JPEG", quality=70), "train")
    add("conflict-cat.png", pictures.encode(photograph(503)), "train", "cat")
    add("conflict-dog.png", pictures.encode(photograph(503)), "train", "dog")
    workspace = Workspace(str(folder / "work"))
    raw = workspace.download("csv", pictures.write_table(folder / "t.csv", rows))
    clean = workspace.clean(raw)
    return Planted(clean, raw, workspace, layout.kept_images(clean), layout.rejected_images(clean))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("declared"), declared=True)


def test_exact_duplicates_leave_one(planted: Planted) -> None:
    assert planted.rejected["b-same-bytes.png"] == "duplicate_bytes"
    assert planted.rejected["c-other-format.bmp"] == "duplicate_pixels"
    assert "a-original.png" in planted.kept


def test_copy_in_test_wins_over_that_in_train(planted: Planted) -> None:
    assert planted.rejected["copy-in-train.png"] == "duplicate_bytes" and "copy-in-test.png" in planted.kept


def test_nothing_else_is_rejected(planted: Planted) -> None:
    expected = {"b-same-bytes.png", "c-other-format.bmp", "copy-in-train.png", "conflict-dog.png"}
    assert planted.rejected.keys() == expected, "one of a conflict stays by default, the smallest image_id"


def test_near_duplicate_is_reported_where_both_splits_are_declared(planted: Planted) -> None:
    assert {"d-recoded-in-test.jpg", "d-recoded-in-train.jpg"} <= planted.kept.keys()
    assert layout.near_duplicate_pairs(planted.clean) == 1


def test_leak_into_test_is_dropped_on_request(planted: Planted) -> None:
    rejected = layout.rejected_images(planted.workspace.clean(planted.raw, "--leakage", "drop"))
    assert rejected["d-recoded-in-train.jpg"] == "near_duplicate_of_test"
    assert rejected.keys() - planted.rejected.keys() == {"d-recoded-in-train.jpg"}


def test_conflicting_labels_can_drop_all(planted: Planted) -> None:
    rejected = layout.rejected_images(planted.workspace.clean(planted.raw, "--label-conflicts", "drop_all"))
    assert {rejected["conflict-cat.png"], rejected["conflict-dog.png"]} == {"label_conflict"}


def test_leak_is_dropped_by_default_where_no_split_is_declared(tmp_path: Path) -> None:
    rejected = plant(tmp_path, declared=False).rejected
    assert rejected["d-recoded-in-train.jpg"] == "near_duplicate_of_test"


# Labels, classes, measures.


def test_class_ids_stay_and_new_classes_are_appended(first: Built, tmp_path: Path) -> None:
    shutil.copytree(first.workspace.folder, tmp_path / "work")
    source = copy_source(first, tmp_path)
    pictures.make_folder(source, ["amber"], each=12)
    workspace = Workspace(str(tmp_path / "work"))
    clean = workspace.clean(workspace.download("folder", source))
    assert layout.open_dataset(clean).classes == [*LABELS, "amber"]
    for row in layout.kept_images(clean).values():
        assert [*LABELS, "amber"][row["label_id"]] == row["label"]


def test_class_list_and_unknown_labels(first: Built, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("red\nblue\n")
    options = ["--class-list", str(tmp_path / "classes.txt"), "--unknown-labels", "reject"]
    clean = first.workspace.clean(layout_parent(first), *options)
    assert layout.open_dataset(clean).classes == ["red", "blue"]
    rejected = layout.rejected_images(clean)
    assert set(rejected.values()) == {"unknown_label"} and len(rejected) == 30


@pytest.mark.parametrize("rule", ["merge", "drop"])
def test_rare_classes(rule: str, first: Built, tmp_path: Path) -> None:
    source = copy_source(first, tmp_path)
    pictures.make_folder(source, ["gold"], each=4)
    built = build(tmp_path, source, "--rare-classes", rule, "--rare-below", "10")
    if rule == "merge":
        assert Counter(row["label"] for row in layout.kept_images(built.clean).values())["other"] == 4
    else:
        assert layout.open_dataset(built.clean).totals["by_reason"] == {"rare_class": 4}


def test_several_labels_an_image(tmp_path: Path) -> None:
    rows = []
    for number in range(40):
        path = pictures.add_picture(tmp_path, "red", number)
        label = ("cat", "dog", "cat|dog", "cat|emu")[number % 4]
        rows.append({"path": str(path.relative_to(tmp_path)), "label": label,
                     "split": ("train", "val", "test")[number % 3]})  # fmt: skip
    table = pictures.write_table(tmp_path / "t.csv", rows)
    clean = build(tmp_path, table, "--label-separator", "|", dataset="csv").clean
    classes = layout.open_dataset(clean).classes
    assert sorted(classes) == ["cat", "dog", "emu"]
    stored = {image_id: {classes[i] for i in row["label_ids"]} for image_id, row in layout.kept_images(clean).items()}
    assert stored == {row["path"]: set(row["label"].split("|")) for row in rows}


def test_outliers_are_dropped_on_request(first: Built, tmp_path: Path) -> None:
    source = copy_source(first, tmp_path)
    black = np.clip(np.random.default_rng(0).normal(3, 2, (60, 60, 3)), 0, 255).astype(np.uint8)
    pictures.write(source / "red" / "black.png", pictures.encode(black))
    built = build(tmp_path, source, "--outliers", "drop", "--outlier-fields", "contrast")
    assert layout.rejected_images(built.clean) == {"red/black.png": "outlier"}


def test_measures_are_columns(first: Built) -> None:
    """Brightness is the mean luma of 1; a picture's own size and shape stand beside it."""
    for image_id, row in list(layout.kept_images(first.clean).items())[:20]:
        image = pictures.decode(row["bytes"]).convert("RGB")
        assert (row["width"], row["height"]) == image.size
        assert abs(row["brightness"] - np.asarray(image.convert("L")).mean() / 255) < 0.02, image_id
        assert (
            abs(row["aspect_ratio"] - max(image.size) / min(image.size)) < 0.01
            or abs(row["aspect_ratio"] - image.width / image.height) < 0.01
        )
        assert {"contrast", "sharpness", "entropy", "colorfulness", "bytes_per_pixel"} <= row.keys()


def test_source_without_a_second_class_is_refused(tmp_path: Path) -> None:
    pictures.make_folder(tmp_path / "photos", ["red"], each=3)
    refuse("run", "--dataset", "folder", "--source", str(tmp_path / "photos"), "--workspace", str(tmp_path / "work"),
           words=("two classes", "red"))  # fmt: skip
