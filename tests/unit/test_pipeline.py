"""Compiled package, parameters, order of imports, and start-up time of the command."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import inspect
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate.config import EvaluateConfig
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.step.step import Step
from imagemill.components.storage.errors import UserError
from imagemill.components.train.config import TrainConfig
from imagemill.pipelines.cli import main as cli
from imagemill.pipelines.cluster.cluster_file import Cluster, Images, Kfp
from imagemill.pipelines.cluster.unchanged import check_form
from imagemill.pipelines.parameters import (
    FORM_PARAMETERS,
    MAX_FORM_PARAMETERS,
    format_form_value,
    list_form_parameters,
    list_parameters,
    resolve_parameters,
)
from imagemill.pipelines.steps import PIPELINE

GOLDEN = Path(__file__).parent / "golden" / "training.yaml"
CLUSTER = Cluster(
    images=Images(**{name: f"registry.example/mill/{name}@sha256:{'0' * 64}" for name in ("cpu", "ray", "gpu")})
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from imagemill.pipelines.compile import compile_kfp

    path = tmp_path_factory.mktemp("compiled") / "training.yaml"
    compile_kfp(resolve_parameters({}), path, CLUSTER)
    return path


def load_spec(package: Path) -> dict[str, Any]:
    return next(yaml.safe_load_all(package.read_text()))


def summarize(pipeline: dict[str, Any]) -> dict[str, Any]:
    """Return what users and orchestrators rely on: parameters, tasks, order, retries, images; no source text."""
    root = pipeline["root"]
    groups = [pipeline["components"][f"comp-{name}"]["dag"]["tasks"] for name in ("exit-handler-1", "condition-2")]
    return {
        "parameters": {
            name: {"type": parameter["parameterType"], "default": parameter.get("defaultValue")}
            for name, parameter in root["inputDefinitions"]["parameters"].items()
        },
        "tasks": {
            name: {
                "after": sorted(task.get("dependentTasks", [])),
                "retries": task["retryPolicy"]["maxRetryCount"],
                "cached by KFP": task.get("cachingOptions", {}).get("enableCache", False),
                "parameters": sorted(task["inputs"]["parameters"]),
            }
            for tasks in groups
            for name, task in tasks.items()
            if name != "condition-2"
        },
        "at the end": sorted(root["dag"]["tasks"]),
        "images": {
            name.removeprefix("exec-"): executor["container"]["image"].partition("@")[0]
            for name, executor in pipeline["deploymentSpec"]["executors"].items()
        },
    }


def test_package_equals_the_golden_file(package: Path) -> None:
    summary = summarize(load_spec(package))
    if os.environ.get("REWRITE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(yaml.safe_dump(summary, sort_keys=True))
    assert summary == yaml.safe_load(GOLDEN.read_text())


def test_every_parameter_is_described_and_has_a_default(package: Path) -> None:
    parameters = load_spec(package)["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == {*FORM_PARAMETERS, "config"} and len(parameters) <= MAX_FORM_PARAMETERS
    for name, parameter in parameters.items():
        assert parameter["description"].strip(), name
        assert parameter["parameterType"] == "STRING" and "defaultValue" in parameter, name


def test_unset_values_are_blank_in_the_form(package: Path) -> None:
    parameters = load_spec(package)["root"]["inputDefinitions"]["parameters"]
    blank = {name for name, parameter in parameters.items() if parameter["defaultValue"] == ""}
    assert blank == {"source", "name", "model_preset", "image_size", "epochs", "rerun", "config"}
    assert not any(parameter["defaultValue"] in ("0", "0.0", "-1") for parameter in parameters.values())


def test_fixed_choices_are_drop_downs(package: Path) -> None:
    """KFP's pages make them of `literals`; its API server refuses a value that is none of them."""
    from kfp import components

    parameters = load_spec(package)["root"]["inputDefinitions"]["parameters"]
    choices = {name: parameter["literals"] for name, parameter in parameters.items() if "literals" in parameter}
    assert choices == {
        name: list(list_parameters()[name].choices) for name in ("dataset", "preset", "recipe", "promote")
    }  # fmt: skip
    assert all(parameters[name]["defaultValue"] in values for name, values in choices.items())
    loaded = components.load_component_from_file(str(package)).pipeline_spec
    read = loaded.root.input_definitions.parameters["promote"].literals
    assert [literal.string_value for literal in read] == ["unless-worse", "better", "always", "never"]


