"""All pairs of 64-bit hashes that differ in few bits, found without comparing all with all.

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

from ..store.errors import wrong
from ..store.parallel import cores

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Distances = npt.NDArray[np.uint8]

BANDED_RADIUS, MOST_RADIUS = 5, 16
BRUTE_LIMIT = 200_000
"""Hashes that may all be compared with all, which radii above 5 need: 2e10 pairs."""

PAIRS_LIMIT = 20_000_000
"""Pairs that are returned at most: 320 MB."""

_BITS = 64
_LONG_RUN = 2048  # hashes with an equal band, from which on it pays to split the other bits into bands
_SHORT_RUN = 32
_NARROWEST = 3  # bits of a band
_TILE = 2**18  # pairs compared in one call of numpy: 2 MB, which stays in a core's cache
_CHUNK = 2**20


@dataclass(frozen=True)
class NearPairs:
    """`pairs`, int64 [P, 2], are row numbers, first < second, sorted, each once. `complete`: none was given up."""

    pairs: Ints
    complete: bool


def near_pairs(hashes: Hashes, radius: int, limit: int = PAIRS_LIMIT) -> NearPairs:
    """The pairs of hashes, uint64 [N], that differ in at most `radius` bits.

    Equal hashes are grouped first and take part as one. Where more than `limit` pairs of groups are near, those that
    differ in most bits are given up. Where there are more than `limit` pairs of rows, the largest blocks of them,
    between two groups or within one, are given up, and among equally large ones those that differ in most bits; of a
    group given up its first row is still paired with each of the others, if there is room.

    Raises UserError for a radius above 16, or above 5 with more than `BRUTE_LIMIT` hashes.
    """
    hashes = np.asarray(hashes, np.uint64)
    if not 0 <= radius <= MOST_RADIUS:
        raise wrong("near_radius", f"0 to {MOST_RADIUS} bits", radius)
    if radius > BANDED_RADIUS and len(hashes) > BRUTE_LIMIT:
        raise wrong("near_radius", f"at most {BANDED_RADIUS} with more than {BRUTE_LIMIT:,} images",
                    f"{radius} with {len(hashes):,}")  # fmt: skip
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)])
    groups = _Groups(order, starts, np.diff(np.r_[starts, len(ordered)]))
    found = _Found(radius, limit, len(starts))
    if radius > BANDED_RADIUS:
        _compare_all(ordered[starts], found)
    elif radius:
        _join_bands(ordered[starts], found)
    keys, distances = found.all()
    first, second = np.divmod(keys, max(1, len(starts)))
    pairs, whole = groups.expand(first, second, distances, limit)
    return NearPairs(pairs, whole and found.radius == radius)


class _Found:
    """Pairs of distinct hashes found so far, each as one number, first * hashes + second, with its distance.

    `radius` is what is still looked for: it falls when there are more pairs than `limit`.
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
        kept = [d <= self.radius for d in self._distances]
        self._keys = [np.concatenate([k[n] for k, n in zip(self._keys, kept, strict=True)])]
        self._distances = [np.concatenate([d[n] for d, n in zip(self._distances, kept, strict=True)])]

    def all(self) -> tuple[Ints, Distances]:
        """The keys and distances, in no order."""
        keys, distances = [*self._keys, np.empty(0, np.int64)], [*self._distances, np.empty(0, np.uint8)]
        return np.concatenate(keys), np.concatenate(distances)


def _join_bands(hashes: Hashes, found: _Found) -> None:
    """Compare within bands; `hashes` uint64 [U] are distinct."""
    for mask, unequal in _bands(~np.uint64(0), found.radius + 1):
        _join(hashes, np.arange(len(hashes)), mask, unequal, found)


