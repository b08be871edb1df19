"""A whole evaluation of models with known weights: predictions, metrics, calibration, views, slices, and the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from chain import clean_photos, one_core, resized
from safetensors.torch import save
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)

from imagemill.components.dataset.index import read_rows
from imagemill.components.dataset.kinds import (
    ClassScores,
    EvaluationExtra,
    ModelExtra,
    NetworkExtra,
    ProbeFit,
    SliceScores,
)
from imagemill.components.dataset.labels import MULTI, SINGLE, merge_logits, translate_classes
from imagemill.components.dataset.manifest import Dataset, Manifest, commit, read_dataset
from imagemill.components.dataset.shards import publish_bytes, read_columns
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate.config import EvaluateConfig
from imagemill.components.evaluate.curves import roc_curve
from imagemill.components.evaluate.evaluate import _log_scores, evaluate
from imagemill.components.evaluate.inference import (
    InferenceRunner,
    InputBatch,
    find_stored_geometry,
    make_views,
    read_tensor_batches,
    read_test_batches,
)
from imagemill.components.evaluate.scores import align_classes, make_scorer
from imagemill.components.evaluate.slices import cut, parse_columns, score_slices
from imagemill.components.metrics.calibration import ece, fit_temperature
from imagemill.components.models.artifact import ModelSpec, Normalize, build_network, load_model
from imagemill.components.report import mistakes
from imagemill.components.report.page import Charts, Page, Section, render
from imagemill.components.report.scores import describe_scores, describe_slices, list_metrics
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import UserError

SIZE, STORED, SHORT = 32, 40, 44
NUMBERS = {"train": 12, "val": 4, "test": 48}


@dataclass(frozen=True)
class TrainedModel:
    """A clean dataset of two classes, its tensors with a margin, and a model of them with random weights."""

    workspace: Workspace
    clean: Dataset
    tensors: Dataset
    model: Dataset

    def evaluated(self, **options: Any) -> Dataset:
        values = {"workspace": self.workspace.uri, "model": self.model.uri, "clean": self.clean.uri, "device": "cpu"}
        config = EvaluateConfig.from_values(values | {"eval_batch_size": 20} | options)
        outcome = evaluate(config, Context("evaluate", self.workspace, "r", False))
        return read_dataset(outcome.uri, "evaluation")


def model_of(workspace: Workspace, clean: Dataset, tensors: Dataset, fingerprint: str, temperature: float) -> Dataset:
    """Random weights, with logits far enough apart that temperatures matter, and both classes predicted."""
    torch.manual_seed(1)
    image = tensors.manifest.image_spec.for_model()
    spec = ModelSpec("squeezenet1_1", tensors.manifest.classes, image, extra=NetworkExtra(temperature=temperature))
    network, uri = build_network(spec).eval(), workspace.dataset_uri("model", fingerprint)
    state = {name: value.contiguous().clone() for name, value in network.state_dict().items()}
    state["classifier.1.weight"] *= 400
    state["classifier.1.bias"] = torch.full((2,), 200.0)  # a ReLU follows
    network.load_state_dict(state)
    [batch] = read_test_batches(tensors, clean, spec.geometry, 100)
    with torch.inference_mode():
        logits = network(Normalize(image, torch.device("cpu"))(torch.from_numpy(batch.images.copy())))
        state["classifier.1.bias"][1] += (logits[:, 0] - logits[:, 1]).median()
    weights = publish_bytes(uri, save(state), "model-", ".safetensors")
    files = (weights, publish_bytes(uri, spec.to_json(), "model-", ".json"))
    manifest = Manifest(
        "model", fingerprint, (tensors.as_parent(uri),), {"flip": "false"}, classes=spec.classes, files=files,
        image=image, extra=ModelExtra(recipe=["recipe <small>: 3 epochs", "MixUp 0.2"], backbone="squeezenet1_1"),
    )  # fmt: skip
    return commit(uri, manifest)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedModel]:
    with one_core():
        workspace = Workspace.open(str(tmp_path_factory.mktemp("evaluation")))
        clean = clean_photos(workspace, numbers=NUMBERS)
        tensors = resized(workspace, clean, image_size=SIZE, resize_size=SHORT, store_size=STORED)
        yield TrainedModel(workspace, clean, tensors, model_of(workspace, clean, tensors, "00000000000000aa", 2.5))


def rows_of(dataset: Dataset) -> list[dict[str, Any]]:
    return [row for table in read_columns(dataset, "data", None) for row in table.to_pylist()]


def logits_of(
    trained: TrainedModel, tta: str = "none", split: str = "test"
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], list[str]]:
    """Logits [views, N, 2] without anything of evaluate's but its views, the labels and the ids."""
    network, spec = load_model(trained.model)
    batches = list(read_tensor_batches(trained.tensors, split, 100, tta == "five_crops"))
    assert len(batches) == 1
    with torch.inference_mode():
        images = Normalize(spec.image, torch.device("cpu"))(torch.from_numpy(batches[0].images))
        logits = torch.stack([network(view) for view in make_views(images, SIZE, tta)])
    return logits.double().numpy(), batches[0].labels.astype(np.int64), batches[0].ids


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(p / p.sum(-1, keepdims=True))


