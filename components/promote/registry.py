"""Register the champion in a model registry: MLflow's, or Kubeflow's Model Registry, by their REST APIs.

The registered model has the name of the data; each champion is a version of it that points to the model in the
workspace. In MLflow the alias `champion` is on the current version, in Kubeflow's the registered model's property
`champion` names it. Existing entries stay, and missing ones are added, so that every promote step brings the registry
up to date, also after one that could not reach it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from ..dataset.workspace import Workspace
from ..storage.errors import UserError, wrong
from ..storage.json_client import Json, JsonClient, MlflowClient, find_tracking_server
from ..storage.uri import redact, scheme

MLFLOW, KUBEFLOW = "mlflow+", "kubeflow+"
FORMAT = f"{MLFLOW}http(s)://… or {KUBEFLOW}http(s)://…"
ALIAS = "champion"
_KUBEFLOW_API = "/api/model_registry/v1alpha3"
_RECORD_KEYS = {
    "verdict": "verdict", "metric": "metric", "challenger": "score", "images": "images", "created": "created",
    "run": "run",
}  # fmt: skip
"""Keys of a promotion's record that are registered, and the names of their properties."""


class ModelVersion(NamedTuple):
    """A champion as a version of the registered model `name`, with its promotion's number, the model's URI, and
    properties by name."""

    name: str
    promotion: int
    uri: str
    properties: Mapping[str, str]


def read_version(workspace: Workspace, name: str, promotion: int) -> ModelVersion:
    """Return the version to register from the log of promotions."""
    entry = workspace.promotion(name, promotion)
    properties = {
        "imagemill.promotion": str(promotion),
        "imagemill.fingerprint": entry.model.rpartition("/")[2],
    }
    for key, title in _RECORD_KEYS.items():
        if (value := getattr(entry, key)) not in (None, ""):
            properties[f"imagemill.{title}"] = str(value)
    return ModelVersion(name, promotion, workspace.absolute(entry.model), properties)


def resolve_registry(option: str) -> str:
    """Return the configured registry: the option, else MLFLOW_TRACKING_URI where it is an http(s) URL; or empty."""
    tracking = find_tracking_server()
    return option or (f"{MLFLOW}{tracking}" if tracking else "")


def check_registry(option: str) -> None:
    """Raise UserError if the option is not a registry's URL."""
    kind = next((kind for kind in (MLFLOW, KUBEFLOW) if option.startswith(kind)), None)
    url = urlsplit(option.removeprefix(kind)) if kind else None
    if option and (url is None or url.scheme not in ("http", "https") or not url.hostname):
        raise wrong("registry", FORMAT, option.rpartition("@")[2])


def register(registry: str, version: ModelVersion) -> bool:
    """Bring a registry up to date, and return whether it changed; MillError where that fails."""
    try:
        if registry.startswith(MLFLOW):
            return _MlflowRegistry(registry.removeprefix(MLFLOW)).register(version)
        return _KubeflowRegistry(registry.removeprefix(KUBEFLOW)).register(version)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{redact(registry)}: expected a model registry's answer, found another ({error!r})") from None


class _MlflowRegistry(MlflowClient):
    """MLflow's model registry."""

    def register(self, version: ModelVersion) -> bool:
        if not scheme(version.uri):
            raise wrong("registry", "a workspace in s3://, since MLflow takes no model of a folder", version.uri)
        current = self.call("GET", "/registered-models/alias", name=version.name, alias=ALIAS)
        if current and _has_promotion(current["model_version"], version):
            return False
        if self.call("GET", "/registered-models/get", name=version.name) is None:
            self.require("POST", "/registered-models/create", {"name": version.name})
        registered = self._find_version(version)
        if not registered:
            tags = [{"key": key, "value": value} for key, value in version.properties.items()]
            body = {"name": version.name, "source": version.uri, "tags": tags}
            registered = self.require("POST", "/model-versions/create", body)["model_version"]
        alias = {"name": version.name, "alias": ALIAS, "version": registered["version"]}
        self.require("POST", "/registered-models/alias", alias)
        return True

    def _find_version(self, version: ModelVersion) -> Json:
        """Return the registered version of this promotion, empty where there is none."""
        response = self.require("GET", "/model-versions/search", filter=f"name='{version.name}'", max_results="1000")
        versions: list[Json] = response.get("model_versions") or []
        return next((registered for registered in versions if _has_promotion(registered, version)), {})


class _KubeflowRegistry(JsonClient):
    """Client of Kubeflow's Model Registry (api/openapi/model-registry.yaml, v1alpha3)."""

    def __init__(self, url: str) -> None:
        token = os.environ.get("MODEL_REGISTRY_TOKEN", "")
        super().__init__(url, _KUBEFLOW_API, {"Authorization": f"Bearer {token}"} if token else {})

    def register(self, version: ModelVersion) -> bool:
        version_name = f"promotion-{version.promotion}"
        model = self.call("GET", "/registered_model", name=version.name)
        model = model or self.require("POST", "/registered_models", {"name": version.name})
        properties: Json = model.get("customProperties") or {}
        if properties.get(ALIAS, {}).get("string_value") == version_name:
            return False
        registered = self.call("GET", "/model_version", name=version_name, parentResourceId=model["id"])
        if registered is None:
            values = {key: _make_string_property(value) for key, value in version.properties.items()}
            body = {"name": version_name, "registeredModelId": model["id"], "customProperties": values}
            registered = self.require("POST", "/model_versions", body)
        artifacts = f"/model_versions/{registered['id']}/artifacts"
        name = f"{version.name}-{version_name}"  # unique among all artifacts of the registry
        if not self.require("GET", artifacts, name=name).get("items"):
            artifact = {"artifactType": "model-artifact", "name": name, "uri": version.uri}
            self.require("POST", artifacts, artifact | {"modelFormatName": "safetensors"})
        update = {"customProperties": properties | {ALIAS: _make_string_property(version_name)}}
        self.require("PATCH", f"/registered_models/{model['id']}", update)
        return True


def _has_promotion(registered: Json, version: ModelVersion) -> bool:
    """Return whether a version in MLflow is that of `version`'s promotion."""
    tags = {tag["key"]: tag["value"] for tag in registered.get("tags") or []}
    return tags.get("imagemill.promotion") == str(version.promotion)


def _make_string_property(value: str) -> Json:
    return {"metadataType": "MetadataStringValue", "string_value": value}
