"""Register the reigning champion in a model registry: MLflow's, or Kubeflow's Model Registry, by their REST APIs.

The registered model has the name of the data; each champion is a version of it that points to the model in the
workspace. In MLflow the alias `champion` is on the version that reigns, in Kubeflow's the registered model's property
`champion` names it. What is registered already stays, and what is missing is added, so that every promote step brings
the registry up to date, also after one that could not reach it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from ..store.errors import MillError, TransientError, UserError, wrong
from ..store.retry import with_retry
from ..store.uri import redact, scheme
from ..store.workspace import Workspace

MLFLOW, KUBEFLOW = "mlflow+", "kubeflow+"
FORMAT = f"{MLFLOW}http(s)://… or {KUBEFLOW}http(s)://…"
ALIAS = "champion"
_KUBEFLOW_API = "/api/model_registry/v1alpha3"
_ANSWER_S = 30.0
_PATIENCE_S = 20.0
"""How long a registry may be out of order: what it lacks then, the next promote step adds."""
_NAMES = {"challenger": "score"}
Json = dict[str, Any]


class Version(NamedTuple):
    """A champion as a registry knows it: the `name` of the data, the number of the promotion, the model's URI, and
    `facts`, texts by name."""

    name: str
    promotion: int
    uri: str
    facts: Mapping[str, str]


def version_of(workspace: Workspace, name: str, promotion: int) -> Version:
    """Return what is to be registered of a promotion."""
    record = workspace.promotion(name, promotion)
    facts = {"imagemill.fingerprint": str(record["model"]).rpartition("/")[2]}
    for key in ("verdict", "metric", "challenger", "images", "created", "run"):
        if record.get(key) not in (None, ""):
            facts[f"imagemill.{_NAMES.get(key, key)}"] = str(record[key])
    return Version(name, promotion, workspace.absolute(str(record["model"])), facts)


def registry_of(option: str) -> str:
    """Return the registry that is configured: the option, else MLflow's MLFLOW_TRACKING_URI where it is an address."""
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    return option or (f"{MLFLOW}{tracking}" if tracking.startswith(("http://", "https://")) else "")


def check_registry(option: str) -> None:
    """Raise UserError for a registry that can be none."""
    kind = next((kind for kind in (MLFLOW, KUBEFLOW) if option.startswith(kind)), None)
    place = urlsplit(option.removeprefix(kind)) if kind else None
    if option and (place is None or place.scheme not in ("http", "https") or not place.hostname):
        raise wrong("registry", FORMAT, option.rpartition("@")[2])


def register(registry: str, version: Version) -> bool:
    """Bring a registry up to date; whether there was anything to do. MillError says what went wrong."""
    try:
        if registry.startswith(MLFLOW):
            return _Mlflow(registry.removeprefix(MLFLOW)).register(version)
        return _Kubeflow(registry.removeprefix(KUBEFLOW)).register(version)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{redact(registry)}: expected a model registry's answer, found another ({error!r})") from None


class _Api:
    """JSON requests to one server, tried again while it is out of order."""

    def __init__(self, url: str, prefix: str, headers: Mapping[str, str]) -> None:
        import urllib3

        self._url, self._prefix = url.rstrip("/"), prefix
        self._pool = urllib3.PoolManager(timeout=_ANSWER_S, retries=False, headers=dict(headers))

    def call(self, method: str, path: str, body: Json | None = None, **query: str) -> Json | None:
        """Return the answer, None for 404."""
        url = f"{self._url}{self._prefix}{path}{f'?{urlencode(query)}' if query else ''}"

        def once() -> Json | None:
            from urllib3.exceptions import HTTPError

            try:
                answer = self._pool.request(method, url, json=body)
            except HTTPError as error:
                raise TransientError(f"{redact(self._url)}: no answer ({type(error).__name__})") from None
            if answer.status == 404:
                return None
            if answer.status >= 500 or answer.status == 429:
                raise TransientError(f"{method} {redact(url)}: status {answer.status}")
            if answer.status >= 400:
                said = answer.data.decode("utf-8", "replace")[:300]
                raise UserError(f"{method} {redact(url)}: status {answer.status}: {' '.join(said.split())}")
            try:
                found = json.loads(answer.data or b"{}")
            except ValueError:
                raise UserError(f"{method} {redact(url)}: expected JSON, found something else") from None
            return found if isinstance(found, dict) else {}

        return with_retry(once, f"{method} {redact(url)}", _PATIENCE_S, service="registry")

    def need(self, method: str, path: str, body: Json | None = None, **query: str) -> Json:
        """Return the answer of a path that must be there."""
        found = self.call(method, path, body, **query)
        if found is None:
            raise MillError(f"{method} {redact(self._url)}{self._prefix}{path}: status 404")
        return found


