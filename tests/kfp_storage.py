"""Routes of the Kubeflow Pipelines test server (kfp_server) beside its API: the pages' routes for artifacts, pods and
their logs, the API's for archived logs, and the metadata store in gRPC-web, as 2.17 has them.

Tests add what a step has left by `RunStorage.step`, as KFP's launcher does: an execution, artifacts, metadata, a log.
Answers of a real store are in `golden/metadata_store.json`.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from typing import Any

from imagemill.components.dataset.records import StepRecord
from imagemill.pipelines.kfp.artifacts import RECORDS, records_metadata
from imagemill.pipelines.kfp.ui import LOG_OUTPUT, OUTPUT_EVENT, STATES, frame, get_message_class, unframe

BUCKET = "minio://mlpipeline"
Answer = tuple[int, bytes, str]
"""Status, body, type."""


@dataclass
class StoredRun:
    """Stored metadata of one run; `id` is its context's in the metadata store."""

    id: int
    artifacts: list[Any] = field(default_factory=list)
    executions: list[Any] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)


@dataclass
class RunStorage:
    """The object store, the metadata store, the pods. `authorized`: with profiles, the pages want a namespace."""

    authorized: bool = False
    runs: dict[str, StoredRun] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    pod_logs: dict[str, str] = field(default_factory=dict)
    archived_logs: dict[str, str] = field(default_factory=dict)
    _number: int = 0

    def step(
        self, run: str, task: str, state: str = "COMPLETE", *, record: StepRecord | None = None,
        records: dict[str, StepRecord] | None = None, logs: tuple[str, ...] = (), report: bytes = b"",
    ) -> str:  # fmt: skip
        """A task's execution, with its record or those of all steps, a kept log for each try, or a report. Returns
        the name of its pod."""
        stored_run = self.runs.setdefault(run, StoredRun(self._next()))
        execution = get_message_class("Execution")(
            id=self._next(), last_known_state=STATES.index(state), create_time_since_epoch=1_790_000_000_000
        )
        pod = f"imagemill-training-x7k2p-system-container-impl-{execution.id}"
        _describe(execution, {"task_name": task, "pod_name": pod, "namespace": "kubeflow"})
        stored_run.executions.append(execution)
        if record or records is not None:
            properties = records_metadata({task: record} if record else records or {})
            self._artifact(stored_run, execution.id, "manifest", "system.Dataset", b"{}", properties)
        for number, log in enumerate(logs):
            self._artifact(stored_run, execution.id, LOG_OUTPUT, "system.Artifact", log.encode(), {}, f"-{number}")
        if report:
            self._artifact(stored_run, execution.id, "report", "system.HTML", report, {"display_name": "report"})
        return pod

    def _artifact(
        self,
        stored_run: StoredRun,
        execution: int,
        name: str,
        kind: str,
        data: bytes,
        properties: dict[str, str],
        ending: str = "",
    ) -> None:
        uri = f"{BUCKET}/v2/artifacts/imagemill-training/{stored_run.id}/{execution}/{name}{ending}"
        self.objects[uri] = data
        artifact = get_message_class("Artifact")(id=self._next(), uri=uri, type=kind)
        _describe(artifact, {"store_session_info": '{"Provider":"minio"}', **properties})
        stored_run.artifacts.append(artifact)
        step = get_message_class("PathStep")(key=name)
        path = get_message_class("Path")(steps=[step])
        event = get_message_class("Event")(
            artifact_id=artifact.id, execution_id=execution, path=path, type=OUTPUT_EVENT
        )
        stored_run.events.append(event)

    def _next(self) -> int:
        self._number += 1
        return self._number

    def records_of(self, run: str) -> list[str]:
        """The texts of the records that a run has left."""
        artifacts = self.runs[run].artifacts if run in self.runs else []
        return [e.value.string_value for a in artifacts for e in a.custom_properties if e.key == RECORDS]

    # What the handler calls.

    def answer(self, path: str, query: dict[str, str], body: bytes) -> Answer | None:
        """None for a path that is none of these."""
        if path.startswith("/ml_metadata.MetadataStoreService/"):  # not below /pipeline
            return 200, self._metadata(path.rpartition("/")[2], body), "application/grpc-web+proto"
        path = path.removeprefix("/pipeline")
        if archived := re.fullmatch(r"/apis/v2beta1/runs/[^/]+/nodes/([^/]+)/artifacts/main-logs:read", path):
            log = self.archived_logs.get(archived[1])
            if log is None:
                return 404, b'{"error_message":"artifact not found: <nil>"}', "text/plain"
            return 200, b'{"data":"%s"}' % base64.b64encode(log.encode()), "application/json"
        if path == "/artifacts/get":
            return self._object(query)
        if path in ("/k8s/pod", "/k8s/pod/logs"):
            return self._pod(path, query)
        return None

    def _object(self, query: dict[str, str]) -> Answer:
        if self.authorized and not query.get("namespace"):
            return 400, b"Namespace parameter is required when authentication is enabled", "text/html"
        name = f"{query['bucket']}/{query['key']}"
        data = self.objects.get(f"{query['source']}://{name}")
        return (404, f"No objects found at {name}".encode(), "text/html") if data is None else (200, data, "")

    def _pod(self, path: str, query: dict[str, str]) -> Answer:
        name, space = query.get("podname", ""), query.get("podnamespace", "")
        if not name or not space:
            return 422, b"podname and podnamespace are required", "text/html"
        if path == "/k8s/pod/logs":
            if name in self.pod_logs:
                return 200, self.pod_logs[name].encode(), ""
            return 500, b"Could not get main container logs: Error: Unable to retrieve workflow status", "text/html"
        if name in self.pods:
            return 200, json.dumps(self.pods[name]).encode(), "text/html"
        return 500, f"Could not get pod {name} in namespace {space}".encode(), "text/html"

    def _metadata(self, method: str, body: bytes) -> bytes:
        request = get_message_class(f"{method}Request").FromString(unframe(body))
        answer = get_message_class(f"{method}Response")()
        by_id = {stored_run.id: stored_run for stored_run in self.runs.values()}
        if method == "GetContextByTypeAndName":
            if request.type_name == "system.PipelineRun" and request.context_name in self.runs:
                answer.context.id = self.runs[request.context_name].id
        elif method == "GetArtifactsByContext":
            answer.artifacts.extend(by_id[request.context_id].artifacts)
        elif method == "GetExecutionsByContext":
            group = get_message_class("Execution")(id=0, last_known_state=2)  # a group of tasks has no pod
            _describe(group, {"task_name": "exit-handler-1"})
            answer.executions.extend([group, *by_id[request.context_id].executions])
        else:
            execution_ids = set(request.execution_ids)
            events = (event for stored_run in self.runs.values() for event in stored_run.events)
            answer.events.extend(event for event in events if event.execution_id in execution_ids)
        return frame(answer.SerializeToString()) + frame(b"grpc-status:0\r\ngrpc-message:\r\n", 0x80)


def _describe(message: Any, properties: dict[str, str]) -> None:
    for key, text in properties.items():
        message.custom_properties.append(
            get_message_class("Property")(key=key, value=get_message_class("Value")(string_value=text))
        )