def test_choices_are_compiled_only_for_servers_that_know_them(tmp_path: Path) -> None:
    """It refuses a package with a field that it does not know."""
    from imagemill.pipelines.compile import compile_kfp

    for version, expected in (("2.15", False), ("2.16", True), ("2.17.1", True)):
        compile_kfp(resolve_parameters({}), tmp_path / "p.yaml", replace(CLUSTER, kfp=Kfp(version=version)))
        assert ("literals:" in (tmp_path / "p.yaml").read_text()) is expected, version


def test_pipeline_parameters_have_the_order_and_defaults_of_the_form() -> None:
    from imagemill.pipelines.training import build_pipeline

    form_parameters = list_form_parameters()
    parameters = inspect.signature(build_pipeline(CLUSTER).pipeline_func).parameters
    assert list(parameters) == list(form_parameters) == [*FORM_PARAMETERS, "config"]
    for name, parameter in parameters.items():
        default = form_parameters[name].default
        assert parameter.default == ("" if default is None else str(default)), name
        assert parameter.annotation is str, name


@pytest.mark.parametrize("step", PIPELINE)
def test_component_takes_the_form_parameters_of_its_step(step: str) -> None:
    from imagemill.pipelines.kfp.steps import build_component

    config = PIPELINE[step].config
    fields = {field.name for field in dataclasses.fields(config)}
    inputs = build_component(step).component_spec.inputs
    own = {*FORM_PARAMETERS} if step == "download" else fields & {*FORM_PARAMETERS}
    others = {"champion_evaluation"} if step == "promote" else set()
    assert {*inputs} == own | {*config.PARENTS, "run", "config"} | others
    assert {value.type for value in inputs.values()} == {"String"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"config": '{"wieght_decay": 3}'}, "config.wieght_decay: expected a parameter or a step; is it weight_decay?"),
        ({"config": '{"train": {"val_fraction": 0.2}}'}, "config.train.val_fraction: expected a parameter of train"),
        ({"config": '{"train": {"ema": 2}}'}, "config.train.ema: expected a number of at most 0.99999, or to be left"),
        ({"config": '{"device": "tpu"}'}, "config.device: expected one of auto, cpu, cuda, found 'tpu'"),
        ({"config": '{"seed": "x"}'}, "config.seed: expected a whole number, found 'x'"),
        ({"config": '{"epochs": 3}'}, "config.epochs: expected what is no parameter of its own, found 'epochs'"),
        ({"config": '{"train": {"tensors": "x"}}'}, "config.train.tensors: expected a parameter of train"),
        ({"config": "{"}, "config: expected a JSON object"),
        ({"epochs": "many"}, "epochs: expected a whole number, found 'many'"),
        ({"image_size": "0"}, "image_size: expected a number of at least 8, or to be left out (by the model preset"),
        ({"promote": "yes"}, "promote: expected one of unless-worse, better, always, never, found 'yes'"),
    ],
)
def test_download_refuses_invalid_values_of_later_steps(values: dict[str, str], message: str, tmp_path: Path) -> None:
    form = {name: format_form_value(parameter.default) for name, parameter in list_form_parameters().items()}
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        check_form("some-run", form | {"workspace": str(tmp_path)} | values)
    record = Workspace.from_uri(str(tmp_path)).step_record("some-run", "download")
    assert record and record.exit_code == 2 and record.error.startswith(message)


def test_form_and_config_determine_the_options_of_every_step() -> None:
    form = {name: format_form_value(parameter.default) for name, parameter in list_form_parameters().items()}
    config = '{"seed": 7, "hue": null, "device": "cpu", "train": {"ema": 0.999, "device": "cuda"}}'
    chosen = check_form("some-run", form | {"epochs": "3", "config": config})
    train = chosen.config("train")
    assert isinstance(train, TrainConfig)
    assert (train.epochs, train.seed, train.ema, train.hue, train.device) == (3, 7, 0.999, None, "cuda")
    resize, evaluate = chosen.config("resize"), chosen.config("evaluate")
    assert isinstance(resize, ResizeConfig) and isinstance(evaluate, EvaluateConfig)
    assert (resize.image_size, resize.device, evaluate.device) == (None, "cpu", "cpu")


