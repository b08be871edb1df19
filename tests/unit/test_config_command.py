"""`imagemill config`: the values of a run and where they come from, the schema of its file; environment variables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.workspace import STEPS, Workspace
from imagemill.components.step.config import name_variable
from imagemill.components.step.step import Step
from imagemill.components.storage.errors import UserError
from imagemill.components.train.config import TrainConfig
from imagemill.pipelines.cli import main as cli
from imagemill.pipelines.cli.config import build_config_schema, format_values
from imagemill.pipelines.parameters import RunParameters, list_parameters, resolve_parameters

ROOT = Path(__file__).parents[2]
VALIDATOR = jsonschema.Draft202012Validator(build_config_schema())


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, parameter in list_parameters().items():
        for step in ("", *parameter.steps):
            monkeypatch.delenv(name_variable(name, step), raising=False)


def read(text: str, folder: Path) -> RunParameters:
    (folder / "mill.yaml").write_text(text)
    return resolve_parameters({}, str(folder / "mill.yaml"), {})


def test_the_command_prints_the_schema_of_every_parameter(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert set(schema["properties"]) == {*list_parameters(), *STEPS} and set(schema["$defs"]) == set(list_parameters())
    assert schema["$defs"]["epochs"] == {
        "description": list_parameters()["epochs"].help, "type": ["integer", "null"], "minimum": 1, "maximum": 100_000,
    }  # fmt: skip
    assert schema["$defs"]["encoding"]["default"] == "raw"


def test_every_default_is_valid_by_the_schema() -> None:
    VALIDATOR.validate({name: parameter.default for name, parameter in list_parameters().items()})


def test_the_command_prints_each_value_with_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_variables: None
) -> None:
    path = tmp_path / "mill.yaml"
    path.write_text("seed: 7\ntrain: {ema: 0.99, device: cpu}\npreset: ocr\nmodel_preset: clip\nflip: on\n")
    monkeypatch.setenv("IMAGEMILL_EPOCHS", "3")
    assert cli.main(["config", "--config", str(path), "--seed", "8", "--name", "weekly"]) == 0
    text = capsys.readouterr().out
    lines = [line.strip() for line in text.splitlines()]
    for line in (
        "seed: 8  # --seed", 'name: "weekly"  # --name', "epochs: 3  # IMAGEMILL_EPOCHS",
        f"ema: 0.99  # {path} (train.ema)", f'device: "cpu"  # {path} (train.device)', 'device: "auto"  # default',
        'color: "gray"  # preset ocr', 'interpolation: "bicubic"  # model_preset clip',
        f'flip: "true"  # {path} (flip)',
        "learning_rate: null  # unset: by the recipe, the optimizer and the weights", 'encoding: "raw"  # default',
        'weights: "auto"  # default', 'source: ""  # unset: none',
    ):  # fmt: skip
        assert line in lines, line
    VALIDATOR.validate(yaml.safe_load(text))
    expected = resolve_parameters({"seed": 8, "name": "weekly", "epochs": 3}, str(path), {})
    reread = read(text, tmp_path)
    assert all(reread.config(step) == expected.config(step) for step in STEPS), "the output is a file of the same run"
    assert cli.main(["config", "--config", '{"store_size": 30}']) == 2, "rules over several options are checked"


def test_a_variable_counts_for_more_than_the_file_and_less_than_a_flag(tmp_path: Path) -> None:
    file = tmp_path / "mill.yaml"
    file.write_text("seed: 1\nepochs: 1\nwarmup: 0.1\ntrain: {ema: 0.1, device: cpu}")
    environ = {"IMAGEMILL_SEED": "2", "IMAGEMILL_EPOCHS": "2", "IMAGEMILL_EMA": "0.2", "IMAGEMILL_DEVICE": "auto"}
    parameters = resolve_parameters({"epochs": "3"}, str(file), environ | {"IMAGEMILL_TRAIN_DEVICE": "cuda"})
    train = parameters.config("train")
    assert isinstance(train, TrainConfig)
    assert (train.seed, train.epochs, train.ema, train.warmup, train.device) == (2, 3, 0.2, 0.1, "cuda")
    assert vars(parameters.config("resize"))["device"] == "auto"
    assert parameters == resolve_parameters(
        {"epochs": 3, "seed": 2, "ema": 0.2}, '{"warmup": 0.1, "device": "auto", "train": {"device": "cuda"}}', {}
    )
    assert resolve_parameters({}, "", {"IMAGEMILL_SEED": " ", "IMAGEMILL_VENV": "x", "IMAGEMILL_HOME": "/"}) == (
        resolve_parameters({}, "", {})
    ), "a blank variable, and one that names no parameter, set nothing"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"IMAGEMILL_EPOCH": "3"}, "^IMAGEMILL_EPOCH: expected a parameter's variable; is it IMAGEMILL_EPOCHS?"),
        ({"IMAGEMILL_EPOCHS": "many"}, "^IMAGEMILL_EPOCHS: expected a whole number, found 'many'"),
        ({"IMAGEMILL_TRAIN_EPOCHS": "0"}, "^IMAGEMILL_TRAIN_EPOCHS: expected a number of at least 1"),
        ({"IMAGEMILL_CLEAN_TRIM": "maybe"}, "^IMAGEMILL_CLEAN_TRIM: expected one of off, on, found 'maybe'"),
        ({"IMAGEMILL_PROMOTE": "yes"}, "^IMAGEMILL_PROMOTE: expected one of unless-worse, better, always, never"),
    ],
)
def test_a_wrong_variable_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_parameters({}, "", environ)


def test_variables_are_unambiguous_and_none_is_one_that_imagemill_uses_itself() -> None:
    variables: list[str] = []
    for name, parameter in list_parameters().items():
        variables += [name_variable(name, step) for step in ("", *parameter.steps)]
    assert len(variables) == len(set(variables))
    sources = [path.read_text() for folder in ("components", "pipelines") for path in (ROOT / folder).rglob("*.py")]
    sources += [path.read_text() for path in (ROOT / "docker").iterdir() if path.is_file()]
    sources += [(ROOT / "tests" / "run").read_text()]
    own = set(re.findall(r"[\"'$ {](IMAGEMILL_[A-Z_]+[A-Z])\b", "\n".join(sources)))
    assert {"IMAGEMILL_RUNNER_PIPE", "IMAGEMILL_CLUSTER", "IMAGEMILL_VENV"} <= own
    assert own & {*variables} <= {"IMAGEMILL_EPOCHS", "IMAGEMILL_TRAIN_SEED", "IMAGEMILL_WORKSPACE"}, "documented ones"


def test_a_step_alone_reads_variables_and_a_step_of_a_run_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_variables: None
) -> None:
    configs: list[Any] = []
    monkeypatch.setattr(Step, "execute", lambda self, config, result="": configs.append(config) or StepRecord())
    file = tmp_path / "mill.yaml"
    file.write_text("epochs: 1\nseed: 1\n")
    for name, value in {"EPOCHS": "2", "TRAIN_EPOCHS": "3", "SEED": "4", "WARMUP": "0.2", "TENSORS": "no"}.items():
        monkeypatch.setenv(f"IMAGEMILL_{name}", value)
    arguments = ["train", "--tensors", "t", "--config", str(file), "--warmup", "0.3"]
    assert cli.main(arguments) == cli.main([*arguments, "--run", "r"]) == 0
    assert [(config.epochs, config.seed, config.warmup, config.tensors) for config in configs] == [
        (3, 4, 0.3, "t"),
        (1, 1, 0.3, "t"),
    ]
    for value, message in (("x", "a whole number"), ("0", "a number of at least 1")):
        monkeypatch.setenv("IMAGEMILL_TRAIN_EPOCHS", value)
        assert cli.main(arguments) == 2
        assert f"IMAGEMILL_TRAIN_EPOCHS: expected {message}" in capsys.readouterr().err


def test_commands_that_look_into_a_workspace_take_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMAGEMILL_WORKSPACE", str(tmp_path / "mill"))
    for name in ("mill", "other"):
        Workspace.open(str(tmp_path / name))
    assert cli.main(["champion", "list"]) == 0
    assert f"no champion in {tmp_path}/mill" in capsys.readouterr().out
    assert cli.main(["champion", "list", "--workspace", str(tmp_path / "other")]) == 0
    assert f"no champion in {tmp_path}/other" in capsys.readouterr().out


def test_the_values_of_the_demo_are_those_of_the_configs(no_variables: None) -> None:
    values = yaml.safe_load("\n".join(format_values(resolve_parameters({}, "", {}))))
    assert set(values) == {*list_parameters()}, "each once: no step differs"
    assert values["workspace"] == "./imagemill-data" and values["color"] == "rgb" and values["epochs"] is None
