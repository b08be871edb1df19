"""Another background behind the mask: where it is put, what it is made of, and which images have none."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import photos
import pytest
from copied import STEP, Image, by_copy, clean_of, make_images, resized, rows_of, without_ray  # noqa: F401 (a fixture)

from imagemill.components.imaging.decoder import Decoded, convert_color
from imagemill.components.imaging.geometry import Geometry, resize_image
from imagemill.components.resize import backgrounds
from imagemill.components.resize.backgrounds import (
    composite,
    decode_foreground,
    list_backgrounds,
    make_color_field,
)
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.resize.copies import CopyPolicy, decode_with_copies, flip_horizontally, plan_copies
from imagemill.components.storage.errors import UserError

FIELDS = CopyPolicy(4, "background", seed=3)
OPTIONS: dict[str, Any] = {"copy_policy": "background"}


pytestmark = pytest.mark.usefixtures("without_ray")


def half(pixels: Any) -> Any:
    """uint8 [H, W]: 255 in the left half."""
    mask = np.zeros(pixels.shape[:2], np.uint8)
    mask[:, : pixels.shape[1] // 2] = 255
    return mask


def masked(numbers: Any, **more: Any) -> list[Image]:
    return [Image(n, mask=photos.saved(half(Image(n).pixels)), **more) for n in numbers]


def folder_of(folder: Path, colors: dict[str, tuple[int, int, int]]) -> str:
    for name, color in colors.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photos.saved(np.full((30, 50, 3), color, np.uint8)))
    return str(folder)


def test_foreground_stays_and_background_is_replaced(tmp_path: Path) -> None:
    """At the image's own size nothing is resampled, so every pixel can be compared."""
    pixels = photos.made(1, 64, 64)
    row = {"image_id": "a", "image": {"bytes": photos.saved(pixels)}, "shuffle_index": STEP}
    images = list(decode_with_copies(row | {"mask": photos.saved(half(pixels))}, Geometry(64, "squash"), FIELDS))
    assert len(images) == 5 and images[0][1] == ""
    np.testing.assert_array_equal(images[0][0], pixels)
    for image, description in images[1:]:
        parsed = json.loads(description)
        assert set(parsed) == {"policy", "flip", "field"} and not parsed["flip"]
        np.testing.assert_array_equal(image[:, :32], pixels[:, :32])
        np.testing.assert_array_equal(image[:, 32:], make_color_field(parsed["field"], "rgb", 64, 64)[:, 32:])
    assert len({image.tobytes() for image, _ in images}) == 5
    flipped = list(decode_with_copies(row | {"mask": photos.saved(half(pixels))}, Geometry(64, "squash"),
                               dataclasses.replace(FIELDS, flip=True, per_image=12)))  # fmt: skip
    flips = [json.loads(description)["flip"] for _, description in flipped[1:]]
    assert 2 < sum(flips) < 10
    for (image, _), flip in zip(flipped[1:], flips, strict=True):
        np.testing.assert_array_equal((flip_horizontally(image) if flip else image)[:, :32], pixels[:, :32])


def test_background_is_composited_before_resampling() -> None:
    """The result is that of an image with the new background; the mask of a scaled decode is that of its blocks."""
    pixels = cv2.resize(photos.made(2, 80, 60), (643, 481), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:481, :643]
    disc = (np.hypot(x - 300, y - 200) < 150).astype(np.uint8) * 255
    for kind, geometry in (("PNG", Geometry(96)), ("JPEG", Geometry(48, "letterbox"))):
        data = photos.saved(pixels, kind, **({"quality": 98} if kind == "JPEG" else {}))
        row = {"image_id": "a", "image": {"bytes": data}, "shuffle_index": STEP, "mask": photos.saved(disc)}
        for image, description in list(decode_with_copies(row, geometry, FIELDS))[1:]:
            field = make_color_field(json.loads(description)["field"], "rgb", 481, 643)
            expected = resize_image(Decoded(np.where(disc[:, :, None] > 0, pixels, field), 643, 481, "PNG"), geometry)
            difference = np.abs(image.astype(int) - expected)
            assert difference.mean() < 1.5 and np.percentile(difference, 99) < 16, (kind, difference.mean())


def test_the_share_of_a_scaled_decode_is_the_mean_of_its_blocks() -> None:
    mask = (np.random.default_rng(0).random((21, 30)) < 0.5).astype(np.uint8) * 255
    full = Decoded(np.zeros((21, 30, 3), np.uint8), 30, 21, "JPEG")
    np.testing.assert_array_equal(decode_foreground(photos.saved(mask), full), mask)
    foreground = decode_foreground(
        photos.saved(mask), Decoded(np.zeros((6, 8, 3), np.uint8), 30, 21, "JPEG", divisor=4)
    )
    assert foreground is not None and foreground.shape == (6, 8)
    for row, column in ((0, 0), (3, 5), (4, 6)):
        block = mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert abs(int(foreground[row, column]) - block.mean()) <= 1
    assert decode_foreground(photos.saved(mask * 0), full) is None


def test_composite_blends_by_the_share() -> None:
    random = np.random.default_rng(1)
    foreground, background = (random.integers(0, 256, (700, 500, 3), np.uint8) for _ in range(2))
    share = random.integers(0, 256, (700, 500), np.uint8)
    exact = (foreground * (share[:, :, None] / 255) + background * (1 - share[:, :, None] / 255)).round()
    assert np.abs(composite(foreground, share, background) - exact).max() <= 1
    np.testing.assert_array_equal(composite(foreground, share * 0 + 255, background), foreground)
    np.testing.assert_array_equal(composite(foreground, share * 0, background), background)


