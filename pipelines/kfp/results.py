"""What a pod of Kubeflow Pipelines is given and gives: its executor input, its output parameters, and the artifacts
that the UI shows, with their metadata.

Each step's artifact carries its own record, by which `imagemill runs` knows it without keys of the store; the summaries
of promote and of the exit step carry all, the latter also those of steps that failed. KFP's launcher replaces `{{$}}`
in a command line by the executor input, and reads the outputs from the file that this names as `outputs.outputFile`
(2.17). Values of metadata are of the types of a protobuf Struct: text, numbers, booleans, objects and lists of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...components.dataset.manifest import MANIFEST
from ...components.dataset.records import StepRecord
from ...components.step.command_line import Parser
from ...components.step.step import download_file
from ...components.storage import uri as uris
from ...components.storage.errors import UserError
from ..finish import RunSummary, write_summary

FRAMEWORK = "PyTorch"
RECORDS = "imagemill_records"
"""The property of an artifact that holds records of steps as JSON."""
KFP_VERSION_VARIABLE = "IMAGEMILL_KFP_VERSION"
"""Variable in each pod, from the package's first document: the release that the package was compiled for."""
POD_NAME_VARIABLE = "POD_NAME"
"""Variable in each pod, from the package's second document."""
_RECORD_KEYS = ("uri", "fingerprint", "state", "seconds", "metrics", "exit_code", "error")


@dataclass
class KfpResults:
    """The outputs of a pod. `paths`: the local file of each artifact, which KFP's launcher stores."""

    executor_input: Mapping[str, Any]
    paths: Mapping[str, Path]
    _metadata: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def parse(cls, words: Sequence[str]) -> tuple[dict[str, Any], KfpResults]:
        """Parse a command line; return the input parameters by name, and the results.

        UserError where the server has ignored the pods' settings.
        """
        if message := describe_ignored_settings():
            raise UserError(message)
        parser = Parser(description="the command of a step's pod under Kubeflow Pipelines")
        parser.add_argument("--kfp", metavar="JSON", required=True)
        parser.add_argument("--artifact", nargs=2, action="append", default=[], metavar=("NAME", "PATH"))
        arguments = parser.parse_args(words)
        executor_input = json.loads(arguments.kfp)
        values = dict(executor_input.get("inputs", {}).get("parameterValues", {}))
        if isinstance(status := values.get("status"), dict):
            values["status"] = status.get("state", "")
        return values, cls(executor_input, {name: Path(path) for name, path in arguments.artifact})

    def write(self, step: str, record: StepRecord, outputs: Mapping[str, str]) -> None:
        """Write the outputs and artifacts of a step."""
        for name, path in self.paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if name == "manifest":
                download_file(uris.join(record.uri, MANIFEST), str(path))
                self._metadata[name] = describe_dataset(step, record, json.loads(path.read_text(encoding="utf-8")))
            elif name == "metrics":
                self._metadata[name] = {key: value for key, value in record.metrics.items() if isinstance(value, float)}
            elif name == "confusion":
                self._metadata[name] = describe_records({step: record}) | describe_curves(record.uri)
            elif name == "report":
                _write_report(record, path)
            elif name == "summary":
                workspace, run = (self.executor_input["inputs"]["parameterValues"][key] for key in ("workspace", "run"))
                self._metadata[name] = describe_summary(write_summary(workspace, run, str(path)))
        self._write_output_file(outputs)

    def locate_summary(self) -> Path:
        """Return the file of the artifact of that name."""
        return self.paths["summary"]

    def write_summary(self, summary: RunSummary) -> None:
        """Write the metadata of a run's summary."""
        self._metadata["summary"] = describe_summary(summary)
        self._write_output_file({})

    def _write_output_file(self, outputs: Mapping[str, str]) -> None:
        given = self.executor_input["outputs"]
        artifacts = {}
        for name, metadata in self._metadata.items():
            (artifact,) = given["artifacts"][name]["artifacts"]
            artifacts[name] = {"artifacts": [{**artifact, "metadata": metadata}]}
        target = Path(given["outputFile"])
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps({"parameterValues": dict(outputs), "artifacts": artifacts}), encoding="utf-8")


