"""Environment of a container: environment variables (run, object store, credentials, proxies, certificates), the
network, mounted files of this machine, and the user who reads and writes them.

Credentials are passed in the environment, never on a command line. Those of a profile, a role or an instance are
resolved here: a container has no `~/.aws`, and may not reach the instance's metadata.

The workspace is mounted to be written, and read-only what the parameters name. Everything has the same absolute path as
outside, so that URIs mean the same everywhere. A source's symbolic links are followed, for a link that leads out of the
mounts would silently be a missing image. (Docker itself follows the links in the paths of mounts, so a folder that is a
link is mounted as the folder that it leads to.)
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...components.dataset.manifest import MANIFEST
from ...components.download.config import DownloadConfig
from ...components.download.dataset_kinds import open_dataset
from ...components.download.table import TableSource
from ...components.step.runner_exit import RUNNER_BOOT, RUNNER_PIPE, boot_id
from ...components.storage import uri as uris
from ...components.storage.errors import UserError, wrong
from ...components.storage.store import map_disk_errors
from ...components.storage.uri import is_s3
from ..cluster.cluster_file import SCRATCH, UID
from ..parameters import PATH_PARAMETERS, RunParameters

_PROXIES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
CERTIFICATES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
"""Variables that name a file, which is mounted."""
_UNMOUNTED_PATHS = {"HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH", "RAY_AUTH_TOKEN_PATH"}
"""Variables that name files and folders that are not mounted."""
_CREDENTIAL_SOURCES = {
    "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_SDK_LOAD_CONFIG",
    "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN",
}  # fmt: skip
"""Variables of boto3's credential chain, which are resolved here."""

Credentials = Callable[[], dict[str, str]]


def select_variables(pipe: str, environment: Mapping[str, str], s3: bool) -> dict[str, str]:
    """Return a container's environment without credentials.

    `environment`: this process's. `s3`: the object store is used, so its settings are passed. `pipe`: the named pipe
    that is closed when this process ends.
    """
    inherited = {
        name: value
        for name, value in environment.items()
        if name.upper() in _PROXIES
        or name in CERTIFICATES
        or name == "OMP_NUM_THREADS"
        or (name.startswith(("HF_", "RAY_AUTH_")) and name not in _UNMOUNTED_PATHS)
        or (
            s3 and name.startswith("AWS_") and name not in _CREDENTIAL_SOURCES and not name.startswith("AWS_CONTAINER_")
        )
    }
    # The caller's uid has no name in the image, and libraries ask for one.
    own = {"USER": "imagemill", "LOGNAME": "imagemill", "PYTHONUNBUFFERED": "1"}
    return inherited | own | {RUNNER_PIPE: pipe, RUNNER_BOOT: boot_id()}


def make_s3_credentials() -> Credentials:
    """Return a function that returns the credentials, region and endpoint of S3 as variables, as boto3 finds them.

    boto3 renews temporary credentials: the function is called again for each container.
    """
    import boto3

    from ...components.storage.s3 import shared_s3

    store, credentials = shared_s3(), boto3.session.Session().get_credentials()

    def read_credentials() -> dict[str, str]:
        variables = {"AWS_REGION": store.region, "AWS_DEFAULT_REGION": store.region, "AWS_ENDPOINT_URL": store.endpoint}
        if credentials is not None:
            keys = credentials.get_frozen_credentials()
            variables |= {
                "AWS_ACCESS_KEY_ID": keys.access_key or "",
                "AWS_SECRET_ACCESS_KEY": keys.secret_key or "",
                "AWS_SESSION_TOKEN": keys.token or "",
            }
        return {name: value for name, value in variables.items() if value}

    return read_credentials


def choose_network_mode(addresses: Iterable[str]) -> str:
    """Return Docker's network mode: `host` if any of the addresses is on this machine's loopback, else `bridge`."""
    return "host" if any(is_on_loopback(address) for address in addresses) else "bridge"


def is_on_loopback(address: str) -> bool:
    """Return whether a URL or `host:port` is of this machine's loopback (`localhost`, `127.0.0.1`, a name for it)."""
    try:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
        entries = socket.getaddrinfo(host, None) if host else []
    except (ValueError, OSError):  # no URL, or a name that only the container's network may know
        return False
    resolved = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries]
    return any(ip.is_loopback or ip.is_unspecified for ip in resolved)


