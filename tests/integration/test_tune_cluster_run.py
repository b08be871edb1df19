"""The search of a cluster, run here by the command lines of Argo's template: the same study as `imagemill tune`'s."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import experimented
import pytest
from argo_dag import SKIPPED, SUCCEEDED, Ended, Workflow
from argo_files import IMAGES
from html_page import Page

from imagemill.components.dataset.workspace import Workspace
from imagemill.components.step.step import RUN_ENV
from imagemill.pipelines.argo import exit_handler
from imagemill.pipelines.cli.main import main
from imagemill.pipelines.cluster.cluster_file import Limits, Storage, parse_cluster
from imagemill.pipelines.cluster.pod_fields import CLUSTER_VARIABLE
from imagemill.pipelines.experiments.search_space import SearchSpace
from imagemill.pipelines.experiments.trials import Configuration
from imagemill.pipelines.kfp import pods as kfp_pods
from imagemill.pipelines.parameters import ALL_STEPS
from imagemill.pipelines.tuning import kfp as tuning_kfp
from imagemill.pipelines.tuning import pod
from imagemill.pipelines.tuning.argo import build_workflow_template
from imagemill.pipelines.tuning.package import SearchPackage
from imagemill.pipelines.tuning.rungs import dump_space

SPACE = "learning_rate: {low: 0.0005, high: 0.003, log: true}\nlabel_smoothing: [0.0, 0.1]\n"
CLUSTER = parse_cluster({"images": IMAGES, "ray": {"mode": "pod", "version": "2.60.0"}})
Execute = Callable[[str, dict[str, Any]], Ended]


class Photos:
    """A source, a base and a search space, which a cluster's pods and the local command search."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scratch, self.ran = folder, folder / "scratch", list[str]()
        self.source = experimented.make_colors(folder / "photos", 30)
        self.values = experimented.QUICK | {"val_fraction": 0.35, "test_fraction": 0.15, "color": "gray"}
        self.values |= {"backbone": "shufflenet_v2_x0_5"}
        (folder / "space.yaml").write_text(SPACE)

    def write_base(self, workspace: Path, **values: Any) -> str:
        place = {"dataset": "folder", "source": str(self.source), "workspace": str(workspace)}
        return experimented.write_config(self.folder / "base.yaml", **place, **self.values | values)

    def tune(self, workspace: Path, *words: str, **values: Any) -> dict[str, Any]:
        """The result of the local command."""
        output, base = io.StringIO(), self.write_base(workspace, **values)
        files = [base, "--space", str(self.folder / "space.yaml"), "-o", str(self.folder / "tuned.yaml"), "--json"]
        with contextlib.redirect_stdout(output):
            assert main(["tune", *files, *words]) == 0
        result: dict[str, Any] = json.loads(output.getvalue().splitlines()[-1])
        return result

    def play(
        self, workspace: Path, execute: Execute, trials: int, pruner: str, name: str = "tuning-1", **values: Any
    ) -> Workflow:
        """The run of the template that the same base is compiled to."""
        base = Configuration.read(self.write_base(workspace, **values), {})
        space = dump_space(SearchSpace.read(str(self.folder / "space.yaml"), base))
        package = SearchPackage(Configuration.read("{}", {}).parameters, trials, 2, space, pruner, 2)
        form = {key: value for key, value in base.parameters.arguments().items() if value}
        workflow = Workflow(build_workflow_template(package, CLUSTER), form, execute, self.scratch, name)
        phase = workflow.run()
        assert phase == SUCCEEDED, ({name: node.phase for name, node in workflow.nodes.items()}, self.ran[-2:])
        return workflow

    def pod_in_process(self, template: str, resolved: dict[str, Any]) -> Ended:
        """A pod by the same command line, in this process."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        _, _, module = resolved["container"]["command"]
        words = [word.replace("/scratch", str(self.scratch), 1) for word in resolved["container"]["args"]]
        mains = {module.__name__: module.main for module in (pod, exit_handler)}
        own = module.rpartition(".")[2]
        if module.endswith("clean_and_plan"):
            from imagemill.pipelines.argo import clean_and_plan

            variables = {variable["name"]: variable.get("value", "") for variable in resolved["container"]["env"]}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(CLUSTER_VARIABLE, variables[CLUSTER_VARIABLE])
                return Ended(clean_and_plan.main(words))
        return Ended((mains.get(module) or ALL_STEPS[own].main)(words))

    def pod_as_process(self, template: str, resolved: dict[str, Any]) -> Ended:
        """A pod as a process of its own."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        words = [*resolved["container"]["command"], *resolved["container"]["args"]]
        variables = {variable["name"]: variable.get("value", "") for variable in resolved["container"]["env"]}
        cluster_variable = {} if template == "finish" else {CLUSTER_VARIABLE: variables.get(CLUSTER_VARIABLE, "")}
        words = [word.replace("/scratch", str(self.scratch), 1) for word in words[1:]]
        environment = {**os.environ, **cluster_variable, "TMPDIR": str(self.scratch), "HOME": str(self.scratch)}
        done = subprocess.run(
            [sys.executable, *words], env=environment | {"RAY_TMPDIR": "/tmp"}, cwd="/", capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        self.ran.append(f"{template}: {done.stderr}")
        return Ended(done.returncode)


@pytest.fixture
def photos(tmp_path: Path) -> Photos:
    return Photos(tmp_path)


@pytest.mark.proof
def test_rungs_as_processes_give_the_study_that_the_local_command_goes_on_with(photos: Photos) -> None:
    shared = photos.folder / "shared"
    played = photos.play(shared, photos.pod_as_process, 4, "asha", epochs=27)
    phases = {name: node.phase for name, node in played.nodes.items()}
    assert sum(name.startswith("trials-1(") for name in phases) == 4
    assert sum(name.startswith("trials-2(") for name in phases) <= 2
    workspace = Workspace.from_uri(str(shared))
    page = Page(workspace.store.read(workspace.report_uri("tuning-1")).decode())
    assert [tag for tag, _ in page.tags].count("svg") == 1
    tuned = workspace.store.read(workspace.run_file_uri("tuning-1", "tuned.yaml")).decode()
    assert "photos.tune" not in tuned and "learning_rate" in tuned
    summary = workspace.store.read(workspace.run_file_uri("tuning-1", "summary.md")).decode()
    assert "| tune | ran |" in summary and "failed" not in summary
    went_on = [text for text in photos.ran if text.startswith("trial:") and "resuming after epoch" in text]
    again = photos.tune(shared, "--trials", "4", "--seeds", "2", "--pruner", "asha", epochs=27)
    assert [trial["state"] for trial in again["trials"]].count("pruned") >= 1
    assert sum(name.startswith("trials-2(") for name in phases) == 0 or went_on
    for trial in again["trials"]:
        assert (trial["state"] == "complete") == (len(trial["course"]) == 27)


@pytest.mark.proof
def test_the_package_for_kfp_runs_in_its_local_runner(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    """The components' own source text, nested pipelines and loops; without pods, and without KFP's backend."""
    from kfp import local

    shared, runner = photos.folder / "shared", local.SubprocessRunner(use_venv=False)
    values = Configuration.read(photos.write_base(shared), {}).parameters
    local.init(runner=runner, pipeline_root=str(photos.folder / "kfp"))
    # Here all steps share the machine's folders, and local runners know a Python component by its command.
    monkeypatch.setattr(kfp_pods, "build_plain_storage_variables", lambda cluster: {})
    monkeypatch.setattr(tuning_kfp, "replace_executor", lambda spec: None)
    monkeypatch.setenv("POD_NAME", "a-pod")
    monkeypatch.setenv(RUN_ENV, "tuning-kfp")
    cluster = replace(CLUSTER, limits=Limits(lost_pod_retries=0), storage=Storage(endpoint="", secret=""))
    space = dump_space(SearchSpace.read(str(photos.folder / "space.yaml"), Configuration("base", values)))
    package = SearchPackage(values, 1, 2, space, "none", 2)
    form = {name: value for name, value in values.arguments().items() if value}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuning_kfp.build_pipeline(package, cluster)(**form)
    workspace = Workspace.from_uri(str(shared))
    record = workspace.step_record("tuning-kfp", "tune")
    assert record and record.exit_code == 0 and record.metrics["verdict"]
    trained = photos.tune(shared, "--trials", "1", "--seeds", "2", "--pruner", "none")
    assert trained["reason"] == record.metrics["reason"]


@pytest.mark.proof
def test_a_cluster_and_this_machine_share_a_study(photos: Photos) -> None:
    """What one has trained the other finds: the same configurations, names and records."""
    shared = photos.folder / "shared"
    with experimented.steps_in_this_process(photos.ran):
        played = photos.play(shared, photos.pod_in_process, 1, "none")
        assert [played.nodes[name].phase for name in ("trials-1", "report")] == [SUCCEEDED] * 2
        trained = photos.ran.count("train")
        assert trained in (2, 6), "the base and the trial, and both with two seeds where the trial is the best"
        again = photos.tune(shared, "--trials", "1", "--seeds", "2", "--pruner", "none")
        assert photos.ran.count("train") == trained
        played = photos.play(shared, photos.pod_in_process, 1, "none", name="tuning-2")
        assert photos.ran.count("train") == trained
        assert [played.nodes[f"trials-{rung}"].phase for rung in (1, 2)] == [SKIPPED] * 2
    report = Workspace.from_uri(str(shared)).step_record("tuning-2", "tune")
    assert report and report.metrics["reason"] == again["reason"]
