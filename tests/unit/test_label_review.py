"""Wrong labels: the classifiers that judge, what they find, what goes into them, and the step and its report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import mislabeled
import numpy as np
import photos
import pytest
import reported
from chain import evaluated, one_core, resized, trained
from cleaned import Row, draft

from imagemill.components.dataset.kinds import CleanImage, EvaluationExtra, ImageSpec, LabelReview
from imagemill.components.dataset.manifest import Dataset, Manifest, Totals, commit
from imagemill.components.dataset.shards import Layout, ShardWriter, read_columns
from imagemill.components.dataset.splits import compute_shuffle_index
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate import review as reviewing
from imagemill.components.evaluate.label_issues import MIN_CLASS_IMAGES, find_label_issues
from imagemill.components.evaluate.linear_probe import FOLDS, assign_folds
from imagemill.components.evaluate.review import MAX_FEATURES, FeatureExtractor, _pool, describe_review, review_labels
from imagemill.components.models.artifact import ModelSpec, build_network
from imagemill.components.models.blocks import parameter_blocks
from imagemill.components.report import mistakes
from imagemill.components.report.page import Figures, Listing, Paragraph


def clusters(
    images: int = 600, classes: int = 6, wrong: float = 0.05, seed: int = 0, apart: float = 5.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features float16 [N, 16], labels int64 [N], the true ones) of Gaussian classes with some labels changed."""
    random = np.random.default_rng(seed)
    true = random.integers(0, classes, images)
    centres = random.normal(0, apart / np.sqrt(32), (classes, 16))
    features = (centres[true] + random.normal(0, 1, (images, 16)) * np.linspace(0.3, 1, 16)).astype(np.float16)
    labels = true.copy()
    flipped = random.choice(images, round(wrong * images), replace=False)
    labels[flipped] = (labels[flipped] + random.integers(1, classes, len(flipped))) % classes
    return features, labels, true


@pytest.mark.parametrize("wrong_share", [0.02, 0.05, 0.1])
def test_planted_wrong_labels_are_found_and_the_right_ones_suggested(wrong_share: float) -> None:
    features, labels, true = clusters(wrong=wrong_share, apart=8)
    issues = find_label_issues(features, labels)
    planted = set(np.flatnonzero(labels != true).tolist())
    hits = planted & set(issues.rows.tolist())
    assert len(hits) >= 0.9 * len(planted)
    assert len(hits) >= 0.9 * len(issues.rows)
    right = true[issues.rows] == issues.suggested
    assert right.sum() >= 0.95 * len(hits)
    assert (np.diff(issues.quality) >= 0).all(), "the surest come first"
    assert (issues.suggested_probability > issues.label_probability).all() and issues.num_judged == 600
    assert issues.agreement == pytest.approx(1 - wrong_share, abs=0.03)


def test_near_duplicates_of_a_wrong_label_are_in_its_fold() -> None:
    """Each wrong label is on ten near-duplicates. In one fold nothing that judges it has seen it, and recall is higher
    by 0.1 to 0.9 in each of 12 seeds that were tried; the mean of 4 falls below the bound once in 10,000."""
    recalls = []
    for seed in range(4):
        features, labels, true = clusters(60, 3, wrong=0.1, apart=8, seed=seed)
        twins = np.repeat(np.arange(60), 10)
        noise = np.random.default_rng(seed).normal(0, 0.02, (600, 16))
        features, labels, true = (features[twins] + noise).astype(np.float16), labels[twins], true[twins]
        planted = set(np.flatnonzero(labels != true).tolist())
        found_rows = [
            set(find_label_issues(features, labels, folds).rows.tolist())
            for folds in (assign_folds(labels, twins), None)
        ]
        recalls.append([len(planted & rows) / len(planted) for rows in found_rows])
    together, apart = np.mean(recalls, axis=0)
    assert together > apart + 0.1


def test_sound_labels_are_left_alone_and_the_result_is_the_same_again() -> None:
    features, labels, _ = clusters(wrong=0, apart=10)
    assert len(find_label_issues(features, labels).rows) <= 3
    features, labels, _ = clusters()
    first, second = find_label_issues(features, labels), find_label_issues(features, labels)
    assert all(np.array_equal(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first))


def test_random_labels_have_no_suspects() -> None:
    """This holds for the second pass, too, without the images that the classifiers doubt."""
    for seed, classes in ((0, 2), (2, 6)):
        random = np.random.default_rng(seed)
        features = random.normal(0, 1, (400, 32)).astype(np.float16)
        labels = random.integers(0, classes, 400)
        issues = find_label_issues(features, labels)
        assert "no better than chance" in issues.problem and not len(issues.rows)
        features[:, 0] += (3 * labels).astype(np.float16)
        assert "no better than chance" not in find_label_issues(features, labels).problem


