"""The files that a clean dataset lists: those of all candidates, without the rows that were dropped; and the counts,
numbers and places of the rows that they hold.

The latter come from the candidates' columns. The files themselves would say the same, but these columns are in one
small file of each slice, and in the data files between images, in a row group of every megabyte.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.manifest import Dataset, File
from ..dataset.shards import Layout, ShardWriter, open_parquet, read_file
from ..storage import uri as uris
from ..storage.errors import MillError
from ..storage.parallel import cores, map_ordered
from .audit_numbers import COLUMNS, ImageInfo, Scan
from .candidates import Candidates, RowDecisions, RowNumbers
from .labels import split_labels
from .reuse import FinishedWork, make_rewrite_key
from .splits import SPLITS


@dataclass(frozen=True)
class FinalFiles:
    """The data files of a dataset, by split and name, with URIs relative to the shared shards.

    Attributes:
        files: the files; none of them holds a dropped row.
        rows: int64 [K], the candidate row of each kept row, in the order of the files.
        starts: int64 [len(files) + 1], the first kept row of each file.
        lost: URIs of candidate files that are needed but gone; there are no files then.
    """

    files: list[File] = field(default_factory=list)
    rows: RowNumbers = field(default_factory=lambda: np.empty(0, np.int64))
    starts: RowNumbers = field(default_factory=lambda: np.zeros(1, np.int64))
    lost: frozenset[str] = frozenset()


def write_final_files(decisions: RowDecisions, finished: FinishedWork, layout: Layout) -> FinalFiles:
    """Write the files that the decisions result in, as far as they are not there.

    A candidate file of which all rows stay is used as it is. The others are written again, unless that was done for the
    same decisions before.
    """
    candidates = decisions.candidates
    is_kept = np.zeros(int(candidates.data_file_starts[-1]), bool)
    splits = np.zeros(len(is_kept), np.uint8)
    is_kept[candidates.positions], splits[candidates.positions] = decisions.is_kept, decisions.splits
    ranges = list(itertools.starmap(slice, itertools.pairwise(candidates.data_file_starts.tolist())))
    final: dict[int, list[File]] = {}
    keys: dict[int, str] = {}
    for number, (file, rows) in enumerate(zip(candidates.data_files, ranges, strict=True)):
        if file.split in SPLITS and is_kept[rows].all() and (splits[rows] == SPLITS.index(file.split)).all():
            final[number] = [file]
        elif not is_kept[rows].any():
            final[number] = []
        else:
            keys[number] = make_rewrite_key(file, is_kept[rows], splits[rows])
    final |= finished.find_rewritten(keys)
    intact = finished.parts.find_intact(file for files in final.values() for file in files)
    missing = [n for n in range(len(ranges)) if n not in final or any(file.uri not in intact for file in final[n])]
    sources = {candidates.data_files[number].uri for number in missing}
    if lost := sources - finished.parts.find_intact(candidates.data_files[number] for number in missing):
        return FinalFiles(lost=frozenset(lost))

    def rewrite(number: int) -> list[File]:
        rows = ranges[number]
        return list(rewrite_file(finished.uri, candidates.data_files[number], is_kept[rows], splits[rows], layout))

    # Threads are enough: Arrow and OpenSSL copy and hash without Python's lock. Each holds one row group.
    for number, files in zip(missing, map_ordered(missing, rewrite, cores(), lambda _: 0), strict=True):
        finished.add_rewritten(keys[number], files)
        final[number] = files
    return _sort_files(decisions, final)


def _sort_files(decisions: RowDecisions, final: dict[int, list[File]]) -> FinalFiles:
    """Sort the files by split and name, and number their rows; MillError where a file has more or fewer rows.

    `final`: the files by the number of the candidate file.
    """
    candidates = decisions.candidates
    ordered = sorted(
        ((file, number) for number, files in final.items() for file in files),
        key=lambda entry: (SPLITS.index(entry[0].split), entry[0].uri),
    )
    first_rows = np.searchsorted(candidates.positions, candidates.data_file_starts)
    parts = [np.empty(0, np.int64)]
    for file, number in ordered:
        rows = np.arange(first_rows[number], first_rows[number + 1])
        rows = rows[decisions.is_kept[rows] & (decisions.splits[rows] == SPLITS.index(file.split))]
        if len(rows) != file.rows:
            raise MillError(f"internal error: {len(rows)} rows are kept of {file.uri}, which has {file.rows}")
        parts.append(rows)
    starts = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return FinalFiles([file for file, _ in ordered], np.concatenate(parts), starts)


def rewrite_file(
    uri: str, file: File, is_kept: npt.NDArray[np.bool_], splits: npt.NDArray[np.uint8], layout: Layout
) -> Iterator[File]:
    """Write the rows of one file that are kept to one file per split, in their order. Holds one row group."""
    for code, split in enumerate(SPLITS):
        selected = is_kept & (splits == code)
        if selected.any():
            start = 0
            with ShardWriter(uri, layout) as writer:
                for group in read_file(uris.join(uri, file.uri)):
                    table = group.filter(pa.array(selected[start : start + group.num_rows]))
                    start += group.num_rows
                    if table.num_rows:
                        index = table.schema.get_field_index("split")
                        table = table.set_column(index, "split", pa.repeat(split, table.num_rows))
                        writer.add_table(table.cast(layout.schema))
                yield writer.publish(f"data/{split}", "data", split)


TINY_SIDE, TINY_SHARE, TINY_IMAGE_SIZE = 48, 0.95, 64
"""Images with a shorter side of at most so many pixels are tiny. Where nearly all are, larger tensors would hold no
more than those of 64 pixels a side, and training would take as many times longer."""


@dataclass(frozen=True)
class KeptCounts:
    """Counts of the kept rows: by split and class, by split, bytes of the images, decoder warnings, tiny images."""

    by_class_split: dict[str, Counter[str]]
    by_split: Counter[str]
    bytes: int
    warnings: int
    tiny: int

    def recommend_image_size(self) -> int | None:
        """Return the image size for a network where nearly all images are tiny, else None."""
        return TINY_IMAGE_SIZE if self.tiny >= TINY_SHARE * self.by_split.total() else None


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
        size = warnings = tiny = 0
        columns = ["label", "image_bytes", "decoder_warning", "width", "height"]
        for rows, table in self.candidates.read(self.final.rows, columns):
            short_sides = pc.min_element_wise(table.column("width"), table.column("height"))
            tiny += pc.sum(pc.less_equal(short_sides, TINY_SIDE)).as_py()
            size += pc.sum(table.column("image_bytes")).as_py()
            warnings += table.num_rows - table.column("decoder_warning").null_count
            splits = pa.array([SPLITS[code] for code in self.decisions.splits[rows].tolist()])
            groups = table.append_column("split", splits).group_by(["split", "label"]).aggregate([([], "count_all")])
            for row in groups.to_pylist():
                by_split[row["split"]] += row["count_all"]
                for name in split_labels(row["label"], separator):
                    by_class_split[row["split"]][name] += row["count_all"]
        return KeptCounts(by_class_split, by_split, size, warnings, tiny)

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
