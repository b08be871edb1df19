"""The WorkflowTemplate run as Argo would: which command lines, what is tried again, how a run ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import argo_files
import pytest
import yaml
from argo_dag import FAILED, OMITTED, REFERENCE, SKIPPED, SUCCEEDED, Ended, Workflow, retried
from argo_files import Json, first, template

from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.step.config import StepConfig
from imagemill.components.step.step import Step
from imagemill.pipelines.argo import clean_and_plan as argo_clean
from imagemill.pipelines.argo import download as argo_download
from imagemill.pipelines.argo import exit_handler
from imagemill.pipelines.argo.planning import NONE, POD, RAYJOB, Plan, PodArguments
from imagemill.pipelines.argo.templates import RETRY_EXPRESSION
from imagemill.pipelines.cluster.cluster_file import Cluster, parse_cluster_json
from imagemill.pipelines.cluster.pod_fields import CLUSTER_VARIABLE
from imagemill.pipelines.parameters import ALL_STEPS

compiled = argo_files.compiled


@pytest.mark.parametrize(
    ("end", "is_retried"),
    [
        (Ended(75), True),
        (Ended(None, "Error", "pod deleted"), True),
        (Ended(None, "Failed", "The node was low on resource: memory."), True),
        (Ended(137, "Failed", "main: Error (exit code 137)"), True),
        (Ended(143, "Failed", "main: Error (exit code 143)"), True),
        (Ended(0, "Error", "wait: Error (exit code 1)"), True),
        (Ended(1), False),
        (Ended(2), False),
        (Ended(64, "Failed", "main: Error (exit code 64): failure condition evaluated true"), False),
        (Ended(2, "Error", "wait: Error (exit code 1)"), False),
        (Ended(1, "Error", "wait: Error (exit code 1)"), False),
        (Ended(64, "Error", "main: Error (exit code 64)"), False),
        (Ended(139), False),
        (Ended(137, "Failed", "main: OOMKilled (exit code 137)"), False),
        (Ended(143, "Failed", "Pod was active on the node longer than the specified deadline"), False),
        (Ended(None, "Failed", "Step exceeded its deadline"), False),
        (Ended(None, "Error", "retry exceeded workflow deadline 2026-11-22"), False),
        (
            Ended(64, "Failed", "main: Error (exit code 64): The resource has been deleted while its status was still"),
            True,
        ),
        (Ended(64, "Failed", "main: Error (exit code 64): context canceled"), True),
        (Ended(64, "Failed", "Pod was terminated in response to imminent node shutdown."), True),
        (
            Ended(64, "Failed", "main: Error (exit code 64): failure condition 'status.jobStatus == STOPPED' eval"),
            False,
        ),
        (Ended(0, "Error", "Error (exit code 64): failed to put file: context deadline exceeded"), True),
    ],
)
def test_only_transient_failures_are_retried(end: Ended, is_retried: bool) -> None:
    assert retried(RETRY_EXPRESSION, end) is is_retried


class Dry:
    """The steps' own parsers and `--outputs`, without the work: what each step was told, by its task."""

    def __init__(self, patch: pytest.MonkeyPatch, scratch: Path) -> None:
        self.configs: dict[str, Any] = {}
        self.metrics: dict[str, Json] = {
            "download": {"name": "photos"},
            "evaluate": {"champion_evaluation": "", "top1": 0.5},
        }
        self.executors = {"clean": POD, "resize": POD}
        self.records: dict[str, StepRecord] = {}
        self.states: dict[str, str] = {}
        self.is_unchanged = False
        self.codes: dict[str, list[int]] = {}
        self.jobs: list[Json] = []
        self.finished: list[str] = []
        self._scratch, self._task, self._patch, self.cluster = scratch, "", patch, ""
        patch.setattr(Step, "execute", lambda step, config, result="": self._step(config, result))
        patch.setattr(exit_handler, "finish", self._finish)
        patch.setattr(argo_clean, "write_plan", self._plan)
        patch.setattr(argo_download, "write_plan", self._plan)
        patch.setattr(Workspace, "step_record", lambda workspace, run, step: self.records.get(step))
        patch.setattr(
            Workspace, "write_step_record", lambda workspace, run, step, record: self.records.update({step: record})
        )
        patch.setattr(argo_download, "complete_if_unchanged", lambda chosen, run, record: self.is_unchanged)

    def __call__(self, task: str, spec: Json) -> Ended:
        self._task = task
        if "resource" in spec:
            self.jobs.append(yaml.safe_load(spec["resource"]["manifest"]))
            return Ended(self._code())
        python, option, module = spec["container"]["command"]
        assert (python, option) == ("python", "-m")
        arguments = [word.replace("/scratch", str(self._scratch)) for word in spec["container"]["args"]]
        self.cluster = next((v["value"] for v in spec["container"]["env"] if v["name"] == CLUSTER_VARIABLE), "")
        self._patch.setenv(CLUSTER_VARIABLE, self.cluster)
        parent, _, name = module.rpartition(".")
        modules = (exit_handler, argo_clean, argo_download)
        in_argo = {module.__name__.rpartition(".")[2]: module.main for module in modules}
        main = in_argo[name] if parent == "imagemill.pipelines.argo" else ALL_STEPS[name].main
        return Ended(main(arguments))

    def _code(self) -> int:
        return self.codes[self._task].pop(0) if self.codes.get(self._task) else 0

    def _step(self, config: StepConfig, result: str) -> int:
        self.configs[self._task] = config
        metrics = self.metrics.get(self._task, {})
        state = self.states.get(self._task, "ran")
        record = StepRecord(f"s3://w/{self._task}", "", state, metrics)
        self.records[self._task] = record
        Path(result).write_bytes(record.to_json())
        return self._code()

    def _plan(self, arguments: PodArguments, workspace: Workspace, step: str, cluster: Cluster, **values: str) -> Plan:
        self.configs[f"plan {step}"] = arguments.config(step, **values)
        executor = self.executors[step]
        rayjob = json.dumps({"kind": "RayJob", "step": step}) if executor == RAYJOB else ""
        for name, value in {"executor": executor, "rayjob": rayjob}.items():
            arguments.write(name, value)
        return Plan(f"s3://w/plan-{step}", executor, rayjob)

    def _finish(self, *arguments: str) -> None:
        *self.finished, path = arguments
        Path(path).write_text("a page")


