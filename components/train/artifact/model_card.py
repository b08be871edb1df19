"""Render the model card: use, classes, data, preprocessing, training, metrics, limits and loading of a model.

The chapters are those of Mitchell et al., "Model Cards for Model Reporting" (2019); the header is Hugging Face's
(https://huggingface.co/docs/hub/model-cards). No times and no addresses: the same model has the same card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from ...dataset.labels import MULTI, THRESHOLD
from ...models.artifact import ModelSpec, Preprocessing

MAX_CLASSES = 200
"""Classes that are listed one by one, at most."""
_TITLES = {"top1": ("accuracy", "top-1 accuracy"), "macro_f1": ("f1", "macro-F1"), "loss": ("", "loss")}
"""Name of each metric among Hugging Face's `metrics`, and in text."""


@dataclass(frozen=True)
class CardFacts:
    """Facts on a training that the network and its description do not hold.

    Attributes:
        origin: the weights that training started from, in words.
        metrics: of the kept epoch on the validation images.
        best: that epoch's row of the history.
        config: effective values by name.
        parents: fingerprint by kind, of tensors, clean and raw, as far as these exist, and of the model that training
            started from, if it did.
        counts: images by split and class.
    """

    dataset_name: str
    origin: str
    code_version: str
    parameters: int
    recipe: str
    epochs: int
    metrics: Mapping[str, float]
    best: Mapping[str, Any]
    config: Mapping[str, Any]
    parents: Mapping[str, str]
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def render_card(spec: ModelSpec, facts: CardFacts, fingerprint: str, onnx_note: str) -> str:
    """Return the card as Markdown. `onnx_note` describes the ONNX file, or why there is none."""
    chapters = [
        _render_title(spec, facts, fingerprint),
        _render_use(spec),
        _render_classes(spec, facts),
        _render_data(facts),
        _render_preprocessing(spec),
        _render_recipe(facts),
        _render_metrics(facts),
        _render_calibration(spec),
        _render_limits(spec, facts),
        _render_loading(spec, onnx_note),
        _render_reproduction(facts, fingerprint),
    ]
    return _render_header(spec, facts, fingerprint) + "\n\n".join("\n".join(lines) for lines in chapters) + "\n"


def _render_header(spec: ModelSpec, facts: CardFacts, fingerprint: str) -> str:
    """Return Hugging Face's YAML header, without a license, which only the owner knows."""
    metrics = [
        {"type": _TITLES[name][0], "name": f"validation {_TITLES[name][1]}", "value": round(float(value), 6)}
        for name, value in facts.metrics.items()
        if name in _TITLES and _TITLES[name][0]
    ]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": facts.dataset_name, "type": "imagemill", "split": "validation"},
        "metrics": metrics,
    }
    header: dict[str, Any] = {
        "library_name": "imagemill",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "imagemill", "onnx", "safetensors", spec.backbone],
        "metrics": [metric["type"] for metric in metrics],
        "model-index": [{"name": f"{facts.dataset_name} {fingerprint}", "results": [result] if metrics else []}],
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n"


def _render_title(spec: ModelSpec, facts: CardFacts, fingerprint: str) -> list[str]:
    labels = "any number of them for an image" if spec.task == MULTI else "one of them for an image"
    return [
        f"# {_escape(facts.dataset_name)}: {spec.backbone}",
        "",
        f"An image classifier with {len(spec.classes):,} classes, {labels}; {facts.parameters / 1e6:.1f} million "
        f"parameters, trained {_escape(facts.origin)} by imagemill {facts.code_version}.",
        "",
        f"Model `{fingerprint}`. This page was written by the training itself; what only people can know is left to "
        "them.",
    ]


def _render_use(spec: ModelSpec) -> list[str]:
    meaning = (
        f"every class has a probability of its own, and {THRESHOLD:g} and more counts as present"
        if spec.task == MULTI
        else "the probabilities add up to 1, also for a picture that shows none of the classes"
    )
    return [
        "## Intended use",
        "",
        "For the owner of the data to say: what it is for, who it is for, and what it must not be used for.",
        "",
        "Until then: it tells pictures like those it was trained on, taken in the same way of the same things, into "
        f"the classes below; {meaning}. It has not been examined for decisions about people, for safety, or for "
        "pictures from other sources, and its mistakes are not spread evenly: look at the metrics of each class "
        "before relying on one of them.",
    ]


