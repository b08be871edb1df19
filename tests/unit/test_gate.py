"""The gate on evaluations with given predictions: every verdict, what counts, what stops a better model, the log."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gated import CLASSES, LABELS, Gate, Training, wrong

from imagemill.components.dataset.records import Promotion, StepRecord
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.promote import STEP
from imagemill.components.promote.config import PromoteConfig
from imagemill.components.promote.promote import promote
from imagemill.components.step.config import METRIC_TITLES
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
        (39, 0, {}, "better", True),
        (40, 0, {}, "not_worse", True),
        (40, 200, {}, "not_worse", True),
        (41, 0, {}, "not_worse", True),
        (60, 0, {}, "worse", False),
        (45, 200, {}, "not_worse", True),
        (45, 200, {"level": 0.4}, "worse", False),
        (20, 0, {"promote": "better"}, "better", True),
        (36, 0, {"promote": "better"}, "not_better", False),
        (36, 0, {"promote": "better", "level": 0.2, "min_gain": 0}, "better", True),
        (20, 0, {"promote": "better", "min_gain": 0.06}, "not_better", False),
        (60, 0, {"promote": "better"}, "worse", False),
        (60, 0, {"promote": "always"}, "worse", True),
        (20, 0, {"promote": "never"}, "better", False),
        (60, 0, {"promote": "never"}, "worse", False),
        (20, 0, {"metric": "top1"}, "better", True),
        (60, 0, {"metric": "balanced_accuracy"}, "worse", False),
    ],
)
def test_every_verdict(
    gate: Gate, mistakes: int, start: int, rule: dict[str, Any], verdict: str, promoted: bool
) -> None:
    crowned(gate)
    result = judged(gate, mistakes, start, **rule)
    assert (result["verdict"], result["promoted"], result["n"]) == (verdict, promoted, 2 if promoted else 1)
    assert result["challenger"] == pytest.approx(1 - mistakes / 400, abs=0.002)
    assert result["champion"] == pytest.approx(0.9, abs=0.002)
    reason, policy = result["reason"], rule.get("promote")
    assert f"{METRIC_TITLES[rule.get('metric', 'macro_f1')]} {result['challenger']:.3f} against 0.900, " in reason
    assert reason.startswith("promoted" if promoted else "not promoted")
    assert (" since promote is always: " in reason) == (policy == "always")
    assert (" since promote is never: " in reason) == (policy == "never" and verdict == "better")


def test_the_sentence_is_for_people_and_the_record_for_programs(gate: Gate) -> None:
    trainings = [Training(train=images, scores={"macro_f1": 0.9}) for images in (1000, 1080)]
    crowned(gate, training=trainings[0])
    verdict = gate.promote(gate.evaluate("weekly", wrong(38), training=trainings[1]))
    assert verdict["reason"] == (
        "promoted: 0.5 points better on 400 test images (between -0.5 and +1.5); trained on 8% more images; equally "
        "good on 400 validation images; macro-F1 0.905 against 0.900, 2 images won and 0 lost"
    )
    record = gate.record()
    assert (record["verdict"], record["rule"], record["level"]) == ("better", "unless-worse", 0.2)
    assert record["gain"] == pytest.approx(0.005, abs=1e-4) and record["interval"][0] < 0 < record["interval"][1]
    assert (record["images"], record["left_out"], record["won"], record["lost"]) == (400, 0, 2, 0)
    assert (record["train_images"], record["champion_train_images"]) == (4320, 4000)
    assert record["combined"]["images"] == 800 and record["changed_options"] == record["guards"] == []


@pytest.mark.parametrize(
    ("mistakes", "start", "message"),
    [
        (40, 0, "promoted: equally good on 400 test images (between -0.7 and +0.7); macro-F1"),
        (41, 0, "promoted: 0.3 points worse on 400 test images (between -1.1 and +0.6); which may be chance; macro-F1"),
        (60, 0, "not promoted: 5.0 points worse on 400 test images (between -7.2 and -2.8); credibly worse (one-sided "
                "level 20%); macro-F1"),
    ],
)  # fmt: skip
def test_sentences_of_models_that_are_not_better(gate: Gate, mistakes: int, start: int, message: str) -> None:
    crowned(gate)
    assert judged(gate, mistakes, start)["reason"].startswith(message)


# Trainings: configurations, accidents, few test images.


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"backbone": "resnet50"}, ("train", "backbone")),
        ({"requested": {"recipe": "large"}}, ("train", "recipe")),
        ({"color": "gray"}, ("clean", "color")),
    ],
)
def test_changed_configuration_has_to_be_better(gate: Gate, changes: dict[str, Any], option: tuple[str, str]) -> None:
    crowned(gate, training=Training())
    equal = gate.promote(gate.evaluate("equal", wrong(40), training=Training(**changes)))
    assert (equal["verdict"], equal["promoted"]) == ("not_better", False)
    assert "; a changed configuration has to be better; changed: " in equal["reason"]
    assert f"{option[1]} " in equal["reason"] and " → " in equal["reason"]
    assert gate.promote(gate.evaluate("higher", wrong(39), training=Training(**changes)))["promoted"]
    change = gate.record()["changed_options"][0]
    assert (change["step"], change["option"]) == option


def test_renamed_classes_are_named_and_leave_validation_out(gate: Gate) -> None:
    scores = {"macro_f1": 0.9}
    crowned(gate, training=Training(scores=scores, label_map={"emu": "bird"}))
    training = Training(scores=scores, label_map={"emu": "bird", "hound": "dog"})
    verdict = gate.promote(gate.evaluate("renamed", wrong(40), training=training))
    assert verdict["promoted"] and "; classes renamed: hound → dog; " in verdict["reason"]
    assert gate.record()["renamed_classes"] == {"hound": "dog"} and "validation images" not in verdict["reason"]


def test_another_seed_and_what_the_data_decide_are_no_other_configuration(gate: Gate) -> None:
    crowned(gate, training=Training(requested={"seed": 1}))
    training = Training(train=3000, requested={"seed": 2})
    assert gate.promote(gate.evaluate("seed", wrong(40), training=training))["verdict"] == "not_worse"


@pytest.mark.parametrize(("score", "verdict"), [(0.9, "not_worse"), (0.8, "worse")])
def test_accident_that_few_test_images_do_not_show_is_seen_in_validation(
    gate: Gate, score: float, verdict: str
) -> None:
    crowned(gate, training=Training(val=1000, scores={"macro_f1": 0.9}))
    training = Training(val=1000, scores={"macro_f1": score})
    result = gate.promote(gate.evaluate("next", wrong(41), training=training))
    assert (result["verdict"], result["promoted"]) == (verdict, verdict == "not_worse")
    assert ("10.0 points worse on 4,000 validation images" in result["reason"]) == (verdict == "worse")


def test_validation_scores_decide_where_test_images_are_few(gate: Gate) -> None:
    few = np.arange(400) < 390
    crowned(gate, 40, seen=few, training=Training(scores={"macro_f1": 0.8}))
    better = gate.evaluate("better", wrong(40), training=Training(scores={"macro_f1": 0.9}))
    verdict = gate.promote(better)
    assert verdict["verdict"] == "better" and verdict["reason"].startswith(
        "promoted: 10.0 points better on 400 validation images (between +5.1 and +14.9), for there are only 10 test "
        "images; "
    )
    worse = gate.evaluate("worse", wrong(0), seen=few, training=Training(scores={"macro_f1": 0.7}))
    assert gate.promote(worse)["verdict"] == "worse"


def test_few_images_without_validation_scores_decide_by_their_score(gate: Gate) -> None:
    crowned(gate, 10, seen=np.arange(400) % 100 >= 5)
    for mistakes, verdict in ((5, "better"), (15, "not_better"), (10, "not_worse")):
        result = judged(gate, mistakes, promote="never")
        assert result["verdict"] == verdict, result
        assert "; too few images for more than the score itself to decide; " in result["reason"]
    assert judged(gate, 5, promote="better")["verdict"] == "not_better"


# First models.


GUESS = {"better": False, "why": "no better than chance, as far as 400 test images can tell: top-1 is 0.25"}


@pytest.mark.parametrize(
    ("policy", "promoted", "message"),
    [("unless-worse", False, "not promoted: macro-F1 0.25"), ("always", True, "promoted since promote is always: "),
     ("never", False, "not promoted: macro-F1")],
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
    assert verdict["reason"] == "not promoted since promote is never: macro-F1 0.900; there was no champion"
    verdict = gate.promote(first)
    assert (verdict["verdict"], verdict["promoted"], verdict["n"]) == ("first", True, 1)
    assert verdict["reason"] == "promoted: macro-F1 0.900; there was no champion"
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
    assert gate.promote(gate.evaluate("not by heart", learned), promote="never")["verdict"] == "better"
    verdict = gate.promote(gate.evaluate("by heart", learned, seen=half))
    assert verdict["verdict"] == "not_worse" and verdict["challenger"] == verdict["champion"]
    assert verdict["reason"].startswith("promoted: equally good on 200 test images (")
    assert verdict["reason"].endswith("; 200 more test images were seen in training")


def test_no_test_image_that_both_have_not_seen_is_not_comparable(gate: Gate) -> None:
    crowned(gate, 40, seen=True)
    verdict = judged(gate, 20)
    assert verdict["verdict"] == "not_comparable" and "no test image is left that neither" in verdict["reason"]


def test_challenger_with_unknown_training_images_is_not_comparable(gate: Gate) -> None:
    crowned(gate, unknown=("clean/0123",))
    verdict = gate.promote(gate.evaluate("stranger", wrong(0), unknown=("clean/4567",)))
    assert verdict["verdict"] == "not_comparable" and "trained on is not known: clean/4567 is gone" in verdict["reason"]
    assert judged(gate, 20)["verdict"] == "better", "the champion's would only make it look better"


def test_new_class_counts_for_the_challenger(gate: Gate) -> None:
    """Equal on the old classes: 0.90 against 0.68 on all images."""
    crowned(gate, 40, known=CLASSES[:3])
    old = gate.evaluate("champion", np.where(LABELS == 3, 0, wrong(40)), week=2, known=CLASSES[:3])
    verdict = gate.promote(gate.evaluate("knows dogs", wrong(40), week=2), old)
    assert verdict["verdict"] == "better" and verdict["challenger"] - verdict["champion"] > 0.2
    assert "; classes added: dog; equally good on the 300 images of the others; " in verdict["reason"]
    assert gate.record()["added_classes"] == ["dog"]


def test_new_class_does_not_hide_a_loss_in_the_others(gate: Gate) -> None:
    crowned(gate, 40, known=CLASSES[:3])
    old = gate.evaluate("champion", np.where(LABELS == 3, 0, wrong(20)), week=2, known=CLASSES[:3])
    verdict = gate.promote(gate.evaluate("dogs alone", np.where(LABELS == 3, 3, wrong(100)), week=2), old)
    assert (verdict["verdict"], verdict["promoted"]) == ("worse", False)
    assert "credibly worse in the classes that the champion knows" in verdict["reason"]


def test_renamed_class_is_a_loss_of_the_champion(gate: Gate) -> None:
    """The champion names dogs hounds, which are no class today; the challenger is worse on the others, by chance."""
    crowned(gate, 0, known=(*CLASSES[:3], "hound"))
    today = Gate(gate.workspace, (*CLASSES, "hound"))
    named = np.where(LABELS == 3, 4, LABELS)
    old = today.evaluate("champion", named, week=2, known=(*CLASSES[:3], "hound"))
    verdict = gate.promote(gate.evaluate("renamed", wrong(2), week=2), old)
    assert verdict["promoted"] and "; classes added: dog; classes removed: hound; " in verdict["reason"]


def test_class_missing_from_the_challenger_counts_as_wrong(gate: Gate) -> None:
    crowned(gate)
    predicted = np.where(LABELS == 3, 0, LABELS)
    verdict = gate.promote(gate.evaluate("three classes", predicted, known=CLASSES[:3]))
    assert verdict["verdict"] == "worse" and "on 400 test images" in verdict["reason"]


def test_champion_that_knows_none_of_the_classes_has_nothing_right(gate: Gate) -> None:
    crowned(gate, known=("owl", "pig"))
    today = Gate(gate.workspace, (*CLASSES, "owl", "pig"))
    old = today.evaluate("champion", np.full(400, 4), week=2, known=("owl", "pig"))
    verdict = gate.promote(gate.evaluate("all new", wrong(40), week=2), old)
    assert (verdict["verdict"], verdict["champion"]) == ("better", 0.0)
    assert "classes added: ant, bee, cat and 1 more; classes removed: owl, pig; " in verdict["reason"]


def test_models_of_different_tasks_are_not_comparable(gate: Gate) -> None:
    crowned(gate)
    verdict = gate.promote(gate.evaluate("several", wrong(0), task="multi"))
    assert verdict["verdict"] == "not_comparable"
    assert "this model is multi-label, the champion single-label" in verdict["reason"]


# Guards, which warn by default.


def test_recall_of_a_class_that_falls_is_a_warning_or_refused(gate: Gate) -> None:
    crowned(gate, 200)
    fallen = LABELS.copy()
    fallen[np.flatnonzero(LABELS == 3)[:75]] = 0  # the champion has half of the dogs wrong
    challenger = gate.evaluate("no dogs", fallen)
    verdict = gate.promote(challenger, max_class_drop=0.1)
    assert (verdict["verdict"], verdict["promoted"]) == ("refused", False)
    assert ", but recall falls in 'dog' from 0.50 to 0.25, beyond max_class_drop 0.1; " in verdict["reason"]
    assert gate.promote(challenger, max_class_drop=0.3, promote="never")["verdict"] == "better"
    verdict = gate.promote(challenger)
    first, *_ = verdict["reason"].split("; ")
    assert verdict["promoted"] and first.endswith(", warning: recall falls in 'dog' from 0.50 to 0.25")
    assert gate.record()["guards"] == [
        {"option": "max_class_drop", "subject": "dog", "champion": 0.5, "challenger": 0.25, "limit": 0.1,
         "refuses": False}
    ]  # fmt: skip


def test_a_fall_that_few_images_show_is_not_mentioned(gate: Gate) -> None:
    """One of five dogs is lost."""
    labels = np.r_[np.repeat(np.arange(3), 130), np.full(5, 3)]
    champion, challenger = labels.copy(), labels.copy()
    champion[:390:5] = (labels[:390:5] + 1) % 3
    challenger[-1] = 0
    assert gate.promote(gate.evaluate("champion", champion, labels=labels))["promoted"]
    verdict = gate.promote(gate.evaluate("challenger", challenger, labels=labels), max_class_drop=0)
    assert verdict["verdict"] == "better" and "recall" not in verdict["reason"]


def test_calibration_error_that_rises_is_a_warning_or_refused(gate: Gate) -> None:
    crowned(gate)
    unsure = gate.evaluate("unsure", wrong(20), confidence=0.5)
    text = "the calibration error rises from 0.000 to 0.450"
    verdict = gate.promote(unsure, max_ece_rise=0.05)
    assert verdict["verdict"] == "refused" and f", but {text}, beyond max_ece_rise 0.05; " in verdict["reason"]
    assert "calibration" not in gate.promote(unsure, max_ece_rise=0.5, promote="never")["reason"]
    verdict = gate.promote(unsure)
    assert verdict["promoted"] and f", warning: {text}; " in verdict["reason"]


def test_speed_counts_only_of_a_changed_configuration_on_the_same_device(gate: Gate) -> None:
    def speed(rate: float, device: str = "a CPU") -> dict[str, Any]:
        rates = dict.fromkeys(("network_one_view", "network", "whole"), rate)
        return {"throughput": {"device": device, "batch_size": 128, "tta": "none", **rates}}

    crowned(gate, training=Training(), **speed(1000))
    changed = Training(backbone="resnet50")
    slow = gate.evaluate("slow", wrong(20), training=changed, **speed(400))
    text = "it takes 2.5 times as long for an image (400 images/s, not 1,000)"
    verdict = gate.promote(slow, max_slowdown=2)
    assert verdict["verdict"] == "refused" and f", but {text}, beyond max_slowdown 2; " in verdict["reason"]
    other = gate.evaluate("on a GPU", wrong(20), training=changed, **speed(400, "a GPU"))
    assert "as long" not in gate.promote(other, promote="never")["reason"]
    busy = gate.evaluate("the same network on a busy machine", wrong(20), training=Training(), **speed(400))
    assert "as long" not in gate.promote(busy, promote="never")["reason"]
    assert f", warning: {text}; " in gate.promote(slow)["reason"]


def test_a_verdict_is_kept_and_replaced_where_it_is_judged_again(gate: Gate) -> None:
    crowned(gate)
    challenger = gate.evaluate("challenger", wrong(60))
    first = gate.outcome(challenger)
    assert (first.state, gate.outcome(challenger, run="again").state) == ("ran", "cached")
    assert gate.outcome(challenger, run="third", rerun=True).state == "ran"


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