def _bands(bits: np.uint64, count: int) -> Iterator[tuple[np.uint64, list[np.uint64]]]:
    """The set bits in `count` bands, as masks, each with the masks before it: where one of those is equal too, the
    pair has been found there."""
    places = [1 << k for k in range(_BITS) if int(bits) >> k & 1]
    masks = [np.uint64(sum(part)) for part in (places[k * len(places) // count : (k + 1) * len(places) // count]
                                               for k in range(count))]  # fmt: skip
    for number, mask in enumerate(masks):
        yield mask, masks[:number]


def _join(hashes: Hashes, rows: Ints, mask: np.uint64, unequal: list[np.uint64], found: _Found) -> None:
    """Compare the rows that are equal under `mask`, and under none of `unequal`."""
    if len(rows) < 2 or not found.radius:
        return
    rows = rows[np.argsort(hashes[rows] & mask)]
    values = hashes[rows]
    band = values & mask
    starts = np.flatnonzero(np.r_[True, band[1:] != band[:-1]])
    lengths = np.diff(np.r_[starts, len(rows)])
    count, rest = found.radius + 1, ~mask
    long = lengths > _LONG_RUN
    if long.any() and int(rest).bit_count() // count >= _NARROWEST:
        inside = rows[np.repeat(long, lengths)]
        for narrower, before in _bands(rest, count):
            _join(hashes, inside, mask | narrower, unequal + before, found)
        starts, lengths = starts[~long], lengths[~long]
    short = lengths <= _SHORT_RUN
    for first, second in _short_runs(starts[short], lengths[short]):
        _keep(values, rows, first, second, unequal, found)
    for start, length in zip(starts[~short].tolist(), lengths[~short].tolist(), strict=True):
        for first, second in _near_in(values[start : start + length], 0, length, found.radius):
            _keep(values, rows, first + start, second + start, unequal, found)


def _keep(values: Hashes, rows: Ints, first: Ints, second: Ints, unequal: list[np.uint64], found: _Found) -> None:
    differ = values[first] ^ values[second]
    distances = np.bitwise_count(differ)
    near = np.flatnonzero(distances <= found.radius)
    for mask in unequal:
        near = near[differ[near] & mask != 0]
    if len(near):
        found.add(rows[first[near]], rows[second[near]], distances[near])


def _short_runs(starts: Ints, lengths: Ints) -> Iterator[tuple[Ints, Ints]]:
    """The pairs of places within each run: those one apart, two apart and so on, in chunks."""
    places = np.repeat(starts, lengths) + np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ends = np.repeat(starts + lengths, lengths)
    for apart in range(1, _SHORT_RUN):
        inside = places + apart < ends
        places, ends = places[inside], ends[inside]
        for at in range(0, len(places), _CHUNK):
            first = places[at : at + _CHUNK]
            yield first, first + apart


def _near_in(hashes: Hashes, start: int, stop: int, radius: int) -> Iterator[tuple[Ints, Ints]]:
    """The pairs within the radius, of which the first is one of `hashes[start:stop]` and the second comes later."""
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


def _compare_all(hashes: Hashes, found: _Found) -> None:
    """Compare all with all, in as many threads as there are cores; `hashes` uint64 [U] are distinct."""
    stripe, rows = 1024, np.arange(len(hashes))

    def compare(start: int) -> None:
        for first, second in _near_in(hashes, start, min(start + stripe, len(hashes)), found.radius):
            _keep(hashes, rows, first, second, [], found)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(compare, range(0, len(hashes), stripe)))


@dataclass(frozen=True)
class _Groups:
    """Rows with equal hashes: `order[starts[g] : starts[g] + sizes[g]]` are those of group g, ascending."""

    order: Ints
    starts: Ints
    sizes: Ints

    def expand(self, first: Ints, second: Ints, distances: Distances, limit: int) -> tuple[Ints, bool]:
        """The pairs of rows between the groups `first` and `second`, and within each; whether that is all."""
        large = np.flatnonzero(self.sizes > 1)
        first, second = np.concatenate([first, large]), np.concatenate([second, large])
        distances = np.concatenate([distances, np.zeros(len(large), np.uint8)])
        within = first == second
        pairs = self.sizes[first] * (self.sizes[second] - within) // (1 + within)
        kept = np.ones(len(pairs), bool)
        if complete := int(pairs.sum()) <= limit:
            room = 0
        else:
            by_size = np.lexsort((distances, pairs))
            total = np.cumsum(pairs[by_size])
            kept[by_size[total > limit]] = False
            room = limit - int(pairs[kept].sum())
        stars = self._stars(first[within & ~kept], room)
        keys = np.concatenate([*self._products(first[kept], second[kept]), *stars, np.empty(0, np.int64)])
        keys.sort()
        found = np.empty((len(keys), 2), np.int64)
        np.divmod(keys, max(1, len(self.order)), out=(found[:, 0], found[:, 1]))
        return found, complete

    def _products(self, first: Ints, second: Ints) -> Iterator[Ints]:
        """The pairs of rows as keys, first * rows + second, in chunks whatever the sizes of the groups."""
        ends = np.cumsum(self.sizes[first] * self.sizes[second])
        for start in range(0, int(ends[-1]) if len(ends) else 0, _CHUNK):
            flat = np.arange(start, min(start + _CHUNK, int(ends[-1])))
            block = np.searchsorted(ends, flat, side="right")
            width = self.sizes[second[block]]
            down, across = np.divmod(flat - (ends[block] - self.sizes[first[block]] * width), width)
            one = self.order[self.starts[first[block]] + down]
            other = self.order[self.starts[second[block]] + across]
            once = (first[block] != second[block]) | (down < across)
            yield (np.minimum(one, other) * len(self.order) + np.maximum(one, other))[once]

    def _stars(self, groups: Ints, room: int) -> list[Ints]:
        """The first row of a group with each of the others, for as many groups as there is room, smallest first."""
        groups = groups[np.argsort(self.sizes[groups], kind="stable")]
        fitting = sum(total <= room for total in accumulate((self.sizes[groups] - 1).tolist()))
        rows = [self.order[self.starts[g] : self.starts[g] + self.sizes[g]] for g in groups[:fitting]]
        return [r[0] * len(self.order) + r[1:] for r in rows]
