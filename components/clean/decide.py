"""The decisions about all images together, made from the columns of `Candidates`; no image is decoded here.

In this order: exact duplicates, exact splits or those of a fold (if asked for), near-duplicates with the label
conflicts and leaks among them, outliers. The order matters: a copy must not count twice in a split, nor be the
near-duplicate of its original.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataset.splits import TEST, TRAIN, TRAINVAL, choose_exact_splits, choose_fold_splits
from .candidates import EXAMPLES, KEEP_PRIORITY, CandidateInfo, Candidates, DropReason, RowDecisions, RowNumbers
from .config import CleanConfig
from .near_duplicates import NearDuplicates, find_near_duplicates, judge_near_duplicates

MAD_OF_NORMAL, MEAN_DEVIATION_OF_NORMAL = 0.6745, 0.7979
"""Median and mean of the absolute deviation of a standard normal variable."""
LOGARITHMIC = frozenset({"sharpness", "aspect_ratio", "bytes_per_pixel"})
"""Measures that vary by factors: their logarithms are compared (of 1 + sharpness, which may be 0)."""
OUTLIER_EXAMPLES = 20
"""Maximum number of outliers of a measure, the farthest, that are named in the manifest."""


def decide(candidates: Candidates, config: CleanConfig) -> tuple[RowDecisions, NearDuplicates | None]:
    """Return the decisions on all rows, and the near-duplicates if they were looked for."""
    decisions = RowDecisions.of(candidates, config)
    drop_duplicates(decisions, config.label_conflicts)
    if fold := config.parse_fold():
        assign_fold(decisions, *fold, config.val_fraction)
    elif config.split == "exact":
        assign_exact_splits(decisions, config)
    near_duplicates = None
    if config.near_duplicates != "off" and candidates.has_measures:
        near_duplicates = find_near_duplicates(candidates, decisions.is_kept, config.near_radius)
        judge_near_duplicates(decisions, near_duplicates, config)
    find_outliers(decisions, config.outlier_names(), config.outlier_threshold, config.outliers)
    return decisions, near_duplicates


def assign_exact_splits(decisions: RowDecisions, config: CleanConfig) -> None:
    """Assign exact splits to the rows that are kept, stratified by label.

    Where the source has groups, which must stay together, the fractions hold over all labels together.
    """
    candidates, rows = decisions.candidates, np.flatnonzero(decisions.is_kept)
    declared = candidates.get_declared_splits(config)[rows]
    labels = np.zeros(len(rows), np.int32) if candidates.has_groups else candidates.label_codes[rows]
    fractions = (config.val_fraction, config.test_fraction)
    decisions.splits[rows] = choose_exact_splits(declared, labels, candidates.split_position[rows], fractions)


def assign_fold(decisions: RowDecisions, fold: int, folds: int, val_fraction: float) -> None:
    """Assign the splits of one fold of cross-validation to all rows, by the hash of the content or of the group."""
    positions = decisions.candidates.split_position
    decisions.splits[:] = choose_fold_splits(positions, fold, folds, val_fraction)


# Exact duplicates


def drop_duplicates(decisions: RowDecisions, label_conflicts: str) -> None:
    """Drop all but one of the images with equal pixels, and by the policy those whose labels contradict each other.

    The copy in test is kept before the one in val before the one in train; within a split the smallest image_id.
    """
    candidates = decisions.candidates
    groups = group_equal_pixels(candidates)
    infos = candidates.read_infos(np.concatenate(groups)) if groups else {}
    examples: list[list[dict[str, str]]] = []
    leaked = conflicts = 0
    for group in groups:
        rows = sorted(group.tolist(), key=lambda row: (KEEP_PRIORITY[decisions.splits[row]], infos[row].image_id))
        leaked += _count_leaked(candidates, group)
        if len({infos[row].label for row in rows}) > 1:
            conflicts += 1
            if len(examples) < EXAMPLES:
                examples.append([{"image_id": infos[r].image_id, "label": infos[r].label} for r in rows[:10]])
            rows = _resolve_conflict(decisions, rows, infos, label_conflicts)
        for row in rows[1:]:
            has_same_bytes = infos[row].sha256 == infos[rows[0]].sha256
            reason = "duplicate_bytes" if has_same_bytes else "duplicate_pixels"
            decisions.drop(row, DropReason(reason, "same as", rows[0]))
    decisions.findings["duplicates"] = {
        "groups": len(groups),
        "conflicts": conflicts,
        "conflict_examples": examples,
        "declared_test_images_in_declared_train": leaked,
    }


def group_equal_pixels(candidates: Candidates) -> list[RowNumbers]:
    """Return the groups of two and more rows with equal pixels, in an order of their content."""
    if not len(candidates):
        return []
    order = np.lexsort(candidates.pixel_hash.T[::-1])  # stable: rows of a group stay in order
    keys = candidates.pixel_hash[order]
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1), True])
    order = order.astype(np.int64)
    groups = [order[starts[n] : starts[n + 1]] for n in np.flatnonzero(np.diff(starts) > 1)]
    return sorted(groups, key=lambda group: int(candidates.shuffle_index[group].min()))


def _resolve_conflict(
    decisions: RowDecisions, rows: list[int], infos: dict[int, CandidateInfo], policy: str
) -> list[int]:
    """Drop what the policy drops of copies with different labels; return the rows that are left."""
    labels = Counter(infos[row].label for row in rows)
    (majority, votes), (_, second_votes), *_ = labels.most_common()
    if policy == "keep":
        return rows
    winner = majority if policy == "drop_minority" and votes > second_votes else None
    for row in rows:
        if infos[row].label != winner:
            other = next(r for r in rows if infos[r].label != infos[row].label)
            decisions.drop(row, DropReason("label_conflict", "same as", other))
    return [row for row in rows if infos[row].label == winner]


def _count_leaked(candidates: Candidates, group: RowNumbers) -> int:
    """Return the number of the group's rows that are declared as test, if another is declared for training."""
    declared: Any = candidates.declared[group]
    return int((declared == TEST).sum()) if np.isin(declared, (TRAIN, TRAINVAL)).any() else 0