def describe_ignored_settings() -> str:
    """Return the error of a pod whose settings the server has ignored; empty where it has not, and elsewhere."""
    if not os.environ.get(KFP_VERSION_VARIABLE) or os.environ.get(POD_NAME_VARIABLE):
        return ""
    return (
        "kfp.version: expected the release of the Kubeflow Pipelines server, found "
        f"{os.environ[KFP_VERSION_VARIABLE]!r}, and the server is older: it has ignored the pods' settings, "
        "credentials among them. Say it in the cluster file and compile again"
    )


def describe_records(records: Mapping[str, StepRecord]) -> dict[str, Any]:
    """Return records by step as metadata of an artifact."""
    public = {
        step: _merge_set({key: getattr(record, key) for key in _RECORD_KEYS}, {"metrics": _merge_set(record.metrics)})
        for step, record in records.items()
    }
    return {RECORDS: json.dumps(public, ensure_ascii=False)}


def describe_summary(run: RunSummary) -> dict[str, Any]:
    """Return the records of a run as metadata of its summary, also where there are none; nothing where they can't be
    read."""
    return {} if run.unread else describe_records(run.records)


def describe_dataset(step: str, record: StepRecord, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a dataset or model: its URI, what it holds or was trained with, and the step's metrics."""
    totals, image, config = manifest["totals"], manifest.get("image", {}), manifest["config"]
    if manifest["kind"] == "model":
        hyperparameters = ("backbone", "recipe", "epochs", "batch_size", "learning_rate", "seed")
        own = {"framework": FRAMEWORK, **{key: config[key] for key in hyperparameters if key in config}}
        own["best_epoch"] = manifest.get("extra", {}).get("best_epoch")
    else:
        own = {key: totals[key] for key in ("rows", "rejected", "bytes", "by_split", "by_reason")}
        own |= {"parts": len(manifest["parts"])}
        own |= {key: image[key] for key in ("color", "shape", "dtype", "encoding") if key in image}
    identity = {
        "uri": record.uri,
        "fingerprint": record.fingerprint,
        "kind": manifest["kind"],
        "dataset": manifest.get("extra", {}).get("dataset_name"),
        "state": record.state,
        "created": manifest["created"],
        "code_version": manifest["code_version"],
        "classes": len(manifest["classes"]),
        "task": manifest["task"],
    }
    return _merge_set(identity, own, record.metrics, describe_records({step: record}))


def describe_curves(evaluation: str) -> dict[str, Any]:
    """Return the confusion matrix and the ROC curve of an evaluation as the UI draws them (`ClassificationMetrics` of
    kfp.dsl); empty where it has none."""
    from ...components.evaluate.curves import confusion_matrix, roc_curve

    metadata: dict[str, Any] = {}
    if (matrix := confusion_matrix(evaluation)) is not None:
        classes, counts = matrix
        metadata["confusionMatrix"] = {
            "annotationSpecs": [{"displayName": name} for name in classes],
            "rows": [{"row": row} for row in counts],
        }
    if (curve := roc_curve(evaluation)) is not None:
        keys = ("falsePositiveRate", "recall", "confidenceThreshold")
        metadata["confidenceMetrics"] = [dict(zip(keys, point, strict=True)) for point in zip(*curve, strict=True)]
    return metadata


def _write_report(record: StepRecord, path: Path) -> None:
    """Write the run's report, or a message if promote could not make one."""
    if uri := record.metrics["report"]:
        download_file(uri, str(path))
    else:
        path.write_text("<p>No report: a dataset that it is made from was removed.</p>\n", encoding="utf-8")


def _merge_set(*groups: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the mappings without their empty values: Kubeflow's metadata store refuses null, and the UI shows empty
    objects as clutter."""
    return {
        key: value
        for group in groups
        for key, value in group.items()
        if value is not None and value != "" and value != {} and value != []
    }
