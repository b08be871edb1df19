"""Helpers for tests of `imagemill gc`: datasets of any age, made of small real files, and a workspace's content."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from imagemill.components.dataset.kinds import EXTRAS
from imagemill.components.dataset.manifest import Dataset, Manifest, Part, commit, digest, read_dataset
from imagemill.components.dataset.parts import PartFolder, PartRecord
from imagemill.components.dataset.records import Promotion
from imagemill.components.dataset.shards import publish_bytes
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.storage.uri import join

DAY = 86_400.0
BEGIN = datetime(2026, 9, 1, tzinfo=UTC)


def fingerprint_of(kind: str, week: int, name: str = "weekly") -> str:
    return digest([kind, week, name])


def make(
    workspace: Workspace,
    kind: str,
    week: int,
    parents: Sequence[Dataset] = (),
    *,
    name: str = "weekly",
    own: Sequence[str] = ("own",),
    pool: Sequence[str] = (),
    **extra: Any,
) -> Dataset:
    """A committed dataset of a week. `own`: contents of the files in its own folder; `pool`: of its parts."""
    uri = workspace.dataset_uri(kind, fingerprint_of(kind, week, name))
    files = [publish_bytes(uri, f"{kind} {week} {name} {text}".encode(), "index-", ".parquet") for text in own]
    folder = PartFolder.of(workspace, kind)
    parts = []
    for text in pool:
        data, key = text.encode(), digest([kind, text])
        workspace.store.put_if_absent(folder.locate(key), data)
        part = Part(key, 1, len(data), hashlib.sha256(data).hexdigest())
        folder.add(PartRecord(key, (part,)))
        parts.append(part)
    created = (BEGIN + timedelta(weeks=week)).isoformat(timespec="seconds")
    manifest = Manifest(
        kind, uri.rpartition("/")[2], tuple(parent.as_parent(uri) for parent in parents), files=tuple(files),
        parts=tuple(parts), extra=EXTRAS[kind].from_dict({"dataset_name": name} | extra, "test"), created=created,
    )  # fmt: skip
    return commit(uri, manifest)


def make_week(workspace: Workspace, week: int, name: str = "weekly", *, promote: bool = False) -> dict[str, Dataset]:
    """A run's datasets, noted as the latest. Raw and clean list the parts of the last three weeks."""
    parts = [f"{name} {number}" for number in range(max(0, week - 2), week + 1)]
    raw = make(workspace, "raw", week, name=name, own=(), pool=parts)
    clean = make(workspace, "clean", week, [raw], name=name, pool=parts)
    tensors = make(workspace, "tensors", week, [clean], name=name)
    features = make(workspace, "features", week, [tensors], name=name)
    model = make(workspace, "model", week, [tensors, features], name=name)
    evaluation = make(workspace, "evaluation", week, [model, clean], name=name)
    datasets = {d.manifest.kind: d for d in (raw, clean, tensors, features, model, evaluation)}
    for dataset in datasets.values():
        if dataset is not features:
            workspace.note_latest(name, dataset, f"{name}-{week}")
    if promote:
        number = len(workspace.promotion_numbers(name)) + 1
        record = Promotion(model=workspace.relative(model.uri), evaluation=workspace.relative(evaluation.uri))
        assert workspace.append_promotion(name, number, record)
    return datasets


def age(workspace: Workspace, days: float, *below: str) -> None:
    """Make every file of a folder, or of some folders in it, that old."""
    then = time.time() - days * DAY
    for folder in below or ("",):
        path = Path(workspace.uri, folder)
        for file in [path, *path.rglob("*")]:
            os.utime(file, (then, then))


def files_of(workspace: Workspace) -> dict[str, str]:
    """Path → sha256 of every file of the workspace."""
    store = workspace.store
    return {
        workspace.relative(entry.uri): hashlib.sha256(store.read(entry.uri)).hexdigest()
        for entry in store.list(workspace.uri)
    }


def paths_of(*datasets: Dataset) -> set[str]:
    return {"/".join(dataset.uri.split("/")[-2:]) for dataset in datasets}


def datasets_of(workspace: Workspace) -> dict[str, Dataset]:
    """Path → dataset, of every manifest in the workspace."""
    manifests = (path for path in files_of(workspace) if path.count("/") == 2 and path.endswith("/_manifest.json"))
    uris = (join(workspace.uri, path.rpartition("/")[0]) for path in manifests)
    return {"/".join(uri.split("/")[-2:]): read_dataset(uri) for uri in uris}


def check_intact(workspace: Workspace) -> None:
    """Assert that all that any manifest lists is there, byte for byte."""
    for path, dataset in datasets_of(workspace).items():
        listed = {dataset.locate(file): file.sha256 for file in dataset.manifest.files}
        listed |= {dataset.locate_part(part): part.sha256 for part in dataset.manifest.parts}
        for uri, sha256 in listed.items():
            assert hashlib.sha256(workspace.store.read(uri)).hexdigest() == sha256, (path, uri)