@pytest.mark.parametrize(("classes", "apart"), [(20, 1.5), (6, 1.5), (20, 2.0)])
def test_classifiers_that_know_little_suspect_nothing(classes: int, apart: float) -> None:
    """All labels are right. The classifiers agree with 40 to 66% of them, and would suspect 10 to 25%."""
    for seed in range(3):
        features, labels, _ = clusters(600, classes, wrong=0, apart=apart, seed=seed)
        issues = find_label_issues(features, labels)
        assert not len(issues.rows) and issues.agreement < 0.8
        assert "they don't know the classes well enough to tell" in issues.problem


def test_classifiers_that_know_the_classes_suspect_many_wrong_labels() -> None:
    features, labels, true = clusters(wrong=0.3, apart=6)
    issues = find_label_issues(features, labels)
    assert not issues.problem and (labels != true)[issues.rows].mean() > 0.95 and len(issues.rows) > 0.9 * 180


def test_a_class_of_few_images_is_not_judged_and_one_of_one_image_does_no_harm() -> None:
    features, labels, _ = clusters(wrong=0, apart=10)
    labels[:3], labels[3:4] = 6, 7  # taken from anywhere, so they look like something else
    issues = find_label_issues(features, labels)
    assert issues.num_judged == 600 - 4
    assert not set(issues.rows.tolist()) & {0, 1, 2, 3}
    assert MIN_CLASS_IMAGES == 2 * FOLDS


def _network(backbone: str, size: int = 64) -> Any:
    image = ImageSpec((size, size, 3), mean=(0.5,) * 3, std=(0.5,) * 3)
    return build_network(ModelSpec(backbone, ("a", "b", "c"), image)).eval()


@pytest.mark.parametrize(
    ("backbone", "side"),
    [("resnet18", 64), ("squeezenet1_1", 64), ("swin_t", 64), ("timm:test_vit", 160), ("timm:test_convnext", 64)],
)
def test_features_are_of_the_first_half_of_the_network(backbone: str, side: int) -> None:
    import torch

    torch.manual_seed(0)
    network = _network(backbone, side)
    images = torch.randn(4, 3, side, side)
    with FeatureExtractor(network) as extractor, torch.inference_mode():
        network(images)
        features = extractor.read_features()
        second = extractor.read_features()
        deepest = parameter_blocks(network)[-2:]
        for name in (name for block in deepest for name in block):
            network.get_parameter(name).zero_()
        network(images)
        same = extractor.read_features()
    assert features.dtype == np.float16 and features.shape[0] == 4 and features.shape[1] <= MAX_FEATURES
    assert np.array_equal(features, second) and np.array_equal(features, same), "the last blocks have no part in it"
    assert len(np.unique(features, axis=0)) == 4
    if features.shape[1] < MAX_FEATURES:
        assert np.square(features.astype(float)).mean() == pytest.approx(1, rel=0.01)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (2, 4, 4, 5), (2, 16, 5)])
def test_channels_are_pooled_wherever_a_block_has_them(shape: tuple[int, ...]) -> None:
    import torch

    positions = torch.randn(2, 16, 5)
    output = positions.mT.reshape(shape) if shape[1] == 5 else positions.reshape(shape)
    expected = torch.cat([positions.mean(1), positions.std(1, correction=0), positions.amax(1)], 1)
    torch.testing.assert_close(_pool(output), expected)


def test_many_features_are_projected_and_distances_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.manual_seed(0)
    network = _network("resnet18")
    images = torch.rand(12, 3, 64, 64) * torch.arange(1, 13).view(-1, 1, 1, 1)

    def extract() -> torch.Tensor:
        with FeatureExtractor(network) as extractor, torch.inference_mode():
            network(images)
            return torch.from_numpy(extractor.read_features().astype(np.float32))

    projected = extract()
    monkeypatch.setattr(reviewing, "MAX_FEATURES", 10_000)
    features = extract()
    assert projected.shape == (12, MAX_FEATURES) and features.shape == (12, 3 * (64 + 128))
    ratio = torch.pdist(projected) / torch.pdist(features)
    assert float(ratio.min()) > 0.8 and float(ratio.max()) < 1.2


