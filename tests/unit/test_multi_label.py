"""Multi-label datasets after clean: tensors, batches, training, evaluation against every kind of champion, the gate
and the report."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import photos
import pyarrow as pa
import pytest
import torch
from chain import one_core, resized
from placed import place
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, precision_recall_fscore_support
from test_multi_label_numbers import mean_loss

from imagemill.components.clean.config import CleanConfig
from imagemill.components.clean.schema import make_clean_layout
from imagemill.components.dataset import index
from imagemill.components.dataset.index import RAW_INDEX, make_clean_index
from imagemill.components.dataset.kinds import CleanExtra, CleanImage, EvaluationExtra, RawExtra
from imagemill.components.dataset.labels import MULTI, SINGLE
from imagemill.components.dataset.manifest import Dataset, Manifest, Totals, commit, read_dataset
from imagemill.components.dataset.shards import Layout, ShardWriter, read_columns
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.download.rows import RAW
from imagemill.components.evaluate.config import EvaluateConfig
from imagemill.components.evaluate.curves import confusion_matrix
from imagemill.components.evaluate.evaluate import evaluate
from imagemill.components.evaluate.inference import InputBatch
from imagemill.components.evaluate.scores import align_classes, make_scorer
from imagemill.components.metrics.calibration import ece
from imagemill.components.models.artifact import Normalize, load_model
from imagemill.components.promote.config import PromoteConfig
from imagemill.components.promote.gate import read_score
from imagemill.components.promote.promote import promote
from imagemill.components.report.mistakes import LabelErrors, find_label_mistakes
from imagemill.components.report.pictures import GALLERY_PER_CLASS, sample_classes
from imagemill.components.step.step import Context
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.data.loader import iter_batches
from imagemill.components.train.train import train
from imagemill.pipelines.kfp.results import describe_curves

CLASSES = ("<b>blue</b>", "green", "red")
COLORS = ((30, 60, 220), (40, 200, 60), (220, 40, 30))
NUMBERS = {"train": 80, "val": 12, "test": 20}


# Datasets: a clean one written here, and those that the steps write from it.


def make_label_ids(number: int, task: str) -> list[int]:
    """Return ids by bits of the number: blue, red, both, or green without them. Single-label: the first one."""
    ids = [c for c, is_present in ((0, number & 1), (2, number & 2)) if is_present] or [1]
    return ids if task == MULTI else ids[:1]


def encode_picture(number: int, ids: list[int]) -> bytes:
    """Return a PNG of noise with a bar of each label's color at that class's place."""
    pixels = np.random.default_rng(number).normal(128, 20, (36, 36, 3)).clip(0, 255).astype(np.uint8)
    for c in ids:
        pixels[:, 12 * c + 1 : 12 * c + 11] = COLORS[c]
    return photos.saved(pixels)


def make_clean(
    workspace: Workspace, fingerprint: str, task: str = MULTI, one_hot: bool = False, classes: tuple[str, ...] = CLASSES
) -> Dataset:
    raw_uri, uri = workspace.dataset_uri("raw", fingerprint), workspace.dataset_uri("clean", fingerprint)
    extra = RawExtra(source="here", dataset_name="shapes")
    raw = commit(raw_uri, Manifest("raw", fingerprint, extra=extra, **place(raw_uri, [], Layout(RAW), RAW_INDEX)))
    records: list[dict[str, Any]] = []
    counted: dict[str, dict[str, int]] = {}
    first = 0
    for split, rows in NUMBERS.items():
        counted[split] = dict.fromkeys(classes, 0)
        for number in range(first, first + rows):
            ids = make_label_ids(number, task)
            for c in ids:
                counted[split][classes[c]] += 1
            row: dict[str, Any] = {"image_id": f"{number:03d}.png", "split": split, "declared_split": split}
            row |= {"label": "|".join(classes[c] for c in ids), "shuffle_index": 1000 * number, "split_position": 0.5}
            row |= {"label_ids": ids} if task == MULTI else {"label_id": ids[0]}
            row |= {"label_one_hot": [int(c in ids) for c in range(3)]} if one_hot else {}
            records.append(row | {"image": {"bytes": encode_picture(number, ids), "path": ""}, "source_row": number})
        first += rows
    layout = replace(make_clean_layout(), row_group_rows=16)
    placed = place(uri, records, layout, make_clean_index(task, one_hot))
    by_class = {c: sum(counted[split][c] for split in NUMBERS) for c in classes}
    totals = Totals(rows=sum(NUMBERS.values()), bytes=1, by_split=NUMBERS, by_class=by_class)
    return commit(
        uri,
        Manifest(
            "clean", fingerprint, (raw.as_parent(uri),), task=task, classes=classes, totals=totals, **placed,
            config=CleanConfig().manifest_values(),
            image=CleanImage("rgb", 3), extra=CleanExtra(dataset_name="shapes", by_class_and_split=counted),
        ),
    )  # fmt: skip


def make_tensors(clean: Dataset, workspace: Workspace) -> Dataset:
    return resized(workspace, clean, image_size=32, resize_mode="squash")


def make_model(tensors: Dataset, workspace: Workspace, epochs: int = 1, **options: Any) -> Dataset:
    options = {"backbone": "shufflenet_v2_x0_5", "batch_size": 8, "learning_rate": 0.005, "crop_scale": 1} | options
    options = {"recipe": "plain"} | options
    config = TrainConfig(workspace=workspace.uri, tensors=tensors.uri, epochs=epochs, flip="false", **options)
    return read_dataset(train(config, Context("train", workspace, "r", False)).uri, "model")


def make_evaluation(model: Dataset, clean: Dataset, workspace: Workspace, name: str = "") -> tuple[Dataset, str]:
    """Return the evaluation and the URI of the champion's."""
    config = EvaluateConfig(workspace=workspace.uri, model=model.uri, clean=clean.uri, name=name)
    outcome = evaluate(config, Context("evaluate", workspace, "r", False))
    return read_dataset(outcome.uri, "evaluation"), outcome.metrics["champion_evaluation"]