def test_predictions_and_metrics_equal_those_of_the_calibrated_logits(trained: TrainedModel) -> None:
    evaluation = trained.evaluated()
    (logits,), labels, ids = logits_of(trained)
    raw, p = softmax(logits), softmax(logits / 2.5)
    rows = rows_of(evaluation)
    assert [row["image_id"] for row in rows] == ids and len(ids) == NUMBERS["test"]
    assert [row["predicted_id"] for row in rows] == p.argmax(1).tolist() and len(set(p.argmax(1))) == 2
    of_label = p[np.arange(len(p)), labels]
    for name, values in (("confidence", p.max(1)), ("label_probability", of_label), ("loss", -np.log(of_label))):
        np.testing.assert_allclose([row[name] for row in rows], values, rtol=2e-4)
    assert [row["top_ids"] for row in rows] == np.argsort(-p, axis=1).tolist()
    np.testing.assert_allclose([row["top_probabilities"] for row in rows], -np.sort(-p, axis=1), rtol=2e-4)
    metrics, right = evaluation.manifest.extra.metrics, p.argmax(1) == labels
    expected = {
        "top1": right.mean(),
        "balanced_accuracy": balanced_accuracy_score(labels, p.argmax(1)),
        "nll": log_loss(labels, p),
        "loss": log_loss(labels, raw),
        "brier": 2 * brier_score_loss(labels, p[:, 1]),
        "ece": ece(p.max(1), right),
        "ece_uncalibrated": ece(raw.max(1), right),
        "pr_auc": np.mean([average_precision_score(labels == c, p[:, c]) for c in range(2)]),
        "roc_auc": roc_auc_score(labels, p[:, 1]),
    }
    assert metrics == {name: pytest.approx(value, abs=3e-3) for name, value in expected.items()} | {
        "macro_f1": metrics["macro_f1"]
    }
    assert abs(metrics["nll"] - metrics["loss"]) > 0.05, "else the temperature shows nothing"
    assert evaluation.manifest.extra.calibration.temperature == 2.5


def test_evaluation_records_intervals_throughput_and_roc_curve(trained: TrainedModel) -> None:
    evaluation = trained.evaluated()
    extra = evaluation.manifest.extra
    for low, high in extra.intervals.values():
        assert 0 <= low < high <= 1
    assert extra.intervals["top1"][0] <= extra.metrics["top1"] <= extra.intervals["top1"][1]
    assert extra.too_narrow == 0
    speed = extra.throughput
    assert speed.network > 0 and speed.network == speed.network_one_view and "CPU" in speed.device
    fpr, tpr, threshold = roc_curve(evaluation.uri) or ([], [], [])
    assert fpr[0] == tpr[0] == 0 and fpr[-1] == tpr[-1] == 1 and threshold == sorted(threshold, reverse=True)
    assert evaluation.manifest.config["tta"] == "none"


