"""Read a run's executions and artifacts from Kubeflow Pipelines' metadata store (ML Metadata), as the KFP UI does.

The API v2beta1 of 2.17 names neither: its tasks have no pod, no artifact and no error (`toApiPipelineTaskDetail` in
backend/src/apiserver/server/api_converter.go). The store speaks gRPC, and gRPC-web at the UI's address. Its messages
are declared here, as far as they are read (ml_metadata/proto/metadata_store.proto and metadata_store_service.proto).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...components.storage.errors import MillError

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
    """A task of a run. `pod` and `namespace` are those of its last try, empty before it began; `created` is in
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
