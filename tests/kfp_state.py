"""State and responses of the Kubeflow Pipelines test server (kfp_server): its API v2beta1.

It follows the service's own sources (backend/src/apiserver, August 2026): fields without a value are left
out, int64 are strings, a time that isn't is 1970, names are unique, lists have filters, orders and page tokens, a run
without a version takes the newest, parameters are checked against the package, and a deleted recurring run takes its
runs with it unless told otherwise. Runs play scripts; faults are injected before or after a request has its effect.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import unquote

import yaml
from kfp_storage import RunStorage

from imagemill.components.dataset.workspace import STEPS

API = "/apis/v2beta1"
NEVER = "1970-01-01T00:00:00Z"
KEYS = {
    "pipelines": {"pipeline_id", "name", "display_name", "created_at", "description", "namespace"},
    "versions": {"pipeline_version_id", "name", "display_name", "created_at", "description"},
    "experiments": {"experiment_id", "name", "display_name", "created_at", "namespace", "storage_state"},
    "runs": {"run_id", "name", "display_name", "created_at", "finished_at", "state", "experiment_id", "namespace",
             "storage_state"},
    "recurringRuns": {"recurring_run_id", "name", "display_name", "created_at", "updated_at", "description"},
}  # fmt: skip
"""By what a list can be filtered and ordered."""
Script = list[tuple[str, dict[str, str]]]
"""(state of the run, states of its tasks), one for each look at the run; the last one stays."""


class Refused(Exception):
    """An error as the service's gateway writes it: HTTP status, gRPC code, message."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def invalid(message: str) -> Refused:
    return Refused(400, 3, message)


def missing(message: str) -> Refused:
    return Refused(404, 5, message)


@dataclass
class Fault:
    """A fault of the next requests that match: `drop` (the connection), `drop after` (the request had its
    effect), `hang` (no answer for a second), a status such as `500`, `html` (a login page),
    `404 plain` (another server)."""

    kind: str
    times: int
    method: str
    path: str

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and self.method in ("", method) and re.search(self.path, path) is not None


