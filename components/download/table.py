"""A table as a source: the files that its columns `path` and `mask` name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from ..store import uri as uris
from ..store.errors import wrong
from ..store.filesystem import get_store
from ..store.parallel import map_ordered
from .archives import Member, Skipped, too_large
from .config import check_uri
from .http import fetch
from .names import image_id
from .sources import LIMIT


class TableSource:
    """The files that a table names: relative to the table, absolute, s3 or http(s) URIs; in the table's order.

    A mask is read with its image, and only if that is there. One that is not there, or is too large, is none; the
    member says so. Holds the paths and masks as Arrow columns: 4 bytes an image each, and their characters.
    """

    def __init__(self, table_uri: str, data: bytes, table: Any, workers: int) -> None:
        """`data` is the file, of which a hash is kept; `table` is what `read_table` made of it."""
        self.where, self.total, self._workers = uris.redact(table_uri), table.num_rows, workers
        self._hash, self._uri, self._paths = hashlib.sha256(data), table_uri, table.column("path")
        self._masks = table.column("mask") if "mask" in table.column_names else None

    def listing(self) -> str | None:
        """None as soon as one file is behind http: a server need not tell that it changed."""
        if any(uris.is_http(uri) for uri in self.places()):
            return None
        found = self._hash.copy()
        for entry in map_ordered(self.places(), self._stat, self._workers, lambda _: 0):
            found.update(f"{entry}\n".encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    def _rows(self, skip: int = 0) -> Iterator[tuple[str, str]]:
        """Path and mask of each image; '' for no mask."""
        for number in range(skip, self.total):
            mask = "" if self._masks is None else self._masks[number].as_py()
            yield self._paths[number].as_py(), mask if mask.strip() else ""

    def places(self) -> Iterator[str]:
        """The URI of every file that the table names: images and masks."""
        for path, mask in self._rows():
            yield self._locate(path)
            if mask:
                yield self._locate(mask, "mask")

    def _locate(self, path: str, column: str = "path") -> str:
        """Where a row's file is. A table behind http can't name files of this machine."""
        if uris.is_s3(path) or uris.is_http(path):
            return path
        path = path.replace("\\", "/")
        if uris.is_http(self._uri):
            if uris.scheme(path):
                raise wrong(column, "a URL or relative path in a table behind http", path)
            return urljoin(self._uri, quote(path, safe="/%:@!$&'()*+,;=~"))
        if path.startswith("/") or uris.scheme(path):
            if uris.is_s3(self._uri):
                raise wrong(column, "an s3 or http URI or a relative path in a table on S3", path)
            return uris.normalize(path, column)
        return uris.join(self._uri.rpartition("/")[0], path)

    def _image_id(self, path: str) -> str:
        """The path, or its URI without a password; a query, which may be a token, as its hash."""
        if uris.is_s3(path):
            return path
        if not uris.is_http(path):
            return image_id(uris.normalize(path) if uris.scheme(path) else path)
        query = urlsplit(path).query
        return uris.redact(path) + (f"?{hashlib.sha256(query.encode()).hexdigest()[:16]}" if query else "")

    def _stat(self, uri: str) -> str:
        entry = get_store(uri).stat(uri)
        return f"{entry.size}\0{entry.validator}" if entry else "-"

    def members(self, skip: int) -> Iterator[Member | Skipped]:
        # The sizes are unknown, so each file is counted as a large photograph.
        yield from map_ordered(self._rows(skip), self._read, self._workers, lambda row: (1 + bool(row[1])) * 2**20)

    def _read(self, row: tuple[str, str]) -> Member | Skipped:
        path, mask = row
        name, (data, size) = self._image_id(path), self._file(self._locate(path), "path")
        if data is None:
            return too_large(name, size) if size else Member(name, None)
        return self._with_mask(Member(name, data), mask) if mask else Member(name, data)

    def _with_mask(self, member: Member, mask: str) -> Member:
        name, (data, size) = uris.redact(mask), self._file(self._locate(mask, "mask"), "mask")
        if data is None:
            return replace(member, missing_mask=too_large(name, size) if size else Skipped(name, "not there"))
        return replace(member, mask=data)

    def _file(self, uri: str, column: str) -> tuple[bytes | None, int]:
        """A file and its size; (None, its size) when it is too large, (None, 0) when it is not there."""
        if uris.is_http(uri):
            check_uri(column, uri)
            data = fetch(uri, LIMIT)
            return (None, len(data)) if data is not None and len(data) > LIMIT else (data, len(data or b""))
        entry = get_store(uri).stat(uri)
        if entry is None or entry.size > LIMIT:
            return None, entry.size if entry else 0
        try:
            return get_store(uri).read(uri), entry.size
        except FileNotFoundError:  # gone since it was looked up
            return None, 0
