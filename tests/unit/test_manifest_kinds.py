"""Manifests of each kind, verdicts and promotions: equal bytes when written back, invalid fields named, others kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imagemill.components.dataset.kinds import EvaluationExtra, ImageSpec, ModelExtra, RawExtra, TensorsExtra
from imagemill.components.dataset.manifest import Manifest, parse_manifest
from imagemill.components.dataset.records import Promotion, StepRecord, Verdict
from imagemill.components.storage.errors import UserError

IMAGE: dict[str, Any] = {
    "shape": [40, 40, 4], "input_size": 32, "color": "rgb", "mode": "crop", "interpolation": "bilinear",
    "quality": "exact", "resize_size": 37, "edges": ["canny"], "canny_low": 100, "canny_high": 200, "dtype": "uint8",
    "encoding": "jpeg", "mean": [0.5, 0.5, 0.5, 0.25], "std": [0.25, 0.25, 0.25, 0.5],
}  # fmt: skip
POINT = {"images": 5, "confidence": 0.75, "accuracy": 0.8}
LINES = {"precision": [1.0, 0.5], "true_positive_rate": [0.0, 1.0]}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "raw": (None, {
        "source": "s3://pictures", "dataset_name": "zoo",
        "skipped": {"count": 1, "files": [{"path": "a.txt", "why": "no image"}]},
        "missing_masks": {"count": 1, "files": [{"mask": "a.png", "why": "not there"}]},
        "planted": [{"path": "a", "kind": "broken", "detail": "", "reason": "corrupt"}], "image_size": 64,
    }),
    "clean": ({"color": "gray", "channels": 1}, {
        "dataset_name": "zoo", "by_class_and_split": {"train": {"cat": 3}}, "decoder_warnings": 0, "rows_in": 4,
        "found": {"duplicates": {"groups": 0}}, "label_map": {"cat": "feline"},
        "class_changes": {"added": ["eel"], "removed": [], "renamed": {"cat": "feline"}, "merged": {"a": ["b", "c"]}},
        "image_size": 64,
    }),
    "tensors": (IMAGE, {
        "dataset_name": "zoo",
        "copies": {"policy": "background", "per_image": 2, "rows": 8, "images_without_mask": 1}, "device": "cuda",
    }),
    "model": (IMAGE, {
        "dataset_name": "zoo", "backbone": "googlenet", "weights": "DEFAULT", "recipe": ["recipe small"],
        "metrics": {"top1": 1, "loss": 0.5}, "best_epoch": 1, "epochs": 2, "history": [{"epoch": 1, "loss": 0.5}],
        "transform_input": True, "preprocessing": {"clean": {"trim": "on"}}, "temperature": 1.5, "parameters": 9,
        "origin": "from nothing", "seconds": 1.5, "start": {"model": "model/0", "weights_sha256": "ab", "promotion": 1},
        "requested": {"epochs": 2},
    }),
    "evaluation": (None, {
        "dataset_name": "zoo", "metrics": {"top1": 0.75}, "too_narrow": 1,
        "chance": {"better": True, "class": "cat", "limits": {"top1": 0.5}, "why": ""}, "model_task": "single",
        "model_classes": ["cat", "dog"],
        "per_class": [{"class": "cat", "precision": 1.0, "recall": 0.5, "f1": 0.667, "pr_auc": 0.9, "roc_auc": None,
                       "support": 4}],
        "curves": {"recall": [0.0, 1.0], "false_positive_rate": [0.0, 1.0], "macro": LINES,
                   "classes": [{"class": "cat", "pr_auc": 0.9, "roc_auc": 0.8, **LINES}]},
        "roc": {"fpr": [0.0], "tpr": [0.0], "threshold": [1.0]},
        "slices": [{"column": "size", "slice": "all", "images": 4, "top1": 0.5, "low": 0.1, "high": 0.9,
                    "macro_f1": 0.5, "below": False}],
        "throughput": {"device": "a CPU", "batch_size": 8, "network": 9.0, "network_one_view": 18.0, "whole": 5.0,
                       "tta": "flip"},
        "calibration": {"temperature": 1.5, "bins": 15, "before": [POINT], "after": [POINT]},
        "review": {"images": 9, "suspects": 1, "listed": 9, "judged": 9, "agreement": 0.9},
        "intervals": {"top1": [0.5, 0.9]}, "seen": {"images": 0, "unknown": ["clean/0"]},
    }),
}  # fmt: skip
"""The `image` and `extra` of a manifest, with every field that its kind may have."""
VERDICT = {
    "verdict": "better", "reason": "it is", "promoted": True, "rule": "better", "level": 0.05, "challenger": 0.75,
    "champion": None, "metric": "macro_f1", "gain": 0.25, "interval": [-0.1, 0.5], "images": 100, "left_out": 0,
    "won": 3, "lost": 1, "min_gain": 0.0, "validation": {"gain": -0.1, "error": 0.1, "images": 90},
    "combined": {"gain": 0.1, "error": 0.05, "images": 190}, "shared": {"gain": 0.1, "error": 0.05, "images": 90},
    "guards": [{"option": "max_class_drop", "subject": "cat", "champion": 0.9, "challenger": 0.5, "limit": 0.1,
                "refuses": False}],
    "changed_options": [{"step": "train", "option": "backbone", "champion": "resnet18", "challenger": None}],
    "added_classes": ["owl"], "removed_classes": [], "renamed_classes": {"uhu": "owl"},
    "train_images": 900, "champion_train_images": 800, "note": "",
    "challenger_model": "0123", "run": "r", "created": "2026-01-01",
}  # fmt: skip


def make_manifest(kind: str, **changes: Any) -> bytes:
    """Return the bytes of a manifest with every field; `changes` replace fields of its `extra`, `...` removes one."""
    body = json.loads(Manifest(kind, "00", code_version="1", created="2026").to_json())
    version, created = body.pop("code_version"), body.pop("created")
    image, extra = KINDS[kind]
    extra = {key: value for key, value in (extra | changes).items() if value is not ...}
    body |= ({"image": image} if image else {}) | {"extra": extra, "code_version": version, "created": created}
    return json.dumps(body, indent=1, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize("kind", KINDS)
def test_manifest_round_trips(kind: str) -> None:
    data = make_manifest(kind)
    assert parse_manifest(data, "here").to_json() == data


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_are_kept(kind: str) -> None:
    data = make_manifest(kind, later={"a": [1]})
    manifest = parse_manifest(data, "here")
    assert manifest.extra.other_fields == {"later": {"a": [1]}} and manifest.to_json() == data


def test_missing_fields_have_defaults() -> None:
    data = make_manifest("evaluation", seen=..., roc=..., throughput=..., intervals=..., slices=..., model_task=...)
    extra = EvaluationExtra.of(parse_manifest(data, "here"))
    assert (extra.seen.images, extra.slices, extra.model_task) == (0, [], "single")
    assert extra.roc is extra.throughput is None
    empty = EvaluationExtra.of(
        parse_manifest(make_manifest("evaluation", chance={}, curves={}, calibration={}), "here")
    )
    assert empty.chance is empty.curves is empty.calibration is None
    assert empty.to_dict()["chance"] == empty.to_dict()["curves"] == empty.to_dict()["calibration"] == {}
    assert TensorsExtra.of(Manifest("tensors", "00")).copies is None


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("raw", {"skipped": {"count": -1}}, "extra.skipped.count): expected a whole number that is not negative"),
        ("clean", {"by_class_and_split": {"train": [3]}}, "extra.by_class_and_split): expected an object of objects"),
        ("tensors", {"copies": {"rows": "8"}}, "extra.copies.rows): expected a whole number that is not negative"),
        ("model", {"recipe": "small"}, "extra.recipe): expected a list of texts, found 'small'"),
        ("model", {"seconds": True}, "extra.seconds): expected a number, found True"),
        ("model", {"start": {"model": "model/0"}}, "extra.start.weights_sha256): expected a text, found None"),
        ("evaluation", {"per_class": [{"class": "a"}]}, "extra.per_class[0].precision): expected a number, found None"),
        ("evaluation", {"chance": {"better": 1}}, "extra.chance.better): expected true or false, found 1"),
        ("evaluation", {"seen": []}, "extra.seen): expected an object, found []"),
    ],
)  # fmt: skip
def test_invalid_field_is_named(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_manifest(make_manifest(kind, **changes), "w/_manifest.json")
    assert str(caught.value).startswith(f"w/_manifest.json ({message}")


def test_shape_has_three_dimensions() -> None:
    with pytest.raises(UserError, match=r"here \(shape\): expected a list of 3 whole numbers, found \[8, 8\]"):
        ImageSpec.from_dict({"shape": [8, 8]}, "here")


def test_extra_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"the manifest 00 \(kind\): expected model, found 'raw'"):
        ModelExtra.of(Manifest("raw", "00", extra=RawExtra()))


def test_verdicts_and_promotions_round_trip() -> None:
    assert list(Verdict.from_dict(VERDICT, "here").to_dict().items()) == list(VERDICT.items())
    promotion = VERDICT | {"n": 2, "model": "model/1", "evaluation": "evaluation/1", "previous": "model/0"}
    for record in (promotion, promotion | {"rolled_back": ["model/2"]}, promotion | {"later": 1}):
        assert list(Promotion.from_dict(record, "here").to_dict().items()) == list(record.items())


def test_a_step_record_has_every_key() -> None:
    keys = ["uri", "fingerprint", "state", "metrics", "error", "inputs", "exit_code", "seconds"]
    assert list(StepRecord().to_dict()) == keys and StepRecord().state == "failed"
