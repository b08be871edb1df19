"""`imagemill predict`: what a model says of some images."""

from __future__ import annotations

import argparse
from typing import Any

from ..components.predict.config import DEVICES, OUTPUTS, PredictConfig
from ..components.store.errors import wrong

HELP = "what a model sees in image files"


def add_command(commands: Any) -> None:
    """The command's flags."""
    about = (
        "Print path, class and probability, separated by tabs, of the best classes of every image. An image goes "
        "through just what the model's own images went through. One that can't be read is told on stderr and leaves "
        "the others alone; exit code 2 where none could be."
    )
    parser: argparse.ArgumentParser = commands.add_parser("predict", help=HELP, description=about)
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="files, folders, s3:// URIs, or - for a list of them on stdin"
    )
    parser.add_argument("--model", default="", metavar="URI", help="the model's URI or path, or that of its manifest")
    parser.add_argument(
        "--workspace", default="", help="where to look for a champion, without --model (default: ./imagemill-data)"
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


def run(found: dict[str, Any]) -> None:
    """Predict what the parsed flags ask for."""
    from ..components.predict.predict import predict

    numbers = {flag: _number(flag, found[flag]) for flag in ("top", "batch_size")}
    config = PredictConfig(**{**found, "images": tuple(found["images"]), **numbers})
    predict(config)
    if config.output and not config.json:
        print(config.output)


def _number(flag: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise wrong(f"--{flag.replace('_', '-')}", "a whole number of at least 1", text)
    return int(text)
