"""Where images come from: an archive, a folder, an s3 prefix, a table, or the demo, behind one interface.

A source can be listed again at every run (so that a change is seen) and read in one fixed order (so that a
killed download goes on where it was).
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urljoin, urlsplit

from imagemill.components.download.archives import BUFFER, Member, Skipped, read_archive, too_large
from imagemill.components.download.config import check_uri
from imagemill.components.download.http import HttpFile, fetch
from imagemill.components.store import uri as uris
from imagemill.components.store.errors import TransientError, UserError, wrong
from imagemill.components.store.filesystem import Entry, store_for
from imagemill.components.store.images import Limits, sniff
from imagemill.components.store.parallel import ordered

LIMIT = Limits().bytes
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
    ".avif", ".heic", ".heif", ".jp2", ".ppm", ".pgm", ".pbm", ".ico",
)  # fmt: skip
"""Names that promise an image: what keeps no such promise is rejected by clean, not skipped."""
PATH_LIMIT = 4096
"""Characters of a path: no file system has longer ones, and label patterns are searched in them."""


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
    parts = posixpath.normpath(path.replace("\\", "/")).split("/")
    return "/".join(p if p.isascii() else _text(p) for p in parts if p not in ("", ".", ".."))


def _text(name: str) -> str:
    """A name that is no UTF-8 is read as Latin-1, so that different names stay different."""
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair
        raw = name.encode("utf-8", "replace")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return unicodedata.normalize("NFC", text)


def is_hidden(path: str) -> bool:
    """Files of the system's own: `.DS_Store`, `._photo.jpg` (AppleDouble), anything in a hidden folder."""
    return any(p.startswith(".") and p not in (".", "..") for p in path.split("/")) or "__MACOSX/" in path


def promises_image(path: str) -> bool:
    return path.lower().endswith(ENDINGS)


def skipped(path: str, why: str) -> Skipped:
    return Skipped(image_id(path)[:PATH_LIMIT], why)


def classify(path: str, data: bytes) -> Member | Skipped:
    """An image candidate by its name or its bytes; everything else is skipped."""
    name = image_id(path)
    if not name or len(name) > PATH_LIMIT:
        return skipped(path, "a name that is no path" if not name else "a name longer than any path")
    if is_hidden(name):
        return skipped(path, "a hidden file")
    if promises_image(name) or sniff(data[:32]):
        return Member(name, data)
    return skipped(path, "no image by name or content")


class ArchiveSource:
    """One tar or zip archive, wherever it is."""

    def __init__(self, uri: str, field: str = "source") -> None:
        self.where, self.total, self._uri, self._field = uris.safe(uri), 0, uri, field

    def listing(self) -> str | None:
        if uris.is_http(self._uri):
            with _http(self._uri, self._field) as file:
                return _digest([(self._uri, file.length, file.validator)]) if file.validator and file.length else None
        entry = store_for(self._uri).stat(self._uri)
        return _digest([(self._uri, entry.size, entry.validator)]) if entry else None

    def members(self, skip: int) -> Iterator[Member | Skipped]:
        before = None if uris.is_http(self._uri) else self.listing()  # a URL's stream sees to that itself
        try:
            with open_stream(self._uri, self._field) as stream:
                for number, member in enumerate(read_archive(stream, self.where, LIMIT)):
                    if number >= skip:
                        yield self._candidate(member)
        except UserError:
            self._refuse_changed(before)
            raise
        self._refuse_changed(before)

    def _candidate(self, member: Member | Skipped) -> Member | Skipped:
        if isinstance(member, Skipped):
            return skipped(member.path, member.why)
        return classify(member.path, member.data or b"")

    def _refuse_changed(self, before: str | None) -> None:
        """Half of one archive and half of another are no source, and no damage of either."""
        if before and self.listing() != before:
            raise TransientError(f"{self.where}: the archive changed while it was read")