@pytest.mark.parametrize(
    ("review", "accuracy", "lines"),
    [
        ({"skipped": reviewing.OFF}, 1.0, []),
        ({"skipped": "there are 1 of them"}, 1.0, ["the labels of the training images are not reviewed: there are 1"]),
        ({"images": 9, "suspects": 0, "not_judged": "images may have several labels"}, 1.0, ["no wrong labels are"]),
        (
            {"images": 9, "suspects": 0, "listed": 0, "not_judged": "classifiers guess"},
            0.5,
            ["no wrong labels are looked for, since classifiers guess"],
        ),
        ({"images": 1200, "suspects": 0}, 0.5, ["none of 1,200 training images looks mislabeled"]),
        (
            {"images": 9, "suspects": 0, "agreement": 0.114},
            0.1,
            ["none of 9 training images looks mislabeled to classifiers that agree with 11% of the labels"],
        ),
        ({"images": 560, "suspects": 1}, 1.0, ["1 of 560 training images looks mislabeled: the report shows them"]),
        ({"images": 560, "suspects": 12}, 0.9, ["12 of 560 training images look mislabeled", "10.0% of the test"]),
    ],
)
def test_review_is_described_in_log_lines(review: dict[str, Any], accuracy: float, lines: list[str]) -> None:
    messages = describe_review(LabelReview(**review), accuracy)
    assert len(messages) == len(lines) and all(
        line.startswith(start) for line, start in zip(messages, lines, strict=True)
    )


def test_skipped_review_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec("resnet18", ("a", "b"), ImageSpec((8, 8, 3)))
    uri = str(tmp_path / "tensors" / "0")
    manifest = Manifest("tensors", "0", classes=("a", "b"), totals=Totals(by_split={"train": 300_000}))
    tensors = Dataset(uri, manifest, "")
    arguments = {"network": None, "device": None, "uri": uri, "batch_size": 8}
    reviews = [
        review_labels(dataset, tensors, spec=dataclasses.replace(spec, **changed), mode=mode, **arguments)  # type: ignore
        for dataset, changed, mode in [
            (tensors, {}, "false"),
            (None, {}, "true"),
            (tensors, {}, "auto"),
            (tensors, {"classes": ("b", "a")}, "auto"),
        ]
    ]
    assert [file for file, _ in reviews] == [None] * 4
    assert [review.skipped for _, review in reviews] == [
        reviewing.OFF,
        "this model was not trained on them",
        "there are 300,000, more than 200,000 (review true does it all the same)",
        "the model has other classes than its tensors",
    ]


def noisy_photos(workspace: Workspace, each: int = 60, flipped: int = 4) -> tuple[Dataset, set[str]]:
    """Clean photographs of two classes, red or blue, and the ids of those training images that are called the other."""
    rows, wrong_ids = [], set()
    for split, number in {"train": 2 * each, "val": 16, "test": 16}.items():
        for n in range(number):
            pixels = photos.made(len(rows) + 500, 48, 48)
            pixels[..., 2 * (n % 2)] //= 3
            other = split == "train" and n < 2 * flipped
            rows.append(Row(f"{split}{n}.png", ("cat", "dog")[(n + other) % 2], split, photos.saved(pixels)))
            wrong_ids |= {rows[-1].image_id} if other else set()
    rows.sort(key=lambda row: compute_shuffle_index(hashlib.sha256(row.data).hexdigest()))
    uri = workspace.dataset_uri("clean", "0" * 16)
    return commit(uri, dataclasses.replace(draft(uri, rows).manifest, image=CleanImage("rgb", 3))), wrong_ids


def test_the_step_finds_flipped_labels_and_the_report_shows_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(str(tmp_path))
    clean, wrong_ids = noisy_photos(workspace)
    with one_core():
        tensors = resized(workspace, clean, image_size=32)
        model = trained(workspace, tensors, recipe="plain", epochs=8, batch_size=16, learning_rate=0.004)
        evaluation, _ = evaluated(workspace, model, clean)
    review = evaluation.manifest.extra.review
    (file,) = evaluation.files("suspects")
    rows = [
        row for table in read_columns(evaluation, "suspects", reviewing.SUSPECTS.names) for row in table.to_pylist()
    ]
    ranked = [row for row in rows if row["rank"]]
    assert len(rows) == file.rows == review.listed >= 100, "the highest losses are listed too"
    assert [row["rank"] for row in ranked] == list(range(1, review.suspects + 1))
    comparison = mislabeled.compare(
        [(row["image_id"], row["suggested"]) for row in ranked],
        {image_id: ("cat", "dog")[int(image_id[5:-4]) % 2] for image_id in wrong_ids},
        wrong_ids,
    )
    # What is asked of the search is in tests/benchmarks. This one training differs from processor to processor, and
    # may find few; but of 5 images named by chance 3 would be among the 8 of 120 in 2 of 1,000 cases.
    assert comparison.wrong == 8 and comparison.hits >= 3 and comparison.precision >= 0.6, comparison
    assert comparison.suggested == comparison.hits
    assert f"{len(ranked)} of 120 training images look mislabeled" in capfd.readouterr().err
    rest = [row["loss"] for row in rows if not row["rank"]]
    assert rest == sorted(rest, reverse=True)

    suspects, listing, losses = mistakes.describe_suspects(evaluation, clean)
    assert isinstance(suspects, Figures) and isinstance(listing, Listing) and isinstance(losses, Figures)
    assert len(suspects.figures) == len(ranked) and len(losses.figures) == mistakes.MAX_LOSSES
    shown = [figure.pictures[0].src for figure in (*suspects.figures, *losses.figures)]
    assert all(src.startswith("data:image/jpeg") for src in shown)
    assert listing.lines[0] == "image_id,label,suggested" and len(listing.lines) == len(ranked) + 1


