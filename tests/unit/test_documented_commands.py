"""Every command in the documents is one that its own parser takes; every file, flag and link in them is there."""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import FOLDERS, ROOT, Command, anchors, commands, documents, inline_code, links, split
from e2e import options as e2e_options

from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.workspace import STEPS
from imagemill.components.export.config import FORMATS
from imagemill.components.step.config import name_flag
from imagemill.components.step.step import Step
from imagemill.components.storage.errors import EXIT_OK, UserError
from imagemill.pipelines.cli import images
from imagemill.pipelines.cli import main as cli
from imagemill.pipelines.cluster.validation import check_cron
from imagemill.pipelines.parameters import list_parameters, resolve_parameters
from imagemill.pipelines.steps import PIPELINE

EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
PROGRAMS = {"imagemill", "kubectl", "helm", "kind", "argo", "aws", "python3", "pip", "run", "key", "cp"}
"""What a command may begin with, by the last part of its path. `key` is a shell function of k8s/README.md."""
WITH_PARAMETERS = ("run", "config", "compile", "submit", "schedule", "champion", "compare", "tune")
WRITTEN = ("-o", "--output", "--results", "--report", "--result", "--outputs")
"""Flags whose value names a file that need not be there."""
WORDS = {"runner": ("local", "docker"), "target": ("", "kfp", "argo"), "format": FORMATS, "logs": ("", *STEPS)}
"""Values that a command checks after it has parsed them, by the name of their flag."""
COMMANDS = [command for path in documents() for command in commands(path)]
PATH = re.compile(rf"({'|'.join(FOLDERS)})/[\w./-]+")
SYMBOL = re.compile(rf"((?:{'|'.join(FOLDERS)})/[\w./-]+):(\w+)")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def check(command: Command, config: pytest.Config) -> None:
    """Raise an error for a command that the program, or the file that it names, does not take."""
    program = Path(command.words[0]).name
    assert program in PROGRAMS, f"{program}: expected one of {sorted(PROGRAMS)}"
    arguments = list(command.words[1:])
    if program == "imagemill":
        check_imagemill(arguments)
    elif command.words[0] == "./tests/run":
        check_tests_run(arguments, config)
    elif command.words[0] == "tests/e2e/run":
        check_e2e_run(arguments)
    elif program == "run":
        raise AssertionError(f"{command.words[0]}: expected ./tests/run or tests/e2e/run")
    elif program == "pip":
        check_extras(arguments)
    elif program == "kubectl" and arguments[:2] == ["apply", "-k"]:
        assert (ROOT / arguments[2] / "kustomization.yaml").is_file(), f"{arguments[2]} is no kustomize folder"
    for flag, word in zip(command.words, command.words[1:], strict=False):
        if PATH.fullmatch(word) and flag not in WRITTEN:
            assert (ROOT / word).exists(), f"{word} is not in the repository"


def check_imagemill(arguments: list[str]) -> None:
    """Parse the command line as `imagemill` does, and check the values that it checks next; nothing is run."""
    if arguments[0] in STEPS:
        assert cli.main(arguments) == EXIT_OK  # Step.execute is replaced: see `no_step_runs`
        return
    values = vars(cli._make_parser().parse_args(arguments))
    for name, choices in WORDS.items():
        if values.get(name) is not None:
            assert values[name] in choices, f"--{name}: expected one of {choices}, found {values[name]!r}"
    if values["command"] in WITH_PARAMETERS:
        parameters = list_parameters()
        resolve_parameters(
            {name: value for name, value in values.items() if name in parameters and value not in (None, "")}
        )
    if values["command"] == "images":
        images.make_prefix(values["registry"], values["tag"], not values["no_push"])
    if values.get("cron"):
        check_cron("--cron", values["cron"])


def check_tests_run(arguments: list[str], config: pytest.Config) -> None:
    """The arguments of tests/run are pytest's; a marker has to be registered."""
    options, unknown = config._parser.parse_known_and_unknown_args(arguments)
    assert not unknown, f"pytest does not know {unknown}"
    markers = {line.partition(":")[0].partition("(")[0] for line in config.getini("markers")}
    assert not options.markexpr or options.markexpr in markers, f"-m {options.markexpr}: expected one of {markers}"


def check_e2e_run(arguments: list[str]) -> None:
    try:
        e2e_options.parse(arguments)
    except SystemExit as error:
        raise UserError(f"tests/e2e/run {arguments}: refused") from error


def check_extras(arguments: list[str]) -> None:
    """Extras that `pip install` is asked for are in pyproject.toml."""
    asked = {name for word in arguments for extras in re.findall(r"\[([\w,]+)\]", word) for name in extras.split(",")}
    assert asked <= EXTRAS, f"pyproject.toml has no extra {asked - EXTRAS}"


@pytest.fixture(autouse=True)
def no_step_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's command line is parsed and its config checked; the step itself does not run."""
    monkeypatch.setattr(Step, "execute", lambda self, config, result="": StepRecord())


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_documented_command_is_taken_by_its_parser(command: Command, pytestconfig: pytest.Config) -> None:
    check(command, pytestconfig)


