"""Masks that clean keeps: in the geometry of the stored picture, and off."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import photos
import pytest
from PIL import Image

from imagemill.components.clean.config import CleanConfig
from imagemill.components.clean.part import clean_batch
from imagemill.components.clean.schema import make_clean_schema
from imagemill.components.imaging.decoder import ImageRejected, decode
from imagemill.components.imaging.standardize import standardize

WIDTH, HEIGHT = 200, 152
BOX = [{"name": "pet", "xmin": 31.0, "ymin": 21.0, "xmax": 130.0, "ymax": 100.0}]


def labels() -> Any:
    """uint8 [H, W], a trimap: 1 in an off-center ellipse, 3 on a ring around it, 2 elsewhere."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    far = np.hypot((x - 70) / 40, (y - 60) / 30)
    return np.where(far < 1, 1, np.where(far < 1.2, 3, 2)).astype(np.uint8)


def make_config(**options: Any) -> CleanConfig:
    config = CleanConfig(keep_masks=True, **options)
    config.check()
    return config


def read_mask(data: bytes | None) -> Any:
    """The mask as Pillow reads it: uint8 [H, W] of 0 and 255 only."""
    assert data is not None
    opened = Image.open(io.BytesIO(data))
    assert (opened.format, opened.mode) == ("PNG", "L")
    values = np.asarray(opened)
    assert set(np.unique(values)) <= {0, 255}
    return values


def as_stored(orientation: int, pixels: Any) -> bytes:
    """A PNG that EXIF turns into these pixels."""
    for _ in range({1: 0, 6: 1, 3: 2, 8: 3}[orientation]):
        pixels = np.rot90(pixels)
    return photos.saved(np.ascontiguousarray(pixels), exif=photos.exif(orientation))


def make_row(number: int, mask: bytes | None, data: bytes = b"", split: str | None = None) -> dict[str, Any]:
    data = data or photos.saved(photos.made(number, 60, 40))
    values = {"image_id": f"{number}.png", "image": data, "sha256": f"{number:064x}", "split": split, "source_row": 0}
    return values | {"group": None, "boxes": None, "mask": mask}


@pytest.mark.parametrize("options", [{}, {"color": "gray"}, {"background": "fill"}, {"background": "blur"}])
def test_the_foreground_is_255_and_the_rest_0(options: dict[str, Any]) -> None:
    standardized = standardize(photos.saved(photos.made()), make_config(**options), None, photos.saved(labels()))
    np.testing.assert_array_equal(read_mask(standardized.mask) == 255, labels() != 2)


def test_a_mask_is_cut_out_with_its_picture() -> None:
    pixels = photos.made()
    pixels[:, :12] = pixels[:10] = 7
    source, mask = photos.saved(pixels), photos.saved(labels())
    roi = standardize(source, make_config(roi="largest"), BOX, mask)
    np.testing.assert_array_equal(read_mask(roi.mask) == 255, labels()[20:100, 30:130] != 2)
    trim = standardize(source, make_config(trim="on"), None, mask)
    assert trim.pixels.shape == (HEIGHT - 10, WIDTH - 12, 3)
    np.testing.assert_array_equal(read_mask(trim.mask) == 255, labels()[10:, 12:] != 2)
    pixels[:40] = 7  # a border within the box, too
    both = standardize(photos.saved(pixels), make_config(roi="largest", trim="on"), BOX, mask)
    assert both.pixels.shape == (60, 100, 3)
    np.testing.assert_array_equal(both.pixels, pixels[40:100, 30:130])
    np.testing.assert_array_equal(read_mask(both.mask) == 255, labels()[40:100, 30:130] != 2)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_mask_has_the_orientation_of_its_image(orientation: int) -> None:
    """Given upright, and turned by a quarter as the file is: the same mask, and the bytes of the file stay."""
    source = as_stored(orientation, photos.made())
    turns = {1: 0, 3: 0, 6: 1, 8: 3}[orientation]  # a half turn can't be told from none
    for mask in (labels(), np.ascontiguousarray(np.rot90(labels(), turns))):
        standardized = standardize(source, make_config(), None, photos.saved(mask))
        assert standardized.data is source and decode(standardized.data).pixels.shape[:2] == (HEIGHT, WIDTH)
        np.testing.assert_array_equal(read_mask(standardized.mask) == 255, labels() != 2)


def test_the_trimap_of_a_known_photograph_is_kept() -> None:
    standardized = standardize(photos.pet("Abyssinian_101"), make_config(), None, photos.trimap("Abyssinian_101"))
    mask = read_mask(standardized.mask)
    assert mask.shape == standardized.pixels.shape[:2] and (mask == 0).sum() == 99_672


def test_no_mask_is_null_and_a_broken_one_rejects() -> None:
    source = photos.saved(photos.made())
    assert standardize(source, make_config()).mask is None
    assert standardize(source, CleanConfig(), None, photos.saved(labels())).mask is None
    assert standardize(source, CleanConfig(background="fill"), None, photos.saved(labels())).mask is None
    with pytest.raises(ImageRejected, match="bad_mask"):
        standardize(source, make_config(), None, b"no PNG")
    assert standardize(source, CleanConfig(), None, b"no PNG").data is source


def test_mask_column_exists_only_with_keep_masks() -> None:
    mask = photos.saved(np.eye(40, 60, dtype=np.uint8))
    with_mask, without = clean_batch([make_row(1, mask), make_row(1, None)], make_config())
    assert with_mask["mask"] is not None and without["mask"] is None
    [plain] = clean_batch([make_row(1, mask)], CleanConfig())
    assert "mask" not in plain and plain == {name: value for name, value in with_mask.items() if name != "mask"}
    assert make_clean_schema(masks=True).names == [*make_clean_schema().names, "mask"]
