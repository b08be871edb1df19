"""A table as a source of images: the files that its columns `path` and `mask` name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from ..storage import uri as uris
from ..storage.errors import wrong
from ..storage.filesystem import get_store
from ..storage.parallel import map_ordered
from .archives import Member, Skipped, make_too_large
from .config import check_uri
from .http import fetch
from .names import normalize_path
from .sources import MAX_FILE_BYTES


class TableSource:
    """The files that a table names, in its order; names are relative to the table, absolute, s3 or http(s) URIs.

    A mask is read with its image, and only if that exists. One that is missing or too large becomes the member's
    `missing_mask`. Holds the paths and masks as Arrow columns: 4 bytes an image each, and their characters.
    """

    def __init__(self, table_uri: str, data: bytes, table: Any, workers: int) -> None:
        """Make a source of a table.

        Args:
            table_uri: URI of the table.
            data: bytes of the table, of which a hash is kept.
            table: result of `read_table` for `data`.
            workers: number of files that are read at a time.
        """
        self.where, self.total, self._workers = uris.redact(table_uri), table.num_rows, workers
        self._hash, self._uri, self._paths = hashlib.sha256(data), table_uri, table.column("path")
        self._masks = table.column("mask") if "mask" in table.column_names else None

    def listing(self) -> str | None:
        """Return a hash of the table and its files' sizes and validators.

        None if a file is behind http, because servers need not have validators.
        """
        if any(uris.is_http(uri) for uri in self.list_uris()):
            return None
        digest = self._hash.copy()
        for entry in map_ordered(self.list_uris(), self._stat, self._workers, lambda _: 0):
            digest.update(f"{entry}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _rows(self, skip: int = 0) -> Iterator[tuple[str, str]]:
        """Yield path and mask of each image; '' for no mask."""
        for number in range(skip, self.total):
            mask = "" if self._masks is None else self._masks[number].as_py()
            yield self._paths[number].as_py(), mask if mask.strip() else ""

    def list_uris(self) -> Iterator[str]:
        """Yield the URI of every file that the table names: images and masks."""
        for path, mask in self._rows():
            yield self._locate(path)
            if mask:
                yield self._locate(mask, "mask")

    def _locate(self, path: str, column: str = "path") -> str:
        """Return the URI of a row's file. A table behind http can't name files of this machine."""
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

    def _make_image_id(self, path: str) -> str:
        """Return the path, or its URI without a password; a query, which may be a token, is hashed."""
        if uris.is_s3(path):
            return path
        if not uris.is_http(path):
            return normalize_path(uris.normalize(path) if uris.scheme(path) else path)
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
        name, (data, size) = self._make_image_id(path), self._read_file(self._locate(path), "path")
        if data is None:
            return make_too_large(name, size) if size else Member(name, None)
        return self._add_mask(Member(name, data), mask) if mask else Member(name, data)

    def _add_mask(self, member: Member, mask: str) -> Member:
        name, (data, size) = uris.redact(mask), self._read_file(self._locate(mask, "mask"), "mask")
        if data is None:
            return replace(member, missing_mask=make_too_large(name, size) if size else Skipped(name, "not there"))
        return replace(member, mask=data)

    def _read_file(self, uri: str, column: str) -> tuple[bytes | None, int]:
        """Return a file and its size; (None, size) if it is too large, (None, 0) if it does not exist."""
        if uris.is_http(uri):
            check_uri(column, uri)
            data = fetch(uri, MAX_FILE_BYTES)
            return (None, len(data)) if data is not None and len(data) > MAX_FILE_BYTES else (data, len(data or b""))
        entry = get_store(uri).stat(uri)
        if entry is None or entry.size > MAX_FILE_BYTES:
            return None, entry.size if entry else 0
        try:
            return get_store(uri).read(uri), entry.size
        except FileNotFoundError:  # removed since `stat`
            return None, 0
