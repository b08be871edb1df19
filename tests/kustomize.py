"""Kustomize's part that k8s/ uses, strictly: any other field is an error, so that the tests need no kubectl.

Where kubectl is installed a test compares this with `kubectl kustomize`. Known are resources, components, patches (JSON
6902 with a target), configMapGenerator (files, no suffix), namespace, and one builtin transformer in line.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]
FIELDS = frozenset(("apiVersion", "kind", "resources", "components", "patches", "configMapGenerator", "namespace",
                    "transformers"))  # fmt: skip
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
KINDS = {"Kustomization": "kustomize.config.k8s.io/v1beta1", "Component": "kustomize.config.k8s.io/v1alpha1"}


def render(folder: Path) -> list[Json]:
    """The documents that `kubectl kustomize FOLDER` prints, in the order of their resources."""
    return _folder(folder.resolve(), "Kustomization", [])


def key(document: Json) -> tuple[str, str, str]:
    """Return the identity of a document, unique in a cluster."""
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


def _folder(folder: Path, kind: str, before: list[Json]) -> list[Json]:
    """`before`: what a component adds to and changes; for a kustomization nothing."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    _known(kustomization, FIELDS, folder)
    assert (kustomization["kind"], kustomization["apiVersion"]) == (kind, KINDS[kind]), f"{folder}: not a {kind}"
    documents = [*before]
    for name in kustomization.get("resources", ()):
        path = folder / name
        documents += _folder(path.resolve(), "Kustomization", []) if path.is_dir() else _file(path)
    documents += [_config_map(generator, folder) for generator in kustomization.get("configMapGenerator", ())]
    for name in kustomization.get("components", ()):
        documents = _folder((folder / name).resolve(), "Component", documents)
    for patch in kustomization.get("patches", ()):
        documents = _patched(documents, patch, folder)
    if namespace := kustomization.get("namespace"):
        documents = _in_namespace(documents, namespace, everyone=False)
    for text in kustomization.get("transformers", ()):
        documents = _transformed(documents, yaml.safe_load(text), folder)
    keys = [key(document) for document in documents]
    assert len(set(keys)) == len(keys), f"{folder}: twice {sorted(k for k in keys if keys.count(k) > 1)}"
    return documents


def _known(mapping: Json, fields: frozenset[str], place: object) -> None:
    assert set(mapping) <= fields, f"{place}: tests/kustomize.py knows no {sorted(set(mapping) - fields)}"


def _file(path: Path) -> list[Json]:
    return [document for document in yaml.load_all(path.read_text(encoding="utf-8"), Loader=_LOADER) if document]


def _config_map(generator: Json, folder: Path) -> Json:
    _known(generator, frozenset(("name", "files", "options")), folder)
    options = dict(generator["options"])
    assert options.pop("disableNameSuffixHash"), f"{folder}: tests/kustomize.py makes no suffixes"
    _known(options, frozenset(("labels",)), folder)
    data = {name: (folder / name).read_text(encoding="utf-8") for name in generator["files"]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"], **options}, "data": data}


def _in_namespace(documents: list[Json], namespace: str, *, everyone: bool) -> list[Json]:
    """`everyone`: also accounts that are not among the documents, where a RoleBinding names them."""
    account_names = {document["metadata"]["name"] for document in documents if document["kind"] == "ServiceAccount"}
    result = copy.deepcopy(documents)
    for document in result:
        field = "name" if document["kind"] == "Namespace" else "namespace"
        document["metadata"][field] = namespace
        for subject in document.get("subjects", ()):
            if subject["kind"] == "ServiceAccount" and (everyone or subject["name"] in account_names):
                subject["namespace"] = namespace
    return result


def _transformed(documents: list[Json], transformer: Json, folder: Path) -> list[Json]:
    kind = transformer["kind"]
    assert (transformer["apiVersion"], kind) == ("builtin", "NamespaceTransformer"), f"{folder}: {kind}"
    assert transformer["setRoleBindingSubjects"] == "allServiceAccounts", folder
    return _in_namespace(documents, transformer["metadata"]["namespace"], everyone=True)


def _patched(documents: list[Json], patch: Json, folder: Path) -> list[Json]:
    _known(patch, frozenset(("target", "patch", "path")), folder)
    target = patch["target"]
    _known(target, frozenset(("group", "kind", "name")), folder)
    text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text(encoding="utf-8")
    operations = yaml.safe_load(text)
    result = [*documents]
    for index, document in enumerate(result):
        group = document["apiVersion"].rpartition("/")[0]
        if (document["kind"], document["metadata"]["name"]) == (target["kind"], target["name"]) and target.get(
            "group", group
        ) == group:
            result[index] = json_patch(document, operations)
    return result


def json_patch(document: Json, operations: list[Json]) -> Json:
    """RFC 6902: test, add, replace and remove; AssertionError for what does not fit the document."""
    result = copy.deepcopy(document)
    for operation in operations:
        place: Any = result
        *parents, last = list(_pointer(operation["path"]))
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.get(part)
            assert place is not None, f"{operation['path']}: there is no {part}"
        _OPERATIONS[operation["op"]](place, int(last) if isinstance(place, list) else last, operation)
    return result


def _pointer(path: str) -> Iterator[str]:
    assert path.startswith("/"), path
    return (part.replace("~1", "/").replace("~0", "~") for part in path[1:].split("/"))


def _test(place: Any, last: Any, operation: Json) -> None:
    assert place[last] == operation["value"], f"{operation['path']}: {place[last]}, not {operation['value']}"


def _add(place: Any, last: Any, operation: Json) -> None:
    value = copy.deepcopy(operation["value"])
    if isinstance(place, list):
        place.insert(last, value)
    else:
        place[last] = value


def _replace(place: Any, last: Any, operation: Json) -> None:
    assert isinstance(place, list) or last in place, f"{operation['path']}: there is nothing to replace"
    place[last] = copy.deepcopy(operation["value"])


def _remove(place: Any, last: Any, operation: Json) -> None:
    del place[last]


_OPERATIONS: dict[str, Callable[[Any, Any, Json], None]] = {
    "test": _test, "add": _add, "replace": _replace, "remove": _remove,
}  # fmt: skip
