"""Tensors as JPEG, read by others and by the steps after resize."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chain import NUMBERS, clean_photos, one_core, resized, trained
from PIL import Image, JpegImagePlugin

from imagemill.components.dataset.index import read_index
from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.dataset.manifest import Dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.imaging import tensors as store_tensors
from imagemill.components.imaging.decoder import Pixels
from imagemill.components.imaging.tensors import decode_column, encode_jpeg
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.storage.errors import UserError
from imagemill.components.train.data.loader import iter_batches

SIZE = 48
CASES = {
    "rgb420": {"color": "rgb", "jpeg_subsampling": "420"},
    "rgb444": {"color": "rgb", "jpeg_subsampling": "444"},
    "gray": {"color": "gray", "jpeg_subsampling": "420"},
}


@dataclass(frozen=True)
class Chain:
    """The same clean images in either encoding."""

    workspace: Workspace
    clean: Dataset
    raw: Dataset
    jpeg: Dataset
    subsampling: str


def chain_of(folder: Path, color: str, jpeg_subsampling: str) -> Chain:
    workspace = Workspace.open(str(folder))
    clean = clean_photos(workspace, color)
    jpeg = resized(workspace, clean, image_size=SIZE, encoding="jpeg", jpeg_subsampling=jpeg_subsampling)
    return Chain(workspace, clean, resized(workspace, clean, image_size=SIZE), jpeg, jpeg_subsampling)


@pytest.fixture(scope="module", params=CASES)
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with one_core():
        yield chain_of(tmp_path_factory.mktemp(request.param), **CASES[request.param])


def tables(dataset: Dataset, split: str) -> pa.Table:
    """Read a split: images by pyarrow alone, labels from the index."""
    stored = pa.concat_tables([pq.read_table(dataset.locate_part(part)) for part in dataset.parts(split)])
    return stored.append_column("label_id", read_index(dataset, ["label_id"], split).column("label_id"))


def by_pillow(data: bytes) -> Pixels:
    pixels: Pixels = np.asarray(Image.open(io.BytesIO(data)))
    return pixels.reshape(*pixels.shape[:2], -1)


def test_stored_jpegs_are_readable_by_other_libraries(chain: Chain) -> None:
    gray = chain.clean.manifest.image.color == "gray"
    channels, total, errors = 1 if gray else 3, 0, []
    assert chain.jpeg.manifest.image == replace(chain.raw.manifest.image, encoding="jpeg")
    for split, number in NUMBERS.items():
        raw, jpeg = tables(chain.raw, split), tables(chain.jpeg, split)
        assert len(jpeg) == number and jpeg.schema.field("image").type == pa.binary()
        assert jpeg.column("label_id").equals(raw.column("label_id"))
        assert jpeg.column("image_id").equals(raw.column("image_id"))
        for data, pixels in zip(jpeg.column("image").to_pylist(), raw.column("image").to_pylist(), strict=True):
            opened = Image.open(io.BytesIO(data))
            assert (opened.format, opened.mode, opened.size) == ("JPEG", "L" if gray else "RGB", (SIZE, SIZE))
            if not gray:
                assert JpegImagePlugin.get_sampling(opened) == {"444": 0, "420": 2}[chain.subsampling]
            original = np.frombuffer(pixels, np.uint8).reshape(SIZE, SIZE, channels)
            errors.append(float(np.abs(by_pillow(data).astype(int) - original).mean()))
            total += len(data)
    assert max(errors) < (3 if gray else 8 if chain.subsampling == "420" else 6)  # there is grain in every pixel
    assert chain.jpeg.manifest.totals.bytes == total < chain.raw.manifest.totals.bytes / 1.5
    assert chain.raw.manifest.totals.bytes == sum(NUMBERS.values()) * SIZE * SIZE * channels


def test_decoded_jpegs_equal_those_of_pillow(chain: Chain) -> None:
    column, image = tables(chain.jpeg, "train").column("image"), chain.jpeg.manifest.image
    expected = np.stack([by_pillow(data) for data in column.to_pylist()])
    assert len(expected) > store_tensors.JPEGS_PER_TASK  # so that threads have a part in it
    for cores in (1, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store_tensors, "cores", lambda cores=cores: cores)
            decoded = decode_column(column, image)
        assert decoded.dtype == np.uint8 and np.array_equal(decoded, expected)
    assert np.array_equal(decode_column(column.slice(5, 7), image), expected[5:12])
    chunks = pa.chunked_array([column.combine_chunks().slice(20), column.combine_chunks().slice(0, 3)])
    assert np.array_equal(decode_column(chunks, image), np.concatenate([expected[20:], expected[:3]]))


@pytest.fixture(scope="module")
def colored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with one_core():
        yield chain_of(tmp_path_factory.mktemp("colored"), "rgb", "420")


def test_quality_and_subsampling_change_the_size_only(colored: Chain) -> None:
    def stored(**options: Any) -> Dataset:
        return resized(colored.workspace, colored.clean, image_size=SIZE, encoding="jpeg", **options)

    sizes = [stored(jpeg_quality=quality).manifest.totals.bytes for quality in (30, 90, 100)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 3 and sizes[1] == colored.jpeg.manifest.totals.bytes
    full = stored(jpeg_subsampling="444")
    assert full.manifest.totals.bytes > colored.jpeg.manifest.totals.bytes
    assert full.fingerprint != colored.jpeg.fingerprint != colored.raw.fingerprint


def test_jpeg_with_a_stored_margin_is_read_with_the_margin(colored: Chain) -> None:
    stored = resized(colored.workspace, colored.clean, image_size=40, store_size=44, encoding="jpeg")
    (first, *_) = iter_batches(stored, "train", 8)
    assert first.images.shape == (8, 44, 44, 3)
    assert trained(colored.workspace, stored).manifest.image.shape == (40, 40, 3)


@pytest.mark.parametrize("color", ["lab", "ycbcr"])
def test_unsupported_jpeg_tensors_are_rejected(color: str, tmp_path: Path) -> None:
    workspace = Workspace.open(str(tmp_path))
    clean = clean_photos(workspace, color, {"train": 2})
    with pytest.raises(UserError, match=f"^encoding: expected raw with this color.*jpeg with {color}"):
        resized(workspace, clean, encoding="jpeg")
    with pytest.raises(UserError, match=r"^encoding: expected raw with edges"):
        ResizeConfig.from_values({"encoding": "jpeg", "edges": "canny"})


def test_one_pixel_survives() -> None:
    for shape, subsampling in (((1, 1, 3), "420"), ((1, 1, 1), "420"), ((9, 9, 3), "444")):
        data = encode_jpeg(np.full(shape, 200, np.uint8), 100, subsampling)
        column = pa.chunked_array([pa.array([data], pa.binary())])
        assert abs(int(decode_column(column, ImageSpec(shape, encoding="jpeg")).max()) - 200) <= 2
