"""A table as a source of images: the files that its columns `path` and `mask` name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice, repeat
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from ..storage import uri as uris
from ..storage.errors import TransientError, wrong
from ..storage.parallel import map_ordered
from ..storage.store import get_store
from .archives import Member, Skipped, make_too_large, normalize_path
from .config import check_uri
from .listing import SourceFile, make_listing
from .sources import MAX_FILE_BYTES, Numbers
from .streams import fetch

BATCH = 500
"""Rows that are looked up at a time: of one file a thread's overhead is more than the work."""


class TableSource:
    """The files that a table names, in its order; names are relative to the table, absolute, s3 or http(s) URIs.

    A mask is read with its image, and only if that exists. One that is missing or too large becomes the member's
    `missing_mask`. Holds the paths and masks as Arrow columns: 4 bytes an image each, and their characters.
    """

    checks_reads = False  # on S3 a request per file would cost too much

    def __init__(self, table_uri: str, data: bytes, table: Any, workers: int) -> None:
        """Make a source of a table of these bytes, which `read_table` parsed; `workers` files are read at a time."""
        self.where, self.total, self._workers = uris.redact(table_uri), table.num_rows, workers
        self._hash, self._uri, self._paths = hashlib.sha256(data), table_uri, table.column("path")
        self._files: pa.Table | None = None
        self._masks = table.column("mask") if "mask" in table.column_names else None

    def listing(self) -> str | None:
        """Return a hash of the table and its files' sizes and validators.

        None if a file is behind http, because servers need not have validators.
        """
        names_http, names_s3 = (
            any(_has_scheme(column, scheme) for column in (self._paths, self._masks)) for scheme in ("https?", "s3")
        )
        if names_http or (uris.is_http(self._uri) and any(uris.is_http(uri) for uri in self.list_uris())):
            return None
        digest = self._hash.copy()
        self.checks_reads = not names_s3 and not uris.is_s3(self._uri)

        def list_entries() -> Iterator[SourceFile]:
            batches = (range(start, min(start + BATCH, self.total)) for start in range(0, self.total, BATCH))
            # On this machine's disk threads would wait for one another rather than for answers.
            is_local = self.checks_reads
            looked_up = map_ordered(batches, self._look_up_all, self._workers, lambda _: 0) if not is_local else None
            for file in chain.from_iterable(looked_up or map(self._look_up_all, batches)):
                digest.update(_describe(file.size, file.validator))
                if file.mask_uri is not None:
                    digest.update(_describe(file.mask_size, file.mask_validator))
                yield file

        self._files = make_listing(list_entries())
        return digest.hexdigest()

    def list_files(self) -> pa.Table | None:
        return self._files

    def _rows(self, numbers: Iterable[int]) -> Iterator[tuple[str, str]]:
        """Yield path and mask of the images of these numbers; '' for no mask."""
        numbers = iter(numbers)
        while batch := pa.array([*islice(numbers, BATCH)], pa.int64()):
            paths = self._paths.take(batch).to_pylist()
            masks = [""] * len(paths) if self._masks is None else self._masks.take(batch).to_pylist()
            yield from zip(paths, (mask if mask.strip() else "" for mask in masks), strict=True)

    def list_uris(self) -> Iterator[str]:
        """Yield the URI of every file that the table names: images and masks."""
        for path, mask in self._rows(range(self.total)):
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

    def _look_up_all(self, numbers: Iterable[int]) -> list[SourceFile]:
        return [self._look_up(row) for row in self._rows(numbers)]

    def _look_up(self, row: tuple[str, str]) -> SourceFile:
        uri = self._locate(row[0])
        image, name = get_store(uri).stat(uri), self._make_image_id(row[0])
        file = SourceFile(name, uri.encode(), image.size if image else None, image.validator if image else None)
        if not row[1]:
            return file
        uri = self._locate(row[1], "mask")
        mask = get_store(uri).stat(uri)
        file = file._replace(mask_uri=uri.encode())
        if mask:
            file = file._replace(mask_size=mask.size, mask_validator=mask.validator)
        if image and (mask is None or mask.size > MAX_FILE_BYTES):
            missing = _make_missing_mask(row[1], mask.size if mask else 0)
            file = file._replace(missing_mask=missing.path, missing_mask_why=missing.why)
        return file

    def members(self, numbers: Numbers = None) -> Iterator[Member | Skipped]:
        # Tables behind http can't be listed, and sizes may have changed: each file is counted as a large photograph.
        numbers = list(range(self.total) if numbers is None else numbers)
        listed = self._iterate_listed(numbers) if self.checks_reads else repeat(None, len(numbers))
        rows = zip(self._rows(numbers), listed, strict=True)
        yield from map_ordered(rows, self._read_as_listed, self._workers, lambda row: (1 + bool(row[0][1])) * 2**20)

    def _iterate_listed(self, numbers: Sequence[int]) -> Iterator[SourceFile]:
        assert self._files is not None
        for start in range(0, len(numbers), BATCH):
            for file in self._files.take(pa.array(numbers[start : start + BATCH], pa.int64())).to_pylist():
                yield SourceFile(**file)

    def _read_as_listed(self, item: tuple[tuple[str, str], SourceFile | None]) -> Member | Skipped:
        row, listed = item
        member = self._read(row)
        if listed is not None and self._look_up(row) != listed:
            raise TransientError(f"{listed.uri.decode()}: changed while the source was read; run again")
        return member

    def _read(self, row: tuple[str, str]) -> Member | Skipped:
        path, mask = row
        name, (data, size) = self._make_image_id(path), self._read_file(self._locate(path), "path")
        if data is None:
            return make_too_large(name, size) if size else Member(name, None)
        return self._add_mask(Member(name, data), mask) if mask else Member(name, data)

    def _add_mask(self, member: Member, mask: str) -> Member:
        data, size = self._read_file(self._locate(mask, "mask"), "mask")
        if data is None:
            return replace(member, missing_mask=_make_missing_mask(mask, size))
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


def _has_scheme(column: Any, scheme: str) -> bool:
    return column is not None and bool(pc.any(pc.match_substring_regex(column, f"(?i)^{scheme}:")).as_py())


def _make_missing_mask(mask: str, size: int) -> Skipped:
    """Return the entry of a mask that is not used; `size`: in bytes, 0 if it is not there."""
    name = uris.redact(mask)
    return make_too_large(name, size) if size else Skipped(name, "not there")


def _describe(size: int | None, validator: str | None) -> bytes:
    """Return a file as a line of the hashed listing; `-` for one that is not there."""
    return b"-\n" if size is None else f"{size}\0{validator}\n".encode("utf-8", "surrogateescape")
