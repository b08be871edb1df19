"""Tensors of a dataset that has grown: what was there is listed again, and all is as if it were built from nothing."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import grown
import pytest
from copied import without_ray  # noqa: F401 (a fixture)
from grown import (
    assert_equal,
    clean_of,
    content,
    decoded,
    from_nothing,
    generations,
    relabeled,
    replaced,
    resized,
    several,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagemill.components.dataset.manifest import Dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.resize import generations as generations_module

pytestmark = pytest.mark.usefixtures("small_shards")


EDITS = st.lists(st.sampled_from(["add", "add", "remove", "relabel", "replace", "move"]), min_size=0, max_size=9)
OPTIONS = st.sampled_from(
    [{}, {"normalization": "dataset"}, {"encoding": "jpeg"}, {"encoding": "jpeg", "normalization": "dataset"}]
)


def edit(photos: dict[str, grown.Photo], edits: list[str], seed: int) -> dict[str, grown.Photo]:
    photos, chance = dict(photos), random.Random(seed)
    for number, word in enumerate(edits):
        name = chance.choice(sorted(photos))
        if word == "add":
            photos[f"new-{seed}-{number}"] = grown.Photo(chance.choice(grown.CLASSES), chance.choice(["train", "test"]))
        elif word == "remove":
            del photos[name]
        elif word == "relabel":
            photos[name] = relabeled(photos[name])
        elif word == "replace":
            photos[name] = replaced(photos[name])
        else:
            photos[name] = grown.replace(photos[name], split="val" if photos[name].split == "train" else "train")
    return photos


HISTORIES = given(history=st.lists(EDITS, min_size=1, max_size=3), options=OPTIONS, seed=st.integers(0, 10**6))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@HISTORIES
def test_after_any_edits_the_tensors_are_those_of_a_build_from_nothing(
    history: list[list[str]], options: dict[str, Any], seed: int
) -> None:
    check_edits(history, options, seed, several(40))


@pytest.mark.proof
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@HISTORIES
def test_after_many_edits_the_tensors_are_those_of_a_build_from_nothing(
    history: list[list[str]], options: dict[str, Any], seed: int
) -> None:
    check_edits(history, options, seed, several(60))


def check_edits(history: list[list[str]], options: dict[str, Any], seed: int, photos: dict[str, grown.Photo]) -> None:
    """Row for row and pixel for pixel; and only what is new was decoded, unless everything was built again."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(f"{folder}/mill")
        tensors = resized(clean_of(workspace, photos), **options)
        for number, edits in enumerate(history):
            earlier, before = photos, generations(tensors)
            photos = edit(photos, edits, seed + number)
            with decoded() as count:
                tensors = resized(clean_of(workspace, photos), **options)
            assert_equal(tensors, from_nothing(photos, Path(folder) / f"nothing-{number}", **options))
            new = sum(earlier.get(name) != photo for name, photo in photos.items())
            if count[0] not in (0, new):
                assert count[0] == len(photos), "everything, or what is new"
                has_removed = any(photos.get(name) != photo for name, photo in earlier.items())
                too_many = sum(before.values()) - before[0] + new > 0.2 * len(photos) - len(edits)
                assert (too_many or (has_removed and len(options) == 2)) and generations(tensors) == {0: len(photos)}


def test_new_rows_are_a_generation_and_the_others_are_listed_again(workspace: Workspace) -> None:
    photos = several(60)
    first = resized(clean_of(workspace, photos))
    with decoded() as count:
        second = resized(clean_of(workspace, photos | several(4, "new", "emu")))
    assert count == [4] and generations(second) == {0: 60, 1: 4}
    files = {first.locate(file): file.sha256 for file in first.files()}
    reused = {
        second.locate(file): file.sha256 for file in second.files() if file.uri.startswith(f"../{first.fingerprint}/")
    }
    assert reused == files, "by URIs relative to the dataset"
    with decoded() as count:
        third = resized(clean_of(workspace, photos | several(4, "new", "emu") | several(3, "more", "emu")))
    assert count == [3] and generations(third) == {0: 60, 1: 4, 2: 3}
    folders = {file.uri.split("/")[1] for file in third.files() if file.uri.startswith("../")}
    assert folders == {first.fingerprint, second.fingerprint}, "each where it really is"
    stored = sum(path.stat().st_size for path in Path(third.uri).rglob("*.parquet"))
    assert stored < 0.2 * sum(file.bytes for file in third.files())


