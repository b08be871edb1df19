"""List the image files that arguments name, without a list of all in memory, and read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..imaging.decoder import ImageRejected
from ..imaging.headers import sniff
from ..imaging.pixel_options import DecodeLimits, has_image_extension
from ..storage import uri as uris
from ..storage.parallel import cores, map_ordered
from ..storage.store import get_store
from ..storage.uri import is_hidden

MAX_BYTES = DecodeLimits().bytes
MISSING_FILE = "missing_file"


@dataclass(frozen=True)
class InputFile:
    """A file to classify, named as the user would write it; its size is -1 if it was not listed. `is_expected_image`:
    an argument names the file itself, or its name has an image's extension."""

    name: str
    uri: str
    size: int = -1
    is_expected_image: bool = True

    def is_image(self) -> bool:
        """Return whether the file is to be read: False for one of a folder that is no image by name and first bytes."""
        if self.is_expected_image:
            return True
        try:
            with get_store(self.uri).open(self.uri) as file:
                return bool(sniff(file.read(32)))
        except FileNotFoundError:  # gone since it was listed, which `read` reports
            return True

    def read(self) -> bytes:
        """Read the file.

        Raises ImageRejected for a missing or too large file, and errors of the store as they are.
        """
        store, size = get_store(self.uri), self.size
        try:
            if size < 0:
                entry = store.stat(self.uri)
                if entry is None:
                    raise FileNotFoundError(self.uri)
                size = entry.size
            if size > MAX_BYTES:
                raise ImageRejected("too_many_bytes", f"{size:,} bytes, at most {MAX_BYTES:,}")
            return store.read(self.uri)
        except FileNotFoundError:
            raise ImageRejected(MISSING_FILE, "no such file") from None


def find_images(arguments: Iterable[str], lines: Iterable[str]) -> Iterator[InputFile]:
    """Yield the files of `find_inputs` that are to be read; the others' first bytes are read in threads."""
    files = find_inputs(arguments, lines)
    for file, is_image in map_ordered(files, lambda file: (file, file.is_image()), cores(), lambda _: 0):
        if is_image:
            yield file


def find_inputs(arguments: Iterable[str], lines: Iterable[str]) -> Iterator[InputFile]:
    """Yield the files that the arguments name, in order: a file, or all but hidden files below a folder or s3 prefix.

    `lines`: more arguments, in the place of `-`. A missing file is yielded, and can't be read then.
    """
    for argument in arguments:
        if argument != "-":
            yield from _resolve(argument)
            continue
        for line in lines:
            if path := line.rstrip("\r\n"):
                yield from _resolve(path)


def _resolve(argument: str) -> Iterator[InputFile]:
    uri = uris.normalize(argument, "IMAGE")
    if not uris.is_s3(uri):
        return _list_files(argument, uri) if Path(uri).is_dir() else iter([InputFile(argument, uri)])
    if argument.endswith("/") or not uris.split_s3(uri)[1]:
        return _list_files(argument, uri)
    return iter([InputFile(argument, uri)]) if get_store(uri).stat(uri) else _list_prefix(argument, uri)


def _list_prefix(argument: str, uri: str) -> Iterator[InputFile]:
    """Yield the files below an s3 prefix; if there are none, the argument as a missing file."""
    files = _list_files(argument, uri)
    yield next(files, InputFile(argument, uri))
    yield from files


def _list_files(argument: str, uri: str) -> Iterator[InputFile]:
    for entry in get_store(uri).list(uri):
        path = entry.uri[len(uri.rstrip("/")) + 1 :]
        if not is_hidden(path):
            yield InputFile(f"{argument.rstrip('/')}/{path}", entry.uri, entry.size, has_image_extension(path))
