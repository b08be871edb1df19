"""`imagemill tune --target`: the packages for Argo and Kubeflow Pipelines, and what the pods of a search decide."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import manifests
import pytest
import yaml
from argo_dag import REFERENCE, names_in
from controllers import pods
from packages import IMAGES, Json, build_kfp_pod, container, documents, kubernetes

from imagemill.components.dataset.kinds import ModelExtra
from imagemill.components.dataset.manifest import Dataset, Manifest
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.storage.errors import EXIT_USER, UserError
from imagemill.pipelines.cli.main import main
from imagemill.pipelines.experiments.search_space import DEFAULT_SPACE, SearchSpace
from imagemill.pipelines.experiments.study import COMPLETE, FAILED, PRUNED, TriedValues
from imagemill.pipelines.experiments.trials import Configuration, TrialRunner
from imagemill.pipelines.tuning import rungs
from imagemill.pipelines.tuning.rungs import ClusterSearch, SearchInputs, parse_space, run_pod
from imagemill.pipelines.tuning.search import Search, SearchOptions

CLUSTER = {
    "images": IMAGES, "ray": {"version": "2.60.0"},
    "steps": {"train": {"gpu": 2, "gpu_type": "amd.com/gpu", "node_selector": {"pool": "gpu"}}},
}  # fmt: skip
BASE = Configuration.read("{}", {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    (folder / "cluster.yaml").write_text(json.dumps(CLUSTER))
    return folder


def compiled(folder: Path, target: str) -> Path:
    output = folder / f"{target}.yaml"
    files = ["--target", target, "--cluster", str(folder / "cluster.yaml"), "-o", str(output)]
    values = ["--dataset", "pets", "--batch-size", "256", "--trials", "9", "--parallelism", "4"]
    assert main(["tune", *values, *files]) == 0
    return output


@pytest.fixture(scope="module")
def workflow(folder: Path) -> Json:
    document: Json = yaml.safe_load(compiled(folder, "argo").read_text())
    return document


@pytest.fixture(scope="module")
def package(folder: Path) -> tuple[Json, Json]:
    return documents(compiled(folder, "kfp"))


def test_the_workflow_is_the_golden_one(workflow: Json) -> None:
    """All that is not the training's: the DAG, the templates of its own in short, and the limit of pods."""
    dag, *templates = workflow["spec"]["templates"]
    short = {
        template["name"]: {
            "command": [*template["container"]["command"], *template["container"]["args"]],
            "image": template["container"]["image"], "resources": template["container"]["resources"],
            "outputs": template["outputs"],
        }
        for template in templates if template["name"] in ("download", "base", "choose", "trial", "report")
    }  # fmt: skip
    spec = {key: workflow["spec"][key] for key in ("parallelism", "synchronization")}
    spec["form"] = {parameter["name"]: parameter["value"] for parameter in workflow["spec"]["arguments"]["parameters"]}
    manifests.check_golden("tuning_argo.yaml", manifests.dumped({"dag": dag, "templates": short, **spec}, width=120))


def test_the_workflow_suits_its_schema_and_its_pods_are_restricted(workflow: Json) -> None:
    for pod in pods(workflow):
        manifests.check_restricted(pod.owner, pod.spec, pod.annotations)
    manifests.check_custom(workflow)


def test_every_reference_of_the_workflow_is_to_something_that_is_there(workflow: Json) -> None:
    spec = workflow["spec"]
    templates = {template["name"]: template for template in spec["templates"]}
    known = {f"workflow.parameters.{p['name']}" for p in spec["arguments"]["parameters"]} | {"workflow.name"}
    for name, template in templates.items():
        if "dag" not in template:
            inputs = {f"inputs.parameters.{p['name']}" for p in template.get("inputs", {}).get("parameters", ())}
            references = REFERENCE.findall(json.dumps(template))
            used = {name for reference in references for name in names_in(reference)}
            assert used <= known | inputs | {"workflow.status"} and inputs <= used, name
    above: set[str] = set()
    tasks = {task["name"]: task for task in templates["tuning"]["dag"]["tasks"]}
    for task in tasks.values():
        assert set(re.findall(r"([a-z-]+\d?)\.[A-Z]", task.get("depends", ""))) <= above, task["name"]
        for reference in REFERENCE.findall(json.dumps(task)):
            if reference != "item":
                _, source, _, _, output = reference.split(".")
                outputs = templates[tasks[source]["template"]]["outputs"]["parameters"]
                assert source in above and output in {p["name"] for p in outputs}, reference
        inputs = {p["name"] for p in templates[task["template"]].get("inputs", {}).get("parameters", ())}
        assert {p["name"] for p in task.get("arguments", {}).get("parameters", ())} == inputs
        above.add(task["name"])


