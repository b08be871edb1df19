"""A source that has changed gives what a build from nothing gives: the same rows and the same pixels.

Compared are contents by image, not files: history may lay them out in other ways.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import layout
import pictures
import pytest
from commands import Workspace, succeed

LABELS = ("blue", "green", "red")
SIZE = ("--image-size", "32")


@dataclass(frozen=True)
class Prepared:
    """The datasets of download, clean and resize."""

    raw: str
    clean: str
    tensors: str


def prepare(workspace: Workspace, source: Path) -> Prepared:
    raw = workspace.download("folder", source)
    clean = workspace.clean(raw)
    return Prepared(raw, clean, workspace.resize(clean, *SIZE))


def prepare_from_nothing(folder: Path, source: Path) -> Prepared:
    return prepare(Workspace(str(folder / "from-nothing")), source)


@dataclass(frozen=True)
class Week:
    """The first week: a source, its workspace and datasets."""

    source: Path
    workspace: Workspace
    prepared: Prepared

    def copy(self, folder: Path) -> tuple[Path, Workspace]:
        """The same to change at will; copied pictures keep their times, as those of a source that did not change."""
        shutil.copytree(self.source, folder / "photos")
        shutil.copytree(self.workspace.folder, folder / "work")
        return folder / "photos", Workspace(str(folder / "work"))


@pytest.fixture(scope="module")
def week(tmp_path_factory: pytest.TempPathFactory) -> Week:
    folder = tmp_path_factory.mktemp("week")
    source = pictures.make_folder(folder / "photos", LABELS, each=20)
    workspace = Workspace(str(folder / "work"))
    return Week(source, workspace, prepare(workspace, source))


def count_all(clean: str) -> dict[str, object]:
    """Return the totals of a clean dataset, less classes that have no image any more, which keep their ids."""
    totals = layout.open_dataset(clean).totals
    by_class = {name: count for name, count in totals["by_class"].items() if count}
    return {key: totals[key] for key in ("rows", "rejected", "by_split", "by_reason")} | {"by_class": by_class}


def check_equal(prepared: Prepared, expected: Prepared) -> None:
    assert Path(prepared.raw).name == Path(expected.raw).name, "raw is named by the content that was read"
    images, expected_images = layout.raw_images(prepared.raw), layout.raw_images(expected.raw)
    assert images == expected_images
    assert layout.rows_by_content(prepared.clean) == layout.rows_by_content(expected.clean)
    assert layout.rejected_images(prepared.clean) == layout.rejected_images(expected.clean)
    assert count_all(prepared.clean) == count_all(expected.clean)
    assert layout.pixels_by_content(prepared.tensors) == layout.pixels_by_content(expected.tensors)


def grow(source: Path) -> None:
    for label in LABELS:
        for number in range(20, 24):
            pictures.add_picture(source, label, number)


def shrink(source: Path) -> None:
    for path in sorted(source.rglob("*.*"))[::4]:
        path.unlink()


def relabel(source: Path) -> None:
    for path in sorted((source / "red").glob("*.*"))[:5]:
        path.rename(source / "blue" / f"was-red-{path.name}")


def rename_class(source: Path) -> None:
    (source / "green").rename(source / "lime")


def replace_images(source: Path) -> None:
    for number in (1, 2, 3):
        pictures.add_picture(source, "red", number, color="gold")


def add_copies(source: Path) -> None:
    """New files with the content of old ones: which copy stays must not depend on which came first."""
    for number, path in enumerate(sorted((source / "blue").glob("*.*"))[:4]):
        shutil.copy(path, source / "blue" / f"{'a' if number % 2 else 'z'}-{path.name}")


def add_broken(source: Path) -> None:
    whole = next(iter(sorted((source / "red").glob("*.jpg")))).read_bytes()
    pictures.write(source / "red" / "broken.jpg", whole[: len(whole) // 2])
    pictures.write(source / "red" / "empty.jpg", b"")


CHANGES: dict[str, tuple[Callable[[Path], None], ...]] = {
    "relabeled": (relabel,),
    "class renamed, images replaced, copies and broken files added": (
        rename_class, replace_images, add_copies, add_broken,
    ),
}  # fmt: skip
"""What grows and shrinks is a history of weeks, below."""


@pytest.mark.parametrize("name", CHANGES)
def test_changed_source_gives_what_a_build_from_nothing_gives(name: str, week: Week, tmp_path: Path) -> None:
    source, workspace = week.copy(tmp_path)
    for change in CHANGES[name]:
        change(source)
    prepared = prepare(workspace, source)
    assert prepared.raw != week.prepared.raw
    check_equal(prepared, prepare_from_nothing(tmp_path, source))
    layout.check_complete(workspace.folder)


def test_weeks_in_a_row_give_what_a_build_from_nothing_gives(week: Week, tmp_path: Path) -> None:
    """And the files of the first week's datasets stay as they are, and stay readable."""
    source, workspace = week.copy(tmp_path)
    before = layout.list_files(workspace.folder)
    for change in (grow, shrink, replace_images):
        change(source)
        prepared = prepare(workspace, source)
    check_equal(prepared, prepare_from_nothing(tmp_path, source))
    after = layout.list_files(workspace.folder)
    assert {path: after.get(path) for path in before} == before, "no file of a finished dataset changes"
    first = workspace.folder / "clean" / Path(week.prepared.clean).name
    assert layout.rows_by_content(first) == layout.rows_by_content(week.prepared.clean)


