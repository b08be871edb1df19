"""Near pairs of test and training images: the error rate of the list, and the report's section."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from chain import clean_photos, evaluated, one_core, resized, trained
from html_page import Page
from reported import FIRST, raw_dataset
from safetensors.torch import save_file

from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.metrics.near_pairs import FALSE_PAIRS, NEIGHBORS, Neighbors
from imagemill.components.models.artifact import ModelSpec, build_network
from imagemill.components.promote import near_pairs_section, report
from imagemill.components.promote.near_pairs_section import describe_near_pairs

Features = npt.NDArray[np.float32]


def draw(rng: np.random.Generator, rows: int) -> Features:
    """Features of an intrinsic dimension of 12 in 40, in classes of different densities."""
    spread = rng.choice([0.5, 1, 2], (rows, 1))
    plane = np.random.default_rng(0).normal(size=(12, 40))
    return np.asarray(10 + (spread * rng.normal(size=(rows, 12))) @ plane, np.float32)


def test_the_nearest_neighbors_are_those_of_all_pairs_whatever_the_batches() -> None:
    rng = np.random.default_rng(1)
    images, others = draw(rng, 40), draw(rng, 300)
    lengths = [np.linalg.norm(part, axis=1, keepdims=True) for part in (images, others)]
    cosines = (images / lengths[0]) @ (others / lengths[1]).T
    for sizes in ([300], [3, 100, 197], [1] * 300):
        neighbors = Neighbors.search(images, np.split(others, np.cumsum(sizes)[:-1]))
        assert np.array_equal(neighbors.rows, np.argsort(-cosines, 1)[:, :NEIGHBORS])
        assert np.allclose(neighbors.cosines, -np.sort(-cosines, 1)[:, :NEIGHBORS], atol=1e-5)


def test_by_chance_hardly_any_pair_is_listed_and_copies_are() -> None:
    """In 60 datasets of 50 test images 0.05 pairs by chance are expected in each, so 3 in all: more than 11 in one of
    7,000 correct programs, if the pairs follow the model exactly. Here densities differ, as those of images do."""
    rng = np.random.default_rng(2)
    listed = 0
    for _ in range(60):
        images, others = draw(rng, 50), draw(rng, 400)
        listed += len(Neighbors.search(images, [others]).find_near_copies())
        copies = images[:3] + 0.02 * rng.normal(size=(3, 40)).astype(np.float32)
        neighbors = Neighbors.search(images, [copies, others])
        assert {0, 1, 2} <= set(neighbors.find_near_copies().tolist()) and neighbors.rows[:3, 0].tolist() == [0, 1, 2]
    assert FALSE_PAIRS == 0.05 and listed <= 11


def test_bursts_are_listed_and_few_images_are_not() -> None:
    rng = np.random.default_rng(3)
    images, others = draw(rng, 60), draw(rng, 200)
    burst = images[:1] + 0.02 * rng.normal(size=(NEIGHBORS - 2, 40)).astype(np.float32)
    assert Neighbors.search(images, [others, burst]).find_near_copies()[0] == 0
    assert len(Neighbors.search(images[:20], [images]).find_near_copies()) == 0
    assert len(Neighbors.search(images, [images[: NEIGHBORS - 1]]).find_near_copies()) == 0
    assert len(Neighbors.search(images, [others, images]).find_near_copies()) == 60, "all of them have a copy"


def test_the_report_shows_pairs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(str(tmp_path_factory.mktemp("pairs")))
    clean = clean_photos(workspace, raw=raw_dataset(workspace, {"0.jpg": None}))

    weights = workspace.at("weights.safetensors")
    save_file(build_network(ModelSpec("shufflenet_v2_x0_5", ("a", "b"), ImageSpec((32, 32, 3)))).state_dict(), weights)
    with one_core():
        tensors = resized(workspace, clean, image_size=32)
        model = trained(workspace, tensors, weights=weights)
        evaluation, _ = evaluated(workspace, model, clean)
    facts = describe_near_pairs(model, tensors, clean)
    assert facts is not None and facts["number"] == 0 and facts["pairs"] == [], "9 test images are too few"

    def find(neighbors: Neighbors) -> npt.NDArray[np.int64]:
        return np.array([4, 2])

    monkeypatch.setattr(Neighbors, "find_near_copies", find)
    facts = report.gather_facts(workspace, "r", evaluation, FIRST, None)
    pairs, text = facts["near_pairs"]["pairs"], Page(report.render_page(facts)).text
    assert [pair["test"].image_id[:4] for pair in pairs] == ["test"] * 2 and pairs[0]["test"].src.startswith("data:")
    assert all(pair["train"].image_id.startswith("train") and -1 <= pair["cosine"] <= 1 for pair in pairs)
    assert "Test images that training has nearly seen" in text and "2 test images of 9 have a training image" in text
    assert describe_near_pairs(read_dataset(model.uri), tensors, tensors) is None
    monkeypatch.setattr(near_pairs_section, "find_features", lambda _: None)
    facts = report.gather_facts(workspace, "r", evaluation, FIRST, None)
    assert facts["near_pairs"] is None and "nearly seen" not in Page(report.render_page(facts)).text
