"""Near pairs of test and training images: the error rate of the list."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from imagemill.components.promote.near_pairs import FALSE_PAIRS, NEIGHBORS, Neighbors

Features = npt.NDArray[np.float32]


def draw(rng: np.random.Generator, rows: int) -> Features:
    """Features of an intrinsic dimension of 12 in 40, in classes of different densities."""
    spread = rng.choice([0.5, 1, 2], (rows, 1))
    plane = np.random.default_rng(0).normal(size=(12, 40))
    return np.asarray(10 + (spread * rng.normal(size=(rows, 12))) @ plane, np.float32)


def test_the_nearest_neighbors_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(1)
    images, others = draw(rng, 40), draw(rng, 300)
    lengths = [np.linalg.norm(part, axis=1, keepdims=True) for part in (images, others)]
    cosines = (images / lengths[0]) @ (others / lengths[1]).T
    neighbors = Neighbors.search(images, others)
    assert np.array_equal(neighbors.rows, np.argsort(-cosines, 1)[:, :NEIGHBORS])
    assert np.allclose(neighbors.cosines, -np.sort(-cosines, 1)[:, :NEIGHBORS], atol=1e-5)


def test_by_chance_hardly_any_pair_is_listed_and_copies_are() -> None:
    """In 60 datasets of 50 test images 0.05 pairs by chance are expected in each, so 3 in all: more than 11 in one of
    7,000 correct programs, if the pairs follow the model exactly. Here densities differ, as those of images do."""
    rng = np.random.default_rng(2)
    listed = 0
    for _ in range(60):
        images, others = draw(rng, 50), draw(rng, 400)
        listed += len(Neighbors.search(images, others).find_near_copies())
        copies = images[:3] + 0.02 * rng.normal(size=(3, 40)).astype(np.float32)
        neighbors = Neighbors.search(images, np.vstack([copies, others]))
        assert {0, 1, 2} <= set(neighbors.find_near_copies().tolist()) and neighbors.rows[:3, 0].tolist() == [0, 1, 2]
    assert FALSE_PAIRS == 0.05 and listed <= 11


def test_bursts_are_listed_and_few_images_are_not() -> None:
    rng = np.random.default_rng(3)
    images, others = draw(rng, 60), draw(rng, 200)
    burst = images[:1] + 0.02 * rng.normal(size=(NEIGHBORS - 2, 40)).astype(np.float32)
    assert Neighbors.search(images, np.vstack([others, burst])).find_near_copies()[0] == 0
    assert len(Neighbors.search(images[:20], images).find_near_copies()) == 0
    assert len(Neighbors.search(images, images[: NEIGHBORS - 1]).find_near_copies()) == 0
    assert len(Neighbors.search(images, np.vstack([others, images])).find_near_copies()) == 60, (
        "all of them have a copy"
    )
