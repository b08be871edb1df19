"""Preprocessing of predict: the same pixels as the tensors for any file and any cleaning, and the same probabilities as
evaluate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chain
import numpy as np
import photos
import pytest
from photos import saved
from PIL import Image

from imagemill.components.clean.clean import clean
from imagemill.components.clean.config import CleanConfig
from imagemill.components.dataset.index import read_rows
from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.dataset.shards import read_columns
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.download.config import DownloadConfig
from imagemill.components.download.download import download
from imagemill.components.imaging.decoder import ImageRejected
from imagemill.components.imaging.geometry import Geometry
from imagemill.components.imaging.tensors import decode_column
from imagemill.components.models.artifact import Preprocessing, describe_preprocessing
from imagemill.components.predict.config import PredictConfig
from imagemill.components.predict.inputs import find_inputs
from imagemill.components.predict.predict import Predictor, predict_files
from imagemill.components.step.step import Context

SIZE = 40


def _quantize(pixels: Any) -> Any:
    return np.asarray(Image.fromarray(pixels).quantize(64).convert("RGB"))


def _add_border(pixels: Any) -> Any:
    return np.pad(pixels, ((12, 20), (9, 9), (0, 0)), constant_values=250)


def _encode_forms() -> dict[str, bytes]:
    """Return the bytes of one file of every form, each of another picture, by name."""

    def make(number: int, width: int = 120, height: int = 90) -> Any:
        return photos.made(300 + number, width, height)

    noisy = Image.fromarray(make(6, 97, 141)).quantize(64)
    files = {
        "plain.jpg": photos.saved(make(0), "JPEG", quality=90),
        "large.jpg": photos.saved(make(1, 1210, 907), "JPEG", quality=85),  # decoded at a half or less
        "subsampled.jpg": photos.saved(make(2, 333, 250), "JPEG", quality=70, subsampling=2),
        "turned.jpg": photos.saved(make(3, 130, 80), "JPEG", exif=photos.exif(6)),
        "mirrored.png": photos.saved(make(4), "PNG", exif=photos.exif(5)),
        "progressive.jpg": photos.saved(make(5), "JPEG", progressive=True),
        "gray.jpg": photos.saved(make(7)[:, :, 0], "JPEG"),
        "gray.png": photos.saved(make(8)[:, :, 1]),
        "plain.png": photos.saved(make(9, 61, 200)),
        "lossy.webp": photos.saved(make(10), "WEBP", quality=80),
        "lossless.webp": photos.saved(make(11), "WEBP", lossless=True),
        "plain.gif": photos.saved(_quantize(make(12)), "GIF"),
        "plain.bmp": photos.saved(make(13), "BMP"),
        "plain.tiff": photos.saved(make(14), "TIFF"),
        "bordered.png": photos.saved(_add_border(make(15))),
        "bordered.jpg": photos.saved(_add_border(make(16)), "JPEG", quality=95),
        "tiny.png": photos.saved(make(17, 9, 7)),
        "panorama.jpg": photos.saved(make(18, 800, 40), "JPEG"),
    }
    alpha = np.dstack([make(19), np.linspace(0, 255, 120 * 90).reshape(90, 120).astype(np.uint8)])
    files["alpha.png"] = photos.saved(alpha)
    cmyk, deep = Image.fromarray(make(20)).convert("CMYK"), (make(21)[:, :, 0].astype(np.uint16) * 257)
    files["cmyk.jpg"], files["deep.png"] = saved(cmyk, "JPEG"), photos.saved(deep)
    files["palette.png"] = saved(noisy, "PNG")
    return files


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write every form, alternating between two classes, and a few files that are no images."""
    folder = tmp_path_factory.mktemp("forms")
    for number, (name, data) in enumerate(_encode_forms().items()):
        path = folder / ("cat", "dog")[number % 2] / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (folder / "cat" / "cut.jpg").write_bytes(_encode_forms()["plain.jpg"][:1500])
    (folder / "dog" / "empty.png").write_bytes(b"")
    (folder / "dog" / "words.jpg").write_bytes(b"no image at all, in spite of its name")
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.open(str(tmp_path_factory.mktemp("mill")))


