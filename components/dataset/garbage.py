"""Garbage: the files of a workspace that no dataset that is kept lists or needs, and their removal.

The workspace is listed twice: for manifests and records, then to sort every file. Memory: what `retention` states,
about 150 bytes for each file that goes, and 400 for each file of the one folder that is being sorted.

Files are removed in this order: records of sources, manifests (of evaluations first, of raw datasets last), records of
work in progress, all else. So a dataset whose files go does not exist by then, nor does the record of work all of whose
files go. After an interruption the rest is garbage for the next time. Steps do not trust records either: they compare
the sizes of the files that a record names, and make anew what is missing.
"""

from __future__ import annotations

import json
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from ..storage import uri as uris
from ..storage.protocol import Entry
from .leases import FOLDER, STEP_LEASE_S, DeleteLease, RunningStep, list_running_steps
from .manifest import KINDS, MANIFEST
from .retention import (
    Policy,
    Retention,
    StoredDataset,
    count_newer,
    decide_retention,
    find_path,
    hash_path,
    read_all,
    read_stored_datasets,
)
from .workspace import (
    MARKER,
    PRODUCTS,
    SHARED_SHARDS,
    SIDE_PRODUCTS,
    WEIGHTS_FOLDER,
    WORK,
    Workspace,
    has_known_name,
    is_fingerprint,
    is_manifest,
    is_name_record,
    is_step_record,
    is_work,
    is_work_record,
)

MAX_UNKNOWN = 100
"""Unknown files that are named; all are counted."""
BATCH = 1000
_SOURCES, _MANIFESTS, _RECORDS, _FILES = 0, 1, 10, 11
"""The order in which files are removed; the manifests of each kind have a number of their own from `_MANIFESTS` on."""
ReportFiles = Callable[[int], None]
"""Is told of files that were listed or deleted, by their number."""


@dataclass
class Tally:
    """A number of files, and their bytes."""

    files: int = 0
    bytes: int = 0

    def add(self, entry: Entry) -> None:
        self.files += 1
        self.bytes += entry.size


@dataclass
class Group:
    """Files to delete, for one reason. `path`: of their dataset, or of the folder that they are in."""

    path: str
    why: str
    dataset: StoredDataset | None = None
    tally: Tally = field(default_factory=Tally)


@dataclass
class Garbage:
    """Files of a workspace by whether a kept dataset refers to them.

    Attributes:
        retention: the datasets that are kept, and why.
        running: steps that hold a lease; datasets of the kinds that they make are left alone.
        groups: files to delete.
        kept: files of kept datasets, names, records of steps, pretrained weights, and all else that stays for good.
        young: files that stay because they were written lately, or because a step that runs may use them.
        unknown: files that are none of imagemill's, up to `MAX_UNKNOWN` of them in `unknown_files`.
    """

    retention: Retention
    running: list[RunningStep]
    groups: list[Group] = field(default_factory=list)
    kept: Tally = field(default_factory=Tally)
    young: Tally = field(default_factory=Tally)
    unknown: Tally = field(default_factory=Tally)
    unknown_files: list[str] = field(default_factory=list)
    _batches: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def going(self) -> Tally:
        tallies = [group.tally for group in self.groups]
        return Tally(sum(tally.files for tally in tallies), sum(tally.bytes for tally in tallies))

    def add(self, entry: Entry, group: Group, order: int) -> None:
        """Mark a file for deletion, at its place in the order of removal."""
        if not group.tally.files:
            self.groups.append(group)
        group.tally.add(entry)
        self._batches[order].append(entry.uri)

    def delete(self, workspace: Workspace, lease: DeleteLease, report: ReportFiles) -> None:
        """Delete the files of all groups; MillError of the store, TransientError where the lease is lost."""
        for _, files in sorted(self._batches.items()):
            for start in range(0, len(files), BATCH):
                lease.check()
                batch = files[start : start + BATCH]
                workspace.store.delete(batch)
                report(len(batch))


def find_garbage(workspace: Workspace, policy: Policy, report: ReportFiles) -> Garbage:
    """Sort all files of a workspace. `report` is told of the objects that were listed.

    The steps that run are looked up first, so that of one that ends meanwhile all that it made is seen.
    """
    now, running = time.time(), list_running_steps(workspace)
    manifests: list[Entry] = []
    records: list[Entry] = []
    for entry, path in _list_files(workspace, report):
        if is_manifest(path):
            manifests.append(entry)
        elif is_name_record(path) or (is_step_record(path) and now - entry.modified < policy.min_age_s):
            records.append(entry)
    datasets = read_stored_datasets(manifests, workspace)
    retention = decide_retention(datasets, workspace, records, running, policy, now)
    garbage = Garbage(retention, running)
    sorter = _Sorter(workspace, garbage, now - policy.min_age_s, now)
    for folder, group in groupby(_list_files(workspace, report), key=lambda file: "/".join(file[1].split("/")[:2])):
        sorter.sort_folder(folder, [entry for entry, _ in group])
    sorter.sort_sources()
    return garbage


