"""Copies of training images: which rows, in which order, with which pixels, and what depends on nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import photos
import pytest
from copied import STEP, Image, by_copy, clean_of, make_images, resized, rows_of, without_ray  # noqa: F401 (a fixture)

from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.evaluate.inference import read_test_batches
from imagemill.components.imaging.decoder import convert_color
from imagemill.components.imaging.geometry import Geometry, compute_edges, decode_and_resize
from imagemill.components.imaging.rand_augment import Operation, apply_operations
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.resize.copies import (
    CopyPlan,
    CopyPolicy,
    decode_with_copies,
    flip_horizontally,
)
from imagemill.components.train.data.loader import iter_batches

RAND = CopyPolicy(3, "randaugment", seed=7, flip=True)
SMALL = Geometry(32)


pytestmark = pytest.mark.usefixtures("without_ray")


def make_row(number: int = 1, **options: Any) -> dict[str, Any]:
    image = Image(number)
    return {"image_id": image.name, "image": {"bytes": photos.saved(image.pixels)}, "shuffle_index": STEP, **options}


def make_copies(policy: CopyPolicy, geometry: Geometry = SMALL, **options: Any) -> list[tuple[Any, str]]:
    return list(decode_with_copies(make_row(**options), geometry, policy))


def test_without_copies_nothing_is_added(tmp_path: Path) -> None:
    options = {"copy_ops": 3, "copy_flip": True, "copy_pipeline": "strong", "copy_seed": 4}
    tensors = resized(clean_of(tmp_path, make_images(6)), **options)
    assert "augmentation" not in rows_of(tensors)[0]
    assert tensors.fingerprint == resized(read_dataset(f"{tmp_path}/clean/01", "clean")).fingerprint
    assert tensors.manifest.extra.copies is None and tensors.manifest.totals.rows == 11


def test_training_images_alone_have_copies(tmp_path: Path) -> None:
    clean = clean_of(tmp_path, make_images(9))
    plain, tensors = resized(clean), resized(clean, copies=3, copy_flip=True)
    assert Counter((r["image_id"], r["copy"]) for r in rows_of(tensors)) == Counter(
        (image.name, copy) for image in make_images(9) if image.split == "train" for copy in range(4)
    )
    for split, number in (("val", 3), ("test", 2)):
        assert [(r["copy"], r["augmentation"]) for r in rows_of(tensors, split)] == [(0, "")] * number
    originals = {r["image_id"]: r for r in rows_of(tensors, None) if not r["copy"]}
    for original in rows_of(plain, None):
        np.testing.assert_array_equal(originals[original["image_id"]]["image"], original["image"])
    labels = {r["image_id"]: r["label_id"] for r in rows_of(plain, None)}
    assert all(r["label_id"] == labels[r["image_id"]] for r in rows_of(tensors, None))
    totals = tensors.manifest.totals
    assert (totals.rows, totals.by_split) == (41, {"train": 36, "val": 3, "test": 2})
    assert totals.by_class == Counter("ab"[r["label_id"]] for r in rows_of(tensors, None))
    assert totals.bytes == 41 * 24 * 24 * 3
    assert tensors.manifest.extra.copies.to_dict() == {"policy": "randaugment", "per_image": 3, "rows": 27}
    assert len(clean.manifest.classes) == 2 and clean.manifest.totals.rows == 14


def test_pixels_depend_on_the_image_and_the_policy_alone(tmp_path: Path) -> None:
    """Among other images, with fewer copies: the same copies."""
    expected = by_copy(resized(clean_of(tmp_path / "a", make_images(12)), copies=3, copy_flip=True))
    fewer = by_copy(resized(clean_of(tmp_path / "b", make_images(12)[::3]), copies=2, copy_flip=True))
    assert len(fewer) == 12 and len(expected) == 48
    for key, (pixels, description) in fewer.items():
        np.testing.assert_array_equal(pixels, expected[key][0])
        assert description == expected[key][1]
    assert {description for (_, copy), (_, description) in expected.items() if copy == 0} == {""}
    assert len({description for (_, copy), (_, description) in expected.items() if copy}) > 30


def test_copies_are_the_same_by_any_number_of_threads() -> None:
    def make(number: int) -> list[tuple[bytes, str]]:
        return [(pixels.tobytes(), description) for pixels, description in make_copies(RAND, number=number)]

    expected = [make(number) for number in range(24)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(make, range(24))) == expected


def test_recorded_operations_reproduce_the_pixels_of_a_copy() -> None:
    flips = []
    for number in range(20):
        images = make_copies(RAND, number=number)
        for pixels, description in images[1:]:
            parsed = json.loads(description)
            assert set(parsed) == {"policy", "flip", "operations"} and len(parsed["operations"]) == 2
            start = flip_horizontally(images[0][0]) if parsed["flip"] else images[0][0]
            np.testing.assert_array_equal(
                pixels, apply_operations(start, [Operation(**operation) for operation in parsed["operations"]])
            )
            flips.append(parsed["flip"])
    assert 15 < sum(flips) < 45
    plain = make_copies(dataclasses.replace(RAND, flip=False))
    assert not any(json.loads(description)["flip"] for _, description in plain[1:])
    flipped = make_copies(RAND)
    for (_, first), (_, second) in zip(plain[1:], flipped[1:], strict=True):
        assert json.loads(first)["operations"] == json.loads(second)["operations"]


@pytest.mark.parametrize("mode", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("stored", [0, 36])
def test_copy_without_operations_equals_the_original(mode: str, stored: int) -> None:
    """Without operations a copy equals the original in all color spaces and edge modes."""
    if stored and mode != "crop":
        return
    identity = dataclasses.replace(RAND, ops=0, flip=False)
    for color in ("rgb", "gray", "red", "lab", "ycbcr"):
        for edges in ((), ("sobel", "canny")):
            for options in ({}, {"interpolation": "lanczos", "quality": "fast"}):
                geometry = Geometry(32, mode, color, edges, 30, 60, stored=stored, **options)
                images = make_copies(identity, geometry)
                np.testing.assert_array_equal(images[0][0], decode_and_resize(make_row()["image"]["bytes"], geometry))
                assert images[0][0].shape == geometry.shape
                for pixels, _ in images[1:]:
                    np.testing.assert_array_equal(pixels, images[0][0])


def test_edges_and_color_spaces_are_computed_from_the_augmented_image() -> None:
    rgb = make_copies(RAND)
    with_edges = make_copies(RAND, Geometry(32, edges=("sobel", "canny"), canny_low=30, canny_high=60))
    for (plain, description), (combined, edge_description) in zip(rgb, with_edges, strict=True):
        assert description == edge_description
        np.testing.assert_array_equal(combined[:, :, :3], plain)
        expected = compute_edges(convert_color(np.ascontiguousarray(plain), "gray"), ("sobel", "canny"), 30, 60)
        np.testing.assert_array_equal(combined[:, :, 3:], expected)
    for (plain, _), (lab, _) in zip(rgb, make_copies(RAND, Geometry(32, color="lab")), strict=True):
        np.testing.assert_array_equal(lab, convert_color(plain, "lab"))


def test_a_letterbox_is_padded_after_the_augmentation() -> None:
    images = make_copies(dataclasses.replace(RAND, per_image=12), Geometry(64, "letterbox"))
    height = round(64 * Image(1).pixels.shape[0] / Image(1).pixels.shape[1])
    top = (64 - height) // 2
    assert top > 0 and all(not p[:top].any() and not p[top + height :].any() for p, _ in images)
    assert sum(p[top : top + height].mean() > 40 for p, _ in images) == 13


def test_jpeg_multi_label_and_gray(tmp_path: Path) -> None:
    tensors = resized(clean_of(tmp_path, make_images(5), "gray", multi=True), copies=2, encoding="jpeg")
    rows = rows_of(tensors)
    assert len(rows) == 15 and all(r["image"][:2] == b"\xff\xd8" for r in rows)
    assert tensors.manifest.totals.bytes == sum(len(r["image"]) for r in rows_of(tensors, None))
    counts = Counter("ab"[label_id] for r in rows_of(tensors, None) for label_id in r["label_ids"])
    assert tensors.manifest.totals.by_class == counts and counts["a"] == 20


def test_mean_and_spread_are_the_originals(tmp_path: Path) -> None:
    clean = clean_of(tmp_path, make_images(6))
    options: dict[str, Any] = {"normalization": "dataset"}
    plain, tensors = resized(clean, **options), resized(clean, copies=2, copy_magnitude=30, **options)
    assert tensors.manifest.image == plain.manifest.image


def test_evaluate_reads_originals_and_train_reads_copies_too(tmp_path: Path) -> None:
    clean = clean_of(tmp_path, make_images(6))
    plain, tensors = resized(clean), resized(clean, copies=2)
    geometry = Geometry.of(tensors.manifest.image)
    for expected, batch in zip(*(read_test_batches(t, clean, geometry, 4) for t in (plain, tensors)), strict=True):
        assert expected.ids == batch.ids
        np.testing.assert_array_equal(expected.images, batch.images)
    loaded = [pixels.tobytes() for batch in iter_batches(tensors, "train", 4, epoch=0) for pixels in batch.images]
    assert sorted(loaded) == sorted(r["image"].tobytes() for r in rows_of(tensors)) and len(loaded) == 18


def test_fingerprint_depends_on_the_copy_options() -> None:
    def counting(**options: Any) -> dict[str, Any]:
        config = ResizeConfig(**options)
        policy = CopyPolicy(config.copies, config.copy_policy) if config.copies else None
        return CopyPlan(policy).fingerprint_fields(config)

    assert counting() == counting(copy_ops=5, copy_policy="background", backgrounds="x", copy_seed=3) == {}
    assert counting(copies=2) == {"copies": 2} == counting(copies=2, copy_pipeline="ocr", backgrounds="x")
    full = {"copies": 2, "copy_ops": 5, "copy_magnitude": 3, "copy_flip": True, "copy_seed": 9, "image_size": 32}
    assert counting(**full) == full
    assert counting(copies=1, copy_policy="background", copy_ops=5) == {"copies": 1, "copy_policy": "background"}
