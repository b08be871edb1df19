"""The `imagemill` command and its short subcommands. Heavy libraries are imported by the commands that need them."""

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

from ...components.dataset.manifest import code_version
from ...components.dataset.workspace import STEPS
from ...components.export.config import FORMATS, SHARD_BYTES, ExportConfig
from ...components.predict.config import DEVICES, OUTPUTS, PredictConfig
from ...components.step.command_line import (
    Parser,
    add_flag,
    configure_logging,
    default_workspace,
    explain_missing_modules,
    parse_count,
    require_modules,
)
from ...components.step.config import name_flag
from ...components.storage.errors import EXIT_OK, MillError, UserError
from ..doctor import command as doctor
from ..parameters import (
    WORKSPACE_HELP,
    RunParameters,
    list_parameters,
    parse_sections,
    resolve_parameters,
)
from ..steps import PIPELINE, list_required_modules
from . import champion, compare, config, gc, images, runs, schedule, show, submit, tune, weights

_INTRO = "Labeled images in, a better classifier out, again every week."
_EXPORT_HELP = "a clean or tensors dataset as files that other programs read"
_PREDICT_HELP = "what a model sees in image files"
_PREDICT_DESCRIPTION = (
    "Print path, class and probability, separated by tabs, of the best classes of every image. An image goes "
    "through just what the model's own images went through. One that can't be read is told on stderr and leaves "
    "the others alone; exit code 2 where none could be."
)
_REQUIRED_MODULES = {
    "predict": ("torch", "safetensors"),
    "images": ("docker",), "submit": ("kfp",),
    "schedule": ("kfp",), "runs": ("kfp",), "doctor": ("kubernetes", "kfp"),
}  # fmt: skip
"""The optional modules that a command always imports; each step declares its own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 wrong input, 75 transient, 1 ours."""
    words = list(sys.argv[1:] if argv is None else argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C: finished work is kept, and a message says so
    try:
        if words and words[0] in STEPS:
            return PIPELINE[words[0]].step.main(words[1:], prog=f"imagemill {words[0]}", check_config=parse_sections)
        return _run_command(words)
    except MillError as error:
        print(f"imagemill: error: {error}", file=sys.stderr)
        if words[:1] == ["run"] and "--json" in words:  # its reader expects one line of JSON, also for an error
            from ..finish import make_failed_result

            print(json.dumps(make_failed_result(error), ensure_ascii=False))
        if words[:1] in (["compare"], ["tune"]) and "--json" in words:
            failed = {"status": "failed", "error": str(error), "exit_code": error.exit_code}
            print(json.dumps(failed, ensure_ascii=False))
        return error.exit_code
    except KeyboardInterrupt:
        print("imagemill: stopped; run again to go on from what is finished", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `imagemill … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _run_command(words: list[str]) -> int:
    configure_logging()
    flags = vars(_make_parser().parse_args(words))
    command = flags.pop("command")
    with explain_missing_modules(command, _REQUIRED_MODULES.get(command, ())):
        return _COMMANDS[command](flags)


def _read_parameters(flags: dict[str, Any]) -> RunParameters:
    config_file = flags.pop("config_file") or ""
    return resolve_parameters({name: value for name, value in flags.items() if value is not None}, config_file)


def _run(flags: dict[str, Any]) -> int:
    runner, as_json = flags.pop("runner"), flags.pop("json")
    cluster_file = flags.pop("cluster_file") or ""
    parameters = _read_parameters(flags)
    from ..local import run

    if runner not in ("local", "docker"):
        raise UserError(f"--runner: expected local or docker, found {runner!r}")
    if runner == "local":
        if cluster_file:
            raise UserError(f"--cluster: expected nothing with --runner local, found {cluster_file!r}")
        # Now rather than when the steps before have worked for an hour.
        require_modules("run", list_required_modules())
        return run(parameters, as_json)
    require_modules("run", ["docker"])
    from ..cluster.cluster_file import Cluster, load_cluster

    return run(parameters, as_json, load_cluster(cluster_file) if cluster_file else Cluster())


def _compile(flags: dict[str, Any]) -> int:
    target, output = flags.pop("target"), flags.pop("output")
    cluster_file = flags.pop("cluster_file") or ""
    parameters = _read_parameters(flags)
    from ..compile import compile_pipeline

    compile_pipeline(target, parameters, Path(output), cluster_file)
    print(f"wrote {output}")
    return EXIT_OK


def _cluster(flags: dict[str, Any]) -> int:
    from ..compile import write_cluster_template

    write_cluster_template(flags["output"])
    return EXIT_OK


def _config(flags: dict[str, Any]) -> int:
    return config.print_schema() if flags.pop("schema") else config.print_values(_read_parameters(flags))


def _inspect(flags: dict[str, Any]) -> int:
    from .inspection import inspect

    inspect(flags["dataset_uri"], flags["json"])
    return EXIT_OK


def _export(flags: dict[str, Any]) -> int:
    from ...components.export.export import export

    if flags["format"] == "tfrecord":
        require_modules("export", ["google_crc32c"])
    shard_bytes = parse_count("--shard-bytes", flags["shard_bytes"], "a whole number of bytes")
    result = export(ExportConfig(flags["dataset_uri"], flags["format"], flags["output"], shard_bytes))
    print(json.dumps(result, ensure_ascii=False) if flags["json"] else result["output"])
    return EXIT_OK


def _predict(flags: dict[str, Any]) -> int:
    from ...components.predict.predict import predict

    expected = "a whole number of at least 1"
    numbers = {name: parse_count(name_flag(name), flags[name], expected, low=1) for name in ("top", "batch_size")}
    if not flags["model"]:
        flags["workspace"] = flags["workspace"] or default_workspace()
    prediction = PredictConfig(**{**flags, "images": tuple(flags["images"]), **numbers})
    if prediction.ray_address:
        require_modules("predict", ["ray"])
    try:
        predict(prediction)
    except SystemExit:  # Ray's answer to SIGTERM
        raise KeyboardInterrupt from None
    if prediction.output and not prediction.json:
        print(prediction.output)
    return EXIT_OK


_COMMANDS: dict[str, Callable[[dict[str, Any]], int]] = {
    "run": _run, "inspect": _inspect, "export": _export, "predict": _predict, "champion": champion.run,
    "gc": gc.run, "show": show.run, "config": _config, "images": images.run, "doctor": doctor.run, "cluster": _cluster,
    "compile": _compile, "compare": compare.run, "tune": tune.run,
    "submit": submit.run, "schedule": schedule.run, "runs": runs.run, "weights": weights.run,
}  # fmt: skip


def _make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="imagemill", description=_INTRO, epilog="Each command has its own --help.")
    parser.add_argument("--version", action="version", version=f"imagemill {code_version()}")
    commands: Any = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    run = commands.add_parser("run", help="the whole pipeline here: download to promotion", description=_INTRO)
    run.add_argument(
        "--runner", default="local", metavar="RUNNER",
        help="how steps run here [local, docker] (default: local)",
    )  # fmt: skip
    run.add_argument(
        "--cluster", dest="cluster_file", metavar="FILE.yaml",
        help="for docker: the images are those that this file names (default: those of this version, by tag)",
    )  # fmt: skip
    run.add_argument("--json", action="store_true", help="print the result as one line of JSON, last on stdout")
    _add_parameters(run)
    for step in PIPELINE.values():  # for the list of commands; their flags are their own
        commands.add_parser(step.name, help=step.step.help, add_help=False)
    inspected = commands.add_parser("inspect", help="what is in a dataset: the ledger, its quality, what was found")
    inspected.add_argument("dataset_uri", metavar="DATASET", help="its URI or path, or that of its _manifest.json")
    inspected.add_argument("--json", action="store_true", help="print the facts as one JSON object")
    _add_export(commands)
    _add_predict(commands)
    champion.add_command(commands)
    compare.add_command(commands, _add_parameter_flags)
    tune.add_command(commands, _add_parameter_flags)
    gc.add_command(commands)
    show.add_command(commands)
    config.add_command(commands, _add_parameters)
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
    weights.add_command(commands)
    return parser


def _add_export(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser("export", help=_EXPORT_HELP, description=_EXPORT_HELP)
    parser.add_argument("dataset_uri", metavar="DATASET", help="its URI or path, or that of its _manifest.json")
    parser.add_argument("--format", required=True, metavar="FORMAT", help=f"[{', '.join(FORMATS)}]")
    parser.add_argument("--output", required=True, metavar="URI", help="an empty or new folder, or s3://bucket/prefix")
    parser.add_argument(
        "--shard-bytes", default=str(SHARD_BYTES), metavar="BYTES",
        help=f"about how large a shard becomes; imagefolder has none (default: {SHARD_BYTES})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")


def _add_predict(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "predict", help=_PREDICT_HELP, description=_PREDICT_DESCRIPTION
    )  # fmt: skip
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="files, folders, s3:// URIs, or - for a list of them on stdin"
    )
    parser.add_argument("--model", default="", metavar="URI", help="the model's URI or path, or that of its manifest")
    parser.add_argument(
        "--workspace",
        default="",
        help="where to look for a champion, without --model (default: IMAGEMILL_WORKSPACE, or ./imagemill-data)",
    )
    parser.add_argument(
        "--name", default="", help="whose champion, without --model (default: the one name that has a champion there)"
    )
    parser.add_argument("--top", default="5", metavar="N", help="so many classes of each image (default: 5)")
    parser.add_argument("--device", default="auto", help=f"[{', '.join(DEVICES)}] (default: auto)")
    parser.add_argument("--batch-size", default="32", metavar="N", help="images at a time (default: 32)")
    parser.add_argument(
        "--output", default="", metavar="FILE", help=f"write them to this file instead, {' or '.join(OUTPUTS)}"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each image")
    parser.add_argument(
        "--ray-address", default="", metavar="ADDRESS",
        help="predict on the cores of a Ray cluster: ray://host:10001, or from one of its nodes auto or host:6379 "
        "(default: in this process)",
    )  # fmt: skip


def _add_parameters(parser: argparse.ArgumentParser, on_cluster: str = "") -> None:
    """Add `--config` and a flag for every parameter; `on_cluster`: their use where a cluster runs the steps."""
    parser.add_argument(
        "--config", dest="config_file", metavar="FILE.yaml|JSON", help="parameters from a YAML file, or as JSON"
    )
    _add_parameter_flags(parser, on_cluster)


def _add_parameter_flags(parser: argparse.ArgumentParser, on_cluster: str = "") -> None:
    # Argparse would list all of the hundred parameters there, ahead of the command's description.
    parser.usage = "%(prog)s [--<option> VALUE ...] [--<parameter> VALUE ...]"
    description = f"{on_cluster} Places are URIs: the pods don't see this machine's files." if on_cluster else None
    form = parser.add_argument_group("parameters", description)
    others = parser.add_argument_group("other parameters (in the forms of a cluster: in the JSON parameter config)")
    for parameter in list_parameters().values():
        group: Any = form if parameter.is_in_form else others
        text = f"{WORKSPACE_HELP} (default: storage.workspace of the cluster file)"
        if not on_cluster or parameter.name != "workspace":
            text = parameter.help
        add_flag(group, parameter.name, parameter.default, text, parameter.choices)
