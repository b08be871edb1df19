"""Parts and an index written by hand, for datasets that tests make without the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from imagemill.components.dataset.index import write_index
from imagemill.components.dataset.manifest import Part, digest
from imagemill.components.dataset.parts import PartFolder
from imagemill.components.dataset.shards import Layout


def place(
    uri: str, rows: Sequence[dict[str, Any]], layout: Layout, index: pa.Schema, by_split: bool = False, parts: int = 1
) -> dict[str, Any]:
    """Write rows, which have the columns of parts and of the index, as the dataset at `uri`; return the manifest's
    `parts` and `files`.

    `by_split`: a part for each split, as tensors have them; else the rows are dealt to so many `parts`.
    """
    workspace, kind, name = uri.rsplit("/", 2)
    folder = PartFolder(f"{workspace}/parts/{kind}")
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        groups.setdefault((row["split"] if by_split else "", 0 if by_split else number % parts), []).append(row)
    written: list[Part] = []
    entries: list[dict[str, Any]] = []
    for (split, number), members in groups.items():
        key = digest([name, split, number, [row["image_id"] for row in members]])
        with folder.open_writer(layout) as writer:
            for row in members:
                writer.add({field: row.get(field) for field in layout.schema.names}, len(str(row.get("image"))))
            written.append(writer.publish_part(key, split))
        entries += [
            {field: row.get(field) for field in index.names} | {"part": key, "row": place}
            for place, row in enumerate(members)
        ]
    table = pa.Table.from_pylist(entries, schema=index)
    return {"parts": tuple(written), "files": tuple(write_index(uri, table))}
