"""Read a run's executions and artifacts from Kubeflow Pipelines' metadata store (ML Metadata), as KFP's pages do.

The API v2beta1 of 2.17 names neither: its tasks have no pod, no artifact and no error (`toApiPipelineTaskDetail` in
backend/src/apiserver/server/api_converter.go). The store speaks gRPC, and gRPC-web at the pages' address. Its messages
are declared here, as far as they are read (ml_metadata/proto/metadata_store.proto and metadata_store_service.proto).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..components.store.errors import MillError

Call = Callable[[str, bytes], bytes]
"""Sends (method, framed request) to the store and returns the framed answer."""
RUN_CONTEXT = "system.PipelineRun"
HTML, LOGS = "system.HTML", "executor-logs"
"""The type of a report's artifact, and the output under which KFP's launcher keeps what a step printed."""
STATES = ("UNKNOWN", "NEW", "RUNNING", "COMPLETE", "FAILED", "CACHED", "CANCELED")
"""Of `Execution.State`, by number."""
OUTPUT = 4  # of Event.Type
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
    """`properties`: those of its metadata that are text."""

    id: int
    uri: str
    type: str
    properties: dict[str, str]


@dataclass(frozen=True)
class Execution:
    """A task of a run. `pod` and `namespace` are those of its last try, empty before it began; `created` is in
    milliseconds since 1970; `logs` are the kept outputs of its tries, in order."""

    id: int
    task: str
    state: str
    pod: str
    namespace: str
    created: int
    logs: tuple[Artifact, ...] = ()


def read_artifacts(call: Call, run: str) -> list[Artifact]:
    """Return the artifacts of a run in the order of their ids; none of a run that the store doesn't know."""
    context = _context(call, run)
    return [] if context is None else _artifacts(call, context)


def read_executions(call: Call, run: str) -> list[Execution]:
    """Return the executions of a run's tasks, in the order of their ids."""
    context = _context(call, run)
    if context is None:
        return []
    executions = _ask(call, "GetExecutionsByContext", context_id=context).executions
    artifacts = {artifact.id: artifact for artifact in _artifacts(call, context)}
    events = _ask(call, "GetEventsByExecutionIDs", execution_ids=[e.id for e in executions]).events
    logs: dict[int, list[Artifact]] = {}
    for event in events:
        named = [step.key for step in event.path.steps][:1] == [LOGS]
        if named and event.type == OUTPUT and event.artifact_id in artifacts:
            logs.setdefault(event.execution_id, []).append(artifacts[event.artifact_id])
    tasks = []
    for execution in sorted(executions, key=lambda one: int(one.id)):
        properties = _text(execution)
        name = properties.get("task_name", "")
        if "pod_name" in properties:  # the run and its groups of tasks are executions as well, without pods
            state = STATES[execution.last_known_state] if execution.last_known_state < len(STATES) else STATES[0]
            kept = tuple(sorted(logs.get(execution.id, []), key=lambda one: one.id))
            tasks.append(
                Execution(
                    execution.id, name, state, properties.get("pod_name", ""), properties.get("namespace", ""),
                    execution.create_time_since_epoch, kept,
                )
            )  # fmt: skip
    return tasks


def _context(call: Call, run: str) -> int | None:
    answer = _ask(call, "GetContextByTypeAndName", type_name=RUN_CONTEXT, context_name=run)
    return int(answer.context.id) if answer.HasField("context") else None


def _artifacts(call: Call, context: int) -> list[Artifact]:
    found = _ask(call, "GetArtifactsByContext", context_id=context).artifacts
    return sorted((Artifact(one.id, one.uri, one.type, _text(one)) for one in found), key=lambda one: one.id)


def _text(message: Any) -> dict[str, str]:
    pairs = ((entry.key, entry.value) for entry in message.custom_properties)
    return {key: str(value.string_value) for key, value in pairs if value.HasField("string_value")}


def _ask(call: Call, method: str, **fields: Any) -> Any:
    from google.protobuf.message import DecodeError

    request = message(f"{method}Request")(**fields)
    data = unframe(call(method, frame(request.SerializeToString())))
    try:
        return message(f"{method}Response").FromString(data)
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
        part = body[position + 5 : position + 5 + length]
        position += 5 + length
        if not flags & 0x80:
            data = part
            continue
        pairs = (line.partition(":") for line in part.decode(errors="replace").splitlines())
        trailers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        if trailers.get("grpc-status", "0") != "0":
            said = trailers.get("grpc-message", "")
            raise MillError(f"KFP's metadata store: expected an answer, found status {trailers['grpc-status']}: {said}")
    if data is None or position != len(body):
        raise MillError("KFP's metadata store: expected an answer in gRPC-web, found something else")
    return data


def message(name: str) -> Any:
    """Return the class of one of the store's messages."""
    return _classes()[name]


@functools.cache
def _classes() -> dict[str, Any]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    package = "imagemill.ml_metadata"
    file = descriptor_pb2.FileDescriptorProto(name="imagemill/metadata_store.proto", package=package, syntax="proto2")
    for name, fields in _MESSAGES.items():
        declared = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            label = declared.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(kind, str):
                label.type, label.type_name = 11, f".{package}.{kind}"  # TYPE_MESSAGE
            else:
                label.type = kind  # type: ignore[assignment]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
            for name in _MESSAGES}  # fmt: skip
