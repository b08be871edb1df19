"""`imagemill show`: one image's life, from its source to the last prediction."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

from ...components.dataset.workspace import Workspace
from ...components.report.terminal import escape_unprintable
from ...components.step.command_line import add_workspace_flag
from ...components.storage.errors import EXIT_OK, wrong

HELP = "one image's life: its source, what was decided of it, its measures, where its pixels are, its prediction"
DESCRIPTION = "Look an image up in the latest datasets of a name, by its path in the source."
_HIDDEN = ("image", "mask", "thumbnail", "channel_sums")
"""Columns that are no text."""
Json = dict[str, Any]


def add_command(commands: Any) -> None:
    """Add the command and its flags."""
    parser: argparse.ArgumentParser = commands.add_parser("show", help=HELP, description=DESCRIPTION)
    parser.add_argument("image_id", metavar="IMAGE_ID", help="its path or URL within its source, as reports name it")
    parser.add_argument("--name", default="", help="whose latest datasets (default: the one name of the workspace)")
    add_workspace_flag(parser)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def run(flags: dict[str, Any]) -> int:
    """Run the command with its parsed flags; return the exit code. UserError where no dataset has the image."""
    workspace, image_id = Workspace.from_uri(flags["workspace"]), flags["image_id"]
    name = flags["name"] or _find_only_name(workspace)
    facts = {kind: list(_find_rows(workspace, name, kind, image_id)) for kind in ("raw", "clean", "tensors")}
    facts["evaluation"] = list(_find_predictions(workspace, name, image_id))
    if not any(facts.values()):
        raise wrong("IMAGE_ID", f"an image of the latest datasets of {name}", image_id)
    if flags["json"]:
        print(json.dumps({"image_id": image_id, "name": name, **facts}, ensure_ascii=False, default=str))
    else:
        print("\n".join([escape_unprintable(f"{image_id} · {name}"), *_format(facts)]))
    return EXIT_OK


def _find_only_name(workspace: Workspace) -> str:
    folder = workspace.at("names")
    names = sorted({entry.uri[len(folder) + 1 :].split("/")[0] for entry in workspace.store.list(folder)})
    if len(names) != 1:
        raise wrong("--name", f"one of {', '.join(names) or 'the names of a workspace with runs'}", "")
    return names[0]


def _find_rows(workspace: Workspace, name: str, kind: str, image_id: str) -> Iterator[Json]:
    """Yield the index's rows of an image, each with the columns of its part; of clean also why it was rejected."""
    import pyarrow.compute as pc

    from ...components.dataset.index import list_part_rows, read_index, read_part_rows
    from ...components.dataset.manifest import find_dataset
    from ...components.dataset.shards import open_parquet, read_columns

    uri = workspace.latest_uri(name, kind)
    dataset = find_dataset(uri) if uri else None
    if dataset is None:
        return
    index = read_index(dataset)
    index = index.filter(pc.equal(index.column("image_id"), image_id))
    for rows in list_part_rows(dataset, index):
        part_uri = dataset.locate_part(rows.part)
        with open_parquet(part_uri) as parquet:
            stored = [column for column in parquet.schema_arrow.names if column not in (*_HIDDEN, *index.column_names)]
        entries = rows.index.to_pylist()
        tables = read_part_rows(dataset, rows, stored) if stored else ()
        details = [row for table in tables for row in table.to_pylist()] or [{} for _ in entries]
        for entry, detail in zip(entries, details, strict=True):
            yield {"dataset": uri, "part": part_uri, **{k: v for k, v in (entry | detail).items() if k != "part"}}
    for table in read_columns(dataset, "rejected", None):
        for row in table.filter(pc.equal(table.column("image_id"), image_id)).to_pylist():
            yield {"dataset": uri, "rejected": row["reason"], "detail": row["detail"]}


def _find_predictions(workspace: Workspace, name: str, image_id: str) -> Iterator[Json]:
    import pyarrow.compute as pc

    from ...components.dataset.manifest import find_dataset
    from ...components.dataset.shards import read_columns

    uri = workspace.latest_uri(name, "evaluation")
    dataset = find_dataset(uri) if uri else None
    for table in read_columns(dataset, "data", None) if dataset else ():
        for row in table.filter(pc.equal(table.column("image_id"), image_id)).to_pylist():
            classes = dataset.manifest.classes if dataset else ()
            ids = row["predicted_ids"] if "predicted_ids" in row else [row["predicted_id"]]
            yield {"dataset": uri, "predicted": [classes[i] for i in ids], **row}


def _format(facts: dict[str, list[Json]]) -> Iterator[str]:
    for kind, rows in facts.items():
        for row in rows or [{}]:
            yield f"\n{kind}" + ("" if row else ": not in it")
            for field, value in row.items():
                if value is not None and field != "image_id":
                    text = f"{value:.4g}" if isinstance(value, float) else escape_unprintable(str(value))
                    yield f"  {field:<18}{text}"
