"""The epochs that fit into a training's time, and those that follow while validation rises."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trained import assert_equal_weights, history_of, make_tensors, run_killed, settings, trainer

from imagemill.components.dataset.manifest import Dataset
from imagemill.components.train.loop.checkpoint import TrainingState
from imagemill.components.train.loop.optimizer import LearningRateSchedule
from imagemill.components.train.loop.planning import Plan, Planner, count_fitting_epochs, measure_rise
from imagemill.components.train.loop.trainer import Trainer

PLANNER = Planner(epochs=87, batches=50, batch_size=32, val_images=96, seconds=600)


def row(seconds: float, updates: int = 5, score: float = 0.5) -> dict[str, Any]:
    return {"seconds": seconds, "updates": updates, "val_macro_f1": score}


def test_epochs_that_fit_are_planned_on_the_first_batches() -> None:
    """Of 600 s 510 are planned: 51 batches' time an epoch, a batch of validation costs a third of a training batch."""
    plan, line = PLANNER.plan_by_batches(TrainingState(), 0.39, prepared=0.0)
    assert plan == Plan(25), "19.9 s each"
    assert line == (
        "planned 25 of 87 epochs: about 8 min 17 s on this machine; all 87 epochs would take 28 min 50 s (--epochs 87)"
    )
    assert PLANNER.plan_by_batches(TrainingState(), 0.1, 0.0) == (Plan(87), ""), "all fit"
    assert PLANNER.plan_by_batches(TrainingState(), 0.39, prepared=204.0)[0] == Plan(15)
    solved = TrainingState(epoch=1, history=[row(204, 0)])
    assert PLANNER.plan_by_batches(solved, 0.39, 0.0)[0] == Plan(16)
    assert replace(PLANNER, time="10m").plan_by_batches(TrainingState(), 0.39, 0.0)[1].endswith("(--time 34m)")


def test_an_epoch_that_does_not_fit_ends_after_the_batches_that_do() -> None:
    plan, line = PLANNER.plan_by_batches(TrainingState(batches=21), 20.0, prepared=0.0)
    assert plan == Plan(1, 24), "490 s of batches, and a validation of 20"
    assert line.startswith("planned 24 of the 50 batches of one epoch: about 8 min")
    assert PLANNER.plan_by_batches(TrainingState(batches=40), 20.0, 0.0)[0] == Plan(1, 41), "those that are done stay"
    assert PLANNER.plan_by_batches(TrainingState(batches=49), 20.0, 0.0)[0] == Plan(1)


def test_later_plans_are_a_function_of_the_history() -> None:
    state = TrainingState(epoch=2, history=[row(30, 0), row(20)])
    plan, line = PLANNER.plan_by_history(state)
    assert plan == Plan(25) and line.startswith("planned 25 of 87 epochs"), "510 - 50 s are left"
    state.planned_epochs = 25
    assert PLANNER.plan_by_history(state) == (Plan(25), "")
    for by_batches in (12, 60, 87):
        state.planned_epochs = by_batches
        assert PLANNER.plan_by_history(state) == (plan, line), "an epoch's own time counts more than its batches'"
    state = TrainingState(epoch=2, planned_epochs=2, history=[row(30, 0), row(20)])
    assert PLANNER.plan_by_history(state) == (Plan(2), ""), "its learning rate has ended"
    state = TrainingState(epoch=3, planned_epochs=25, history=[row(30, 0), row(20), row(40)])
    plan, line = PLANNER.plan_by_history(state)
    assert plan == Plan(20) and "20 of 25 planned epochs fit" in line, "510 s are left, of 30 each"
    assert count_fitting_epochs(20, math.inf, [row(9)]) == count_fitting_epochs(20, 100, [row(30, 0)]) == 20
    assert count_fitting_epochs(20, 100, [row(200)]) == 1
    assert count_fitting_epochs(3, 100, [row(1)]) == 3


def test_training_goes_on_while_validation_rises() -> None:
    rising = [row(2, score=0.3 + 0.004 * n) for n in range(90)]
    flat = [row(2, score=min(0.5, 0.3 + 0.01 * n)) for n in range(90)]
    assert measure_rise(rising, 400) == pytest.approx((0.52, 0.64)) and measure_rise(flat, 400) is None
    assert measure_rise(rising, 16) is None, "within a standard error"
    planner = replace(PLANNER, epochs=90, goes_on=True, val_images=400)
    plan, line = planner.plan_by_history(TrainingState(epoch=90, planned_epochs=90, history=rising))
    assert plan == Plan(180, 0, 90) and line.endswith(
        "from 0.520 to 0.640 in the last third of the epochs: 90 more follow"
    )
    for other, history in ((planner, flat), (replace(planner, goes_on=False), rising)):
        assert other.plan_by_history(TrainingState(epoch=90, planned_epochs=90, history=history)) == (Plan(90), "")
    plan, _ = replace(planner, seconds=360).plan_by_history(TrainingState(epoch=90, planned_epochs=90, history=rising))
    assert plan == Plan(153, 0, 90), "the time that is left decides"
    plan, line = replace(planner, seconds=240).plan_by_history(
        TrainingState(epoch=90, planned_epochs=90, history=rising)
    )
    assert plan == Plan(90) and line.endswith("more would help (--epochs 180)")


def test_a_further_round_warms_up_again() -> None:
    schedule = LearningRateSchedule(1.0, steps=30, warmup=0.2, start=10)
    first = LearningRateSchedule(1.0, steps=20, warmup=0.2)
    assert [schedule.rate(step) for step in range(10, 30)] == [first.rate(step) for step in range(20)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tensors(tmp_path_factory.mktemp("tensors"), train=200, val=10)


def fix_batch_time(training: Trainer, seconds: float) -> None:
    """Let a training plan as if every batch took so long, whatever the machine does."""
    plan = training._plan_by_batches
    training._plan_by_batches = lambda state, _: plan(state, seconds)  # type: ignore[method-assign]


@pytest.mark.parametrize("batch_seconds", [30.0, 15.0])
def test_a_resumed_training_keeps_its_plan(
    small: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], batch_seconds: float
) -> None:
    """25 batches an epoch: the plan is made after 13. The second one has another speed, and the same weights."""
    config = settings(small, epochs=3, checkpoint_minutes=1e-9)
    plain = trainer(small, tmp_path / "plain", config)
    plain.seconds = 1200.0
    fix_batch_time(plain, batch_seconds)
    expected = plain.run()
    assert "planned" in capsys.readouterr().err
    killed = trainer(small, tmp_path / "killed", config)
    killed.seconds = 1200.0
    fix_batch_time(killed, batch_seconds)
    run_killed(killed, 0, 23)
    resumed = trainer(small, tmp_path / "killed", config)
    resumed.seconds = 1200.0
    fix_batch_time(resumed, 1.0)
    state = resumed.run()
    assert history_of(state.history) == history_of(expected.history)
    assert expected.history[-1]["learning_rate"] < 1e-5 and state.epoch == state.planned_epochs
    assert_equal_weights(resumed.evaluated_network, plain.evaluated_network)
