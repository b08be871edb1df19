"""The decisions on candidate rows: kept or dropped, why, and in which split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .candidates import Candidates, RowNumbers
from .splits import SPLITS

KEEP_PRIORITY = np.array([2, 1, 0, 3], np.uint8)
"""By split code, lowest first: of several copies the one in test is kept before val before train, because a test image
must not be trained on, and test should not shrink."""
EXAMPLES = 50
"""Maximum number of examples of a finding in the manifest; all are counted."""


class DropReason(NamedTuple):
    """Reason for dropping a row: `detail`, followed by the name of row `other` where another row is the cause."""

    reason: str
    detail: str
    other: int = -1


@dataclass
class RowDecisions:
    """State of all candidate rows while they are judged.

    Attributes:
        is_kept: bool [N], rows that are kept.
        splits: uint8 [N], split codes.
        dropped: reason by row; about 300 bytes each.
        findings: goes to the manifest as `found`.
    """

    candidates: Candidates
    is_kept: npt.NDArray[np.bool_]
    splits: npt.NDArray[np.uint8]
    dropped: dict[int, DropReason] = field(default_factory=dict)
    findings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, candidates: Candidates) -> RowDecisions:
        return cls(candidates, np.ones(len(candidates), bool), candidates.split.copy())

    def drop(self, row: int, drop_reason: DropReason) -> None:
        """Drop a row; the first reason stands."""
        self.dropped.setdefault(row, drop_reason)
        self.is_kept[row] = False

    def iterate_rejected(self) -> Iterator[dict[str, Any]]:
        """Yield the dropped rows in the form of `schema.REJECTED`."""
        rows = np.fromiter(self.dropped, np.int64, len(self.dropped))
        others = np.fromiter((v.other for v in self.dropped.values() if v.other >= 0), np.int64)
        infos = self.candidates.read_infos(np.concatenate([rows, others]))
        for row, drop_reason in self.dropped.items():
            info, detail = infos[row], drop_reason.detail
            if drop_reason.other >= 0:
                other = infos[drop_reason.other]
                detail += f" {other.image_id} ({SPLITS[self.splits[drop_reason.other]]})"
                if info.label != other.label:
                    detail += f"; labelled {info.label} here, {other.label} there"
            yield {"image_id": info.image_id, "sha256": info.sha256, "reason": drop_reason.reason, "detail": detail}

    def sort_by_priority(self, rows: RowNumbers) -> RowNumbers:
        """Sort rows so that the one to keep comes first: by split, then by a hash of their content."""
        return rows[np.lexsort((self.candidates.shuffle_index[rows], KEEP_PRIORITY[self.splits[rows]]))]
