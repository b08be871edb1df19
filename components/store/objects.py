"""What the dataset contract needs of a place that holds objects: the same few operations on disk and on S3.

A reader never sees half an object, and of several writers of `put_if_absent` exactly one is told that it was first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Entry:
    """One object of a listing. `validator` is its ETag, or modification time in ns on disk."""

    uri: str
    size: int
    validator: str


class Store(Protocol):
    """What the contract needs of a place. Every method raises UserError, TransientError or FileNotFoundError."""

    def read(self, uri: str) -> bytes:
        """The whole object; FileNotFoundError when there is none."""

    def open(self, uri: str) -> pa.NativeFile:
        """The object for random access (memory-mapped on disk, ranged GETs on S3)."""

    def stat(self, uri: str) -> Entry | None:
        """Size and validator, or None when there is no such object."""

    def list(self, uri: str) -> Iterator[Entry]:
        """Every object below the folder `uri`, recursively, in the order of their URIs; none if absent."""

    def put(self, uri: str, data: bytes) -> None:
        """Write atomically, replacing what is there: for hints and work in progress only."""

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Write atomically unless something is there; True for the one writer that was first."""

    def discard(self, uri: str) -> None:
        """Remove work in progress that nothing needs any more, if that is allowed; silent otherwise."""

    def publish(self, path: Path, uri: str) -> None:
        """Move the local file `path` to a name made of its content; nothing to do if that is there."""

    def scratch(self, uri: str) -> Path:
        """A fresh local folder for files that will be published below `uri`; the caller removes it."""
