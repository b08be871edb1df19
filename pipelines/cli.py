"""The `imagemill` command. Heavy libraries are imported by the commands that need them, not by `--help`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..components.store.config import STEPS
from ..components.store.errors import EXIT_OK, MillError, UserError
from ..components.store.extras import needed_by, require
from ..components.store.manifest import code_version
from ..components.store.step import Parser, add_flag, quiet_logs
from . import champion, exporting, images, predicting, runs, schedule, submit
from .doctor import command as doctor
from .parameters import ALL_STEPS, WORKSPACE_HELP, RunParameters, list_parameters, parse_sections, resolve_parameters

_INTRO = "Labelled images in, a better classifier out, again every week."
_SERVICE: dict[str, Callable[[dict[str, Any]], int]] = {
    "submit": submit.run,
    "schedule": schedule.run,
    "runs": runs.run,
}
"""The commands that speak to Kubeflow Pipelines."""
_NEEDS = {"run": ("kfp",), "predict": ("torch", "safetensors"), "images": ("docker",)}
_NEEDS |= dict.fromkeys(_SERVICE, ("kfp",)) | {"doctor": ("kubernetes", "kfp")}
"""The optional modules that commands can't do without, whatever they are asked for; of the steps each knows its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 wrong input, 75 transient, 1 ours."""
    words = list(sys.argv[1:] if argv is None else argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)  # as Ctrl-C: what is finished is kept, and said
    try:
        if words and words[0] in STEPS:
            return ALL_STEPS[words[0]].main(words[1:], prog=f"imagemill {words[0]}", check_config=parse_sections)
        return _command(words)
    except MillError as error:
        print(f"imagemill: error: {error}", file=sys.stderr)
        if words[:1] == ["run"] and "--json" in words:  # whoever reads it shall find one line, whatever was wrong
            from .run import failed

            print(json.dumps(failed(error), ensure_ascii=False))
        return error.exit_code
    except KeyboardInterrupt:
        print("imagemill: stopped; run again to go on from what is finished", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `imagemill … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _command(words: list[str]) -> int:
    quiet_logs()
    found = vars(_parser().parse_args(words))
    command = found.pop("command")
    with needed_by(command, _NEEDS.get(command, ())):
        return _do(command, found)


def _do(command: str, found: dict[str, Any]) -> int:
    if command == "inspect":
        return _inspect(found["dataset_uri"], found["json"])
    if command == "export":
        return _export(found)
    if command == "predict":
        predicting.run(found)
        return EXIT_OK
    if command == "cluster":
        return _cluster(found["output"])
    if command == "images":
        return images.run(found)
    if command == "champion":
        return champion.run(found)
    if command == "doctor":
        return doctor.run(found)
    if command in _SERVICE:
        return _SERVICE[command](found)
    config_file = found.pop("config_file", None) or ""
    runner, as_json = found.pop("runner", ""), found.pop("json", False)
    found_cluster = found.pop("cluster_file", None) or ""
    target, output = found.pop("target", ""), found.pop("output", "")
    parameters = resolve_parameters({key: value for key, value in found.items() if value is not None}, config_file)
    if command == "run":
        return _run(parameters, runner, found_cluster, as_json)
    return _compile(parameters, target, output, found_cluster)


def _run(parameters: RunParameters, runner: str, cluster_file: str, as_json: bool) -> int:
    from .run import run

    if runner not in ("subprocess", "docker"):
        raise UserError(f"--runner: expected subprocess or docker, found {runner!r}")
    if runner == "subprocess":
        if cluster_file:
            raise UserError(f"--cluster: expected nothing with --runner subprocess, found {cluster_file!r}")
        # Now, and not when the steps before have worked for an hour.
        require("run", [module for step in ALL_STEPS.values() for module in step.needs])
        return run(parameters, as_json)
    require("run", ["docker"])
    from .cluster import Cluster, from_file

    return run(parameters, as_json, from_file(cluster_file) if cluster_file else Cluster())


def _compile(parameters: RunParameters, target: str, output: str, cluster_file: str) -> int:
    from .compile import compile_for

    compile_for(target, parameters, Path(output), cluster_file)
    print(f"wrote {output}")
    return EXIT_OK


def _cluster(output: str) -> int:
    from .compile import write_documented

    write_documented(output)
    return EXIT_OK


def _inspect(uri: str, as_json: bool) -> int:
    from .inspection import inspect

    inspect(uri, as_json)
    return EXIT_OK


def _export(found: dict[str, Any]) -> int:
    from .exporting import run

    run(found)
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="imagemill", description=_INTRO, epilog="Each command has its own --help.")
    parser.add_argument("--version", action="version", version=f"imagemill {code_version()}")
    commands: Any = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    run = commands.add_parser("run", help="the whole pipeline here: download to promotion", description=_INTRO)
    run.add_argument(
        "--runner", default="subprocess", metavar="RUNNER",
        help="how steps run here [subprocess, docker] (default: subprocess)",
    )  # fmt: skip
    run.add_argument(
        "--cluster", dest="cluster_file", metavar="FILE.yaml",
        help="for docker: the images are those that this file names (default: those of this version, by tag)",
    )  # fmt: skip
    run.add_argument("--json", action="store_true", help="print the result as one line of JSON, last on stdout")
    _add_parameters(run)
    for step in ALL_STEPS.values():  # for the list of commands; their flags are their own
        commands.add_parser(step.name, help=step.help, add_help=False)
    inspected = commands.add_parser("inspect", help="what is in a dataset: the ledger, its quality, what was found")
    inspected.add_argument("dataset_uri", metavar="DATASET", help="its URI or path, or that of its _manifest.json")
    inspected.add_argument("--json", action="store_true", help="print the facts as one JSON object")
    exporting.add_command(commands)
    predicting.add_command(commands)
    champion.add_command(commands)
    images.add_command(commands)
    doctor.add_command(commands)
    cluster = commands.add_parser("cluster", help="the file that says how a cluster is used, every field explained")
    cluster.add_argument("-o", "--output", default="", metavar="FILE.yaml", help="write it there (default: to stdout)")
    compiled = commands.add_parser("compile", help="the pipeline as a package for a cluster")
    compiled.add_argument("--target", required=True, help="what to compile for [kfp, argo]")
    compiled.add_argument(
        "--cluster", dest="cluster_file", metavar="FILE.yaml",
        help="how the cluster is used: its images, storage and pods (see `imagemill cluster`)",
    )  # fmt: skip
    compiled.add_argument("-o", "--output", required=True, metavar="FILE", help="what to write, .yaml")
    _add_parameters(compiled, "What is given here becomes the package's defaults, which its pods are sized by.")
    submit.add_command(commands, _add_parameters)
    schedule.add_command(commands, _add_parameters)
    runs.add_command(commands)
    return parser


def _add_parameters(parser: argparse.ArgumentParser, on_cluster: str = "") -> None:
    """A flag for every parameter; `on_cluster`: what becomes of them where a cluster runs the steps."""
    # Argparse would name all of the hundred parameters there, before it says what the command is.
    parser.usage = "%(prog)s [--<option> VALUE ...] [--<parameter> VALUE ...]"
    parser.add_argument("--config", dest="config_file", metavar="FILE.yaml", help="parameters from a YAML file")
    about = f"{on_cluster} Places are URIs: the pods don't see this machine's files." if on_cluster else None
    main_ones = parser.add_argument_group("parameters", about)
    others = parser.add_argument_group("other parameters (in the forms of a cluster: in the JSON parameter config)")
    for parameter in list_parameters().values():
        group: Any = main_ones if parameter.is_in_form else others
        text = f"{WORKSPACE_HELP} (default: storage.workspace of the cluster's file)"
        if not on_cluster or parameter.name != "workspace":
            text = parameter.help
        add_flag(group, parameter.name, parameter.default, text, parameter.choices)


if __name__ == "__main__":
    sys.exit(main())
