"""What the decisions about all images together come to: rows that go, each with a reason, and what was found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .splits import SPLITS
from .table import Rows, Table

KEPT_FIRST = np.array([2, 1, 0, 3], np.uint8)
"""By split code: the copy in test stays before the one in val before the one in train (a test image must not be
trained on, and test should not shrink)."""
EXAMPLES = 50
"""So many examples of a finding are named in the manifest; all are counted."""


class Verdict(NamedTuple):
    """Why a row goes: `words`, and then, if there is one, the `other` row because of which it goes."""

    reason: str
    words: str
    other: int = -1


@dataclass
class Verdicts:
    """`alive` bool [N]; `splits` uint8 [N]; `dropped` by row (about 300 bytes each); `found` goes to the manifest."""

    table: Table
    alive: npt.NDArray[np.bool_]
    splits: npt.NDArray[np.uint8]
    dropped: dict[int, Verdict] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Table) -> Verdicts:
        return cls(table, np.ones(len(table), bool), table.split.copy())

    def drop(self, row: int, verdict: Verdict) -> None:
        """The first verdict about a row stands."""
        self.dropped.setdefault(row, verdict)
        self.alive[row] = False

    def rejected(self) -> Iterator[dict[str, Any]]:
        """The dropped rows as rows of rejects."""
        rows = np.fromiter(self.dropped, np.int64, len(self.dropped))
        others = np.fromiter((v.other for v in self.dropped.values() if v.other >= 0), np.int64)
        names = self.table.names(np.concatenate([rows, others]))
        for row, verdict in self.dropped.items():
            here, detail = names[row], verdict.words
            if verdict.other >= 0:
                there = names[verdict.other]
                detail += f" {there.image_id} ({SPLITS[self.splits[verdict.other]]})"
                if here.label != there.label:
                    detail += f"; labelled {here.label} here, {there.label} there"
            yield {"image_id": here.image_id, "sha256": here.sha256, "reason": verdict.reason, "detail": detail}

    def first_to_keep(self, rows: Rows) -> Rows:
        """The rows in the order in which they would be kept: by split, then by a hash of their content."""
        return rows[np.lexsort((self.table.order[rows], KEPT_FIRST[self.splits[rows]]))]
