"""Test images that a model was trained on: by bytes, by pixels, and through the weights that it started from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cleaned import Row, draft
from photos import made, saved

from imagemill.components.dataset.index import make_clean_index, read_index, write_index
from imagemill.components.dataset.manifest import Dataset, Manifest, commit
from imagemill.components.dataset.shards import publish_bytes
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate import overlap
from imagemill.components.evaluate.overlap import TrainingOverlap, parse_content_hashes
from imagemill.components.storage.errors import DatasetError

PHOTOS = [saved(made(number, 24, 18), "JPEG", quality=90) for number in range(9)]
SPLITS = ("train", "train", "train", "val", "val", "test", "test", "test", "test")


def commit_clean(workspace: Workspace, name: str, splits: tuple[str, ...], photos: list[bytes] = PHOTOS) -> Dataset:
    """Commit the photographs with image ids of this dataset, in these splits."""
    uri = workspace.dataset_uri("clean", name)
    pairs = zip(splits, photos, strict=True)
    rows = [Row(f"{name}/{n}.jpg", "cat", split, photo) for n, (split, photo) in enumerate(pairs)]
    return commit(uri, draft(uri, rows).manifest)


def commit_model(workspace: Workspace, name: str, clean: Dataset, initial: Dataset | None = None) -> Dataset:
    """Commit a model of these images, which may have started from the weights of another."""
    uri = workspace.dataset_uri("tensors", name)
    tensors = commit(uri, Manifest("tensors", name, (clean.as_parent(uri),)))
    uri = workspace.dataset_uri("model", name)
    files = (publish_bytes(uri, name.encode(), "model-", ".safetensors"),)
    parents = tuple(parent.as_parent(uri) for parent in (tensors, initial) if parent)
    return commit(uri, Manifest("model", name, parents, files=files))


def find_seen(model: Dataset, clean: Dataset) -> list[int]:
    """Return the numbers of the test photographs that the model was trained on."""
    name = clean.fingerprint
    ids = [f"{name}/{number}.jpg" for number, split in enumerate(SPLITS) if split == "test"]
    results = list(TrainingOverlap.find(model, clean).look_up(ids))
    return [int(image.split("/")[1][0]) for image, (_, was_seen) in zip(ids, results, strict=True) if was_seen]


def test_training_images_are_recognized_by_bytes_after_a_new_split(workspace: Workspace) -> None:
    today = commit_clean(workspace, "today", SPLITS)
    assert find_seen(commit_model(workspace, "own", today), today) == []
    other = commit_clean(workspace, "other", ("test", "test", "test", "test", "train", "train", "val", "test", "test"))
    model = commit_model(workspace, "resplit", other)
    training_overlap = TrainingOverlap.find(model, today)
    assert find_seen(model, today) == [5, 6] and training_overlap.summarize().to_dict() == {"images": 2, "unknown": []}
    (content, _), *_ = training_overlap.look_up(["today/5.jpg"])
    digest = hashlib.sha256(PHOTOS[5]).hexdigest()
    assert content == int(digest[:16], 16) == int(parse_content_hashes([digest, None])[0])
    assert parse_content_hashes([None])[0] == 0
    with pytest.raises(DatasetError, match="is not among those of the clean dataset"):
        list(training_overlap.look_up(["today/0.jpg"]))


def test_images_of_initial_weights_count(workspace: Workspace) -> None:
    today = commit_clean(workspace, "today", SPLITS)
    other = commit_clean(workspace, "other", ("test",) * 7 + ("train", "test"))
    first = commit_model(workspace, "first", other)
    second = commit_model(workspace, "second", today, first)
    third = commit_model(workspace, "third", today, second)
    for model in (second, third):
        assert find_seen(model, today) == [7]
    Path(first.uri, "_manifest.json").unlink()
    training_overlap = TrainingOverlap.find(third, today)
    assert training_overlap.missing == ("model/first",) and not training_overlap.is_seen.any()


def test_part_shared_by_several_weeks_is_read_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of ten weeks, each from the one before, and their images all in the parts of the first week."""
    splits = ("test",) * 7 + ("train", "val")
    week = commit_clean(workspace, "week", splits)
    model: Dataset | None = None
    for number in range(10):
        uri = workspace.dataset_uri("clean", f"week{number}")
        files = tuple(write_index(uri, read_index(week).cast(make_clean_index("single"))))
        clean = commit(uri, replace(week.manifest, fingerprint=f"week{number}", files=files))
        model = commit_model(workspace, f"model{number}", clean, model)
    opened_uris: list[str] = []
    original = overlap.read_part_rows

    def read_part_rows(dataset: Dataset, rows: Any, *more: Any) -> Any:
        opened_uris.append(rows.part.key)
        return original(dataset, rows, *more)

    monkeypatch.setattr(overlap, "read_part_rows", read_part_rows)
    assert model and find_seen(model, commit_clean(workspace, "today", SPLITS)) == [7, 8]
    assert len(opened_uris) == len(set(opened_uris)) == len(week.manifest.parts)


def test_missing_datasets_are_named(workspace: Workspace) -> None:
    today = commit_clean(workspace, "today", SPLITS)
    other = commit_clean(workspace, "other", SPLITS)
    model = commit_model(workspace, "old", other)
    Path(other.locate_part(other.manifest.parts[0])).unlink()
    assert TrainingOverlap.find(model, today).summarize().to_dict() == {"images": 0, "unknown": ["clean/other"]}
    Path(workspace.at("tensors", "old", "_manifest.json")).unlink()
    assert TrainingOverlap.find(model, today).missing == ("tensors/old",)


@dataclass
class Painted(Row):
    """Row with an explicit hash of its pixels."""

    pixels: str = ""

    def columns(self, classes: Sequence[str]) -> dict[str, Any]:
        return super().columns(classes) | {"pixel_hash": self.pixels}


def test_training_images_are_recognized_by_pixels(workspace: Workspace) -> None:
    """Saved anew, with other bytes; an empty hash says nothing."""
    uris = [workspace.dataset_uri("clean", name) for name in ("today", "other")]
    rows = [Painted("today/5.jpg", split="test", pixels="ab" * 16), Painted("today/6.jpg", split="test")]
    today = commit(uris[0], draft(uris[0], rows).manifest)
    other = commit(uris[1], draft(uris[1], [Painted("b", pixels="ab" * 16), Painted("c")]).manifest)
    training_overlap = TrainingOverlap.find(commit_model(workspace, "m", other), today)
    assert [was_seen for _, was_seen in training_overlap.look_up(["today/5.jpg", "today/6.jpg"])] == [True, False]
