"""Search of `imagemill tune`: space, studies, and hints from the losses of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagemill.components.dataset.kinds import ModelExtra
from imagemill.components.dataset.manifest import Dataset, Manifest
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.storage.errors import UserError
from imagemill.components.train.config import TrainConfig
from imagemill.pipelines.experiments.differences import compute_mean_difference
from imagemill.pipelines.experiments.search import Confirmation, describe_confirmation, write_config
from imagemill.pipelines.experiments.search_space import SearchSpace
from imagemill.pipelines.experiments.study import COMPLETE, PRUNED, Study, TriedValues
from imagemill.pipelines.experiments.trials import Configuration, describe_regularization

BASE = Configuration.read("{}", {})


def read_space(folder: Path, text: str) -> SearchSpace:
    (folder / "space.yaml").write_text(text)
    return SearchSpace.read(str(folder / "space.yaml"), BASE)


def make_study(folder: Path, key: str = "k", pruner: str = "median") -> Study:
    return Study(Workspace.open(str(folder)), "photos.tune", key, SearchSpace.read("", BASE), pruner, 0)


def test_default_space_gives_valid_configurations(tmp_path: Path) -> None:
    search = make_study(tmp_path)
    search.add(TriedValues(0, {}, COMPLETE, 0.5))
    for number in range(1, 15):
        values = search.suggest()
        config = search.space.apply(BASE, values).config("train")
        assert isinstance(config, TrainConfig) and config.recipe == values["recipe"]
        assert ("policy_ops" in values) == (values["policy"] == "randaugment")
        assert ("mixup" in values) == (values["mixup_probability"] != 0)
        search.add(TriedValues(number, values, COMPLETE, number / 100))
    assert len({str(trial.values) for trial in search.trials}) > 10


def test_reopened_study_suggests_the_same_values(tmp_path: Path) -> None:
    first, second = make_study(tmp_path / "one"), make_study(tmp_path / "two")
    suggested: list[list[dict[str, Any]]] = [[], []]
    for number in range(6):
        for side, search in enumerate((first, make_study(tmp_path / "two"))):  # read again each time
            values = search.suggest() if number else {}
            suggested[side].append(values)
            search.add(TriedValues(number, values, COMPLETE, 0.1 * (number % 3)))
    assert suggested[0] == suggested[1] and second.trials == []
    assert make_study(tmp_path / "two").best.number == 2
    assert make_study(tmp_path / "two", "another key").trials == []


@pytest.mark.parametrize("pruner", ["median", "asha"])
def test_trial_below_the_others_is_pruned(tmp_path: Path, pruner: str) -> None:
    search = make_study(tmp_path, pruner=pruner)
    for number in range(6):
        course = tuple(0.1 * epoch + 0.01 * number for epoch in range(1, 7))
        search.add(TriedValues(number, {}, COMPLETE, course[-1], course))
    assert search.should_prune([0.05, 0.06, 0.07]) and not search.should_prune([0.3, 0.5, 0.6])
    assert not search.should_prune([])
    assert not make_study(tmp_path / "none", pruner="none").should_prune([0.0, 0.0, 0.0])
    search.add(TriedValues(6, {}, PRUNED, 0.07, (0.05, 0.06, 0.07)))
    assert search.best.number == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: [1, 2]", "(lerning_rate): expected a parameter of clean, resize, train or evaluate"),
        ("source: [a, b]", "(source): expected a parameter of clean"),
        ("test_fraction: [0.1, 0.2]", "expected a parameter that leaves images, classes and epochs as they are"),
        ("learning_rate: [0.1]", "(learning_rate): expected a list of two values or more"),
        ("learning_rate: {low: 0.1}", "expected a list of values, or low and high"),
        ("learning_rate: {low: 0.2, high: 0.1}", "the first one lower"),
        ("learning_rate: {low: 0, high: 0.1, log: true}", "(learning_rate): expected log for a number"),
        ("learning_rate: {low: 0.1, high: 100}", "(learning_rate): learning_rate: expected a number of at most 10"),
        ("recipe: [plain, plane]", "(recipe): recipe: expected one of"),
        ("policy: {low: 1, high: 2}", "(policy): expected a list of values"),
        ("policy_ops: {low: 1, high: 3, when: policy}", "(policy_ops.when): expected a parameter that stands"),
        ("- a", "--space: expected parameters with their values"),
        ("a: [", "--space: expected YAML"),
    ],
)  # fmt: skip
def test_invalid_space_is_refused_with_the_field(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_space(tmp_path, text)
    assert message in str(caught.value)


def make_model(train: list[float], val: list[float], scores: list[float], **config: Any) -> Dataset:
    history = [
        {"epoch": number, "train_loss": loss, "val_loss": other, "val_macro_f1": score}
        for number, (loss, other, score) in enumerate(zip(train, val, scores, strict=True), 1)
    ]
    best = max(history, key=lambda row: row["val_macro_f1"])["epoch"]
    return Dataset("m", Manifest("model", "m", config=config, extra=ModelExtra(history=history, best_epoch=best)), "")


def test_regularization_is_described() -> None:
    base = make_model([1.0, 0.6, 0.5, 0.4], [0.9, 0.6, 0.5, 0.5], [0.5, 0.7, 0.8, 0.82])
    assert describe_regularization(base, base, "macro_f1") == ""
    heavy = make_model([2.0, 1.8, 1.7, 1.6], [1.5, 1.2, 1.0, 0.9], [0.3, 0.4, 0.5, 0.6], mixup_probability=0.5)
    assert "too much regularization" in describe_regularization(heavy, base, "macro_f1")
    learned = make_model([1.0, 0.3, 0.1, 0.02, 0.01], [0.6, 0.5, 0.8, 1.0, 1.2], [0.6, 0.7, 0.65, 0.6, 0.6])
    assert "by heart" in describe_regularization(learned, base, "macro_f1")


def test_verdict_is_decided_by_new_seeds(tmp_path: Path) -> None:
    tried = make_study(tmp_path)
    for number in range(2):
        tried.add(TriedValues(number, {}, COMPLETE, 0.8))

    def judge(*best: float) -> str:
        gains = np.array(best) - 0.5
        confirmation = Confirmation((1, 2, 3), (0.5,) * 3, best, compute_mean_difference(gains[:, None], gains))
        return describe_confirmation(tried, "macro_f1", confirmation, 3)[0]

    assert judge(0.6, 0.61, 0.62) == "better" and judge(0.4, 0.41, 0.42) == "worse"
    assert judge(0.45, 0.55, 0.9) == "not_shown_to_differ"
    verdict, reason = describe_confirmation(tried, "macro_f1", None, 3)
    assert verdict == "base_is_best" and "0.8000, is not below that of 1 trial" in reason


def test_written_config_round_trips(tmp_path: Path) -> None:
    base = Configuration.read("{}", {"promote": "never", "metric": "top1", "epochs": "3", "color": "gray"})
    best = base.with_values("train", learning_rate=0.002, recipe="small")
    write_config(str(tmp_path / "best.yaml"), best, "The best of 3 trials.")
    read_back = Configuration.read(str(tmp_path / "best.yaml"), {})
    for step in ("clean", "train", "promote"):
        assert read_back.config(step) == best.config(step)
    assert (tmp_path / "best.yaml").read_text().startswith("# The best of 3 trials.\n")