def test_the_package_is_the_golden_one(package: tuple[Json, Json]) -> None:
    spec, platform = package
    dags = {name: part["dag"]["tasks"] for name, part in spec["components"].items() if "dag" in part}
    short = {
        name: {
            key: {
                "after": task.get("dependentTasks"), "items": task.get("parameterIterator"),
                "parallelism": task.get("iteratorPolicy"), "name": task["taskInfo"]["name"],
                "retries": task.get("retryPolicy", {}).get("maxRetryCount"), "caching": task.get("cachingOptions"),
                "rung": task["inputs"]["parameters"].get("rung"),
            }
            for key, task in tasks.items()
        }
        for name, tasks in {**dags, "root": spec["root"]["dag"]["tasks"]}.items()
    }  # fmt: skip
    form = {
        name: parameter.get("defaultValue")
        for name, parameter in spec["root"]["inputDefinitions"]["parameters"].items()
    }
    pod = {
        "container": {**container(spec, "train-2"), "command": "", "args": ""},
        "kubernetes": kubernetes(platform, "train-2"),
    }
    text = manifests.dumped({"form": form, "dags": short, "trial": pod}, width=120)
    manifests.check_golden("tuning_kfp.yaml", text)


def test_the_pods_that_kfp_makes_are_valid_and_restricted(package: tuple[Json, Json]) -> None:
    spec, platform = package
    executors = [name.removeprefix("exec-") for name in spec["deploymentSpec"]["executors"]]
    assert len(executors) == 14
    for name in executors:
        pod = build_kfp_pod(spec, platform, name)
        labels = dict(kubernetes(platform, name)["podMetadata"]["labels"]) | {"imagemill.io/run": "an-id"}
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": pod}
        manifests.check_core(document)
        manifests.check_restricted(name, pod)
        gpus = pod["containers"][0]["resources"]["limits"].get("amd.com/gpu")
        assert gpus == ("2" if name.startswith("train") else None), name


def test_the_package_loads_back(folder: Path, package: tuple[Json, Json]) -> None:
    from kfp import components

    loaded = components.load_component_from_file(str(folder / "kfp.yaml"))
    assert loaded.name == "imagemill-tuning" and package[0]["root"]["dag"]["tasks"]


def test_what_a_cluster_can_not_do_is_refused_before_anything_is_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.yaml").write_text("color: [rgb, gray]\n")
    here = ["--cluster", str(folder / "cluster.yaml"), "-o", str(tmp_path / "p.yaml")]
    for words, message in (
        (["--target", "argo", *here, "--pruner", "median"], "--pruner: expected asha or none with --target"),
        (
            ["--target", "argo", *here, "--space", str(tmp_path / "space.yaml")],
            "(color): expected a parameter of train",
        ),
        (["--target", "argo", *here, "--trials", "501"], "--trials: expected at most 500"),
        (["--target", "kfp", *here, "--workspace", "./here"], "workspace: expected s3://"),
        (["--target", "kfp", *here, "--parallelism", "0"], "--parallelism: expected a whole number from 1"),
        (["--target", "kfp", "-o", str(tmp_path / "p.yaml")], "--cluster: expected the file"),
        (["--target", "tekton", *here], "--target: expected one of kfp, argo"),
        (["--parallelism", "3"], "--parallelism: expected nothing without --target"),
    ):
        assert main(["tune", *words]) == EXIT_USER
        assert message in capsys.readouterr().err, words
    assert not (tmp_path / "p.yaml").exists()


