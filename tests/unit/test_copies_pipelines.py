"""Pipelines of albumentations: the named ones, saved ones, what is refused, and that a seed says all."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import photos
import pytest
from copied import by_copy, clean_of, make_images, resized, without_ray  # noqa: F401 (a fixture)

from imagemill.components.imaging import albumentations_pipelines as pipelines
from imagemill.components.imaging.albumentations_pipelines import (
    PIPELINES,
    apply_pipeline,
    check_pipeline,
    import_albumentations,
)
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.resize.copies import plan_copies
from imagemill.components.storage.errors import UserError

ALB: dict[str, Any] = {"copy_policy": "albumentations"}
FIELD = "copy_pipeline"


def load_pipeline(chosen: str) -> str:
    return pipelines.load_pipeline(chosen, FIELD)


def run_pipeline(text: str, pixels: Any, seed: int) -> tuple[Any, list[dict[str, Any]]]:
    return apply_pipeline(text, pixels, np.random.default_rng(seed), FIELD)


def saved(path: Path, *operations: Any, **options: Any) -> str:
    a = import_albumentations()
    a.save(a.Compose(list(operations)), path, **options)
    return str(path)


def config(**options: Any) -> ResizeConfig:
    config = ResizeConfig(copies=2, image_size=24, **{**ALB, **options})
    config.check()
    return config


@pytest.mark.parametrize("name", PIPELINES)
def test_a_named_pipeline_keeps_shape_and_type_and_changes_pixels(name: str) -> None:
    text = load_pipeline(name)
    pixels = photos.made(0, 90, 64)
    results = [run_pipeline(text, pixels, seed) for seed in range(8)]
    assert all(image.shape == pixels.shape and image.dtype == np.uint8 for image, _ in results)
    assert sum(not np.array_equal(image, pixels) for image, _ in results) >= 6
    assert len({image.tobytes() for image, _ in results}) >= 6
    repeated = [run_pipeline(text, pixels, seed) for seed in reversed(range(8))][::-1]
    for (first, operations), (second, expected) in zip(results, repeated, strict=True):
        np.testing.assert_array_equal(first, second)
        assert json.loads(json.dumps(operations, allow_nan=False)) == expected
    assert pixels.tobytes() == photos.made(0, 90, 64).tobytes()
    if name != "weather":
        check_pipeline(text, 40, 50, 1, FIELD)
        image, _ = run_pipeline(text, pixels[:, :, :1], 3)
        assert image.shape == (64, 90, 1)


def test_no_named_pipeline_mirrors_or_is_hue_unsafe_where_that_matters() -> None:
    """Shapes and places only in `geometry`; text and scans stay as they stand, and gray pixels stay gray."""
    y, x = np.mgrid[:64, :64]
    slope = np.repeat((40 + 2 * x + y)[:, :, None], 3, 2).astype(np.uint8)
    for name in ("light", "ocr", "medical", "geometry"):
        for seed in range(20):
            image = run_pipeline(load_pipeline(name), slope, seed)[0].astype(int)
            assert image[:, 32:].mean() > image[:, :32].mean() + 20  # right stays right
            assert image[32:].mean() > image[:32].mean() + 5  # and up stays up
            if name in ("light", "geometry"):
                assert np.abs(image - image[:, :, :1]).max() <= 1
    flat = np.full((40, 40, 3), (200, 30, 90), np.uint8)
    for seed in range(20):
        np.testing.assert_array_equal(run_pipeline(load_pipeline("geometry"), flat, seed)[0], flat)


def test_every_operation_has_random_numbers_of_its_own(tmp_path: Path) -> None:
    """A seed for each of them, as albumentations sets it, would draw the same number in all."""
    a = import_albumentations()
    text = load_pipeline(saved(tmp_path / "p.json", a.HorizontalFlip(p=0.5), a.VerticalFlip(p=0.5)))
    pixels = photos.made(1, 20, 20)
    names_by_seed = [
        tuple(operation["name"] for operation in run_pipeline(text, pixels, seed)[1]) for seed in range(60)
    ]
    images = {run_pipeline(text, pixels, seed)[0].tobytes() for seed in range(60)}
    assert len(images) == 4, names_by_seed
    for seed in range(20):
        expected = pixels
        names = [operation["name"] for operation in run_pipeline(text, pixels, seed)[1]]
        expected = expected[:, ::-1] if "HorizontalFlip" in names else expected
        expected = expected[::-1] if "VerticalFlip" in names else expected
        np.testing.assert_array_equal(run_pipeline(text, pixels, seed)[0], expected)


def test_threads_change_nothing() -> None:
    texts = [load_pipeline(name) for name in ("strong", "ocr", "light")]
    jobs = [(texts[n % 3], photos.made(n, 40, 40), n) for n in range(30)]
    alone = [run_pipeline(*job)[0].tobytes() for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda job: run_pipeline(*job)[0].tobytes(), jobs)) == alone


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_saved_pipelines_are_read_from_json_and_yaml(form: str, tmp_path: Path) -> None:
    a = import_albumentations()
    uri = saved(tmp_path / "mine", a.Rotate(limit=(30, 30), p=1), a.Blur(p=0.5), data_format=form)
    text = load_pipeline(uri)
    image, operations = run_pipeline(text, photos.made(0, 40, 40), 0)
    assert operations[0]["name"] == "Rotate" and not np.array_equal(image, photos.made(0, 40, 40))
    assert text == load_pipeline(saved(tmp_path / "other", a.Rotate(limit=(30, 30), p=1), a.Blur(p=0.5)))
    path = saved(tmp_path / "one", a.Rotate(limit=(30, 30), p=1))
    a.save(a.Rotate(limit=(30, 30), p=1), path)  # no Compose around it
    np.testing.assert_array_equal(run_pipeline(load_pipeline(path), photos.made(0, 40, 40), 0)[0].shape, (40, 40, 3))


def test_fingerprint_depends_on_the_content_of_the_pipeline_file(tmp_path: Path) -> None:
    a = import_albumentations()
    clean = clean_of(tmp_path, make_images(2))
    first = saved(tmp_path / "a.json", a.Blur(p=1))
    moved = saved(tmp_path / "b.yaml", a.Blur(p=1), data_format="yaml")
    other = saved(tmp_path / "c.json", a.Blur(p=0.5))
    names = []
    for pipeline in (first, moved, other, "light", "ocr"):
        options = config(copy_pipeline=pipeline)
        names.append(plan_copies(options, clean).fingerprint_fields(options))
    assert names[0] == names[1] != names[2] and len(names[0]["copy_pipeline"]) == 16
    assert "copy_pipeline" not in names[3] and names[4]["copy_pipeline"] == "ocr"


def test_invalid_pipelines_are_rejected(tmp_path: Path) -> None:
    a = import_albumentations()
    (tmp_path / "text.json").write_text("not: [a pipeline")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "unknown.json").write_text('{"transform": {"__class_fullname__": "os.system", "p": 1}}')
    (tmp_path / "argument.json").write_text('{"transform": {"__class_fullname__": "Blur", "p": 1, "blurred": 3}}')
    (tmp_path / "value.json").write_text('{"transform": {"__class_fullname__": "Blur", "p": 7}}')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    saved(tmp_path / "code.json", a.Lambda(image=len, name="code", p=1))
    (tmp_path / "pickle.json").write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtins\x94.")
    (tmp_path / "large.json").write_text(" " * 2_000_000)
    wrong = {
        "missing": "no such file", "text": "found neither", "list": "found none", "deep": "found n",
        "unknown": r"no Lambda\), found 'os.system'", "code": r"no Lambda\), found 'Lambda'",
        "argument": "can't make this pipeline: .*blurred", "value": "can't make this pipeline",
        "pickle": "found neither", "large": "2,000,000 bytes",
    }  # fmt: skip
    messages = {"nothing": "light, strong, weather"} | {str(tmp_path / f"{n}.json"): m for n, m in wrong.items()}
    for uri, message in messages.items():
        with pytest.raises(UserError, match=rf"(?s)^copy_pipeline: .*{message}"):
            load_pipeline(uri)


def test_a_pipeline_that_changes_shape_or_type_fails_before_the_work(tmp_path: Path) -> None:
    a = import_albumentations()
    clean = clean_of(tmp_path, make_images(2))
    for operation, message in (
        (a.Resize(10, 10), r"uint8 \[24, 24, 3\] as such, found uint8 \[10, 10, 3\]"),
        (a.ToFloat(), r"found float32"),
        (a.ToGray(num_output_channels=1, p=1), r"found uint8 \[24, 24"),
        (a.RandomCrop(50, 50, p=1), "fails on uint8"),
    ):
        with pytest.raises(UserError, match=f"^copy_pipeline: .*{message}"):
            plan_copies(config(copy_pipeline=saved(tmp_path / "p.json", operation)), clean)
    gray = clean_of(tmp_path / "gray", make_images(2), "gray")
    with pytest.raises(UserError, match=r"^copy_pipeline: fails on uint8 \[24, 24, 1\]: .*3-channel"):
        plan_copies(config(copy_pipeline="weather"), gray)