@dataclass(frozen=True)
class Chain:
    """Datasets of one workspace, each made from the one before."""

    workspace: Workspace
    clean: Dataset
    tensors: Dataset
    model: Dataset

    @classmethod
    def of(cls, workspace: Workspace, fingerprint: str, task: str, epochs: int = 1, **options: Any) -> Chain:
        clean = make_clean(workspace, fingerprint, task, **options)
        tensors = make_tensors(clean, workspace)
        return cls(workspace, clean, tensors, make_model(tensors, workspace, epochs))


def read_rows(dataset: Dataset, *names: str, split: str | None = None) -> list[dict[str, Any]]:
    tables = (
        index.read_rows(dataset, list(names), split)
        if dataset.manifest.parts
        else (read_columns(dataset, "data", list(names)))
    )
    return [row for table in tables for row in table.to_pylist()]


@pytest.fixture(scope="module", autouse=True)
def single_core() -> Iterator[None]:
    with one_core():
        yield


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(str(tmp_path_factory.mktemp("several")))


@pytest.fixture(scope="module")
def multi(workspace: Workspace) -> Chain:
    return Chain.of(workspace, "000000000000000a", MULTI, epochs=8, one_hot=True)


@pytest.fixture(scope="module")
def single(workspace: Workspace) -> Chain:
    return Chain.of(workspace, "000000000000000b", SINGLE, one_hot=True)


@pytest.fixture(scope="module")
def weak(multi: Chain) -> Chain:
    """Another model on the same tensors, which learned little."""
    return replace(multi, model=make_model(multi.tensors, multi.workspace, seed=1))


@pytest.fixture(scope="module")
def evaluation(multi: Chain) -> Dataset:
    return make_evaluation(multi.model, multi.clean, multi.workspace)[0]


def test_tensors_hold_lists_of_ids_and_the_task(multi: Chain, single: Chain) -> None:
    assert multi.tensors.manifest.task == MULTI and single.tensors.manifest.task == SINGLE
    for chain, column, task in ((multi, "label_ids", MULTI), (single, "label_id", SINGLE)):
        table = index.read_index(chain.tensors, None, "val")
        assert table.schema.field(column).type == (pa.list_(pa.int32()) if task == MULTI else pa.int32())
        for split, number in NUMBERS.items():
            rows = read_rows(chain.tensors, column, "image_id", split=split)
            assert len(rows) == number
            for row in rows:
                ids = make_label_ids(int(row["image_id"][:3]), task)
                assert row[column] == (ids if task == MULTI else ids[0])


