"""A table as a source: the files that its column `path` names, with the labels beside them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from ..store import uri as uris
from ..store.errors import UserError, wrong
from ..store.filesystem import store_for
from ..store.parallel import ordered
from ..store.progress import say
from .archives import Member, Skipped, too_large
from .config import check_uri
from .http import fetch
from .names import image_id
from .sources import LIMIT

SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "trainval": "trainval",
}  # fmt: skip
"""How sources name their splits, and what they mean; `trainval` is divided by clean."""


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
            if uris.is_s3(self._uri):
                raise wrong("path", "an s3 or http URI or a relative path in a table on S3", path)
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


def read_table(data: bytes, where: str) -> Any:
    """A table with the columns path, label and perhaps split, as strings (comma, semicolon or tab between).

    UserError names the missing column, the line that can't be parsed or the row with a wrong value.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    header = data.removeprefix(b"\xef\xbb\xbf").partition(b"\n")[0].decode("utf-8", "replace").strip()
    delimiter = max(",;\t", key=header.count)
    names = [name.strip().strip('"').lower() for name in header.split(delimiter)]
    for needed in ("path", "label"):
        if needed not in names:
            raise wrong(f"{where} (its first line)", f"a column named {needed}", header[:200])
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise wrong(f"{where} (its first line)", f"one column named {twice[0]!r}", header[:200])
    try:
        table = csv.read_csv(
            io.BytesIO(data),
            read_options=csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types={n: pa.string() for n in names}, strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{where}: expected a table of {len(names)} columns, found a line that is none: {error}"
        ) from None
    if table.num_rows == 0:
        raise wrong(where, "at least one row below the header", "none")
    paths = table.column("path")
    unusable = pc.or_(pc.equal(pc.utf8_trim_whitespace(paths), ""), pc.match_substring(paths, "\0"))
    if (row := pc.index(unusable, True).as_py()) >= 0:
        raise wrong(f"{where}, line {row + 2} (path)", "a path or URI", paths[row].as_py())
    schemes = pc.struct_field(pc.extract_regex(paths, r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://"), "scheme")
    for scheme in pc.unique(schemes).to_pylist():
        if scheme and scheme.lower() not in ("file", "s3", "http", "https"):
            raise wrong(f"{where} (path)", "paths, s3://, http:// or https:// URIs", f"{scheme}://…")
    if "split" in names:
        for value in table.column("split").unique().to_pylist():
            if value.strip() and value.strip().lower() not in SPLIT_NAMES:
                raise wrong(f"{where} (split)", f"one of {', '.join(SPLIT_NAMES)} or nothing", value)
    if ignored := [n for n in names if n not in ("path", "label", "split")]:
        say("download", f"columns of the table that are not used: {', '.join(ignored)}")
    return table