@pytest.fixture
def dry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Dry:
    return Dry(monkeypatch, tmp_path)


RAYJOB_OF = {"argo-rayjob": "resize", "argo-clean-rayjob": "clean"}
"""Compiled file → the step that a RayJob does in the test."""


def phases(workflow: Workflow) -> dict[str, str]:
    return {name: node.phase for name, node in workflow.nodes.items()}


@pytest.mark.parametrize("name", ["argo", "argo-pod", "argo-rayjob", "argo-clean-rayjob", "argo-address"])
def test_every_command_line_is_parsed_by_its_step(
    name: str, compiled: dict[str, str], dry: Dry, tmp_path: Path
) -> None:
    parameters = {"dataset": "folder", "source": "s3://photos/all of 'em", "epochs": "7"}
    parameters |= {"config": '{"learning_rate": 0.01, "train": {"weight_decay": 0.05}, "resize": {"jpeg_quality": 80}}'}
    if name in RAYJOB_OF:
        dry.executors[RAYJOB_OF[name]] = RAYJOB
    workflow = Workflow(first(compiled, name), parameters, dry, tmp_path)
    assert workflow.run() == SUCCEEDED
    not_needed = {"argo": {"rayjob", "clean-rayjob"}, "argo-rayjob": {"clean-rayjob"}}.get(name, set())
    assert {task for task, phase in phases(workflow).items() if phase != SUCCEEDED} == not_needed
    resize = "plan resize" if name == "argo-rayjob" else "resize"
    plans = {"plan resize", *(["plan clean"] if name in ("argo", *RAYJOB_OF) else [])}
    assert set(dry.configs) == {"download", "clean", *plans, resize, "train", "evaluate", "promote"}
    for task, config in dry.configs.items():
        assert (config.run, config.workspace) == (workflow.name, "s3://mlpipeline/imagemill")
        assert config.name == ("" if task == "download" else "photos")
    configs = dry.configs
    assert configs["download"].source == "s3://photos/all of 'em"
    if "plan clean" in configs:
        assert configs["plan clean"] == configs["clean"], "so that the RayJob makes what clean's pod looks for"
    assert configs["clean"].raw == "s3://w/download" and configs[resize].clean == "s3://w/clean"
    assert (configs[resize].jpeg_quality, configs[resize].image_size) == (80, None)
    assert configs[resize].ray_address == ("http://head:8265" if name == "argo-address" else "")
    assert configs["train"].tensors == ("s3://w/resize" if name == "argo-address" else "s3://w/plan-resize")
    assert (configs["train"].epochs, configs["train"].learning_rate, configs["train"].weight_decay) == (7, 0.01, 0.05)
    assert (configs["evaluate"].model, configs["evaluate"].clean) == ("s3://w/train", "s3://w/clean")
    assert (configs["promote"].evaluation, configs["promote"].champion_evaluation) == ("s3://w/evaluate", "")
    assert workflow.nodes["evaluate"].outputs["top1"] == "0.5"
    assert dry.jobs == ([{"kind": "RayJob", "step": RAYJOB_OF[name]}] if name in RAYJOB_OF else [])
    assert dry.finished == ["s3://mlpipeline/imagemill", workflow.name, SUCCEEDED]
    mode = {"argo": "auto", "argo-clean-rayjob": "pod"}.get(name, name.removeprefix("argo-"))
    assert parse_cluster_json(dry.cluster).ray.mode == mode


