"""Near-duplicates: pairs found by perceptual hash and verified on thumbnails, and the decisions that follow from them.

Only direct ones count: the near-duplicate of a near-duplicate is not taken for one, so that a chain of small changes
drops nothing. In stored tables and their columns a near-duplicate is called twin (`schema.TWINS`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataset.manifest import File
from ..dataset.shards import Layout, ShardWriter
from ..dataset.splits import SPLITS, TEST, TRAIN, UNDECLARED, VAL
from ..storage.errors import wrong
from .candidates import EXAMPLES, Candidates, DropReason, RowDecisions, RowNumbers
from .config import CleanConfig
from .hash_pairs import BANDED_RADIUS, BRUTE_LIMIT, find_hash_pairs
from .measures import MAX_DIFFERENCE, compare_thumbnails, have_similar_aspect
from .schema import TWINS

CHUNK = 32_768
"""Pairs that are verified or written at a time."""


@dataclass(frozen=True)
class NearDuplicates:
    """P verified pairs of near-duplicates; 21 bytes a pair.

    `distance` is the number of bits in which the perceptual hashes differ, `difference` that of the thumbnails;
    `checked` pairs were verified to find these. `complete`: no pair within the radius was left out.
    """

    first: RowNumbers
    second: RowNumbers
    distance: npt.NDArray[np.uint8]
    difference: npt.NDArray[np.float32]
    checked: int
    complete: bool

    def __len__(self) -> int:
        return len(self.first)


def check_radius(config: CleanConfig, rows: int) -> None:
    """Raise UserError, before anything is decoded, for a radius that is too large for so many images."""
    is_searched = config.near_duplicates != "off" and config.measures
    if is_searched and config.near_radius > BANDED_RADIUS and rows > BRUTE_LIMIT:
        expected = f"at most {BANDED_RADIUS} for more than {BRUTE_LIMIT:,} images"
        raise wrong("near_radius", expected, f"{config.near_radius} for {rows:,}")


def find_near_duplicates(candidates: Candidates, is_kept: npt.NDArray[np.bool_], radius: int) -> NearDuplicates:
    """Find the verified pairs among the rows that are kept, with hashes within `radius` bits.

    They are in an order of their content, so that of several near-duplicates of an image the same one is named
    however the rows are divided into files.
    """
    rows = np.flatnonzero(is_kept)
    rows = rows[np.argsort(candidates.shuffle_index[rows], kind="stable")]
    near = find_hash_pairs(candidates.phash[rows], radius)
    first, second = rows[near.pairs[:, 0]], rows[near.pairs[:, 1]]
    aspect_ratio = candidates.measures["aspect_ratio"]
    is_similar = have_similar_aspect(aspect_ratio[first], aspect_ratio[second])
    first, second = first[is_similar], second[is_similar]
    involved = np.unique(np.concatenate([first, second]))
    thumbnails = candidates.read_thumbnails(involved)
    difference = np.empty(len(first), np.float32)
    for start in range(0, len(first), CHUNK):
        chunk = slice(start, start + CHUNK)
        indices = (np.searchsorted(involved, side[chunk]) for side in (first, second))
        difference[chunk] = compare_thumbnails(*(thumbnails[i] for i in indices))
    verified = difference < MAX_DIFFERENCE
    first, second, difference = first[verified], second[verified], difference[verified]
    distance = np.bitwise_count(candidates.phash[first] ^ candidates.phash[second])
    return NearDuplicates(first, second, distance, difference, len(near.pairs), near.complete)


def judge_near_duplicates(decisions: RowDecisions, duplicates: NearDuplicates, config: CleanConfig) -> None:
    """Apply the policies: first to label conflicts, then to leaks into test, then to other near-duplicates."""
    conflicts = _resolve_conflicts(decisions, duplicates, config.label_conflicts)
    leakage = _drop_leaks(decisions, duplicates, config)
    dropped = _drop_near(decisions, duplicates) if config.near_duplicates == "drop" else 0
    splits = np.sort(np.stack([decisions.splits[duplicates.first], decisions.splits[duplicates.second]]), axis=0)
    decisions.findings["near_duplicates"] = {
        "radius": config.near_radius,
        "candidates": duplicates.checked,
        "complete": duplicates.complete,
        "pairs": len(duplicates),
        "images": len(np.unique(np.concatenate([duplicates.first, duplicates.second]))),
        "by_splits": {
            f"{SPLITS[a]}-{SPLITS[b]}": number
            for a in range(3)
            for b in range(a, 3)
            if (number := int(((splits[0] == a) & (splits[1] == b)).sum()))
        },
        "dropped": dropped,
        **conflicts,
    }
    decisions.findings["leakage"] = leakage


def _resolve_conflicts(decisions: RowDecisions, duplicates: NearDuplicates, policy: str) -> dict[str, Any]:
    """Drop what the policy drops of pairs with different labels; return their number and examples."""
    candidates = decisions.candidates
    conflicting = np.flatnonzero(candidates.label_codes[duplicates.first] != candidates.label_codes[duplicates.second])
    first, second = duplicates.first[conflicting], duplicates.second[conflicting]
    losers: list[tuple[int, int]] = []
    if policy == "drop_all":
        losers = list(zip(first.tolist(), second.tolist(), strict=True))
        losers += [(b, a) for a, b in losers]
    elif policy == "drop_minority":
        losers = _find_outvoted(candidates, duplicates, np.unique(np.concatenate([first, second])))
    for row, other in losers:
        decisions.drop(row, DropReason("label_conflict", "near twin of", other))
    infos = candidates.read_infos(np.concatenate([first[:EXAMPLES], second[:EXAMPLES]]))
    examples = [
        [{"image_id": infos[int(row)].image_id, "label": infos[int(row)].label} for row in pair]
        for pair in zip(first[:EXAMPLES], second[:EXAMPLES], strict=True)
    ]
    return {"conflicts": len(conflicting), "conflict_examples": examples}


def _find_outvoted(candidates: Candidates, duplicates: NearDuplicates, rows: RowNumbers) -> list[tuple[int, int]]:
    """Return those of `rows` whose label most of their near-duplicates don't share, each with one of another label."""
    losers = []
    neighbors = _group_neighbors(duplicates.first, duplicates.second)
    for row in rows.tolist():
        voters = np.array([row, *neighbors[row]])
        labels, votes = np.unique(candidates.label_codes[voters], return_counts=True)
        own_votes = votes[labels == candidates.label_codes[row]][0]
        if own_votes < votes.max() or (votes == own_votes).sum() > 1:
            losers.append(
                (row, int(next(v for v in voters if candidates.label_codes[v] != candidates.label_codes[row])))
            )
    return losers


