"""`imagemill weights`: put a backbone's pretrained weights into a workspace, and list those that it has."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ...components.dataset.workspace import Workspace
from ...components.models.torchvision_models import check_backbone, check_named_weights
from ...components.step.command_line import add_workspace_flag
from ...components.step.progress import format_size, say
from ...components.storage.errors import EXIT_OK, UserError, wrong
from ...components.train.config import TrainConfig
from .runs import align_columns

if TYPE_CHECKING:
    from ...components.dataset.records import WeightsRecord

HELP = "pretrained weights of a workspace, for machines and pods without internet: put them there, list them"
_FETCH = (
    "Put a backbone's pretrained weights into the workspace, where trainings with --weights auto find them. They come "
    "from the library's cache on this machine or from their own site, or from a file. One set a backbone: another one "
    "takes its place, and is what the next training starts from."
)


def add_command(commands: Any) -> None:
    """Add the command and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser("weights", help=HELP, description=HELP)
    actions: Any = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=type(parser))
    fetch = actions.add_parser("fetch", help="put a backbone's weights into the workspace", description=_FETCH)
    fetch.add_argument(
        "--backbone", default=TrainConfig.backbone, metavar="NAME",
        help=f"a torchvision name, or timm:NAME (default: {TrainConfig.backbone})",
    )  # fmt: skip
    fetch.add_argument(
        "--weights", default="", metavar="NAME",
        help="their name, such as IMAGENET1K_V2, or timm's tag (default: the backbone's default ones)",
    )  # fmt: skip
    fetch.add_argument(
        "--file", default="", metavar="PATH", help="take them from this .safetensors file or model, a path or URI"
    )
    listed = actions.add_parser("list", help="the weights that the workspace has", description="List the weights.")
    for action in (fetch, listed):
        add_workspace_flag(action)
        action.add_argument("--json", action="store_true", help="print one line of JSON")


def run(flags: dict[str, Any]) -> int:
    """Run the command with its parsed flags; return the exit code."""
    if flags["action"] == "list":
        return _list(Workspace.from_uri(flags["workspace"]), flags["json"])
    check_backbone(flags["backbone"])
    if flags["file"] and flags["weights"]:
        raise wrong("--weights", "no value with --file, whose content counts", flags["weights"])
    if flags["weights"]:
        check_named_weights(flags["backbone"], flags["weights"])
    workspace = Workspace.open(flags["workspace"])
    record = _fetch(workspace, flags["backbone"], flags["weights"] or "DEFAULT", flags["file"])
    facts = _describe(workspace, record)
    earlier = workspace.weights(record.backbone)
    is_new = earlier is None or earlier.sha256 != record.sha256 or earlier.weights != record.weights
    if is_new:
        workspace.replace_weights(record)
    if flags["json"]:
        print(json.dumps(facts | {"state": "fetched" if is_new else "there already"}, ensure_ascii=False))
    else:
        title = f"{record.weights or record.source} of {record.backbone}, {format_size(record.bytes)}"
        say("weights", title if is_new else f"{title}: there already")
        print(facts["uri"])
    return EXIT_OK


def _fetch(workspace: Workspace, backbone: str, weights: str, file: str) -> WeightsRecord:
    """Put the file into the workspace and return its record; UserError for a file that does not fit the backbone."""
    from ...components.models.published_weights import fetch_weights, put_weights
    from ...components.storage import uri as uris
    from ...components.storage.store import get_store
    from ...components.train.pretrained_weights import check_fit, find_weights_file

    if not file:
        return fetch_weights(workspace, backbone, weights)
    try:
        source = find_weights_file(file)
        check_fit(backbone, source)
    except UserError as error:
        raise UserError(f"--file{str(error).removeprefix('weights')}") from None
    return put_weights(workspace, backbone, get_store(source).read(source), "", uris.redact(source))


def _list(workspace: Workspace, as_json: bool) -> int:
    records = workspace.list_weights()
    if as_json:
        print(json.dumps([_describe(workspace, record) for record in records], ensure_ascii=False))
    elif records:
        rows = [(r.backbone, r.weights or "-", format_size(r.bytes), r.created[:10], r.source) for r in records]
        print(align_columns([("backbone", "weights", "size", "fetched", "from"), *rows]))
    else:
        print(f"no weights in {workspace.uri} (imagemill weights fetch puts them there)")
    return EXIT_OK


def _describe(workspace: Workspace, record: WeightsRecord) -> dict[str, Any]:
    return asdict(record) | {"uri": workspace.absolute(record.uri)}