@pytest.mark.parametrize("executor", [NONE, POD, RAYJOB])
def test_the_tensors_are_made_by_whom_the_plan_names(
    executor: str, compiled: dict[str, str], dry: Dry, tmp_path: Path
) -> None:
    dry.executors["resize"] = executor
    workflow = Workflow(first(compiled, "argo"), {}, dry, tmp_path)
    assert workflow.run() == SUCCEEDED
    ended = {task: workflow.nodes[task].phase for task in ("resize", "rayjob")}
    assert ended == {task: SUCCEEDED if {"resize": "pod"}.get(task, task) == executor else SKIPPED for task in ended}
    assert dry.configs["train"].tensors == "s3://w/plan-resize"


def test_nothing_comes_after_download_where_nothing_has_changed(
    compiled: dict[str, str], dry: Dry, tmp_path: Path
) -> None:
    dry.is_unchanged = True
    workflow = Workflow(first(compiled, "argo"), {}, dry, tmp_path)
    assert workflow.run() == SUCCEEDED and set(dry.configs) == {"download"}
    ended = phases(workflow)
    assert [ended.pop(task) for task in ("download", "onExit", "clean-rayjob", "clean")] == [SUCCEEDED] * 2 + [
        SKIPPED
    ] * 2
    assert set(ended.values()) == {OMITTED} and dry.finished[2] == SUCCEEDED


def test_a_transient_error_is_tried_again_and_wrong_input_is_not(
    compiled: dict[str, str], dry: Dry, tmp_path: Path
) -> None:
    dry.codes = {"download": [75, 75, 0], "clean": [2]}
    workflow = Workflow(first(compiled, "argo"), {}, dry, tmp_path)
    assert workflow.run() == FAILED
    assert (workflow.nodes["download"].tries, workflow.nodes["clean"].tries) == (3, 1)
    assert {name for name, phase in phases(workflow).items() if phase == OMITTED} == {
        "resize", "rayjob", "train", "evaluate", "promote"
    }  # fmt: skip
    assert workflow.nodes["clean-rayjob"].phase == SKIPPED
    assert workflow.nodes["onExit"].phase == SUCCEEDED and dry.finished[2] == FAILED


def test_tries_end(compiled: dict[str, str], dry: Dry, tmp_path: Path) -> None:
    dry.codes = {"train": [75] * 9}
    workflow = Workflow(first(compiled, "argo-everything"), {}, dry, tmp_path)
    assert workflow.run() == FAILED and workflow.nodes["train"].tries == 5


@pytest.mark.parametrize(
    ("step", "task", "omitted"), [("resize", "rayjob", "train"), ("clean", "clean-rayjob", "clean")]
)
def test_failed_rayjob_ends_the_run(
    step: str, task: str, omitted: str, compiled: dict[str, str], dry: Dry, tmp_path: Path
) -> None:
    dry.codes, dry.executors[step] = {"rayjob": [64]}, RAYJOB
    workflow = Workflow(first(compiled, "argo"), {}, dry, tmp_path)
    assert workflow.run() == FAILED
    assert workflow.nodes[task].tries == 1 and workflow.nodes[omitted].phase == OMITTED


def test_the_record_of_a_rayjob_that_cleaned_stays(compiled: dict[str, str], dry: Dry, tmp_path: Path) -> None:
    """Clean's pod finds the dataset, and its record would say that nothing was done."""
    dry.executors["clean"], dry.states["clean"] = RAYJOB, "cached"
    of_job = StepRecord("s3://w/clean", state="ran", seconds=77.0)
    dry.records["clean"] = of_job
    workflow = Workflow(first(compiled, "argo"), {}, dry, tmp_path)
    assert workflow.run() == SUCCEEDED and dry.records["clean"] is of_job
    dry.records["clean"] = replace(of_job, uri="s3://w/another")
    Workflow(first(compiled, "argo"), {}, dry, tmp_path).run()
    assert dry.records["clean"].state == "cached"


def test_exit_handler_summarizes_the_run(
    compiled: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The summary is made from the steps' records; the exit code tells whether it was written."""
    workspace = Workspace.open(str(tmp_path / "work"))
    record = StepRecord(error="source: expected a photo", exit_code=2, seconds=1.0)
    workspace.write_step_record("r1", "download", record)
    arguments = template(first(compiled, "argo-pod"), "finish")["container"]["args"]
    values = {"workflow.parameters.workspace": workspace.uri, "workflow.name": "r1", "workflow.status": "Failed"}
    arguments = [REFERENCE.sub(lambda match: values[match.group(1)], word) for word in arguments]
    arguments = [word.replace("/scratch", str(tmp_path)) for word in arguments]
    assert exit_handler.main(arguments) == 0
    page = capsys.readouterr().out
    assert "failed at download" in page and "source: expected a photo" in page
    assert workspace.store.read(workspace.run_file_uri("r1", "summary.md")).decode().strip() == page.strip()
    assert exit_handler.main([*arguments, "--nosuch=1"]) == 2
