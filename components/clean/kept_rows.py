"""The kept rows of a dataset that is being made: their counts, numbers and places, from the candidates' columns.

The files themselves would say the same. But these columns are in one small file of each slice, and in the data files
between images, in a row group of every megabyte.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.manifest import Dataset, File
from ..dataset.shards import open_parquet
from .audit_numbers import COLUMNS, ImageInfo, Scan
from .candidates import Candidates, RowDecisions, RowNumbers
from .final_files import FinalFiles
from .labels import split_labels
from .splits import SPLITS


@dataclass(frozen=True)
class KeptCounts:
    """Counts of the kept rows: by split and class, by split, bytes of the images, decoder warnings."""

    by_class_split: dict[str, Counter[str]]
    by_split: Counter[str]
    bytes: int
    warnings: int


@dataclass(frozen=True)
class KeptRows:
    """The K kept rows in the order of the final files: row k is the candidate `final.rows[k]`."""

    decisions: RowDecisions
    final: FinalFiles

    @property
    def candidates(self) -> Candidates:
        return self.decisions.candidates

    def count(self, separator: str) -> KeptCounts:
        """Count the rows. `separator`: text between several labels of one row."""
        by_class_split: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        by_split: Counter[str] = Counter()
        size = warnings = 0
        for rows, table in self.candidates.read(self.final.rows, ["label", "image_bytes", "decoder_warning"]):
            size += pc.sum(table.column("image_bytes")).as_py()
            warnings += table.num_rows - table.column("decoder_warning").null_count
            splits = pa.array([SPLITS[code] for code in self.decisions.splits[rows].tolist()])
            groups = table.append_column("split", splits).group_by(["split", "label"]).aggregate([([], "count_all")])
            for row in groups.to_pylist():
                by_split[row["split"]] += row["count_all"]
                for name in split_labels(row["label"], separator):
                    by_class_split[row["split"]][name] += row["count_all"]
        return KeptCounts(by_class_split, by_split, size, warnings)

    def scan(self) -> Scan:
        """Return the scan of the dataset that will hold the rows."""
        return Scan.collect(self._read_columns(), self._read_infos)

    def _read_columns(self) -> Iterator[tuple[RowNumbers, Counter[str], pa.Table]]:
        order = np.argsort(self.final.rows)  # `order[i]` is the kept row of the i-th candidate that is kept
        start = 0
        for rows, table in self.candidates.read(self.final.rows, list(COLUMNS)):
            codes, numbers = np.unique(self.decisions.splits[rows], return_counts=True)
            by_split = Counter({SPLITS[c]: n for c, n in zip(codes.tolist(), numbers.tolist(), strict=True)})
            yield order[start : start + len(rows)], by_split, table
            start += len(rows)

    def _read_infos(self, rows: Iterable[int]) -> dict[int, ImageInfo]:
        numbers = list(rows)
        candidate_rows = self.final.rows[numbers]
        infos = self.candidates.read_infos(candidate_rows)
        splits = (SPLITS[code] for code in self.decisions.splits[candidate_rows].tolist())
        return {
            number: ImageInfo(infos[row].image_id, infos[row].label, split)
            for number, row, split in zip(numbers, candidate_rows.tolist(), splits, strict=True)
        }

    def locate(self, dataset: Dataset, rows: Collection[tuple[str, int]]) -> dict[str, tuple[File, range]]:
        """Return the file of `dataset`, and the row group, of those of some images that are kept.

        `rows`: (image_id, candidate row) of the images; the files of `dataset` are the final ones, in their order.
        """
        order = np.argsort(self.final.rows)
        ordered = self.final.rows[order]
        places: dict[str, tuple[File, range]] = {}
        files, starts = dataset.files(), self.final.starts
        group_starts: dict[int, list[int]] = {}
        for image_id, row in rows:
            index = int(np.searchsorted(ordered, row))
            if index == len(ordered) or ordered[index] != row:
                continue
            position = int(order[index])
            number = int(np.searchsorted(starts, position, side="right")) - 1
            if number not in group_starts:
                group_starts[number] = _read_group_starts(dataset.locate(files[number]))
            group = int(np.searchsorted(group_starts[number], position - starts[number], side="right")) - 1
            places[image_id] = files[number], range(group, group + 1)
        return places


def _read_group_starts(uri: str) -> list[int]:
    """Return the first row of each row group of a Parquet file."""
    with open_parquet(uri) as parquet:
        rows = [parquet.metadata.row_group(index).num_rows for index in range(parquet.num_row_groups)]
    return list(itertools.accumulate(rows[:-1], initial=0))
