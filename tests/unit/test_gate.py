"""The gate on evaluations with given predictions: every verdict, what counts, what stops a better model, the log."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gated import CLASSES, LABELS, Gate, wrong

from imagemill.components.dataset.records import Promotion, StepRecord
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.promote import STEP
from imagemill.components.promote.config import PromoteConfig
from imagemill.components.promote.promote import promote
from imagemill.components.promote.score_difference import METRIC_TITLES
from imagemill.components.step.step import Context, NotCached
from imagemill.components.storage.errors import TransientError, UserError


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(Workspace.open(str(tmp_path / "mill")))


def crowned(gate: Gate, mistakes: int = 40, **options: Any) -> None:
    """A first champion with so many mistakes."""
    champion = gate.evaluate("champion", wrong(mistakes), **options)
    assert gate.promote(champion)["verdict"] == "first"


def judged(gate: Gate, mistakes: int, start: int = 0, **rule: Any) -> Any:
    """The verdict on a challenger whose mistakes are among the champion's, or begin elsewhere."""
    challenger = gate.evaluate(f"challenger {mistakes} {start}", wrong(mistakes, start))
    return gate.promote(challenger, **rule)


@pytest.mark.parametrize(
    ("mistakes", "start", "rule", "verdict", "promoted"),
    [
        (20, 0, {}, "better", True),
        (36, 0, {}, "not_shown_better", False),
        (40, 200, {}, "not_shown_better", False),
        (60, 0, {}, "worse", False),
        (20, 0, {"min_gain": 0.06}, "not_shown_better", False),
        (20, 0, {"level": 1e-6}, "not_shown_better", False),
        (20, 0, {"min_test_images": 500}, "too_few_images", False),
        (60, 0, {"min_test_images": 500, "promote": "always"}, "too_few_images", True),
        (60, 0, {"promote": "always"}, "worse", True),
        (20, 0, {"promote": "never"}, "better", False),
        (36, 0, {"promote": "never"}, "not_shown_better", False),
        (20, 0, {"metric": "top1"}, "better", True),
        (20, 0, {"metric": "balanced_accuracy"}, "better", True),
    ],
)
def test_every_verdict(
    gate: Gate, mistakes: int, start: int, rule: dict[str, Any], verdict: str, promoted: bool
) -> None:
    crowned(gate)
    result = judged(gate, mistakes, start, **rule)
    assert (result["verdict"], result["promoted"], result["n"]) == (verdict, promoted, 2 if promoted else 1)
    reason, name = result["reason"], METRIC_TITLES[rule.get("metric", "macro_f1")]
    assert result["challenger"] == pytest.approx(1 - mistakes / 400, abs=0.002)
    assert result["champion"] == pytest.approx(0.9, abs=0.002)
    if verdict != "too_few_images":
        message = (
            f"{name} {result['challenger']:.4f} against the champion's {result['champion']:.4f} on 400 test images, "
        )
        assert reason.startswith(message) and "; top-1: " in reason and "McNemar" in reason
    assert reason.endswith("; the champion stays") == (not promoted and verdict != "better")
    assert reason.endswith("; promoted anyway: promote is always") == (rule.get("promote") == "always")
    assert reason.endswith("; not promoted: promote is never") == (verdict == "better" and not promoted)


def test_the_sentence_and_the_log_have_the_numbers(gate: Gate) -> None:
    crowned(gate)
    assert judged(gate, 20)["reason"] == (
        "macro-F1 0.9500 against the champion's 0.9000 on 400 test images, +0.0500 (+0.0275 to +0.0725): significantly "
        "more than +0.005 (p 3e-05, needs 0.018); top-1: 20 images won, 0 lost (McNemar's p 1e-06)"
    )
    record = gate.record()
    assert (record["verdict"], record["promoted"], record["images"]) == ("better", True, 400)
    assert record["gain"] == pytest.approx(0.05, abs=1e-4) and record["p"] < record["level"] == pytest.approx(0.018)
    assert (record["won"], record["lost"], record["uses"], record["left_out"]) == (20, 0, 0, 0)
    assert {"n", "model", "evaluation", "previous", "run", "created", "challenger_model", "sketch"} <= set(record)


