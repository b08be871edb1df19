"""Targets, loss and metrics of multi-label images, compared with scikit-learn's and torch's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_recall_fscore_support
from sklearn.preprocessing import MultiLabelBinarizer

from imagemill.components.dataset.labels import MULTI, SINGLE, multi_hot, sum_loss
from imagemill.components.metrics.classification import LabelCounts
from imagemill.components.storage.errors import MillError
from imagemill.components.train.loop.losses import Loss

# Targets and loss.


@given(st.lists(st.sets(st.integers(0, 6)), min_size=1, max_size=20))
def test_multi_hot_matches_scikit_learn(rows: list[set[int]]) -> None:
    targets = multi_hot([sorted(row) for row in rows], 7)
    assert targets.dtype == np.uint8
    np.testing.assert_array_equal(targets, MultiLabelBinarizer(classes=range(7)).fit_transform(rows))


@pytest.mark.parametrize("ids", [[3], [0, -1]])
def test_an_id_without_a_class_is_an_error(ids: list[int]) -> None:
    with pytest.raises(MillError, match="label_ids: expected ids below 3"):
        multi_hot([[0, 1], ids], 3)


def mean_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    return Loss(SINGLE if labels.ndim == 1 else MULTI, smoothing)(logits, labels) / len(labels)


def make_logits_and_labels(rows: int, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, npt.NDArray[np.uint8]]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, (rows, classes)).astype(np.uint8)
    labels[0], labels[1] = 0, 1  # scikit-learn wants both
    return torch.from_numpy(random.normal(0, 2, (rows, classes))), labels


def test_the_loss_is_the_mean_of_each_classes_cross_entropy() -> None:
    logits, labels = make_logits_and_labels(30)
    expected = np.mean([log_loss(labels[:, c], logits.sigmoid()[:, c].numpy()) for c in range(4)])
    assert mean_loss(logits, torch.from_numpy(labels)).item() == pytest.approx(expected)
    assert sum_loss(logits, torch.from_numpy(labels)) / 30 == pytest.approx(expected)


def test_label_smoothing_moves_targets_towards_one_half() -> None:
    """y(1 - s) + s/2: with s = 0.2 a one is 0.9 and a zero 0.1."""
    logits, labels = make_logits_and_labels(10)
    p, y = logits.sigmoid().numpy(), np.where(labels, 0.9, 0.1)
    expected = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert mean_loss(logits, torch.from_numpy(labels), 0.2).item() == pytest.approx(expected)


def test_single_label_loss_is_torchs_cross_entropy() -> None:
    logits, ids = torch.randn(9, 5), torch.arange(9) % 5
    loss = torch.nn.functional.cross_entropy
    torch.testing.assert_close(mean_loss(logits, ids, 0.1), loss(logits, ids, label_smoothing=0.1))
    assert sum_loss(logits, ids) == loss(logits, ids, reduction="sum").item()


# Metrics.


@given(st.integers(1, 40), st.integers(2, 6), st.integers(0, 10**6))
@settings(deadline=None)
def test_metrics_match_scikit_learn(rows: int, classes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = (random.random((rows, classes)) < random.random()).astype(int)
    score = random.random((rows, classes))
    predicted = score >= 0.5
    counts = LabelCounts(classes)
    for part in np.array_split(np.arange(rows), min(rows, 3)):
        counts.add(labels[part], predicted[part], score[part].argmax(1))
    summary, present = counts.summary(), np.flatnonzero(labels.any(axis=0))
    assert summary["micro_f1"] == pytest.approx(f1_score(labels, predicted, average="micro", zero_division=0))
    assert summary["subset_accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert summary["top1"] == pytest.approx(np.mean([labels[n, score[n].argmax()] for n in range(rows)]))
    macro = f1_score(labels, predicted, labels=present, average="macro", zero_division=0) if len(present) else 0
    assert summary["macro_f1"] == pytest.approx(macro)
    expected = precision_recall_fscore_support(labels, predicted, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose(counts.per_class()[name], values, atol=1e-12)


def test_no_images_give_zeros() -> None:
    expected = {"top1": 0.0, "macro_f1": 0.0, "micro_f1": 0.0, "subset_accuracy": 0.0}
    assert LabelCounts(3).summary() == expected
