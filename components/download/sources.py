"""The sources of images, behind one interface: an archive, a folder, an s3 prefix, or the demo; `table.py` has another.

A source can be listed again at every run (so that a change is seen) and read in one fixed order, as a whole or, where
it can be listed file by file, in part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..imaging.headers import sniff
from ..imaging.pixel_options import DecodeLimits, has_image_extension
from ..storage import uri as uris
from ..storage.errors import TransientError, UserError, wrong
from ..storage.parallel import map_ordered
from ..storage.protocol import Entry
from ..storage.store import get_store
from ..storage.uri import is_hidden
from .archives import Member, Skipped, classify, make_skipped, make_too_large, normalize_path, read_archive
from .listing import SourceFile, make_listing
from .streams import open_http, open_stream

if TYPE_CHECKING:
    import pyarrow as pa

Numbers: TypeAlias = "Iterable[int] | None"
"""Numbers of files in the order of reading; None for all."""
MAX_FILE_BYTES = DecodeLimits().bytes


class Source(Protocol):
    """A source of images: its URI without passwords, for messages, and its number of files, 0 while unknown.

    `checks_reads`: whether a file that is no longer as it was listed is an error when it is read, so that the listing
    describes what was read without another look at the source.
    """

    where: str
    total: int
    checks_reads: bool

    def listing(self) -> str | None:
        """Return a hash of the names, sizes and validators of the source's files, or None if it has no validators."""

    def list_files(self) -> pa.Table | None:
        """Return the files that `listing` has listed last (`listing.LISTING`), which `members` reads then.

        None if the source is read as a whole.
        """

    def members(self, numbers: Numbers = None) -> Iterator[Member | Skipped]:
        """Yield the files in a fixed order: all, or those of ascending `numbers`, which count `list_files` from 0."""


class ArchiveSource:
    """One tar or zip archive, on disk, S3 or behind http."""

    checks_reads = False

    def __init__(self, uri: str, field: str = "source") -> None:
        self.where, self.total, self._uri, self._field = uris.redact(uri), 0, uri, field

    def listing(self) -> str | None:
        if uris.is_http(self._uri):
            with open_http(self._uri, self._field) as file:
                return _hash([(self._uri, file.length, file.validator)]) if file.validator and file.length else None
        entry = get_store(self._uri).stat(self._uri)
        return _hash([(self._uri, entry.size, entry.validator)]) if entry else None

    def list_files(self) -> None:
        return None

    def members(self, numbers: Numbers = None) -> Iterator[Member | Skipped]:
        before = None if uris.is_http(self._uri) else self.listing()  # `HttpFile` checks that itself
        try:
            with open_stream(self._uri, self._field) as stream:
                for member in read_archive(stream, self.where, MAX_FILE_BYTES):
                    if isinstance(member, Skipped):
                        yield make_skipped(member.path, member.why)
                    else:
                        yield classify(member.path, member.data or b"")
        except UserError:
            self._refuse_changed(before)
            raise
        self._refuse_changed(before)

    def _refuse_changed(self, before: str | None) -> None:
        """Raise TransientError for an archive that changed while it was read, rather than an error about damage."""
        if before and self.listing() != before:
            raise TransientError(f"{self.where}: the archive changed while it was read")