def test_models_that_agree_on_everything_are_not_shown_to_differ(gate: Gate) -> None:
    crowned(gate)
    assert judged(gate, 40)["verdict"] == "not_shown_better"
    assert "+0.0000 (-0.0" in judged(gate, 40)["reason"], "about other images nothing is sure"


# First models.


GUESS = {"better": False, "why": "no better than chance, as far as 400 test images can tell: top-1 is 0.25"}


@pytest.mark.parametrize(
    ("policy", "promoted", "message"),
    [("auto", False, "there was no champion, and there is none now"),
     ("always", True, "promoted anyway: promote is always"), ("never", False, "there was no champion")],
)  # fmt: skip
def test_a_first_model_that_is_no_better_than_a_guess_is_no_champion(
    gate: Gate, policy: str, promoted: bool, message: str
) -> None:
    guess = gate.evaluate("guess", wrong(300), chance=GUESS)
    verdict = gate.promote(guess, promote=policy)
    assert (verdict["verdict"], verdict["promoted"]) == ("no_better_than_chance", promoted)
    assert GUESS["why"] in verdict["reason"] and message in verdict["reason"]
    assert (gate.workspace.last_promotion("weekly") is not None) == promoted
    assert gate.outcome(guess, promote=policy, run="again").state == "cached"


def test_the_last_line_of_a_promotion_without_a_champion_names_no_uri(
    gate: Gate, capsys: pytest.CaptureFixture[str]
) -> None:
    guess = gate.evaluate("guess", wrong(300), chance=GUESS)
    assert STEP.main([f"--workspace={gate.workspace.uri}", "--name=weekly", f"--evaluation={guess.uri}"]) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith("s)"), "nothing behind a colon"


def test_first_model_becomes_champion_unless_promote_is_never(gate: Gate) -> None:
    first = gate.evaluate("first", wrong(40))
    verdict = gate.promote(first, promote="never")
    assert (verdict["verdict"], verdict["promoted"]) == ("first", False)
    assert verdict["reason"] == "macro-F1 0.9000; there was no champion; not promoted: promote is never"
    verdict = gate.promote(first)
    assert (verdict["verdict"], verdict["promoted"], verdict["n"]) == ("first", True, 1)
    assert verdict["reason"] == "macro-F1 0.9000; there was no champion, so this model is promoted"
    outcome = gate.outcome(first, run="another")
    assert (outcome.state, outcome.metrics["verdict"]) == ("cached", "already_champion")


def test_without_the_champions_model_the_challenger_is_a_first_model(gate: Gate) -> None:
    crowned(gate)
    shutil.rmtree(gate.workspace.absolute(gate.record()["model"]))
    verdict = judged(gate, 60)
    assert (verdict["verdict"], verdict["n"]) == ("first", 2) and "the model of promotion 1 is gone" in verdict[
        "reason"
    ]


def test_better_model_that_is_no_better_than_chance_says_so_in_the_reason(gate: Gate) -> None:
    crowned(gate, 200)
    verdict = gate.promote(gate.evaluate("other", wrong(100), chance=GUESS))
    assert verdict["verdict"] == "better" and verdict["reason"].endswith(str(GUESS["why"]))


# Which images and classes count.


def test_images_seen_in_training_are_left_out_of_the_comparison(gate: Gate) -> None:
    """The challenger is right about those, and wrong as often as the champion elsewhere."""
    half = np.arange(400) % 2 == 0
    crowned(gate)
    learned = np.where(half, LABELS, wrong(40))
    verdict = gate.promote(gate.evaluate("by heart", learned, seen=half))
    assert verdict["verdict"] == "not_shown_better" and verdict["challenger"] == verdict["champion"]
    assert "on 200 test images (200 more were seen in training)" in verdict["reason"]
    assert gate.promote(gate.evaluate("not by heart", learned))["verdict"] == "better"