class _Mlflow(_Api):
    """MLflow's model registry (docs: REST API 2.0)."""

    def __init__(self, url: str) -> None:
        token, user = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("TOKEN", "USERNAME"))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if user:
            password = os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
            headers = {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
        super().__init__(url, "/api/2.0/mlflow", headers)

    def register(self, version: Version) -> bool:
        if not scheme(version.uri):
            raise wrong("registry", "a workspace in s3://, since MLflow takes no model of a folder", version.uri)
        reigning = self.call("GET", "/registered-models/alias", name=version.name, alias=ALIAS)
        if reigning and _tags(reigning["model_version"]).get("imagemill.promotion") == str(version.promotion):
            return False
        if self.call("GET", "/registered-models/get", name=version.name) is None:
            self.need("POST", "/registered-models/create", {"name": version.name})
        found = self._version_of(version)
        if not found:
            tags = [{"key": key, "value": value} for key, value in _all_facts(version).items()]
            body = {"name": version.name, "source": version.uri, "tags": tags}
            found = self.need("POST", "/model-versions/create", body)["model_version"]
        alias = {"name": version.name, "alias": ALIAS, "version": found["version"]}
        self.need("POST", "/registered-models/alias", alias)
        return True

    def _version_of(self, version: Version) -> Json:
        """The version of this promotion, empty where there is none."""
        found = self.need("GET", "/model-versions/search", filter=f"name='{version.name}'", max_results="1000")
        versions: list[Json] = found.get("model_versions") or []
        promotion = str(version.promotion)
        return next((one for one in versions if _tags(one).get("imagemill.promotion") == promotion), {})


class _Kubeflow(_Api):
    """Kubeflow's Model Registry (api/openapi/model-registry.yaml, v1alpha3)."""

    def __init__(self, url: str) -> None:
        token = os.environ.get("MODEL_REGISTRY_TOKEN", "")
        super().__init__(url, _KUBEFLOW_API, {"Authorization": f"Bearer {token}"} if token else {})

    def register(self, version: Version) -> bool:
        named = f"promotion-{version.promotion}"
        model = self.call("GET", "/registered_model", name=version.name)
        model = model or self.need("POST", "/registered_models", {"name": version.name})
        properties: Json = model.get("customProperties") or {}
        if properties.get(ALIAS, {}).get("string_value") == named:
            return False
        found = self.call("GET", "/model_version", name=named, parentResourceId=model["id"])
        if found is None:
            facts = {key: _text(value) for key, value in _all_facts(version).items()}
            body = {"name": named, "registeredModelId": model["id"], "customProperties": facts}
            found = self.need("POST", "/model_versions", body)
        artifacts = f"/model_versions/{found['id']}/artifacts"
        name = f"{version.name}-{named}"  # unique among all artifacts of the registry
        if not self.need("GET", artifacts, name=name).get("items"):
            artifact = {"artifactType": "model-artifact", "name": name, "uri": version.uri}
            self.need("POST", artifacts, artifact | {"modelFormatName": "safetensors"})
        update = {"customProperties": properties | {ALIAS: _text(named)}}
        self.need("PATCH", f"/registered_models/{model['id']}", update)
        return True


def _all_facts(version: Version) -> dict[str, str]:
    return {"imagemill.promotion": str(version.promotion), **version.facts}


def _tags(version: Json) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in version.get("tags") or []}


def _text(value: str) -> Json:
    return {"metadataType": "MetadataStringValue", "string_value": value}