# Outliers


def find_outliers(decisions: RowDecisions, names: tuple[str, ...], threshold: float, policy: str) -> None:
    """Count and name the outliers of each measure in `names`, and drop them where `policy` is drop.

    An outlier has a robust score above `threshold`; see `compute_robust_scores`.
    """
    candidates, rows = decisions.candidates, np.flatnonzero(decisions.is_kept)
    findings: dict[str, Any] = {}
    worst: dict[int, DropReason] = {}
    for name in names if candidates.has_measures and len(rows) else ():
        values = candidates.measures[name][rows]
        scores = compute_robust_scores(to_comparable_scale(name, values))
        far = np.flatnonzero(scores > threshold)
        if not len(far):
            continue
        farthest = far[np.lexsort((candidates.shuffle_index[rows[far]], -scores[far]))]
        infos = candidates.read_infos(rows[farthest[:OUTLIER_EXAMPLES]])
        median = float(np.median(values))
        examples = [
            {
                "image_id": infos[int(rows[i])].image_id,
                "value": round(float(values[i]), 6),
                "score": round(float(scores[i]), 2),
            }
            for i in farthest[:OUTLIER_EXAMPLES]
        ]
        findings[name] = {"count": len(far), "median": round(median, 6), "examples": examples}
        if policy == "drop":
            for i in farthest:
                detail = f"{name} {values[i]:.4g}, {scores[i]:.1f} spreads from the median {median:.4g}"
                worst.setdefault(int(rows[i]), DropReason("outlier", detail))
    for row, drop_reason in worst.items():
        decisions.drop(row, drop_reason)
    decisions.findings["outliers"] = findings


def to_comparable_scale(name: str, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return values of the measure `name` on a scale where distances can be compared: logarithms of `LOGARITHMIC`."""
    wide = values.astype(np.float64)
    if name not in LOGARITHMIC:
        return wide
    return np.log1p(wide) if name == "sharpness" else np.log(np.maximum(wide, 1e-9))


def compute_robust_scores(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return [N] modified z-scores, all at least 0: distance from the median in units of the scaled MAD.

    Where half of the values are equal the mean deviation replaces the median one; where all are, no score is above 0.
    Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993.
    """
    deviations = np.abs(values - np.median(values))
    spread = float(np.median(deviations)) / MAD_OF_NORMAL
    if spread < 1e-9:
        spread = float(deviations.mean()) / MEAN_DEVIATION_OF_NORMAL
    scores: npt.NDArray[np.float64] = deviations / spread if spread >= 1e-9 else np.zeros_like(deviations)
    return scores