class ListingSource:
    """The files below a folder or s3 prefix, in the order of their names; listed anew each time, never held.

    The workspace may lie in the folder: what is below it is ours, and no source.
    """

    def __init__(self, uri: str, workers: int, workspace: str = "") -> None:
        self.where, self.total, self._uri, self._workers = uri, 0, uri, workers
        self._own = f"{workspace}/" if workspace else ""

    def _entries(self) -> Iterator[Entry]:
        for entry in store_for(self._uri).list(self._uri):
            if not self._own or not entry.uri.startswith(self._own):
                yield entry

    def listing(self) -> str | None:
        found = hashlib.sha256()
        self.total = 0
        for entry in self._entries():
            found.update(f"{self._path(entry)}\0{entry.size}\0{entry.validator}\n".encode("utf-8", "surrogateescape"))
            self.total += 1
        return found.hexdigest()

    def _path(self, entry: Entry) -> str:
        return entry.uri[len(self._uri.rstrip("/")) + 1 :]

    def paths(self) -> Iterator[str]:
        """The paths that promise images or, without an ending, don't say; nothing is read."""
        for entry in self._entries():
            path = self._path(entry)
            if (promises_image(path) or "." not in path.rpartition("/")[2]) and not is_hidden(path):
                yield path

    def members(self, skip: int) -> Iterator[Member | Skipped]:
        entries = (e for n, e in enumerate(self._entries()) if n >= skip)
        yield from ordered(entries, self._read, self._workers, lambda entry: entry.size)

    def _read(self, entry: Entry) -> Member | Skipped:
        path, store = self._path(entry), store_for(entry.uri)
        if entry.size > LIMIT:
            return skipped(path, too_large(path, entry.size).why)
        try:
            if not promises_image(path) and not is_hidden(path):
                with open_stream(entry.uri) as file:
                    head = file.read(32)
                if not sniff(head):
                    return classify(path, head)
            return classify(path, b"" if is_hidden(path) else store.read(entry.uri))
        except FileNotFoundError:  # gone since it was listed
            return Member(image_id(path), None)


