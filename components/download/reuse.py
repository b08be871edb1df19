"""Rows of earlier shards that a new snapshot has as well: found without reading an image, and listed again.

The shards are those of the last snapshot of the same name, and those that a killed attempt at this one finished. Their
small columns and masks are read; images only of rows that are copied to new shards: rows whose label, split, group or
boxes changed, and all rows of shards that lost too many or became too many. In memory a row costs 50 bytes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataset.manifest import Dataset, File
from ..dataset.shards import open_parquet, read_file, read_row_group
from ..storage import uri as uris
from ..storage.errors import DatasetError
from ..storage.parallel import map_ordered
from .contents import DIGEST_BYTES, RAW, Contents, hash_id, hash_row
from .dataset_kinds import Labeller
from .listing import SourceFiles

UNMATCHED, KEPT, RELABELED = range(3)
"""States of a row: of no file of the source so far; unchanged; of an unchanged file with another description."""
MAX_LOST_SHARE = 0.25
"""Share of a shard's rows from which on the others are copied to new shards, so that storage follows the source."""
MAX_REMOVED_IDS = 10_000
"""Maximum number of removed rows that a manifest names; shards with the most are written anew beyond that."""
MAX_SMALL_SHARDS = 16
"""Number of small shards from which on they are merged. One is small below a quarter of a full one."""
_SMALL_COLUMNS = [name for name in RAW.names if name != "image"]
_ROW_BYTES = 1_000
"""Memory of a row without image and mask while it is compared."""


@dataclass
class EarlierShard:
    """A shard of an earlier snapshot or attempt.

    Attributes:
        file: as its manifest or record has it.
        uri: absolute.
        removed: ids of rows that the earlier snapshot did not have any more.
        is_of_attempt: finished by an attempt that read the source under the same listing.
        start: number of its first row among the rows of all shards.
        labels, splits, bytes: of the rows that are kept.
        is_rewritten: its rows are copied; it is not listed again.
    """

    file: File
    uri: str
    removed: frozenset[str] = frozenset()
    is_of_attempt: bool = False
    start: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    is_rewritten: bool = False

    def add(self, label: str | None, split: str | None, size: int) -> None:
        self.labels[label or ""] += 1
        self.splits[split or ""] += 1
        self.bytes += size

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.file.rows)


def list_shards(attempt: Sequence[File], shared_shards: str, last: Dataset | None) -> list[EarlierShard]:
    """Return the shards of a killed attempt, whose rows come first, and of the last snapshot, each once."""
    attempted = (EarlierShard(file, uris.join(shared_shards, file.uri), is_of_attempt=True) for file in attempt)
    shards = {shard.uri: shard for shard in attempted}
    if last:
        for file in last.files():
            shards.setdefault(last.locate(file), EarlierShard(file, last.locate(file), last.removed_ids(file)))
    return list(shards.values())


