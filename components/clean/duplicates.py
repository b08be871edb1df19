"""Exact duplicates over all shards: of the images with the same pixels one stays, the others are rejected.

The copy in test stays before the one in val before the one in train; within a split the smallest image_id.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from .splits import TEST, TRAIN, TRAINVAL
from .table import Name, Rows, Table
from .verdicts import EXAMPLES, KEPT_FIRST, Verdict, Verdicts


def drop_duplicates(verdicts: Verdicts, label_conflicts: str) -> None:
    """Drop all copies but one, and by the policy those whose labels contradict each other."""
    table = verdicts.table
    groups = same_pixels(table)
    names = table.names(np.concatenate(groups)) if groups else {}
    conflicts: list[list[dict[str, str]]] = []
    leaked = number_of_conflicts = 0
    for group in groups:
        members = sorted(group.tolist(), key=lambda r: (KEPT_FIRST[verdicts.splits[r]], names[r].image_id))
        leaked += _declared_in_both(table, group)
        if len({names[row].label for row in members}) > 1:
            number_of_conflicts += 1
            if len(conflicts) < EXAMPLES:
                conflicts.append([{"image_id": names[r].image_id, "label": names[r].label} for r in members[:10]])
            members = _settle(verdicts, members, names, label_conflicts)
        for row in members[1:]:
            same = table.content[row] == table.content[members[0]]
            reason = "duplicate_bytes" if same else "duplicate_pixels"
            verdicts.drop(row, Verdict(reason, "same as", members[0]))
    verdicts.found["duplicates"] = {
        "groups": len(groups),
        "conflicts": number_of_conflicts,
        "conflict_examples": conflicts,
        "declared_test_images_in_declared_train": leaked,
    }


def same_pixels(table: Table) -> list[Rows]:
    """The groups of two and more rows with equal pixels, by their first row."""
    if not len(table):
        return []
    order = np.lexsort((table.pixels[:, 1], table.pixels[:, 0]))  # stable: rows of a group stay in their order
    keys = table.pixels[order]
    edges = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
    groups = [group for group in np.split(order.astype(np.int64), edges) if len(group) > 1]
    return sorted(groups, key=lambda group: int(group[0]))


def _settle(verdicts: Verdicts, members: list[int], names: dict[int, Name], policy: str) -> list[int]:
    """Who of copies with different labels is left to be deduplicated, after the policy dropped the others."""
    labels = Counter(names[row].label for row in members)
    (first, most), (_, second), *_ = labels.most_common()
    if policy == "keep":
        return members
    winner = first if policy == "drop_minority" and most > second else None
    for row in members:
        if names[row].label != winner:
            other = next(r for r in members if names[r].label != names[row].label)
            verdicts.drop(row, Verdict("label_conflict", "same as", other))
    return [row for row in members if names[row].label == winner]


def _declared_in_both(table: Table, group: Rows) -> int:
    """How many of the group's rows are declared as test, if another is declared for training."""
    declared: Any = table.declared[group]
    return int((declared == TEST).sum()) if np.isin(declared, (TRAIN, TRAINVAL)).any() else 0
