"""The first step looks whether there is anything to do, and never ends a run by looking."""

from __future__ import annotations

import pytest

from imagemill.components.step.config import StepConfig
from imagemill.components.step.step import Step
from imagemill.pipelines.cluster.unchanged import find_cached_records
from imagemill.pipelines.parameters import resolve_parameters


def test_an_unforeseen_error_leaves_the_step_to_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(step: Step, config: StepConfig) -> None:
        raise KeyError("chance")

    monkeypatch.setattr(Step, "execute_cached", fail)
    assert find_cached_records(resolve_parameters({"dataset": "demo", "workspace": "/nowhere"}), "run", {}) is None
    assert "KeyError: 'chance'" in capsys.readouterr().err
