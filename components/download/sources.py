"""Where images come from: an archive, a folder, an s3 prefix, a table, or the demo, behind one interface.

A source can be listed again at every run (so that a change is seen) and read in one fixed order (so that a
killed download goes on where it was).
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from imagemill.components.download.archives import BUFFER, Member, Skipped, read_archive, too_large
from imagemill.components.download.http import HttpFile, fetch
from imagemill.components.store import uri as uris
from imagemill.components.store.errors import UserError, wrong
from imagemill.components.store.filesystem import Entry, store_for
from imagemill.components.store.images import Limits, sniff
from imagemill.components.store.parallel import ordered

LIMIT = Limits().bytes
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
    ".avif", ".heic", ".heif", ".jp2", ".ppm", ".pgm", ".pbm", ".ico",
)  # fmt: skip
"""Names that promise an image: what keeps no such promise is rejected by clean, not skipped."""


class Source(Protocol):
    """`where` is for messages; `total` is the number of files, 0 while unknown."""

    where: str
    total: int

    def listing(self) -> str | None:
        """A hash of what the source holds now (names, sizes, validators), or None if only reading it can tell."""

    def members(self, skip: int) -> Iterator[Member | Skipped]:
        """The files in a fixed order, without the first `skip`."""


def image_id(path: str) -> str:
    """A path in its normal form: relative, '/' between parts, no '.' or '..', Unicode NFC, valid UTF-8."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\\", "/")
    parts = [p for p in posixpath.normpath(unicodedata.normalize("NFC", text)).split("/") if p not in ("", ".", "..")]
    return "/".join(parts)


def is_hidden(path: str) -> bool:
    """Files of the system's own: `.DS_Store`, `._photo.jpg` (AppleDouble), anything in a hidden folder."""
    return any(p.startswith(".") and p not in (".", "..") for p in path.split("/")) or "__MACOSX/" in path


def promises_image(path: str) -> bool:
    return path.lower().endswith(ENDINGS)


def classify(path: str, data: bytes) -> Member | Skipped:
    """An image candidate by its name or its bytes; everything else is skipped."""
    if is_hidden(path):
        return Skipped(path, "a hidden file")
    if promises_image(path) or sniff(data[:32]):
        return Member(path, data)
    return Skipped(path, "no image by name or content")


class ArchiveSource:
    """One tar or zip archive, wherever it is."""

    def __init__(self, uri: str) -> None:
        self.where, self.total, self._uri = uris.safe(uri), 0, uri

    def listing(self) -> str | None:
        if uris.is_http(self._uri):
            with _http(self._uri) as file:
                return _digest([(self._uri, file.length, file.validator)]) if file.validator and file.length else None
        entry = store_for(self._uri).stat(self._uri)
        return _digest([(self._uri, entry.size, entry.validator)]) if entry else None

    def members(self, skip: int) -> Iterator[Member | Skipped]:
        with open_stream(self._uri) as stream:
            for number, member in enumerate(read_archive(stream, self.where, LIMIT)):
                if number >= skip:
                    yield member if isinstance(member, Skipped) else classify(member.path, member.data or b"")


class ListingSource:
    """The files below a folder or s3 prefix, in the order of their names; listed anew each time, never held."""

    def __init__(self, uri: str, workers: int) -> None:
        self.where, self.total, self._uri, self._workers = uri, 0, uri, workers

    def listing(self) -> str | None:
        found = hashlib.sha256()
        self.total = 0
        for entry in store_for(self._uri).list(self._uri):
            found.update(f"{self._path(entry)}\0{entry.size}\0{entry.validator}\n".encode("utf-8", "surrogateescape"))
            self.total += 1
        return found.hexdigest()

    def _path(self, entry: Entry) -> str:
        return entry.uri[len(self._uri.rstrip("/")) + 1 :]

    def paths(self) -> Iterator[str]:
        """The paths that promise images, without reading anything."""
        for entry in store_for(self._uri).list(self._uri):
            if promises_image(path := self._path(entry)) and not is_hidden(path):
                yield path

    def members(self, skip: int) -> Iterator[Member | Skipped]:
        entries = (e for n, e in enumerate(store_for(self._uri).list(self._uri)) if n >= skip)
        yield from ordered(entries, self._read, self._workers, lambda entry: entry.size)

    def _read(self, entry: Entry) -> Member | Skipped:
        path, store = self._path(entry), store_for(entry.uri)
        if is_hidden(path):
            return Skipped(path, "a hidden file")
        if entry.size > LIMIT:
            return too_large(path, entry.size)
        if not promises_image(path):
            with store.open(entry.uri) as file:
                head = bytes(file.read(32))
            if not sniff(head):
                return Skipped(path, "no image by name or content")
        try:
            return Member(path, store.read(entry.uri))
        except FileNotFoundError:  # gone since it was listed
            return Member(path, None)


