"""Search of near hashes compared with brute force, and its limits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.clean import hash_pairs
from imagemill.components.clean.hash_pairs import BRUTE_LIMIT, find_hash_pairs
from imagemill.components.storage.errors import UserError

Hashes = npt.NDArray[np.uint64]


def find_by_brute_force(hashes: Hashes, radius: int) -> npt.NDArray[np.int64]:
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None])
    return np.argwhere(np.triu(distances <= radius, 1))


def make_clustered_hashes(number: int, seed: int, max_bits: int = 12) -> Hashes:
    """Random hashes; a third are others with up to `max_bits` bits turned, some are equal."""
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**64, number, dtype=np.uint64)
    for row in random.choice(number, number // 3, replace=False):
        bits = random.choice(64, random.integers(0, max_bits + 1), replace=False)
        hashes[row] = hashes[random.integers(number)] ^ np.uint64(sum(1 << int(b) for b in bits))
    return hashes


def hamming_distances(hashes: Hashes, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    return np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 4, 5, 6, 10, 16])
def test_pairs_equal_those_of_brute_force(radius: int) -> None:
    hashes = make_clustered_hashes(1500, seed=radius, max_bits=18)
    result = find_hash_pairs(hashes, radius)
    assert result.complete and result.pairs.dtype == np.int64
    assert len(result.pairs) > 5
    np.testing.assert_array_equal(result.pairs, find_by_brute_force(hashes, radius))


@pytest.mark.parametrize("radius", [1, 3, 5])
def test_long_runs_of_equal_bands_are_split(radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that agree in most bits have an equal band nearly all of them, so every way through is taken."""
    random = np.random.default_rng(radius)
    monkeypatch.setattr(hash_pairs, "_LONG_RUN", 60)
    monkeypatch.setattr(hash_pairs, "_SHORT_RUN", 8)
    monkeypatch.setattr(hash_pairs, "_CHUNK", 50)
    monkeypatch.setattr(hash_pairs, "_TILE", 64 * 16)
    for free in (9, 14, 30):
        places = random.choice(64, free, replace=False).astype(np.uint64)
        bits = random.integers(0, 2, (400, free), dtype=np.uint64)
        hashes = np.bitwise_or.reduce(bits << places, axis=1)
        np.testing.assert_array_equal(find_hash_pairs(hashes, radius).pairs, find_by_brute_force(hashes, radius))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 2**64 - 1, 0x0123456789ABCDEF]), st.sets(st.integers(0, 63), max_size=8)),
        max_size=40,
    ),
    st.sampled_from([0, 1, 3, 5, 10]),
)
def test_any_hashes_give_the_pairs_of_brute_force(bases_and_bits: list[tuple[int, set[int]]], radius: int) -> None:
    hashes = np.array([base ^ sum(1 << b for b in bits) for base, bits in bases_and_bits], np.uint64)
    result = find_hash_pairs(hashes, radius)
    assert result.complete
    np.testing.assert_array_equal(result.pairs, find_by_brute_force(hashes, radius).reshape(-1, 2))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("radius", [0, 3, 10])
def test_fewer_than_two_hashes_have_no_pairs(number: int, radius: int) -> None:
    result = find_hash_pairs(np.arange(number, dtype=np.uint64), radius)
    assert result.complete and result.pairs.shape == (0, 2) and result.pairs.dtype == np.int64


@pytest.mark.parametrize("radius", [0, 3, 10])
def test_equal_hashes_are_all_paired(radius: int) -> None:
    hashes = np.array([5, 0xF0F0, 5, 7, 5, 0xF0F0], np.uint64)
    expected = [[0, 2], [0, 4], [1, 5], [2, 4]]
    if radius == 3:
        expected = sorted([*expected, [0, 3], [2, 3], [3, 4]])
    if radius == 10:  # 5 and 0xF0F0 differ in 10 bits, 7 and 0xF0F0 in 11
        expected = [[a, b] for a in range(6) for b in range(a + 1, 6) if (a, b) not in ((1, 3), (3, 5))]
    assert find_hash_pairs(hashes, radius).pairs.tolist() == expected


def test_very_many_equal_hashes_keep_one_partner_each() -> None:
    """100,000 equal hashes are five billion pairs: each row keeps one partner, and the other pairs are all there."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 120_000, dtype=np.uint64)
    hashes[:100_000] = 0
    hashes[110_000] = hashes[110_001] ^ np.uint64(0b111)
    hashes[110_002] = hashes[110_003]
    result = find_hash_pairs(hashes, 3)
    assert not result.complete
    expected = [[0, row] for row in range(1, 100_000)] + [[110_000, 110_001], [110_002, 110_003]]
    np.testing.assert_array_equal(result.pairs, expected)


def test_limit_drops_the_largest_groups() -> None:
    hashes = np.repeat(np.array([1, 2**20, 2**40, 2**60], np.uint64), [50, 20, 4, 2])
    assert find_hash_pairs(hashes, 0, limit=1225 + 190 + 6 + 1).complete
    result = find_hash_pairs(hashes, 0, limit=300)  # 50 * 49 / 2 pairs don't fit, so its first row with 49 others does
    assert not result.complete and len(result.pairs) == 49 + 190 + 6 + 1
    assert result.pairs[:49].tolist() == [[0, row] for row in range(1, 50)]
    tight = find_hash_pairs(hashes, 0, limit=200)  # 3 left: no room for the 49 either
    assert not tight.complete and len(tight.pairs) == 197 and tight.pairs.min() == 50


def test_limit_drops_the_most_distant_pairs_first() -> None:
    hashes = np.random.default_rng(1).permutation(np.unique(make_clustered_hashes(900, seed=2)))
    for radius in (5, 10):
        unlimited = find_hash_pairs(hashes, radius)
        among = hamming_distances(hashes, unlimited.pairs)
        limit = int((among <= radius - 2).sum())
        result = find_hash_pairs(hashes, radius, limit=limit)
        assert not result.complete and len(result.pairs) == limit
        np.testing.assert_array_equal(result.pairs, unlimited.pairs[among <= radius - 2])


def test_limit_drops_the_most_distant_of_equally_large_blocks() -> None:
    hashes = np.array([0, 0b11, 0b1, 2**40 - 8, 2**40 - 8], np.uint64)
    result = find_hash_pairs(hashes, 3, limit=3)
    assert not result.complete and result.pairs.tolist() == [[0, 2], [1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("number", "radius", "message"),
    [
        (3, 17, "near_radius: expected 0 to 16 bits, found 17"),
        (3, -1, "near_radius: expected 0 to 16 bits, found -1"),
        (BRUTE_LIMIT + 1, 6, "near_radius: expected at most 5 with more than 200,000 images, found '6 with 200,001'"),
    ],
)
def test_invalid_radius_is_refused(number: int, radius: int, message: str) -> None:
    with pytest.raises(UserError) as error:
        find_hash_pairs(np.zeros(number, np.uint64), radius)
    assert str(error.value) == message
