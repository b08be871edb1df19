"""`imagemill export-model`: a folder that Triton and KServe serve, at fp32, fp16 or int8 with its measured loss."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from ...components.dataset.manifest import normalize_dataset_uri, read_dataset
from ...components.step.progress import format_size, say
from ...components.storage.errors import EXIT_OK, wrong

HELP = "a model as a folder that Triton and KServe serve"


def add_command(commands: Any) -> None:
    """Add the command and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "export-model",
        help=HELP,
        description="Write a model repository with the model's ONNX file, config.pbtxt and labels, and KServe's "
        "InferenceService. fp16 and int8 are measured against fp32 on the test images.",
    )
    parser.add_argument("model", metavar="MODEL", help="its URI or path, or that of its _manifest.json")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="an empty or new folder")
    parser.add_argument("--name", default="classifier", help="of the model in requests (default: classifier)")
    parser.add_argument("--precision", default="fp32", help="[fp32, fp16, int8] (default: fp32)")
    parser.add_argument(
        "--max-loss", default="0.01", metavar="SHARE",
        help="refuse fp16 or int8 that loses more of top-1 or macro-F1 against fp32 (default: 0.01)",
    )  # fmt: skip
    parser.add_argument(
        "--storage", default="", metavar="URI", help="where KServe finds models/ (default: a place to fill in)"
    )
    parser.add_argument("--json", action="store_true", help="print the measurement as one line of JSON")


def run(flags: dict[str, Any]) -> int:
    """Run the command with its parsed flags; return the exit code."""
    from ..serving.repository import STORAGE, ServingConfig, write_repository

    try:
        max_loss = float(flags["max_loss"])
    except ValueError:
        raise wrong("--max-loss", "a number in [0, 1]", flags["max_loss"]) from None
    uri = normalize_dataset_uri(flags["model"], "MODEL")
    config = ServingConfig(
        uri, flags["output"], flags["name"], flags["precision"], max_loss, flags["storage"] or STORAGE
    )  # fmt: skip
    config.check()
    measurement = write_repository(config, read_dataset(uri, "model"))
    if measurement:
        top1, sizes = measurement.losses["top1"], measurement.bytes
        say(
            "export-model",
            f"{config.precision}: top-1 {top1.gain:+.4f} ({top1.interval[0]:+.4f} to {top1.interval[1]:+.4f}) on "
            f"{measurement.images:,} {measurement.split} images, {format_size(sizes[0])} to {format_size(sizes[1])}",
        )
    print(json.dumps(asdict(measurement) if measurement else {}) if flags["json"] else config.output)
    return EXIT_OK