def list_endpoints(addresses: Iterable[str], environment: Mapping[str, str], s3_endpoint: str) -> list[str]:
    """Return all addresses that containers have to reach: those of parameters, proxies, the object store."""
    proxies = [value for name, value in environment.items() if name.upper() in _PROXIES - {"NO_PROXY"} and value]
    return [
        *(address for address in addresses if not is_s3(address)),
        *proxies,
        *([s3_endpoint] if s3_endpoint else []),
    ]


def find_certificates(environment: Mapping[str, str]) -> list[str]:
    """Return the existing files that the environment names as certificates."""
    paths = (os.path.abspath(environment[name]) for name in CERTIFICATES if environment.get(name))  # noqa: PTH100
    return sorted({path for path in paths if os.path.exists(path)})  # noqa: PTH110


CACHE = "cache_dir"
MAX_MOUNTS = 200
_SYSTEM_FOLDERS = {
    "/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/opt", "/proc", "/run", "/sbin", "/sys", "/usr",
    SCRATCH,
}  # fmt: skip
"""Folders that are not mounted, for the mount would hide the image's own files."""

User = tuple[int, int]
"""uid and gid."""


@dataclass(frozen=True)
class RequiredAccess:
    """Places that containers use: `read`, files and folders that are only read; `written`, folders; `addresses`, URIs
    of S3 and HTTP, and Ray's address."""

    read: tuple[str, ...]
    written: tuple[str, ...]
    addresses: tuple[str, ...]

    def uses_s3(self) -> bool:
        return any(uris.is_s3(address) for address in self.addresses)


def make_absolute(parameters: RunParameters) -> RunParameters:
    """Return the parameters with absolute paths: a container has another working directory and another home."""

    def normalize(values: dict[str, Any]) -> dict[str, Any]:
        return values | {
            name: uris.normalize(value, name)
            for name, value in values.items()
            if name in (*PATH_PARAMETERS, CACHE) and parameters.is_path(name, value)
        }

    sections = {step: normalize(values) for step, values in parameters.sections.items()}
    return replace(parameters, pipeline=normalize(parameters.pipeline), sections=sections)


def find_required_access(parameters: RunParameters, workspace: str) -> RequiredAccess:
    """Return what the containers of a run with these (absolute) parameters use; lists folders and reads tables.

    UserError for a system folder, or for files in more than `MAX_MOUNTS` folders.
    """
    download = parameters.config("download")
    assert isinstance(download, DownloadConfig)
    named = [path for _, _, path in parameters.find_paths()]
    written: set[str] = set()
    addresses: set[str] = set()
    for _, name, value in parameters.items():
        if uris.scheme(str(value)) or (name == "ray_address" and value):
            addresses.add(str(value))
        if name == CACHE and value:
            written.add(str(value))
    (addresses if uris.is_s3(workspace) else written).add(workspace)
    rows: list[str] = []
    if download.dataset == "csv":
        source, _ = open_dataset(download)
        assert isinstance(source, TableSource)
        for place in source.list_uris():
            if uris.scheme(place):
                addresses.add("/".join(place.split("/", 3)[:3]))  # the host alone: a table has many files of few hosts
            else:
                rows.append(place)
    for path in (*named, *written):
        _refuse_system_folder(path)
    read = drop_nested(_find_read_paths(named, rows, workspace), written)
    for path in read:
        _refuse_system_folder(path)
    if len(read) > MAX_MOUNTS:
        raise wrong("source", f"files in at most {MAX_MOUNTS} folders (--runner docker mounts each of them)", len(read))
    return RequiredAccess(tuple(read), tuple(sorted(written)), tuple(sorted(addresses)))


def _find_read_paths(named: list[str], rows: list[str], workspace: str) -> set[str]:
    """Return the paths to mount so that all paths and the targets of their links are there: of `named` files those
    alone, of others (rows of a table, targets of links) their folders."""
    mounts: set[str] = set()
    visited: set[str] = set()
    single_files = {path for path in named if not path.endswith(f"/{MANIFEST}")}
    pending = [*named, *rows]
    while pending:
        path = pending.pop()
        if path in visited:
            continue
        visited.add(path)
        if os.path.isdir(path):  # noqa: PTH112
            mounts.add(path)
            pending += (target for link in _find_links(path, workspace) for target in _read_link(link))
        elif os.path.lexists(path):
            mounts.add(path if path in single_files else os.path.dirname(path))  # noqa: PTH120
            pending += _read_link(path)
    return mounts


