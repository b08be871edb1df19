"""Fetch artifacts, logs and metadata through the address of Kubeflow Pipelines' pages, by plain HTTP.

Its Python client has no functions for these routes. Read in the sources of 2.17 (frontend/server/app.ts and its
handlers, backend/src/apiserver/main.go), and with profiles in manifests/kustomize/base/metadata/options/istio:

- `GET <pages>/artifacts/get?source=…&bucket=…&key=…`: an artifact's file, read with the server's own keys of the
  store. With profiles `namespace` is wanted, and the right to see it.
- `GET <pages>/k8s/pod/logs?podname=…&podnamespace=…&runid=…&createdat=…`: the log of a pod that is still there.
- `GET <pages>/k8s/pod?podname=…&podnamespace=…`: the pod itself, as JSON.
- `POST <origin>/ml_metadata.MetadataStoreService/<method>`: the metadata store, in gRPC-web; below the origin, also
  where the pages are below /pipeline.
- `GET <API>/apis/v2beta1/runs/<run>/nodes/<pod>/artifacts/main-logs:read`: the log that Argo has archived, base64 in
  JSON; the pages pass it on. The API's own log route, /apis/v1alpha1/…/log, they do not.

`<pages>` is `--host` itself, or KF_PIPELINES_UI_ENDPOINT where the API is reached without its pages.
"""

from __future__ import annotations

import base64
import functools
import json
import os
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

from ..components.store.errors import MillError, TransientError, wrong
from ..components.store.retry import with_retry
from . import kfp_client
from .kfp_client import TIMEOUT_S, UI_HOST, LoginError, NotFoundError, Service
from .kfp_metadata import Artifact, Execution

_SOURCES = {"minio": "minio", "s3": "s3", "gs": "gcs", "http": "http", "https": "https"}
"""The pages' word for the scheme of an artifact's URI (frontend/src/lib/WorkflowParser.ts)."""
_AWAY = (429, 502, 503, 504)
_API, _PAGES = "ml-pipeline.", "ml-pipeline-ui."
_GRPC_WEB = {"Content-Type": "application/grpc-web+proto", "Accept": "application/grpc-web+proto", "X-Grpc-Web": "1"}


class Pages:
    """The pages of a service. A MillError says why an answer can't be had."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.address = pages_address(service.host)

    def artifact(self, artifact: Artifact) -> bytes:
        """Return an artifact's file."""
        scheme, _, rest = artifact.uri.partition("://")
        bucket, _, key = rest.partition("/")
        query = {
            "source": _SOURCES.get(scheme, scheme), "bucket": bucket, "key": key,
            "providerInfo": artifact.properties.get("store_session_info", ""), "namespace": self._service.namespace,
        }  # fmt: skip
        return self._get(f"{self.address}/artifacts/get", query)

    def pod_log(self, run: str, execution: Execution) -> str:
        """Return what the pod of an execution's last try has printed, the launcher's own lines among it."""
        day = f"{datetime.fromtimestamp(execution.created / 1000, UTC):%Y-%m-%d}"
        query = self._pod(execution) | {"runid": run, "createdat": day}
        return self._get(f"{self.address}/k8s/pod/logs", query).decode(errors="replace")

    def archived_log(self, run: str, execution: Execution) -> str:
        """Return the same of a pod that is gone, as Argo has archived it."""
        path = f"/apis/v2beta1/runs/{quote(run)}/nodes/{quote(execution.pod)}/artifacts/main-logs:read"
        answer = self._json(self._get(f"{self._service.host}{path}", {}))
        try:
            return base64.b64decode(answer["data"], validate=True).decode(errors="replace")
        except (KeyError, ValueError):
            raise MillError(f"{self._service.host}{path}: expected a log in base64, found something else") from None

    def pod(self, execution: Execution) -> dict[str, Any]:
        """Return the pod of an execution's last try, as Kubernetes has it."""
        return self._json(self._get(f"{self.address}/k8s/pod", self._pod(execution)))

    def metadata(self, method: str, request: bytes) -> bytes:
        """Return the metadata store's answer; both are gRPC-web frames."""
        parts = urlsplit(self.address)
        url = f"{parts.scheme}://{parts.netloc}/ml_metadata.MetadataStoreService/{method}"
        return self._send("POST", url, headers=_GRPC_WEB, body=request)

    def _pod(self, execution: Execution) -> dict[str, str | None]:
        return {"podname": execution.pod, "podnamespace": execution.namespace}

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            found = kfp_client.kind_of(data.decode(errors="replace"))
            raise MillError(f"{self.address}: expected an answer in JSON, found {found}")
        return answer

    def _get(self, url: str, query: dict[str, str | None]) -> bytes:
        return self._send("GET", url, fields={key: value for key, value in query.items() if value})

    def _send(self, method: str, url: str, **options: Any) -> bytes:
        return with_retry(
            lambda: self._once(method, url, **options), "reading what the pages show", kfp_client.RETRY_S,
            service=self.address,
        )  # fmt: skip

    def _once(self, method: str, url: str, *, headers: dict[str, str] | None = None, **options: Any) -> bytes:
        from urllib3.exceptions import HTTPError, LocationValueError

        headers = {**(headers or {}), **self._service.connection.headers()}
        try:
            response = self._pool.request(method, url, headers=headers, redirect=False, **options)
        except LocationValueError as error:
            raise wrong("--host", "the address of a server", f"{self.address} ({error})") from None
        except HTTPError as error:
            raise self._service.unreachable(error, self.address) from None
        data = bytes(response.data)
        if response.status == 200:
            return data
        raise _refusal(response.status, url, data.decode(errors="replace"))

    @functools.cached_property
    def _pool(self) -> Any:
        import certifi
        import urllib3

        authorities = self._service.connection.ca_file or certifi.where()
        timeout = urllib3.Timeout(connect=TIMEOUT_S[0], read=TIMEOUT_S[1])
        return urllib3.PoolManager(cert_reqs="CERT_REQUIRED", ca_certs=authorities, timeout=timeout, retries=False)


def _refusal(status: int, url: str, body: str) -> MillError:
    """Return what a status other than 200 means. The pages answer 500 for whatever there is not."""
    where, said = url.partition("?")[0], " ".join(body.split())[:300]
    if status in (401, 403) or 300 <= status < 400:
        return LoginError(f"{where}: expected a login that may read it, found it refused ({status}: {said})")
    if status in _AWAY:
        return TransientError(f"{where} answers {status}: {said}")
    is_page = status == 404 and not urlsplit(where).path.startswith("/apis/")
    hint = f" (if this is the API without its pages, say theirs in {UI_HOST})" if is_page else ""
    return NotFoundError(f"{where} answers {status}: {said}{hint}")


def pages_address(host: str) -> str:
    """Return the pages' address: KF_PIPELINES_UI_ENDPOINT, or what serves the API; in a cluster the service beside
    the API's."""
    if named := os.environ.get(UI_HOST, "").rstrip("/"):
        return named
    parts = urlsplit(host)
    name = parts.hostname or ""
    if name.startswith(_API):
        return f"{parts.scheme}://{_PAGES}{name.removeprefix(_API)}"
    return host.rstrip("/")