def _list_files(workspace: Workspace, report: ReportFiles) -> Iterator[tuple[Entry, str]]:
    """Yield every file with its path below the workspace."""
    for entry in workspace.store.list(workspace.uri):
        report(1)
        yield entry, workspace.relative(entry.uri)


class _Sorter:
    """Sorts the files of a workspace into those that stay and those that go, a folder at a time."""

    def __init__(self, workspace: Workspace, garbage: Garbage, oldest_young: float, now: float) -> None:
        self._workspace, self._garbage, self._oldest_young, self._now = workspace, garbage, oldest_young, now
        self._datasets, self._kept = garbage.retention.datasets, garbage.retention.reasons
        self._busy_kinds = {kinds.get(step.step, "") for step in garbage.running for kinds in (PRODUCTS, SIDE_PRODUCTS)}
        files = [array("Q"), *(self._datasets[path].files for path in self._kept)]
        self._kept_files = np.unique(np.concatenate([np.array(hashes, np.uint64) for hashes in files]))
        self._count_newer = count_newer(self._datasets)
        self._sources: list[Entry] = []
        self._leases = Group(FOLDER, "leases of steps that were killed")

    def sort_folder(self, path: str, entries: list[Entry]) -> None:
        """Sort the files of a folder of the second level, as `<kind>/<fingerprint>`, or a file above that."""
        kind, _, folder = path.partition("/")
        if kind in ("names", "runs", WEIGHTS_FOLDER, MARKER):
            self._stay(entries, self._garbage.kept)
        elif kind == FOLDER:
            self._sort_leases(entries)
        elif kind == "sources" and folder.endswith(".json"):
            self._sources += entries
        elif kind not in KINDS or self._relative(entries[0]) == path:
            self._leave_unknown(entries)
        elif kind in self._busy_kinds:
            self._stay(entries, self._garbage.young)
        elif folder == SHARED_SHARDS:
            self._sort_shared_shards(path, entries)
        elif path in self._datasets:
            self._sort_dataset(self._datasets[path], entries)
        elif is_fingerprint(folder):
            self._sort_uncommitted(path, entries)
        else:
            self._leave_unknown(entries)

    def _relative(self, entry: Entry) -> str:
        return self._workspace.relative(entry.uri)

    def _is_young(self, entry: Entry) -> bool:
        return entry.modified > self._oldest_young

    def _is_listed(self, entry: Entry) -> bool:
        """Return whether a kept dataset lists a file."""
        value = np.uint64(hash_path(self._relative(entry)))
        index = int(np.searchsorted(self._kept_files, value))
        return index < len(self._kept_files) and bool(self._kept_files[index] == value)

    def _stay(self, entries: Iterable[Entry], tally: Tally) -> None:
        for entry in entries:
            tally.add(entry)

    def _leave_unknown(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._garbage.unknown.add(entry)
            if len(self._garbage.unknown_files) < MAX_UNKNOWN:
                self._garbage.unknown_files.append(self._relative(entry))

    def _sort_leases(self, entries: list[Entry]) -> None:
        for entry in entries:
            if self._now - entry.modified > STEP_LEASE_S:
                self._garbage.add(entry, self._leases, _FILES)

    def _sort_dataset(self, dataset: StoredDataset, entries: list[Entry]) -> None:
        """Sort the folder of a committed dataset. What a kept one lists stays, wherever it lies."""
        goes = dataset.path not in self._kept
        newer = self._count_newer(dataset)
        all_files = Group(
            dataset.path, f"{newer:,} newer of {dataset.name or 'no name'}, nothing kept was made from it", dataset
        )
        leftovers = Group(dataset.path, "left over from work that is finished")
        listed = set(dataset.files) if goes else set()
        for entry in entries:
            path = self._relative(entry)
            is_known = is_work(path) or has_known_name(path) or (goes and hash_path(path) in listed)
            if path == f"{dataset.path}/{MANIFEST}":
                if goes:
                    self._garbage.add(entry, all_files, _MANIFESTS + len(KINDS) - KINDS.index(dataset.kind))
                else:
                    self._garbage.kept.add(entry)
            elif self._is_listed(entry):
                self._garbage.kept.add(entry)
            elif not is_known:
                self._leave_unknown([entry])
            elif self._is_young(entry):
                self._garbage.young.add(entry)
            else:
                self._garbage.add(entry, all_files if goes else leftovers, _RECORDS if is_work_record(path) else _FILES)

    def _sort_uncommitted(self, path: str, entries: list[Entry]) -> None:
        """Sort the folder of a dataset without a manifest: of work in progress, of work that was given up, or of a
        dataset that was removed before and some of whose files are listed by others."""
        newest = max(entries, key=lambda entry: entry.modified)
        is_committed_now = any(self._relative(entry) == f"{path}/{MANIFEST}" for entry in entries)
        group = Group(path, "never finished, or of a dataset that is gone")
        for entry in entries:
            relative = self._relative(entry)
            if self._is_listed(entry):
                self._garbage.kept.add(entry)
            elif is_committed_now or self._is_young(newest):
                self._garbage.young.add(entry)
            elif is_work(relative) or has_known_name(relative):
                self._garbage.add(entry, group, _RECORDS if is_work_record(relative) else _FILES)
            else:
                self._leave_unknown([entry])

    def _sort_shared_shards(self, path: str, entries: list[Entry]) -> None:
        """Sort shared shards, which several datasets list, and the records of the work that wrote them.

        A file is as young as the work that names it. Records of files that stay are kept, since they save work: in
        clean while some of a record's files stay, in raw (a sequence of records under a listing's key) while all do.
        """
        files: list[Entry] = []
        records: defaultdict[str, list[Entry]] = defaultdict(list)
        kept_paths: set[str] = set()
        shards = Group(path, "no kept dataset lists them")
        leftovers = Group(f"{path}/{WORK}", "records of files that go, and what killed steps left")
        for entry in entries:
            relative = self._relative(entry)
            if is_work_record(relative):
                records[_find_work(relative)].append(entry)
            elif self._is_listed(entry):
                self._garbage.kept.add(entry)
                kept_paths.add(relative)
            elif not (is_work(relative) or has_known_name(relative)):
                self._leave_unknown([entry])
            elif self._is_young(entry):
                self._garbage.young.add(entry)
                kept_paths.add(relative)
            elif is_work(relative):
                self._garbage.add(entry, leftovers, _FILES)
            else:
                files.append(entry)
        if not files:  # then no record needs to be read
            self._stay((entry for group in records.values() for entry in group), self._garbage.kept)
            return
        paths: defaultdict[str, set[str]] = defaultdict(set)
        for entry, data in read_all((entry for group in records.values() for entry in group), self._workspace):
            paths[_find_work(self._relative(entry))].update(find_named_files(path, data))
        young = {work for work, group in records.items() if any(self._is_young(entry) for entry in group)}
        kept_paths.update(*(paths[work] for work in young))
        for work, group in records.items():
            if path.startswith("raw/"):
                saves_work = paths[work] <= kept_paths
            else:
                saves_work = not paths[work] or not paths[work].isdisjoint(kept_paths)
            if work in young:
                self._stay(group, self._garbage.young)
            elif saves_work:
                self._stay(group, self._garbage.kept)
            else:
                for entry in group:
                    self._garbage.add(entry, leftovers, _RECORDS)
        for entry in files:
            if self._relative(entry) in kept_paths:
                self._garbage.young.add(entry)
            else:
                self._garbage.add(entry, shards, _FILES)

    def sort_sources(self) -> None:
        """Sort the records of sources: those of raw datasets that go or are gone go, too."""
        group = Group("sources", "records of raw datasets that go")
        for entry, data in read_all(self._sources, self._workspace):
            raw = find_path(str(_parse(data).get("raw", "")), self._workspace)
            if not raw:
                self._leave_unknown([entry])
            elif raw in self._kept:
                self._garbage.kept.add(entry)
            elif "raw" in self._busy_kinds or self._is_young(entry):
                self._garbage.young.add(entry)
            else:
                self._garbage.add(entry, group, _SOURCES)


def _find_work(record: str) -> str:
    """Return the work that a record of shared shards belongs to: the record itself, in raw the key of a listing."""
    return record.rpartition("/")[0] if record.startswith("raw/") else record


def find_named_files(folder: str, data: bytes | None) -> Iterator[str]:
    """Yield the paths of the files below `folder` that a record of work names, at any depth."""
    pending: list[Any] = [_parse(data)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("uri"), str) and "sha256" in value:
                yield uris.join(folder, value["uri"])
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _parse(data: bytes | None) -> dict[str, Any]:
    """Return a record; an empty one for what is none."""
    try:
        record = json.loads(data or b"{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
