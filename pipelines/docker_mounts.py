"""Which files of this machine a container sees: the workspace, and read-only what the parameters name.

Everything is at the same absolute path as outside, so that URIs mean the same everywhere. A source's symbolic links
are followed, for a link that leads out of what is mounted would silently be an image that is not there. (Docker follows
the links in what it mounts itself, so a folder that is a link is mounted as the folder that it leads to.)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..components.download.config import DownloadConfig
from ..components.download.labels import open_dataset
from ..components.download.table import TableSource
from ..components.store import uri as uris
from ..components.store.errors import UserError, wrong
from ..components.store.manifest import MANIFEST
from .cluster import SCRATCH
from .parameters import RunParameters
from .paths import PATHS, is_path

CACHE = "cache_dir"
MAX_MOUNTS = 200
_THE_IMAGES_OWN = {
    "/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/opt", "/proc", "/run", "/sbin", "/sys", "/usr",
    SCRATCH,
}  # fmt: skip
"""What would hide the image's own files if it were mounted."""


@dataclass(frozen=True)
class Seen:
    """`read`: files and folders that are only read; `written`: folders; `addresses`: s3 and http URIs, and Ray's."""

    read: tuple[str, ...]
    written: tuple[str, ...]
    addresses: tuple[str, ...]

    def uses_s3(self) -> bool:
        return any(uris.is_s3(address) for address in self.addresses)


def absolute(parameters: RunParameters) -> RunParameters:
    """The same parameters with absolute paths: a container has another current folder, and another home."""

    def changed(values: dict[str, Any]) -> dict[str, Any]:
        made = {
            name: uris.normalize(value, name)
            for name, value in values.items()
            if name in (*PATHS, CACHE) and is_path(parameters, name, value)
        }
        return {**values, **made}

    return replace(
        parameters,
        pipeline=changed(parameters.pipeline),
        sections={s: changed(v) for s, v in parameters.sections.items()},
    )


def seen_by(parameters: RunParameters, workspace: str) -> Seen:
    """What the containers of a run with these (absolute) parameters have to see; reads folders and tables for it."""
    download = parameters.config("download")
    assert isinstance(download, DownloadConfig)
    every = [
        (name, value)
        for values in (parameters.pipeline, *parameters.sections.values())
        for name, value in values.items()
    ]
    named = [value for name, value in every if name in PATHS and is_path(parameters, name, value)]
    addresses = {str(value) for name, value in every if uris.scheme(str(value)) or (name == "ray_address" and value)}
    written = {str(value) for name, value in every if name == CACHE and value}
    (addresses if uris.is_s3(workspace) else written).add(workspace)
    rows: list[str] = []
    if download.dataset == "csv":
        source, _ = open_dataset(download)
        assert isinstance(source, TableSource)
        for place in source.places():
            if uris.scheme(place):
                addresses.add("/".join(place.split("/", 3)[:3]))  # a table has many files of few hosts
            else:
                rows.append(place)
    for place in (*named, *written):
        _refuse_system(place)
    read = outermost(_reached(named, rows, workspace), written)
    for place in read:
        _refuse_system(place)
    if len(read) > MAX_MOUNTS:
        raise wrong("source", f"files in at most {MAX_MOUNTS} folders (--runner docker mounts each of them)", len(read))
    return Seen(tuple(read), tuple(sorted(written)), tuple(sorted(addresses)))


def _reached(named: list[str], rows: list[str], workspace: str) -> set[str]:
    """What to mount to reach every place and whatever it links to: of `named` files those alone, of others (a table's
    rows, what links lead to) their folders."""
    found: set[str] = set()
    asked: set[str] = set()
    alone = {place for place in named if not place.endswith(f"/{MANIFEST}")}
    waiting = [*named, *rows]
    while waiting:
        place = waiting.pop()
        if place in asked:
            continue
        asked.add(place)
        if os.path.isdir(place):  # noqa: PTH112
            found.add(place)
            waiting += (target for link in _links(place, workspace) for target in _targets(link))
        elif os.path.lexists(place):
            found.add(place if place in alone else os.path.dirname(place))  # noqa: PTH120
            waiting += _targets(place)
    return found


def _targets(path: str) -> list[str]:
    """Where a symbolic link leads, one step; nothing for what is none, or leads nowhere."""
    if not os.path.islink(path):  # noqa: PTH114
        return []
    target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))  # noqa: PTH115, PTH118, PTH120
    return [target] if os.path.lexists(target) else []


def _links(folder: str, workspace: str) -> Iterator[str]:
    """The symbolic links below a folder; none is followed. The workspace may lie in it and holds no source."""
    if folder == workspace:
        return
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError:  # the step says what is wrong with it
        return
    for entry in found:
        if entry.is_symlink():
            yield entry.path
        elif entry.is_dir():
            yield from _links(entry.path, workspace)


def outermost(places: Iterable[str], written: Iterable[str] = ()) -> list[str]:
    """Those places that lie in no other of them, nor in a folder that is mounted to be written."""
    kept: list[str] = []
    above = {str(Path(folder)) for folder in written}
    for place in sorted(set(places), key=lambda place: (place.count("/"), place)):
        if place not in above and not any(str(parent) in above for parent in Path(place).parents):
            kept.append(place)
            above.add(place)
    return kept


def _refuse_system(place: str) -> None:
    if place in _THE_IMAGES_OWN:
        raise UserError(
            f"--runner docker: expected files in a folder of their own, found some in {place}, which in a container "
            "holds the image's own files; move them, or use --runner subprocess"
        )