def test_classes_without_test_images_and_with_too_few_are_named(
    trained: TrainedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluation = trained.evaluated()
    per_class = [
        *evaluation.manifest.extra.per_class,
        *(ClassScores(name=f"class {n}", precision=0, recall=0, f1=0, support=0) for n in range(7)),
    ]
    extra = replace(evaluation.manifest.extra, per_class=per_class, too_narrow=2)
    context = Context("evaluate", trained.workspace, "r", False)
    _log_scores(replace(evaluation, manifest=replace(evaluation.manifest, extra=extra)), "the challenger", context)
    stderr = capfd.readouterr().err
    assert "warning: 7 of 9 classes have no test image, and no part in macro-F1: class 0, class 1, class 2" in stderr
    assert "class 4 and 2 more\n" in stderr
    assert "macro-F1's interval is too narrow: 2 classes have fewer than 10 test images" in stderr
    _log_scores(evaluation, "the challenger", context)
    assert "have no test image" not in (stderr := capfd.readouterr().err) and "too narrow" not in stderr


def test_model_no_better_than_chance_is_reported(
    trained: TrainedModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = trained.evaluated().manifest.extra.chance
    assert chance.better and chance.majority_class == "cat" and not chance.why
    assert chance.limits["top1"] == 0.5 and 0.5 < chance.limits["balanced_accuracy"] < 0.646
    assert "chance" not in capfd.readouterr().err

    class Blind(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)

    spec = load_model(trained.model)[1]
    monkeypatch.setattr("imagemill.components.models.artifact.load_model", lambda _: (Blind(), spec))
    extra = trained.evaluated(review="false").manifest.extra
    reason = "no better than chance, as far as 48 test images can tell: top-1 is 0.500, and naming "
    reason += "'cat' every time has 0.500; balanced accuracy is 0.500, and guesses may have up to 0.500"
    assert extra.chance.better is False and extra.chance.why == reason
    assert f"[evaluate] warning: {reason}\n" in capfd.readouterr().err


@pytest.mark.parametrize(("tta", "num_views"), [("flip", 2), ("five_crops", 5)])
def test_views_are_averaged_as_probabilities(
    trained: TrainedModel, tta: str, num_views: int, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = trained.evaluated(tta=tta)
    logits, labels, _ = logits_of(trained, tta)
    assert len(logits) == num_views
    val_logits, val_labels, _ = logits_of(trained, tta, "val")
    temperature = fit_temperature(np.log(softmax(val_logits).mean(0)).astype(np.float32), val_labels)
    fitted = evaluation.manifest.extra.calibration.temperature
    assert fitted == pytest.approx(temperature, rel=1e-3) and temperature != 2.5
    p = softmax(np.log(softmax(logits).mean(0)) / temperature)
    rows = rows_of(evaluation)
    np.testing.assert_allclose([row["confidence"] for row in rows], p.max(1), rtol=2e-4)
    assert evaluation.manifest.extra.metrics["loss"] == pytest.approx(
        log_loss(labels, softmax(logits).mean(0)), rel=1e-3
    )
    assert evaluation.uri != trained.evaluated().uri and evaluation.manifest.extra.throughput.tta == tta
    stderr = capsys.readouterr().err
    assert f"without tta {tta}, which costs" in stderr
    assert ("trained without mirrored images" in stderr) == (tta == "flip")


def test_a_temperature_of_views_that_cannot_be_fitted_is_that_of_the_model(
    trained: TrainedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head that was fitted to the validation images as well would be thought too sure of itself."""
    extra = replace(trained.model.manifest.extra, probe=ProbeFit(1.0, NUMBERS["train"] + NUMBERS["val"], 0.9))
    fitted = replace(trained.model, manifest=replace(trained.model.manifest, extra=extra))
    network, spec = load_model(trained.model)
    runner = InferenceRunner(network, spec, torch.device("cpu"), "flip")
    assert "fitted to the validation images" in runner.fit_temperature(fitted, 20) and runner.temperature == 2.5
    monkeypatch.setattr(Dataset, "missing", lambda dataset: ["x"] if "/tensors/" in dataset.uri else [])
    evaluation = trained.evaluated(tta="flip", slices="none")
    assert evaluation.manifest.extra.calibration.temperature == 2.5
    words = "probabilities with tta flip are calibrated for one view: the tensors with its validation images are"
    assert words in capsys.readouterr().err


def test_five_crops_from_clean_equal_those_from_tensors(trained: TrainedModel, tmp_path: Path) -> None:
    from_tensors = [
        batch.images for batch in read_test_batches(trained.tensors, trained.clean, stored_around(trained), 100, True)
    ]
    from_clean = [batch.images for batch in read_test_batches(None, trained.clean, stored_around(trained), 100, True)]
    assert from_tensors[0].shape == (NUMBERS["test"], STORED, STORED, 3) and np.array_equal(
        from_tensors[0], from_clean[0]
    )


def stored_around(trained: TrainedModel) -> Any:
    _, spec = load_model(trained.model)
    return find_stored_geometry(trained.model, spec.geometry)


def test_top5_needs_more_than_five_classes() -> None:
    random, names = np.random.default_rng(0), tuple("abcdefgh")
    logits, labels = random.normal(size=(90, 8)), random.integers(0, 8, 90)
    score = make_scorer(SINGLE, SINGLE, align_classes(names, names))
    rows = score.add(torch.from_numpy(logits), batch_of(labels))
    assert score.compute_metrics()["top5"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5))
    assert [row["top_ids"] for row in rows] == np.argsort(-logits, axis=1)[:, :5].tolist()
    few = make_scorer(SINGLE, SINGLE, align_classes(names, names[:5]))
    few.add(torch.from_numpy(logits[:, :5]), batch_of(labels))
    assert "top5" not in few.compute_metrics() and few.compute_metrics()["loss"] > 0


def batch_of(labels: npt.NDArray[Any]) -> InputBatch:
    return InputBatch(np.zeros((len(labels), 1, 1, 3), np.uint8), labels, [f"{n}" for n in range(len(labels))])


def test_class_unknown_to_the_model_has_no_loss_and_counts_as_wrong() -> None:
    score = make_scorer(SINGLE, SINGLE, align_classes(("a", "new"), ("a", "b")))
    known_row, unknown_row = score.add(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), batch_of(np.array([0, 1])))
    p = 1 / (1 + np.exp(-2.0))
    assert (
        known_row["loss"] == pytest.approx(-np.log(p))
        and unknown_row["loss"] is None
        and unknown_row["label_probability"] is None
    )
    metrics = score.compute_metrics()
    assert (metrics["loss"], metrics["top1"]) == (pytest.approx(-np.log(p)), 0.5)
    assert metrics["brier"] == pytest.approx((2 * (1 - p) ** 2 + p**2 + (1 - p) ** 2 + 1) / 2)
    assert metrics["ece"] == pytest.approx(abs(p - 0.5))


def test_predictions_of_a_model_are_scored_under_todays_names() -> None:
    """Of classes that are one now the probabilities add up, after the temperature too."""
    names, columns = translate_classes(("ant", "cat", "bee"), {"ant": "insect", "bee": "insect", "cat": "feline"})
    assert (names, columns.tolist()) == (("insect", "feline"), [0, 1, 0])
    p = np.array([[0.4, 0.5, 0.1], [0.3, 0.5, 0.2], [0.1, 0.8, 0.1]])
    logits = [merge_logits(torch.from_numpy(np.log(p) * t), columns, SINGLE) for t in (2.0, 1.0)]
    score = make_scorer(SINGLE, SINGLE, align_classes(("new", "feline", "insect"), names))
    rows = score.add(logits[0], batch_of(np.array([1, 2, 2])), logits[1])
    assert [row["label_probability"] for row in rows] == pytest.approx([0.5, 0.5, 0.2])
    assert rows[2]["predicted_id"] == 1 and rows[2]["confidence"] == pytest.approx(0.8)
    assert [row["loss"] for row in rows] == pytest.approx(-np.log([0.5, 0.5, 0.2]))
    same = torch.randn(2, 3)
    assert merge_logits(same, translate_classes(("a", "b", "c"), {"b": "z"})[1], SINGLE) is same
    multi = merge_logits(torch.tensor([[1.0, -3.0, 2.0]]), columns, MULTI)
    assert multi.tolist() == [[2.0, -3.0]]


# Slices.


def columns_of(trained: TrainedModel, *names: str) -> dict[str, dict[str, Any]]:
    """Read columns of the clean test images by image id."""
    tables = read_rows(trained.clean, ["image_id", *names], "test")
    return {row["image_id"]: row for table in tables for row in table.to_pylist()}


def test_slices_by_number_and_text_have_counts_and_scores(trained: TrainedModel) -> None:
    evaluation = trained.evaluated(slices="label, size,brightness")
    columns = columns_of(trained, "label", "width", "height")
    rows, slices = rows_of(evaluation), evaluation.manifest.extra.slices
    for row in rows:
        row |= columns[row["image_id"]]
    by_label = [slice_score for slice_score in slices if slice_score.column == "label"]
    assert sorted(slice_score.slice for slice_score in by_label) == ["cat", "dog"]
    for slice_score in by_label:
        right = [row["label_id"] == row["predicted_id"] for row in rows if row["label"] == slice_score.slice]
        assert (slice_score.images, slice_score.top1) == (len(right), pytest.approx(np.mean(right), abs=1e-6))
        assert slice_score.low <= slice_score.top1 <= slice_score.high
        assert slice_score.below == (slice_score.high < evaluation.manifest.extra.metrics["top1"])
    sizes = sorted(max(row["width"], row["height"]) for row in rows)
    by_size = [slice_score for slice_score in slices if slice_score.column == "size"]
    edges = np.quantile(sizes, [0.25, 0.5, 0.75], method="lower")
    expected = np.bincount(np.searchsorted(edges, sizes, side="left"), minlength=4)
    assert [slice_score.images for slice_score in by_size] == expected.tolist() and len(by_size) == 4
    assert by_size[0].slice == f"up to {edges[0]:g}" and by_size[3].slice == f"above {edges[2]:g}"
    assert not [slice_score for slice_score in slices if slice_score.column == "brightness"], (
        "all of them are equally bright here"
    )


def test_slice_whose_interval_is_below_the_overall_score_is_marked(trained: TrainedModel) -> None:
    def score(top1: float) -> dict[str, SliceScores]:
        slices = score_slices(trained.evaluated(), trained.clean, ("label", "width"), SINGLE, 2, top1)
        return {slice_score.slice: slice_score for slice_score in slices if slice_score.column == "label"}

    highs = {name: slice_score.high for name, slice_score in score(0.5).items()}
    worse, better = sorted(highs, key=highs.__getitem__)
    below = score((highs[worse] + highs[better]) / 2)
    assert below[worse].below and not below[better].below


def test_unknown_slice_columns_are_rejected(trained: TrainedModel) -> None:
    assert parse_columns("auto", trained.clean) == ("size", "brightness", "sharpness")
    assert parse_columns("none", trained.clean) == parse_columns("", trained.clean) == ()
    assert parse_columns("width, label,width", trained.clean) == ("width", "label")
    for column in ("brigthness", "image", "thumbnail"):
        with pytest.raises(UserError, match=f"^slices: expected some of size, image_id, label.* found '{column}'"):
            trained.evaluated(slices=f"size,{column}")


def test_cutting() -> None:
    numbers = pa.chunked_array([[0.0, 1.0, 1.1, 2.5], [3.0, None]])
    codes, names = cut(numbers)
    assert names == ["up to 1", "1 to 1.1", "1.1 to 2.5", "above 2.5", "(unknown)"]
    assert codes.tolist() == [0, 0, 1, 2, 3, 4]
    codes, names = cut(pa.chunked_array([["a", "b", "b", None, *(f"c{n:02}" for n in range(20))]]))
    assert names[:2] == ["b", "a"] and names[-2:] == ["(others)", "(unknown)"] and len(names) == 22
    assert codes.tolist() == [1, 0, 0, 21, *range(2, 20), 20, 20]
    assert cut(pa.chunked_array([[7, 7]]))[1] == ["all", "(unknown)"]


# The report.


@pytest.fixture(scope="module")
def page(trained: TrainedModel) -> str:
    evaluation = trained.evaluated(slices="size,label")
    extra = EvaluationExtra.of(evaluation.manifest)
    blocks = [*describe_scores(extra), *describe_slices(extra), *mistakes.describe_test_split(evaluation)]
    blocks += mistakes.describe_mistakes(evaluation, trained.clean)
    return render(Page("tiny", "Run r", [Section("all", "All", blocks)]))


def test_page_shows_scores_and_intervals_of_the_evaluation(page: str, trained: TrainedModel) -> None:
    extra = trained.evaluated(slices="size,label").manifest.extra
    low, high = extra.intervals["macro_f1"]
    for text in (f"{low:.3f} to {high:.3f}", "Balanced accuracy", "temperature of 2.500", "Precision and recall",
                  "<h3>ROC</h3>", "Each class", "Highest losses", "significantly below", "data:image/jpeg",
                  "images/s in all", f"{extra.calibration.temperature:.3f}"):  # fmt: skip
        assert text in page, text
    assert page.count("<svg") == page.count("</svg>") == 4  # confusion, reliability, two of thresholds
    for slice_score in extra.slices:
        assert f'style="width:{100 * slice_score.top1:.2f}%"' in page


def test_highest_losses_leave_out_images_that_are_shown_already(trained: TrainedModel) -> None:
    evaluation = trained.evaluated()
    rows = sorted(rows_of(evaluation), key=lambda row: -row["loss"])
    shown_ids = {rows[0]["image_id"], rows[2]["image_id"]}
    losses = mistakes.find_highest_losses(evaluation, shown_ids)
    assert [m.image_id for m in losses[:4]] == [rows[n]["image_id"] for n in (1, 3, 4, 5)]
    assert losses[0].note == f"loss {rows[1]['loss']:.2f}"


def test_evaluation_of_an_earlier_release_is_shown_without_new_sections(trained: TrainedModel) -> None:
    evaluation = trained.evaluated()
    body = evaluation.manifest.extra.to_dict()
    old = {key: body[key] for key in ("dataset_name", "model_classes")}
    old |= {"metrics": {"top1": 0.5, "macro_f1": 0.4, "loss": 1.0}}
    old |= {"per_class": [{k: v for k, v in c.items() if "auc" not in k} for c in body["per_class"]]}
    old = EvaluationExtra.from_dict(old, "here")
    blocks = describe_scores(old)
    assert not [block for block in blocks if isinstance(block, Charts)] and describe_slices(old) == []
    assert [row[0] for row in list_metrics(old)] == ["Top-1", "Macro-F1"]
