"""The metadata of a step's artifacts in Kubeflow Pipelines, from its record and its dataset's manifest.

Values are of the types of a protobuf Struct: text, numbers, booleans, and objects and lists of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...components.dataset.workspace import PRODUCTS
from ...components.step.step import download_file
from ..finish import RunSummary

FRAMEWORK = "PyTorch"
RECORDS = "imagemill_records"
"""The property of an artifact that holds records of steps as JSON. `imagemill runs` reads it through KFP, for its users
seldom have keys of the store."""
_RECORD_KEYS = ("uri", "fingerprint", "state", "seconds", "metrics", "exit_code", "error")
_STEPS = {kind: step for step, kind in PRODUCTS.items()}


def records_metadata(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return records by step as metadata of an artifact."""
    public = {
        step: _merge_set({key: record.get(key) for key in _RECORD_KEYS}, {"metrics": _merge_set(record["metrics"])})
        for step, record in records.items()
    }
    return {RECORDS: json.dumps(public, ensure_ascii=False)}


def summary_metadata(run: RunSummary) -> dict[str, str]:
    """Return the records of a run as metadata of its summary, also where there are none; nothing where they can't be
    read."""
    return {} if run.unread else records_metadata(run.records)


def dataset_metadata(record: Mapping[str, Any], manifest_file: str) -> dict[str, Any]:
    """Return the metadata of a `Dataset`: its URI, totals and classes, and the step's metrics.

    `manifest_file`: the local copy of the manifest, which is the artifact itself.
    """
    manifest = json.loads(Path(manifest_file).read_text(encoding="utf-8"))
    totals = manifest["totals"]
    image = manifest.get("image", {})
    return _merge_set(
        _identity(record, manifest),
        {key: totals[key] for key in ("rows", "rejected", "bytes", "by_split", "by_reason")},
        {"classes": len(manifest["classes"]), "task": manifest["task"], "files": len(manifest["files"])},
        {key: image[key] for key in ("color", "shape", "dtype", "encoding") if key in image},
        record["metrics"],
        records_metadata({_STEPS[manifest["kind"]]: record}),
    )


def model_metadata(record: Mapping[str, Any], manifest_file: str) -> dict[str, Any]:
    """Return the metadata of a `Model`: its URI, training parameters and validation metrics."""
    manifest = json.loads(Path(manifest_file).read_text(encoding="utf-8"))
    config = manifest["config"]
    hyperparameters = ("backbone", "recipe", "epochs", "batch_size", "learning_rate", "seed")
    return _merge_set(
        _identity(record, manifest),
        {"framework": FRAMEWORK, "classes": len(manifest["classes"]), "task": manifest["task"]},
        {key: config[key] for key in hyperparameters if key in config},
        {"best_epoch": manifest.get("extra", {}).get("best_epoch")},
        record["metrics"],
        records_metadata({_STEPS[manifest["kind"]]: record}),
    )


def write_report(record: Mapping[str, Any], path: str) -> None:
    """Write the run's report to the file of an `HTML` artifact, or a message if promote could not make one."""
    if uri := record["metrics"]["report"]:
        download_file(uri, path)
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


def _merge_set(*groups: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the mappings without their empty values: Kubeflow's metadata store refuses null, and the UI shows empty
    objects as clutter."""
    return {
        key: value
        for group in groups
        for key, value in group.items()
        if value is not None and value != "" and value != {} and value != []
    }
