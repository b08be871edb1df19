"""Retention: which datasets of a workspace are kept, and why.

Memory: of each committed dataset about 1 kB, and 8 bytes for each file that it lists.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xxhash

from ..storage import uri as uris
from ..storage.errors import MillError, UserError
from ..storage.parallel import map_ordered
from ..storage.protocol import Entry
from .kinds import ModelExtra
from .leases import RunningStep
from .manifest import KINDS, MANIFEST, Dataset, find_dataset, resolve_uri
from .workspace import PRODUCTS, SIDE_PRODUCTS, Workspace, parse_record

READERS = 16
"""Threads that read small objects."""
Json = dict[str, Any]


@dataclass(frozen=True)
class Policy:
    """Datasets to keep beside the latest ones, the champions, and what these refer to: the newest `keep_last` of each
    kind and name, and files that are younger than `min_age_s` seconds."""

    keep_last: int = 3
    min_age_s: float = 86_400.0


@dataclass(frozen=True)
class StoredDataset:
    """A committed dataset: its manifest, as far as it matters here.

    Attributes:
        name: under which it was made.
        created: by its manifest, an ISO date.
        modified: last write of the manifest, in seconds since 1970.
        bytes: of the files that it lists.
        references: paths of the datasets that it was made from, `clean/0123…`, below the workspace.
        files: hashes of the paths of the files that it lists (`hash_path`).
    """

    kind: str
    fingerprint: str
    name: str
    created: str
    modified: float
    bytes: int
    references: tuple[str, ...]
    files: array[int]

    @property
    def path(self) -> str:
        return f"{self.kind}/{self.fingerprint}"


def hash_path(path: str) -> int:
    """Return the 64-bit hash of a path below the workspace. A collision only keeps a file that could be deleted."""
    return xxhash.xxh3_64_intdigest(path.encode("utf-8", "surrogatepass"))


def read_all(entries: Iterable[Entry], workspace: Workspace) -> Iterator[tuple[Entry, bytes | None]]:
    """Yield the small objects of a listing, read by several threads, in its order; None for one that is gone by now."""

    def read(entry: Entry) -> tuple[Entry, bytes | None]:
        try:
            return entry, workspace.store.read(entry.uri)
        except FileNotFoundError:
            return entry, None

    return map_ordered(entries, read, READERS, lambda entry: entry.size)


def read_stored_datasets(manifests: Iterable[Entry], workspace: Workspace) -> dict[str, StoredDataset]:
    """Read manifests; return the datasets by their paths.

    UserError for a manifest that can't be understood: its dataset may list any file.
    """

    def read(entry: Entry) -> tuple[Entry, Dataset | None]:
        try:
            return entry, find_dataset(entry.uri.removesuffix(f"/{MANIFEST}"))
        except UserError as error:
            raise UserError(f"{error}; which files it needs is not known: restore or remove this manifest") from None

    datasets = {}
    for entry, dataset in map_ordered(manifests, read, READERS, lambda entry: entry.size):
        if dataset is not None:
            stored = _describe_dataset(dataset, entry.modified, workspace)
            datasets[stored.path] = stored
    return datasets


def _describe_dataset(dataset: Dataset, modified: float, workspace: Workspace) -> StoredDataset:
    manifest = dataset.manifest
    kind, fingerprint = dataset.uri.split("/")[-2:]  # its place counts, not what the manifest says of itself
    parents = [resolve_uri(dataset.uri, parent.uri, up=2) for parent in manifest.parents]
    weights = str(manifest.config.get("weights") or "")
    parents += [weights] if "/" in weights else []
    if isinstance(manifest.extra, ModelExtra) and manifest.extra.start:
        parents.append(workspace.absolute(manifest.extra.start.model))
    return StoredDataset(
        kind,
        fingerprint,
        manifest.extra.dataset_name,
        manifest.created,
        modified,
        sum(file.bytes for file in manifest.files),
        tuple(path for uri in parents if (path := find_path(uri, workspace))),
        array("Q", (hash_path(workspace.relative(dataset.locate(file))) for file in manifest.files)),
    )


def find_path(uri: str, workspace: Workspace) -> str:
    """Return `kind/fingerprint` of a dataset's URI, or of a file in it; empty where it is not of this workspace."""
    try:
        absolute = workspace.absolute(uri) if not uris.scheme(uri) else uris.normalize(uri)
    except MillError:
        return ""
    parts = workspace.relative(absolute).split("/")
    return "/".join(parts[:2]) if absolute.startswith(f"{workspace.uri}/") and parts[0] in KINDS else ""