def test_too_few_test_images_unseen_by_the_champion_are_a_verdict(gate: Gate) -> None:
    crowned(gate, 40, seen=np.arange(400) < 390)
    verdict = judged(gate, 20)
    assert verdict["verdict"] == "too_few_images"
    assert verdict["reason"].startswith(
        "10 test images (390 more were seen in training) left to compare on, and 30 are"
    )
    assert judged(gate, 20, min_test_images=10)["verdict"] == "not_shown_better"


def test_challenger_with_unknown_training_images_is_not_comparable(gate: Gate) -> None:
    crowned(gate, unknown=("clean/0123",))
    verdict = gate.promote(gate.evaluate("stranger", wrong(0), unknown=("clean/4567",)))
    assert verdict["verdict"] == "not_comparable" and "trained on is not known: clean/4567 is gone" in verdict["reason"]
    assert judged(gate, 20)["verdict"] == "better", "the champion's would only make it look better"


def test_new_classes_are_reported_and_the_others_compared(gate: Gate) -> None:
    """On cats and dogs the challenger is better, on ants and bees as bad as can be."""
    crowned(gate, 40, known=("cat", "dog"))
    predicted = np.where(LABELS < 2, (LABELS + 1) % 2, LABELS)
    predicted[0] = 0
    verdict = gate.promote(gate.evaluate("knows all", predicted, confidence=0.95))
    assert verdict["verdict"] == "better" and "on 200 test images" in verdict["reason"]
    assert verdict["challenger"] == 1 and verdict["champion"] == pytest.approx(0.924, abs=0.002)
    new = "; new to the champion and not compared: 'ant' (1 of 100 images recognized), 'bee' (0 of 100"
    assert new in verdict["reason"]


def test_class_missing_from_the_challenger_counts_as_wrong(gate: Gate) -> None:
    crowned(gate)
    predicted = np.where(LABELS == 3, 0, LABELS)
    verdict = gate.promote(gate.evaluate("three classes", predicted, known=CLASSES[:3]))
    assert verdict["verdict"] == "worse" and "on 400 test images" in verdict["reason"]


def test_models_without_common_classes_are_not_comparable(gate: Gate) -> None:
    crowned(gate, known=("owl", "pig"))
    verdict = judged(gate, 0)
    assert (verdict["verdict"], verdict["promoted"]) == ("not_comparable", False)
    assert "the champion knows none of today's classes" in verdict["reason"]
    assert judged(gate, 0, promote="always")["promoted"]


def test_models_of_different_tasks_are_not_comparable(gate: Gate) -> None:
    crowned(gate)
    verdict = gate.promote(gate.evaluate("several", wrong(0), task="multi"))
    assert verdict["verdict"] == "not_comparable"
    assert "this model is multi-label, the champion single-label" in verdict["reason"]


# What stops a model that is better in the mean.


def test_recall_of_a_class_may_fall_only_within_the_limit(gate: Gate) -> None:
    crowned(gate, 200)
    fallen = LABELS.copy()
    dogs = np.flatnonzero(LABELS == 3)
    fallen[dogs[:75]] = 0  # the champion has half of the dogs wrong
    verdict = gate.promote(gate.evaluate("no dogs", fallen))
    message = "but recall has fallen by more than 0.1 in 'dog' by 0.250 (25 images lost, 0 won of 100)"
    assert (verdict["verdict"], verdict["promoted"]) == ("not_shown_better", False) and message in verdict["reason"]
    assert gate.promote(gate.evaluate("no dogs", fallen), max_class_drop=0.3)["promoted"]


