"""Kubeflow Pipelines' service through its own client: how it is found, how one logs in, what its errors mean.

Logins are never words of a command line: a token or cookie comes from the environment or a file, or, in a cluster,
from the service account's token as KFP mounts it. What KFP's client reads from the environment holds here as well.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..components.store import uri as uris
from ..components.store.errors import MillError, TransientError, UserError, wrong
from ..components.store.retry import with_retry
from . import forms

HOST, UI_HOST = "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT"
TOKEN, COOKIE = "KF_PIPELINES_TOKEN", "KF_PIPELINES_COOKIE"
TOKEN_FILE, MOUNTED_TOKEN = "KF_PIPELINES_SA_TOKEN_PATH", "/var/run/secrets/kubeflow/pipelines/token"
PORT_FORWARD = "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
TIMEOUT_S = (10, 60)
"""Seconds to connect and to wait for an answer; KFP's client alone would wait for ever."""
RETRY_S = 20.0
"""So long an operation that the service doesn't answer is tried again."""
HELP = (
    f"On this machine: `{PORT_FORWARD}`, then --host http://localhost:8080. Through Kubeflow's gateway: --host "
    f"https://…/pipeline and the login's cookie in {COOKIE} (as `authservice_session=…` or `oauth2_proxy_kubeflow=…`) "
    f"or in a file, or a token in {TOKEN}. In a pod of the cluster: nothing; the mounted service account token is "
    f"used. Without --host, {HOST} or the cluster that kubectl speaks to."
)

KUBEFLOW = "kubeflow"
"""What the service is called where KFP's client finds its address."""
_NOWHERE = "http://localhost"
"""Where KFP's client goes when it has found no cluster."""


class LoginError(UserError):
    """The service wants another login."""


class NotFoundError(UserError):
    """The service doesn't have it."""


class TakenError(UserError):
    """The service has it already."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """How the service is reached, as flags."""
    group = parser.add_argument_group("the service", HELP)
    group.add_argument("--host", default="", metavar="URL", help=f"Kubeflow Pipelines' address (default: {HOST})")
    group.add_argument("--namespace", default="", metavar="NS", help="your profile, where Kubeflow has several users")
    group.add_argument("--token-file", default="", metavar="FILE", help=f"a file with a token, read anew for each "
                       f"request (default: {TOKEN_FILE}, or where KFP mounts it)")  # fmt: skip
    group.add_argument("--cookie-file", default="", metavar="FILE", help="a file with the login's cookie, name=value")
    group.add_argument("--ca-file", default="", metavar="FILE", help="certificates to trust (default: SSL_CERT_FILE)")


@dataclass(frozen=True)
class Connection:
    """Where the service is, and how to log in; secrets are read when they are used."""

    host: str = ""
    namespace: str = ""
    token_file: str = ""
    cookie_file: str = ""
    ca_file: str = ""

    @classmethod
    def from_flags(cls, found: dict[str, Any], namespace: str = "") -> Connection:
        """The flags of `add_flags`, taken out of the parsed ones; `namespace` where none was given."""
        values = {name: found.pop(name) for name in ("host", "namespace", "token_file", "cookie_file", "ca_file")}
        values["host"] = (values["host"] or os.environ.get(HOST, "")).rstrip("/")
        values["namespace"] = values["namespace"] or namespace
        values["ca_file"] = values["ca_file"] or os.environ.get("SSL_CERT_FILE", "")
        made = cls(**values)
        made.check()
        return made

    def check(self) -> None:
        parts = urlsplit(self.host)
        if self.host and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise wrong("--host", "an address that begins with http:// or https://", uris.redact(self.host))
        if parts.username or parts.password:
            raise wrong(
                "--host", f"an address without a login; it goes into {TOKEN} or {COOKIE}", uris.redact(self.host)
            )
        if self.namespace:
            forms.check_namespace("--namespace", self.namespace)
        for flag, path in (("--token-file", self.token_file), ("--ca-file", self.ca_file)):
            if path and not Path(path).is_file():
                raise wrong(flag, "a file that can be read", path)
        self.cookie()

    def cookie(self) -> str:
        """The login's cookie, or an empty string; read anew each time, for it may have been renewed."""
        text, where = os.environ.get(COOKIE, ""), COOKIE
        if self.cookie_file:
            where = "--cookie-file"
            try:
                text = Path(self.cookie_file).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                raise wrong(where, "a file that can be read", self.cookie_file) from None
        text = text.strip()
        if text and ("=" not in text or not text.isprintable()):
            raise UserError(f"{where}: expected one line, name=value, found something else")  # which may be a secret
        return text

    @property
    def renewable(self) -> str:
        """The file of the login, which somebody else may renew, as kubelets do; empty if there is none."""
        return self.cookie_file or self.token_file or ("" if os.environ.get(COOKIE) else self._mounted)

    @property
    def _mounted(self) -> str:
        """The service account's token, where it is the login; empty if there is none."""
        mounted = os.environ.get(TOKEN_FILE, "") or MOUNTED_TOKEN
        return mounted if not os.environ.get(TOKEN, "").strip() and Path(mounted).is_file() else ""

    def login(self) -> dict[str, Any]:
        """What KFP's client takes: a token, or what reads it from a file for each request."""
        from kfp.client import ServiceAccountTokenVolumeCredentials

        if self.token_file:
            return {"credentials": ServiceAccountTokenVolumeCredentials(self.token_file)}
        if token := os.environ.get(TOKEN, "").strip():
            return {"existing_token": token}
        if self.host and self._mounted:
            return {"credentials": ServiceAccountTokenVolumeCredentials(self._mounted)}
        return {}

    def headers(self) -> dict[str, str]:
        """Return the login as headers of a request; read anew each time. UserError for a file that can't be read."""
        token = os.environ.get(TOKEN, "").strip() if not self.token_file else ""
        if path := self.token_file or ("" if token else self._mounted):
            try:
                token = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"login: expected a token that can be read, found {path}: {error}") from None
        values = {"Authorization": f"Bearer {token}" if token else "", "Cookie": self.cookie()}
        return {name: value for name, value in values.items() if value}


