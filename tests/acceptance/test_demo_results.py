"""The README's first command, and what can be done with its results: evaluation, prediction, export, inspection."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import layout
import numpy as np
import pictures
import pytest
from commands import EXIT_USER, KINDS, STEPS, Finished, run, succeed
from sklearn import metrics as sk

REASONS = {
    "empty_file", "missing_file", "not_an_image", "corrupt", "too_many_bytes", "too_many_pixels", "side_too_long",
    "unsupported_bands", "too_small", "extreme_aspect", "blank", "no_label", "unknown_label", "rare_class", "bad_box",
    "bad_mask", "duplicate_bytes", "duplicate_pixels", "near_duplicate", "near_duplicate_of_test", "label_conflict",
    "outlier",
}  # fmt: skip
"""The closed list of reasons."""


@dataclass(frozen=True)
class Demo:
    folder: Path
    finished: Finished

    @property
    def workspace(self) -> Path:
        return self.folder / "imagemill-data"

    def uri(self, kind: str) -> str:
        return str(self.finished.json[kind])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """Run `imagemill run` in an empty folder; `--json` changes nothing but the last line."""
    folder = tmp_path_factory.mktemp("demo")
    return Demo(folder, succeed("run", "--json", cwd=folder))


@pytest.fixture(scope="module")
def again(demo: Demo) -> Finished:
    """Run the same command once more, without `--json`, as the README says it."""
    before = layout.list_files(demo.workspace)
    finished = succeed("run", cwd=demo.folder)
    assert layout.list_files(demo.workspace) == before, "nothing is made again"
    return finished


def test_run_tells_its_result_as_json(demo: Demo) -> None:
    result = demo.finished.json
    keys = {
        "status",
        "name",
        "raw",
        "clean",
        "tensors",
        "model",
        "evaluation",
        "report",
        "metrics",
        "promoted",
        "steps",
    }
    assert result.keys() >= keys
    assert (result["status"], result["name"], result["promoted"]) == ("succeeded", "demo", True)
    assert list(result["steps"]) == list(STEPS)
    assert all(step["state"] == "ran" and step["seconds"] >= 0 for step in result["steps"].values())
    assert all(Path(result[kind]).parent == demo.workspace / kind for kind in KINDS)


def test_score_is_over_nine_tenths(demo: Demo) -> None:
    assert demo.finished.json["metrics"]["macro_f1"] > 0.9


def test_second_run_is_all_cached_and_tells_the_scores(demo: Demo, again: Finished) -> None:
    assert again.cpu_seconds < 8, "a second on a quiet machine"
    assert f"{demo.finished.json['metrics']['macro_f1']:.3f}" in again.stdout
    assert demo.uri("model") in again.stdout and "report" in again.stdout
    records = [json.loads(path.read_text()) for path in demo.workspace.glob("runs/*/train.json")]
    assert sorted(record["state"] for record in records) == ["cached", "ran"]


def test_report_stands_alone(demo: Demo) -> None:
    page = Path(demo.finished.json["report"]).read_text()
    assert "<html" in page and 'src="http' not in page and "<script" not in page
    for word in ("macro-F1", "calibration", "duplicate", "mislabel", "checkerboard"):
        assert word.lower() in page.lower(), word


def test_every_step_leaves_a_record_and_the_run_a_log(demo: Demo) -> None:
    folder = Path(demo.finished.json["report"]).parent
    for step in STEPS:
        record = json.loads((folder / f"{step}.json").read_text())
        assert (record["state"], record["exit_code"]) == ("ran", 0), step
    assert "[train]" in (folder / "log.txt").read_text()


def test_datasets_are_whole(demo: Demo) -> None:
    for kind in KINDS:
        assert layout.open_dataset(demo.uri(kind)).stored_bytes(), kind
    parents = [layout.open_dataset(demo.uri(kind)).parent_fingerprints for kind in KINDS]
    names = [Path(demo.uri(kind)).name for kind in KINDS]
    assert parents == [[], names[0:1], names[1:2], names[2:3], [names[3], names[1]]]


def test_demo_is_as_large_as_promised(demo: Demo) -> None:
    kept = layout.kept_images(demo.uri("clean"))
    assert len(layout.raw_images(demo.uri("raw"))) >= 600 and len({row["label"] for row in kept.values()}) == 6
    assert Counter(row["split"] for row in kept.values())["test"] >= 100


def test_ledger_adds_up(demo: Demo) -> None:
    kept, rejected = layout.kept_images(demo.uri("clean")), layout.rejected_images(demo.uri("clean"))
    assert Counter([*kept, *rejected]) == Counter(list(layout.raw_images(demo.uri("raw"))))
    assert set(rejected.values()) <= REASONS


def test_planted_faults_are_rejected_for_their_reason(demo: Demo) -> None:
    rejected = layout.rejected_images(demo.uri("clean"))
    raw = layout.raw_images(demo.uri("raw"))
    planted = {fault["path"]: fault["reason"] for fault in layout.planted_faults(demo.uri("raw")) if fault["reason"]}
    assert {path: rejected.get(path) for path in planted if path in raw} == {
        path: reason for path, reason in planted.items() if path in raw
    }
    assert len(planted) >= 20 and rejected.keys() == planted.keys()


def test_mislabeled_images_are_found(demo: Demo) -> None:
    """Most of those that were planted, all in train, are among the surest suspects."""
    planted = {fault["path"] for fault in layout.planted_faults(demo.uri("raw")) if fault["kind"].startswith("mislab")}
    suspects = layout.suspects(demo.uri("evaluation"))
    kept = layout.kept_images(demo.uri("clean"))
    assert planted and {kept[image_id]["split"] for image_id in {*planted, *suspects}} == {"train"}
    assert len(planted & set(suspects)) >= 0.5 * len(planted)


def test_tensors_are_the_kept_images(demo: Demo) -> None:
    images, kept = layout.tensor_images(demo.uri("tensors")), layout.kept_images(demo.uri("clean"))
    assert images.keys() == kept.keys()
    for image_id, rows in images.items():
        assert [(row["split"], row["label_id"]) for row in rows] == [
            (kept[image_id]["split"], kept[image_id]["label_id"])
        ]


# The evaluation against scikit-learn, from the predictions that are stored.


@pytest.fixture(scope="module")
def predictions(demo: Demo) -> list[layout.Row]:
    return layout.predictions(demo.uri("evaluation"))


def columns(predictions: list[layout.Row]) -> tuple[list[int], list[int]]:
    return [row["label_id"] for row in predictions], [row["predicted_id"] for row in predictions]


def test_predictions_are_of_the_test_split(demo: Demo, predictions: list[layout.Row]) -> None:
    kept = {i: row for i, row in layout.kept_images(demo.uri("clean")).items() if row["split"] == "test"}
    assert {row["image_id"]: row["label_id"] for row in predictions} == {
        image_id: row["label_id"] for image_id, row in kept.items()
    }


def test_scores_equal_scikit_learns(demo: Demo, predictions: list[layout.Row]) -> None:
    labels, predicted = columns(predictions)
    scores = layout.metrics(demo.uri("evaluation"))
    expected = {
        "top1": sk.accuracy_score(labels, predicted),
        "macro_f1": sk.f1_score(labels, predicted, average="macro"),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, predicted),
        "nll": float(-np.log([max(row["label_probability"], 1e-12) for row in predictions]).mean()),
    }
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-4), name
    assert demo.finished.json["metrics"]["macro_f1"] == pytest.approx(scores["macro_f1"])


def test_scores_of_each_class_equal_scikit_learns(demo: Demo, predictions: list[layout.Row]) -> None:
    labels, predicted = columns(predictions)
    classes = layout.open_dataset(demo.uri("evaluation")).classes
    scores = sk.precision_recall_fscore_support(labels, predicted, labels=range(len(classes)), zero_division=0)
    for row in layout.per_class(demo.uri("evaluation")):
        number = classes.index(row["class"])
        stored = [row["precision"], row["recall"], row["f1"], row["support"]]
        np.testing.assert_allclose(stored, [scores[k][number] for k in range(4)], atol=1e-5, err_msg=row["class"])


def test_probabilities_are_calibrated_and_sorted(predictions: list[layout.Row]) -> None:
    for row in predictions:
        probabilities = row["top_probabilities"]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) < 1.0001
        assert row["top_ids"][0] == row["predicted_id"]


# Prediction by files.


@pytest.fixture(scope="module")
def test_files(demo: Demo) -> Path:
    """The stored bytes of the test images as files, with one broken file and one text beside them."""
    folder = demo.folder / "files"
    for number, (image_id, row) in enumerate(sorted(layout.kept_images(demo.uri("clean")).items())):
        if row["split"] == "test":
            pictures.write(folder / f"{number:04d}{Path(image_id).suffix}", row["bytes"])
    pictures.write(folder / "broken.jpg", b"\xff\xd8\xff\xe0" + bytes(100))
    return folder


def test_prediction_by_files_equals_the_evaluation(demo: Demo, test_files: Path, predictions: list[layout.Row]) -> None:
    finished = succeed("predict", "--model", demo.uri("model"), "--json", "--top", "3", str(test_files))
    lines = [json.loads(line) for line in finished.stdout.splitlines()]
    by_name = {Path(line["image"]).name: line for line in lines}
    assert len(lines) == len(predictions) + 1 and by_name["broken.jpg"]["error"]
    classes = layout.open_dataset(demo.uri("model")).classes
    by_id = {row["image_id"]: row for row in predictions}
    for number, image_id in enumerate(sorted(layout.kept_images(demo.uri("clean")))):
        if image_id not in by_id:
            continue
        row, line = by_id[image_id], by_name[f"{number:04d}{Path(image_id).suffix}"]
        best = line["predictions"][0]
        assert best["class"] == classes[row["predicted_id"]], image_id
        assert best["probability"] == pytest.approx(row["confidence"], abs=1e-3)


def test_prediction_into_a_table(demo: Demo, test_files: Path) -> None:
    import pyarrow.parquet as pq

    some = [str(path) for path in sorted(test_files.glob("*.*"))[:4]]
    succeed("predict", "--output", str(demo.folder / "classes.parquet"), *some, cwd=demo.folder)
    assert pq.read_table(demo.folder / "classes.parquet").num_rows >= 4


def test_prediction_of_broken_files_alone_fails(demo: Demo, test_files: Path) -> None:
    finished = run("predict", "--model", demo.uri("model"), str(test_files / "broken.jpg"))
    assert finished.code == EXIT_USER and "broken.jpg" in finished.stderr and "Traceback" not in finished.stderr


def test_onnx_gives_the_evaluations_answers(demo: Demo, predictions: list[layout.Row]) -> None:
    """The input is uint8 [N, H, W, C]: normalization and temperature are in the graph."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(layout.onnx_file(demo.uri("model"))), providers=["CPUExecutionProvider"])
    images = layout.tensor_images(demo.uri("tensors"))
    batch = np.stack([images[row["image_id"]][0]["pixels"] for row in predictions])
    (probabilities,) = session.run(["probabilities"], {session.get_inputs()[0].name: batch})
    assert (np.asarray(probabilities).argmax(axis=1) == [row["predicted_id"] for row in predictions]).all()
    np.testing.assert_allclose(probabilities.max(axis=1), [row["confidence"] for row in predictions], atol=1e-3)


