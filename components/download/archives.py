"""Archives, read member by member from a stream: never extracted, never whole in memory; and their members' normal
paths.

The format is recognized by the first bytes: tar, plain or under gzip, bzip2, xz, zstd or lz4; or zip. A member is an
image candidate by its name or its bytes.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import posixpath
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..imaging.headers import sniff
from ..imaging.pixel_options import has_image_extension
from ..step.progress import say
from ..storage.errors import MillError, TransientError, UserError
from ..storage.uri import is_hidden

BUFFER = 4 * 2**20
TAR_BLOCK = 2**16
"""Bytes that tarfile reads at a time. It copies the rest of the block at every header, so that a large one is slow."""
HEADER_LIMIT = 2**20
"""Maximum bytes of a tar member's name or PAX header; more is an attack."""
CHAIN_LIMIT = 16
"""Maximum number of headers that describe one tar member; tarfile recurses for each, so a long chain is an attack."""


def _open_with_arrow(stream: io.BufferedReader, compression: str) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(stream, "r"), compression)


DECOMPRESSORS: dict[bytes, Callable[[io.BufferedReader], Any]] = {
    b"\x1f\x8b": lambda stream: io.BufferedReader(gzip.GzipFile(fileobj=stream), BUFFER),
    b"BZh": lambda stream: io.BufferedReader(bz2.BZ2File(stream), BUFFER),
    b"\xfd7zXZ\0": lambda stream: io.BufferedReader(lzma.LZMAFile(stream), BUFFER),  # noqa: SIM115
    b"\x28\xb5\x2f\xfd": partial(_open_with_arrow, compression="zstd"),
    b"\x04\x22\x4d\x18": partial(_open_with_arrow, compression="lz4"),
}
"""By the first bytes of a compressed tar, a function that opens it as a stream of the tar."""


@dataclass(frozen=True)
class Skipped:
    """A file that is no image candidate, and why; it becomes no row, but is named in the manifest."""

    path: str
    why: str


@dataclass(frozen=True)
class Member:
    """A file of an archive or source, with its mask. `path`: as the archive has it, or in the normal form of a source;
    `data` is None, and the mask a `missing_mask`, where the source names what it does not have."""

    path: str
    data: bytes | None
    mask: bytes | None = None
    missing_mask: Skipped | None = None


def make_too_large(path: str, size: int) -> Skipped:
    return Skipped(path, f"{size:,} bytes, larger than any image may be")


def read_archive(stream: Any, where: str, limit: int) -> Iterator[Member | Skipped]:
    """Yield the regular files of an archive, in its order; UserError if it is none, or is damaged.

    `stream` must buffer (`peek` is used); zip also needs it to seek, or it is spooled to an unnamed file.
    """
    buffered: Any = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream, BUFFER)
    try:
        head = buffered.peek(512)[:512]
        if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            yield from _read_zip(buffered, where, limit)
        else:
            opener = next((opener for magic, opener in DECOMPRESSORS.items() if head.startswith(magic)), None)
            yield from _read_tar(opener(buffered) if opener else buffered, where, limit)
    except MillError:
        raise
    except _DAMAGE_ERRORS as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # the disk's, not the archive's
            raise TransientError(f"{where}: {os.strerror(error.errno)} while it was read") from None
        raise UserError(
            f"{where}: expected a whole tar or zip archive, found one that is damaged or none: {error}"
        ) from None


_DAMAGE_ERRORS = (
    tarfile.TarError, zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, zlib.error, lzma.LZMAError, struct.error,
    OSError, ValueError, OverflowError, NotImplementedError, IndexError,
)  # fmt: skip
"""Errors of the readers for bytes that are no archive, or have an unknown compression; zipfile raises IndexError for a
file whose name begins with a zero byte."""


_LONG_NAME_TYPES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENDED_TYPES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