class ListingSource:
    """The files below a folder or s3 prefix, in the order of their names; a listing of them holds some 100 bytes each.

    The workspace may lie in the folder; its files are left out.
    """

    def __init__(self, uri: str, workers: int, workspace: str = "") -> None:
        self.where, self.total, self._uri, self._workers = uri, 0, uri, workers
        self.checks_reads = not uris.is_s3(uri)  # on S3 a request per file would cost too much
        self._workspace = f"{workspace}/" if workspace else ""
        self._files: pa.Table | None = None

    def _entries(self) -> Iterator[Entry]:
        for entry in get_store(self._uri).list(self._uri):
            if not self._workspace or not entry.uri.startswith(self._workspace):
                yield entry

    def listing(self) -> str | None:
        digest = hashlib.sha256()

        def list_entries() -> Iterator[SourceFile]:
            for entry in self._entries():
                path = self._get_path(entry)
                digest.update(_encode(f"{path}\0{entry.size}\0{entry.validator}\n"))
                yield SourceFile(normalize_path(path), _encode(entry.uri), entry.size, entry.validator)

        self._files = make_listing(list_entries())
        self.total = self._files.num_rows
        return digest.hexdigest()

    def list_files(self) -> pa.Table | None:
        return self._files

    def _get_path(self, entry: Entry) -> str:
        return entry.uri[len(self._uri.rstrip("/")) + 1 :]

    def paths(self) -> Iterator[str]:
        """Yield the paths of files that may be images: with an image's ending, or without any; nothing is read."""
        for entry in self._entries():
            path = self._get_path(entry)
            if (has_image_extension(path) or "." not in path.rpartition("/")[2]) and not is_hidden(path):
                yield path

    def members(self, numbers: Numbers = None) -> Iterator[Member | Skipped]:
        entries = self._entries() if self._files is None else _iterate_entries(self._files, numbers)
        yield from map_ordered(entries, self._read, self._workers, lambda entry: entry.size)

    def _read(self, entry: Entry) -> Member | Skipped:
        path, store = self._get_path(entry), get_store(entry.uri)
        is_unread = is_hidden(path)
        if entry.size > MAX_FILE_BYTES:
            return make_skipped(path, make_too_large(path, entry.size).why)
        try:
            if not has_image_extension(path) and not is_unread:
                with open_stream(entry.uri) as file:
                    head = file.read(32)
                if not sniff(head):
                    return classify(path, head)
            data = b"" if is_unread else store.read(entry.uri)
        except FileNotFoundError:
            raise TransientError(f"{entry.uri}: gone since it was listed; run again") from None
        if not is_unread and (len(data) != entry.size or (self.checks_reads and store.stat(entry.uri) != entry)):
            # Its shard would be recorded under a listing that does not describe it.
            raise TransientError(f"{entry.uri}: changed while the source was read; run again")
        return classify(path, data)


class DemoSource:
    """The demo's files, generated as they are read."""

    IMAGE_SIZE = 64
    """Default image size of resize for the demo, in pixels a side: it gives a macro-F1 above 0.9, in half of the time
    that 128 take to train."""
    checks_reads = True
    EPOCHS = 8
    """Default epochs of training on the demo: enough for that, and its whole run is done within two minutes on two CPU
    cores. Other images of that number are trained on for longer (`train/recipes.py:choose_epochs`)."""

    def __init__(self, seed: int) -> None:
        from . import demo

        self._demo, self._seed = demo, seed
        self.where, self.total = "demo", len(demo.plan(seed))

    def listing(self) -> str | None:
        from PIL import __version__

        return _hash([("demo", self._demo.DEMO_VERSION, self._seed, __version__)])

    def list_files(self) -> None:
        return None

    def members(self, numbers: Numbers = None) -> Iterator[Member | Skipped]:
        for file in self._demo.generate(self._seed):
            yield classify(file.path, file.data)

    def list_faults(self) -> list[dict[str, str]]:
        """Return the demo's faults, as the manifest has them."""
        return [asdict(fault) for fault in self._demo.list_faults(self._seed)]


def open_source(uri: str, workers: int, workspace: str = "") -> ArchiveSource | ListingSource:
    """Open a folder or prefix, or an archive; UserError if it does not exist, or a folder holds no image.

    `workspace` is the normalized URI of the workspace, which may lie in the folder.
    """
    if uris.is_http(uri):
        return ArchiveSource(uri)
    absolute = uris.normalize(uri, "source")
    is_bucket = uris.is_s3(absolute) and not uris.split_s3(absolute)[1]
    if not is_bucket and get_store(absolute).stat(absolute):
        return ArchiveSource(absolute)
    source = ListingSource(absolute, workers, workspace)
    if not uris.is_s3(absolute) and not Path(absolute).exists():
        raise wrong("source", "a folder or archive that is there", uri)
    if next(source.paths(), None) is None:
        first = next(get_store(absolute).list(absolute), None)
        actual = f"{uri}, with {'no image' if first else 'nothing'} in it"
        raise wrong("source", "a folder or prefix with images", actual)
    return source


def _encode(uri: str) -> bytes:
    return uri.encode("utf-8", "surrogateescape")


def _iterate_entries(files: pa.Table, numbers: Numbers) -> Iterator[Entry]:
    for number in range(files.num_rows) if numbers is None else numbers:
        uri, size, validator = (files.column(name)[int(number)].as_py() for name in ("uri", "size", "validator"))
        yield Entry(uri.decode("utf-8", "surrogateescape"), size, validator)


def _hash(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
