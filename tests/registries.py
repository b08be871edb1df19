"""Stand-ins of MLflow and of Kubeflow's Model Registry, with the few requests that imagemill makes.

They hold what they are told and refuse what the real ones refuse: names that are there already, things that are not.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Json = dict[str, Any]
Answer = tuple[int, Json]


class Registry:
    """A registry server. `out_of_order`: how many requests are answered with 503 first; `requests`: methods, paths."""

    prefix = ""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.out_of_order = 0

    def answer(self, method: str, path: str, query: dict[str, str], body: Json) -> Answer:
        raise NotImplementedError


class Mlflow(Registry):
    prefix = "/api/2.0/mlflow"

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[str, list[Json]] = {}
        self.aliases: dict[tuple[str, str], str] = {}

    def answer(self, method: str, path: str, query: dict[str, str], body: Json) -> Answer:
        name = query.get("name") or body.get("name") or query.get("filter", "").partition("'")[2].partition("'")[0]
        versions = self.models.get(name)
        match method, path:
            case "POST", "/registered-models/create":
                if versions is not None:
                    return 400, {"error_code": "RESOURCE_ALREADY_EXISTS"}
                self.models[name] = []
                return 200, {"registered_model": {"name": name}}
            case "GET", "/model-versions/search":
                return 200, {"model_versions": versions} if versions else {}
        if versions is None:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
        match method, path:
            case "GET", "/registered-models/get":
                return 200, {"registered_model": {"name": name}}
            case "POST", "/model-versions/create":
                if body["source"].startswith("/"):
                    return 400, {"error_code": "INVALID_PARAMETER_VALUE"}
                versions.append({**body, "version": str(len(versions) + 1)})
                return 200, {"model_version": versions[-1]}
            case "POST", "/registered-models/alias":
                self.aliases[name, body["alias"]] = body["version"]
                return 200, {}
            case "GET", "/registered-models/alias":
                number = self.aliases.get((name, query["alias"]))
                if number is None:
                    return 404, {"error_code": "INVALID_PARAMETER_VALUE"}
                return 200, {"model_version": versions[int(number) - 1]}
        return 405, {}


class ModelRegistry(Registry):
    prefix = "/api/model_registry/v1alpha3"

    def __init__(self) -> None:
        super().__init__()
        self.models: list[Json] = []
        self.versions: list[Json] = []
        self.artifacts: dict[str, list[Json]] = {}

    def answer(self, method: str, path: str, query: dict[str, str], body: Json) -> Answer:
        parts = path.strip("/").split("/")
        match method, parts:
            case "GET", ["registered_model"]:
                return _find_only([m for m in self.models if m["name"] == query["name"]])
            case "POST", ["registered_models"]:
                return self._create(self.models, body, [m["name"] for m in self.models])
            case "PATCH", ["registered_models", number]:
                self.models[int(number) - 1] |= body
                return 200, self.models[int(number) - 1]
            case "GET", ["model_version"]:
                key = (query["name"], query["parentResourceId"])
                return _find_only([v for v in self.versions if (v["name"], v["registeredModelId"]) == key])
            case "POST", ["model_versions"]:
                assert int(body["registeredModelId"]) <= len(self.models)
                names = [v["name"] for v in self.versions if v["registeredModelId"] == body["registeredModelId"]]
                return self._create(self.versions, body, names)
            case "GET", ["model_versions", number, "artifacts"]:
                return 200, {"items": [a for a in self.artifacts.get(number, []) if a["name"] == query["name"]]}
            case "POST", ["model_versions", number, "artifacts"]:
                existing_names = [a["name"] for artifacts in self.artifacts.values() for a in artifacts]
                return self._create(self.artifacts.setdefault(number, []), body, existing_names)
        return 405, {}

    def _create(self, items: list[Json], body: Json, names: list[str]) -> Answer:
        if body["name"] in names:
            return 409, {"message": "already exists"}
        items.append({**body, "id": str(len(items) + 1)})
        return 201, items[-1]


class Tracking(Registry):
    """MLflow's experiments and runs."""

    prefix = "/api/2.0/mlflow"

    def __init__(self) -> None:
        super().__init__()
        self.experiments: list[str] = []
        self.runs: list[Json] = []

    def answer(self, method: str, path: str, query: dict[str, str], body: Json) -> Answer:
        match method, path:
            case "GET", "/experiments/get-by-name":
                name = query["experiment_name"]
                if name not in self.experiments:
                    return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
                return 200, {"experiment": {"experiment_id": str(self.experiments.index(name)), "name": name}}
            case "POST", "/experiments/create":
                self.experiments.append(body["name"])
                return 200, {"experiment_id": str(len(self.experiments) - 1)}
            case "POST", "/runs/create":
                info = {"run_id": f"run{len(self.runs)}", "run_name": body["run_name"], "status": "RUNNING"}
                data: Json = {"params": [], "tags": body["tags"]}
                self.runs.append({"info": info | {"experiment_id": body["experiment_id"]}, "data": data, "points": []})
                return 200, {"run": self.runs[-1]}
            case "POST", "/runs/search":
                value = body.get("filter", "").partition("= '")[2].partition("'")[0]
                runs = [
                    run
                    for run in self.runs
                    if run["info"]["experiment_id"] in body["experiment_ids"]
                    and (not value or value in (tag["value"] for tag in run["data"]["tags"]))
                    and not (value and run["info"]["status"] == "FINISHED")
                ]
                return 200, {"runs": runs} if runs else {}
        run_id = query.get("run_id") or body.get("run_id")
        run = next((run for run in self.runs if run["info"]["run_id"] == run_id), None)
        if run is None:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}
        match method, path:
            case "POST", "/runs/update":
                run["info"]["status"] = body["status"]
            case "POST", "/runs/log-batch":
                run["data"]["params"] += body.get("params", [])
                run["data"]["tags"] += body.get("tags", [])
                run["points"] += body.get("metrics", [])
            case "GET", "/metrics/get-history":
                return 200, {"metrics": [point for point in run["points"] if point["key"] == query["metric_key"]]}
        return 200, {}


def _find_only(items: list[Json]) -> Answer:
    return (200, items[0]) if items else (404, {"message": "not found"})


@contextmanager
def serve(registry: Registry) -> Iterator[str]:
    """The server's URL."""

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            registry.requests.append(f"{self.command} {parts.path.removeprefix(registry.prefix)}")
            registry.headers.append(dict(self.headers))
            status, answer = 503, {}
            if registry.out_of_order:
                registry.out_of_order -= 1
            else:
                path = parts.path.removeprefix(registry.prefix)
                status, answer = registry.answer(self.command, path, dict(parse_qsl(parts.query)), body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = handle_any

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