def test_batches_equal_single_label_batches_except_for_labels(multi: Chain, single: Chain) -> None:
    def ids(images: npt.NDArray[np.uint8]) -> list[bytes]:
        return [image[:, 11:13].tobytes() for image in images]  # noise between the bars, which tells the picture

    for epoch in (-1, 0, 1):
        multi_batches, single_batches = (
            list(iter_batches(chain.tensors, "train", 7, 3, epoch)) for chain in (multi, single)
        )
        assert [b.number for b in multi_batches] == [b.number for b in single_batches] and len(multi_batches) == 12
        for multi_batch, single_batch in zip(multi_batches, single_batches, strict=True):
            assert multi_batch.labels.shape == (len(single_batch.labels), 3) and multi_batch.labels.dtype == np.uint8
            assert single_batch.labels.dtype == np.int64 and single_batch.labels.shape == (len(single_batch.images),)
            first = multi_batch.labels.argmax(1)
            np.testing.assert_array_equal(first, single_batch.labels)
            np.testing.assert_array_equal(multi_batch.one_hot(3), multi_batch.labels)
            np.testing.assert_array_equal(single_batch.one_hot(3), np.eye(3)[single_batch.labels])
            assert multi_batch.one_hot(3).dtype == single_batch.one_hot(3).dtype == np.float32
            blue, red = (multi_batch.images[:, 16, x, :].astype(int) for x in (5, 27))
            np.testing.assert_array_equal(multi_batch.labels[:, 0], np.abs(blue - COLORS[0]).max(1) < 9)
            np.testing.assert_array_equal(multi_batch.labels[:, 2], np.abs(red - COLORS[2]).max(1) < 9)


