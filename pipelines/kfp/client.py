"""A client of Kubeflow Pipelines' API around KFP's own: address, credentials, retries, and errors with exit codes.

Credentials are never given on the command line: a token or cookie comes from the environment or a file, or, in a
cluster, from the service account's token as KFP mounts it. The variables that KFP's own client reads count as well.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...components.storage import uri as uris
from ...components.storage.errors import MillError, TransientError, UserError, with_retry, wrong
from ..cluster import validation

HOST_VARIABLE, UI_HOST_VARIABLE = "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT"
TOKEN_VARIABLE, COOKIE_VARIABLE = "KF_PIPELINES_TOKEN", "KF_PIPELINES_COOKIE"
TOKEN_FILE_VARIABLE, MOUNTED_TOKEN_FILE = "KF_PIPELINES_SA_TOKEN_PATH", "/var/run/secrets/kubeflow/pipelines/token"
PORT_FORWARD = "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
"""The pod's namespace, as Kubernetes mounts it."""
TIMEOUT_S = (10, 60)
"""Seconds to connect and to wait for an answer; KFP's client has no timeout of its own."""
PAGE_SIZE = 100
RETRY_S = 20.0
"""Seconds for which an operation that the service doesn't answer is tried again."""
CONNECTION_HELP = (
    f"On this machine: `{PORT_FORWARD}`, then --host http://localhost:8080. Through Kubeflow's gateway: --host "
    f"https://…/pipeline and the login's cookie in {COOKIE_VARIABLE} (as `authservice_session=…` or "
    f"`oauth2_proxy_kubeflow=…`) or in a file, or a token in {TOKEN_VARIABLE}. In a pod of the cluster: nothing; the "
    f"mounted service account token is used. Without --host, {HOST_VARIABLE} or the cluster that kubectl speaks to."
)

RETRY_SERVICE = "kubeflow"
"""Name under which retries are counted where KFP's client finds the service's address."""
_DEFAULT_HOST = "http://localhost"
"""The address that KFP's client uses when it has found no cluster."""


class LoginError(UserError):
    """The service refuses the credentials, or asks for some."""


class NotFoundError(UserError):
    """The service has no such object."""


class AlreadyExistsError(UserError):
    """The service has an object of that name already."""


def add_connection_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the service's address and credentials."""
    group = parser.add_argument_group("the service", CONNECTION_HELP)
    group.add_argument(
        "--host", default="", metavar="URL", help=f"Kubeflow Pipelines' address (default: {HOST_VARIABLE})"
    )
    group.add_argument("--namespace", default="", metavar="NS", help="your profile, where Kubeflow has several users")
    group.add_argument("--token-file", default="", metavar="FILE", help=f"a file with a token, read anew for each "
                       f"request (default: {TOKEN_FILE_VARIABLE}, or where KFP mounts it)")  # fmt: skip
    group.add_argument("--cookie-file", default="", metavar="FILE", help="a file with the login's cookie, name=value")
    group.add_argument("--ca-file", default="", metavar="FILE", help="certificates to trust (default: SSL_CERT_FILE)")


