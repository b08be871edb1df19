"""Checks of Kubernetes documents: by schema, by Pod Security `restricted`, and against golden files.

Custom resources go by the schemas of their CRDs, which lie beside the checkout (`../shared/schemas`); core objects by
Kubernetes' own (kubernetes-validate). Unknown fields are errors in both: the API server would drop them silently.
CEL rules (`x-kubernetes-validations`) are not evaluated.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pod_security
import pytest
import yaml
from controllers import Json, pods
from jsonschema import Draft202012Validator, ValidationError, validators
from referencing import Registry, Resource

SCHEMAS = Path(__file__).parents[2] / "shared" / "schemas"
GOLDEN = Path(__file__).parent / "unit" / "golden"
KUBERNETES = ("1.31", "1.34")
"""The versions that core objects must suit: the oldest that we support, and a recent one."""


def check_custom(document: Json) -> None:
    """Assert that a custom resource suits its CRD; skips the test where the schemas are not beside the checkout."""
    if not SCHEMAS.is_dir():
        pytest.skip(f"the CRD schemas are not beside the repository ({SCHEMAS})")
    path = SCHEMAS / f"{document['apiVersion'].replace('/', '_')}_{document['kind']}.json"
    assert path.is_file(), f"no schema of {document['apiVersion']} {document['kind']} in {SCHEMAS}"
    metadata_errors = list(_metadata().iter_errors(document.get("metadata")))
    for error in metadata_errors:
        error.path.appendleft("metadata")
    _refuse(document, [*_custom(path).iter_errors(document), *metadata_errors])


def check_core(document: Json) -> None:
    """Assert that a core object suits Kubernetes' own schema, in the oldest and in a recent version."""
    for version in KUBERNETES:
        _refuse(document, _core(version, document["apiVersion"], document["kind"]).iter_errors(document), version)


def pod_specs(document: Json) -> Iterator[tuple[str, Json]]:
    """Return (place, spec) of each pod of a document, as the controllers of Argo and KubeRay make them."""
    return ((pod.owner, pod.spec) for pod in pods(document))


def check_restricted(place: str, pod_spec: Json, annotations: Json | None = None) -> None:
    """Assert that Pod Security `restricted` lets a pod in, with all that it would refuse in the message."""
    violations = pod_security.violations(pod_spec, annotations)
    hint = ""
    if "Workflow" in place.partition(" ")[0] and re.search(r"ontainers\[(init|wait)\]", str(violations)):
        hint = "\n(Argo's own containers have no security context unless the template's podSpecPatch gives them one.)"
    assert not violations, f"{place}: Pod Security `restricted` refuses\n  " + "\n  ".join(violations) + hint


class _Plain(yaml.SafeDumper):
    """Importing Hera changes how every YAML of the process is written; goldens must not depend on who imports it."""


_Plain.add_representer(str, yaml.representer.SafeRepresenter.represent_str)


def dumped(*documents: Any, **options: Any) -> str:
    """Documents as YAML, the same whatever else is imported."""
    return yaml.dump_all(documents, Dumper=_Plain, **options)


def check_golden(name: str, text: str, base: str = "") -> None:
    """Assert that `text` is what tests/unit/golden/`name` holds; with REWRITE_GOLDEN set, it is what it then holds.

    `base`: a text that has a golden file of its own; then the file holds the differences from it.
    """
    path = GOLDEN / name
    if base:
        lines = list(difflib.unified_diff(base.splitlines(), text.splitlines(), n=1, lineterm=""))[2:]
        text = "".join(("@@" if line.startswith("@@") else line) + "\n" for line in lines)
    if os.environ.get("REWRITE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"{path} is absent: write it with REWRITE_GOLDEN=1"
    assert text == path.read_text(encoding="utf-8"), f"not what {path} holds (rewrite it with REWRITE_GOLDEN=1)"


def _refuse(document: Json, errors: Any, version: str = "") -> None:
    lines = [line for error in errors for line in _lines(error)]
    title = f"{document['kind']} {(document.get('metadata') or {}).get('name')} {version}".rstrip()
    assert not lines, f"{title}: the schema refuses\n  " + "\n  ".join(lines)


def _lines(error: ValidationError) -> Iterator[str]:
    for inner in error.context or (error,):
        place = ".".join(str(part) for part in inner.absolute_path) or "(the document)"
        yield f"{place}: {inner.message[:300]}"


def _unique(validator: Any, keys: list[str], instance: Any, schema: Any) -> Iterator[ValidationError]:
    """Lists of `x-kubernetes-list-type: map` may not hold two entries with the same keys."""
    if isinstance(instance, list) and schema.get("x-kubernetes-list-type") == "map":
        entry_keys = [tuple(str(entry.get(key)) for key in keys) for entry in instance if isinstance(entry, dict)]
        for twice in sorted({entry_key for entry_key in entry_keys if entry_keys.count(entry_key) > 1}):
            yield ValidationError(f"twice {', '.join(keys)} = {', '.join(twice)}")


_Custom = validators.extend(Draft202012Validator, {"x-kubernetes-list-map-keys": _unique})


@functools.cache
def _custom(path: Path) -> Any:
    schema = _strict(json.loads(path.read_text(encoding="utf-8")))
    schema["properties"]["metadata"] = {"type": "object"}  # ObjectMeta, which is checked by Kubernetes' own
    schema["required"] = sorted({*schema.get("required", ()), "metadata", "spec"})
    return _Custom(schema)


def _strict(schema: Any) -> Any:
    """A CRD's schema in which unknown fields are errors, except below x-kubernetes-preserve-unknown-fields."""
    if not isinstance(schema, dict):
        return schema
    kept_fields = ("x-kubernetes-list-map-keys", "x-kubernetes-list-type")
    result = {key: value for key, value in schema.items() if key in kept_fields or not key.startswith("x-kubernetes-")}
    for key in ("items", "additionalProperties", "not"):
        if key in result:
            result[key] = _strict(result[key])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in result:
            result[key] = [_strict(subschema) for subschema in result[key]]
    if "properties" in result:
        result["properties"] = {name: _strict(subschema) for name, subschema in result["properties"].items()}
    if schema.get("nullable") and "type" in schema:
        result["type"] = [schema["type"], "null"]
    preserved = schema.get("x-kubernetes-preserve-unknown-fields")
    if schema.get("type") == "object" and not preserved and "additionalProperties" not in schema:
        result["additionalProperties"] = False
    return result


def _folder(version: str) -> Path:
    return Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{version}.0-local-strict"


@functools.cache
def _registry(version: str) -> Any:
    text = (_folder(version) / "_definitions.json").read_text(encoding="utf-8")
    return Resource.from_contents(json.loads(text)) @ Registry()


@functools.cache
def _core(version: str, api: str, kind: str) -> Any:
    group, _, name = api.rpartition("/")
    parts = [kind.lower(), *([group.partition(".")[0]] if group else []), name]
    path = _folder(version) / f"{'-'.join(parts)}.json"
    assert path.is_file(), f"Kubernetes {version} knows no {api} {kind}"
    resource = Resource.from_contents(json.loads(path.read_text(encoding="utf-8")))
    return Draft202012Validator(resource.contents, registry=resource @ _registry(version))


@functools.cache
def _metadata() -> Any:
    """The schema of `metadata`, which all objects share; CRDs leave it out."""
    return _core(KUBERNETES[-1], "meta/v1", "ObjectMeta")
