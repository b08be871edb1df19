"""Search of `imagemill tune`: space, studies, verdict and the file with the best values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from imagemill.components.dataset.kinds import ModelExtra
from imagemill.components.dataset.manifest import Dataset, Manifest
from imagemill.components.storage.errors import UserError
from imagemill.components.train.config import TrainConfig
from imagemill.pipelines.experiments.search import Confirmation, describe_confirmation, write_config
from imagemill.pipelines.experiments.search_space import SearchSpace
from imagemill.pipelines.experiments.study import COMPLETE, FAILED, Study, TriedValues, describe_regularization
from imagemill.pipelines.experiments.trials import Configuration

BASE = Configuration.read("{}", {})


def read_space(folder: Path, text: str) -> SearchSpace:
    (folder / "space.yaml").write_text(text)
    return SearchSpace.read(str(folder / "space.yaml"), BASE)


def make_study(folder: Path, pruner: str = "median", seed: int = 0) -> Study:
    """The study whose journal is `folder/study`, opened as another process does: its own file is new."""
    return Study(str(folder / "study"), Path(mkdtemp(dir=folder)), pruner, seed)


def add_trial(study: Study, course: Sequence[float], space: SearchSpace | None = None) -> dict[str, Any]:
    trial = study.begin()
    values = space.suggest(trial) if space else {}
    study.report(trial, course)
    study.end(trial, COMPLETE, model=f"model/{trial.number}")
    return values


def test_default_space_gives_valid_configurations(tmp_path: Path) -> None:
    study, space = make_study(tmp_path), SearchSpace.read("", BASE)
    add_trial(study, [0.5])
    for number in range(1, 15):
        values = add_trial(study, [number / 100], space)
        config = space.apply(BASE, values).config("train")
        assert isinstance(config, TrainConfig) and config.recipe == values["recipe"]
        assert ("policy_ops" in values) == (values["policy"] == "randaugment")
        assert ("mixup" in values) == (values["mixup_probability"] != 0)
        assert study.trials[-1].values == values
    assert len({str(trial.values) for trial in study.trials}) > 10


def test_study_continues_where_it_was_and_repeats_an_interrupted_trial(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    space, other = SearchSpace.read("", BASE), make_study(tmp_path / "other")
    for number in range(10):
        interrupted = make_study(tmp_path)
        proposal = space.suggest(interrupted.begin())
        reopened = make_study(tmp_path)
        assert len(reopened.trials) == number
        values = add_trial(reopened, [0.1 * (number % 3)], space)
        assert proposal == values == add_trial(other, [0.1 * (number % 3)], space)
    assert make_study(tmp_path).trials == other.trials and other.best.number == 2


@pytest.mark.parametrize("pruner", ["median", "asha", "none"])
def test_trial_below_the_others_is_pruned(tmp_path: Path, pruner: str) -> None:
    study = make_study(tmp_path, pruner)
    for number in range(6):
        add_trial(study, [0.1 * epoch + 0.01 * number for epoch in range(1, 7)])
    behind, ahead = study.begin(), study.begin()
    assert not study.report(behind, []) and not study.report(ahead, [0.3, 0.5, 0.6])
    assert (study.report(behind, [0.05]) or study.report(behind, [0.05, 0.06, 0.07])) == (pruner != "none")
    assert study.end(study.begin(), FAILED, note="no memory").note == "no memory" and study.best.number == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: [1, 2]", "(lerning_rate): expected a parameter of clean, resize, train or evaluate"),
        ("source: [a, b]", "(source): expected a parameter of clean"),
        ("test_fraction: [0.1, 0.2]", "expected a parameter that leaves images, classes and epochs as they are"),
        ("learning_rate: [0.1]", "(learning_rate): expected a list of two values or more"),
        ("learning_rate: {low: 0.1}", "expected numbers for low and high"),
        ("learning_rate: {low: 0.2, high: 0.1}", "whose low is below its high"),
        ("learning_rate: {low: 0, high: 0.1, log: true}", "(learning_rate): expected a range of numbers"),
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


@pytest.mark.parametrize(
    ("train", "val", "scores", "note"),
    [
        ([1.0, 0.6, 0.5, 0.4], [0.9, 0.6, 0.5, 0.5], [0.5, 0.7, 0.8, 0.82], ""),
        ([2.0, 1.8, 1.7, 1.6], [1.5, 1.2, 1.0, 0.9], [0.3, 0.4, 0.5, 0.6], "too much regularization"),
        ([1.0, 0.3, 0.1, 0.02, 0.01], [0.6, 0.5, 0.8, 1.0, 1.2], [0.6, 0.7, 0.65, 0.6, 0.6], "by heart"),
    ],
)
def test_regularization_is_described(train: list[float], val: list[float], scores: list[float], note: str) -> None:
    found = describe_regularization(make_model(train, val, scores), 0.82, "macro_f1")
    assert note in found and bool(note) == bool(found)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((0.1, 0.2), "better"), ((-0.2, -0.1), "worse"), ((-0.1, 0.2), "not_shown_to_differ"), (None, "base_is_best")],
)
def test_verdict_is_decided_by_new_seeds(interval: tuple[float, float] | None, expected: str) -> None:
    trials = [TriedValues(number, {}, COMPLETE, 0.8, (0.8,)) for number in range(2)]
    gain = sum(interval) / 2 if interval else 0.0
    confirmation = Confirmation((1, 2), (0.5, 0.5), (0.6, 0.6), gain, interval, 0.5) if interval else None
    verdict, reason = describe_confirmation(trials, trials[1], "macro_f1", confirmation)
    assert verdict == expected
    assert ("over 2 new seeds" if interval else "0.8000, is not below that of 1 trial") in reason


def test_written_config_round_trips(tmp_path: Path) -> None:
    base = Configuration.read("{}", {"promote": "never", "metric": "top1", "epochs": "3", "color": "gray"})
    best = base.with_values("train", learning_rate=0.002, recipe="small")
    write_config(str(tmp_path / "best.yaml"), best, "The best of 3 trials.")
    read_back = Configuration.read(str(tmp_path / "best.yaml"), {})
    for step in ("clean", "train", "promote"):
        assert read_back.config(step) == best.config(step)
    assert (tmp_path / "best.yaml").read_text().startswith("# The best of 3 trials.\n")
