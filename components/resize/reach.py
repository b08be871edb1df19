"""Reaching a Ray cluster: the address, the token, and what is wrong with either in one line.

Ray itself takes a refused token for a cluster that does not answer and says so after 20 to 30 seconds, with a line of
its own for every try; so the door is knocked at first.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..store import uri as uris
from ..store.errors import MillError, TransientError, UserError

AUTO = "auto"
KNOCK_S = 10.0
_CLIENT = "ray://"
_ADDRESS = re.compile(r"^(ray://)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})$")
_ENVIRONMENT = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_MISMATCH = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
TOKEN = "RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


def check_address(address: str) -> None:
    """UserError for what can't be the address of a cluster that is to be joined."""
    found = _ADDRESS.match(address)
    if address != AUTO and not (found and 0 < int(found.group(3)) < 65536):
        raise UserError(
            f"ray_address: expected auto, host:6379, ray://host:10001 or http://host:8265, found "
            f"{uris.redact(address)!r}"
        )


def knock(address: str) -> None:
    """See who answers at host:port or ray://host:port: TransientError for nobody, UserError for a refused token.

    Asks for nothing: only how an empty call is answered counts. A cluster with TLS is left to Ray.
    """
    if address == AUTO or os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
        return
    import grpc

    service = "RayletDriver/ClusterInfo" if address.startswith(_CLIENT) else "NodeInfoGcsService/CheckAlive"
    with grpc.insecure_channel(address.removeprefix(_CLIENT), options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(f"/ray.rpc.{service}")
        try:
            call(b"", metadata=_login(), timeout=KNOCK_S, wait_for_ready=False)
        except grpc.RpcError as error:
            code, said = error.code(), str(error.details()).partition("\n")[0]
            if code is grpc.StatusCode.UNAUTHENTICATED:
                raise refused(address, said) from None
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise nobody(address, said) from None
            if code is grpc.StatusCode.UNIMPLEMENTED:
                form = "host:6379 (from one of its nodes)" if address.startswith(_CLIENT) else "ray://host:10001"
                raise UserError(
                    f"ray_address: expected {'the port of Ray Client' if address.startswith(_CLIENT) else 'a GCS'} at "
                    f"{address}, found another service; is {form} meant?"
                ) from None


def use_token() -> None:
    """A token that the environment names is shown: Ray does that only if the mode is named as well."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _login() -> list[tuple[str, str]]:
    """Where Ray looks for the token: a variable, a file that a variable names, a file at home."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return []
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if not token:
        with suppress(OSError, RuntimeError, ValueError):
            token = (Path(path) if path else Path.home() / ".ray" / "auth_token").read_text()
    return [("authorization", f"Bearer {token.strip()}")] if token.strip() else []


def nobody(address: str, why: str) -> TransientError:
    return TransientError(
        f"ray_address: expected a Ray cluster at {uris.redact(address)}, found none that answers: {why}"
    )


def refused(address: str, why: str) -> UserError:
    return UserError(
        f"ray_address: expected a token that the cluster at {uris.redact(address)} takes ({TOKEN}), found "
        f"{'one that it refuses' if _login() else 'none'}: {why}"
    )


def not_joined(address: str, error: Exception) -> MillError:
    """What Ray said when it could not join, as one line of ours."""
    text = str(error)
    versions = _MISMATCH.findall(text)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if "ersion mismatch" in text or len(versions) == 2:
        there = "Ray {} and Python {}".format(*versions[0]) if versions else first
        return UserError(
            f"ray_address: expected Ray {_ray_version()} and Python {platform.python_version()} at {address}, as "
            f"here, found {there}; run this command in the cluster's image"
        )
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    if "Starting Ray client server failed" in text:
        return TransientError(f"ray_address: the Ray cluster at {address} could not serve a client: {last}")
    if "Initialization failure from server" in text:  # older and newer versions don't get as far as comparing
        return UserError(
            f"ray_address: expected a cluster of Ray {_ray_version()} at {address}, as here, found one that can't "
            f"serve it: {last}"
        )
    if "uthenticat" in text:
        return refused(address, first)
    if "node_ip_address" in text or "node info found" in text or "This node has an IP address" in text:
        return UserError(
            f"ray_address: expected {address} to be the cluster of this node, found a machine that is none of its "
            f"nodes ({first}); from outside use ray://host:10001 or http://host:8265"
        )
    if isinstance(error, ConnectionError | TimeoutError):
        return nobody(address, first)
    return UserError(f"ray_address: expected the address of a Ray cluster, found {address!r}: {first}")


def _ray_version() -> str:
    import ray

    return str(ray.__version__)


@contextmanager
def said_address(address: str) -> Iterator[None]:
    """Ray prefers RAY_ADDRESS, which is set inside a job, even to an address that was said. `auto` means it."""
    hidden = {} if address == AUTO else {name: os.environ.pop(name) for name in _ENVIRONMENT if name in os.environ}
    try:
        yield
    finally:
        os.environ |= hidden
