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

The metadata store (ML Metadata) names a run's executions and artifacts. The API v2beta1 of 2.17 names neither: its
tasks have no pod, no artifact and no error (`toApiPipelineTaskDetail` in
backend/src/apiserver/server/api_converter.go). The store's messages are declared here, as far as they are read
(ml_metadata/proto/metadata_store.proto and metadata_store_service.proto).
"""

from __future__ import annotations

import base64
import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

from ...components.storage.errors import MillError, TransientError, with_retry, wrong
from . import client
from .client import TIMEOUT_S, UI_HOST_VARIABLE, KfpService, LoginError, NotFoundError

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
        """Return the log of the pod of an execution's last attempt, with the launcher's own lines."""
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
        """Return the pod of an execution's last attempt as a Kubernetes object."""
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


MetadataCall = Callable[[str, bytes], bytes]
"""Sends (method, framed request) to the store and returns the framed answer."""
RUN_CONTEXT = "system.PipelineRun"
HTML_TYPE, LOG_OUTPUT = "system.HTML", "executor-logs"
"""The type of a report's artifact, and the name of the output in which KFP's launcher stores a step's log."""
STATES = ("UNKNOWN", "NEW", "RUNNING", "COMPLETE", "FAILED", "CACHED", "CANCELED")
"""The names of `Execution.State`, by number."""
OUTPUT_EVENT = 4  # of Event.Type
_INT, _STRING = 3, 9  # TYPE_INT64 and TYPE_STRING of google.protobuf.FieldDescriptorProto
_MESSAGES: dict[str, dict[str, tuple[int, int | str, bool]]] = {
    "Value": {"string_value": (3, _STRING, False)},
    "Property": {"key": (1, _STRING, False), "value": (2, "Value", False)},  # an entry of map<string, Value>
    "Context": {"id": (1, _INT, False)},
    "Artifact": {
        "id": (1, _INT, False), "uri": (3, _STRING, False), "type": (8, _STRING, False),
        "custom_properties": (5, "Property", True),
    },
    "Execution": {
        "id": (1, _INT, False), "last_known_state": (3, _INT, False), "custom_properties": (5, "Property", True),
        "create_time_since_epoch": (8, _INT, False),
    },
    "PathStep": {"key": (2, _STRING, False)},
    "Path": {"steps": (1, "PathStep", True)},
    "Event": {
        "artifact_id": (1, _INT, False), "execution_id": (2, _INT, False), "path": (3, "Path", False),
        "type": (4, _INT, False),
    },
    "GetContextByTypeAndNameRequest": {"type_name": (1, _STRING, False), "context_name": (2, _STRING, False)},
    "GetContextByTypeAndNameResponse": {"context": (1, "Context", False)},
    "GetArtifactsByContextRequest": {"context_id": (1, _INT, False)},
    "GetArtifactsByContextResponse": {"artifacts": (1, "Artifact", True)},
    "GetExecutionsByContextRequest": {"context_id": (1, _INT, False)},
    "GetExecutionsByContextResponse": {"executions": (1, "Execution", True)},
    "GetEventsByExecutionIDsRequest": {"execution_ids": (1, _INT, True)},
    "GetEventsByExecutionIDsResponse": {"events": (1, "Event", True)},
}  # fmt: skip
"""Fields by message: (number, type, whether it is repeated). An enum is read as the number that it is on the wire."""


@dataclass(frozen=True)
class Artifact:
    """An artifact of a run. `properties`: those of its metadata that are text."""

    id: int
    uri: str
    type: str
    properties: dict[str, str]


@dataclass(frozen=True)
class Execution:
    """A task of a run. `pod` and `namespace` are those of its last attempt, empty before it began; `created` is in
    milliseconds since 1970; `logs` are the stored logs of its tries, in order."""

    id: int
    task: str
    state: str
    pod: str
    namespace: str
    created: int
    logs: tuple[Artifact, ...] = ()


def read_artifacts(call: MetadataCall, run: str) -> list[Artifact]:
    """Return the artifacts of a run in the order of their ids; none of a run that the store doesn't know."""
    context = _find_run_context(call, run)
    return [] if context is None else _read_context_artifacts(call, context)