# Export, read by the libraries that own the formats.


def export(demo: Demo, kind: str, form: str, folder: Path, *more: str) -> Path:
    succeed("export", demo.uri(kind), "--format", form, "--output", str(folder), *more)
    return folder


def test_export_as_folders_is_read_by_torchvision(demo: Demo, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    folder = export(demo, "clean", "imagefolder", tmp_path / "out")
    kept = layout.kept_images(demo.uri("clean"))
    for split in ("train", "val", "test"):
        # torchvision passes over GIFs unless it is told what is an image.
        dataset = ImageFolder(str(folder / split), is_valid_file=lambda path: True)
        expected = Counter(row["label"] for row in kept.values() if row["split"] == split)
        assert Counter(dataset.classes[target] for target in dataset.targets) == expected


def test_export_as_tars_is_read_by_webdataset(demo: Demo, tmp_path: Path) -> None:
    import webdataset

    folder = export(demo, "tensors", "webdataset", tmp_path / "out", "--shard-bytes", "1000000")
    urls = sorted(str(path) for path in folder.glob("test-*.tar"))
    assert len(list(folder.glob("train-*.tar"))) > 1
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("png;jpg", "cls"))
    images = layout.tensor_images(demo.uri("tensors"))
    expected = {(row["pixels"].tobytes(), row["label_id"]) for rows in images.values() for row in rows
                if row["split"] == "test"}  # fmt: skip
    assert {(np.asarray(image).tobytes(), int(label)) for image, label in samples} == expected