def test_a_fall_that_few_images_show_is_no_reason(gate: Gate) -> None:
    """One of five dogs is lost."""
    labels = np.r_[np.repeat(np.arange(3), 130), np.full(5, 3)]
    champion, challenger = labels.copy(), labels.copy()
    champion[:390:5] = (labels[:390:5] + 1) % 3
    challenger[-1] = 0
    assert gate.promote(gate.evaluate("champion", champion, labels=labels))["promoted"]
    assert gate.promote(gate.evaluate("challenger", challenger, labels=labels))["verdict"] == "better"


def test_calibration_error_may_rise_only_within_the_limit(gate: Gate) -> None:
    crowned(gate)
    unsure = gate.evaluate("unsure", wrong(20), confidence=0.5)
    verdict = gate.promote(unsure)
    message = "but the calibration error has risen from 0.000 to 0.450, by more than 0.05"
    assert verdict["verdict"] == "not_shown_better" and message in verdict["reason"]
    assert gate.promote(unsure, max_ece_rise=0.5)["promoted"]


def test_speed_limits_promotion_only_if_requested_and_measured_on_the_same_device(gate: Gate) -> None:
    def speed(rate: float, device: str = "a CPU") -> dict[str, Any]:
        return {
            "throughput": {
                "device": device,
                "batch_size": 128,
                "network_one_view": rate,
                "network": rate,
                "whole": rate,
                "tta": "none",
            }
        }

    crowned(gate, **speed(1000))
    slow = gate.evaluate("slow", wrong(20), **speed(400))
    verdict = gate.promote(slow, max_slowdown=2)
    message = "but it takes 2.5 times as long for an image (400 images/s, not 1,000)"
    assert verdict["verdict"] == "not_shown_better" and message in verdict["reason"]
    other = gate.evaluate("on a GPU", wrong(20), **speed(400, "a GPU"))
    assert gate.promote(other, max_slowdown=2, promote="never")["verdict"] == "better"
    assert gate.promote(slow, max_slowdown=3)["promoted"]


# The log: how often the images have decided, and which are new.


def needed(reason: str) -> float:
    return float(reason.partition("needs ")[2].partition(")")[0].split()[0])


def test_each_challenger_leaves_less_of_the_level(gate: Gate) -> None:
    crowned(gate)
    assert needed(judged(gate, 39)["reason"]) == 0.018
    second = judged(gate, 38)["reason"]
    assert needed(second) == 0.009 and "after 1 comparisons on these images" in second
    assert judged(gate, 38, run="again")["reason"] == second, "the same comparison is made once"
    assert needed(judged(gate, 38, min_gain=0.001)["reason"]) == 0.009, "its own do not count against a challenger"
    assert needed(judged(gate, 37)["reason"]) == 0.006
    assert judged(gate, 20)["promoted"]
    assert needed(judged(gate, 19)["reason"]) == 0.018, "a new champion is compared with for the first time"


def test_a_verdict_that_is_judged_again_replaces_the_earlier_one(gate: Gate) -> None:
    crowned(gate)
    challenger = gate.evaluate("challenger", wrong(38))
    first = gate.promote(challenger)["reason"]
    judged(gate, 39)
    second = gate.outcome(challenger, run="again", rerun=True)
    assert second.state == "ran" and needed(first) == 0.018 and needed(second.metrics["reason"]) == 0.009
    third = gate.outcome(challenger, run="third")
    assert (third.state, third.metrics["reason"]) == ("cached", second.metrics["reason"])


def test_images_that_are_new_give_the_level_back_and_have_a_verdict_of_their_own(gate: Gate) -> None:
    """In the second week half of the test images are others; the champion is no better on those, the challenger is."""
    crowned(gate)
    for mistakes in (39, 38):
        judged(gate, mistakes)
    champion = gate.evaluate("champion", wrong(40), week=2, first_image=200)
    verdict = gate.promote(gate.evaluate("weekly", wrong(20), week=2, first_image=200), champion)
    assert needed(verdict["reason"]) == 0.009 and "after 1 comparisons" in verdict["reason"], (
        "two on half of the images"
    )
    record = gate.record()
    assert record["fresh_images"] == 200 and record["fresh_verdict"] == "better"
    assert f"on the 200 images that are new since promotion 1 alone {record['fresh_gain']:+.4f} (" in verdict["reason"]


