"""Compiled packages for Kubeflow Pipelines and Argo Workflows are what their servers take."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from commands import STEPS, refuse, succeed
from jsonschema import Draft202012Validator

CLUSTER = Path(__file__).parents[2] / "k8s" / "base" / "cluster.yaml"
"""The cluster file that the repository gives as an example."""
Document = dict[str, Any]


def compile_package(target: str, folder: Path, *flags: str) -> list[Document]:
    path = folder / f"{target}.yaml"
    succeed("compile", "--target", target, "--cluster", str(CLUSTER), "-o", str(path), *flags)
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@pytest.fixture(scope="module")
def kfp_package(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return compile_package("kfp", tmp_path_factory.mktemp("kfp"))


@pytest.fixture(scope="module")
def argo_package(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return compile_package("argo", tmp_path_factory.mktemp("argo"))


def test_kfp_package_is_read_by_kfps_own_schema(kfp_package: list[Document]) -> None:
    """Strictly: a field that the pipeline spec doesn't know is an error."""
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2
    from kfp.pipeline_spec import pipeline_spec_pb2

    spec, platform = kfp_package
    message = json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    assert message.pipeline_info.name
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        json_format.ParseDict(executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


def test_kfp_package_is_loaded_by_kfps_own_loader(kfp_package: list[Document], tmp_path: Path) -> None:
    from kfp import components

    path = tmp_path / "package.yaml"
    path.write_text(yaml.safe_dump_all(kfp_package))
    assert components.load_component_from_file(str(path)).name


def test_kfp_package_has_every_step_with_image_and_resources(kfp_package: list[Document]) -> None:
    executors = kfp_package[0]["deploymentSpec"]["executors"]
    images = yaml.safe_load(CLUSTER.read_text())["images"]
    for step in STEPS:
        container = executors[f"exec-{step}"]["container"]
        assert container["image"] in images.values()
        assert container["resources"]["resourceMemoryLimit"] and container["resources"]["resourceCpuRequest"], step


def test_kfp_form_is_made_of_texts(kfp_package: list[Document]) -> None:
    """KFP's page starts no run while a number is blank, so that every parameter is a text with a default."""
    parameters = kfp_package[0]["root"]["inputDefinitions"]["parameters"]
    assert {"dataset", "source", "name", "workspace", "epochs", "config"} <= parameters.keys() and len(parameters) <= 14
    for name, parameter in parameters.items():
        assert parameter["parameterType"] == "STRING" and isinstance(parameter.get("defaultValue", ""), str), name


def test_flags_become_the_packages_defaults(tmp_path: Path) -> None:
    spec, _ = compile_package("kfp", tmp_path, "--dataset", "pets", "--epochs", "20")
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert (parameters["dataset"]["defaultValue"], parameters["epochs"]["defaultValue"]) == ("pets", "20")


# Argo: custom resources by the models of its client, pods by Kubernetes' own schema.


def argo_templates(documents: list[Document]) -> Iterator[Document]:
    for document in documents:
        spec = document["spec"].get("workflowSpec", document["spec"])
        yield from spec.get("templates", ())


def drop_nulls(value: Any) -> Any:
    """Leave out what is None or empty, which says the same as what isn't there."""
    if isinstance(value, dict):
        return {key: kept for key, entry in value.items() if (kept := drop_nulls(entry)) not in (None, {}, [])}
    if isinstance(value, list):
        return [drop_nulls(entry) for entry in value]
    return value


def list_unknown_fields(written: Any, read: Any, place: str = "") -> Iterator[str]:
    """Name the fields of a document that its model did not take."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            if key not in read:
                yield f"{place}.{key}"
            else:
                yield from list_unknown_fields(value, read[key], f"{place}.{key}")
    elif isinstance(written, list) and isinstance(read, list):
        for number, (entry, read_entry) in enumerate(zip(written, read, strict=True)):
            yield from list_unknown_fields(entry, read_entry, f"{place}[{number}]")


def test_argo_package_suits_argos_models(argo_package: list[Document]) -> None:
    from hera.workflows import models

    kinds = {document["kind"] for document in argo_package}
    assert "WorkflowTemplate" in kinds
    for document in argo_package:
        if not document["apiVersion"].startswith("argoproj.io/"):
            continue
        model = getattr(models, document["kind"]).model_validate(document)
        read = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
        unknown = list(list_unknown_fields(drop_nulls(document), read))
        assert not unknown, unknown


@functools.cache
def core_definitions() -> Document:
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / "v1.34.0-local-strict"
    definitions: Document = json.loads((folder / "_definitions.json").read_text())
    return definitions


def check_core(kind: str, value: Document) -> None:
    """Check a part of a pod by Kubernetes' schema, which refuses unknown fields."""
    schema = {"$ref": f"#/$defs/io.k8s.api.core.v1.{kind}"} | core_definitions()
    errors = [error.message for error in Draft202012Validator(schema).iter_errors(value)]
    assert not errors, errors


def test_argos_containers_suit_kubernetes(argo_package: list[Document]) -> None:
    containers = 0
    for template in argo_templates(argo_package):
        for key, kind in (("container", "Container"), ("script", "Container")):
            if key in template:
                body = {name: value for name, value in template[key].items() if name != "source"}
                check_core(kind, {"name": "main"} | body)
                containers += 1
        for volume in template.get("volumes", ()):
            check_core("Volume", volume)
        for toleration in template.get("tolerations", ()):
            check_core("Toleration", toleration)
    assert containers >= len(STEPS)


def test_argos_pods_have_no_rights(argo_package: list[Document]) -> None:
    """Pod Security `restricted`: not root, no new privileges, no capabilities."""
    for template in argo_templates(argo_package):
        body = template.get("container") or template.get("script")
        if body:
            security = body.get("securityContext") or {}
            assert security.get("allowPrivilegeEscalation") is False, template["name"]
            assert security.get("capabilities", {}).get("drop") == ["ALL"], template["name"]


def test_argos_form_has_kfps_parameters(argo_package: list[Document], kfp_package: list[Document]) -> None:
    template = next(document for document in argo_package if document["kind"] == "WorkflowTemplate")
    names = {parameter["name"] for parameter in template["spec"]["arguments"]["parameters"]}
    assert names == set(kfp_package[0]["root"]["inputDefinitions"]["parameters"])


def test_argos_steps_follow_their_parents(argo_package: list[Document]) -> None:
    names = json.dumps([template["name"] for template in argo_templates(argo_package)])
    for step in STEPS:
        assert step in names, step


def test_the_same_flags_give_the_same_package(tmp_path: Path, argo_package: list[Document]) -> None:
    assert compile_package("argo", tmp_path) == argo_package


@pytest.mark.parametrize("target", ["kfp", "argo"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset", "folder", "--source", "./here"], ("--source", "s3://")),
        (["--workspace", "/tmp/mill"], ("workspace", "s3://")),
        (["--epochs", "0"], ("--epochs", "0")),
    ],
)
def test_what_no_pod_can_take_is_refused(target: str, flags: list[str], words: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "package.yaml"
    refuse("compile", "--target", target, "--cluster", str(CLUSTER), "-o", str(out), *flags, words=words)
    assert not out.exists()


def test_cluster_file_of_the_command_is_explained_and_takes_images(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    succeed("cluster", "-o", str(path))
    text = path.read_text()
    assert text.count("#") > 20
    refuse("compile", "--target", "kfp", "--cluster", str(path), "-o", str(tmp_path / "k.yaml"), words=("images",))
    for name in ("cpu", "ray", "gpu"):
        text = text.replace(f'{name}: ""\n', f'{name}: "registry.example/{name}@sha256:{"1" * 64}"\n', 1)
    path.write_text(text)
    succeed("compile", "--target", "kfp", "--cluster", str(path), "-o", str(tmp_path / "k.yaml"))
    assert "registry.example/cpu@sha256" in (tmp_path / "k.yaml").read_text()