@dataclass
class KfpService:
    """The service's state; `url` is where it listens, `prefix` what a proxy before it takes off the path."""

    multi_user: bool = False
    retries: bool = False
    """Whether Argo's controller has the defaults of KFP's installation: each node may be tried again."""
    storage: RunStorage = field(default_factory=RunStorage)
    token: str = ""
    cookie: str = ""
    url: str = ""
    prefix: str = ""
    pipelines: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    experiments: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    recurring: list[dict[str, Any]] = field(default_factory=list)
    scripts: list[Script] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    deletions: list[tuple[str, str]] = field(default_factory=list)
    on_request: Callable[[str, str], None] | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _clock: int = 1_790_000_000

    def fail(self, kind: str, times: int = 1, method: str = "", path: str = "") -> None:
        self.faults.append(Fault(kind, times, method, path))

    def asked(self, method: str, path: str) -> int:
        """Count the requests of a method and path."""
        return sum(m == method and re.search(path, p) is not None for m, p, _ in self.requests)

    def fire(self, name: str) -> dict[str, Any]:
        """Start a run of a recurring run, as the controller does when it is due."""
        with self._lock:
            recurring_run = next(r for r in self.recurring if r["display_name"] == name and r["mode"] == "ENABLE")
            body = {
                key: recurring_run[key] for key in ("experiment_id", "runtime_config", "pipeline_version_reference")
            }
            return self.create_run(
                body | {"display_name": f"{name}-1", "recurring_run_id": recurring_run["recurring_run_id"]}
            )

    # What the handler calls.

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> dict[str, Any]:
        path = path.removeprefix(self.prefix)
        with self._lock:
            for pattern, verb, function in self._routes():
                if verb == method and (match := re.fullmatch(API + pattern, path)):
                    return function(query, body, *map(unquote, match.groups()))
        raise Refused(404, 5, "Not Found")

    def _routes(self) -> list[tuple[str, str, Callable[..., dict[str, Any]]]]:
        segment = "([^/:]+)"
        return [
            ("/healthz", "GET", lambda q, b: {"multi_user": True} if self.multi_user else {}),
            ("/experiments", "GET", lambda q, b: self._list("experiments", self._own_items(self.experiments, q), q)),
            ("/experiments", "POST", self._create_experiment),
            ("/pipelines", "GET", lambda q, b: self._list("pipelines", self._own_items(self.pipelines, q), q)),
            ("/pipelines", "POST", self._create_pipeline),
            ("/pipelines/upload_version", "POST", self._upload_version),
            (f"/pipelines/{segment}/versions", "GET", self._list_versions),
            (f"/pipelines/{segment}/versions/{segment}", "GET", self._get_version),
            ("/runs", "GET", self._list_runs),
            ("/runs", "POST", lambda q, b: self.create_run(b)),
            (f"/runs/{segment}", "GET", self._get_run),
            ("/recurringruns", "GET", lambda q, b: self._list("recurringRuns", self._own_items(self.recurring, q), q)),
            ("/recurringruns", "POST", self._create_recurring),
            (f"/recurringruns/{segment}:(enable|disable)", "POST", self._change_recurring),
            (f"/recurringruns/{segment}", "DELETE", self._delete_recurring),
        ]

    def _now(self) -> str:
        from datetime import UTC, datetime

        self._clock += 1
        return f"{datetime.fromtimestamp(self._clock, UTC):%Y-%m-%dT%H:%M:%SZ}"

    def _own_items(self, items: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
        if not self.multi_user:
            return items
        if not query.get("namespace"):
            raise invalid("Failed to list: a namespace cannot be empty in multi-user mode")
        return [item for item in items if item.get("namespace") == query["namespace"]]

    def _list(self, kind: str, items: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
        size = min(int(query.get("page_size") or 0) or 20, 200)
        start, token = 0, query.get("page_token", "")
        criteria = [query.get("filter", ""), query.get("sort_by", "")]
        if token:
            try:
                start, then = json.loads(base64.b64decode(token, validate=True))
            except ValueError:
                raise invalid("Invalid page token") from None
            if any(criteria) and criteria != then:
                raise invalid("page token does not match the supplied sort by and/or filtering criteria")
            criteria = then
        matching = [item for item in items if _passes(item, kind, criteria[0])]
        key, _, order = (criteria[1] or "created_at").lower().partition(" ")
        if key not in KEYS[kind] or order not in ("", "asc", "desc"):
            raise invalid(f"Invalid sorting field: {key!r}")
        matching.sort(key=lambda item: str(item.get(key, "")), reverse=order == "desc")
        page = matching[start : start + size]
        name = "pipeline_versions" if kind == "versions" else kind
        answer: dict[str, Any] = {name: page, "total_size": len(matching)} if page else {}
        if start + size < len(matching):
            answer["next_page_token"] = base64.b64encode(json.dumps([start + size, criteria]).encode()).decode()
        return answer

    def _create_experiment(self, query: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        name, namespace = body.get("display_name", ""), body.get("namespace", "")
        if not name or (self.multi_user and not namespace):
            raise invalid("Experiment has an empty name, or namespace in multi-user mode")
        if any(e["display_name"] == name and e.get("namespace", "") == namespace for e in self.experiments):
            raise Refused(409, 6, f"Failed to create a new experiment. The name {name} already exists.")
        created = {"experiment_id": str(uuid.uuid4()), "display_name": name, "created_at": self._now(),
                "storage_state": "AVAILABLE"}  # fmt: skip
        self.experiments.append(created | ({"namespace": namespace} if namespace else {}))
        return self.experiments[-1]

    def _create_pipeline(self, query: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        name, namespace = body.get("name") or body.get("display_name", ""), body.get("namespace", "")
        if not name or len(name) > 128:
            raise invalid("pipeline's name cannot be empty")
        if any(p["name"] == name and p.get("namespace", "") == namespace for p in self.pipelines):
            raise Refused(409, 6, f"Failed to create a new pipeline. The name {name} already exists.")
        created = {"pipeline_id": str(uuid.uuid4()), "name": name, "display_name": body.get("display_name") or name,
                "description": body.get("description", ""), "created_at": self._now()}  # fmt: skip
        self.pipelines.append(created | ({"namespace": namespace} if self.multi_user else {}))
        return self.pipelines[-1]

    def _upload_version(self, query: dict[str, str], body: Any) -> dict[str, Any]:
        file_name, text = body["uploadfile"]
        pipeline, name = query.get("pipelineid", ""), query.get("name") or file_name
        if not file_name.endswith((".yaml", ".yml")) or not any(p["pipeline_id"] == pipeline for p in self.pipelines):
            raise invalid("Failed to create a pipeline version")
        documents = _documents(text)
        if not documents[0].get("pipelineInfo", {}).get("name") or len(name) > 127:
            raise invalid("Failed to create a pipeline version")
        if any(v["pipeline_id"] == pipeline and v["name"] == name for v in self.versions):
            raise Refused(409, 6, "Failed to create a pipeline version")
        spec = documents[0] if len(documents) == 1 else {"pipeline_spec": documents[0], "platform_spec": documents[1]}
        self.versions.append({
            "pipeline_id": pipeline, "pipeline_version_id": str(uuid.uuid4()), "name": name,
            "display_name": query.get("display_name") or name,
            "description": query.get("description", ""), "created_at": self._now(), "pipeline_spec": spec,
        })  # fmt: skip
        return self.versions[-1]

    def _list_versions(self, query: dict[str, str], body: Any, pipeline: str) -> dict[str, Any]:
        return self._list("versions", [v for v in self.versions if v["pipeline_id"] == pipeline], query)

    def _get_version(self, query: dict[str, str], body: Any, pipeline: str, version: str) -> dict[str, Any]:
        return self._version({"pipeline_id": pipeline, "pipeline_version_id": version})

    def _version(self, reference: dict[str, str]) -> dict[str, Any]:
        versions = [v for v in self.versions if v["pipeline_id"] == reference.get("pipeline_id")]
        version_id = reference.get("pipeline_version_id", "")
        selected = [v for v in versions if v["pipeline_version_id"] == version_id] if version_id else versions[-1:]
        if not selected:
            raise missing(f"PipelineVersion {version_id} not found.")
        return selected[0]

    def _list_runs(self, query: dict[str, str], body: Any) -> dict[str, Any]:
        experiment_id = query.get("experiment_id", "")
        if experiment_id:
            return self._list("runs", [r for r in self.runs if r["experiment_id"] == experiment_id], query)
        experiment_ids = {e["experiment_id"] for e in self._own_items(self.experiments, query)}
        return self._list("runs", [r for r in self.runs if r["experiment_id"] in experiment_ids], query)

    def create_run(self, body: dict[str, Any]) -> dict[str, Any]:
        self._must_have_experiment(body)
        spec = body.get("pipeline_spec")  # as the SDK sends a package along
        source: dict[str, Any] = {"pipeline_spec": spec}
        if spec is None:
            version = self._version(body.get("pipeline_version_reference", {}))
            spec = version["pipeline_spec"]
            reference = {key: version[key] for key in ("pipeline_id", "pipeline_version_id")}
            source = {"pipeline_version_reference": reference}
        _check_parameters(spec, body.get("runtime_config", {}).get("parameters", {}))
        run = {
            **body, "run_id": str(uuid.uuid4()), "created_at": self._now(), "scheduled_at": NEVER,
            "finished_at": NEVER, "state": "PENDING", "storage_state": "AVAILABLE",
            **source,
            "_script": self.scripts.pop(0) if self.scripts else [("SUCCEEDED", {})],
        }  # fmt: skip
        self.runs.append(run)
        return _response(run)

    def _must_have_experiment(self, body: dict[str, Any]) -> None:
        if not any(e["experiment_id"] == body.get("experiment_id") for e in self.experiments):
            raise invalid("Experiment id is empty or unknown")
        if not body.get("display_name"):
            raise invalid("The run name is empty. Please specify a valid name.")

    def _get_run(self, query: dict[str, str], body: Any, run: str) -> dict[str, Any]:
        entry = next((candidate for candidate in self.runs if candidate["run_id"] == run), None)
        if entry is None:
            raise missing(f"Run {run} not found.")
        script: Script = entry["_script"]
        state, tasks = script.pop(0) if len(script) > 1 else script[0]
        entry["state"] = state
        if state in ("SUCCEEDED", "FAILED", "CANCELED"):
            entry["finished_at"] = self._now()
        entry["run_details"] = {"task_details": list(_nodes(run, tasks, self._now(), self.retries))}
        return _response(entry)

    def _create_recurring(self, query: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        self._must_have_experiment(body)
        if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
            raise invalid("Max concurrency of a recurring run must be at least 1 and at most 10.")
        if not re.fullmatch(r"\S+( \S+){5}", body.get("trigger", {}).get("cron_schedule", {}).get("cron", "")):
            raise invalid("Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron).")
        version = self._version(body.get("pipeline_version_reference", {}))
        _check_parameters(version["pipeline_spec"], body.get("runtime_config", {}).get("parameters", {}))
        space = next(e.get("namespace", "") for e in self.experiments if e["experiment_id"] == body["experiment_id"])
        now = self._now()
        recurring_run = {
            **body, "recurring_run_id": str(uuid.uuid4()), "created_at": now, "updated_at": now,
            "max_concurrency": str(body["max_concurrency"]), "namespace": space,
            "status": "ENABLED" if body["mode"] == "ENABLE" else "DISABLED",
        }  # fmt: skip
        self.recurring.append(recurring_run)
        return recurring_run

    def _recurring(self, recurring_run_id: str) -> dict[str, Any]:
        recurring_run = next(
            (candidate for candidate in self.recurring if candidate["recurring_run_id"] == recurring_run_id), None
        )
        if recurring_run is None:
            raise missing(f"Job {recurring_run_id} not found.")
        return recurring_run

    def _change_recurring(self, query: dict[str, str], body: Any, recurring_run_id: str, verb: str) -> dict[str, Any]:
        recurring_run = self._recurring(recurring_run_id)
        recurring_run |= {"mode": verb.upper(), "status": f"{verb.upper()}D"}
        return {}

    def _delete_recurring(self, query: dict[str, str], body: Any, recurring_run_id: str) -> dict[str, Any]:
        self.recurring.remove(self._recurring(recurring_run_id))
        policy = query.get("propagation_policy", "")
        self.deletions.append((recurring_run_id, policy))
        if policy != "ORPHAN":  # Kubernetes' garbage collection
            self.runs = [run for run in self.runs if run.get("recurring_run_id") != recurring_run_id]
        return {}

    def refuse(self, headers: dict[str, str]) -> bool:
        """Return whether the login is missing or wrong."""
        token = self.token and headers.get("authorization") != f"Bearer {self.token}"
        return bool(token or (self.cookie and headers.get("cookie") != self.cookie))


@cache
def _documents(text: bytes) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def _response(run: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if not key.startswith("_")}


def _passes(item: dict[str, Any], kind: str, text: str) -> bool:
    if not text:
        return True
    try:
        predicates = json.loads(unquote(text))["predicates"]
    except (ValueError, KeyError):
        raise invalid("failed to parse valid filter") from None
    for predicate in predicates:
        if predicate["key"] not in KEYS[kind] or predicate["operation"] not in (1, "EQUALS"):
            raise invalid(f"no support for filtering on unrecognized field {predicate['key']!r}")
        value = predicate.get("stringValue", predicate.get("string_value"))
        key = "display_name" if predicate["key"] == "name" and "name" not in item else predicate["key"]
        if item.get(key) != value:
            return False
    return True


def _check_parameters(spec: dict[str, Any], parameters: dict[str, Any]) -> None:
    """Check parameters as the service does before it makes a workflow: names, types, missing values."""
    root = spec.get("pipeline_spec", spec)["root"]
    definitions = root.get("inputDefinitions", {}).get("parameters", {})
    kinds = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": (int, float), "BOOLEAN": bool}
    for name, value in parameters.items():
        if name not in definitions:
            raise invalid(f"parameter {name} is not found in the pipeline's inputs")
        kind = definitions[name]["parameterType"]
        if not isinstance(value, kinds.get(kind, object)):
            raise invalid(f"input parameter {name} requires type {kind}, but the parameter value is not of it")
        if (choices := definitions[name].get("literals")) and value not in choices:
            raise invalid(f"input parameter {name!r} value {value} does not match any of the allowed literal values")
    for name, definition in definitions.items():
        if name not in parameters and "defaultValue" not in definition and not definition.get("isOptional"):
            raise invalid(f"parameter {name} is required")


def _nodes(run: str, tasks: dict[str, str], now: str, retries: bool) -> Iterator[dict[str, Any]]:
    """Argo's nodes: the workflow, drivers and launchers among the tasks. Of what may be tried again there is a node
    for each try, and one for all."""
    for name, state in [
        ("imagemill-training-x7k2p", "RUNNING"),
        ("root", "RUNNING"),
        ("root-driver", "SUCCEEDED"),
        ("exit-handler-1", "RUNNING"),
        ("condition-2", "RUNNING"),
    ]:
        yield {"run_id": run, "task_id": str(uuid.uuid4()), "display_name": name, "state": state, "start_time": now}
    omitted = ("FAILED" in tasks.values()) and [step for step in STEPS if step not in tasks]
    for name in omitted or ():  # without a state
        yield {"run_id": run, "task_id": str(uuid.uuid4()), "display_name": name, "start_time": now, "end_time": now}
    for name, state in tasks.items():
        for node in (f"{name}-driver", name, "executor", *((f"{name}(0)", "executor(0)") if retries else ())):
            end_fields = {"end_time": now if state in ("SUCCEEDED", "FAILED") else NEVER}
            yield {"run_id": run, "task_id": str(uuid.uuid4()), "display_name": node, "state": state,
                   "create_time": now, "start_time": now, **end_fields}  # fmt: skip