def test_few_new_images_are_counted_and_none_or_all_not_mentioned(gate: Gate) -> None:
    crowned(gate)
    assert "new since" not in judged(gate, 39)["reason"]
    champion = gate.evaluate("champion", wrong(40), week=2, first_image=10)
    reason = gate.promote(gate.evaluate("weekly", wrong(39), week=2, first_image=10), champion)["reason"]
    assert "10 of the images are new since promotion 1, too few to compare on alone" in reason
    champion = gate.evaluate("champion", wrong(40), week=3, first_image=400)
    assert (
        "new since"
        not in gate.promote(gate.evaluate("another", wrong(39), week=3, first_image=400), champion)["reason"]
    )


# Which evaluation of the champion.


def test_in_week_two_the_champions_evaluation_is_found(gate: Gate) -> None:
    """Promote alone, with nothing but the challenger's evaluation; evaluate has made the champion's beside it."""
    crowned(gate)
    challenger = gate.evaluate("weekly", wrong(20), week=2)
    with pytest.raises(
        UserError, match=r"the champion .* was not evaluated on the same test images: run imagemill eval"
    ):
        gate.promote(challenger)
    with pytest.raises(TransientError, match="promoted by another run; run again to compare with it"):
        gate.promote(challenger, alone=False)
    gate.evaluate("champion", wrong(40), week=2)
    assert gate.promote(challenger)["verdict"] == "better"
    assert gate.record()["evaluation"] == gate.workspace.relative(challenger.uri)


def test_an_evaluation_of_other_images_is_refused(gate: Gate) -> None:
    crowned(gate)
    other = gate.evaluate("champion", wrong(40), week=2)
    with pytest.raises(UserError, match="champion_evaluation: expected an evaluation on the test split of"):
        gate.promote(gate.evaluate("challenger", wrong(20)), other)


def test_a_report_from_before_a_rollback_is_no_report_of_now(gate: Gate) -> None:
    """A run that is only looked at names the earlier run's report, whose verdict has to be the one that holds."""
    crowned(gate)
    champion, better, workspace = gate.record(), gate.evaluate("better", wrong(20)), gate.workspace
    outcome = gate.outcome(better, run="earlier", alone=False)
    workspace.note_latest("weekly", better, "earlier")
    workspace.write_step_record("earlier", "promote", StepRecord(**vars(outcome)))
    workspace.store.put(workspace.report_uri("earlier"), b"<p>better</p>")
    values = {"workspace": workspace.uri, "evaluation": better.uri, "name": "weekly", "run": "again"}
    config = PromoteConfig.from_values(values | gate.rule)
    look = Context("promote", workspace, "again", False, only_cached=True)
    assert promote(config, look).metrics["report"] == workspace.report_uri("earlier")
    back = champion | {"verdict": "rollback", "rolled_back": [gate.record()["model"]]}
    workspace.append_promotion("weekly", 3, Promotion.from_dict(back, "test"))
    with pytest.raises(NotCached):
        promote(config, look)


def test_rolled_back_model_is_not_promoted_automatically(gate: Gate) -> None:
    crowned(gate)
    champion, better = gate.record(), gate.evaluate("better", wrong(20))
    assert gate.promote(better)["promoted"]
    rollback = champion | {"verdict": "rollback", "rolled_back": [gate.record()["model"]]}
    gate.workspace.append_promotion("weekly", 3, Promotion.from_dict(rollback, "test"))
    verdict = gate.promote(better, run="next week")
    assert (verdict["verdict"], verdict["promoted"], verdict["n"]) == ("rolled_back", False, 3)
    assert "taken back by promotion 3" in verdict["reason"]
    assert gate.promote(better, run="by hand", promote="always")["promoted"]
