"""Archives read member by member from a stream: never extracted, never whole in memory.

What an archive is, is told from its bytes: tar, plain or under gzip, bzip2, xz, zstd or lz4; or zip.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from imagemill.components.store.errors import MillError, UserError
from imagemill.components.store.progress import say

BUFFER = 4 * 2**20
HEADER_LIMIT = 2**20
"""A tar member's name or PAX header may have so many bytes; more is an attack, not a name."""

_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


@dataclass(frozen=True)
class Member:
    """One file of a source: its path as the source writes it, and its bytes (None: named but not there)."""

    path: str
    data: bytes | None


@dataclass(frozen=True)
class Skipped:
    """A file that is no image candidate, and why; it becomes no row but is named in the manifest."""

    path: str
    why: str


def too_large(path: str, size: int) -> Skipped:
    return Skipped(path, f"{size:,} bytes, larger than any image may be")


def read_archive(stream: Any, where: str, limit: int) -> Iterator[Member | Skipped]:
    """The regular files of an archive, in its order. UserError when it is none, or is damaged.

    `stream` must buffer (`peek` is used); zip also needs it to seek, or it is spooled to an unnamed file.
    """
    buffered: Any = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream, BUFFER)
    head = buffered.peek(512)[:512]
    try:
        if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            yield from _read_zip(buffered, where, limit)
        else:
            yield from _read_tar(_decompress(buffered, head), where, limit)
    except MillError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise UserError(f"{where}: expected a whole tar or zip archive, found one that is damaged or none: {error}") from None


def _decompress(stream: io.BufferedReader, head: bytes) -> Any:
    kind = next((name for magic, name in _COMPRESSIONS.items() if head.startswith(magic)), "")
    if kind == "gzip":
        return io.BufferedReader(gzip.GzipFile(fileobj=stream), BUFFER)
    if kind == "bz2":
        return io.BufferedReader(bz2.BZ2File(stream), BUFFER)
    if kind == "xz":
        return io.BufferedReader(lzma.LZMAFile(stream), BUFFER)
    if kind:
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(stream, "r"), kind)
    return stream


class _CappedTarInfo(tarfile.TarInfo):
    """A member whose name and extended headers are capped before they are read into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        named = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        extended = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if self.type in named + extended and self.size > HEADER_LIMIT:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes, at most {HEADER_LIMIT:,}")
        return super()._proc_member(archive)  # type: ignore[misc]


def _read_tar(stream: Any, where: str, limit: int) -> Iterator[Member | Skipped]:
    with tarfile.open(fileobj=stream, mode="r|", bufsize=BUFFER, tarinfo=_CappedTarInfo) as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header; a million would stay
            if not info.isfile():
                continue
            if info.size > limit:
                yield too_large(info.name, info.size)
                continue
            file = archive.extractfile(info)
            data = file.read() if file else b""
            if len(data) != info.size:
                raise UserError(f"{where}: expected a whole archive, found one that ends inside {info.name}")
            yield Member(info.name, data)


def _read_zip(stream: io.BufferedReader, where: str, limit: int) -> Iterator[Member | Skipped]:
    """Zip keeps its table at the end; its entries cost about 600 bytes of memory each."""
    with tempfile.TemporaryFile() as spool:
        source: Any = stream
        if not stream.seekable():
            say("download", f"{where}: the server offers no ranges, so the zip is spooled to a temporary file first")
            while piece := stream.read(BUFFER):
                spool.write(piece)
            source = spool
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                if info.is_dir():
                    continue
                if info.flag_bits & 0x1:
                    raise UserError(f"{where}: expected a zip without a password, found {info.filename} encrypted")
                if info.file_size > limit:
                    yield too_large(info.filename, info.file_size)
                    continue
                with archive.open(info) as file:
                    data = file.read(limit + 1)  # the declared size may lie
                yield Member(info.filename, data) if len(data) <= limit else too_large(info.filename, len(data))
