"""Report section on training images that look mislabelled: the suspects of evaluate's label review, with thumbnails."""

from __future__ import annotations

import csv
import heapq
import io
from dataclasses import dataclass
from typing import Any

from ..dataset.kinds import EvaluationExtra
from ..dataset.manifest import Dataset
from ..dataset.shards import read_columns
from .thumbnails import Thumbnail, make_thumbnails

MAX_SUSPECTS, MAX_LOSSES = 36, 12
MAX_TABLE_ROWS = 5_000
"""Suspects in the table of the page; all are in the evaluation's file."""
_TABLE_COLUMNS = ("image_id", "label", "suggested")
_COLUMNS = [*_TABLE_COLUMNS, "rank", "probability", "suggested_probability", "loss"]


@dataclass(frozen=True)
class Suspect:
    """One training image. `suggested` is empty where its loss alone is high; `note`: the probabilities or the loss."""

    image_id: str
    label: str
    suggested: str
    note: str
    thumbnail: Thumbnail


def describe_suspects(evaluation: Dataset, clean: Dataset) -> dict[str, Any] | None:
    """Return the template's variables; None where no labels were reviewed.

    `rows` are the surest suspects, `losses` images whose loss alone is high, `listed` lines of a table (csv) of at most
    `MAX_TABLE_ROWS` suspects, which are in memory.
    """
    review = EvaluationExtra.of(evaluation.manifest).review
    if not review.images:
        return None
    suspects: list[dict[str, Any]] = []
    losses: list[dict[str, Any]] = []
    for table in read_columns(evaluation, "suspects", _COLUMNS):
        rows = table.to_pylist()
        suspects += [row for row in rows if row["rank"]][: MAX_TABLE_ROWS - len(suspects)]
        unranked = [row for row in rows if not row["rank"]]
        losses = heapq.nsmallest(MAX_LOSSES, [*losses, *unranked], key=lambda row: (-row["loss"], row["image_id"]))
    surest = suspects[:MAX_SUSPECTS]
    files = clean.files("data", "train") or clean.files("data")
    thumbnails = make_thumbnails(clean, files, [row["image_id"] for row in (*surest, *losses)])
    return {
        "images": review.images,
        "total": review.suspects,
        "why": review.not_judged or "",
        "rows": [_make_suspect(row, thumbnails) for row in surest],
        "losses": [_make_suspect(row, thumbnails) for row in losses],
        "listed": _write_csv(suspects),
    }


def _make_suspect(row: dict[str, Any], thumbnails: dict[str, Thumbnail]) -> Suspect:
    note = f"loss {row['loss']:.2f}"
    if row["rank"]:
        note = f"{100 * row['probability']:.0f}% → {100 * row['suggested_probability']:.0f}%"
    image_id = row["image_id"]
    return Suspect(image_id, row["label"], row["suggested"] or "", note, thumbnails[image_id])


def _write_csv(rows: list[dict[str, Any]]) -> list[str]:
    """Return lines of csv with a header; empty where there are no rows."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([_TABLE_COLUMNS, *([row[name] for name in _TABLE_COLUMNS] for row in rows)])
    return out.getvalue().splitlines() if rows else []
