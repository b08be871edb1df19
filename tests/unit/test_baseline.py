"""A training with pretrained weights and `auto`: its features, its baseline in the evaluation and the report, and wrong
labels that are found whatever was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import mislabeled
import numpy as np
import pyarrow as pa
import pytest
from chain import evaluated, one_core, resized, trained
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_label_review import noisy_photos

from imagemill.components.dataset.kinds import EvaluationExtra, ImageSpec, ModelExtra
from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.dataset.shards import read_columns
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate import linear_probe
from imagemill.components.evaluate.baseline import describe_baseline, score_baseline
from imagemill.components.evaluate.inference import read_tensor_batches
from imagemill.components.evaluate.linear_probe import cross_validate_probe, describe_cross_validation, find_units
from imagemill.components.models.artifact import ModelSpec, build_network
from imagemill.components.models.features import LinearProbe, find_features, read_image_ids
from imagemill.components.promote.near_pairs import Neighbors, find_near_pairs
from imagemill.components.report.mistakes import NearPairs, describe_near_pairs
from imagemill.components.report.page import Figures
from imagemill.components.report.scores import list_metrics


class Probed(NamedTuple):
    workspace: Workspace
    clean: Dataset
    wrong: set[str]
    tensors: Dataset
    weights: str
    model: Dataset
    evaluation: Dataset


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Probed:
    folder = tmp_path_factory.mktemp("probed")
    workspace = Workspace(str(folder))
    clean, wrong = noisy_photos(workspace)
    spec = ModelSpec("shufflenet_v2_x0_5", tuple("abcde"), ImageSpec((32, 32, 3)))
    weights = str(folder / "weights.safetensors")
    save_file(build_network(spec).state_dict(), weights)
    with one_core():
        tensors = resized(workspace, clean, image_size=32)
        model = trained(workspace, tensors, weights=weights)
        return Probed(workspace, clean, wrong, tensors, weights, model, evaluated(workspace, model, clean)[0])


def suspects(evaluation: Dataset) -> list[tuple[str, str]]:
    rows = [
        row
        for table in read_columns(evaluation, "suspects", ["image_id", "suggested", "rank"])
        for row in table.to_pylist()
    ]
    return [(row["image_id"], row["suggested"]) for row in rows if row["rank"]]


def test_the_model_has_its_features_and_its_probe(probed: Probed) -> None:
    extra = ModelExtra.of(probed.model.manifest)
    assert extra.probe is not None
    assert extra.recipe[0].startswith("recipe probe is chosen since 16 validation images could not show")
    baseline = "baseline: a linear probe on the frozen features of 136 images, cross-validated macro-F1 "
    assert extra.recipe[-1].startswith(baseline)
    assert extra.probe.val_macro_f1 == pytest.approx(extra.metrics["macro_f1"])
    features = find_features(probed.model)
    assert features is not None and features.manifest.totals.by_split == {"train": 120, "val": 16, "test": 16}
    probe = LinearProbe.read(probed.model)
    assert probe is not None and probe.weight.shape == (2, 1024) and probe.bias.shape == (2,)
    assert len(probed.model.files()) == len([file for file in probed.model.files() if file.role == "data"]) >= 2


def test_the_baseline_is_scored_on_the_test_images(probed: Probed) -> None:
    """The model is the probe here, so that both have the same scores."""
    extra = EvaluationExtra.of(probed.evaluation.manifest)
    baseline = extra.baseline
    assert baseline is not None and baseline == score_baseline(probed.model, probed.clean, extra.metrics)
    assert baseline.images == 16 and baseline.has_features and not baseline.why
    assert baseline.name == "a linear probe on the frozen features of shufflenet_v2_x0_5"
    for name, score in baseline.scores.items():
        assert score == pytest.approx(extra.metrics[name], abs=1e-5)
    assert f"macro-F1 {baseline.scores['macro_f1']:.3f} on the same images" in describe_baseline(baseline)
    words = {row[0]: str(row[-1]) for row in list_metrics(extra)}
    expected = f"mean F1 of the classes; of the baseline, {baseline.name}, {baseline.scores['macro_f1']:.3f};"
    assert words["Macro-F1"].startswith(expected)


def test_a_model_below_its_baseline_says_so_and_what_to_try(probed: Probed) -> None:
    extra = EvaluationExtra.of(probed.evaluation.manifest)
    low = dict.fromkeys(extra.metrics, 0.1)
    baseline = score_baseline(probed.model, probed.clean, low)
    assert baseline is not None and baseline.scores["macro_f1"] > 0.1
    start = "the model stays below its baseline: macro-F1 0.100 on 16 test images, where a linear probe on the frozen "
    assert baseline.why.startswith(start) and "try --recipe probe, which is this baseline" in baseline.why


def test_all_images_are_cross_validated_beside_few_test_images(probed: Probed) -> None:
    extra = EvaluationExtra.of(probed.evaluation.manifest)
    result = extra.cross_validation
    assert result is not None and (result.folds, result.images, result.backbone) == (5, 152, "shufflenet_v2_x0_5")
    assert set(result.scores) == set(result.intervals) == {"top1", "balanced_accuracy", "macro_f1"}
    for name, (low, high) in result.intervals.items():  # of 152 images 0.19 at most, of 16 twice that and more
        assert low < result.scores[name] < high and high - low < 0.25
    line = describe_cross_validation(result, 16)
    assert line.startswith(
        "beside 16 test images, the probe on frozen features is cross-validated on all 152 in 5 folds"
    )
    words = {row[0]: str(row[-1]) for row in list_metrics(extra)}
    assert f"cross-validated on all 152 images, {result.scores['top1']:.3f} (" in words["Top-1"]
    features = find_features(probed.model)
    assert cross_validate_probe(features, probed.clean, "auto") == result
    assert (
        cross_validate_probe(features, probed.clean, "false")
        is cross_validate_probe(None, probed.clean, "true")
        is None
    )


def test_images_of_a_group_and_near_duplicates_are_a_unit(probed: Probed) -> None:
    ids = ["a", "b", "c", "d", "e", "a", "elsewhere"]
    groups = {"a": None, "b": "patient 1", "c": "patient 2", "d": "patient 1", "e": ""}
    rows = pa.table({"image_id": list(groups), "group": list(groups.values())})
    twins = pa.table({"image_id": ["c", "a"], "twin_id": ["d", "dropped"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_probe, "read_rows", lambda _, columns: [rows.select(columns)])
        patch.setattr(linear_probe, "read_columns", lambda _, role, columns: [twins.select(columns)])
        assert find_units(probed.clean, ids).tolist() == [0, 1, 1, 1, 4, 0, 6]
    assert len(set(find_units(probed.clean, read_image_ids(probed.tensors)))) == 152


def test_suspects_do_not_depend_on_the_trained_model(probed: Probed) -> None:
    with one_core():
        options: dict[str, Any] = {"recipe": "plain", "epochs": 4, "learning_rate": 0.01}
        model = trained(probed.workspace, probed.tensors, weights=probed.weights, **options)
        other, _ = evaluated(probed.workspace, model, probed.clean)
    assert model.fingerprint != probed.model.fingerprint
    first, second = find_features(probed.model), find_features(model)
    assert first is not None and second is not None and first.uri == second.uri, "computed once"
    assert suspects(other) == suspects(probed.evaluation)
    truth = {image_id: ("cat", "dog")[int(image_id[5:-4]) % 2] for image_id in probed.wrong}
    comparison = mislabeled.compare(suspects(other), truth, set(truth) | {name for name, _ in suspects(other)})
    assert comparison.recall >= 0.5


def test_without_features_the_baseline_is_on_pixels(probed: Probed, tmp_path: Path) -> None:
    """Logistic regression of the cells' means, as scikit-learn's own pipeline makes it of the stored images."""
    features = find_features(probed.model)
    assert features is not None
    manifest = Path(features.uri, "_manifest.json")
    manifest.rename(tmp_path / "kept")
    try:
        baseline = score_baseline(read_dataset(probed.model.uri), probed.clean, {"macro_f1": 0.0})
    finally:
        (tmp_path / "kept").rename(manifest)
    assert baseline is not None and not baseline.has_features and baseline.images == 16
    pixels, labels = {}, {}
    for split in ("train", "test"):
        batches = list(read_tensor_batches(probed.tensors, split, 1_000))
        images = np.concatenate([batch.images for batch in batches])
        pixels[split] = images.reshape(len(images), 16, 2, 16, 2, 3).mean((2, 4)).transpose(0, 3, 1, 2).reshape(-1, 768)
        labels[split] = np.concatenate([batch.labels for batch in batches])
    regression = LogisticRegression(C=0.01, class_weight="balanced", max_iter=200, tol=1e-3)
    pipeline = make_pipeline(StandardScaler(), PCA(120, svd_solver="full"), regression)
    predicted = pipeline.fit(pixels["train"], labels["train"]).predict(pixels["test"])
    assert baseline.scores["top1"] == pytest.approx((predicted == labels["test"]).mean(), abs=1e-6)
    assert baseline.scores["macro_f1"] == pytest.approx(f1_score(labels["test"], predicted, average="macro"), abs=1e-6)
    assert "logistic regression on 16x16 pixels has" in baseline.why and "pretrained weights" in baseline.why


def test_the_report_shows_test_images_that_are_near_training_images(
    probed: Probed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 test images none is looked for; here two are taken for near, whatever they are."""
    train, test = (read_image_ids(probed.tensors, (split,)) for split in ("train", "test"))
    empty = find_near_pairs(probed.model, probed.tensors, probed.clean)
    assert empty == NearPairs(0, 16, len(train), 0.05, ()) and describe_near_pairs(empty, probed.clean) == []
    monkeypatch.setattr(Neighbors, "find_near_copies", lambda neighbors: np.array([4, 2]))
    near = find_near_pairs(probed.model, probed.tensors, probed.clean)
    assert near is not None and [pair.test_id for pair in near.pairs] == [test[4], test[2]]
    assert all(pair.train_id in train and -1 <= pair.cosine <= 1 for pair in near.pairs)
    [block] = describe_near_pairs(near, probed.clean)
    assert isinstance(block, Figures) and block.note.startswith("2 test images have (of 16) a training image")
    assert [picture.src[:5] for figure in block.figures for picture in figure.pictures] == ["data:"] * 4