class FakeTrainings:
    """Trials whose scores are a function of epoch and number, in place of trainings; `ran` has (number, epochs)."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, trials: int, epochs: int = 9, pruner: str = "asha"
    ) -> None:
        self.ran: list[tuple[int, int]] = []
        workspace = Workspace.open(str(folder / "mill"))
        history = [{"epoch": epoch, "val_macro_f1": 0.01 * epoch, "train_loss": 1.0} for epoch in range(1, epochs + 1)]
        self.base = Dataset(
            "m",
            Manifest("model", "m", config={"epochs": epochs}, extra=ModelExtra(history=history, best_epoch=epochs)),
            "",
        )
        patch.setattr(rungs, "read_dataset", lambda uri, kind: self.base)
        patch.setattr(Search, "run_trial", self._run_trial)
        patch.setattr(TrialRunner, "find_seconds", lambda *_: 1.0)
        runner = TrialRunner(Steps(workspace), "photos", "r", "tune", "tensors")  # type: ignore[arg-type]
        self.epochs = epochs
        self.search = ClusterSearch(runner, BASE, parse_space("", BASE), SearchOptions(trials, 2, pruner, ""), "m")

    def _run_trial(self, number: int, values: Mapping[str, Any], should_end: Any) -> TriedValues:
        course: list[float] = []
        for epoch in range(1, self.epochs + 1):
            course.append(0.02 * epoch + 0.001 * number)
            if number == 3:
                return TriedValues(number, dict(values), FAILED, note="the loss is nan")
            if should_end(course):
                self.ran.append((number, epoch))
                return TriedValues(number, dict(values), PRUNED, max(course), tuple(course))
        self.ran.append((number, self.epochs))
        return TriedValues(number, dict(values), COMPLETE, max(course), tuple(course), f"model/{number}", 2.0)

    def run_rung(self, rung: int) -> list[str]:
        items = self.search.choose(rung)
        for item in items:
            self.search.train(item, rung)
        return items


class Steps:
    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace


def test_of_each_rung_the_best_third_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrainings(tmp_path, monkeypatch, 11)
    assert fake.run_rung(0) == [str(number) for number in range(1, 12)]
    assert fake.run_rung(1) == ["9", "10", "11"]  # of 10 and the base, trial 3 has failed
    assert fake.run_rung(2) == ["11"]
    assert fake.ran[-4:] == [(9, 3), (10, 3), (11, 3), (11, 9)]
    study = fake.search._open().study
    assert len(study.trials) == 1, "only the base is recorded before the end"
    items = fake.search.choose(3)
    assert items == ["0:1", "11:1", "0:2", "11:2"]
    study = fake.search._open().study
    states = {tried.number: (tried.state, len(tried.course)) for tried in study.trials}
    assert states[11] == ("complete", 9) and states[10] == ("pruned", 3) and states[2] == ("pruned", 1)
    assert states[3] == ("failed", 0) and study.best.number == 11 and len(states) == 12


def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrainings(tmp_path, monkeypatch, 6)
    assert fake.search.choose(0) == ["1", "2", "3", "4", "5", "6"]
    values = [fake.search._open().study.read_open(str(number)).values for number in range(1, 7)]  # type: ignore[union-attr]
    fake.search.train("2", 0)
    again = FakeTrainings(tmp_path, monkeypatch, 6)
    assert again.search.choose(0) == ["1", "3", "4", "5", "6"]
    for item in ("1", "3", "4", "5", "6"):
        again.search.train(item, 0)
    assert [again.search._open().study.read_open(str(n)).values for n in range(1, 7)] == values  # type: ignore[union-attr]
    again.run_rung(1)
    again.search.train("6", 1)
    assert again.ran.count((6, 3)) == 1, "what is so far already is not trained again"


def test_values_are_those_that_the_local_command_would_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrainings(tmp_path / "a", monkeypatch, 5, pruner="none")
    assert fake.run_rung(0) == ["1", "2", "3", "4", "5"]
    fake.search.choose(1)
    local = FakeTrainings(tmp_path / "b", monkeypatch, 5, pruner="none").search._open()
    while len(local.study.trials) <= 5:
        local.run_next()
    assert fake.search._open().study.trials == local.study.trials
    assert fake.search._open().study.key == local.study.key


def test_later_trials_are_proposed_apart_from_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTrainings(tmp_path, monkeypatch, 10)
    for rung in range(4):
        fake.run_rung(rung) if rung < 3 else fake.search.choose(rung)
    more = FakeTrainings(tmp_path, monkeypatch, 16)
    assert more.run_rung(0) == [str(number) for number in range(11, 17)]
    study = more.search._open().study
    assert len({str(study.read_open(str(number)).values) for number in range(11, 17)}) == 6  # type: ignore[union-attr]


def test_an_error_is_recorded_and_has_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = SearchInputs("photos.tune", "t", "m", "many", "2", "", "asha")
    with pytest.raises(SystemExit) as ended:
        run_pod({"workspace": str(tmp_path)}, "r1", inputs, lambda search: None)
    record = Workspace.open(str(tmp_path)).step_record("r1", "tune")
    assert ended.value.code == EXIT_USER and record and record.exit_code == EXIT_USER
    assert "trials: expected a whole number from 1" in record.error and record.error in capsys.readouterr().err


def test_a_form_with_a_rerun_or_another_steps_space_is_refused() -> None:
    with pytest.raises(UserError, match=r"space \(color\): expected a parameter of train"):
        parse_space('{"color": ["rgb", "gray"]}', BASE)
    assert parse_space("", BASE).declared == DEFAULT_SPACE
    read = SearchSpace.parse({"learning_rate": {"low": 0.001, "high": 0.01, "log": True}}, "space", BASE)
    assert parse_space(rungs.dump_space(read), BASE) == read
