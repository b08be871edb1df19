"""Garbage: what no dataset that is kept lists, and is older than the longest run may last.

Kept are the latest datasets of each name, every promoted model with its evaluation, what the champion and the one
before it were made from, what is young, and what all these were made from. A part, or a file of a dataset's folder,
stays if a kept dataset lists it, or if it is young: a run that is going on uses only what it has written, or found and
written again (`parts.PartFolder.find`), within its lifetime. So nothing has to be locked.

Manifests are removed before the files that they list, those of evaluations first: a dataset whose files go does not
exist by then. After an interruption the rest is garbage for the next time. In memory a file that goes costs 300 bytes.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..storage import uri as uris
from ..storage.errors import UserError
from ..storage.parallel import map_ordered
from ..storage.protocol import Entry
from .kinds import ModelExtra
from .manifest import KINDS, MANIFEST, Dataset, find_dataset, resolve_uri
from .workspace import (
    MARKER,
    WEIGHTS_FOLDER,
    WORK,
    Workspace,
    has_known_name,
    is_fingerprint,
    is_manifest,
    parse_record,
)

READERS = 16
"""Manifests and records that are read at a time."""
MAX_UNKNOWN = 100
"""Unknown files that are named; all are counted."""
BATCH = 1000
_KEPT_FOLDERS = ("names", "runs", WEIGHTS_FOLDER, MARKER)
Report = Callable[[int], None]
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
class Garbage:
    """The files of a workspace by whether they stay.

    Attributes:
        datasets: all that are committed, by path (`clean/0123…`).
        reasons: why those that are kept stay, by path.
        going: files that go, by the path of their dataset or folder.
        kept, young, unknown: files that stay: listed by a kept dataset or of no dataset, written lately, not
            imagemill's; up to `MAX_UNKNOWN` of the last are named in `unknown_files`.
    """

    datasets: Mapping[str, Dataset]
    reasons: Mapping[str, list[str]]
    going: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    kept: Tally = field(default_factory=Tally)
    young: Tally = field(default_factory=Tally)
    unknown: Tally = field(default_factory=Tally)
    unknown_files: list[str] = field(default_factory=list)
    _files: defaultdict[int, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, entry: Entry, path: str, order: int) -> None:
        """Mark a file for deletion, at its place in the order of removal."""
        self.going[path].add(entry)
        self._files[order].append(entry.uri)

    def leave_unknown(self, entry: Entry, path: str) -> None:
        self.unknown.add(entry)
        if len(self.unknown_files) < MAX_UNKNOWN:
            self.unknown_files.append(path)

    def delete(self, workspace: Workspace, report: Report) -> None:
        """Delete the files that go; MillError of the store."""
        for _, files in sorted(self._files.items()):
            for start in range(0, len(files), BATCH):
                batch = files[start : start + BATCH]
                workspace.store.delete(batch)
                report(len(batch))


def find_garbage(workspace: Workspace, min_age_s: float, report: Report) -> Garbage:
    """Sort all files of a workspace. `min_age_s`: age in seconds below which a file stays whatever refers to it."""
    oldest_young = time.time() - min_age_s
    entries = list(_list_files(workspace, report))
    manifests = {uris.join(*path.split("/")[:2]): entry for entry, path in entries if is_manifest(path)}
    datasets = dict(zip(manifests, map_ordered(manifests.values(), _read_dataset, READERS, lambda _: 0), strict=True))
    committed = {path: dataset for path, dataset in datasets.items() if dataset}
    young = [path for path in committed if manifests[path].modified > oldest_young]
    garbage = Garbage(committed, _find_kept(committed, workspace, entries, young))
    listed = {uri for path in garbage.reasons for uri in _list_uris(committed[path])}
    written = _find_last_writes(entries)
    for entry, path in entries:
        kind, _, rest = path.partition("/")
        folder = uris.join(*path.split("/")[:2])
        is_kept = kind in _KEPT_FOLDERS or entry.uri in listed or (is_manifest(path) and folder in garbage.reasons)
        is_kept = is_kept or (kind == "parts" and any(uri in listed for uri in _name_part_files(entry.uri)))
        is_kept = is_kept or (kind == "sources" and _names_kept(entry, workspace, garbage.reasons))
        is_known = kind in ("parts", "sources") or (kind in KINDS and is_fingerprint(folder.rpartition("/")[2]))
        if is_kept:
            garbage.kept.add(entry)
        elif not rest or not is_known:
            garbage.leave_unknown(entry, path)
        elif max(entry.modified, written.get(_get_stem(path), 0)) > oldest_young:
            garbage.young.add(entry)
        elif kind == "sources":
            garbage.add(entry, kind, 0)
        elif is_manifest(path):
            garbage.add(entry, folder, len(KINDS) - KINDS.index(kind))
        elif kind == "parts" or has_known_name(path) or path.split("/")[2] == WORK:
            garbage.add(entry, folder, len(KINDS) + 1)
        else:
            garbage.leave_unknown(entry, path)
    return garbage


def _list_files(workspace: Workspace, report: Report) -> Iterator[tuple[Entry, str]]:
    """Yield every file with its path below the workspace."""
    for entry in workspace.store.list(workspace.uri):
        report(1)
        yield entry, workspace.relative(entry.uri)


def _read_dataset(entry: Entry) -> Dataset | None:
    """Read a manifest; None for one that is gone by now. UserError for one that can't be understood: its dataset may
    list any file."""
    try:
        return find_dataset(entry.uri.removesuffix(f"/{MANIFEST}"))
    except UserError as error:
        raise UserError(f"{error}; which files it needs is not known: restore or remove this manifest") from None


def _list_uris(dataset: Dataset) -> Iterator[str]:
    """Yield the URIs of the files and parts that a dataset lists."""
    yield from (dataset.locate(file) for file in dataset.manifest.files)
    yield from (dataset.locate_part(part) for part in dataset.manifest.parts)


def _name_part_files(uri: str) -> list[str]:
    """Return the URIs of the files that the record of a part stands for: one, or one of each split."""
    stem = uri.removesuffix(".json")
    return [f"{stem}{split}.parquet" for split in ("", "-train", "-val", "-test")] if uri.endswith(".json") else []


def _get_stem(path: str) -> str:
    """Return what the record of a part and its files have in common; the path itself of any other file."""
    if not path.startswith("parts/"):
        return path
    folder, _, name = path.rpartition("/")
    return uris.join(folder, name.partition(".")[0].partition("-")[0])


def _find_last_writes(entries: Iterable[tuple[Entry, str]]) -> dict[str, float]:
    """Return the time of the last write of each part: of its record, which is written again where it is used."""
    written: dict[str, float] = {}
    for entry, path in entries:
        if path.startswith("parts/"):
            stem = _get_stem(path)
            written[stem] = max(written.get(stem, 0.0), entry.modified)
    return written


def _names_kept(entry: Entry, workspace: Workspace, kept: Mapping[str, list[str]]) -> bool:
    """Return whether the record of a source names a raw dataset that is kept."""
    record = _read_record(entry, workspace)
    return workspace.relative(workspace.absolute(str(record.get("raw", "")))) in kept


def _read_record(entry: Entry, workspace: Workspace) -> dict[str, Any]:
    try:
        return parse_record(workspace.store.read(entry.uri), entry.uri)
    except FileNotFoundError:
        return {}


def _find_kept(
    datasets: Mapping[str, Dataset], workspace: Workspace, entries: Iterable[tuple[Entry, str]], young: Iterable[str]
) -> dict[str, list[str]]:
    """Return why datasets are kept, by path."""
    reasons: dict[str, list[str]] = {}

    def keep(uri: str, reason: str, with_parents: bool = True) -> None:
        path = workspace.relative(workspace.absolute(uri))
        if path not in datasets or reason in reasons.get(path, ()):
            return
        is_new = path not in reasons
        reasons.setdefault(path, []).append(reason)
        if with_parents and (is_new or not reason.startswith("an earlier")):
            for parent in _list_references(datasets[path], workspace):
                keep(parent, f"needed by {path}")

    for entry, path in entries:
        parts = path.split("/")
        if parts[0] == "names" and parts[2:3] == ["latest"] and path.endswith(".json"):
            keep(str(_read_record(entry, workspace).get("uri", "")), f"the latest of {parts[1]}")
    for name in workspace.names_with_champion():
        for number, (model, evaluation, has_rank) in enumerate(_rank_models(workspace, name)):
            rank = "an earlier" if not has_rank else "the" if number == 0 else "the previous"
            for uri in filter(None, (model, evaluation)):
                keep(uri, f"{rank} champion of {name}", with_parents=has_rank)
    for path in young:
        keep(path, "young")
    for path, dataset in datasets.items():
        references = [workspace.relative(uri) for uri in _list_references(dataset, workspace)]
        if dataset.manifest.kind == "evaluation" and references and all(uri in reasons for uri in references):
            keep(path, "of a kept model on kept images")
    return reasons


def _rank_models(workspace: Workspace, name: str) -> list[tuple[str, str, bool]]:
    """Return (model, evaluation, whether a rollback may need what it was made from) of each promotion, newest first."""
    log = [workspace.promotion(name, number) for number in reversed(workspace.promotion_numbers(name))]
    excluded = {log[0].model, *(log[0].rolled_back or ())}
    previous = next((promotion.model for promotion in log if promotion.model not in excluded), "")
    return [(entry.model, entry.evaluation, entry.model in (log[0].model, previous)) for entry in log]


def _list_references(dataset: Dataset, workspace: Workspace) -> list[str]:
    """Return the URIs of the datasets that one was made from: parents, weights, and the champion that it started
    from."""
    manifest = dataset.manifest
    references = [resolve_uri(dataset.uri, parent.uri, up=2) for parent in manifest.parents]
    weights = str(manifest.config.get("weights") or "")
    references += [weights] if "/" in weights else []
    if isinstance(manifest.extra, ModelExtra) and manifest.extra.start:
        references.append(workspace.absolute(manifest.extra.start.model))
    return references


def count_newer(datasets: Mapping[str, Dataset]) -> dict[str, int]:
    """Return, by path, the number of datasets of the same kind and name that are newer."""
    ordered = sorted(datasets, key=lambda path: datasets[path].manifest.created, reverse=True)
    seen: Counter[tuple[str, str]] = Counter()
    newer: dict[str, int] = {}
    for path in ordered:
        key = (datasets[path].manifest.kind, datasets[path].manifest.extra.dataset_name)
        newer[path] = seen[key]
        seen[key] += 1
    return newer