def _group_neighbors(first: RowNumbers, second: RowNumbers) -> dict[int, list[int]]:
    """Return the direct near-duplicates of each row that has some."""
    neighbors: dict[int, list[int]] = {}
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        neighbors.setdefault(a, []).append(b)
        neighbors.setdefault(b, []).append(a)
    return neighbors


def _drop_leaks(decisions: RowDecisions, duplicates: NearDuplicates, config: CleanConfig) -> dict[str, Any]:
    """Drop, by the policy, train and val rows with a near-duplicate in test; return the numbers from before that."""
    candidates = decisions.candidates
    declared = candidates.get_declared_splits(config)
    pairs = [(duplicates.first, duplicates.second), (duplicates.second, duplicates.first)]
    rows, tests = (np.concatenate(sides) for sides in zip(*pairs, strict=True))
    declared_leak = (candidates.declared[tests] == TEST) & ~np.isin(candidates.declared[rows], (VAL, TEST, UNDECLARED))
    leak = (decisions.splits[tests] == TEST) & (decisions.splits[rows] != TEST)
    leak &= decisions.is_kept[tests] & decisions.is_kept[rows]
    rows, leaked_declared, tests = rows[leak], np.unique(tests[declared_leak]), tests[leak]
    is_declared = (declared[rows] != UNDECLARED) & (declared[tests] == TEST)
    in_train = decisions.splits[rows] == TRAIN
    # An overlap that the source declares is part of its benchmark: an image is taken out of it only on request.
    dropped = ~is_declared if config.leakage == "auto" else np.full(len(rows), config.leakage == "drop")
    for row, other in zip(rows[dropped].tolist(), tests[dropped].tolist(), strict=True):
        decisions.drop(row, DropReason("near_duplicate_of_test", "near twin of", other))
    return {
        "declared_test_images_with_twin_in_declared_train": len(leaked_declared),
        "test_images_with_twin_in_train": len(np.unique(tests[in_train])),
        "test_images_with_twin_in_val": len(np.unique(tests[~in_train])),
        "policy": config.leakage,
        "dropped": len(np.unique(rows[dropped])),
        "kept": len(np.unique(rows[~dropped])),
    }


def _drop_near(decisions: RowDecisions, duplicates: NearDuplicates) -> int:
    """Drop near-duplicates in one split, or in train and val, of which a direct one is kept."""
    both_kept = decisions.is_kept[duplicates.first] & decisions.is_kept[duplicates.second]
    same_side = (decisions.splits[duplicates.first] == TEST) == (decisions.splits[duplicates.second] == TEST)
    pairs = both_kept & same_side
    first, second = duplicates.first[pairs], duplicates.second[pairs]
    neighbors = _group_neighbors(first, second)
    kept: set[int] = set()
    dropped = 0
    for row in decisions.sort_by_priority(np.unique(np.concatenate([first, second]))).tolist():
        other = next((neighbor for neighbor in neighbors[row] if neighbor in kept), None)
        if other is None:
            kept.add(row)
        else:
            decisions.drop(row, DropReason("near_duplicate", "near twin of", other))
            dropped += 1
    return dropped


def write_near_duplicates(uri: str, decisions: RowDecisions, duplicates: NearDuplicates) -> File:
    """Write every pair as a row of a Parquet file, in the order of the pairs."""
    with ShardWriter(uri, Layout(TWINS, row_group_rows=CHUNK)) as writer:
        for row in _iterate_pairs(decisions, duplicates):
            writer.add(row, 0)
        return writer.publish("twins", "twins")


def _iterate_pairs(decisions: RowDecisions, duplicates: NearDuplicates) -> Iterator[dict[str, Any]]:
    for start in range(0, len(duplicates), CHUNK):
        chunk = slice(start, start + CHUNK)
        infos = decisions.candidates.read_infos(np.concatenate([duplicates.first[chunk], duplicates.second[chunk]]))
        columns = (duplicates.first, duplicates.second, duplicates.distance, duplicates.difference)
        for a, b, distance, difference in zip(*(column[chunk].tolist() for column in columns), strict=True):
            dropped = [infos[row].image_id for row in (a, b) if not decisions.is_kept[row]]
            yield {
                "image_id": infos[a].image_id, "twin_id": infos[b].image_id,
                "distance": distance, "difference": difference,
                "label": infos[a].label, "twin_label": infos[b].label,
                "split": SPLITS[decisions.splits[a]], "twin_split": SPLITS[decisions.splits[b]],
                "dropped": " ".join(dropped[:1]) if len(dropped) < 2 else "both",
            }  # fmt: skip