def _render_classes(spec: ModelSpec, facts: CardFacts) -> list[str]:
    splits = [split for split in ("train", "val", "test") if facts.counts.get(split)]
    lines = ["## Classes", ""]
    more = len(spec.classes) - MAX_CLASSES
    omitted = ["", f"And {more:,} more, in the model's JSON."] if more > 0 else []
    if not splits:
        names = ", ".join(_escape(name) for name in spec.classes[:MAX_CLASSES])
        return [*lines, names, *omitted]
    lines += [f"| id | class | {' | '.join(splits)} |", f"|---:|---|{'---:|' * len(splits)}"]
    for class_id, name in enumerate(spec.classes[:MAX_CLASSES]):
        counts = " | ".join(f"{facts.counts[split].get(name, 0):,}" for split in splits)
        lines.append(f"| {class_id} | {_escape(name)} | {counts} |")
    return [*lines, *omitted]


def _render_data(facts: CardFacts) -> list[str]:
    lines = ["## Data", "", "| dataset | fingerprint | what it holds |", "|---|---|---|"]
    contents = {
        "raw": "the images and labels as they were found",
        "clean": "what was kept of them, what was rejected and why, the splits",
        "tensors": "the pixels that training read",
        "model": "the weights that training started from, which have seen that model's training images, too",
    }
    lines += [
        f"| {kind} | `{facts.parents[kind]}` | {content} |"
        for kind, content in contents.items()
        if kind in facts.parents
    ]
    return [
        *lines,
        "",
        "Each is a folder `<kind>/<fingerprint>/` in the workspace where this model lies; its `_manifest.json` lists "
        "the files and the parents, and `imagemill inspect <folder>` says what is in it.",
    ]


def _render_preprocessing(spec: ModelSpec) -> list[str]:
    record = spec.extra.preprocessing or {}
    steps = Preprocessing.from_record(record, spec.geometry, "the model's description").steps()
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (spec.image.mean, spec.image.std))
    steps.append(f"divided by 255, less the mean ({mean}), divided by the spread ({std}), channel by channel")
    unknown = [] if record else ["", "What clean did to the pixels was not known when this was written."]
    return [
        "## Preprocessing",
        "",
        *(f"{number}. {text}" for number, text in enumerate(steps, 1)),
        *unknown,
        "",
        "The last step is part of the ONNX file; `imagemill predict` does all of them.",
    ]


def _render_recipe(facts: CardFacts) -> list[str]:
    best = facts.best.get("epoch", facts.epochs)
    epochs = "one epoch" if facts.epochs == 1 else f"{facts.epochs:,} epochs, of which epoch {best} was kept"
    values = ((key, value) for key, value in facts.config.items() if value != "")
    return [
        "## Training",
        "",
        f"Recipe `{facts.recipe}`; {epochs}.",
        "",
        *_render_table(values, ("parameter", "value")),
    ]


def _render_metrics(facts: CardFacts) -> list[str]:
    lines = ["## Metrics", ""]
    if facts.metrics:
        rows = [(_TITLES.get(name, ("", name))[1], f"{float(value):.4f}") for name, value in facts.metrics.items()]
        lines += ["On the validation images, by which the epoch was chosen, so that they flatter it a little:", ""]
        lines += _render_table(rows, ("metric", "value"))
    else:
        lines += ["There were no validation images: the last epoch was kept."]
    return [
        *lines,
        "",
        "What it is worth on test images, class by class and with confidence intervals, is in the evaluation dataset "
        "that `imagemill evaluate` makes (`evaluation/<fingerprint>/`, whose parents name this model) and in the run's "
        "report.",
    ]


