"""Multi-label images through the whole pipeline: two independent attributes, learned and reported."""

from __future__ import annotations

import math
from pathlib import Path

import mill
import numpy as np
import pytest
from PIL import Image

from imagemill.components.dataset.manifest import Dataset
from imagemill.components.dataset.shards import read_columns

COLORS = {"blue": (30, 60, 220), "red": (220, 40, 30)}


def make_table(folder: Path, number: int) -> Path:
    """Write `labels.csv` and its pictures: noise with a red square, a blue one, both or neither."""
    folder.mkdir()
    lines = ["path,label"]
    for n in range(number):
        random = np.random.default_rng(n)
        pixels = random.normal(128, 25, (40, 40, 3)).clip(0, 255).astype(np.uint8)
        names = [name for bit, name in enumerate(COLORS) if n >> bit & 1]
        for name in names:
            top, left = int(random.integers(22)), int(random.integers(2)) + 20 * (name == "red")  # side by side
            pixels[top : top + 18, left : left + 18] = COLORS[name]
        Image.fromarray(pixels).save(folder / f"{n:03d}.png")
        lines.append(f"{n:03d}.png,{'|'.join(reversed(names)) or 'none'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


def read_rows(dataset: Dataset, *names: str) -> list[dict[str, object]]:
    return [row for table in read_columns(dataset, "data", list(names)) for row in table.to_pylist()]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("several")
    table = make_table(folder / "pictures", 120)
    source = ["--dataset", "csv", "--source", str(table), "--name", "shapes", "--workspace", str(folder / "mill")]
    labels = ["--label-separator", "|", "--label-encoding", "one_hot", "--test-fraction", "0.3"]
    training = ["--near-duplicates", "off", "--recipe", "plain", "--epochs", "10", "--batch-size", "8"]
    training += ["--learning-rate", "0.005", "--crop-scale", "1"]
    network = ["--image-size", "32", "--backbone", "shufflenet_v2_x0_5"]
    return ["run", "--json", *source, *labels, *training, *network]


@pytest.fixture(scope="module")
def run(arguments: list[str]) -> mill.Result:
    result = mill.run(*arguments)
    assert result.rc == 0, result.stderr
    return result


def test_every_dataset_has_the_task_and_label_ids(run: mill.Result) -> None:
    datasets = {kind: mill.dataset_of(run, kind) for kind in mill.PRODUCTS[1:]}
    assert {d.manifest.task for d in datasets.values()} == {"multi"}
    assert {d.manifest.classes for d in datasets.values()} == {("blue", "none", "red")}
    clean = read_rows(datasets["clean"], "image_id", "label", "label_ids", "label_one_hot", "split")
    assert len(clean) == 120 and {row["label"] for row in clean} == {"none", "red", "blue", "blue|red"}
    ids = {row["image_id"]: row["label_ids"] for row in clean}
    assert [row["label_one_hot"] for row in clean] == [
        [int(n in ids[row["image_id"]]) for n in range(3)] for row in clean
    ]
    assert {row["image_id"]: row["label_ids"] for row in read_rows(datasets["tensors"], "image_id", "label_ids")} == ids
    tested = {row["image_id"]: row["label_ids"] for row in read_rows(datasets["evaluation"], "image_id", "label_ids")}
    assert tested == {row["image_id"]: row["label_ids"] for row in clean if row["split"] == "test"}


def test_result_has_the_metrics_of_multi_label_models(run: mill.Result) -> None:
    metrics = run.json["metrics"]
    several = {"micro_f1", "subset_accuracy", "micro_pr_auc"}
    assert set(metrics) >= several | {"top1", "macro_f1", "pr_auc", "roc_auc", "loss", "nll", "brier", "ece"}
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["macro_f1"] > 0.65, "a network that says yes to everything has 0.6"
    page = Path(run.json["report"]).read_text()
    assert "Every label right" in page and "Confusion" not in page


def test_second_run_is_cached(run: mill.Result, arguments: list[str]) -> None:
    second = mill.run(*arguments)
    assert second.rc == 0, second.stderr
    assert set(second.states.values()) == {"cached"} and second.json["evaluation"] == run.json["evaluation"]
