"""The command line: a parser whose mistakes are UserErrors, flags from config fields, logs, and the extra of imagemill
that installs a missing module.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NoReturn

from ..storage.errors import UserError, wrong
from .config import StepConfig, name_flag, name_variable


class Parser(argparse.ArgumentParser):
    """argparse that raises a UserError for a mistake, and does not guess abbreviated flags."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Raise UserError for an unknown word here: only a command's own parser can suggest a flag."""
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].partition("=")[0]
            flags = [flag for action in self._actions for flag in action.option_strings]
            matches = difflib.get_close_matches(word, flags, 1)
            hint = f"; is it {matches[0]}?" if matches else f" (see {self.prog} --help)"
            expected = "a known flag" if word.startswith("-") else "nothing more, or a flag (--…) before it"
            raise UserError(f"{word}: expected {expected}{hint}")
        return namespace, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise UserError for a value that is none of the choices, with the nearest one."""
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            matches = difflib.get_close_matches(str(value), choices, 1)
            hint = f"is it {matches[0]}?" if matches else f"see {self.prog} --help"
            field = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
            raise UserError(f"{wrong(field, 'one of ' + ', '.join(choices), value)}; {hint}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


class HelpAction(argparse.Action):
    """`--help` prints the flags of `short`, or all where it is empty; `--help all` prints all."""

    def __init__(self, short: Sequence[str] = (), **options: Any) -> None:
        super().__init__(nargs="?", default=argparse.SUPPRESS, choices=("all",), metavar="all", **options)
        self._short = short

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        for action in parser._actions:
            if values is None and self._short and action.dest not in self._short:
                action.help = argparse.SUPPRESS
        parser.print_help()
        parser.exit()


def add_flag(parser: argparse.ArgumentParser, name: str, default: Any, help: str, choices: Sequence[str]) -> None:
    """Add the flag of one config field, with its help and default; its value is None where it is left out."""
    default_text = "" if default in ("", None) or "(default: " in help else f" (default: {default})"
    choices_text = f" [{', '.join(choices)}]" if choices else ""
    text = f"{help}{choices_text}{default_text}".replace("%", "%%")
    flag = name_flag(name)
    if isinstance(default, bool) or "true" in choices:  # `--flip`, `--flip false`
        parser.add_argument(flag, dest=name, metavar="true|false", nargs="?", const="true", help=text)
    else:
        parser.add_argument(flag, dest=name, metavar=name.rpartition("_")[2].upper(), help=text)


def default_workspace() -> str:
    """Return the workspace of commands that name none: the environment's, or that of a run without parameters."""
    return os.environ.get(name_variable("workspace"), "").strip() or StepConfig.workspace


def add_workspace_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--workspace` to a command that looks into one."""
    text = f"(default: {name_variable('workspace')}, or {StepConfig.workspace})"
    parser.add_argument("--workspace", default=default_workspace(), help=text)


def parse_count(flag: str, text: str, expected: str, *, low: int = 0, high: float = float("inf")) -> int:
    """Return the whole number of a flag's text; UserError unless it is one in the range, which `expected` describes."""
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise wrong(flag, expected, text)
    return int(text)


def configure_logging() -> None:
    """Write warnings as plain lines to stderr; libraries' lower levels stay out."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s", force=True)


MODULES: dict[str, tuple[str, tuple[str, ...]]] = {
    "torch": ("PyTorch", ("train", "resize", "predict")),
    "torchvision": ("torchvision", ("train", "resize", "predict")),
    "timm": ("timm", ("train", "predict")),
    "safetensors": ("safetensors", ("train", "predict")),
    "ray": ("Ray", ("resize",)),
    "albumentations": ("albumentations", ("resize", "train")),
    "cleanlab": ("cleanlab", ("train",)),
    "sklearn": ("scikit-learn", ("train",)),
    "matplotlib": ("matplotlib", ("promote", "train")),
    "scipy": ("SciPy", ("clean", "train")),
    "jinja2": ("Jinja", ("clean", "promote", "train")),
    "tensorboard": ("TensorBoard", ("train",)),
    "onnx": ("ONNX", ("train",)),
    "onnxscript": ("ONNX Script", ("train",)),
    "onnxruntime": ("ONNX Runtime", ("train",)),
    "kfp": ("the SDK of Kubeflow Pipelines", ("pipelines",)),
    "kfp.kubernetes": ("kfp-kubernetes", ("pipelines",)),
    "kfp_server_api": ("the SDK of Kubeflow Pipelines", ("pipelines",)),
    "hera": ("Hera", ("pipelines",)),
    "docker": ("Docker's client", ("pipelines",)),
    "kubernetes": ("Kubernetes' client", ("pipelines",)),
    "google_crc32c": ("google-crc32c", ("export",)),
    "optuna": ("Optuna", ("tune",)),
    "tensorflow": ("TensorFlow", ("tensorflow",)),
}
"""Module → the library's name, and the extras of pyproject.toml that install it."""

_EXTRA_OF_COMMAND = {"run": "all", "compare": "all", "evaluate": "train"}
"""Command → the extra that installs all its modules, where that has another name."""


def require_modules(command: str, modules: Iterable[str]) -> None:
    """Check, before any work is done, that the modules that `command` requires are installed.

    Nothing is imported. UserError names the first missing library and the extra that installs it.
    """
    for module in modules:
        if find_spec(module) is None:
            raise _missing_module_error(module, command)


@contextmanager
def explain_missing_modules(command: str, modules: Iterable[str] = ()) -> Iterator[None]:
    """Map ModuleNotFoundError within the block to a UserError that names the extra; check `modules` before."""
    require_modules(command, modules)
    try:
        yield
    except ModuleNotFoundError as error:
        name = str(error.name)
        module = next((key for key in (name, name.partition(".")[0]) if key in MODULES), "")
        if not module or find_spec(module) is not None:
            raise
        raise _missing_module_error(module, command) from None


def _missing_module_error(module: str, command: str) -> UserError:
    library, extras = MODULES[module]
    own = _EXTRA_OF_COMMAND.get(command, command)
    extra = own if own in (*extras, "all") else extras[0]
    return UserError(f"imagemill {command} needs {library}: pip install 'imagemill[{extra}]'")