@dataclass(frozen=True)
class Connection:
    """The service's address, the namespace, and where credentials are read from each time that they are used."""

    host: str = ""
    namespace: str = ""
    token_file: str = ""
    cookie_file: str = ""
    ca_file: str = ""

    @classmethod
    def from_flags(cls, flags: dict[str, Any], namespace: str = "") -> Connection:
        """Remove the flags of `add_connection_flags` from the parsed ones, and return their checked values.

        `namespace`: the default of `--namespace`.
        """
        values = {name: flags.pop(name) for name in ("host", "namespace", "token_file", "cookie_file", "ca_file")}
        values["host"] = (values["host"] or os.environ.get(HOST_VARIABLE, "")).rstrip("/")
        values["namespace"] = values["namespace"] or namespace
        values["ca_file"] = values["ca_file"] or os.environ.get("SSL_CERT_FILE", "")
        connection = cls(**values)
        connection.check()
        return connection

    def check(self) -> None:
        parts = urlsplit(self.host)
        if self.host and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise wrong("--host", "an address that begins with http:// or https://", uris.redact(self.host))
        if parts.username or parts.password:
            raise wrong(
                "--host",
                f"an address without a login; it goes into {TOKEN_VARIABLE} or {COOKIE_VARIABLE}",
                uris.redact(self.host),
            )
        if self.namespace:
            validation.check_namespace("--namespace", self.namespace)
        for flag, path in (("--token-file", self.token_file), ("--ca-file", self.ca_file)):
            if path and not Path(path).is_file():
                raise wrong(flag, "a file that can be read", path)
        self.read_cookie()

    def read_cookie(self) -> str:
        """Return the login's cookie, or an empty string; read each time, because it may have been renewed."""
        cookie, source = os.environ.get(COOKIE_VARIABLE, ""), COOKIE_VARIABLE
        if self.cookie_file:
            source = "--cookie-file"
            try:
                cookie = Path(self.cookie_file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                raise wrong(source, "a file that can be read", self.cookie_file) from None
        cookie = cookie.strip()
        if cookie and ("=" not in cookie or not cookie.isprintable()):
            raise UserError(f"{source}: expected one line, name=value, found something else")  # which may be a secret
        return cookie

    @property
    def login_file(self) -> str:
        """The file with the credentials, which another process may renew, as kubelets do; empty if there is none."""
        return (
            self.cookie_file or self.token_file or ("" if os.environ.get(COOKIE_VARIABLE) else self._mounted_token_file)
        )

    @property
    def _mounted_token_file(self) -> str:
        """The file of the service account's token, where it is what authenticates; otherwise empty."""
        mounted = os.environ.get(TOKEN_FILE_VARIABLE, "") or MOUNTED_TOKEN_FILE
        return mounted if not os.environ.get(TOKEN_VARIABLE, "").strip() and Path(mounted).is_file() else ""

    def build_credentials(self) -> dict[str, Any]:
        """Return the arguments of KFP's client for a token, or for a file from which each request reads it."""
        from kfp.client import ServiceAccountTokenVolumeCredentials

        if self.token_file:
            return {"credentials": ServiceAccountTokenVolumeCredentials(self.token_file)}
        if token := os.environ.get(TOKEN_VARIABLE, "").strip():
            return {"existing_token": token}
        if self.host and self._mounted_token_file:
            return {"credentials": ServiceAccountTokenVolumeCredentials(self._mounted_token_file)}
        return {}

    def build_headers(self) -> dict[str, str]:
        """Return the credentials as headers of a request, read each time. UserError for a file that can't be read."""
        token = os.environ.get(TOKEN_VARIABLE, "").strip() if not self.token_file else ""
        if path := self.token_file or ("" if token else self._mounted_token_file):
            try:
                token = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"login: expected a token that can be read, found {path}: {error}") from None
        values = {"Authorization": f"Bearer {token}" if token else "", "Cookie": self.read_cookie()}
        return {name: value for name, value in values.items() if value}


