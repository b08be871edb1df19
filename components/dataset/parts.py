"""Parts: Parquet files of images, each a pure function of its parent part, made once and never changed.

A part lies at `<workspace>/parts/<kind>/<key>.parquet`. Its key is a hash of everything that it is a function of, so
that a retry, another worker, another run and next week's snapshot are one case: the part exists or it does not. It
exists once its record, `<key>.json` beside it, is there, which is written last.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..storage import uri as uris
from ..storage.errors import DatasetError, UserError
from ..storage.parallel import map_ordered
from ..storage.store import get_store
from .json_object import JsonObject
from .manifest import Part, digest, find_entries, parse_json
from .shards import READ_THREADS, Layout, ShardWriter
from .workspace import Workspace

PART_BYTES, PART_ROWS = 64 * 2**20, 4096
"""Most bytes of images, and rows, of a raw part, from which one clean part and one set of tensor parts are made: one
core works on a part, a worker holds about two, and what is in flight is lost when it is killed."""
REFRESH_S = 24 * 3600.0
"""Age of a record from which on it is written again where its part is used, since garbage is judged by age."""


def make_part_key(function: str, version: int, parent: str, values: Mapping[str, Any]) -> str:
    """Return the key of a part.

    Args:
        function: name of what makes the part.
        version: raised when the same inputs must give another part.
        parent: key of the part that it is made from; empty for one that is read from a source.
        values: options and other values that its bytes depend on.
    """
    return digest({"function": function, "version": version, "parent": parent, "values": dict(values)})


@dataclass(frozen=True)
class PartRecord(JsonObject):
    """The result of making a part.

    Attributes:
        key: of the part.
        files: its Parquet files: one, or one a split, whose keys begin with this one; none where no row is left.
        facts: what else is known of it, such as the files that a source skipped.
    """

    key: str
    files: tuple[Part, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PartFolder:
    """The parts of one kind in a workspace, in the folder `uri`. It travels to the workers that write parts."""

    uri: str

    @classmethod
    def of(cls, workspace: Workspace, kind: str) -> PartFolder:
        return cls(workspace.at("parts", kind))

    def locate(self, key: str) -> str:
        """Return the URI of a part's Parquet file."""
        return uris.join(self.uri, f"{key}.parquet")

    def open_writer(self, layout: Layout) -> ShardWriter:
        """Return a writer whose `publish_part` puts the file into this folder."""
        return ShardWriter(self.uri, layout)

    def find(self, keys: Collection[str]) -> dict[str, PartRecord]:
        """Return the records, by key, of those parts that exist as a whole; a record that has aged is written again."""
        unique = list(dict.fromkeys(keys))
        entries = find_entries([self._locate_record(key) for key in unique])
        candidates = [key for key in unique if self._locate_record(key) in entries]
        records = dict(zip(candidates, map_ordered(candidates, self._read, READ_THREADS, lambda _: 0), strict=True))
        sizes = {self.locate(file.key): file.bytes for record in records.values() for file in record.files}
        files = find_entries(sizes)
        existing = {
            key: record
            for key, record in records.items()
            if all((entry := files.get(self.locate(file.key))) and entry.size == file.bytes for file in record.files)
        }
        oldest = time.time() - REFRESH_S
        for key, record in existing.items():
            if entries[self._locate_record(key)].modified < oldest:
                get_store(self.uri).put(self._locate_record(key), record.to_json())
        return existing

    def add(self, record: PartRecord) -> PartRecord:
        """Write the record of a part whose files are in place; return the one that stands, which another process may
        have written first. A record of files that are gone or damaged is replaced."""
        uri = self._locate_record(record.key)
        if get_store(uri).put_if_absent(uri, record.to_json()):
            return record
        if (standing := self.find([record.key]).get(record.key)) is not None:
            return standing
        get_store(uri).put(uri, record.to_json())
        return record

    def _locate_record(self, key: str) -> str:
        return uris.join(self.uri, f"{key}.json")

    def _read(self, key: str) -> PartRecord:
        uri = self._locate_record(key)
        try:
            return PartRecord.from_dict(parse_json(get_store(uri).read(uri), uri), uri)
        except (UserError, FileNotFoundError) as error:
            raise DatasetError(f"{uri}: expected the record of a part, found something else: {error}") from None


def name_split_key(key: str, split: str) -> str:
    """Return the key of the file of one split among those of a part."""
    return f"{key}-{split}"
