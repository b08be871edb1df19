"""Search for all pairs of 64-bit hashes that differ in few bits, without comparing all with all.

Of two hashes that differ in at most r bits, at least one of r + 1 bands of the bits is equal (the pigeonhole
principle; Manku, Jain and Das Sarma 2007, "Detecting near-duplicates for web crawling"). So for each band the hashes
are sorted by it and compared within runs of equal bits; where a run is long its remaining bits are split into bands
again. Exact for every radius. Above radius 5 bands are too narrow to sort out much, and all pairs are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock

import numpy as np
import numpy.typing as npt

from ..storage.errors import wrong
from ..storage.parallel import cores

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Distances = npt.NDArray[np.uint8]

BANDED_RADIUS, MAX_RADIUS = 5, 16
BRUTE_LIMIT = 200_000
"""Maximum number of hashes for radii above 5, which need all 2e10 pairs to be compared."""

MAX_PAIRS = 20_000_000
"""Maximum number of pairs that are returned: 320 MB."""

_BITS = 64
_LONG_RUN = 2048  # hashes with an equal band, above which it pays to split the other bits into bands
_SHORT_RUN = 32
_MIN_BAND_BITS = 3  # bits of a band
_TILE = 2**18  # pairs compared in one call of numpy: 2 MB, which stays in a core's cache
_CHUNK = 2**20


@dataclass(frozen=True)
class HashPairs:
    """The `pairs`: int64 [P, 2], row numbers, first < second, sorted, each once; and whether no pair was left out."""

    pairs: Ints
    complete: bool


def find_hash_pairs(hashes: Hashes, radius: int, limit: int = MAX_PAIRS) -> HashPairs:
    """Find the pairs of `hashes`, uint64 [N], that differ in at most `radius` bits.

    Equal hashes are grouped first and compared as one. Where more than `limit` pairs of groups are within the radius,
    those that differ in most bits are left out. Where there are more than `limit` pairs of rows, the largest blocks of
    them, between two groups or within one, are left out, and among equally large ones those that differ in most bits;
    of a group that is left out its first row is still paired with each of the others, within the limit.

    Raises UserError for a radius above 16, or above 5 with more than `BRUTE_LIMIT` hashes.
    """
    hashes = np.asarray(hashes, np.uint64)
    if not 0 <= radius <= MAX_RADIUS:
        raise wrong("near_radius", f"0 to {MAX_RADIUS} bits", radius)
    if radius > BANDED_RADIUS and len(hashes) > BRUTE_LIMIT:
        raise wrong("near_radius", f"at most {BANDED_RADIUS} with more than {BRUTE_LIMIT:,} images",
                    f"{radius} with {len(hashes):,}")  # fmt: skip
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])
    groups = _HashGroups(order, starts, np.diff(np.r_[starts, len(ordered)]))
    collector = _PairCollector(radius, limit, len(starts))
    if radius > BANDED_RADIUS:
        _compare_all(ordered[starts], collector)
    elif radius:
        _compare_bands(ordered[starts], collector)
    keys, distances = collector.concatenate()
    first, second = np.divmod(keys, max(1, len(starts)))
    pairs, is_complete = groups.expand(first, second, distances, limit)
    return HashPairs(pairs, is_complete and collector.radius == radius)


class _PairCollector:
    """The pairs of distinct hashes found so far, each as one key, first * hashes + second, with its distance.

    `radius` is the current search radius; it shrinks while there are more pairs than `limit`.
    """

    def __init__(self, radius: int, limit: int, hashes: int) -> None:
        self.radius = radius
        self._limit, self._hashes = limit, hashes
        self._keys: list[Ints] = []
        self._distances: list[Distances] = []
        self._counts = np.zeros(_BITS + 1, np.int64)
        self._lock = Lock()

    def add(self, first: Ints, second: Ints, distances: Distances) -> None:
        keys = np.minimum(first, second) * self._hashes + np.maximum(first, second)
        with self._lock:
            near = distances <= self.radius
            self._keys.append(keys[near])
            self._distances.append(distances[near])
            self._counts += np.bincount(distances[near], minlength=_BITS + 1)
            while self.radius and self._counts.sum() > self._limit:
                self._narrow()

    def _narrow(self) -> None:
        self._counts[self.radius] = 0
        self.radius -= 1
        near = [distances <= self.radius for distances in self._distances]
        self._keys = [np.concatenate([keys[n] for keys, n in zip(self._keys, near, strict=True)])]
        self._distances = [np.concatenate([values[n] for values, n in zip(self._distances, near, strict=True)])]

    def concatenate(self) -> tuple[Ints, Distances]:
        """Return the keys and distances of all pairs, in no order."""
        keys, distances = [*self._keys, np.empty(0, np.int64)], [*self._distances, np.empty(0, np.uint8)]
        return np.concatenate(keys), np.concatenate(distances)


def _compare_bands(hashes: Hashes, collector: _PairCollector) -> None:
    """Collect the pairs among distinct `hashes`, uint64 [U], by comparing within equal bands."""
    for mask, unequal in _split_into_bands(~np.uint64(0), collector.radius + 1):
        _compare_equal_bands(hashes, np.arange(len(hashes)), mask, unequal, collector)


def _split_into_bands(bits: np.uint64, count: int) -> Iterator[tuple[np.uint64, list[np.uint64]]]:
    """Divide the set bits of `bits` into `count` bands; yield each band's mask with the masks of those before it.

    Two hashes that are equal in one of those before have been compared there.
    """
    flags = [1 << k for k in range(_BITS) if int(bits) >> k & 1]
    bands = [flags[k * len(flags) // count : (k + 1) * len(flags) // count] for k in range(count)]
    masks = [np.uint64(sum(band)) for band in bands]
    for number, mask in enumerate(masks):
        yield mask, masks[:number]


def _compare_equal_bands(
    hashes: Hashes, rows: Ints, mask: np.uint64, unequal: list[np.uint64], collector: _PairCollector
) -> None:
    """Collect the pairs of rows that are equal under `mask`, and under none of `unequal`."""
    if len(rows) < 2 or not collector.radius:
        return
    rows = rows[np.argsort(hashes[rows] & mask)]
    values = hashes[rows]
    band = values & mask
    starts = np.flatnonzero(np.r_[True, band[1:] != band[:-1]])
    lengths = np.diff(np.r_[starts, len(rows)])
    count, rest = collector.radius + 1, ~mask
    long = lengths > _LONG_RUN
    if long.any() and int(rest).bit_count() // count >= _MIN_BAND_BITS:
        inside = rows[np.repeat(long, lengths)]
        for narrower, before in _split_into_bands(rest, count):
            _compare_equal_bands(hashes, inside, mask | narrower, unequal + before, collector)
        starts, lengths = starts[~long], lengths[~long]
    short = lengths <= _SHORT_RUN
    for first, second in _pair_short_runs(starts[short], lengths[short]):
        _collect_near(values, rows, first, second, unequal, collector)
    for start, length in zip(starts[~short].tolist(), lengths[~short].tolist(), strict=True):
        for first, second in _find_near_in_range(values[start : start + length], 0, length, collector.radius):
            _collect_near(values, rows, first + start, second + start, unequal, collector)


def _collect_near(
    values: Hashes, rows: Ints, first: Ints, second: Ints, unequal: list[np.uint64], collector: _PairCollector
) -> None:
    """Collect those of the pairs `first`, `second` that are within the radius, and equal under no mask of `unequal`."""
    differ = values[first] ^ values[second]
    distances = np.bitwise_count(differ)
    near = np.flatnonzero(distances <= collector.radius)
    for mask in unequal:
        near = near[differ[near] & mask != 0]
    if len(near):
        collector.add(rows[first[near]], rows[second[near]], distances[near])


def _pair_short_runs(starts: Ints, lengths: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Yield the pairs of positions within each run, in chunks: those one apart, two apart and so on."""
    run_offsets = np.cumsum(lengths) - lengths
    positions = np.repeat(starts, lengths) + np.arange(lengths.sum()) - np.repeat(run_offsets, lengths)
    ends = np.repeat(starts + lengths, lengths)
    for apart in range(1, _SHORT_RUN):
        inside = positions + apart < ends
        positions, ends = positions[inside], ends[inside]
        for start in range(0, len(positions), _CHUNK):
            first = positions[start : start + _CHUNK]
            yield first, first + apart