class Service:
    """The service, answering: made only if it does. UserError or TransientError says why it doesn't."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        if not connection.host and not _in_cluster() and not _kube_config():
            raise UserError(f"--host: expected Kubeflow Pipelines' address, found none. {HELP}")
        self.client = _make_client(connection)
        self.host = self.client._existing_config.host  # found by KFP's client if we didn't name it
        if not connection.host and self.host == _NOWHERE:
            raise UserError(
                f"--host: expected Kubeflow Pipelines' address, or a cluster of kubectl's, found none. {HELP}"
            )
        health = self.call("looking for the service", self.client.healthzs.healthz_service_get_healthz)
        self.namespace = self._namespace() if health.multi_user else None

    @property
    def _key(self) -> str:
        """Whose retries these are: of this service, and of no other."""
        return self.connection.host or KUBEFLOW

    def _namespace(self) -> str:
        """Where Kubeflow has several users, everything lies in one's profile."""
        if given := self.connection.namespace or self.client.get_user_namespace():
            return str(given)
        with contextlib.suppress(OSError):
            if found := Path(self.client._NAMESPACE_PATH).read_text().strip():
                return found
        raise wrong("--namespace", "the namespace of your profile, for this Kubeflow has several users", "none")

    def link(self, run: str) -> str:
        """The page of a run in the UI; where its address isn't known, as PORT_FORWARD brings it here."""
        base = os.environ.get(UI_HOST, "") or self.connection.host or "http://localhost:8080"
        return f"{base.rstrip('/')}/#/runs/details/{run}"

    def call(self, what: str, function: Callable[..., Any], **arguments: Any) -> Any:
        """The answer of one of the client's functions that may be called twice; tried again if none comes."""
        return with_retry(lambda: self.once(function, **arguments), what, RETRY_S, service=self._key)

    def find(self, what: str, find: Callable[[], Any]) -> Any:
        """What `find` finds by `once`; tried again if no answer comes."""
        return with_retry(find, what, RETRY_S, service=self._key)

    def create(self, what: str, function: Callable[..., Any], find: Callable[[], Any], **arguments: Any) -> Any:
        """What `function` creates. An answer that is lost doesn't create it twice: `find` looks for it first."""
        tried = False

        def attempt() -> Any:
            nonlocal tried
            if tried and (found := find()) is not None:
                return found
            tried = True
            try:
                return self.once(function, **arguments)
            except TakenError:
                if (found := find()) is not None:  # somebody else was faster
                    return found
                raise

        return with_retry(attempt, what, RETRY_S, service=self._key)

    def ensure(
        self, what: str, find: Callable[[], Any], function: Callable[..., Any], **arguments: Any
    ) -> tuple[Any, bool]:
        """What `find` finds, or else what `function` creates; and whether it was created."""
        found = self.find(f"looking for {what}", find)
        if found is not None:
            return found, False
        return self.create(f"making {what}", function, find, **arguments), True

    def once(self, function: Callable[..., Any], **arguments: Any) -> Any:
        """One request; a MillError says in the user's words why there is no answer."""
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError, LocationValueError

        api = self.client._run_api.api_client  # one for all
        api.cookie = self.connection.cookie() or api.cookie
        try:
            with _quiet():
                answer = function(**arguments, _request_timeout=TIMEOUT_S)
        except ApiException as error:
            raise self._refused(error.status, error.body) from None
        except LocationValueError as error:
            raise wrong("--host", "the address of a server", f"{self.host} ({error})") from None
        except HTTPError as error:
            raise self.unreachable(error, self.host) from None
        except OSError as error:  # the token's file is gone
            raise UserError(f"login: expected a token that can be read, found {error.strerror}") from None
        except ValueError as error:  # a model refuses what the answer says: another version's, or not KFP at all
            raise MillError(f"{self.host}: the answer isn't one of KFP's API v2beta1: {error}") from None
        self._must_be_json(api.last_response)
        return answer

    def _must_be_json(self, response: Any) -> None:
        """KFP's client takes a login page for an answer in which everything is empty."""
        try:
            json.loads(response.data)
        except ValueError:
            found = kind_of(str(response.data))
            raise LoginError(
                f"{self.host}: expected an answer of Kubeflow Pipelines' API, found {found}. {HELP}"
            ) from None

    def _refused(self, status: int, body: Any) -> MillError:
        text = body if isinstance(body, str) else ""
        said = _message(text) or kind_of(text)
        if status in (401, 403):
            wanted = "a valid login" if status == 401 else "a login that may do this"
            return LoginError(f"{self.host}: expected {wanted}, found it refused ({status}: {said}). {HELP}")
        if status == 404 and _message(text):
            return NotFoundError(f"{self.host}: {said}")
        if status == 404:
            return UserError(
                f"--host: expected Kubeflow Pipelines' API, found nothing at {self.host}/apis (404). {HELP}"
            )
        if status == 409 or "already exist" in said:
            return TakenError(f"{self.host}: {said}")
        if status == 429 or status >= 500:
            return TransientError(f"{self.host} answers {status}: {said}")
        return UserError(f"{self.host}: expected a request that it takes, found it refused ({status}: {said})")

    def unreachable(self, error: Exception, address: str) -> MillError:
        """Return why `address` gave no answer."""
        from urllib3.exceptions import SSLError

        reason = getattr(error, "reason", None) or error
        if isinstance(reason, SSLError):
            return UserError(f"--ca-file: expected the certificates that {address} is trusted by, found: {reason}")
        said = str(reason).rpartition(": ")[2] if getattr(error, "reason", None) else str(reason)
        local = urlsplit(address).hostname in ("localhost", "127.0.0.1")
        hint = f" (is `{PORT_FORWARD}` running?)" if local else ""
        return TransientError(f"{address} can't be reached: {said}{hint}")


