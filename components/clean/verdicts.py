"""The verdicts on candidate rows (dropped or kept, and in which split), and the files that they result in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataset.manifest import File
from ..dataset.shards import Layout, ShardWriter
from ..storage.parallel import cores, map_ordered
from .candidates import Candidates, Rows, read_file_columns
from .splits import SPLITS

KEEP_PRIORITY = np.array([2, 1, 0, 3], np.uint8)
"""By split code, lowest first: of several copies the one in test is kept before val before train, because a test image
must not be trained on, and test should not shrink."""
EXAMPLES = 50
"""Maximum number of examples of a finding in the manifest; all are counted."""


class Verdict(NamedTuple):
    """Reason for dropping a row: `detail`, followed by the name of row `other` where another row is the cause."""

    reason: str
    detail: str
    other: int = -1


@dataclass
class Verdicts:
    """State of all candidate rows while they are judged.

    Attributes:
        alive: bool [N], rows that are kept.
        splits: uint8 [N], split codes.
        dropped: verdict by row; about 300 bytes each.
        findings: goes to the manifest as `found`.
    """

    candidates: Candidates
    alive: npt.NDArray[np.bool_]
    splits: npt.NDArray[np.uint8]
    dropped: dict[int, Verdict] = field(default_factory=dict)
    findings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, candidates: Candidates) -> Verdicts:
        return cls(candidates, np.ones(len(candidates), bool), candidates.split.copy())

    def drop(self, row: int, verdict: Verdict) -> None:
        """Drop a row; the first verdict about it stands."""
        self.dropped.setdefault(row, verdict)
        self.alive[row] = False

    def iterate_rejected(self) -> Iterator[dict[str, Any]]:
        """Yield the dropped rows in the form of `schema.REJECTED`."""
        rows = np.fromiter(self.dropped, np.int64, len(self.dropped))
        others = np.fromiter((v.other for v in self.dropped.values() if v.other >= 0), np.int64)
        infos = self.candidates.read_infos(np.concatenate([rows, others]))
        for row, verdict in self.dropped.items():
            info, detail = infos[row], verdict.detail
            if verdict.other >= 0:
                other = infos[verdict.other]
                detail += f" {other.image_id} ({SPLITS[self.splits[verdict.other]]})"
                if info.label != other.label:
                    detail += f"; labelled {info.label} here, {other.label} there"
            yield {"image_id": info.image_id, "sha256": info.sha256, "reason": verdict.reason, "detail": detail}

    def sort_by_priority(self, rows: Rows) -> Rows:
        """Sort rows so that the one to keep comes first: by split, then by a hash of their content."""
        return rows[np.lexsort((self.candidates.order[rows], KEEP_PRIORITY[self.splits[rows]]))]


def write_final_files(uri: str, verdicts: Verdicts, layout: Layout) -> list[File]:
    """Return the data files of the dataset by split and name, without dropped rows and each row in its split.

    A candidate file of which all rows stay is used as it is; the others are written again.
    """
    candidates = verdicts.candidates

    def finalize(number: int) -> list[File]:
        file = candidates.files[number]
        rows = slice(int(candidates.starts[number]), int(candidates.starts[number + 1]))
        alive, splits = verdicts.alive[rows], verdicts.splits[rows]
        if file.split in SPLITS and alive.all() and (splits == SPLITS.index(file.split)).all():
            return [file]
        return list(rewrite_file(uri, file, alive, splits, layout))

    # Threads are enough: Arrow and OpenSSL copy and hash without Python's lock. Each holds one row group.
    written = map_ordered(range(len(candidates.files)), finalize, cores(), lambda _: 0)
    return sorted((file for files in written for file in files), key=lambda file: (SPLITS.index(file.split), file.uri))


def rewrite_file(
    uri: str, file: File, alive: npt.NDArray[np.bool_], splits: npt.NDArray[np.uint8], layout: Layout
) -> Iterator[File]:
    """Write the rows of one file that are alive to one file per split, in their order. Holds one row group."""
    for code, split in enumerate(SPLITS):
        selected = alive & (splits == code)
        if selected.any():
            with ShardWriter(uri, layout) as writer:
                for table in _filter_row_groups(uri, file, selected, split, layout.schema):
                    writer.add_table(table)
                yield writer.publish(f"data/{split}", "data", split)


def _filter_row_groups(
    uri: str, file: File, selected: npt.NDArray[np.bool_], split: str, schema: pa.Schema
) -> Iterator[pa.Table]:
    start = 0
    for group in read_file_columns(uri, file, None):
        table = group.filter(pa.array(selected[start : start + group.num_rows]))
        start += group.num_rows
        if table.num_rows:
            index = table.schema.get_field_index("split")
            table = table.set_column(index, "split", pa.array([split] * table.num_rows, pa.string()))
            yield table.cast(schema)