def test_images_without_a_mask_have_no_copies_and_are_counted(tmp_path: Path) -> None:
    empty = photos.saved(np.zeros(Image(9).pixels.shape[:2], np.uint8))
    images = [*masked(range(1, 6)), Image(7), Image(8), Image(9, mask=empty), *make_images(0)]
    clean = clean_of(tmp_path, images, masks=True)
    tensors = resized(clean, copies=2, **OPTIONS)
    rows = rows_of(tensors)
    assert len(rows) == 8 + 10 and {r["image_id"] for r in rows if r["copy"]} == {image.name for image in images[:5]}
    expected = {"policy": "background", "per_image": 2, "rows": 10, "images_without_mask": 3}
    assert tensors.manifest.extra.copies.to_dict() == expected
    totals = tensors.manifest.totals
    assert totals.rows == 8 + 10 + 5 and totals.by_split == {"train": 18, "val": 3, "test": 2}
    assert totals.by_class == {"a": sum(r["label_id"] == 0 for r in rows_of(tensors, None)),
                               "b": sum(r["label_id"] == 1 for r in rows_of(tensors, None))}  # fmt: skip
    plain = {r["image_id"]: r["image"] for r in rows_of(resized(clean))}
    for row in rows:
        if not row["copy"]:
            np.testing.assert_array_equal(row["image"], plain[row["image_id"]])


def test_missing_masks_are_a_user_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--keep-masks"):
        resized(clean_of(tmp_path, make_images(3)), copies=1, **OPTIONS)


def test_backgrounds_are_taken_from_a_folder(tmp_path: Path) -> None:
    colors = {"a.png": (250, 10, 10), "b/c.PNG": (10, 250, 10), "d.png": (10, 10, 250)}
    folder = folder_of(tmp_path / "bg", colors)
    (tmp_path / "bg" / "note.txt").write_text("no picture")
    (tmp_path / "bg" / ".hidden.png").write_bytes(b"no picture")
    assert [picture.name for picture in list_backgrounds(folder)] == ["a.png", "b/c.PNG", "d.png"]
    clean = clean_of(tmp_path, masked(range(1, 8)), masks=True)
    tensors = resized(clean, copies=4, backgrounds=folder, resize_mode="squash", **OPTIONS)
    used_names = set()
    for (_, copy), (pixels, description) in by_copy(tensors).items():
        if copy:
            name = json.loads(description)["background"]
            used_names.add(name)
            assert (pixels[:, 13:] == colors[name]).all()
    assert used_names == set(colors)
    gray = resized(clean_of(tmp_path / "gray", masked([1]), "gray", masks=True), copies=3, backgrounds=folder,
                   resize_mode="squash", **OPTIONS)  # fmt: skip
    for (_, copy), (pixels, description) in by_copy(gray).items():
        if copy:
            color = np.array([[colors[json.loads(description)["background"]]]], np.uint8)
            assert pixels.shape == (24, 24, 1) and (pixels[:, 13:] == convert_color(color, "gray")).all()


def test_fingerprint_depends_on_names_and_content_of_backgrounds(tmp_path: Path) -> None:
    clean = clean_of(tmp_path / "w", masked([1]), masks=True)

    def counted(folder: str) -> Any:
        config = ResizeConfig(copies=1, backgrounds=folder, **OPTIONS)
        return plan_copies(config, clean).fingerprint_fields(config)["backgrounds"]

    first = folder_of(tmp_path / "bg", {"a.png": (1, 2, 3), "b.png": (4, 5, 6)})
    moved = str(shutil.copytree(first, tmp_path / "moved"))
    before = counted(first)
    os.utime(Path(first) / "a.png", (1, 1))
    assert before == counted(first) == counted(moved) == counted(moved + "/")
    (Path(moved) / "b.png").rename(Path(moved) / "c.png")
    assert counted(moved) != before
    folder_of(tmp_path / "bg", {"a.png": (1, 2, 4)})
    assert counted(first) != before
    config = ResizeConfig(copies=1, **OPTIONS)
    assert plan_copies(config, clean).fingerprint_fields(config) == {"copies": 1, "copy_policy": "background"}


def test_invalid_backgrounds_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = clean_of(tmp_path / "w", masked([1, 2]), masks=True)
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "missing"):
        with pytest.raises(UserError, match=r"^backgrounds: expected a folder or prefix that holds pictures"):
            resized(clean, copies=1, backgrounds=str(tmp_path / folder), **OPTIONS)
    (tmp_path / "empty" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"backgrounds: expected .*a\.jpg to be a picture, found not_an_image"):
        resized(clean, copies=1, backgrounds=str(tmp_path / "empty"), **OPTIONS)
    folder = folder_of(tmp_path / "bg", {"a.png": (1, 2, 3)})
    old = list_backgrounds(folder)
    folder_of(tmp_path / "bg", {"a.png": (9, 9, 9)})
    with pytest.raises(UserError, match=r"a\.png: expected the picture that was there when resize began"):
        backgrounds.read_picture(folder, old[0], "rgb", 8, 8)
    (tmp_path / "bg" / "a.png").unlink()
    with pytest.raises(UserError, match="or none"):
        backgrounds.read_picture(folder, old[0], "rgb", 8, 8)
