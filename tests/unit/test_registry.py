"""Registration of the champion in a model registry: once, updated after each promotion, independent of the gate."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from gated import Gate, wrong
from registries import Mlflow, ModelRegistry, Registry, serve

from imagemill.components.dataset.workspace import Workspace
from imagemill.components.promote.config import PromoteConfig
from imagemill.components.promote.registry import ModelVersion, check_registry, read_version, register, resolve_registry
from imagemill.components.storage.errors import UserError
from imagemill.pipelines.cli.main import main


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    for name in ("URI", "TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    return Gate(Workspace.open(str(tmp_path / "mill")))


IN_S3 = "s3://bucket/mill"


@pytest.fixture
def in_s3(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are registered as if the workspace were there."""

    def version(workspace: Workspace, name: str, promotion: int) -> ModelVersion:
        model_version = read_version(workspace, name, promotion)
        return model_version._replace(uri=model_version.uri.replace(gate.workspace.uri, IN_S3))

    for module in ("components.promote.promote", "pipelines.cli.champion"):
        monkeypatch.setattr(f"imagemill.{module}.read_version", version)


@pytest.mark.usefixtures("in_s3")
def test_mlflow_has_every_champion_and_an_alias_for_the_current_one(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    registry = Mlflow()
    with serve(registry) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
        first = gate.evaluate("one", wrong(60))
        gate.promote(first)
        assert f"promotion 1 is registered as the champion of weekly in mlflow+{url}" in capfd.readouterr().err
        gate.promote(gate.evaluate("worse", wrong(90)))
        gate.promote(gate.evaluate("two", wrong(20)))
        assert registry.aliases == {("weekly", "champion"): "2"}
        models = [gate.workspace.promotion("weekly", n).model for n in (1, 2)]
        assert [version["source"] for version in registry.models["weekly"]] == [f"{IN_S3}/{m}" for m in models]
        tags = {tag["key"]: tag["value"] for tag in registry.models["weekly"][1]["tags"]}
        assert tags["imagemill.promotion"] == "2" and tags["imagemill.verdict"] == "better"
        assert tags["imagemill.score"].startswith("0.95") and tags["imagemill.fingerprint"] == models[1].split("/")[1]
        assert registry.headers[0]["Authorization"] == "Bearer secret"
        monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pass")
        assert main(["champion", "rollback", "--workspace", gate.workspace.uri]) == 0
        assert registry.aliases["weekly", "champion"] == "3" and len(registry.models["weekly"]) == 3
        assert registry.headers[-1]["Authorization"] == f"Basic {base64.b64encode(b'me:pass').decode()}"


def test_kubeflow_has_every_champion(gate: Gate) -> None:
    registry = ModelRegistry()
    with serve(registry) as url:
        gate.promote(gate.evaluate("one", wrong(60)), registry=f"kubeflow+{url}/")
        gate.promote(gate.evaluate("two", wrong(20)), registry=f"kubeflow+{url}/")
        first_requests = list(registry.requests)
        gate.promote(gate.evaluate("two", wrong(20)), registry=f"kubeflow+{url}/", run="again")
    [model] = registry.models
    assert model["name"] == "weekly" and model["customProperties"]["champion"]["string_value"] == "promotion-2"
    assert [version["name"] for version in registry.versions] == ["promotion-1", "promotion-2"]
    assert registry.versions[1]["customProperties"]["imagemill.verdict"]["string_value"] == "better"
    [artifact] = registry.artifacts["2"]
    assert artifact["uri"] == gate.workspace.absolute(gate.record()["model"])
    assert (artifact["artifactType"], artifact["name"]) == ("model-artifact", "weekly-promotion-2")
    assert registry.requests[len(first_requests) :] == ["GET /registered_model"], "what is registered is only looked at"


@pytest.mark.usefixtures("in_s3")
@pytest.mark.parametrize("kind", [Mlflow, ModelRegistry])
def test_missed_registration_is_repeated(
    kind: type[Registry], gate: Gate, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imagemill.components.storage.json_client.RETRY_S", 0.0)
    registry, prefix = kind(), "mlflow" if kind is Mlflow else "kubeflow"
    with serve(registry) as url:
        registry.out_of_order = 1
        first = gate.evaluate("one", wrong(60))
        assert gate.promote(first, registry=f"{prefix}+{url}")["promoted"]
        assert "warning: the champion is not registered, which the next run tries again" in capfd.readouterr().err
        assert gate.promote(first, registry=f"{prefix}+{url}", run="next")["verdict"] == "already_champion"
        assert "promotion 1 is registered" in capfd.readouterr().err
        # Lost answers: everything is there but for the last request, and once more.
        version = read_version(gate.workspace, "weekly", 1)._replace(uri=f"{IN_S3}/model/01")
        if isinstance(registry, Mlflow):
            registry.aliases.clear()
        else:
            assert isinstance(registry, ModelRegistry)
            registry.models[0]["customProperties"] = {}
        assert register(f"{prefix}+{url}", version) and not register(f"{prefix}+{url}", version)
        versions = registry.models["weekly"] if isinstance(registry, Mlflow) else registry.versions  # type: ignore[attr-defined]
        assert len(versions) == 1, "nothing twice"


def test_mlflow_refuses_a_model_in_a_folder(gate: Gate, capfd: pytest.CaptureFixture[str]) -> None:
    registry = Mlflow()
    with serve(registry) as url:
        assert gate.promote(gate.evaluate("one", wrong(60)), registry=f"mlflow+{url}")["promoted"]
    assert "registry: expected a workspace in s3://, since MLflow takes no model of a folder" in capfd.readouterr().err
    assert not registry.requests


@pytest.mark.usefixtures("in_s3")
def test_unreachable_registry_warns(
    gate: Gate, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imagemill.components.storage.json_client.RETRY_S", 0.0)
    with serve(Mlflow()) as url:
        pass
    assert gate.promote(gate.evaluate("one", wrong(60)), registry=f"mlflow+{url}")["promoted"]
    assert f"not registered, which the next run tries again: {url}: no answer" in capfd.readouterr().err


def test_answer_of_another_server_is_a_warning(gate: Gate, capfd: pytest.CaptureFixture[str]) -> None:
    class Other(Registry):
        def answer(self, *_: Any) -> tuple[int, dict[str, Any]]:
            return 200, {"hello": "world"}

    with serve(Other()) as url:
        assert gate.promote(gate.evaluate("one", wrong(60)), registry=f"kubeflow+{url}")["promoted"]
    assert "expected a model registry's answer, found another (KeyError('id'))" in capfd.readouterr().err


def test_invalid_registry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("mlflow", "http://host", "mlflow+file:///x", "kubeflow+http://", "other+http://host"):
        with pytest.raises(UserError, match=r"^registry: expected mlflow\+http\(s\)://… or kubeflow\+"):
            PromoteConfig.from_values({"registry": uri})
    with pytest.raises(UserError) as refused:
        check_registry("me:secret@host")
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    assert resolve_registry("") == "" and resolve_registry("kubeflow+http://r") == "kubeflow+http://r"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow")
    assert resolve_registry("") == "mlflow+https://mlflow"