def test_step_refuses_an_unknown_name_in_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--config", '{"wieght_decay": 3}']) == 2
    assert "config.wieght_decay: expected a parameter or a step; is it weight_decay?" in capsys.readouterr().err


def test_config_is_a_file_or_json_for_a_run_and_for_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs: list[Any] = []

    def execute(self: Step, config: Any, result: str = "") -> StepRecord:
        configs.append(config)
        return StepRecord()

    monkeypatch.setattr(Step, "execute", execute)
    path, values = tmp_path / "mill.yaml", {"epochs": 3, "promote": "never", "train": {"ema": 0.99}}
    path.write_text(yaml.safe_dump(values | {"clean": None}))
    words = ["train", "--tensors", "t", "--epochs", "5", "--config"]
    assert cli.main([*words, str(path)]) == 0, "a flag wins over the file"
    assert cli.main([*words[:3], "--config", json.dumps({"epochs": 3, "train": {"ema": 0.99}})]) == 0
    assert [(config.epochs, config.ema) for config in configs] == [(5, 0.99), (3, 0.99)]
    assert cli.main(["promote", "--evaluation", "e", "--config", str(path)]) == 0 and configs[-1].promote == "never"
    assert resolve_parameters({}, json.dumps(values)) == resolve_parameters({}, str(path))
    capsys.readouterr()
    for text, message in (
        ("[1]", "--config: expected a YAML file that can be read, or a JSON object"),
        ("{", "config: expected a JSON object"),
        (str(tmp_path / "none.yaml"), "none.yaml (No such file or directory)"),
    ):
        assert cli.main([*words, text]) == 2
        assert message in capsys.readouterr().err
    path.write_text("ema: 0.9\nema: 0.99\n")
    assert cli.main([*words, str(path)]) == 2
    assert f"{path} (line 2): expected each name once" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--config \(wieght_decay\): expected a parameter or a step"):
        resolve_parameters({}, '{"wieght_decay": 3}')


def test_steps_install_nothing_at_run_time(package: Path) -> None:
    assert "pip install" not in package.read_text()


def test_parameters_of_several_steps_have_one_declaration() -> None:
    declarations: dict[str, tuple[Any, ...]] = {}
    for step in PIPELINE.values():
        for field in dataclasses.fields(step.config):
            properties = (
                field.default,
                field.type,
                field.metadata["choices"],
                field.metadata["low"],
                field.metadata["high"],
            )
            assert declarations.setdefault(field.name, properties) == properties, field.name


def test_config_file_flags_and_sections(tmp_path: Path) -> None:
    path = tmp_path / "mill.yaml"
    path.write_text("epochs: 3\nweight_decay: 0.2\nevaluate:\n  device: cpu\n")
    chosen = resolve_parameters({"epochs": "4"}, str(path))
    assert chosen.pipeline == {"epochs": 4}
    assert chosen.sections == {"train": {"weight_decay": 0.2}, "evaluate": {"device": "cpu"}}