def _make_client(connection: Connection) -> Any:
    """KFP's own client. It may not wait, print, or write into the home folder; what is tried again is our matter."""
    import kfp
    from urllib3 import Retry

    class Client(kfp.Client):  # type: ignore[misc]
        def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:
            """Asked for by the constructor, with 25 s of tries: who it is we ask ourselves."""
            from kfp_server_api import V2beta1GetHealthzResponse

            return V2beta1GetHealthzResponse(multi_user=False)

    with _quiet():
        made = Client(
            host=connection.host or None, cookies=connection.cookie() or None, ssl_ca_cert=connection.ca_file or None,
            **connection.login(),
        )  # fmt: skip
    pool = made._run_api.api_client.rest_client.pool_manager
    pool.connection_pool_kw["retries"] = Retry(total=None, connect=0, read=0, status=0, other=0, redirect=3)
    return made


@contextlib.contextmanager
def _quiet() -> Any:
    """KFP's client prints links to stdout, which is for our results."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _in_cluster() -> bool:
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def _kube_config() -> bool:
    named = os.environ.get("KUBECONFIG", "") or str(Path.home() / ".kube" / "config")
    return any(Path(path).is_file() for path in named.split(os.pathsep))


def _message(body: str) -> str:
    """What the service says in its own form of an error."""
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    text = found.get("message") or found.get("error_message") or found.get("error") if isinstance(found, dict) else ""
    return " ".join(str(text or "").split())[:500]


def kind_of(body: str) -> str:
    """Return what an answer seems to be that is none of the API's, for a message."""
    head = body.lstrip()[:200].lower()
    if head.startswith("<"):
        return "a web page (to log in?)"
    return repr(head[:80]) if head else "nothing"


def stopped(text: str, code: int = 130) -> MillError:
    """The end of a wait that says something other than an error; 130 is a shell's code for Ctrl-C."""
    error = MillError(text)
    error.exit_code = code
    return error
