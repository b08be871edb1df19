"""Render the model card (card.md.j2): use, classes, data, preprocessing, training, metrics, limits and loading.

The chapters are those of Mitchell et al., "Model Cards for Model Reporting" (2019); the header is Hugging Face's
(https://huggingface.co/docs/hub/model-cards). No times and no addresses: the same model has the same card.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...dataset.labels import MULTI, THRESHOLD
from ...models.artifact import ModelSpec, Preprocessing

MAX_CLASSES = 200
"""Classes that are listed one by one, at most."""
_TITLES = {"top1": ("accuracy", "top-1 accuracy"), "macro_f1": ("f1", "macro-F1"), "loss": ("", "loss")}
"""Name of each metric among Hugging Face's `metrics`, and in text."""
_CONTENTS = (
    ("raw", "the images and labels as they were found"),
    ("clean", "what was kept of them, what was rejected and why, the splits"),
    ("tensors", "the pixels that training read"),
    ("model", "the weights that training started from, which have seen that model's training images, too"),
)


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
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    page = Environment(  # Markdown, of which `_escape` takes care
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    page.filters |= {"md": _escape, "num": "{:,}".format, "json": json.dumps}
    splits = [split for split in ("train", "val", "test") if facts.counts.get(split)]
    absent = {
        split: [name for name in spec.classes if facts.counts and not facts.counts.get(split, {}).get(name)]
        for split in ("train", "val")
    }
    card = page.get_template("card.md.j2").render(
        spec=spec, facts=facts, fingerprint=fingerprint, onnx_note=onnx_note, is_multi=spec.task == MULTI,
        header=_render_header(spec, facts, fingerprint), steps=_list_steps(spec), splits=splits, contents=_CONTENTS,
        absent={split: _list_names(names) for split, names in absent.items()}, titles=_TITLES,
        max_classes=MAX_CLASSES, threshold=f"{THRESHOLD:g}",
    )  # fmt: skip
    return str(card)


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
    return str(yaml.safe_dump(header, sort_keys=False, allow_unicode=True))


def _list_steps(spec: ModelSpec) -> list[str]:
    """Return in words what is done to an image before the network sees it, in order."""
    record = spec.extra.preprocessing or {}
    steps = Preprocessing.from_record(record, spec.geometry, "the model's description").steps()
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (spec.image.mean, spec.image.std))
    return [*steps, f"divided by 255, less the mean ({mean}), divided by the spread ({std}), channel by channel"]


def _list_names(names: Sequence[str], shown: int = 20) -> str:
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(_escape(name) for name in names[:shown]) + more


def _escape(text: str) -> str:
    """Return a user's text for one cell of a table, without markup, HTML and line breaks."""
    line = " ".join(text.split())
    return re.sub(r"[\\`*{}\[\]<>#|!~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)