class _CappedTarInfo(tarfile.TarInfo):
    """A tar member whose name and extended headers are limited before they are read into memory.

    A broken header inside the archive raises an error; tarfile itself silently takes it for the end.
    """

    @classmethod
    def fromtarfile(cls, archive: Any) -> Any:
        try:
            return super().fromtarfile(archive)
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if archive.offset:  # not just an empty file
                say("download", "the archive has no end mark: if it was cut short between two files, some are missing")
            raise
        except (tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"a member's header is broken ({error})") from None

    def _proc_member(self, archive: Any) -> Any:
        is_header = self.type in _LONG_NAME_TYPES + _EXTENDED_TYPES
        archive.chained = getattr(archive, "chained", 0) + 1 if is_header else 0
        if is_header and not 0 <= self.size <= HEADER_LIMIT:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes, at most {HEADER_LIMIT:,}")
        if archive.chained > CHAIN_LIMIT:
            raise tarfile.ReadError(f"more than {CHAIN_LIMIT} headers for one member")
        return super()._proc_member(archive)  # type: ignore[misc]


def _read_tar(stream: Any, where: str, limit: int) -> Iterator[Member | Skipped]:
    with tarfile.open(fileobj=stream, mode="r|", bufsize=TAR_BLOCK, tarinfo=_CappedTarInfo) as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all headers in memory
            if not info.isfile():
                continue
            if info.size > limit:
                yield make_too_large(info.name, info.size)
                continue
            file = archive.extractfile(info)
            data = file.read() if file else b""
            if len(data) != info.size:
                raise UserError(f"{where}: expected a whole archive, found one that ends inside {info.name}")
            yield Member(info.name, data)


def _read_zip(stream: io.BufferedReader, where: str, limit: int) -> Iterator[Member | Skipped]:
    """Yield the files of a zip. Its table is at the end, and costs about 600 bytes of memory a file."""
    with tempfile.TemporaryFile() as spool:
        source: Any = stream
        if not stream.seekable():
            say("download", f"{where}: the server offers no ranges, so the zip is spooled to a temporary file first")
            while chunk := stream.read(BUFFER):
                spool.write(chunk)
            source = spool
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
                    continue
                if info.flag_bits & 0x1:
                    raise UserError(f"{where}: expected a zip without a password, found {info.filename} encrypted")
                if info.file_size > limit:
                    yield make_too_large(info.filename, info.file_size)
                    continue
                with archive.open(info) as file:
                    data = file.read(limit + 1)  # the declared size may lie
                yield Member(info.filename, data) if len(data) <= limit else make_too_large(info.filename, len(data))


PATH_LIMIT = 4096
"""Maximum characters of a path; no file system has longer ones, and label patterns are searched in them."""


_REMOVED_PARTS = frozenset(("", ".", ".."))


def normalize_path(path: str) -> str:
    """Return the normal form of a path: relative, '/' between parts, no '.' or '..', Unicode NFC, valid UTF-8."""
    if path.isascii() and "\\" not in path and _REMOVED_PARTS.isdisjoint(path.split("/")):
        return path  # nearly all paths are in normal form, and each is looked at several times
    parts = posixpath.normpath(path.replace("\\", "/")).split("/")
    return "/".join(part if part.isascii() else _to_unicode(part) for part in parts if part not in _REMOVED_PARTS)


def _to_unicode(name: str) -> str:
    """Return a name in NFC; one that is no UTF-8 is decoded as Latin-1, so that different names stay different."""
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair
        raw = name.encode("utf-8", "replace")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return unicodedata.normalize("NFC", text)


def make_skipped(path: str, why: str) -> Skipped:
    return Skipped(normalize_path(path)[:PATH_LIMIT], why)


def classify(path: str, data: bytes) -> Member | Skipped:
    """Return a Member for an image candidate, by its name or its bytes, and Skipped for any other file."""
    name = normalize_path(path)
    if not name or len(name) > PATH_LIMIT:
        return make_skipped(path, "a name that is no path" if not name else "a name longer than any path")
    if is_hidden(name):
        return make_skipped(path, "a hidden file")
    if has_image_extension(name) or sniff(data[:32]):
        return Member(name, data)
    return make_skipped(path, "no image by name or content")
