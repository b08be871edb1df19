"""The gate: every verdict, the margin to the last digit, and models that can't be compared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagemill.components.promote.gate import judge
from imagemill.components.store.manifest import Dataset, Manifest


def evaluation(macro_f1: float, classes: tuple[str, ...] = ("a", "b")) -> Dataset:
    extra = {"metrics": {"macro_f1": macro_f1, "top1": 0.0}, "model_classes": list(classes)}
    return Dataset("/w/evaluation/01", Manifest("evaluation", "01", extra=extra), "")


@pytest.mark.parametrize(
    ("new", "old", "min_gain", "policy", "verdict", "promoted"),
    [
        (0.5, None, 0.005, "auto", "first", True),
        (0.0, None, 0.005, "auto", "first", True),
        (0.5, None, 0.005, "always", "first", True),
        (0.5, None, 0.005, "never", "never", False),
        (0.91, 0.90, 0.005, "auto", "promoted", True),
        (0.904, 0.90, 0.005, "auto", "kept", False),
        (0.89, 0.90, 0.005, "auto", "kept", False),
        (0.90, 0.90, 0.0, "auto", "kept", False),
        (0.90000001, 0.90, 0.0, "auto", "promoted", True),
        (0.1, 0.9, 0.005, "always", "promoted", True),
        (0.99, 0.1, 0.005, "never", "never", False),
        (1.0, 0.0, 1.0, "auto", "promoted", True),
    ],
)
def test_every_verdict(
    new: float, old: float | None, min_gain: float, policy: str, verdict: str, promoted: bool
) -> None:
    found = judge(evaluation(new), None if old is None else evaluation(old), min_gain, policy)
    assert (found.verdict, found.promoted) == (verdict, promoted)
    assert (found.challenger, found.champion, found.min_gain, found.metric) == (new, old, min_gain, "macro_f1")
    assert f"{new:.4f}" in found.reason


@given(st.integers(0, 900), st.integers(1, 99))
def test_the_margin_is_exact(champion: int, gain: int) -> None:
    """In thousandths: in binary 0.905 - 0.9 is a little more than 0.005, and 0.009 - 0.004 a little less."""
    old, new, min_gain = champion / 1000, (champion + gain) / 1000, gain / 1000
    assert judge(evaluation(new), evaluation(old), min_gain, "auto").promoted
    assert not judge(evaluation(new), evaluation(old), (gain + 0.001) / 1000, "auto").promoted
    assert not judge(evaluation(old), evaluation(new), 0.0, "auto").promoted


@pytest.mark.parametrize("classes", [("a", "b", "c"), ("b", "a"), ("a",)])
def test_models_of_other_classes_are_not_comparable(classes: tuple[str, ...]) -> None:
    for policy in ("auto", "never"):
        found = judge(evaluation(0.9, classes), evaluation(0.1), 0.005, policy)
        assert (found.verdict, found.promoted) == ("not comparable", False)
    assert judge(evaluation(0.1, classes), evaluation(0.9), 0.005, "always").promoted


def test_a_score_that_is_no_number_is_never_promoted() -> None:
    assert not judge(evaluation(float("nan")), evaluation(0.5), 0.0, "auto").promoted


def test_a_verdict_is_a_record() -> None:
    found = judge(evaluation(0.9), evaluation(0.8), 0.005, "auto")
    assert found.to_dict() == {
        "verdict": "promoted", "reason": "macro_f1 0.9000 against 0.8000, +0.1000 (needs +0.005)", "promoted": True,
        "challenger": 0.9, "champion": 0.8, "min_gain": 0.005, "metric": "macro_f1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("old", "words"),
    [(0.89, ", within its 95% interval of 0.8800 to 0.9300"), (0.87, ", beyond its"), (0.94, ", beyond its")],
)
def test_the_gates_line_says_whether_chance_could_be_it(old: float, words: str) -> None:
    challenger = evaluation(0.9)
    challenger.manifest.extra["intervals"] = {"macro_f1": [0.88, 0.93]}
    assert words in judge(challenger, evaluation(old), 0.005, "auto").reason
    assert "interval" not in judge(evaluation(0.9), evaluation(old), 0.005, "auto").reason, "an earlier release's"