class KfpService:
    """The service of Kubeflow Pipelines. Its constructor checks that it answers: UserError or TransientError if not."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        if not connection.host and not _is_in_cluster() and not _has_kube_config():
            raise UserError(f"--host: expected Kubeflow Pipelines' address, found none. {CONNECTION_HELP}")
        self.client = _make_client(connection)
        self.host = self._api_client.configuration.host  # found by KFP's client if we didn't name it
        if not connection.host and self.host == _DEFAULT_HOST:
            raise UserError(
                "--host: expected Kubeflow Pipelines' address, or a cluster of kubectl's, found none. "
                f"{CONNECTION_HELP}"
            )
        health = self.call("looking for the service", self.client.healthzs.healthz_service_get_healthz)
        self.namespace = self._find_namespace() if health.multi_user else None

    @property
    def _api_client(self) -> Any:
        return _get_api_client(self.client)

    @property
    def _retry_key(self) -> str:
        """The name under which this service's retries are counted."""
        return self.connection.host or RETRY_SERVICE

    def _find_namespace(self) -> str:
        """Return the namespace of the user's profile, where Kubeflow has several users."""
        if namespace := self.connection.namespace or self.client.get_user_namespace():
            return str(namespace)
        with contextlib.suppress(OSError):
            if pod_namespace := Path(NAMESPACE_FILE).read_text().strip():
                return pod_namespace
        raise wrong("--namespace", "the namespace of your profile, for this Kubeflow has several users", "none")

    @property
    def scope(self) -> dict[str, str]:
        """The argument that names the user's profile in a request, where Kubeflow has several users."""
        return {"namespace": self.namespace} if self.namespace else {}

    def iterate_pages(self, operation: str, function: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
        """Yield the pages of a listing, of up to PAGE_SIZE objects each."""
        token = ""
        while True:
            page = self.call(operation, function, page_size=PAGE_SIZE, page_token=token, **arguments, **self.scope)
            yield page
            token = page.next_page_token or ""
            if not token:
                return

    def get_run_url(self, run: str) -> str:
        """Return the address of a run's page in the UI; where the UI's address isn't known, through PORT_FORWARD."""
        base = os.environ.get(UI_HOST_VARIABLE, "") or self.connection.host or "http://localhost:8080"
        return f"{base.rstrip('/')}/#/runs/details/{run}"

    def call(self, operation: str, function: Callable[..., Any], **arguments: Any) -> Any:
        """Call an idempotent function of the client, again if no answer comes, and return its answer."""
        return self.retry(operation, lambda: self.request(function, **arguments))

    def retry(self, operation: str, function: Callable[[], Any]) -> Any:
        """Return the result of `function`, which is called again after each TransientError."""
        return with_retry(function, operation, RETRY_S, service=self._retry_key)

    def create(self, operation: str, function: Callable[..., Any], find: Callable[[], Any], **arguments: Any) -> Any:
        """Create an object with `function`. It is not created twice if an answer is lost: `find` looks for it first."""
        is_repeated = False

        def attempt() -> Any:
            nonlocal is_repeated
            if is_repeated and (existing := find()) is not None:
                return existing
            is_repeated = True
            try:
                return self.request(function, **arguments)
            except AlreadyExistsError:
                if (existing := find()) is not None:  # another process was faster
                    return existing
                raise

        return self.retry(operation, attempt)

    def find_or_create(
        self, kind: str, find: Callable[[], Any], function: Callable[..., Any], **arguments: Any
    ) -> tuple[Any, bool]:
        """Return what `find` finds, or else what `function` creates, and whether it was created."""
        existing = self.retry(f"looking for {kind}", find)
        if existing is not None:
            return existing, False
        return self.create(f"making {kind}", function, find, **arguments), True

    def request(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """Send one request and return the answer; a MillError says why there is none."""
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError, LocationValueError

        api = self._api_client
        api.cookie = self.connection.read_cookie() or api.cookie
        try:
            with _suppress_output():
                answer = function(**arguments, _request_timeout=TIMEOUT_S)
        except ApiException as error:
            raise self._explain_refusal(error.status, error.body) from None
        except LocationValueError as error:
            raise wrong("--host", "the address of a server", f"{self.host} ({error})") from None
        except HTTPError as error:
            raise self.explain_unreachable(error, self.host) from None
        except OSError as error:  # the token's file is gone
            raise UserError(f"login: expected a token that can be read, found {error.strerror}") from None
        except ValueError as error:  # a model refuses what the answer says: another version's, or not KFP at all
            raise MillError(f"{self.host}: the answer isn't one of KFP's API v2beta1: {error}") from None
        self._require_json(api.last_response)
        return answer

    def _require_json(self, response: Any) -> None:
        """Raise for an answer that is no JSON: KFP's client returns an empty object for a login page."""
        try:
            json.loads(response.data)
        except ValueError:
            description = describe_body(str(response.data))
            raise LoginError(
                f"{self.host}: expected an answer of Kubeflow Pipelines' API, found {description}. {CONNECTION_HELP}"
            ) from None

    def _explain_refusal(self, status: int, body: Any) -> MillError:
        text = body if isinstance(body, str) else ""
        message = _get_error_message(text) or describe_body(text)
        if status in (401, 403):
            expected = "a valid login" if status == 401 else "a login that may do this"
            return LoginError(
                f"{self.host}: expected {expected}, found it refused ({status}: {message}). {CONNECTION_HELP}"
            )
        if status == 404 and _get_error_message(text):
            return NotFoundError(f"{self.host}: {message}")
        if status == 404:
            return UserError(
                f"--host: expected Kubeflow Pipelines' API, found nothing at {self.host}/apis (404). {CONNECTION_HELP}"
            )
        if status == 409 or "already exist" in message:
            return AlreadyExistsError(f"{self.host}: {message}")
        if status == 429 or status >= 500:
            return TransientError(f"{self.host} answers {status}: {message}")
        return UserError(f"{self.host}: expected a request that it takes, found it refused ({status}: {message})")

    def explain_unreachable(self, error: Exception, address: str) -> MillError:
        """Return the error for an `address` that gives no answer."""
        from urllib3.exceptions import SSLError

        reason = getattr(error, "reason", None) or error
        if isinstance(reason, SSLError):
            return UserError(f"--ca-file: expected the certificates that {address} is trusted by, found: {reason}")
        message = str(reason).rpartition(": ")[2] if getattr(error, "reason", None) else str(reason)
        local = urlsplit(address).hostname in ("localhost", "127.0.0.1")
        hint = f" (is `{PORT_FORWARD}` running?)" if local else ""
        return TransientError(f"{address} can't be reached: {message}{hint}")


def _make_client(connection: Connection) -> Any:
    """Return KFP's own client, which neither waits, prints nor tries again by itself, nor writes to the home folder."""
    import kfp
    from urllib3 import Retry

    class Client(kfp.Client):  # type: ignore[misc]
        def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
            """Answer the constructor, which would try for 25 s; KfpService sends this request itself."""
            from kfp_server_api import V2beta1GetHealthzResponse

            return V2beta1GetHealthzResponse(multi_user=False)

    with _suppress_output():
        client = Client(
            host=connection.host or None, cookies=connection.read_cookie() or None,
            ssl_ca_cert=connection.ca_file or None, **connection.build_credentials(),
        )  # fmt: skip
    pool = _get_api_client(client).rest_client.pool_manager
    pool.connection_pool_kw["retries"] = Retry(total=None, connect=0, read=0, status=0, other=0, redirect=3)
    return client


def _get_api_client(client: Any) -> Any:
    """Return the `kfp_server_api.ApiClient` that all APIs of KFP's client share."""
    return client.healthzs.healthz_service_get_healthz.__self__.api_client


@contextlib.contextmanager
def _suppress_output() -> Any:
    """Suppress KFP's warnings and the links that it prints to stdout, which is for our results."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _is_in_cluster() -> bool:
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def _has_kube_config() -> bool:
    paths = os.environ.get("KUBECONFIG", "") or str(Path.home() / ".kube" / "config")
    return any(Path(path).is_file() for path in paths.split(os.pathsep))


def _get_error_message(body: str) -> str:
    """Return the message of an error in the service's own form; empty for another body."""
    try:
        error = json.loads(body)
    except ValueError:
        return ""
    text = error.get("message") or error.get("error_message") or error.get("error") if isinstance(error, dict) else ""
    return " ".join(str(text or "").split())[:500]


def describe_body(body: str) -> str:
    """Describe the body of an answer that is not the API's, for a message."""
    head = body.lstrip()[:200].lower()
    if head.startswith("<"):
        return "a web page (to log in?)"
    return repr(head[:80]) if head else "nothing"


def build_stop_error(text: str, code: int = 130) -> MillError:
    """Return the error that ends a wait with an exit code of its own; 130 is a shell's code for Ctrl-C."""
    error = MillError(text)
    error.exit_code = code
    return error
