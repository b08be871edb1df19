"""The environment variables and the network of containers: run, object store, credentials, proxies, certificates.

Credentials are passed in the environment, never on a command line. Those of a profile, a role or an instance are
resolved here: a container has no `~/.aws`, and may not reach the instance's metadata.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from ...components.step.runner_exit import RUNNER_BOOT, RUNNER_PIPE, boot_id
from ...components.step.step import RUN_ENV
from ...components.storage.uri import is_s3

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


def select_variables(run: str, pipe: str, environment: Mapping[str, str], s3: bool) -> dict[str, str]:
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
    return inherited | own | {RUN_ENV: run, RUNNER_PIPE: pipe, RUNNER_BOOT: boot_id()}


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