@dataclass
class Retention:
    """The datasets that are kept, by path, each with the reasons. `datasets`: all datasets."""

    datasets: Mapping[str, StoredDataset]
    reasons: dict[str, list[str]] = field(default_factory=dict)
    _to_follow: list[str] = field(default_factory=list)

    def keep(self, path: str, reason: str, with_references: bool = True) -> None:
        """Keep a dataset and, unless told otherwise, what it was made from (see `keep_references`)."""
        if path not in self.datasets:
            return
        reasons = self.reasons.setdefault(path, [])
        if reason not in reasons:
            reasons.append(reason)
        if with_references:
            self._to_follow.append(path)

    def keep_references(self) -> None:
        """Keep what the datasets that were kept so far were made from."""
        followed: set[str] = set()
        while self._to_follow:
            child = self._to_follow.pop()
            if child in followed:
                continue
            followed.add(child)
            for parent in self.datasets[child].references:
                if parent in self.datasets:
                    self.reasons.setdefault(parent, [f"{child} was made from it"])
                    self._to_follow.append(parent)


def decide_retention(
    datasets: Mapping[str, StoredDataset],
    workspace: Workspace,
    records: Iterable[Entry],
    running: Sequence[RunningStep],
    policy: Policy,
    now: float,
) -> Retention:
    """Return which datasets are kept. `records`: those of the names and the young ones of steps; `running`: the steps
    that hold a lease. DatasetError for a record that can't be read."""
    retention = Retention(datasets)
    _keep_named(retention, workspace, records)
    groups: defaultdict[tuple[str, str], list[StoredDataset]] = defaultdict(list)
    for dataset in datasets.values():
        groups[dataset.kind, dataset.name].append(dataset)
        if now - dataset.modified < policy.min_age_s:
            retention.keep(dataset.path, "young")
    for group in groups.values():
        for dataset in sorted(group, key=lambda dataset: (dataset.created, dataset.modified), reverse=True)[
            : policy.keep_last
        ]:
            retention.keep(dataset.path, f"of the last {policy.keep_last} of {dataset.name or 'no name'}")
    for step in running:
        for uri in step.uses:
            retention.keep(find_path(uri, workspace), f"{step.step} of {step.run} uses it")
        for dataset in datasets.values():
            if dataset.kind in (PRODUCTS.get(step.step), SIDE_PRODUCTS.get(step.step)):
                retention.keep(dataset.path, f"{step.step} of {step.run} is running", with_references=False)
    retention.keep_references()
    for dataset in datasets.values():  # small, and the gate compares by them: a run would make them again
        parents, reasons = dataset.references, retention.reasons
        if dataset.kind == "evaluation" and dataset.path not in reasons and parents and reasons.keys() >= {*parents}:
            retention.keep(dataset.path, "of a kept model on kept images", with_references=False)
    return retention


def _keep_named(retention: Retention, workspace: Workspace, records: Iterable[Entry]) -> None:
    """Keep the latest datasets and the champions of each name, and the results of young step records."""
    promotions: defaultdict[str, dict[int, Json]] = defaultdict(dict)
    for entry, data in read_all(records, workspace):
        parts = workspace.relative(entry.uri).split("/")
        record = parse_record(data, entry.uri) if data is not None else {}
        stem = parts[-1].removesuffix(".json")
        if parts[0] == "runs" and record:
            run = parts[1]
            metrics = record.get("metrics") or {}
            for uri in (record.get("uri"), metrics.get("champion_evaluation")):
                retention.keep(find_path(str(uri or ""), workspace), f"of the young run {run}")
        elif parts[2] == "latest" and record:
            path = find_path(str(record.get("uri", "")), workspace)
            retention.keep(path, f"the latest of {parts[1]}")
        elif parts[2] == "promotions" and stem.isdecimal() and record:
            promotions[parts[1]][int(stem)] = record
    for name, log in promotions.items():
        _keep_champions(retention, workspace, name, log)


def _keep_champions(retention: Retention, workspace: Workspace, name: str, log: Mapping[int, Json]) -> None:
    """Keep every model that was promoted, with its evaluation; what it was made from only of the champion, and of the
    one before, to which a rollback returns."""
    models = {number: str(log[number].get("model", "")) for number in sorted(log, reverse=True)}
    champion = next(iter(models.values()))
    excluded = {champion, *log[max(log)].get("rolled_back", ())}
    previous = next((model for model in models.values() if model not in excluded), "")
    for number, model in models.items():
        rank = "the" if model == champion else "the previous" if model == previous else "an earlier"
        for uri in (model, str(log[number].get("evaluation", ""))):
            path = find_path(uri, workspace) if uri else ""
            retention.keep(path, f"{rank} champion of {name}", with_references=model in (champion, previous))


def count_newer(datasets: Mapping[str, StoredDataset]) -> Callable[[StoredDataset], int]:
    """Return a function that counts the datasets of the same kind and name that are newer than one."""
    groups: defaultdict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    for dataset in datasets.values():
        groups[dataset.kind, dataset.name].append((dataset.created, dataset.modified))

    def count(dataset: StoredDataset) -> int:
        own = (dataset.created, dataset.modified)
        return sum(other > own for other in groups[dataset.kind, dataset.name])

    return count
