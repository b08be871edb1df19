"""What a container is told of the world: its run, the object store and who asks for it, proxies, certificates.

Credentials go through the environment, never through a command line. Those of a profile, a role or an instance are
resolved here, for a container has neither `~/.aws` nor always a way to the instance's metadata.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from ..components.store.runner import RUNNER_BOOT, RUNNER_PIPE, boot
from ..components.store.step import RUN
from ..components.store.uri import is_s3

_PROXIES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
CERTIFICATES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
"""Variables that name a file, which is mounted."""
_PLACES = {"HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH", "RAY_AUTH_TOKEN_PATH"}
"""Variables that name what is not mounted."""
_CHAIN = {
    "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_SDK_LOAD_CONFIG",
    "AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN",
}  # fmt: skip
"""Where credentials come from: resolved here, to what `credentials` gives."""

Credentials = Callable[[], dict[str, str]]


def variables(run: str, pipe: str, given: Mapping[str, str], s3: bool) -> dict[str, str]:
    """A container's environment without credentials. `given` is this process's environment; `s3`: the object store is
    used, so its settings are passed. `pipe`: the one whose end is the end of this process."""
    passed = {
        name: value
        for name, value in given.items()
        if name.upper() in _PROXIES
        or name in CERTIFICATES
        or name == "OMP_NUM_THREADS"
        or (name.startswith(("HF_", "RAY_AUTH_")) and name not in _PLACES)
        or (s3 and name.startswith("AWS_") and name not in _CHAIN and not name.startswith("AWS_CONTAINER_"))
    }
    # The caller's uid has no name in the image, and libraries ask for one.
    own = {"USER": "imagemill", "LOGNAME": "imagemill", "PYTHONUNBUFFERED": "1"}
    return passed | own | {RUN: run, RUNNER_PIPE: pipe, RUNNER_BOOT: boot()}


def credentials_of_s3() -> Credentials:
    """A function that gives the credentials, region and endpoint of S3 as variables, as boto3 finds them here.

    Temporary credentials are renewed by boto3: asked again for each container, they are fresh ones.
    """
    import boto3

    from ..components.store.s3 import shared_s3

    store, found = shared_s3(), boto3.session.Session().get_credentials()

    def current() -> dict[str, str]:
        known = {"AWS_REGION": store.region, "AWS_DEFAULT_REGION": store.region, "AWS_ENDPOINT_URL": store.endpoint}
        if found is not None:
            keys = found.get_frozen_credentials()
            known |= {
                "AWS_ACCESS_KEY_ID": keys.access_key or "",
                "AWS_SECRET_ACCESS_KEY": keys.secret_key or "",
                "AWS_SESSION_TOKEN": keys.token or "",
            }
        return {name: value for name, value in known.items() if value}

    return current


def network(addresses: Iterable[str]) -> str:
    """Docker's network mode: the machine's own network when something to be reached listens on loopback only."""
    return "host" if any(on_loopback(address) for address in addresses) else "bridge"


def on_loopback(address: str) -> bool:
    """Whether a URL's host, or `host:port`, is this machine's loopback (`localhost`, `127.0.0.1`, a name for it)."""
    try:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
        found = socket.getaddrinfo(host, None) if host else []
    except (ValueError, OSError):  # no URL, or a name that only the container's network may know
        return False
    addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
    return any(one.is_loopback or one.is_unspecified for one in addresses)


def endpoints(arguments: Iterable[str], given: Mapping[str, str], s3_endpoint: str) -> list[str]:
    """All addresses that containers have to reach: arguments that are URLs or Ray's, proxies, the object store."""
    proxies = [value for name, value in given.items() if name.upper() in _PROXIES - {"NO_PROXY"} and value]
    addresses = [address for address in arguments if not is_s3(address)]
    return [*addresses, *proxies, *([s3_endpoint] if s3_endpoint else [])]


def certificate_files(given: Mapping[str, str]) -> list[str]:
    """The files that the environment names as certificates, as far as they are there."""
    named = (os.path.abspath(given[name]) for name in CERTIFICATES if given.get(name))  # noqa: PTH100
    return sorted({path for path in named if os.path.exists(path)})  # noqa: PTH110
