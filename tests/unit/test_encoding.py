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
from chain import NUMBERS, clean_photos, evaluated, one_core, resized, trained
from PIL import Image, JpegImagePlugin

from imagemill.components.dataset.kinds import ImageSpec
from imagemill.components.dataset.manifest import Dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate.inference import find_tensors, read_test_batches
from imagemill.components.imaging import tensors as store_tensors
from imagemill.components.imaging.decoder import Pixels
from imagemill.components.imaging.geometry import Geometry
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
    """Read a split by pyarrow alone."""
    return pa.concat_tables([pq.read_table(dataset.locate(file)) for file in dataset.files("data", split)])


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


def test_the_loader_gives_every_image_once_an_epoch(chain: Chain) -> None:
    table = tables(chain.jpeg, "train")
    pixels = decode_column(table.column("image"), chain.jpeg.manifest.image)
    labels = table.column("label_id").to_pylist()
    expected = sorted((label, image_pixels.tobytes()) for label, image_pixels in zip(labels, pixels, strict=True))
    orders = []
    for epoch in (0, 1):
        batches = list(iter_batches(chain.jpeg, "train", 7, 0, epoch))
        assert batches[0].images.shape[1:] == tuple(chain.jpeg.manifest.image.shape)
        rows = [
            (int(n), image_pixels.tobytes())
            for b in batches
            for n, image_pixels in zip(b.labels, b.images, strict=True)
        ]
        assert sorted(rows) == expected
        orders.append(rows)
    assert orders[0] != orders[1]


@pytest.mark.parametrize("chain", ["rgb420", "gray"], indirect=True)
def test_an_epoch_of_training_and_an_evaluation(chain: Chain) -> None:
    model = trained(chain.workspace, chain.jpeg)
    assert model.manifest.image.encoding == "raw" and model.manifest.image.shape[:2] == (SIZE, SIZE)
    assert model.manifest.extra.history[0]["train_loss"] > 0 and "top1" in model.manifest.extra.metrics
    tensors = find_tensors(model, chain.clean)
    assert tensors is not None and tensors.uri == chain.jpeg.uri
    geometry = Geometry.of(model.manifest.image)
    images_by_id = {i: image_pixels for b in read_test_batches(tensors, chain.clean, geometry, 4)
            for i, image_pixels in zip(b.ids, b.images, strict=True)}  # fmt: skip
    stored = tables(chain.jpeg, "test").to_pylist()
    assert len(images_by_id) == len(stored) == NUMBERS["test"]
    assert all(np.array_equal(images_by_id[row["image_id"]], by_pillow(row["image"])) for row in stored)
    evaluation, _ = evaluated(chain.workspace, model, chain.clean)
    assert evaluation.manifest.totals.rows == NUMBERS["test"]


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


def test_the_same_images_give_the_same_bytes(colored: Chain, tmp_path: Path) -> None:
    repeated = chain_of(tmp_path, "rgb", "420").jpeg
    assert [f.sha256 for f in repeated.manifest.files] == [f.sha256 for f in colored.jpeg.manifest.files]
    assert repeated.fingerprint == colored.jpeg.fingerprint


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
