"""The protocol of an object store: the operations that datasets need (`Store`), and an object of a listing (`Entry`).

A reader never sees half an object, and of several writers of `put_if_absent` exactly one is told that it was first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Entry:
    """One object of a listing. `validator` is its ETag, or modification time in ns on disk; `modified` is the time of
    its last write in seconds since 1970, by the clock of the store (0 where it is not kept)."""

    uri: str
    size: int
    validator: str
    modified: float = field(default=0.0, compare=False)


class Store(Protocol):
    """An object store. Every method raises UserError, TransientError or FileNotFoundError."""

    def read(self, uri: str) -> bytes:
        """Return all bytes of an object; FileNotFoundError when there is none."""

    def open(self, uri: str) -> pa.NativeFile:
        """Open an object for random access (memory-mapped on disk, ranged GETs on S3)."""

    def stat(self, uri: str) -> Entry | None:
        """Return size and validator, or None when there is no such object."""

    def list(self, uri: str) -> Iterator[Entry]:
        """Yield every object below the folder `uri`, recursively, in the order of their URIs; none if absent."""

    def put(self, uri: str, data: bytes) -> None:
        """Write atomically and replace an existing object: for hints and work in progress only."""

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Write atomically unless the object exists; True for the one writer that was first."""

    def discard(self, uri: str) -> None:
        """Delete an object of work in progress, if that is possible; errors are ignored."""

    def delete(self, uris: Sequence[str]) -> None:
        """Delete objects, in any order and in batches; those that do not exist are no error. Folders that are then
        empty go, too."""

    def publish(self, path: Path, uri: str) -> None:
        """Move the local file `path` to `uri`, a name made of its content's hash, unless that exists."""

    def scratch(self, uri: str) -> Path:
        """Create a local folder for files that will be published below `uri`; the caller removes it."""