class EarlierRows:
    """The rows of earlier shards, by their digests, and the state of each."""

    def __init__(self) -> None:
        self.shards: list[EarlierShard] = []
        self._digests, self._id_hashes = bytearray(), array("Q")
        self._states = np.zeros(0, np.uint8)
        self._numbers = np.zeros(0, np.int32)
        self._sorted = np.zeros(0, np.uint64)
        self._order = self._starts = np.zeros(0, np.int64)

    @classmethod
    def read(
        cls, shards: Sequence[EarlierShard], files: SourceFiles | None, labeller: Labeller, trusts_attempt: bool
    ) -> EarlierRows:
        """Read the rows, and match those of unchanged files; DatasetError for a shard that can't be read.

        `files`: the source's, whose `has_row` is set; None for a source without listing. `trusts_attempt`: the files
        that an attempt read are known to be unchanged.
        """
        earlier = cls()
        states: list[npt.NDArray[np.uint8]] = []
        numbers: list[npt.NDArray[np.int32]] = []
        tables = map_ordered(shards, _read_small_columns, 4, lambda shard: shard.file.rows * _ROW_BYTES)
        for shard, rows in zip(shards, tables, strict=True):
            hashes = np.fromiter((hash_id(row["image_id"]) for row, _ in rows), np.uint64, len(rows))
            if len(np.unique(hashes)) < len(rows):  # of an attempt that failed for its duplicated ids
                continue
            shard = replace(shard, file=replace(shard.file, rows=len(rows)), start=len(earlier._id_hashes))
            earlier.shards.append(shard)
            earlier._id_hashes.frombytes(hashes.tobytes())
            for _, row_digest in rows:
                earlier._digests += row_digest
            is_trusted = shard.is_of_attempt and trusts_attempt
            states.append(np.zeros(len(rows), np.uint8))
            numbers.append(np.full(len(rows), -1, np.int32))
            if files is not None:
                _match(shard, [row for row, _ in rows], hashes, files, labeller, is_trusted, states[-1], numbers[-1])
        earlier._states = np.concatenate([earlier._states, *states])
        earlier._numbers = np.concatenate([earlier._numbers, *numbers])
        all_hashes = np.frombuffer(earlier._id_hashes, np.uint64)
        earlier._order = np.argsort(all_hashes, kind="stable").astype(np.int64)
        earlier._sorted = all_hashes[earlier._order]
        earlier._starts = np.array([shard.start for shard in earlier.shards], np.int64)
        return earlier

    @property
    def num_relabeled(self) -> int:
        return int((self._states == RELABELED).sum())

    def count_of_attempt(self) -> int:
        """Return the number of rows that an earlier attempt at this snapshot finished."""
        return sum(shard.file.rows for shard in self.shards if shard.is_of_attempt)

    def take(self, row: dict[str, Any]) -> bool:
        """Return whether an earlier shard has this row, which was read from the source; if so, it is kept there."""
        if not self.shards:
            return False
        id_hash, digest = np.uint64(hash_id(row["image_id"])), hash_row(row)
        position = int(np.searchsorted(self._sorted, id_hash))
        while position < len(self._sorted) and self._sorted[position] == id_hash:
            number = int(self._order[position])
            if self._states[number] == UNMATCHED and self._get_digest(number) == digest:
                shard = self.shards[int(np.searchsorted(self._starts, number, "right")) - 1]
                if row["image_id"] not in shard.removed:
                    self._states[number] = KEPT
                    shard.add(row["label"], row["split"], len(row["image"] or b""))
                    return True
            position += 1
        return False

    def _get_digest(self, number: int) -> bytes:
        return bytes(self._digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES])

    def choose_rewritten(self, shard_bytes: int) -> int:
        """Choose the shards whose rows are copied to new ones; return the number of all rows that are copied.

        Those are: shards that lost more than `MAX_LOST_SHARE` of their rows; those with the most lost rows while there
        are more than `MAX_REMOVED_IDS`; and, of more than `MAX_SMALL_SHARDS` small ones, the smallest that are of one
        order of size, so that a row is copied only as often as the logarithm of the dataset's size.
        """
        kept = {id(shard): int((self._states[shard.rows] == KEPT).sum()) for shard in self.shards}
        lost = {id(shard): shard.file.rows - kept[id(shard)] for shard in self.shards}
        listed = [shard for shard in self.shards if kept[id(shard)]]
        for shard in listed:
            shard.is_rewritten = lost[id(shard)] > MAX_LOST_SHARE * shard.file.rows
        removed = sum(lost[id(shard)] for shard in listed if not shard.is_rewritten)
        for shard in sorted(listed, key=lambda s: -lost[id(s)]):
            if removed > MAX_REMOVED_IDS and not shard.is_rewritten:
                shard.is_rewritten, removed = True, removed - lost[id(shard)]
        small = [s for s in listed if not s.is_rewritten and s.file.bytes < shard_bytes // 4]
        for shard in choose_merged(small):
            shard.is_rewritten = True
        copied = sum(kept[id(shard)] for shard in listed if shard.is_rewritten)
        return copied + self.num_relabeled

    def copy_rows(self, labeller: Labeller) -> Iterator[dict[str, Any]]:
        """Yield the rows that new shards are to hold, with what the source says of them now.

        Only row groups with such rows are read. DatasetError for an image that is not the one of its row.
        """
        for shard in self.shards:
            states = self._states[shard.rows]
            is_copied = (states == RELABELED) | ((states == KEPT) & shard.is_rewritten)
            if not is_copied.any():
                continue
            with open_parquet(shard.uri) as parquet:
                start = 0
                for index in range(parquet.num_row_groups):
                    end = start + parquet.metadata.row_group(index).num_rows
                    if is_copied[start:end].any():
                        table = read_row_group(parquet, index, shard.uri).filter(pa.array(is_copied[start:end]))
                        for offset, row in zip(np.flatnonzero(is_copied[start:end]), table.to_pylist(), strict=True):
                            _check_image(row, shard.uri)
                            if states[start + offset] == RELABELED:
                                number = int(self._numbers[shard.start + start + offset])
                                row |= _describe(row["image_id"], number, labeller)
                            yield row
                    start = end

    def add_kept_rows(self, contents: Contents) -> None:
        """Add the rows of the shards that are listed again."""
        for shard in self.shards:
            if shard.is_rewritten:
                continue
            for number in (shard.start + np.flatnonzero(self._states[shard.rows] == KEPT)).tolist():
                contents.digests += self._get_digest(number)
                contents.id_hashes.append(self._id_hashes[number])
            contents.labels.update(shard.labels)
            contents.splits.update(shard.splits)
            contents.bytes += shard.bytes

    def list_files(self) -> Iterator[tuple[EarlierShard, list[str]]]:
        """Yield the shards that are listed again, those of the last snapshot first, and the ids that each has lost."""
        for shard in sorted(self.shards, key=lambda shard: shard.is_of_attempt):
            is_kept = self._states[shard.rows] == KEPT
            if shard.is_rewritten or not is_kept.any():
                continue
            lost: list[str] = []
            if not is_kept.all():
                ids = pa.concat_tables(read_file(shard.uri, ["image_id"])).column("image_id")
                lost = ids.filter(pa.array(~is_kept)).to_pylist()
            yield shard, sorted(lost)


def choose_merged(small: Sequence[EarlierShard]) -> list[EarlierShard]:
    """Return those of the small shards that are merged: the smallest, up to the first that is larger than all before.

    None of at most `MAX_SMALL_SHARDS`. At least as many as leave no more than that.
    """
    if len(small) <= MAX_SMALL_SHARDS:
        return []
    merged: list[EarlierShard] = []
    size = 0
    for shard in sorted(small, key=lambda shard: shard.file.bytes):
        if shard.file.bytes > size and len(merged) > max(1, len(small) - MAX_SMALL_SHARDS):
            break
        merged.append(shard)
        size += shard.file.bytes
    return merged


def _read_small_columns(shard: EarlierShard) -> list[tuple[dict[str, Any], bytes]]:
    """Read the rows of a shard without images and masks, and the digest of each; masks are read for the digests."""
    rows: list[tuple[dict[str, Any], bytes]] = []
    for table in read_file(shard.uri, _SMALL_COLUMNS):
        for row in table.to_pylist():
            row_digest = hash_row(row)
            del row["mask"]
            rows.append((row, row_digest))
    return rows


def _match(
    shard: EarlierShard, rows: list[dict[str, Any]], hashes: npt.NDArray[np.uint64], files: SourceFiles,
    labeller: Labeller, is_trusted: bool, states: npt.NDArray[np.uint8], numbers: npt.NDArray[np.int32],
) -> None:  # fmt: skip
    """Set the state of the rows whose files are unchanged, and the numbers of those files."""
    for offset, number in enumerate(files.find([row["image_id"] for row in rows], hashes).tolist()):
        row = rows[offset]
        if number < 0 or files.has_row[number] or row["image_id"] in shard.removed:
            continue
        if not is_trusted and not files.unchanged[number]:
            continue
        files.has_row[number] = True
        numbers[offset] = number
        description = _describe(row["image_id"], number, labeller)
        if description == {name: row.get(name) for name in description} | {"boxes": row["boxes"] or []}:
            states[offset] = KEPT
            shard.add(row["label"], row["split"], int(files.sizes[number]) if row["sha256"] else 0)
        else:
            states[offset] = RELABELED


def _describe(image_id: str, number: int, labeller: Labeller) -> dict[str, Any]:
    """Return what the source says of a file now. Masks are files of their own, and part of the listing."""
    labels = labeller.labels(image_id, number)
    return {"label": labels.label, "split": labels.split, "group": labels.group, "boxes": labels.boxes}


def _check_image(row: dict[str, Any], uri: str) -> None:
    if row["image"] is not None and hashlib.sha256(row["image"]).hexdigest() != row["sha256"]:
        raise DatasetError(
            f"{uri}: expected the image of {row['image_id']!r} with sha256 {row['sha256']}, found other bytes; "
            "remove that file and run again, which reads the source as a whole"
        )
