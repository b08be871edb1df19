"""Conditions under which two configurations can be compared, and the errors where they differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gated import CLASSES, LABELS, Gate, wrong

from imagemill.components.dataset.manifest import Dataset, Manifest
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.storage.errors import UserError
from imagemill.pipelines.experiments.differences import compare_evaluations
from imagemill.pipelines.experiments.trials import (
    Configuration,
    check_comparable,
    check_same_classes,
    list_parameter_differences,
)


def clean(*classes: str, task: str = "single") -> Dataset:
    return Dataset("c", Manifest("clean", "c", classes=classes, task=task), "")


def test_other_classes_and_tasks_are_named() -> None:
    check_same_classes(clean("a", "b"), clean("a", "b"))
    with pytest.raises(UserError, match=r"of the first alone: 'b'; of the second alone: 'c', 'd'"):
        check_same_classes(clean("a", "b"), clean("a", "c", "d"))
    with pytest.raises(UserError, match="found single-label and multi-label"):
        check_same_classes(clean("a"), clean("a", task="multi"))


def test_password_of_a_source_is_not_shown() -> None:
    sources = [f"https://me:secret@host/{name}.tar" for name in "ab"]
    first, second = (Configuration.read("{}", {"dataset": "folder", "source": source}) for source in sources)
    with pytest.raises(UserError, match="source: expected the same in") as error:
        check_comparable(first, second)
    assert "secret" not in str(error.value)


def test_parameters_that_differ_are_listed_with_their_effective_values() -> None:
    first, second = (Configuration.read("{}", flags) for flags in ({}, {"preset": "ocr", "epochs": "3"}))
    rows = {(r["step"], r["name"]): [r["A"], r["B"]] for r in list_parameter_differences(first, second)}
    assert rows["clean", "color"] == ["rgb", "gray"] and rows["train", "epochs"] == ["by default", "3"]


def test_images_that_only_one_configuration_tests_are_left_out(tmp_path: Path) -> None:
    gate = Gate(Workspace.open(str(tmp_path)))
    first = [gate.evaluate(f"a{seed}", wrong(20, seed), labels=LABELS) for seed in range(3)]
    # Without the last 40 images, 10 more wrong, and one that was seen in training.
    shorter = LABELS[:360]
    was_trained_on = np.arange(360) == 7
    second = [
        gate.evaluate(f"b{seed}", wrong(30, seed)[:360], labels=shorter, seen=was_trained_on) for seed in range(3)
    ]
    result = compare_evaluations(first, second)
    assert (result.images, result.excluded) == (359, 41)
    assert result.image_ids[:2] == ("000000.jpg", "000001.jpg") and "000007.jpg" not in result.image_ids
    right = [[(wrong(errors, seed)[:360] == shorter)[~was_trained_on] for seed in range(3)] for errors in (20, 30)]
    assert np.array_equal(result.right, np.mean(right, axis=1))
    expected = np.mean(right, axis=(1, 2))
    assert result.differences["top1"].gain == pytest.approx(expected[1] - expected[0])
    assert result.lost > 0 == result.won and result.labels[0] == CLASSES[0]
    assert [change["A"] > change["B"] for change in result.find_changes(5)] == [True] * 5


def test_folds_are_taken_together_and_their_interval_is_wider(tmp_path: Path) -> None:
    """Two seeds of three folds: the images of the folds are one test split, each in it once."""
    gate = Gate(Workspace.open(str(tmp_path)))
    sides, unfolded = [], []
    for side, errors in (("a", 30), ("b", 45)):
        predicted = [wrong(errors, seed) for seed in range(2)]
        cuts = [slice(start, start + 150) for start in range(0, len(LABELS), 150)]
        sides.append([
            gate.evaluate(f"{side}{seed}.{cut.start}", rows[cut], labels=LABELS[cut], first_image=cut.start)
            for seed, rows in enumerate(predicted) for cut in cuts
        ])  # fmt: skip
        unfolded.append([gate.evaluate(f"{side}{seed}", rows, labels=LABELS) for seed, rows in enumerate(predicted)])
    folded, plain = compare_evaluations(*sides, folds=len(cuts)), compare_evaluations(*unfolded)
    assert folded.image_ids == plain.image_ids and folded.excluded == 0 and np.array_equal(folded.right, plain.right)
    for metric, expected in plain.differences.items():
        result = folded.differences[metric]
        assert result.gains == pytest.approx(expected.gains)
        assert result.image_error == pytest.approx(expected.image_error * (1 + len(cuts) / (len(cuts) - 1)) ** 0.5)
