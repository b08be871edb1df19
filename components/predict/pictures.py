"""Which files are meant, and their bytes: one at a time, never a list of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..store import uri as uris
from ..store.choices import DecodeLimits, has_image_extension
from ..store.filesystem import get_store
from ..store.headers import sniff
from ..store.images import ImageRejected
from ..store.uri import is_hidden

LIMIT = DecodeLimits().bytes


@dataclass(frozen=True)
class Picture:
    """A file that is to be read: `name` as the user would call it; `size` in bytes, -1 where it was not listed;
    `promised`: it was named itself, or its name ends as an image's does."""

    name: str
    uri: str
    size: int = -1
    promised: bool = True

    def read(self) -> bytes | None:
        """The bytes; None for a file that somebody else's folder holds besides images. Raises ImageRejected for a file
        that is not there or is too large to be read; errors of the store as they are."""
        store = get_store(self.uri)
        try:
            if self.size < 0:
                entry = store.stat(self.uri)
                if entry is None:
                    raise FileNotFoundError(self.uri)
                _check(entry.size)
            else:
                if not self.promised and not self._begins_as_image():
                    return None
                _check(self.size)
            return store.read(self.uri)
        except FileNotFoundError:
            raise ImageRejected("missing_file", "no such file") from None

    def _begins_as_image(self) -> bool:
        with get_store(self.uri).open(self.uri) as file:
            return bool(sniff(file.read(32)))


def _check(number: int) -> None:
    if number > LIMIT:
        raise ImageRejected("too_many_bytes", f"{number:,} bytes, at most {LIMIT:,}")


def pictures(arguments: Iterable[str], lines: Iterable[str]) -> Iterator[Picture]:
    """The files that the arguments mean, in their order: a file itself, what a folder or s3 prefix holds (all below it,
    but what is hidden), and for `-` what each of `lines` means. What is not there is a picture that can't be read."""
    for argument in arguments:
        if argument != "-":
            yield from _meant(argument)
            continue
        for line in lines:
            if path := line.rstrip("\r\n"):
                yield from _meant(path)


def _meant(argument: str) -> Iterator[Picture]:
    uri = uris.normalize(argument, "IMAGE")
    if not uris.is_s3(uri):
        return _below(argument, uri) if Path(uri).is_dir() else iter([Picture(argument, uri)])
    if argument.endswith("/") or not uris.split_s3(uri)[1]:
        return _below(argument, uri)
    return iter([Picture(argument, uri)]) if get_store(uri).stat(uri) else _prefix(argument, uri)


def _prefix(argument: str, uri: str) -> Iterator[Picture]:
    """What is below an s3 prefix; one picture that is not there where that is nothing."""
    found = False
    for one in _below(argument, uri):
        found = True
        yield one
    if not found:
        yield Picture(argument, uri)


def _below(argument: str, uri: str) -> Iterator[Picture]:
    for entry in get_store(uri).list(uri):
        path = entry.uri[len(uri.rstrip("/")) + 1 :]
        if not is_hidden(path):
            yield Picture(f"{argument.rstrip('/')}/{path}", entry.uri, entry.size, has_image_extension(path))
