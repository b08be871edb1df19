"""Who containers run as, and that this user may write the workspace, without making it writable for the world."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..components.store import uri as uris
from ..components.store.errors import UserError
from ..components.store.filesystem import disk_errors
from ..components.store.manifest import MANIFEST
from .cluster import UID

User = tuple[int, int]
"""uid and gid."""


def user_of(info: Mapping[str, Any], caller: User) -> User:
    """Who containers run as: the caller, so that files belong to him; for root the images' own user.

    `info` is the engine's. In a rootless engine the container's root is the caller, without any right of root's.
    """
    if "name=rootless" in options(info):
        return (0, 0)
    return (UID, UID) if caller[0] == 0 else caller


def options(info: Mapping[str, Any]) -> set[str]:
    """The engine's security options: `name=rootless`, `name=selinux`, `name=userns`, …"""
    return {str(one).partition(",")[0] for one in info.get("SecurityOptions") or ()}


def make_writable(folder: str, user: User) -> None:
    """A new folder is made and given to `user`; UserError for one that is there and that `user` can't write.

    Nothing is done where the caller is the user already, or the folder is on S3.
    """
    if uris.is_s3(folder) or os.getuid() != 0 or user[0] == 0:
        return
    path = Path(folder)
    with disk_errors(folder):
        if not path.exists():
            path.mkdir(parents=True)
            os.chown(path, *user)
            return
        for one in _folders(path):
            if not may_write(one.stat(), user):
                raise UserError(
                    f"workspace: expected a folder that user {user[0]}, as whom containers run, can write; found {one} "
                    f"of user {one.stat().st_uid}; give it to him: chown -R {user[0]}:{user[1]} {folder}"
                )


def make_run_folder(workspace: str, run: str, user: User) -> None:
    """`runs/<run>/`, which this process writes the log into, too, as a folder of the user's."""
    if uris.is_s3(workspace) or os.getuid() != 0 or user[0] == 0:
        return
    with disk_errors(workspace):
        for path in (Path(workspace, "runs"), Path(workspace, "runs", run)):
            if not path.exists():
                path.mkdir()
                os.chown(path, *user)


def _folders(workspace: Path) -> Iterator[Path]:
    """The folders that a run may write into: not those of datasets that are finished, nor of earlier runs."""
    yield workspace
    for kind in _below(workspace):
        yield kind
        for one in _below(kind) if kind.name != "runs" else ():
            if not (one / MANIFEST).exists():
                yield one
                yield from _below(one)


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def may_write(about: os.stat_result, user: User) -> bool:
    """Whether a user without further groups may make files in a folder, by its mode."""
    shift = 6 if about.st_uid == user[0] else 3 if about.st_gid == user[1] else 0
    return about.st_mode >> shift & 0o3 == 0o3 and stat.S_ISDIR(about.st_mode)