@pytest.fixture(scope="module")
def cleaned_by(source: Path, workspace: Workspace) -> Callable[..., Dataset]:
    """Return a function that cleans the source by options."""
    values: dict[str, Any] = {"workspace": workspace.uri, "name": "forms"}
    config = DownloadConfig.from_values(values | {"dataset": "folder", "source": str(source)})
    raw = download(config, Context("download", workspace, "r", False)).uri

    def clean_with(**options: Any) -> Dataset:
        more = {"raw": raw, "near_duplicates": "off", "test_fraction": 0.4, "val_fraction": 0.2}
        outcome = clean(CleanConfig.from_values(values | more | options), Context("clean", workspace, "r", False))
        return read_dataset(outcome.uri, "clean")

    return clean_with


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "photo": ({}, {}),
    "squash": ({}, {"resize_mode": "squash", "interpolation": "lanczos"}),
    "letterbox with edges": ({}, {"resize_mode": "letterbox", "edges": "both"}),
    "ocr": ({"preset": "ocr"}, {"preset": "ocr"}),
    "fashion": ({"preset": "fashion"}, {"preset": "fashion", "quality": "fast"}),
    "encoded again as JPEG": ({"denoise": "median", "equalize": "clahe"}, {"interpolation": "bicubic"}),
    "black and white": ({"binarize": "otsu"}, {"resize_mode": "squash"}),
    "one channel of trimmed colors": ({"trim": "on", "color": "green", "denoise": "gaussian"}, {"edges": "sobel"}),
    "gray, by what blur and boxes need": ({"background": "blur", "roi": "largest", "color": "gray"}, {}),
    "lab": ({"color": "lab", "equalize": "histogram"}, {"interpolation": "area", "resize_size": 64}),
}


CHANGED = ("ocr", "encoded again as JPEG", "black and white", "one channel of trimmed colors", "lab")
"""Those whose cleaning changes the pixels of any photograph."""


@pytest.mark.parametrize("case", CASES)
def test_pixels_equal_the_tensors(
    case: str, source: Path, workspace: Workspace, cleaned_by: Callable[..., Dataset]
) -> None:
    cleaning, resizing = CASES[case]
    clean_images = cleaned_by(**cleaning)
    tensors = chain.resized(workspace, clean_images, image_size=SIZE, **resizing)
    image = tensors.manifest.image
    preprocess = Preprocessing.from_record(describe_preprocessing(tensors), Geometry.of(image).input, "test")
    num_compared = 0
    for table in read_rows(tensors, ["image", "image_id"]):
        pixels = decode_column(table.column("image"), image)
        for expected, image_id in zip(pixels, table.column("image_id").to_pylist(), strict=True):
            np.testing.assert_array_equal(preprocess((source / image_id).read_bytes()), expected, err_msg=image_id)
            num_compared += 1
    assert num_compared == len(_encode_forms())
    for table in read_columns(clean_images, "rejected", ["image_id", "reason"]):
        for row in table.to_pylist():
            with pytest.raises(ImageRejected) as error:
                preprocess((source / row["image_id"]).read_bytes())
            assert error.value.reason == row["reason"]
    if case in CHANGED:  # doing nothing of clean's work would have been seen
        plain = Preprocessing.from_record({}, preprocess.geometry, "test")
        some = (source / "cat" / "plain.jpg").read_bytes()
        assert (preprocess(some) != plain(some)).any()


def test_probabilities_equal_those_of_the_evaluation(
    source: Path, workspace: Workspace, cleaned_by: Callable[..., Dataset]
) -> None:
    clean_images = cleaned_by(preset="ocr")
    with chain.one_core():
        tensors = chain.resized(workspace, clean_images, image_size=SIZE, preset="ocr", edges="sobel")
        model = chain.trained(workspace, tensors)
        evaluation, _ = chain.evaluated(workspace, model, clean_images)
    predictor = Predictor.load(model, "cpu")
    config = PredictConfig((str(source),), model=model.uri, batch_size=4)
    results = {
        row.name[len(str(source)) + 1 :]: row
        for row in predict_files(predictor, find_inputs(config.images, ()), config)
    }
    assert len(results) == len(_encode_forms()) + 3
    columns = ["image_id", "predicted_id", "confidence"]
    scored = [row for table in read_columns(evaluation, "data", columns) for row in table.to_pylist()]
    assert len(scored) >= 3
    for scored_row in scored:
        (name, probability), *_ = results[scored_row["image_id"]].best
        assert name == evaluation.manifest.classes[scored_row["predicted_id"]]
        assert abs(probability - scored_row["confidence"]) <= 1e-6  # batches of another size