@pytest.mark.parametrize("text", ["train: {device: cpu}\ndevice: cuda", "device: cuda\ntrain: {device: cpu}\nclean:"])
def test_section_of_a_step_overrides_the_value_for_all_steps(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mill.yaml"
    path.write_text(text)
    assert resolve_parameters({}, str(path)).sections == {
        "train": {"device": "cpu"}, "resize": {"device": "cuda"}, "evaluate": {"device": "cuda"}
    }  # fmt: skip
    assert resolve_parameters({"device": "auto"}, str(path)).sections["train"] == {"device": "auto"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epohcs: 3", "is it epochs"),
        ("epochs: many", r"mill\.yaml \(epochs\): expected a whole number, found 'many'"),
        ("train:\n  nosuch: 1", "nosuch"),
        ("epochs: -3", r"mill\.yaml \(epochs\): expected a number of at least 1, or to be left out .*, found -3"),
        ("epochs: 0", r"mill\.yaml \(epochs\): .* or to be left out \(by the recipe\), found 0"),
        ("train: {epochs: -3}", r"mill\.yaml \(train\.epochs\): expected a number of at least 1, .*, found -3"),
        ("train: {label_smoothing: 7}", r"mill\.yaml \(train\.label_smoothing\): expected a number of at most 0\.9"),
        ("train: {label_smoothing: x}", r"mill\.yaml \(train\.label_smoothing\): expected a number, found 'x'"),
        ("device: gpu\ntrain: {device: cpu}", r"mill\.yaml \(device\): expected one of"),
        ("dataset: nosuch", r"mill\.yaml \(dataset\): expected one of demo"),
        ("name: a/b", r"mill\.yaml \(name\): expected letters"),
        ("name: a\nname: b", r"mill\.yaml \(line 2\): expected each name once, found 'name'"),
        ("train: 3", r"mill\.yaml \(train\): expected names and values, found 3"),
        ("- 1", "names and values"),
        ("a: [", "expected YAML"),
    ],
)
def test_invalid_config_files_are_refused_with_the_field(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mill.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        resolve_parameters({}, str(path))


def test_invalid_flag_is_named_though_the_file_sets_the_field(tmp_path: Path) -> None:
    path = tmp_path / "mill.yaml"
    path.write_text("epochs: 3\ntrain: {label_smoothing: 0.1}")
    for flags in ({"epochs": "-3"}, {"label_smoothing": "7"}):
        with pytest.raises(UserError, match=f"^--{next(iter(flags)).replace('_', '-')}: expected a number of at"):
            resolve_parameters(flags, str(path))


@pytest.mark.parametrize("command", ["compile", "submit", "schedule"])
def test_help_of_cluster_commands_names_no_local_folder(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    assert "imagemill-data" not in help_text and "a folder or s3://" not in help_text
    assert "live: s3://bucket/prefix (default: storage.workspace of the cluster file)" in help_text


def iter_imports(path: Path, root: Path) -> Iterator[tuple[str, ...]]:
    """The imagemill modules that a file imports, as paths below the package: ("components", "store", "uri")."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = tuple((node.module or "").split(".")) if node.module else ()
            if node.level or module[:1] == ("imagemill",):
                base_module = (*base, *module) if node.level else module[1:]
                yield from ((*base_module, alias.name) for alias in node.names)


SHARED = ("compat", "storage", "dataset", "imaging", "models", "metrics", "step", "engine", "report")
"""What steps share, in the order in which it may be imported: each package by those after it."""
ORDERING = (
    "api", "compat", "settings", "steps", "parameters", "cluster", "run_log", "docker", "kuberay", "finish", "kfp",
    "argo", "pod", "training", "compile", "local", "experiments", "doctor", "cli",
)  # fmt: skip
"""The packages and modules of pipelines, in the order in which they may be imported; nothing
imports api, pod and cli."""


def test_no_modules_import_each_other() -> None:
    """Neither directly nor through others; imports inside functions and under TYPE_CHECKING count."""
    root = Path(__file__).parents[2]
    paths = [path for package in ("components", "pipelines") for path in (root / package).rglob("*.py")]
    names = {path: path.parent if path.name == "__init__.py" else path.with_suffix("") for path in paths}
    modules = {name.relative_to(root).parts: path for path, name in names.items()}
    graph = {
        module: {name for target in iter_imports(path, root) for name in (target, target[:-1]) if name in modules}
        for module, path in modules.items()
    }
    assert sum(map(len, graph.values())) > len(graph)
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the modules of a circle


def test_source_tree_imports_in_one_direction() -> None:
    """Components never import pipelines, steps never import one another, and what they share imports downwards only."""
    root = Path(__file__).parents[2]
    used = set()
    for path in (root / "components").rglob("*.py"):
        own = path.relative_to(root / "components").parts[0].removesuffix(".py")
        below = SHARED[: SHARED.index(own)] if own in SHARED else SHARED
        for target in iter_imports(path, root):
            assert target[0] == "components" and target[1] in (*below, own), (path, target)
            used.add((own, target[1]))
    assert {(step, package) for step in PIPELINE for package in ("storage", "dataset", "step")} <= used
    imported = set()
    for path in (root / "pipelines").rglob("*.py"):
        own = path.relative_to(root / "pipelines").parts[0].removesuffix(".py")
        below = () if own == "__init__" else ORDERING[: ORDERING.index(own) + 1]
        for target in iter_imports(path, root):
            assert target[0] == "components" or target[1] in below, (path, target)
            imported.add(target[:2])
    assert {("components", step) for step in PIPELINE} <= imported and {
        ("pipelines", name) for name in ORDERING if name not in ("api", "pod", "cli")
    } <= imported
