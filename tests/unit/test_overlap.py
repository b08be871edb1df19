"""Test images that a model has seen in training: by bytes, by pixels, through the weights that it started from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cleaned import Row, draft
from photos import made, saved

from imagemill.components.dataset.manifest import Dataset, Manifest, commit
from imagemill.components.dataset.shards import publish_bytes
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate import overlap
from imagemill.components.evaluate.overlap import TrainingOverlap, parse_content_hashes
from imagemill.components.storage.errors import DatasetError

PHOTOS = [saved(made(number, 24, 18), "JPEG", quality=90) for number in range(9)]
SPLITS = ("train", "train", "train", "val", "val", "test", "test", "test", "test")


def clean_of(workspace: Workspace, name: str, splits: tuple[str, ...], photos: list[bytes] = PHOTOS) -> Dataset:
    """The photographs under names of this dataset's own, in these splits."""
    uri = workspace.dataset("clean", name)
    pairs = zip(splits, photos, strict=True)
    rows = [Row(f"{name}/{n}.jpg", "cat", split, photo) for n, (split, photo) in enumerate(pairs)]
    return commit(uri, draft(uri, rows).manifest)


def model_of(workspace: Workspace, name: str, clean: Dataset, initial: Dataset | None = None) -> Dataset:
    """A model of these images, which started from the weights of another one."""
    uri = workspace.dataset("tensors", name)
    tensors = commit(uri, Manifest("tensors", name, (clean.as_parent(uri),)))
    uri = workspace.dataset("model", name)
    files = (publish_bytes(uri, name.encode(), "model-", ".safetensors"),)
    parents = tuple(parent.as_parent(uri) for parent in (tensors, initial) if parent)
    return commit(uri, Manifest("model", name, parents, files=files))


def find_seen(model: Dataset, clean: Dataset) -> list[int]:
    """The numbers of the photographs that were seen."""
    name = clean.fingerprint
    ids = [f"{name}/{number}.jpg" for number, split in enumerate(SPLITS) if split == "test"]
    found = list(TrainingOverlap.find(model, clean).look_up(ids))
    return [int(image.split("/")[1][0]) for image, (_, was_seen) in zip(ids, found, strict=True) if was_seen]


def test_after_another_split_they_are_known_by_their_bytes(workspace: Workspace) -> None:
    today = clean_of(workspace, "today", SPLITS)
    assert find_seen(model_of(workspace, "own", today), today) == []
    other = clean_of(workspace, "other", ("test", "test", "test", "test", "train", "train", "val", "test", "test"))
    model = model_of(workspace, "resplit", other)
    found = TrainingOverlap.find(model, today)
    assert find_seen(model, today) == [5, 6] and found.summarize().to_dict() == {"images": 2, "unknown": []}
    (content, _), *_ = found.look_up(["today/5.jpg"])
    digest = hashlib.sha256(PHOTOS[5]).hexdigest()
    assert (
        content == int(digest[:16], 16) == int(parse_content_hashes([digest, None])[0])
        and parse_content_hashes([None])[0] == 0
    )
    with pytest.raises(DatasetError, match="is not among those of the clean dataset"):
        list(found.look_up(["today/0.jpg"]))


def test_the_weights_that_a_model_started_from_have_seen_images_too(workspace: Workspace) -> None:
    today = clean_of(workspace, "today", SPLITS)
    other = clean_of(workspace, "other", ("test",) * 7 + ("train", "test"))
    first = model_of(workspace, "first", other)
    second = model_of(workspace, "second", today, first)
    third = model_of(workspace, "third", today, second)
    for model in (second, third):
        assert find_seen(model, today) == [7]
    Path(first.uri, "_manifest.json").unlink()
    found = TrainingOverlap.find(third, today)
    assert found.missing == ("model/first",) and not found.is_seen.any()


def test_a_file_that_weeks_have_in_common_is_read_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of ten weeks, each from the one before, and their images all in the files of the first week."""
    splits = ("test",) * 7 + ("train", "val")
    week = clean_of(workspace, "week", splits)
    model: Dataset | None = None
    for number in range(10):
        uri = workspace.dataset("clean", f"week{number}")
        files = tuple(replace(file, uri=f"../week/{file.uri}") for file in week.manifest.files)
        clean = commit(uri, replace(week.manifest, fingerprint=f"week{number}", files=files))
        model = model_of(workspace, f"model{number}", clean, model)
    opened: list[str] = []
    real = overlap.open_parquet

    def open_parquet(uri: str) -> Any:
        opened.append(uri)
        return real(uri)

    monkeypatch.setattr(overlap, "open_parquet", open_parquet)
    assert model and find_seen(model, clean_of(workspace, "today", SPLITS)) == [7, 8]
    assert len(opened) == len(set(opened)) == len([file for file in week.files() if file.split != "test"])


def test_what_is_gone_is_named(workspace: Workspace) -> None:
    today = clean_of(workspace, "today", SPLITS)
    other = clean_of(workspace, "other", SPLITS)
    model = model_of(workspace, "old", other)
    Path(other.locate(other.files()[0])).unlink()
    assert TrainingOverlap.find(model, today).summarize().to_dict() == {"images": 0, "unknown": ["clean/other"]}
    Path(workspace.at("tensors", "old", "_manifest.json")).unlink()
    assert TrainingOverlap.find(model, today).missing == ("tensors/old",)


@dataclass
class Painted(Row):
    """An image with pixels of its own, whatever its bytes are."""

    pixels: str = ""

    def columns(self, classes: Sequence[str]) -> dict[str, Any]:
        return super().columns(classes) | {"pixel_hash": self.pixels}


def test_equal_pixels_are_the_same_image(workspace: Workspace) -> None:
    """Saved anew, with other bytes; an empty hash says nothing."""
    uris = [workspace.dataset("clean", name) for name in ("today", "other")]
    rows = [Painted("today/5.jpg", split="test", pixels="ab" * 16), Painted("today/6.jpg", split="test")]
    today = commit(uris[0], draft(uris[0], rows).manifest)
    other = commit(uris[1], draft(uris[1], [Painted("b", pixels="ab" * 16), Painted("c")]).manifest)
    found = TrainingOverlap.find(model_of(workspace, "m", other), today)
    assert [was_seen for _, was_seen in found.look_up(["today/5.jpg", "today/6.jpg"])] == [True, False]
