"""TFRecord exports read by TensorFlow with the recipe in the repository.

TensorFlow is 1.3 GB and no dependency: this runs where it can be imported, or with the Python that IMAGEMILL_TF_PYTHON
names (a venv with `tensorflow-cpu` is enough: the recipe needs nothing else)."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import exports
import numpy as np
import photos
import pytest
from PIL import Image

from imagemill.components.export import tfdata

pytestmark = pytest.mark.proof

READER = """
import importlib.util, json, sys
import numpy as np
path, folder, target, calls = sys.argv[1:5]
spec = importlib.util.spec_from_file_location("tfdata", path)
tfdata = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tfdata)
import tensorflow as tf
arrays = {}
for number, call in enumerate(json.loads(calls)):
    take = call.pop("take", -1)
    if call.pop("negative", False):
        call["augment"] = lambda image, label: (255 - image, label)
    dataset = tfdata.read(folder, **call)
    assert dataset.element_spec[0].dtype == tf.uint8, dataset.element_spec
    for epoch in range(2):
        batches = [[np.asarray(part) for part in batch] for batch in dataset.take(take)]
        for place, name in enumerate(("images", "labels", "ids")[: len(batches[0])]):
            arrays[f"{number}-{epoch}-{name}"] = np.concatenate([batch[place] for batch in batches])
        arrays[f"{number}-{epoch}-sizes"] = np.array([len(batch[0]) for batch in batches])
arrays["ids"] = np.array([])
np.savez(target, **{name: (a.astype(str) if a.dtype == object else a) for name, a in arrays.items()})
"""


@functools.cache
def find_tensorflow_python() -> str:
    """Return a Python that has TensorFlow; without one skip the test with the reason."""
    named = os.environ.get("IMAGEMILL_TF_PYTHON", "")
    python = named or sys.executable
    process = subprocess.run([python, "-c", "import tensorflow"], capture_output=True, text=True, check=False)
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no word"])[-1]
        pytest.skip(
            f"TensorFlow can't be imported by {python} ({last}); pip install tensorflow-cpu into a venv and name its "
            "Python in IMAGEMILL_TF_PYTHON" + ("" if named else ", which is not set")
        )
    return python


def read_in_tensorflow(folder: Path, *calls: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays of `tfdata.read` for each call, two epochs, in another process: `<call>-<epoch>-images`, …."""
    import json

    target = folder / "read.npz"
    words = [find_tensorflow_python(), "-c", READER, str(tfdata.__file__), str(folder), str(target), json.dumps(calls)]
    process = subprocess.run(words, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    with np.load(target, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_raw_tensors_are_read_pixel_by_pixel(tmp_path: Path, channels: int) -> None:
    shape = (24, 24, channels)
    color = "gray" if channels == 1 else "rgb"
    source = exports.tensors(str(tmp_path / "t" / "tensors" / "01"), shape, rows=50, color=color)
    exports.run(source, "tfrecord", tmp_path / "out", 20_000)
    arrays = read_in_tensorflow(tmp_path / "out", {"split": "train", "batch_size": 8, "with_ids": True})
    assert arrays["0-0-images"].shape == (50, *shape)
    assert arrays["0-0-sizes"].tolist() == [8] * 6 + [2]
    numbers = [int(image_id.rpartition("/")[2].partition(".")[0]) for image_id in arrays["0-0-ids"]]
    assert sorted(numbers) == list(range(50))
    for number, image, label in zip(numbers, arrays["0-0-images"], arrays["0-0-labels"], strict=True):
        assert np.array_equal(image, exports.pixels_of(shape, "train", number)) and label == number % 3
    assert np.array_equal(arrays["0-0-ids"], arrays["0-1-ids"]), "unshuffled, every epoch has one order"


def test_shuffling_depends_on_seed_and_epoch(tmp_path: Path) -> None:
    source = exports.tensors(str(tmp_path / "t" / "tensors" / "01"), rows=200)
    exports.run(source, "tfrecord", tmp_path / "out", 20_000)
    shuffled = {"split": "train", "batch_size": 16, "with_ids": True, "shuffle": True, "seed": 3}
    cached = {**shuffled, "cache": "memory"}
    to_file = {**shuffled, "cache": str(tmp_path / "cache"), "negative": True}
    repeated = {**shuffled, "repeat": True, "take": 30, "drop_remainder": True}
    calls = (shuffled, shuffled, {**shuffled, "seed": 4}, cached, to_file, repeated)
    arrays = read_in_tensorflow(tmp_path / "out", *calls)
    assert np.array_equal(arrays["0-0-ids"], arrays["1-0-ids"])
    for other in ("0-1-ids", "2-0-ids", "3-1-ids"):
        assert sorted(arrays[other]) == sorted(arrays["0-0-ids"])
        assert not np.array_equal(arrays["0-0-ids"], arrays[other])
    for epoch in (0, 1):
        for image, name in zip(arrays[f"4-{epoch}-images"], arrays[f"4-{epoch}-ids"], strict=True):
            number = int(name.rpartition("/")[2].partition(".")[0])
            assert np.array_equal(255 - image, exports.pixels_of((16, 16, 3), "train", number))
    assert set(arrays["5-0-sizes"].tolist()) == {16} and len(arrays["5-0-ids"]) == 480


def test_resized_photographs_are_close_to_pillows(tmp_path: Path) -> None:
    import cleaned

    data = {f"{n}.png": photos.saved(photos.made(n, 200, 152)) for n in range(4)}
    source = cleaned.cleaned(str(tmp_path / "t" / "clean" / "01"), [cleaned.Row(k, data=d) for k, d in data.items()])
    exports.run(source, "tfrecord", tmp_path / "out")
    arrays = read_in_tensorflow(
        tmp_path / "out", {"split": "train", "batch_size": 4, "with_ids": True, "image_size": 64}
    )
    for image, name in zip(arrays["0-0-images"], arrays["0-0-ids"], strict=True):
        whole = Image.open(io.BytesIO(data[name])).crop((24, 0, 176, 152))
        expected = np.asarray(whole.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(image - expected).mean() < 0.6


def test_invalid_arguments_are_named(tmp_path: Path) -> None:
    source = exports.clean_single(str(tmp_path / "t" / "clean" / "01"), each=4)
    exports.run(source, "tfrecord", tmp_path / "out")
    for call, message in (
        ({"split": "nosuch", "batch_size": 1}, "split: expected one of train, val, test, found 'nosuch'"),
        ({"split": "val", "batch_size": 1}, "image_size: expected a number of pixels"),
    ):
        with pytest.raises(AssertionError, match=message):
            read_in_tensorflow(tmp_path / "out", call)