def compute_logits(model: Dataset, images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """The logits of a stored model on stored pixels, in one batch."""
    network, spec = load_model(model)
    with torch.inference_mode():
        return network(Normalize(spec.image, torch.device("cpu"))(torch.from_numpy(images.copy())))


def test_model_learns_both_labels(multi: Chain) -> None:
    extra = multi.model.manifest.extra
    assert multi.model.manifest.task == MULTI and extra.metrics["macro_f1"] > 0.8
    assert extra.history[-1]["train_loss"] < 0.6 * extra.history[0]["train_loss"]
    best = max(extra.history, key=lambda row: (row["val_macro_f1"], -row["val_loss"]))
    assert best["epoch"] == extra.best_epoch


@pytest.mark.parametrize("fixture", ["multi", "weak"])
def test_validation_metrics_match_scikit_learn(fixture: str, request: pytest.FixtureRequest) -> None:
    chain: Chain = request.getfixturevalue(fixture)
    [batch] = list(iter_batches(chain.tensors, "val", 100))
    logits = compute_logits(chain.model, batch.images)
    predicted, metrics = (logits.sigmoid() >= 0.5).numpy(), chain.model.manifest.extra.metrics
    macro = f1_score(batch.labels, predicted, average="macro", zero_division=0)
    assert metrics["macro_f1"] == pytest.approx(macro)
    top = batch.labels[np.arange(len(predicted)), logits.argmax(1).numpy()].mean()
    assert metrics["top1"] == pytest.approx(top)
    assert metrics["loss"] == pytest.approx(mean_loss(logits, torch.from_numpy(batch.labels)).item(), rel=1e-5)


# Evaluation.


def test_predictions_and_metrics_follow_from_the_models_probabilities(multi: Chain, evaluation: Dataset) -> None:
    assert evaluation.manifest.task == evaluation.manifest.extra.model_task == MULTI
    [batch] = list(iter_batches(multi.tensors, "test", 100))
    logits = compute_logits(multi.model, batch.images)
    temperature = load_model(multi.model)[1].extra.temperature
    p = (logits / temperature).sigmoid().numpy()
    rows = read_rows(evaluation, *make_scorer(MULTI, MULTI, align_classes(CLASSES, CLASSES)).SCHEMA.names)
    assert len(rows) == NUMBERS["test"]
    for n, row in enumerate(rows):
        assert row["label_ids"] == make_label_ids(int(row["image_id"][:3]), MULTI)
        assert row["predicted_ids"] == np.flatnonzero(p[n] >= 0.5).tolist()
        np.testing.assert_allclose(row["probabilities"], p[n][p[n] >= 0.5], rtol=1e-5)
        assert row["top_id"] == p[n].argmax() and row["confidence"] == pytest.approx(p[n].max(), rel=1e-5)
    metrics, predicted = evaluation.manifest.extra.metrics, p >= 0.5
    assert metrics["macro_f1"] == pytest.approx(f1_score(batch.labels, predicted, average="macro", zero_division=0))
    assert metrics["micro_f1"] == pytest.approx(f1_score(batch.labels, predicted, average="micro", zero_division=0))
    assert metrics["subset_accuracy"] == pytest.approx(accuracy_score(batch.labels, predicted))
    assert metrics["top1"] == pytest.approx(batch.labels[np.arange(len(p)), p.argmax(1)].mean())
    for name, by in (("loss", 1.0), ("nll", temperature)):
        expected_loss = mean_loss(logits / by, torch.from_numpy(batch.labels)).item()
        assert metrics[name] == pytest.approx(expected_loss, rel=1e-5)
    losses = [mean_loss((logits / temperature)[n : n + 1], torch.from_numpy(batch.labels[n : n + 1])).item()
              for n in range(len(p))]  # fmt: skip
    np.testing.assert_allclose([row["loss"] for row in rows], losses, rtol=1e-4)
    assert metrics["pr_auc"] == pytest.approx(average_precision_score(batch.labels, p, average="macro"), abs=3e-3)
    assert metrics["micro_pr_auc"] == pytest.approx(average_precision_score(batch.labels, p, average="micro"), abs=3e-3)
    assert metrics["brier"] == pytest.approx(((p - batch.labels) ** 2).mean(), rel=1e-4)
    assert metrics["ece"] == pytest.approx(ece(p, batch.labels), abs=1e-4)
    expected = precision_recall_fscore_support(batch.labels, predicted, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([getattr(c, name) for c in evaluation.manifest.extra.per_class], values, atol=1e-6)


def make_batch(labels: npt.NDArray[Any]) -> InputBatch:
    return InputBatch(np.zeros((len(labels), 1, 1, 3), np.uint8), labels, [f"{n}" for n in range(len(labels))])


def test_classes_of_another_model_are_matched_by_name() -> None:
    """Ours are ant and bee; the model knows bee and an old one, of which no image can have a label."""
    score = make_scorer(MULTI, MULTI, align_classes(("ant", "bee"), ("bee", "old")))
    logits = torch.tensor([[0.0, -2.0], [-0.01, 4.0]])  # of bee 0.5 and a little less
    first, second = score.add(logits, make_batch(np.array([[1, 1], [1, 0]], np.uint8)))
    assert (first["label_ids"], first["predicted_ids"], first["top_id"]) == ([0, 1], [1], 1)
    assert (second["label_ids"], second["predicted_ids"], second["top_id"]) == ([0], [2], 2)
    metrics = score.compute_metrics(score.classifier_scores.compute_curves())
    assert metrics["loss"] == pytest.approx(mean_loss(logits, torch.tensor([[1, 0], [0, 0]])).item()), "ant has none"
    assert (metrics["top1"], metrics["subset_accuracy"]) == (0.5, 0.0)
    assert metrics["macro_f1"] == pytest.approx(f1_score([[1, 1], [1, 0]], [[0, 1], [0, 0]], average="macro"))
    assert score.per_class()["support"].tolist() == [2, 1, 0]


def test_single_label_model_predicts_one_label_on_multi_label_images() -> None:
    score = make_scorer(MULTI, SINGLE, align_classes(("a", "b", "c"), ("c", "a")))
    logits = torch.tensor([[1.0, 3.0], [0.4, 0.3]])
    first, second = score.add(logits, make_batch(np.array([[1, 1, 0], [0, 1, 0]], np.uint8)))
    assert (first["predicted_ids"], second["predicted_ids"], second["top_id"]) == ([0], [2], 2)
    assert first["probabilities"] == [pytest.approx(logits.softmax(1)[0, 1].item())]
    metrics = score.compute_metrics(score.classifier_scores.compute_curves())
    assert "loss" not in metrics and metrics["top1"] == 0.5


def test_multi_label_model_predicts_its_highest_score_on_single_label_images() -> None:
    score = make_scorer(SINGLE, MULTI, align_classes(("a", "b"), ("b", "a")))
    first, second = score.add(torch.tensor([[-3.0, -2.0], [2.0, 1.0]]), make_batch(np.array([0, 0])))
    assert (first["predicted_id"], second["predicted_id"]) == (0, 1)
    assert first["confidence"] == pytest.approx(1 / (1 + np.exp(2.0)))
    expected = {"top1": 0.5, "macro_f1": pytest.approx(1 / 1.5), "balanced_accuracy": 0.5, "pr_auc": 1.0}
    metrics = score.compute_metrics(score.classifier_scores.compute_curves())
    assert metrics == expected, "a model of other targets has no loss and no calibration"


def test_multi_label_has_no_confusion_matrix_in_kfp(multi: Chain, single: Chain, evaluation: Dataset) -> None:
    assert confusion_matrix(evaluation.uri) is None and describe_curves(evaluation.uri) == {}
    for chain in (multi, single):
        made, _ = make_evaluation(chain.model, chain.clean, chain.workspace, "k")
        assert ("confusionMatrix" in describe_curves(made.uri)) is (chain is single)


# The gate and the report.


def promote_and_report(chain: Chain, name: str, policy: str = "unless-worse") -> tuple[dict[str, Any], str]:
    """Evaluate and promote under a name; return the gate's metrics and the report's HTML."""
    evaluation, champion = make_evaluation(chain.model, chain.clean, chain.workspace, name)
    config = PromoteConfig(
        workspace=chain.workspace.uri, evaluation=evaluation.uri, champion_evaluation=champion, name=name, min_gain=0,
        promote=policy,
    )  # fmt: skip
    metrics = promote(config, Context("promote", chain.workspace, f"run-{chain.clean.fingerprint}", False)).metrics
    return metrics, Path(metrics["report"]).read_text()


@pytest.mark.parametrize("order", [(SINGLE, MULTI), (MULTI, SINGLE)])
def test_champion_of_the_other_task_is_not_replaced(multi: Chain, single: Chain, order: tuple[str, str]) -> None:
    name = f"first-{order[0]}"
    champion, challenger = (multi if task == MULTI else single for task in order)
    assert promote_and_report(champion, name, "always")[0]["promoted"]
    metrics, page = promote_and_report(challenger, name)
    assert (metrics["verdict"], metrics["promoted"]) == ("not_comparable", False)
    assert f"this model is {order[1]}-label, the champion {order[0]}-label" in metrics["reason"]
    assert "one label, the other several: they can&#39;t be compared" in page


def test_multi_label_report_shows_labels_instead_of_a_confusion_matrix(multi: Chain, weak: Chain) -> None:
    evaluation, _ = make_evaluation(weak.model, weak.clean, weak.workspace)
    rows = read_rows(evaluation, "image_id", "label_ids", "predicted_ids")
    wrong = {row["image_id"]: set(row["label_ids"]) ^ set(row["predicted_ids"]) for row in rows}
    _, page = promote_and_report(weak, "weak", "always")
    right = sum(not ids for ids in wrong.values())
    assert right < NUMBERS["test"], "else this test shows nothing"
    assert f"{right} of 20 test images have every label right" in page and "Rows are the true classes" not in page
    assert CLASSES[0] not in page and "&lt;b&gt;blue&lt;/b&gt;" in page
    assert "Worst mistakes" in page and re.search(r"\d labels? wrong</bdi>", page)
    _, page = promote_and_report(multi, "weak")
    assert "Against the champion" in page and "F1 of the champion" in page


def test_gate_judges_several_labels_by_the_mean_recall_of_classes(evaluation: Dataset) -> None:
    extra = EvaluationExtra.of(evaluation.manifest)
    assert "balanced_accuracy" not in extra.metrics
    expected = np.mean([scores.recall for scores in extra.per_class])
    assert read_score(evaluation, "balanced_accuracy") == pytest.approx(expected) and expected > 0


def test_the_worst_mistakes_come_first(tmp_path: Path) -> None:
    schema = make_scorer(MULTI, MULTI, align_classes(CLASSES, CLASSES)).SCHEMA
    predictions = [("a", [0], [0], 0.9), ("b", [0], [0, 1], 0.7), ("c", [0, 2], [1], 0.6), ("d", [1], [], 0.4)]
    predictions += [("e", [1], [2, 1], 0.8), ("f", [2, 0], [0, 2], 0.9)]
    with ShardWriter(str(tmp_path), Layout(schema, row_group_rows=2)) as writer:
        for image_id, labels, predicted, confidence in predictions:
            row = {"image_id": image_id, "label_ids": labels, "predicted_ids": predicted, "confidence": confidence}
            writer.add(row | {"probabilities": [], "top_id": 0}, 0)
        files = (writer.publish("predictions"),)
    evaluation = commit(str(tmp_path), Manifest("evaluation", "01", task=MULTI, classes=CLASSES, files=files))
    worst = [(mistake.note, mistake.image_id) for mistake in find_label_mistakes(evaluation)]
    assert worst == [("3 labels wrong", "c"), ("1 label wrong", "e"), ("1 label wrong", "b"), ("1 label wrong", "d")]
    errors = LabelErrors.read(evaluation)
    assert (errors.num_right, errors.images) == (2, 6)
    assert errors.missed == [1, 1, 1] and errors.extra == [0, 2, 1]


def test_gallery_shows_every_class_and_each_picture_once(multi: Chain) -> None:
    sample = sample_classes(multi.clean)
    assert set(sample) == set(CLASSES) and {len(ids) for ids in sample.values()} == {GALLERY_PER_CLASS}
    numbers = [(int(image_id[:3]), name) for name, ids in sample.items() for image_id in ids]
    assert all(CLASSES.index(name) in make_label_ids(number, MULTI) for number, name in numbers)
    assert len({number for number, _ in numbers}) == len(numbers)