def test_where_the_classifiers_guess_no_image_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    outputs = reviewing.TrainingOutputs(
        random.normal(0, 1, (90, 8)).astype(np.float16), np.arange(90) % 2, np.ones(90, np.float32)
    )
    monkeypatch.setattr(reviewing, "_compute_outputs", lambda *_: outputs)
    spec = ModelSpec("resnet18", ("a", "b"), ImageSpec((8, 8, 3)))
    manifest = Manifest("tensors", "0", classes=("a", "b"), totals=Totals(by_split={"train": 90}))
    tensors = Dataset(str(tmp_path), manifest, "")
    monkeypatch.setattr(reviewing, "read_image_ids", lambda *_: [str(number) for number in range(90)])
    monkeypatch.setattr(reviewing, "find_units", lambda _, image_ids: np.arange(len(image_ids)))
    file, review = review_labels(tensors, tensors, None, spec, None, str(tmp_path), "auto", 8)  # type: ignore[arg-type]
    assert file is None and (review.images, review.suspects, review.listed) == (90, 0, 0)
    assert review.not_judged.startswith("classifiers that never saw the labels agree with ")
    extra = EvaluationExtra(metrics={"top1": 0.5}, review=review)
    evaluation = Dataset(str(tmp_path), Manifest("evaluation", "0", extra=extra), "")
    shown = mistakes.describe_suspects(evaluation, Dataset(str(tmp_path), Manifest("clean", "0"), ""))
    assert shown == [Paragraph(f"No wrong labels are looked for, since {review.not_judged}.")]


def test_the_page_shows_suspects_and_escapes_their_names(tmp_path: Path) -> None:
    mill = reported.Mill(Workspace.open(str(tmp_path / "ws")), ["cat", "dog"])
    clean = mill.clean()
    model = reported.trained(mill.workspace, clean)
    evaluation = reported.evaluated(mill.workspace, model, clean, mill.predictions(clean))
    assert mistakes.describe_suspects(evaluation, clean) == []
    row = {"image_id": reported.HOSTILE, "label": "cat", "suggested": "dog", "rank": 1, "label_id": 0}
    row |= {"probability": 0.01, "suggested_probability": 0.98, "suggested_id": 1, "loss": 4.0}
    with ShardWriter(evaluation.uri, Layout(reviewing.SUSPECTS, row_group_rows=100)) as writer:
        writer.add({name: row.get(name) for name in reviewing.SUSPECTS.names}, 0)
        file = writer.publish("suspects", "suspects", "train")
    for top1, is_doubted in ((0.999, False), (0.8, True)):
        extra = dataclasses.replace(EvaluationExtra.of(evaluation.manifest), review=LabelReview(images=90, suspects=1))
        extra = dataclasses.replace(extra, metrics=extra.metrics | {"top1": top1})
        manifest = dataclasses.replace(evaluation.manifest, extra=extra, files=(*evaluation.manifest.files, file))
        page = reported.render(mill.workspace, dataclasses.replace(evaluation, manifest=manifest))
        assert "1 training image looks mislabeled, of 90" in page.text and "→ dog 1% → 98%" in page.text
        assert f"{reported.HOSTILE},cat,dog" in page.text and not [tag for tag, _ in page.tags if tag == "script"]
        assert ("on 20.0% of the test images" in page.text) == is_doubted
    manifest = dataclasses.replace(
        manifest, extra=dataclasses.replace(extra, review=LabelReview(images=90, suspects=0))
    )
    blocks = mistakes.describe_suspects(dataclasses.replace(evaluation, manifest=manifest), clean)
    assert blocks[0] == Paragraph("None of 90 training images looks mislabeled.")


def test_planting_is_a_function_of_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mislabeled, "generate", lambda seed: iter(()))  # the pictures are the demo's own
    first, second = (mislabeled.plant(tmp_path / name, 0.05, 1) for name in "ab")
    other = mislabeled.plant(tmp_path / "c", 0.05, 2)
    assert first == second != other
    assert (tmp_path / "a" / "labels.csv").read_bytes() == (tmp_path / "b" / "labels.csv").read_bytes()
    rows = [line.split(",") for line in (tmp_path / "a" / "labels.csv").read_text().splitlines()[1:]]
    labels = {path: label for path, label, _ in rows}
    assert all(labels[path] != name and path.startswith("train/") for path, name in first.items())
    assert 30 <= len(first) <= 40, "a twentieth of 560, and the demo's own eight"
    assert json.dumps(sorted(other)) != json.dumps(sorted(first))