def test_export_of_clean_as_tars_keeps_the_stored_bytes(demo: Demo, tmp_path: Path) -> None:
    folder = export(demo, "clean", "webdataset", tmp_path / "out")
    stored = Counter(row["bytes"] for row in layout.kept_images(demo.uri("clean")).values() if row["split"] == "test")
    written: Counter[bytes] = Counter()
    for path in folder.glob("test-*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.name.endswith((".cls", ".json")):
                    written[(archive.extractfile(member) or io.BytesIO()).read()] += 1
    assert written == stored


def test_export_for_hugging_face_is_read_by_datasets(demo: Demo, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    folder = export(demo, "clean", "huggingface", tmp_path / "out")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    totals = layout.open_dataset(demo.uri("clean")).totals["by_split"]
    # Hugging Face calls the split for validation so.
    assert {name: loaded[name].num_rows for name in loaded} in (totals, totals | {"validation": totals["val"]}) or sum(
        part.num_rows for part in loaded.values()
    ) == sum(totals.values())
    assert loaded["test"][0]["image"].size[0] > 0
    assert loaded["test"].features["label"].names == layout.open_dataset(demo.uri("clean")).classes


def test_export_again_is_there_already_and_overwrites_nothing_else(demo: Demo, tmp_path: Path) -> None:
    folder = export(demo, "clean", "imagefolder", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    export(demo, "clean", "imagefolder", folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    pictures.write(tmp_path / "mine" / "thesis.txt", b"years of work")
    finished = run("export", demo.uri("clean"), "--format", "imagefolder", "--output", str(tmp_path / "mine"))
    assert finished.code == EXIT_USER and [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


# A dataset is plain Parquet; a workspace can be moved.


def test_clean_opens_in_hugging_face_datasets(demo: Demo, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    files = [str(path) for path in layout.open_dataset(demo.uri("clean")).part_files()]
    photos = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    kept = layout.kept_images(demo.uri("clean"))
    found = {photo["image_id"]: photo["image"].size for photo in photos if photo["image_id"] in kept}
    assert found == {image_id: (row["width"], row["height"]) for image_id, row in kept.items()}


OPEN = """
import io, imagemill, sys
from PIL import Image
clean, tensors = (imagemill.open(uri, "val") for uri in sys.argv[1:])
photos = clean.to_hf()
ids = [image_id for table in clean.arrow(["image_id"]) for image_id in table.column("image_id").to_pylist()]
assert photos["image_id"] == ids and set(photos["split"]) == {"val"} and photos.features["phash"].dtype == "uint64"
first = next(clean.arrow(["image_id", "image", "label_id"]))
assert Image.open(io.BytesIO(first["image"][0].as_py()["bytes"])).tobytes() == photos[0]["image"].tobytes()
images = tensors.torch()
assert len(images) == len(ids), (len(images), len(ids))
pixels, label = images[0]
assert pixels.dtype.itemsize == 1 and pixels.shape[0] == 3 and label == first["label_id"][0].as_py()
print(*ids)
"""


def test_datasets_open_from_python(demo: Demo, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN, demo.uri("clean"), demo.uri("tensors")]
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    opened = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert opened.returncode == 0, opened.stderr
    kept = layout.kept_images(demo.uri("clean"))
    assert sorted(opened.stdout.split()) == sorted(id for id, row in kept.items() if row["split"] == "val")


@pytest.mark.parametrize("kind", KINDS)
def test_inspect_tells_what_a_dataset_holds(kind: str, demo: Demo) -> None:
    facts = succeed("inspect", demo.uri(kind), "--json").json
    assert facts["kind"] == kind and Path(demo.uri(kind)).name in json.dumps(facts)


def test_moved_workspace_is_cached(demo: Demo, again: Finished, tmp_path: Path) -> None:
    shutil.copytree(demo.workspace, tmp_path / "elsewhere")
    moved = succeed("run", "--json", "--workspace", str(tmp_path / "elsewhere"))
    assert set(moved.states.values()) == {"cached"}
    assert all(Path(moved.json[kind]) == tmp_path / "elsewhere" / kind / Path(demo.uri(kind)).name for kind in KINDS)