def _render_calibration(spec: ModelSpec) -> list[str]:
    if spec.extra.temperature is None:
        return ["## Calibration", "", "The probabilities are those of the network as it was trained."]
    return [
        "## Calibration",
        "",
        f"Logits are divided by a temperature of {spec.extra.temperature:.4g}, fitted on the validation "
        "images (Guo et al., \"On Calibration of Modern Neural Networks\", 2017). How well the probabilities hold on "
        "test images is in the evaluation.",
    ]  # fmt: skip


def _render_limits(spec: ModelSpec, facts: CardFacts) -> list[str]:
    height, width, _ = spec.image.shape
    lines = ["## Limits", "", f"- It sees {width} x {height} pixels: what can't be told at that size it can't tell."]
    if spec.geometry.mode == "crop":
        lines.append("- It sees the centre square: what lies at the ends of a long picture is cut off.")
    if spec.task != MULTI:
        lines.append("- It knows no \"none of these\": every picture gets a class.")  # fmt: skip
    untrained = [name for name in spec.classes if facts.counts and not facts.counts.get("train", {}).get(name)]
    if untrained:
        lines.append(f"- Never seen in training: {_list_names(untrained)}.")
    unvalidated = [name for name in spec.classes if facts.counts and not facts.counts.get("val", {}).get(name)]
    if unvalidated:
        lines.append(f"- Without validation images, so in no metric above: {_list_names(unvalidated)}.")
    return lines


def _render_loading(spec: ModelSpec, onnx_note: str) -> list[str]:
    formula = "sigmoid(logits / temperature)" if spec.task == MULTI else "softmax(logits / temperature)"
    return [
        "## How to load it", "", "`<folder>` is the one where this file lies.", "",
        "With imagemill, from image files:", "",
        "```sh", "imagemill predict --model <folder> photo.jpg", "```", "",
        f"With ONNX: {onnx_note}", "",
        "```python", _ONNX_EXAMPLE, "```", "",
        f"With PyTorch, from safetensors; probabilities are {formula}:", "",
        "```python", _PYTORCH_EXAMPLE, "```",
    ]  # fmt: skip


_ONNX_EXAMPLE = """\
import glob, json, onnxruntime

session = onnxruntime.InferenceSession(glob.glob("<folder>/model-*.onnx")[0])
about = session.get_modelmeta().custom_metadata_map
classes, preprocessing = json.loads(about["classes"]), json.loads(about["preprocessing"])["steps"]
# images: uint8 [N, height, width, channels] after these steps
logits, probabilities = session.run(["logits", "probabilities"], {"images": images})"""

_PYTORCH_EXAMPLE = """\
import torch
from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.models.artifact import Normalize, load_model

network, spec = load_model(read_dataset("<folder>", "model"))
with torch.inference_mode():
    logits = network(Normalize(spec.image, torch.device("cpu"))(images))  # images: uint8 [N, H, W, C]"""


def _render_reproduction(facts: CardFacts, fingerprint: str) -> list[str]:
    seed = facts.config.get("seed", 0)
    return [
        "## The same again",
        "",
        f"imagemill {facts.code_version}, seed {seed}, the tensors, the weights it started from and the "
        f"parameters above give this model: "
        f"`{fingerprint}` is the hash of just these. On one CPU the weights are the same to the bit; on a GPU, or with "
        "other versions of the libraries, they differ in their last digits.",
    ]


def _render_table(rows: Iterable[tuple[str, Any]], titles: tuple[str, str]) -> list[str]:
    lines = [f"| {titles[0]} | {titles[1]} |", "|---|---|"]
    return lines + [
        f"| {_escape(key)} | {_escape(value if isinstance(value, str) else json.dumps(value))} |" for key, value in rows
    ]


def _list_names(names: Sequence[str], shown: int = 20) -> str:
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(_escape(name) for name in names[:shown]) + more


def _escape(text: str) -> str:
    """Return a user's text for one cell of a table, without markup, HTML and line breaks."""
    line = " ".join(text.split())
    return re.sub(r"[\\`*{}\[\]<>#|!~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)
