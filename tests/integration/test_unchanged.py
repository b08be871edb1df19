"""Runs with nothing to do are recognized before a step starts; any change makes a run work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished

from imagemill.components.dataset.workspace import STEPS, Workspace
from imagemill.pipelines import pod
from imagemill.pipelines.cluster.unchanged import Records, find_cached_records
from imagemill.pipelines.parameters import RunParameters, resolve_parameters

RUN = "photos-again"


def make_parameters(finished: Finished, **flags: Any) -> RunParameters:
    """The parameters of the finished run, with other values for some."""
    words = [word for word in finished.arguments[1:] if word != "--json"]
    names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
    values = dict(zip(names, words[1::2], strict=True))
    return resolve_parameters(values | flags)


def find_cached(finished: Finished, **flags: Any) -> Records | None:
    return find_cached_records(make_parameters(finished, **flags), RUN, {})


def test_cached_records_need_no_training_library(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pod's image has neither PyTorch nor Ray."""
    for name in ("torch", "torchvision", "timm", "ray", "sklearn", "cleanlab"):
        monkeypatch.setitem(sys.modules, name, None)
    assert find_cached(finished) is not None


@pytest.mark.parametrize("change", ["", "no model"])
def test_first_pod_reports_whether_anything_changed(finished: Finished, change: str, tmp_path: Path) -> None:
    if change:
        for manifest in finished.workspace.glob("model/*/_manifest.json"):
            manifest.unlink()
    arguments = make_parameters(finished).arguments()
    words = [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]
    outputs = tmp_path / "outputs"
    assert pod.main(["download", *words, f"--run={RUN}", f"--outputs={outputs}"]) == 0
    assert (outputs / "changed").read_text() == ("true" if change else "false")
    assert (outputs / "raw").read_text().rpartition("/")[2] == finished.result.json["raw"].rpartition("/")[2]
    records = Workspace(str(finished.workspace)).step_records(RUN)
    assert tuple(records) == (("download",) if change else STEPS)


def test_first_pod_refuses_invalid_parameters_of_later_steps(finished: Finished, tmp_path: Path) -> None:
    arguments = make_parameters(finished).arguments() | {"backbone": "resnet9000"}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]
    code = pod.main(["download", *words, f"--run={RUN}", f"--outputs={tmp_path / 'o'}"])
    record = Workspace(str(finished.workspace)).step_record(RUN, "download")
    assert code == 2 and record and record.exit_code == 2 and "resnet9000" in record.error
