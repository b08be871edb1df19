"""Address and token of a Ray cluster: check them before Ray connects, and report errors in one line.

Ray itself takes a refused token for a cluster that does not answer, and reports that after 20 to 30 seconds with a line
for every attempt; so the port is checked first.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..storage import uri as uris
from ..storage.errors import MillError, TransientError, UserError

AUTO = "auto"
CHECK_TIMEOUT_S = 10.0
_CLIENT_SCHEME = "ray://"
_ADDRESS = re.compile(r"^(ray://)?(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})$")
_ADDRESS_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
_SERVER_FAILURES = ("Starting Ray client server failed", "Proxy failed to Connect to backend", "psutil.")
"""In Ray Client's errors when the server that it starts for each client ended early or was too slow to start."""
TOKEN_VARIABLES = "RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


def is_cluster_address(address: str) -> bool:
    """Return whether `address` is `auto`, host:port or ray://host:port."""
    match = _ADDRESS.match(address)
    return address == AUTO or bool(match and 0 < int(match.group(3)) < 65536)


def check_address(address: str) -> None:
    """Raise UserError unless `is_cluster_address`."""
    if not is_cluster_address(address):
        raise UserError(
            "ray_address: expected auto, host:6379, ray://host:10001 or http://host:8265, found "
            f"{uris.redact(address)!r}"
        )


def check_port(address: str) -> None:
    """Check that a Ray cluster answers at host:port or ray://host:port and accepts the token.

    Sends an empty gRPC call, of which only the status code counts. A cluster with TLS is not checked.

    Raises TransientError if nothing answers, UserError for a refused token or another service.
    """
    if address == AUTO or os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
        return
    import grpc

    service = "RayletDriver/ClusterInfo" if address.startswith(_CLIENT_SCHEME) else "NodeInfoGcsService/CheckAlive"
    with grpc.insecure_channel(
        address.removeprefix(_CLIENT_SCHEME), options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        call = channel.unary_unary(f"/ray.rpc.{service}")
        try:
            call(b"", metadata=_get_auth_metadata(), timeout=CHECK_TIMEOUT_S, wait_for_ready=False)
        except grpc.RpcError as error:
            code, details = error.code(), str(error.details()).partition("\n")[0]
            if code is grpc.StatusCode.UNAUTHENTICATED:
                raise token_error(address, details) from None
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise unreachable_error(address, details) from None
            if code is grpc.StatusCode.UNIMPLEMENTED:
                expected, form = "a GCS", "ray://host:10001"
                if address.startswith(_CLIENT_SCHEME):
                    expected, form = "the port of Ray Client", "host:6379 (from one of its nodes)"
                raise UserError(
                    f"ray_address: expected {expected} at {address}, found another service; is {form} meant?"
                ) from None


def enable_token_auth() -> None:
    """Set RAY_AUTH_MODE if the environment names a token: without the mode Ray does not send the token."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _get_auth_metadata() -> list[tuple[str, str]]:
    """Return the gRPC metadata with the token from where Ray looks for it: a variable, a file that a variable names, or
    ~/.ray/auth_token."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return []
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if not token:
        with suppress(OSError, RuntimeError, ValueError):
            token = (Path(path) if path else Path.home() / ".ray" / "auth_token").read_text()
    return [("authorization", f"Bearer {token.strip()}")] if token.strip() else []


def unreachable_error(address: str, reason: str) -> TransientError:
    return TransientError(
        f"ray_address: expected a Ray cluster at {uris.redact(address)}, found none that answers: {reason}"
    )


def token_error(address: str, reason: str) -> UserError:
    return UserError(
        f"ray_address: expected a token that the cluster at {uris.redact(address)} takes ({TOKEN_VARIABLES}), found "
        f"{'one that it refuses' if _get_auth_metadata() else 'none'}: {reason}"
    )


def connection_error(address: str, error: Exception) -> MillError:
    """Return the one-line error for an exception that `ray.init(address)` raised."""
    text = str(error)
    versions = _VERSIONS.findall(text)
    first_line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if "ersion mismatch" in text or len(versions) == 2:
        cluster_versions = "Ray {} and Python {}".format(*versions[0]) if versions else first_line
        return UserError(
            f"ray_address: expected Ray {_get_ray_version()} and Python {platform.python_version()} at {address}, as "
            f"here, found {cluster_versions}; run this command in the cluster's image"
        )
    last_line = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    if any(part in text for part in _SERVER_FAILURES):
        return TransientError(
            f"ray_address: expected the Ray cluster at {address} to start a server for this client, found: {last_line}"
        )
    if "Initialization failure from server" in text:  # older and newer versions don't get as far as comparing
        return UserError(
            f"ray_address: expected a cluster of Ray {_get_ray_version()} at {address}, as here, found one that can't "
            f"serve it: {last_line}"
        )
    if "uthenticat" in text:
        return token_error(address, first_line)
    if "node_ip_address" in text or "node info found" in text or "This node has an IP address" in text:
        return UserError(
            f"ray_address: expected {address} to be the cluster of this node, found a machine that is none of its "
            f"nodes ({first_line}); from outside use ray://host:10001 or http://host:8265"
        )
    if isinstance(error, ConnectionError | TimeoutError):
        return unreachable_error(address, first_line)
    return UserError(f"ray_address: expected the address of a Ray cluster, found {address!r}: {first_line}")


def _get_ray_version() -> str:
    import ray

    return str(ray.__version__)


@contextmanager
def ignore_address_variables(address: str) -> Iterator[None]:
    """Hide RAY_ADDRESS unless `address` is `auto`: it is set inside a Ray job, and Ray prefers it to an argument."""
    hidden = (
        {} if address == AUTO else {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
    )
    try:
        yield
    finally:
        os.environ |= hidden