def test_source_put_back_is_the_dataset_of_before(week: Week, tmp_path: Path) -> None:
    source, workspace = week.copy(tmp_path)
    moved = next(iter(sorted((source / "red").glob("*.jpg"))))
    moved.rename(tmp_path / "aside.jpg")
    assert Path(workspace.download("folder", source)).name != Path(week.prepared.raw).name
    (tmp_path / "aside.jpg").rename(moved)
    raw = workspace.download("folder", source)
    assert Path(raw).name == Path(week.prepared.raw).name
    assert Path(workspace.clean(raw)).name == Path(week.prepared.clean).name


def test_unchanged_steps_are_cached(week: Week) -> None:
    for step, arguments in (
        ("download", ["--dataset", "folder", "--source", str(week.source)]),
        ("clean", ["--raw", week.prepared.raw]),
        ("resize", ["--clean", week.prepared.clean, "--executor", "threads", *SIZE]),
    ):
        assert week.workspace.record(step, *arguments)["state"] == "cached", step


def test_changed_option_reruns_what_depends_on_it(week: Week, tmp_path: Path) -> None:
    _, workspace = week.copy(tmp_path)
    raw, clean = (workspace.folder / k / Path(getattr(week.prepared, k)).name for k in ("raw", "clean"))
    gray = workspace.record("clean", "--raw", str(raw), "--color", "gray")
    assert gray["state"] == "ran" and Path(gray["uri"]).name != clean.name
    workers = workspace.record("clean", "--raw", str(raw), "--clean-workers", "1")
    assert workers["state"] == "cached", "how many workers there are changes nothing"


def test_garbage_collection_keeps_what_is_listed(week: Week, tmp_path: Path) -> None:
    """What it deletes, older datasets, is made again under the same name; what it keeps is whole."""
    source, workspace = week.copy(tmp_path)
    grow(source)
    prepared = prepare(workspace, source)
    flags = ["gc", "--workspace", workspace.uri, "--min-age", "0"]
    listed = layout.list_files(workspace.folder)
    succeed(*flags)
    assert layout.list_files(workspace.folder) == listed, "without --delete nothing goes"
    succeed(*flags, "--delete")
    layout.check_complete(workspace.folder)
    assert len(layout.list_files(workspace.folder)) < len(listed)
    assert layout.pixels_by_content(prepared.tensors)
    assert workspace.record("clean", "--raw", prepared.raw)["state"] == "cached"
