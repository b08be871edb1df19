"""Near-duplicates: candidates by perceptual hash, verified on thumbnails; and what follows from a pair.

A twin is a direct one: the twin of a twin is not taken for one, so a chain of small changes drops nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..store.errors import wrong
from ..store.manifest import File
from ..store.shards import Layout, ShardWriter
from .config import CleanConfig
from .near import BANDED_RADIUS, BRUTE_LIMIT, near_pairs
from .phash import SAME, differences, same_aspect
from .schema import TWINS
from .splits import SPLITS, TEST, TRAIN, UNDECLARED, VAL
from .table import Rows, Table
from .verdicts import EXAMPLES, Verdict, Verdicts

CHUNK = 32_768
"""Pairs that are verified or named at a time."""


@dataclass(frozen=True)
class Twins:
    """Verified pairs: `first` and `second` int64 [P] rows, `distance` uint8 [P] bits, `difference` float32 [P] of the
    thumbnails. Of `candidates` pairs; not all were looked at unless `complete`. 21 bytes a pair."""

    first: Rows
    second: Rows
    distance: npt.NDArray[np.uint8]
    difference: npt.NDArray[np.float32]
    candidates: int
    complete: bool

    def __len__(self) -> int:
        return len(self.first)


def check_radius(config: CleanConfig, rows: int) -> None:
    """UserError before anything is decoded where the search would refuse the radius for so many images."""
    if (
        config.near_duplicates != "off"
        and config.measures
        and config.near_radius > BANDED_RADIUS
        and rows > BRUTE_LIMIT
    ):
        raise wrong(
            "near_radius", f"at most {BANDED_RADIUS} for more than {BRUTE_LIMIT:,} images",
            f"{config.near_radius} for {rows:,}",
        )  # fmt: skip


def find_twins(table: Table, alive: npt.NDArray[np.bool_], radius: int) -> Twins:
    """The verified pairs among the rows that are alive."""
    rows = np.flatnonzero(alive)
    near = near_pairs(table.phash[rows], radius)
    first, second = rows[near.pairs[:, 0]], rows[near.pairs[:, 1]]
    shape = table.measures["aspect_ratio"]
    alike = same_aspect(shape[first], shape[second])
    first, second = first[alike], second[alike]
    involved = np.unique(np.concatenate([first, second]))
    thumbnails = table.thumbnails(involved)
    difference = np.empty(len(first), np.float32)
    for start in range(0, len(first), CHUNK):
        part = slice(start, start + CHUNK)
        places = (np.searchsorted(involved, side[part]) for side in (first, second))
        difference[part] = differences(*(thumbnails[p] for p in places))
    same = difference < SAME
    first, second, difference = first[same], second[same], difference[same]
    distance = np.bitwise_count(table.phash[first] ^ table.phash[second])
    return Twins(first, second, distance, difference, len(near.pairs), near.complete)


def judge_twins(verdicts: Verdicts, twins: Twins, config: CleanConfig) -> None:
    """First conflicts of labels, then leaks into test, then near-duplicates within a split."""
    before = verdicts.splits.copy()
    conflicts = _settle_conflicts(verdicts, twins, config.label_conflicts)
    leakage = _drop_leaks(verdicts, twins, config)
    dropped = _drop_near(verdicts, twins) if config.near_duplicates == "drop" else 0
    sides = np.sort(np.stack([before[twins.first], before[twins.second]]), axis=0)
    verdicts.found["near_duplicates"] = {
        "radius": config.near_radius,
        "candidates": twins.candidates,
        "complete": twins.complete,
        "pairs": len(twins),
        "images": len(np.unique(np.concatenate([twins.first, twins.second]))),
        "by_splits": {
            f"{SPLITS[a]}-{SPLITS[b]}": number
            for a in range(3)
            for b in range(a, 3)
            if (number := int(((sides[0] == a) & (sides[1] == b)).sum()))
        },
        "dropped": dropped,
        **conflicts,
    }
    verdicts.found["leakage"] = leakage


def _settle_conflicts(verdicts: Verdicts, twins: Twins, policy: str) -> dict[str, Any]:
    """Pairs with different labels, and what the policy drops of them."""
    table = verdicts.table
    different = np.flatnonzero(table.label[twins.first] != table.label[twins.second])
    first, second = twins.first[different], twins.second[different]
    if policy == "drop_all":
        losers = [(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
        losers += [(b, a) for a, b in losers]
    elif policy == "drop_minority":
        losers = _outvoted(table, twins, np.unique(np.concatenate([first, second])))
    else:
        losers = []
    for row, other in losers:
        verdicts.drop(row, Verdict("label_conflict", "near twin of", other))
    names = table.names(np.concatenate([first[:EXAMPLES], second[:EXAMPLES]]))
    examples = [
        [{"image_id": names[int(row)].image_id, "label": names[int(row)].label} for row in pair]
        for pair in zip(first[:EXAMPLES], second[:EXAMPLES], strict=True)
    ]
    return {"conflicts": len(different), "conflict_examples": examples}


def _outvoted(table: Table, twins: Twins, rows: Rows) -> list[tuple[int, int]]:
    """(row, a twin that contradicts it) of those whose label is not the one most of the row and its twins have."""
    losers = []
    neighbours = _neighbours(twins.first, twins.second)
    for row in rows.tolist():
        around = np.array([row, *neighbours[row]])
        labels, votes = np.unique(table.label[around], return_counts=True)
        own = votes[labels == table.label[row]][0]
        if own < votes.max() or (votes == own).sum() > 1:
            losers.append((row, int(next(r for r in around if table.label[r] != table.label[row]))))
    return losers


def _neighbours(first: Rows, second: Rows) -> dict[int, list[int]]:
    """The direct twins of each row that has some."""
    found: dict[int, list[int]] = {}
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        found.setdefault(a, []).append(b)
        found.setdefault(b, []).append(a)
    return found


def _drop_leaks(verdicts: Verdicts, twins: Twins, config: CleanConfig) -> dict[str, Any]:
    """Train and val rows with a twin in test: dropped by the policy. The numbers are of before."""
    table = verdicts.table
    declared = table.declared if config.declared_splits == "respect" else np.full(len(table), UNDECLARED, np.uint8)
    sides = [(twins.first, twins.second), (twins.second, twins.first)]
    rows, tests = (np.concatenate(parts) for parts in zip(*sides, strict=True))
    named = (table.declared[tests] == TEST) & ~np.isin(table.declared[rows], (VAL, TEST, UNDECLARED))
    leak = (verdicts.splits[tests] == TEST) & (verdicts.splits[rows] != TEST)
    leak &= verdicts.alive[tests] & verdicts.alive[rows]
    rows, leaked_declared, tests = rows[leak], np.unique(tests[named]), tests[leak]
    by_source = (declared[rows] != UNDECLARED) & (declared[tests] == TEST)
    in_train = verdicts.splits[rows] == TRAIN
    found = {
        "declared_test_images_with_twin_in_declared_train": len(leaked_declared),
        "test_images_with_twin_in_train": len(np.unique(tests[in_train])),
        "test_images_with_twin_in_val": len(np.unique(tests[~in_train])),
        "policy": config.leakage,
    }
    # What a source declares on both sides is its benchmark: only on request is an image taken out of it.
    goes = {"drop": np.ones_like(by_source), "auto": ~by_source, "report": np.zeros_like(by_source)}[config.leakage]
    for row, other in zip(rows[goes].tolist(), tests[goes].tolist(), strict=True):
        verdicts.drop(row, Verdict("near_duplicate_of_test", "near twin of", other))
    return found | {"dropped": len(np.unique(rows[goes])), "kept": len(np.unique(rows[~goes]))}


def _drop_near(verdicts: Verdicts, twins: Twins) -> int:
    """Of near-duplicates in one split, or in train and val, keep those that no kept one is a direct twin of."""
    alive = verdicts.alive[twins.first] & verdicts.alive[twins.second]
    together = (verdicts.splits[twins.first] == TEST) == (verdicts.splits[twins.second] == TEST)
    pairs = alive & together
    first, second = twins.first[pairs], twins.second[pairs]
    neighbours = _neighbours(first, second)
    kept: set[int] = set()
    dropped = 0
    for row in verdicts.first_to_keep(np.unique(np.concatenate([first, second]))).tolist():
        other = next((twin for twin in neighbours[row] if twin in kept), None)
        if other is None:
            kept.add(row)
        else:
            verdicts.drop(row, Verdict("near_duplicate", "near twin of", other))
            dropped += 1
    return dropped


def write_twins(uri: str, verdicts: Verdicts, twins: Twins) -> File:
    """Every pair as a row of a Parquet file, in the order of the pairs."""
    with ShardWriter(uri, Layout(TWINS, row_group_rows=CHUNK)) as writer:
        for row in _named(verdicts, twins):
            writer.add(row, 0)
        return writer.publish("twins", "twins")


def _named(verdicts: Verdicts, twins: Twins) -> Iterator[dict[str, Any]]:
    for start in range(0, len(twins), CHUNK):
        part = slice(start, start + CHUNK)
        names = verdicts.table.names(np.concatenate([twins.first[part], twins.second[part]]))
        columns = (twins.first[part], twins.second[part], twins.distance[part], twins.difference[part])
        for a, b, distance, difference in zip(*(c.tolist() for c in columns), strict=True):
            gone = [names[row].image_id for row in (a, b) if not verdicts.alive[row]]
            yield {
                "image_id": names[a].image_id, "twin_id": names[b].image_id,
                "distance": distance, "difference": difference,
                "label": names[a].label, "twin_label": names[b].label,
                "split": SPLITS[verdicts.splits[a]], "twin_split": SPLITS[verdicts.splits[b]],
                "dropped": " ".join(gone[:1]) if len(gone) < 2 else "both",
            }  # fmt: skip