def _read_link(path: str) -> list[str]:
    """Return the target of a symbolic link, one step on; empty if `path` is no link, or its target does not exist."""
    if not os.path.islink(path):  # noqa: PTH114
        return []
    target = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))  # noqa: PTH115, PTH118, PTH120
    return [target] if os.path.lexists(target) else []


def _find_links(folder: str, workspace: str) -> Iterator[str]:
    """Yield the symbolic links below a folder, following none. The workspace may lie in it and holds no source."""
    if folder == workspace:
        return
    try:
        with os.scandir(folder) as scan:
            entries = list(scan)
    except OSError:  # the step itself reports the error
        return
    for entry in entries:
        if entry.is_symlink():
            yield entry.path
        elif entry.is_dir():
            yield from _find_links(entry.path, workspace)


def drop_nested(places: Iterable[str], written: Iterable[str] = ()) -> list[str]:
    """Return those places that lie in no other of them, nor in a folder that is mounted to be written."""
    kept: list[str] = []
    mounted = {str(Path(folder)) for folder in written}
    for place in sorted(set(places), key=lambda place: (place.count("/"), place)):
        if place not in mounted and not any(str(parent) in mounted for parent in Path(place).parents):
            kept.append(place)
            mounted.add(place)
    return kept


def _refuse_system_folder(path: str) -> None:
    if path in _SYSTEM_FOLDERS:
        raise UserError(
            f"--runner docker: expected files in a folder of their own, found some in {path}, which in a container "
            "holds the image's own files; move them, or use --runner local"
        )


def choose_user(info: Mapping[str, Any], caller: User) -> User:
    """Return the user of containers: the caller, so that he owns their files; for root the images' own user.

    `info`: the engine's. In a rootless engine the container's root is the caller, without any right of root's.
    """
    if "name=rootless" in read_security_options(info):
        return (0, 0)
    return (UID, UID) if caller[0] == 0 else caller


def read_security_options(info: Mapping[str, Any]) -> set[str]:
    """Return the engine's security options: `name=rootless`, `name=selinux`, `name=userns`, …"""
    return {str(option).partition(",")[0] for option in info.get("SecurityOptions") or ()}


def make_writable(folder: str, user: User) -> None:
    """Create a folder that does not exist and give it to `user`; UserError for one that `user` can't write.

    Does nothing where the caller is that user already, or the folder is on S3.
    """
    if _needs_no_owner(folder, user):
        return
    path = Path(folder)
    with map_disk_errors(folder):
        if not path.exists():
            path.mkdir(parents=True)
            os.chown(path, *user)
            return
        for written in _find_written_folders(path):
            status = written.stat()
            if not can_write(status, user):
                raise UserError(
                    f"workspace: expected a folder that user {user[0]}, as whom containers run, can write; found "
                    f"{written} of user {status.st_uid}; give it to him: chown -R {user[0]}:{user[1]} {folder}"
                )


def make_run_folder(workspace: str, run: str, user: User) -> None:
    """Create `runs/<run>/` as a folder of the user's: this process writes its log into it, too."""
    if _needs_no_owner(workspace, user):
        return
    with map_disk_errors(workspace):
        for path in (Path(workspace, "runs"), Path(workspace, "runs", run)):
            if not path.exists():
                path.mkdir()
                os.chown(path, *user)


def _needs_no_owner(folder: str, user: User) -> bool:
    return uris.is_s3(folder) or os.getuid() != 0 or user[0] == 0


def _find_written_folders(workspace: Path) -> Iterator[Path]:
    """Yield the folders that a run may write into: not those of finished datasets, nor of earlier runs."""
    yield workspace
    for kind in _list_folders(workspace):
        yield kind
        for dataset in _list_folders(kind) if kind.name != "runs" else ():
            if not (dataset / MANIFEST).exists():
                yield dataset
                yield from _list_folders(dataset)


def _list_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def can_write(status: os.stat_result, user: User) -> bool:
    """Return whether a user without further groups may create files in a folder, by its mode."""
    shift = 6 if status.st_uid == user[0] else 3 if status.st_gid == user[1] else 0
    return status.st_mode >> shift & 0o3 == 0o3 and stat.S_ISDIR(status.st_mode)
