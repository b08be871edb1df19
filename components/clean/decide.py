"""Everything that is decided about all images together, on the table of measures: no image is read here.

In this order: exact duplicates, exact splits (if asked for), near-duplicates with the conflicts and leaks among
them, outliers. The order matters: a copy must not weigh twice in a split, nor be its own twin.
"""

from __future__ import annotations

import numpy as np

from .config import CleanConfig
from .duplicates import drop_duplicates
from .outliers import find_outliers
from .splits import UNDECLARED, exact_splits
from .table import Table
from .twins import Twins, find_twins, judge_twins
from .verdicts import Verdicts


def decide(table: Table, config: CleanConfig) -> tuple[Verdicts, Twins | None]:
    """Who goes and why, and every row's split; the twins, if they were looked for."""
    verdicts = Verdicts.of(table)
    drop_duplicates(verdicts, config.label_conflicts)
    if config.split == "exact":
        assign_exact_splits(verdicts, config)
    twins = None
    if config.near_duplicates != "off" and table.measured:
        twins = find_twins(table, verdicts.alive, config.near_radius)
        judge_twins(verdicts, twins, config)
    find_outliers(verdicts, config.outlier_names(), config.outlier_threshold, config.outliers)
    return verdicts, twins


def assign_exact_splits(verdicts: Verdicts, config: CleanConfig) -> None:
    """Stratified by label over the rows that are kept; over all labels together where groups must stay together."""
    table, rows = verdicts.table, np.flatnonzero(verdicts.alive)
    declared = table.declared[rows] if config.declared_splits == "respect" else np.full(len(rows), UNDECLARED, np.uint8)
    grouped = bool(table.group.any())
    places = np.where(table.group[rows] != 0, table.group[rows], table.order[rows].astype(np.uint64))
    labels = np.zeros(len(rows), np.int64) if grouped else table.label[rows]
    verdicts.splits[rows] = exact_splits(declared, labels, places, (config.val_fraction, config.test_fraction))
