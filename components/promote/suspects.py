"""The report's section on training images that look mislabelled: what evaluate's review found, with thumbnails."""

from __future__ import annotations

import csv
import heapq
import io
from dataclasses import dataclass
from typing import Any

from ..store.manifest import Dataset
from ..store.shards import read_columns
from . import pictures
from .pictures import Picture

SHOWN, LOSSES_SHOWN = 36, 12
LISTED = 5_000
"""Suspects in the table of the page; all are in the evaluation's file."""
_NAMED = ("image_id", "label", "suggested")
_COLUMNS = [*_NAMED, "rank", "probability", "suggested_probability", "loss"]


@dataclass(frozen=True)
class Suspect:
    """One training image; `suggested` is empty where its loss alone is high. `note` says how sure."""

    image_id: str
    label: str
    suggested: str
    note: str
    picture: Picture


def found(evaluation: Dataset, clean: Dataset) -> dict[str, Any] | None:
    """What the template shows; None where no labels were reviewed.

    `rows` are the surest suspects, `losses` images whose loss alone is high, `listed` lines of a table (csv) of at most
    `LISTED` suspects. Holds so many rows at a time.
    """
    said = evaluation.manifest.extra.get("review", {})
    if not said.get("images"):
        return None
    suspects: list[dict[str, Any]] = []
    losses: list[dict[str, Any]] = []
    for table in read_columns(evaluation, "suspects", _COLUMNS):
        rows = table.to_pylist()
        suspects += [row for row in rows if row["rank"]][: LISTED - len(suspects)]
        high = [row for row in rows if not row["rank"]]
        losses = heapq.nsmallest(LOSSES_SHOWN, [*losses, *high], key=lambda row: (-row["loss"], row["image_id"]))
    shown = suspects[:SHOWN]
    files = clean.files("data", "train") or clean.files("data")
    seen = pictures.look_up(clean, files, {row["image_id"]: "" for row in [*shown, *losses]})
    return {
        "images": said["images"],
        "total": said["suspects"],
        "why": said.get("not_judged", ""),
        "rows": [_suspect(row, seen) for row in shown],
        "losses": [_suspect(row, seen) for row in losses],
        "listed": _table(suspects),
    }


def _suspect(row: dict[str, Any], seen: dict[str, Picture]) -> Suspect:
    note = f"loss {row['loss']:.2f}"
    if row["rank"]:
        note = f"{100 * row['probability']:.0f}% → {100 * row['suggested_probability']:.0f}%"
    image_id = row["image_id"]
    return Suspect(image_id, row["label"], row["suggested"] or "", note, seen.get(image_id) or Picture(image_id))


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of csv, the names of the columns first; nothing where there are no rows."""
    out = io.StringIO()
    written = csv.writer(out, lineterminator="\n")
    written.writerows([_NAMED, *([row[name] for name in _NAMED] for row in rows)])
    return out.getvalue().splitlines() if rows else []