class TableSource:
    """The files that a table names: relative to the table, absolute, s3 or http(s) URIs; in the table's order.

    Holds the table's paths as one Arrow column: some 20 bytes an image more than their characters.
    """

    def __init__(self, table_uri: str, table: bytes, paths: Any, workers: int) -> None:
        self.where, self.total, self._workers = uris.safe(table_uri), len(paths), workers
        self._table, self._paths, self._base = table, paths, table_uri.rpartition("/")[0]

    def listing(self) -> str | None:
        """None as soon as one file is behind http: a server need not tell that it changed."""
        found = hashlib.sha256(self._table)
        for entry in ordered(self._uris(), self._stat, self._workers, lambda _: 0):
            if entry is None:
                return None
            found.update(f"{entry}\n".encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    def _uris(self) -> Iterator[str]:
        for path in self._paths:
            yield self._locate(path.as_py())

    def _locate(self, path: str) -> str:
        if uris.is_s3(path) or uris.is_http(path) or path.startswith("/"):
            return path
        if uris.is_http(self._base):
            return f"{self._base}/{path}"
        return uris.join(self._base, path)

    def _stat(self, uri: str) -> str | None:
        if uris.is_http(uri):
            return None
        entry = store_for(uri).stat(uri)
        return f"{entry.size}\0{entry.validator}" if entry else "-"

    def members(self, skip: int) -> Iterator[Member | Skipped]:
        paths = (p.as_py() for p in self._paths[skip:])
        # The sizes are unknown, so each file is counted as a large photograph.
        yield from ordered(paths, self._read, self._workers, lambda _: 2**20)

    def _read(self, path: str) -> Member | Skipped:
        uri = self._locate(path)
        if uris.is_http(uri):
            return Member(path, fetch(uri, LIMIT))
        entry = store_for(uri).stat(uri)
        if entry is None:
            return Member(path, None)
        return too_large(path, entry.size) if entry.size > LIMIT else Member(path, store_for(uri).read(uri))


class DemoSource:
    """The demo's files, made as they are read."""

    def __init__(self, seed: int) -> None:
        from imagemill.components.download import demo

        self._demo, self._seed = demo, seed
        self.where, self.total = "demo", len(demo.plan(seed))

    def listing(self) -> str | None:
        from PIL import __version__

        return _digest([("demo", self._demo.DEMO_VERSION, self._seed, __version__)])

    def members(self, skip: int) -> Iterator[Member | Skipped]:
        for number, file in enumerate(self._demo.generate(self._seed)):
            if number >= skip:
                yield classify(file.path, file.data)

    def planted(self) -> list[dict[str, str]]:
        """The truth about the faults: path, kind, detail and the reason clean must give."""
        return [{"path": f.path, "kind": f.kind, "detail": f.detail, "reason": f.reason} for f in self._demo.truth(self._seed)]


def open_stream(uri: str) -> io.BufferedReader:
    """Any single file as a buffered stream that survives broken connections."""
    raw: Any = _http(uri) if uris.is_http(uri) else _StoreStream(uri)
    return io.BufferedReader(raw, BUFFER)


def _http(uri: str) -> HttpFile:
    try:
        return HttpFile(uri)
    except FileNotFoundError:
        raise wrong("source", "a file that is there", uris.safe(uri)) from None


class _StoreStream(io.RawIOBase):
    """A stored file with the store's errors and retries: each read is a range of its own."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._file = store_for(uri).open(uri)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        from imagemill.components.store.retry import with_retry
        from imagemill.components.store.s3 import s3_errors

        position = self._file.tell()

        def read() -> bytes:
            self._file.seek(position)
            if not uris.is_s3(self._uri):
                return bytes(self._file.read(len(buffer)))
            with s3_errors(self._uri):
                return bytes(self._file.read(len(buffer)))

        data = with_retry(read, f"read {self._uri}")
        buffer[: len(data)] = data
        return len(data)


def open_source(uri: str, workers: int) -> ArchiveSource | ListingSource:
    """A folder or prefix, or an archive; UserError when nothing is there, or a folder is empty."""
    if uris.is_http(uri):
        return ArchiveSource(uri)
    absolute = uris.normalize(uri, "source")
    if store_for(absolute).stat(absolute):
        return ArchiveSource(absolute)
    source = ListingSource(absolute, workers)
    if not uris.is_s3(absolute) and not Path(absolute).exists():
        raise wrong("source", "a folder or archive that is there", uri)
    if next(source.paths(), None) is None:
        first = next(store_for(absolute).list(absolute), None)
        raise wrong("source", "a folder or prefix with images", f"{uri}, with {'no image' if first else 'nothing'} in it")
    return source


def read_small(uri: str, field: str, limit: int = 512 * 2**20) -> bytes:
    """A whole table or list, wherever it is; UserError when it is not there."""
    if uris.is_http(uri):
        data = fetch(uri, limit)
        if data is None:
            raise wrong(field, "a file that is there", uris.safe(uri))
        return data
    absolute = uris.normalize(uri, field)
    entry = store_for(absolute).stat(absolute)
    if entry is None:
        raise wrong(field, "a file that is there", uri)
    if entry.size > limit:
        raise UserError(f"{field}: expected at most {limit:,} bytes, found {entry.size:,} in {uri}")
    return store_for(absolute).read(absolute)


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