def read_executions(call: MetadataCall, run: str) -> list[Execution]:
    """Return the executions of a run's tasks, in the order of their ids."""
    context = _find_run_context(call, run)
    if context is None:
        return []
    executions = _call_store(call, "GetExecutionsByContext", context_id=context).executions
    artifacts = {artifact.id: artifact for artifact in _read_context_artifacts(call, context)}
    events = _call_store(
        call, "GetEventsByExecutionIDs", execution_ids=[execution.id for execution in executions]
    ).events
    logs: dict[int, list[Artifact]] = {}
    for event in events:
        is_log = [step.key for step in event.path.steps][:1] == [LOG_OUTPUT]
        if is_log and event.type == OUTPUT_EVENT and event.artifact_id in artifacts:
            logs.setdefault(event.execution_id, []).append(artifacts[event.artifact_id])
    tasks = []
    for execution in sorted(executions, key=lambda item: int(item.id)):
        properties = _get_text_properties(execution)
        name = properties.get("task_name", "")
        if "pod_name" in properties:  # the run and its groups of tasks are executions as well, without pods
            state = STATES[execution.last_known_state] if execution.last_known_state < len(STATES) else STATES[0]
            task_logs = tuple(sorted(logs.get(execution.id, []), key=lambda item: item.id))
            tasks.append(
                Execution(
                    execution.id, name, state, properties.get("pod_name", ""), properties.get("namespace", ""),
                    execution.create_time_since_epoch, task_logs,
                )
            )  # fmt: skip
    return tasks


def _find_run_context(call: MetadataCall, run: str) -> int | None:
    answer = _call_store(call, "GetContextByTypeAndName", type_name=RUN_CONTEXT, context_name=run)
    return int(answer.context.id) if answer.HasField("context") else None


def _read_context_artifacts(call: MetadataCall, context: int) -> list[Artifact]:
    messages = _call_store(call, "GetArtifactsByContext", context_id=context).artifacts
    return sorted(
        (Artifact(artifact.id, artifact.uri, artifact.type, _get_text_properties(artifact)) for artifact in messages),
        key=lambda artifact: artifact.id,
    )


def _get_text_properties(message: Any) -> dict[str, str]:
    pairs = ((entry.key, entry.value) for entry in message.custom_properties)
    return {key: str(value.string_value) for key, value in pairs if value.HasField("string_value")}


def _call_store(call: MetadataCall, method: str, **fields: Any) -> Any:
    from google.protobuf.message import DecodeError

    request = get_message_class(f"{method}Request")(**fields)
    data = unframe(call(method, frame(request.SerializeToString())))
    try:
        return get_message_class(f"{method}Response").FromString(data)
    except DecodeError as error:
        raise MillError(f"KFP's metadata store: expected a {method}Response, found something else ({error})") from None


def frame(data: bytes, flags: int = 0) -> bytes:
    """Return a gRPC-web frame: a byte of flags (0x80: the trailers), the length in four bytes, the data."""
    return bytes([flags]) + len(data).to_bytes(4, "big") + data


def unframe(body: bytes) -> bytes:
    """Return the message of a gRPC-web answer; MillError for the status of a failure in its trailers, or no answer."""
    data: bytes | None = None
    position = 0
    while position + 5 <= len(body):
        flags, length = body[position], int.from_bytes(body[position + 1 : position + 5], "big")
        payload = body[position + 5 : position + 5 + length]
        position += 5 + length
        if not flags & 0x80:
            data = payload
            continue
        pairs = (line.partition(":") for line in payload.decode(errors="replace").splitlines())
        trailers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if trailers.get("grpc-status", "0") != "0":
            message = trailers.get("grpc-message", "")
            raise MillError(
                f"KFP's metadata store: expected an answer, found status {trailers['grpc-status']}: {message}"
            )
    if data is None or position != len(body):
        raise MillError("KFP's metadata store: expected an answer in gRPC-web, found something else")
    return data


def get_message_class(name: str) -> Any:
    """Return the class of the store's message `name`."""
    return _build_message_classes()[name]


@functools.cache
def _build_message_classes() -> dict[str, Any]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    package = "imagemill.ml_metadata"
    file = descriptor_pb2.FileDescriptorProto(name="imagemill/metadata_store.proto", package=package, syntax="proto2")
    for name, fields in _MESSAGES.items():
        message_type = file.message_type.add(name=name)
        for field, (number, type_, repeated) in fields.items():
            descriptor = message_type.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(type_, str):
                descriptor.type, descriptor.type_name = 11, f".{package}.{type_}"  # TYPE_MESSAGE
            else:
                descriptor.type = type_  # type: ignore[assignment]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
            for name in _MESSAGES}  # fmt: skip