class TableSource:
    """The files that a table names: relative to the table, absolute, s3 or http(s) URIs; in the table's order.

    Holds the table's paths as one Arrow column: some 20 bytes an image more than their characters.
    """

    def __init__(self, table_uri: str, table: bytes, paths: Any, workers: int) -> None:
        self.where, self.total, self._workers = uris.safe(table_uri), len(paths), workers
        self._table, self._paths, self._uri = table, paths, table_uri

    def listing(self) -> str | None:
        """None as soon as one file is behind http: a server need not tell that it changed."""
        if any(uris.is_http(uri) for uri in self._uris()):
            return None
        found = hashlib.sha256(self._table)
        for entry in ordered(self._uris(), self._stat, self._workers, lambda _: 0):
            found.update(f"{entry}\n".encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    def _uris(self) -> Iterator[str]:
        for path in self._paths:
            yield self._locate(path.as_py())

    def _locate(self, path: str) -> str:
        """Where a row's file is. A table behind http can't name files of this machine."""
        if uris.is_s3(path) or uris.is_http(path):
            return path
        path = path.replace("\\", "/")
        if uris.is_http(self._uri):
            if uris.scheme(path):
                raise wrong("path", "a URL or relative path in a table behind http", path)
            return urljoin(self._uri, quote(path, safe="/%:@!$&'()*+,;=~"))
        if path.startswith("/") or uris.scheme(path):
            return uris.normalize(path, "path")
        return uris.join(self._uri.rpartition("/")[0], path)

    def _image_id(self, path: str) -> str:
        """The path, or its URI without a password; a query, which may be a token, as its hash."""
        if uris.is_s3(path):
            return path
        if not uris.is_http(path):
            return image_id(uris.normalize(path) if uris.scheme(path) else path)
        query = urlsplit(path).query
        return uris.safe(path) + (f"?{hashlib.sha256(query.encode()).hexdigest()[:16]}" if query else "")

    def _stat(self, uri: str) -> str:
        entry = store_for(uri).stat(uri)
        return f"{entry.size}\0{entry.validator}" if entry else "-"

    def members(self, skip: int) -> Iterator[Member | Skipped]:
        paths = (p.as_py() for p in self._paths[skip:])
        # The sizes are unknown, so each file is counted as a large photograph.
        yield from ordered(paths, self._read, self._workers, lambda _: 2**20)

    def _read(self, path: str) -> Member | Skipped:
        uri = self._locate(path)
        if uris.is_http(uri):
            check_uri("path", uri)
            name, data = self._image_id(path), fetch(uri, LIMIT)
            return Member(name, data) if data is None or len(data) <= LIMIT else too_large(name, len(data))
        name, entry = self._image_id(path), store_for(uri).stat(uri)
        if entry is not None and entry.size > LIMIT:
            return too_large(name, entry.size)
        try:
            return Member(name, store_for(uri).read(uri) if entry else None)
        except FileNotFoundError:  # gone since it was looked up
            return Member(name, None)


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
        return [
            {"path": f.path, "kind": f.kind, "detail": f.detail, "reason": f.reason}
            for f in self._demo.truth(self._seed)
        ]


def open_stream(uri: str, field: str = "source") -> io.BufferedReader:
    """Any single file as a buffered stream that survives broken connections.

    A local file is read, not mapped: one that shrinks meanwhile is an error then, not the end of the process.
    """
    if uris.is_http(uri):
        raw: Any = _http(uri, field)
    elif uris.is_s3(uri):
        raw = _S3Stream(uri)
    else:
        try:
            raw = io.FileIO(uri)
        except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
            raise UserError(f"{uri}: {os.strerror(error.errno or 0)} (expected a file that can be read)") from None
    return io.BufferedReader(raw, BUFFER)


def _http(uri: str, field: str) -> HttpFile:
    try:
        return HttpFile(uri)
    except FileNotFoundError:
        raise wrong(field, "a file that is there", uris.safe(uri)) from None


class _S3Stream(io.RawIOBase):
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
            try:
                with s3_errors(self._uri):
                    self._file.seek(position)
                    return bytes(self._file.read(len(buffer)))
            except OSError as error:  # never the archive's damage
                raise TransientError(f"{self._uri}: the store broke off ({type(error).__name__})") from None

        data = with_retry(read, f"read {self._uri}")
        buffer[: len(data)] = data
        return len(data)


def open_source(uri: str, workers: int, workspace: str = "") -> ArchiveSource | ListingSource:
    """A folder or prefix, or an archive; UserError when nothing is there, or a folder is empty.

    `workspace` is the normal URI of the workspace, which may lie in the folder.
    """
    if uris.is_http(uri):
        return ArchiveSource(uri)
    absolute = uris.normalize(uri, "source")
    whole_bucket = uris.is_s3(absolute) and not uris.split_s3(absolute)[1]
    if not whole_bucket and store_for(absolute).stat(absolute):
        return ArchiveSource(absolute)
    source = ListingSource(absolute, workers, workspace)
    if not uris.is_s3(absolute) and not Path(absolute).exists():
        raise wrong("source", "a folder or archive that is there", uri)
    if next(source.paths(), None) is None:
        first = next(store_for(absolute).list(absolute), None)
        raise wrong(
            "source", "a folder or prefix with images", f"{uri}, with {'no image' if first else 'nothing'} in it"
        )
    return source


def read_small(uri: str, field: str, limit: int = 512 * 2**20) -> bytes:
    """A whole table or list, wherever it is; UserError when it is not there."""
    if uris.is_http(uri):
        data = fetch(uri, limit)
        if data is None:
            raise wrong(field, "a file that is there", uris.safe(uri))
        if len(data) > limit:
            raise UserError(f"{field}: expected at most {limit:,} bytes, found more in {uris.safe(uri)}")
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