@pytest.mark.parametrize(
    "line",
    [
        "imagemil run", "imagemill rum", "imagemill run --dataste demo", "imagemill run --dataset demos",
        "imagemill run --epochs many", "imagemill run --source ~/photos --dataset folder --rerun trian",
        "imagemill run --runner podman", "imagemill run --image_size 224", "imagemill run --model-preset resnet51",
        "imagemill clean --raw a --roi-margins 0.1", "imagemill clean --raw a --preset medicine",
        "imagemill train --tensors a --process 2", "imagemill export a --format imagefolders --output b",
        "imagemill compile --target kubeflow -o a.yaml", "imagemill submit --experiments a",
        "imagemill runs a --log clean", "imagemill runs a --logs cleaning", "imagemill schedule --cron '0 3 * *'",
        "imagemill champion demote", "imagemill compare a.yaml", "imagemill compare a.yaml b.yaml --parts 5",
        "imagemill tune a.yaml b.yaml", "imagemill tune --pruner hyperband",
        "imagemill champion promote a --forced",
        "imagemill images build --registry https://ghcr.io/you", "imagemill images push", "imagemill doctor --probes",
        "imagemill predict --model a", "imagemill inspect", "imagemill run && imagemill run --dataste demo",
        "./tests/run --frobnicate", "./tests/run -m proofs", "./tests/run tests/unit/test_confg.py", "./test/run",
        "tests/e2e/run --sweeps", "tests/e2e/run --patience much", ".venv/bin/pip install '.[alll]'",
        "kubectl apply -k k8s/overlays/minikube",
        "imagemill compile --target argo --cluster k8s/cluster.yaml -o a.yaml",
    ],
)  # fmt: skip
def test_a_mistake_in_a_command_is_found(line: str, pytestconfig: pytest.Config) -> None:
    with pytest.raises((AssertionError, UserError)):
        for words in split(line):
            check(Command(ROOT / "README.md", words), pytestconfig)


def test_commands_are_read_as_a_shell_does() -> None:
    lines = {
        "imagemill run # --nothing": [("imagemill", "run")],
        "a --b 'c d' && e <id> | f": [("a", "--b", "c d"), ("e", "id"), ("f",)],
        "AWS_REGION=x imagemill predict - < list.txt": [("imagemill", "predict", "-")],
        'export A="$(key b)" C=d': [],
        'key() { kubectl get "{{.data.$1}}"; }': [("kubectl", "get", "{{.data.$1}}")],
        "kubectl port-forward svc/a 8333 &": [("kubectl", "port-forward", "svc/a", "8333")],
    }
    assert {line: list(split(line)) for line in lines} == lines
    counts = {str(path.relative_to(ROOT)): len(commands(path)) for path in documents()}
    assert counts["README.md"] > 10 and counts["pipelines/README.md"] > 20 and counts["k8s/README.md"] > 15


def known_flags() -> dict[str, tuple[str, ...]]:
    """Every flag of imagemill's commands and of tests/e2e/run, with the choices of those that have some."""
    options = (name_flag(field.name) for step in PIPELINE.values() for field in dataclasses.fields(step.config))
    own_to_steps = ("--result", "--outputs", *options)
    e2e = FLAG.findall((ROOT / "tests/e2e/options.py").read_text())
    actions = (action for parser in parsers(cli._make_parser()) for action in parser._actions)
    flags: dict[str, tuple[str, ...]] = dict.fromkeys((*own_to_steps, *e2e), ())
    flags |= {flag: () for action in actions for flag in action.option_strings}
    return flags | {name_flag(name): parameter.choices for name, parameter in list_parameters().items()}


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_in_running_text_are_known_with_their_values(path: Path) -> None:
    flags = known_flags()
    programs = ("--", "imagemill ", "tests/e2e/run", "./tests/run")
    for code in (code for code in inline_code(path) if code.startswith(programs)):
        for flag in FLAG.findall(code):
            assert flag in flags, f"{code}: no command has {flag}"
        if match := re.fullmatch(r"(--[\w-]+) ([a-z_0-9|]+)", code):
            choices = flags[match[1]]
            assert not choices or set(match[2].split("|")) <= set(choices), f"{code}: expected some of {choices}"


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_files_and_symbols_exist(path: Path) -> None:
    for target in links(path):
        file, _, anchor = target.partition("#")
        document = (path.parent / file).resolve() if file else path
        assert document.exists(), target
        assert not anchor or anchor in anchors(document), f"{target}: expected one of {sorted(anchors(document))}"
    for code in inline_code(path):
        if match := SYMBOL.fullmatch(code):
            source = (ROOT / match[1]).read_text()
            definition = rf"^\s*(?:def|class) {match[2]}\b|^\s*{match[2]}(?:: [^=\n]+)? = "
            assert re.search(definition, source, re.MULTILINE), f"{match[1]} defines no {match[2]}"
        elif PATH.fullmatch(code) and path.name != "CHANGELOG.md":  # which tells of what was
            assert (ROOT / code).exists(), f"{code} is not in the repository"


def test_top_level_has_only_the_agreed_files() -> None:
    listed = subprocess.run(["git", "ls-files", "--cached"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no checkout of git")
    top = {name.partition("/")[0] for name in listed.stdout.splitlines()}
    agreed = {*FOLDERS, "pyproject.toml", "README.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md"}
    assert {name for name in top if not name.startswith(".")} <= agreed
