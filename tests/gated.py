"""Helpers for tests of the gate: evaluations on disk with given predictions, and their models and images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from simulated import Ids, equal_counts, labels_of

from imagemill.components.dataset.kinds import CleanExtra, EvaluationExtra, ModelExtra
from imagemill.components.dataset.manifest import Dataset, Manifest, Totals, commit
from imagemill.components.dataset.shards import Layout, ShardWriter, publish_bytes
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate.intervals import compute_single_label_intervals
from imagemill.components.evaluate.overlap import parse_content_hashes
from imagemill.components.evaluate.scores import SingleScorer
from imagemill.components.metrics.classification import ConfusionCounts
from imagemill.components.promote.config import PromoteConfig
from imagemill.components.promote.promote import promote
from imagemill.components.step.step import Context

CLASSES = ("ant", "bee", "cat", "dog")
LABELS = labels_of(equal_counts(len(CLASSES), 400))
"""Of 400 images."""


def wrong(count: int, start: int = 0, labels: Ids = LABELS) -> Ids:
    """Predictions that are right but for `count` images, evenly over the classes, the first of them `start`."""
    predicted = labels.copy()
    order = np.argsort(np.arange(len(labels)) % (len(labels) // len(CLASSES)), kind="stable")  # class by class in turn
    rows = order[start : start + count]
    predicted[rows] = (labels[rows] + 1) % len(CLASSES)
    return predicted


def contents(number: int, start: int = 0) -> list[str]:
    return [hashlib.sha256(f"image {n}".encode()).hexdigest() for n in range(start, start + number)]


def fingerprint(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Training:
    """How a model was trained: `train` and `val` images of each class, validation scores, and options."""

    train: int = 1000
    val: int = 100
    scores: dict[str, float] = field(default_factory=dict)
    requested: dict[str, Any] = field(default_factory=dict)
    backbone: str = "resnet18"
    color: str = "rgb"
    label_map: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """A workspace with the name `weekly`, in which models are evaluated and judged."""

    workspace: Workspace
    classes: tuple[str, ...] = CLASSES
    rule: dict[str, Any] = field(default_factory=dict)

    def clean(self, week: int = 1) -> Dataset:
        name = fingerprint(f"clean {week}")
        uri = self.workspace.dataset_uri("clean", name)
        manifest = Manifest("clean", name, classes=self.classes, extra=CleanExtra(dataset_name="weekly"))
        return commit(uri, manifest)

    def model(self, name: str, training: Training | None = None) -> Dataset:
        """The model `name`; with a `training` it has tensors and a clean dataset."""
        uri = self.workspace.dataset_uri("model", fingerprint(name))
        files = (publish_bytes(uri, name.encode(), "model-", ".safetensors"),)
        manifest = Manifest("model", fingerprint(name), classes=self.classes, files=files)
        if training:
            numbers = {"train": training.train, "val": training.val}
            counts = {split: dict.fromkeys(self.classes, number) for split, number in numbers.items()}
            clean = commit(
                self.workspace.dataset_uri("clean", fingerprint(f"clean of {name}")),
                Manifest("clean", fingerprint(f"clean of {name}"), config={"color": training.color},
                         extra=CleanExtra(dataset_name="weekly", by_class_and_split=counts,
                                          label_map=training.label_map)),
            )  # fmt: skip
            place = self.workspace.dataset_uri("tensors", fingerprint(f"tensors of {name}"))
            totals = Totals(by_split={"train": len(self.classes) * training.train})
            tensors = commit(
                place, Manifest("tensors", fingerprint(f"tensors of {name}"), (clean.as_parent(place),), totals=totals)
            )
            extra = ModelExtra(backbone=training.backbone, metrics=training.scores, requested=training.requested)
            manifest = replace(manifest, parents=(tensors.as_parent(uri),), extra=extra)
        return commit(uri, manifest)

    def evaluate(
        self,
        name: str,
        predicted: Sequence[int] | Ids,
        *,
        labels: Ids = LABELS,
        week: int = 1,
        seen: npt.ArrayLike = False,
        first_image: int = 0,
        confidence: npt.ArrayLike = 0.9,
        known: tuple[str, ...] = (),
        task: str = "single",
        unknown: tuple[str, ...] = (),
        training: Training | None = None,
        **extra: Any,
    ) -> Dataset:
        """The evaluation of the model `name` in a week. `known`: the classes it knows, by default all of them;
        `first_image`: the number of the first image, of which name and content are made."""
        clean, model, images = self.clean(week), self.model(name, training), len(labels)
        uri = self.workspace.dataset_uri("evaluation", fingerprint(f"{name} {week} {extra}"))
        columns: dict[str, Any] = {
            "image_id": [f"{n + first_image:06d}.jpg" for n in range(images)], "label_id": labels,
            "predicted_id": np.asarray(predicted), "confidence": np.broadcast_to(confidence, images),
            "label_probability": np.zeros(images), "loss": np.zeros(images),
            "top_ids": [[0]] * images, "top_probabilities": [[0.9]] * images,
            "content_hash": parse_content_hashes(contents(images, first_image)), "seen": np.broadcast_to(seen, images),
        }  # fmt: skip
        with ShardWriter(uri, Layout(SingleScorer.SCHEMA, row_group_rows=97)) as writer:
            for row in zip(*columns.values(), strict=True):
                writer.add(dict(zip(columns, row, strict=True)), 0)
            file = writer.publish("predictions", "data", "test")
        pairs = ConfusionCounts(len(self.classes))
        pairs.add(labels, predicted)
        scores = pairs.per_class()
        facts: dict[str, Any] = {
            "dataset_name": "weekly", "metrics": pairs.summary(), "model_task": task,
            "intervals": compute_single_label_intervals(pairs),
            "model_classes": list(known or self.classes), "chance": {"better": True, "why": ""},
            "seen": {"images": int(np.sum(seen)), "unknown": list(unknown)},
            "per_class": [
                {"class": label, **{key: float(scores[key][n]) for key in ("precision", "recall", "f1")}}
                | {"support": int(scores["support"][n])}
                for n, label in enumerate(self.classes)
            ],
        }  # fmt: skip
        manifest = Manifest(
            "evaluation", uri.rpartition("/")[2], (model.as_parent(uri), clean.as_parent(uri)), {"tta": "none"},
            classes=self.classes, files=(file,), totals=Totals(images),
            extra=EvaluationExtra.from_dict(facts | extra, "test"),
        )  # fmt: skip
        return commit(uri, manifest)

    def promote(self, challenger: Dataset, champion: Dataset | None = None, run: str = "r", **rule: Any) -> Any:
        """The metrics of the promote step."""
        return self.outcome(challenger, champion, run, **rule).metrics

    def outcome(
        self,
        challenger: Dataset,
        champion: Dataset | None = None,
        run: str = "r",
        alone: bool = True,
        rerun: bool = False,
        **rule: Any,
    ) -> Any:
        """Run promote and return its outcome; `alone`: it is not one of a run's steps."""
        values = {"workspace": self.workspace.uri, "evaluation": challenger.uri, "name": "weekly"}
        values |= {"run": "" if alone else run}
        values |= {"champion_evaluation": champion.uri if champion else ""}
        config = PromoteConfig.from_values(values | self.rule | rule)
        return promote(config, Context("promote", self.workspace, run, rerun))

    def record(self) -> dict[str, Any]:
        """The last record of the promotions log."""
        promotion = self.workspace.last_promotion("weekly")
        assert promotion is not None
        return promotion.to_dict()
