"""URIs as plain strings: an absolute local path, or `s3://bucket/key`. Nothing here does I/O."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from .errors import wrong

_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")


def scheme(uri: str) -> str:
    """Return `s3`, `http`, `https`, … or `` for a local path."""
    match = _SCHEME.match(uri) if "://" in uri else None  # asked for each file of a source
    return match.group(1).lower() if match else ""


def is_s3(uri: str) -> bool:
    return scheme(uri) == "s3"


def is_http(uri: str) -> bool:
    return scheme(uri) in ("http", "https")


def normalize(uri: str, field: str = "uri") -> str:
    """Make a local path absolute (`~` and `file://` are understood), strip an s3 URI of its trailing slash.

    Raises UserError for any other scheme, an s3 URI without a bucket and an impossible path.
    """
    kind = scheme(uri)
    if kind == "file" and urlsplit(uri).netloc not in ("", "localhost"):
        raise wrong(field, "file:///path on this machine", uri)
    if kind in ("", "file"):
        path = unquote(urlsplit(uri).path) if kind == "file" else uri
        try:
            return str(Path(path).expanduser().absolute().resolve())
        except (RuntimeError, ValueError) as error:  # no such user, links in a circle; a zero byte
            raise wrong(field, f"a path that can be used ({error})", uri) from None
    if kind == "s3":
        bucket, key = split_s3(uri)
        if not bucket:
            raise wrong(field, "s3://bucket/prefix", uri)
        return f"s3://{bucket}/{key.strip('/')}".rstrip("/")
    raise wrong(field, "a folder or s3://bucket/prefix", redact(uri))


def split_s3(uri: str) -> tuple[str, str]:
    """Split `s3://bucket/a/b` into (`bucket`, `a/b`)."""
    bucket, _, key = uri[len("s3://") :].partition("/")
    return bucket, key


def join(base: str, *parts: str) -> str:
    """Return `base/part/part`; the parts are relative and may begin with `..`, which is resolved."""
    if is_s3(base):
        bucket, key = split_s3(base)
        return f"s3://{bucket}/{posixpath.normpath(posixpath.join(key, *parts))}"
    if len(parts) == 1 and _is_plain(parts[0]):
        return f"{base.rstrip('/')}/{parts[0]}"
    return posixpath.normpath(posixpath.join(base, *parts))


def _is_plain(path: str) -> bool:
    """Return whether a relative path is in normal form for sure: nearly all are, and to normalize one takes longer than
    to look for the file."""
    return path[:1] not in ("", "/", ".") and path[-1] not in "/." and "//" not in path and "./" not in path


def relpath(uri: str, start: str) -> str:
    """Return `uri` relative to the folder `start`, so that a workspace can be moved: `../../raw/0123`.

    Both must be in one store; raises ValueError otherwise.
    """
    if is_s3(uri) != is_s3(start) or (is_s3(uri) and split_s3(uri)[0] != split_s3(start)[0]):
        raise ValueError(f"{uri} can't be written relative to {start}: they are in different stores")
    if is_s3(uri):
        return posixpath.relpath("/" + split_s3(uri)[1], "/" + split_s3(start)[1])
    return posixpath.relpath(uri, start)


def basename(uri: str) -> str:
    """Return the file or folder name at the end of any URI, without a query; in URLs it is unquoted."""
    is_url = scheme(uri) not in ("", "s3")
    path = urlsplit(uri).path if is_url else uri
    name = path.rstrip("/").rpartition("/")[2]
    return unquote(name) if is_url else name


def redact(uri: str) -> str:
    """Return `uri` for a message or a record, without user name, password and query string."""
    kind = scheme(uri)
    if not kind or (is_s3(uri) and "@" not in split_s3(uri)[0]):
        return uri
    try:
        parts = urlsplit(uri)
        _ = parts.port  # of a password with an unquoted slash or the like, a part is taken for the port
    except ValueError:
        return f"{kind}://…"
    return f"{kind}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def is_hidden(path: str) -> bool:
    """Return whether a path is the system's own: `.DS_Store`, `._photo.jpg` (AppleDouble), or in a hidden folder."""
    return any(p.startswith(".") and p not in (".", "..") for p in path.split("/")) or "__MACOSX/" in path
