"""Finished parts, which a retry and a later snapshot reuse.

A part is the result of one task: files that are named by their content, and a record that lists them under a key of
everything that they depend on. Where files of a record are gone, the task is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..dataset.manifest import File, find_damaged
from ..dataset.shards import READ_THREADS
from ..dataset.workspace import Workspace
from ..storage import uri as uris
from ..storage.parallel import map_ordered
from .tasks import TaskT

Record = dict[str, Any]
NameT = TypeVar("NameT")


@dataclass(frozen=True)
class FinishedParts:
    """The parts of one folder `uri`, whose records lie in its `_work/`."""

    workspace: Workspace
    uri: str

    def find_intact(self, files: Iterable[File]) -> set[str]:
        """Return the URIs of those files that are there with their sizes."""
        sizes = {file.uri: file.bytes for file in files}
        damaged = find_damaged({uris.join(self.uri, uri): size for uri, size in sizes.items()})
        return {uri for uri in sizes if uris.join(self.uri, uri) not in damaged}

    def read(self, keys: Mapping[NameT, str]) -> dict[NameT, Record]:
        """Return the records of those keys that have one, by the names that the keys have in `keys`."""
        records = map_ordered(
            keys.values(), lambda key: self.workspace.read_work_record(self.uri, key), READ_THREADS, lambda _: 0
        )
        return {name: record for name, record in zip(keys, records, strict=True) if record}

    def find(self, keys: Mapping[NameT, str], list_files: Callable[[Record], Iterable[File]]) -> dict[NameT, Record]:
        """Return the records, as `read`, whose files are there. `list_files`: those that a record needs."""
        files = {name: (record, list(list_files(record))) for name, record in self.read(keys).items()}
        intact = self.find_intact(file for _, needed in files.values() for file in needed)
        return {name: record for name, (record, needed) in files.items() if all(file.uri in intact for file in needed)}

    def add(self, key: str, record: Record) -> None:
        """Write the record of a part. One that lists other files, which are gone, is replaced."""
        if not self.workspace.write_work_record(self.uri, key, record) and self.read({key: key}) != {key: record}:
            self.workspace.replace_work_record(self.uri, key, record)

    def record_results(
        self, results: Iterable[tuple[TaskT, dict[str, Record]]]
    ) -> Iterator[tuple[TaskT, dict[str, Record]]]:
        """Write the records of each task's parts, given by their keys, and then yield the task and its records."""
        for task, records in results:
            for key, record in records.items():
                self.add(key, record)
            yield task, records