def _find_near_in_range(hashes: Hashes, start: int, stop: int, radius: int) -> Iterator[tuple[Ints, Ints]]:
    """Yield the pairs within the radius of which the first is in `hashes[start:stop]` and the second comes later."""
    height = 64
    for top in range(start, stop, height):
        block = hashes[top : min(top + height, stop), None]
        width = _TILE // height
        for left in range(top + 1, len(hashes), width):
            near = np.bitwise_count(block ^ hashes[left : left + width]) <= radius
            if near.any():
                first, second = np.divmod(np.flatnonzero(near), near.shape[1])
                first, second = first + top, second + left
                later = second > first
                yield first[later], second[later]


def _compare_all(hashes: Hashes, collector: _PairCollector) -> None:
    """Collect the pairs among distinct `hashes`, uint64 [U], by comparing all with all, on all cores."""
    stripe, rows = 1024, np.arange(len(hashes))

    def compare(start: int) -> None:
        for first, second in _find_near_in_range(hashes, start, min(start + stripe, len(hashes)), collector.radius):
            _collect_near(hashes, rows, first, second, [], collector)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(compare, range(0, len(hashes), stripe)))


@dataclass(frozen=True)
class _HashGroups:
    """The groups of rows with equal hashes: `order[starts[g] : starts[g] + sizes[g]]` is group g, ascending."""

    order: Ints
    starts: Ints
    sizes: Ints

    def expand(self, first: Ints, second: Ints, distances: Distances, limit: int) -> tuple[Ints, bool]:
        """Return the pairs of rows between the groups `first` and `second` and within each group, and whether that is
        all of them."""
        large = np.flatnonzero(self.sizes > 1)
        first, second = np.concatenate([first, large]), np.concatenate([second, large])
        distances = np.concatenate([distances, np.zeros(len(large), np.uint8)])
        within = first == second
        pairs = self.sizes[first] * (self.sizes[second] - within) // (1 + within)
        kept = np.ones(len(pairs), bool)
        if is_complete := int(pairs.sum()) <= limit:
            room = 0
        else:
            by_size = np.lexsort((distances, pairs))
            total = np.cumsum(pairs[by_size])
            kept[by_size[total > limit]] = False
            room = limit - int(pairs[kept].sum())
        with_first = self._pair_with_first(first[within & ~kept], room)
        keys = np.concatenate([*self._iterate_products(first[kept], second[kept]), *with_first, np.empty(0, np.int64)])
        keys.sort()
        row_pairs = np.empty((len(keys), 2), np.int64)
        np.divmod(keys, max(1, len(self.order)), out=(row_pairs[:, 0], row_pairs[:, 1]))
        return row_pairs, is_complete

    def _iterate_products(self, first: Ints, second: Ints) -> Iterator[Ints]:
        """Yield the pairs of rows as keys, first * rows + second, in chunks of equal size."""
        ends = np.cumsum(self.sizes[first] * self.sizes[second])
        for start in range(0, int(ends[-1]) if len(ends) else 0, _CHUNK):
            flat = np.arange(start, min(start + _CHUNK, int(ends[-1])))
            block = np.searchsorted(ends, flat, side="right")
            width = self.sizes[second[block]]
            down, across = np.divmod(flat - (ends[block] - self.sizes[first[block]] * width), width)
            a = self.order[self.starts[first[block]] + down]
            b = self.order[self.starts[second[block]] + across]
            is_first_time = (first[block] != second[block]) | (down < across)
            yield (np.minimum(a, b) * len(self.order) + np.maximum(a, b))[is_first_time]

    def _pair_with_first(self, groups: Ints, room: int) -> list[Ints]:
        """Pair the first row of a group with each of the others, smallest groups first, up to `room` pairs in all."""
        groups = groups[np.argsort(self.sizes[groups], kind="stable")]
        fitting = sum(total <= room for total in accumulate((self.sizes[groups] - 1).tolist()))
        rows = [self.order[self.starts[g] : self.starts[g] + self.sizes[g]] for g in groups[:fitting]]
        return [r[0] * len(self.order) + r[1:] for r in rows]
