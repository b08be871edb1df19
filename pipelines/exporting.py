"""`imagemill export`: a dataset in a form that other programs read."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..components.export.config import FORMATS, SHARD_BYTES, ExportConfig
from ..components.store.errors import wrong
from ..components.store.extras import require

HELP = "a clean or tensors dataset as files that other programs read"


def add_command(commands: Any) -> None:
    """The command's flags."""
    parser: argparse.ArgumentParser = commands.add_parser("export", help=HELP, description=HELP)
    parser.add_argument("dataset_uri", metavar="DATASET", help="its URI or path, or that of its _manifest.json")
    parser.add_argument("--format", required=True, metavar="FORMAT", help=f"[{', '.join(FORMATS)}]")
    parser.add_argument("--output", required=True, metavar="URI", help="an empty or new folder, or s3://bucket/prefix")
    parser.add_argument(
        "--shard-bytes", default=str(SHARD_BYTES), metavar="BYTES",
        help=f"about how large a shard becomes; imagefolder has none (default: {SHARD_BYTES})",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")


def run(found: dict[str, Any]) -> None:
    """Make the export that the parsed flags ask for, and say where it is."""
    from ..components.export.export import export

    if found["format"] == "tfrecord":
        require("export", ["google_crc32c"])
    text = found["shard_bytes"]
    if not text.isascii() or not text.isdigit():
        raise wrong("--shard-bytes", "a whole number of bytes", text)
    result = export(ExportConfig(found["dataset_uri"], found["format"], found["output"], int(text)))
    print(json.dumps(result, ensure_ascii=False) if found["json"] else result["output"])
