"""Fetch artifacts, logs and metadata through the server of Kubeflow Pipelines' UI, by plain HTTP.

Its Python client has no functions for these routes. Read in the sources of 2.17 (frontend/server/app.ts and its
handlers, backend/src/apiserver/main.go), and with profiles in manifests/kustomize/base/metadata/options/istio:

- `GET <ui>/artifacts/get?source=…&bucket=…&key=…`: an artifact's file, read with the server's own keys of the
  store. With profiles `namespace` is wanted, and the right to see it.
- `GET <ui>/k8s/pod/logs?podname=…&podnamespace=…&runid=…&createdat=…`: the log of a pod that still exists.
- `GET <ui>/k8s/pod?podname=…&podnamespace=…`: the pod itself, as JSON.
- `POST <origin>/ml_metadata.MetadataStoreService/<method>`: the metadata store, in gRPC-web; below the origin, also
  where the UI is below /pipeline.
- `GET <API>/apis/v2beta1/runs/<run>/nodes/<pod>/artifacts/main-logs:read`: the log that Argo has archived, base64 in
  JSON; the UI's server forwards it. The API's own log route, /apis/v1alpha1/…/log, it does not.

`<ui>` is `--host` itself, or KF_PIPELINES_UI_ENDPOINT where the API is reached without its UI.
"""

from __future__ import annotations

import base64
import functools
import json
import os
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

from ...components.storage.errors import MillError, TransientError, with_retry, wrong
from . import client
from .client import TIMEOUT_S, UI_HOST_VARIABLE, KfpService, LoginError, NotFoundError
from .metadata import Artifact, Execution

_SOURCES = {"minio": "minio", "s3": "s3", "gs": "gcs", "http": "http", "https": "https"}
"""Scheme of an artifact's URI → the UI's `source` parameter (frontend/src/lib/WorkflowParser.ts)."""
_TRANSIENT_STATUSES = (429, 502, 503, 504)
_API_PREFIX, _UI_PREFIX = "ml-pipeline.", "ml-pipeline-ui."
_GRPC_WEB = {"Content-Type": "application/grpc-web+proto", "Accept": "application/grpc-web+proto", "X-Grpc-Web": "1"}


class KfpUi:
    """The server of a service's UI. Its methods raise a MillError that says why there is no answer."""

    def __init__(self, service: KfpService) -> None:
        self._service = service
        self.address = resolve_ui_address(service.host)

    def fetch_artifact(self, artifact: Artifact) -> bytes:
        """Return an artifact's file."""
        scheme, _, path = artifact.uri.partition("://")
        bucket, _, key = path.partition("/")
        query = {
            "source": _SOURCES.get(scheme, scheme), "bucket": bucket, "key": key,
            "providerInfo": artifact.properties.get("store_session_info", ""), "namespace": self._service.namespace,
        }  # fmt: skip
        return self._get(f"{self.address}/artifacts/get", query)

    def fetch_pod_log(self, run: str, execution: Execution) -> str:
        """Return the log of the pod of an execution's last try, with the launcher's own lines."""
        day = f"{datetime.fromtimestamp(execution.created / 1000, UTC):%Y-%m-%d}"
        query = self._build_pod_query(execution) | {"runid": run, "createdat": day}
        return self._get(f"{self.address}/k8s/pod/logs", query).decode(errors="replace")

    def fetch_archived_log(self, run: str, execution: Execution) -> str:
        """Return the log of a pod that no longer exists, as Argo has archived it."""
        path = f"/apis/v2beta1/runs/{quote(run)}/nodes/{quote(execution.pod)}/artifacts/main-logs:read"
        answer = self._parse_json(self._get(f"{self._service.host}{path}", {}))
        try:
            return base64.b64decode(answer["data"], validate=True).decode(errors="replace")
        except (KeyError, ValueError):
            raise MillError(f"{self._service.host}{path}: expected a log in base64, found something else") from None

    def fetch_pod(self, execution: Execution) -> dict[str, Any]:
        """Return the pod of an execution's last try as a Kubernetes object."""
        return self._parse_json(self._get(f"{self.address}/k8s/pod", self._build_pod_query(execution)))

    def call_metadata_store(self, method: str, request: bytes) -> bytes:
        """Send a request to the metadata store and return its answer; both are gRPC-web frames."""
        parts = urlsplit(self.address)
        url = f"{parts.scheme}://{parts.netloc}/ml_metadata.MetadataStoreService/{method}"
        return self._send("POST", url, headers=_GRPC_WEB, body=request)

    def _build_pod_query(self, execution: Execution) -> dict[str, str | None]:
        return {"podname": execution.pod, "podnamespace": execution.namespace}

    def _parse_json(self, data: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            description = client.describe_body(data.decode(errors="replace"))
            raise MillError(f"{self.address}: expected an answer in JSON, found {description}")
        return answer

    def _get(self, url: str, query: dict[str, str | None]) -> bytes:
        return self._send("GET", url, fields={key: value for key, value in query.items() if value})

    def _send(self, method: str, url: str, **options: Any) -> bytes:
        return with_retry(
            lambda: self._request(method, url, **options), "reading what the pages show", client.RETRY_S,
            service=self.address,
        )  # fmt: skip

    def _request(self, method: str, url: str, *, headers: dict[str, str] | None = None, **options: Any) -> bytes:
        from urllib3.exceptions import HTTPError, LocationValueError

        headers = {**(headers or {}), **self._service.connection.build_headers()}
        try:
            response = self._pool.request(method, url, headers=headers, redirect=False, **options)
        except LocationValueError as error:
            raise wrong("--host", "the address of a server", f"{self.address} ({error})") from None
        except HTTPError as error:
            raise self._service.explain_unreachable(error, self.address) from None
        data = bytes(response.data)
        if response.status == 200:
            return data
        raise _explain_status(response.status, url, data.decode(errors="replace"))

    @functools.cached_property
    def _pool(self) -> Any:
        import certifi
        import urllib3

        authorities = self._service.connection.ca_file or certifi.where()
        timeout = urllib3.Timeout(connect=TIMEOUT_S[0], read=TIMEOUT_S[1])
        return urllib3.PoolManager(cert_reqs="CERT_REQUIRED", ca_certs=authorities, timeout=timeout, retries=False)


def _explain_status(status: int, url: str, body: str) -> MillError:
    """Return the error for a status other than 200. The UI's server answers 500 for whatever does not exist."""
    address, message = url.partition("?")[0], " ".join(body.split())[:300]
    if status in (401, 403) or 300 <= status < 400:
        return LoginError(f"{address}: expected a login that may read it, found it refused ({status}: {message})")
    if status in _TRANSIENT_STATUSES:
        return TransientError(f"{address} answers {status}: {message}")
    is_page = status == 404 and not urlsplit(address).path.startswith("/apis/")
    hint = f" (if this is the API without its pages, say theirs in {UI_HOST_VARIABLE})" if is_page else ""
    return NotFoundError(f"{address} answers {status}: {message}{hint}")


def resolve_ui_address(host: str) -> str:
    """Return the UI's address: KF_PIPELINES_UI_ENDPOINT, or that of the API; inside a cluster that of the UI's Service
    beside the API's."""
    if address := os.environ.get(UI_HOST_VARIABLE, "").rstrip("/"):
        return address
    parts = urlsplit(host)
    name = parts.hostname or ""
    if name.startswith(_API_PREFIX):
        return f"{parts.scheme}://{_UI_PREFIX}{name.removeprefix(_API_PREFIX)}"
    return host.rstrip("/")
