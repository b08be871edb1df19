"""What Kubeflow Pipelines shows of a step: the metadata of its artifacts, from its record and its dataset's manifest.

Values are those that a protobuf Struct holds: text, numbers, true and false, and objects and lists of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..components.store.config import PRODUCTS
from ..components.store.step import copy_to

FRAMEWORK = "PyTorch"
RECORDS = "imagemill_records"
"""The property under which an artifact has records of steps, as JSON: what `imagemill runs` reads through KFP, for who
has its address seldom has keys of the store."""
_KEPT = ("uri", "fingerprint", "state", "seconds", "metrics", "exit_code", "error")
_STEPS = {kind: step for step, kind in PRODUCTS.items()}


def records_metadata(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return records by step as metadata of an artifact."""
    kept = {
        step: _told({key: record.get(key) for key in _KEPT}, {"metrics": _told(record["metrics"])})
        for step, record in records.items()
    }
    return {RECORDS: json.dumps(kept, ensure_ascii=False)}


def dataset_metadata(record: Mapping[str, Any], manifest_file: str) -> dict[str, Any]:
    """Of a `Dataset`: where it is, its totals, its classes, and what else the step told.

    `manifest_file`: the local copy of its manifest, which is the artifact itself.
    """
    manifest = json.loads(Path(manifest_file).read_text(encoding="utf-8"))
    totals = manifest["totals"]
    image = manifest.get("image", {})
    return _told(
        _identity(record, manifest),
        {key: totals[key] for key in ("rows", "rejected", "bytes", "by_split", "by_reason")},
        {"classes": len(manifest["classes"]), "task": manifest["task"], "files": len(manifest["files"])},
        {key: image[key] for key in ("color", "shape", "dtype", "encoding") if key in image},
        record["metrics"],
        records_metadata({_STEPS[manifest["kind"]]: record}),
    )


def model_metadata(record: Mapping[str, Any], manifest_file: str) -> dict[str, Any]:
    """Of a `Model`: where it is, what it was trained with, and how well it does on the validation images."""
    manifest = json.loads(Path(manifest_file).read_text(encoding="utf-8"))
    config = manifest["config"]
    trained = ("backbone", "recipe", "epochs", "batch_size", "learning_rate", "seed")
    return _told(
        _identity(record, manifest),
        {"framework": FRAMEWORK, "classes": len(manifest["classes"]), "task": manifest["task"]},
        {key: config[key] for key in trained if key in config},
        {"best_epoch": manifest.get("extra", {}).get("best_epoch")},
        record["metrics"],
        records_metadata({_STEPS[manifest["kind"]]: record}),
    )


def write_report(record: Mapping[str, Any], path: str) -> None:
    """The run's report as the file of an `HTML` artifact; a line where promote could not write one."""
    if uri := record["metrics"]["report"]:
        copy_to(uri, path)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("<p>No report: a dataset that it is made from was removed.</p>\n", encoding="utf-8")


def _identity(record: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "uri": record["uri"],
        "fingerprint": record["fingerprint"],
        "kind": manifest["kind"],
        "dataset": manifest.get("extra", {}).get("dataset_name"),
        "state": record["state"],
        "created": manifest["created"],
        "code_version": manifest["code_version"],
    }


def _told(*groups: Mapping[str, Any]) -> dict[str, Any]:
    """All in one, without what is unset: Kubeflow's metadata store refuses null, and shows empty objects as noise."""
    return {
        key: value
        for group in groups
        for key, value in group.items()
        if value is not None and value != "" and value != {} and value != []
    }