def test_reused_new_and_removed_images_are_logged(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    photos = several(120)
    first = resized(clean_of(workspace, photos))
    del photos["p000"], photos["p007"]
    capsys.readouterr()
    photos["p001"] = relabeled(photos["p001"])
    resized(clean_of(workspace, photos | several(5, "new")))
    stderr = capsys.readouterr().err
    assert f"[resize] 123 images: 117 as in tensors/{first.fingerprint}, 6 new, 3 removed" in stderr


def test_a_shard_is_written_again_only_where_rows_left(workspace: Workspace) -> None:
    photos = several(60)
    first = resized(clean_of(workspace, photos), normalization="dataset")
    del photos["p010"]
    with decoded() as count:
        second = resized(clean_of(workspace, photos), normalization="dataset")
    assert count == [0] and generations(second) == {0: 59}
    own = [file for file in second.files() if not file.uri.startswith("../")]
    assert len(own) == 1 and len(second.files()) == len(first.files())
    assert second.manifest.image.mean != first.manifest.image.mean, "of the images that are there"


def test_a_shard_of_which_nothing_stays_is_left_out(workspace: Workspace) -> None:
    photos = several(60)
    first = resized(clean_of(workspace, photos))
    shard = first.files("data", "test")[0]
    ids = {row["image_id"] for table in grown.row_groups(first, shard, ["image_id"]) for row in table.to_pylist()}
    photos = {name: photo for name, photo in photos.items() if name not in ids}
    second = resized(clean_of(workspace, photos))
    assert len(second.files("data", "test")) == len(first.files("data", "test")) - 1
    assert set(content(second)) == set(photos)


def test_files_that_both_clean_datasets_list_are_not_read(workspace: Workspace) -> None:
    photos = several(60)
    earlier, later = clean_of(workspace, photos), clean_of(workspace, photos | {"new": grown.Photo("emu", "train")})
    shared = {file.sha256 for file in earlier.files()} & {file.sha256 for file in later.files()}
    assert len(shared) > 10
    for dataset in (earlier, later):
        for file in dataset.files():
            if file.sha256 in shared:
                Path(dataset.locate(file)).unlink()
    added, removed = generations_module.compare_rows(earlier, later)
    assert sum(map(len, added.values())) == 1 and not removed


def rows_with_copies(tensors: Dataset) -> dict[tuple[str, int], tuple[str, int, bytes, str]]:
    return {
        (row["image_id"], row["copy"]): (file.split, row["label_id"], row["image"], row["augmentation"])
        for file in tensors.files()
        for table in grown.row_groups(tensors, file)
        for row in table.to_pylist()
    }


@pytest.mark.usefixtures("without_ray")
def test_augmented_copies_stay_with_their_images(workspace: Workspace, tmp_path: Path) -> None:
    options = {"copies": 2, "copy_policy": "randaugment", "executor": "auto", "normalization": "dataset"}
    photos = several(60)
    resized(clean_of(workspace, photos), **options)
    del photos["p000"], photos["p005"]
    photos |= several(5, "new")
    grown_clean = clean_of(workspace, photos)
    tensors = resized(grown_clean, **options)
    expected = from_nothing(photos, tmp_path / "nothing", **options)
    assert set(generations(tensors)) == {0, 1}
    assert rows_with_copies(tensors) == rows_with_copies(expected)
    assert tensors.manifest.totals == expected.manifest.totals and tensors.manifest.image == expected.manifest.image
    assert tensors.manifest.extra.copies == expected.manifest.extra.copies
