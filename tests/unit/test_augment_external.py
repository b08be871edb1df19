"""Pipelines of others: albumentations by name and saved, torchvision as a list, functions; seeds, sizes, refusals."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import augmented
import numpy as np
import photos
import pytest
import torch
import yaml
from torchvision.transforms import v2

from imagemill.components.imaging.albumentations_pipelines import PIPELINES, import_albumentations
from imagemill.components.storage.errors import UserError
from imagemill.components.train.augment.augmentation import Augmentation
from imagemill.components.train.augment.external import CONTAINERS, TRANSFORMS, resolve_pipeline

STEPS: list[Any] = [
    {"RandomRotation": {"degrees": 30}},
    {"RandomApply": {"transforms": [{"ColorJitter": {"brightness": 0.3, "hue": 0.1}}, "GaussianNoise"], "p": 0.5}},
    "RandomHorizontalFlip",
    {"AutoAugment": {"policy": "svhn"}},
]  # fmt: skip


def images(count: int, side: int = 40, channels: int = 3) -> Any:
    return np.stack([photos.made(n, side, side)[..., :channels] for n in range(count)])


def saved(path: Path, body: Any) -> str:
    path.write_text(yaml.safe_dump(body) if path.suffix == ".yaml" else json.dumps(body))
    return str(path)


def make_augmentation(pipeline: Any, side: int = 40, size: int = 40, channels: int = 3, seed: int = 0) -> Augmentation:
    image_spec = augmented.image(side, size, channels, "rgb" if channels == 3 else "gray")
    if isinstance(pipeline, str):
        return Augmentation(augmented.config(augment_pipeline=pipeline, seed=seed), image_spec)
    return Augmentation(augmented.config(seed=seed), image_spec, pipeline)


def rolled(image: Any, random: np.random.Generator) -> Any:
    return np.roll(image, int(random.integers(1, 30)), axis=1)


@pytest.mark.parametrize("kind", [*PIPELINES, "list", "saved", "albumentations", "torchvision", "function"])
def test_pixels_depend_on_the_seed_only(kind: str, tmp_path: Path) -> None:
    a = import_albumentations()
    a.save(a.Compose([a.Affine(rotate=(-20, 20), p=1)]), tmp_path / "mine.json")
    objects: dict[str, Any] = {
        "list": saved(tmp_path / "list.yaml", STEPS), "saved": str(tmp_path / "mine.json"), "function": rolled,
        "albumentations": a.Compose([a.Affine(rotate=(-20, 20), p=1)]),
        "torchvision": v2.Compose([v2.RandAugment(), v2.RandomPerspective(p=1)]),
    }  # fmt: skip
    pipeline, stored = objects.get(kind, kind), images(12)
    before = stored.copy()
    augmentation = make_augmentation(pipeline)
    params = augmentation.make_params(2, 3, 12)
    state = torch.get_rng_state()
    augmented_images = augmentation.apply(stored, params)
    assert torch.equal(torch.get_rng_state(), state), "training's own random numbers are left alone"
    assert augmented_images.shape == stored.shape and (augmented_images != stored).any((1, 2, 3)).mean() > 0.5
    np.testing.assert_array_equal(stored, before)
    torch.manual_seed(99)
    with ThreadPoolExecutor(4) as pool:
        by_threads = pool.map(
            lambda start: make_augmentation(pipeline).apply(
                stored[start : start + 2], params.select_rows(slice(start, start + 2))
            ),
            range(0, 12, 2),
        )
    np.testing.assert_array_equal(np.concatenate(list(by_threads)), augmented_images)
    other = make_augmentation(pipeline, seed=1)
    assert not np.array_equal(other.apply(stored, other.make_params(2, 3, 12)), augmented_images)
    copies = augmentation.apply(np.stack([stored[0]] * 12), params)
    assert len({image.tobytes() for image in copies}) > 3  # every image has a seed of its own


def test_every_supported_torchvision_transform_depends_on_the_seed_only() -> None:
    """The process's random generator is left alone, whichever generator a transform uses."""
    needed: dict[str, dict[str, Any]] = {
        "CenterCrop": {"size": 40}, "ColorJitter": {"brightness": 0.5, "hue": 0.2}, "GaussianBlur": {"kernel_size": 5},
        "Grayscale": {"num_output_channels": 3}, "JPEG": {"quality": [20, 90]}, "Pad": {"padding": 4},
        "RandomAdjustSharpness": {"sharpness_factor": 2}, "RandomAffine": {"degrees": 20}, "RandomCrop": {"size": 40},
        "RandomPosterize": {"bits": 3}, "RandomResize": {"min_size": 41, "max_size": 60},
        "RandomResizedCrop": {"size": 40}, "RandomRotation": {"degrees": 20}, "RandomSolarize": {"threshold": 99},
        "RandomShortestSize": {"min_size": [45, 60]}, "Resize": {"size": 44}, "RandomChoice": {}, "RandomOrder": {},
        "ScaleJitter": {"target_size": [80, 80], "scale_range": [0.6, 1.0]},
    }  # fmt: skip
    stored = images(3, 48)
    for name in TRANSFORMS:
        arguments: dict[str, Any] = dict(needed.get(name, {}))
        if name in CONTAINERS:
            arguments["transforms"] = [v2.RandomRotation(30), v2.RandomHorizontalFlip()]
        augmentation = make_augmentation(getattr(v2, name)(**arguments), 48)
        params = augmentation.make_params(0, 0, 3)
        torch.manual_seed(3)
        augmented_images = augmentation.apply(stored, params)
        torch.manual_seed(4)
        np.testing.assert_array_equal(augmentation.apply(stored, params), augmented_images, name)
        assert torch.equal(torch.get_rng_state(), torch.manual_seed(4).get_state()), name


def test_larger_results_are_cropped_at_random_and_smaller_ones_rejected(tmp_path: Path) -> None:
    stored = images(1, 44)
    identity = make_augmentation(lambda image, _: image, 44, 40)
    augmented_images = identity.apply(np.repeat(stored, 300, 0), identity.make_params(0, 0, 300))
    windows = {stored[0, y : y + 40, x : x + 40].tobytes() for x in range(5) for y in range(5)}
    assert {image.tobytes() for image in augmented_images} == windows
    crop = make_augmentation(saved(tmp_path / "c.json", [{"RandomResizedCrop": {"size": 40}}]), 64, 40)
    assert crop.apply(images(2, 64), crop.make_params(0, 0, 2)).shape == (2, 40, 40, 3)
    for bad, message in (
        (lambda image, _: image[:39], r"makes uint8 \[40, 40, 3\] or larger of uint8 \[40, 40, 3\], found uint8 \[39"),
        (lambda image, _: image.astype(np.float32), "found float32"),
        (lambda image, _: image[..., 0], r"found uint8 \[40, 40\]"),
        (lambda image, _: None, "found NoneType"),
        (lambda image, _: image + np.zeros(7), "fails on uint8 .*: ValueError"),
        (v2.ToDtype(torch.float32), "found float32"),
        (v2.CenterCrop(20), r"found uint8 \[20, 20, 3\]"),
    ):
        with pytest.raises(UserError, match=f"^augment_pipeline: .*{message}"):
            make_augmentation(bad)
    with pytest.raises(UserError, match=r"^augment_pipeline: expected a name, a URI"):
        make_augmentation(7)


def test_pipeline_that_does_not_support_one_channel_is_rejected_at_once() -> None:
    augmentation = make_augmentation("light", channels=1)
    assert augmentation.apply(images(3, channels=1), augmentation.make_params(0, 0, 3)).shape == (3, 40, 40, 1)
    with pytest.raises(UserError, match=r"^augment_pipeline: fails on uint8 \[40, 40, 1\]"):
        make_augmentation("weather", channels=1)


def test_invalid_lists_of_transforms_are_rejected_with_their_place(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {
        "empty": ([], "a list of transforms, found"),
        "lambda": ([{"Lambda": {"lambd": "print"}}], r"\[0\]: expected one of .* \(no Lambda\)"),
        "unknown": (["RandomRotation3D"], r"\[0\]: expected one of"),
        "two": ([{"RandomInvert": {}, "Pad": {"padding": 1}}], r"\[0\]: expected one of"),
        "private": (["__dict__"], r"\[0\]: expected one of"),
        "functional": ([{"functional": {}}], r"\[0\]: expected one of"),
        "argument": ([{"RandomInvert": {"q": 1}}], r"\[0\].RandomInvert: torchvision can't make this: TypeError"),
        "value": ([{"RandomInvert": {"p": 7}}, {"AutoAugment": {"policy": "mnist"}}], r"RandomInvert|AutoAugment"),
        "missing": ([{"RandomRotation": {}}], "RandomRotation: torchvision can't make this"),
        "inside": ([{"RandomApply": {"transforms": [{"Lambda": {}}]}}], r"\[0\].RandomApply.transforms\[0\]"),
        "no transforms": ([{"RandomApply": {"p": 1}}], r"RandomApply.transforms: expected a list"),
        "nested": ([{"Pad": {"padding": {"a": 1}}}], r"\[0\].Pad.padding: expected numbers"),
        "dictionary": ({"RandomInvert": {}}, "found dict"),
        "word": ("RandomInvert", "found str"),
    }
    for name, (body, message) in wrong.items():
        for ending in ("json", "yaml"):
            with pytest.raises(UserError, match=rf"(?s)^augment_pipeline.*{message}"):
                make_augmentation(saved(tmp_path / f"{name}.{ending}", body))
    for chosen, message in (("nothing", "light, strong"), (str(tmp_path / "none.yaml"), "no such file")):
        with pytest.raises(UserError, match=f"(?s)^augment_pipeline: .*{message}"):
            make_augmentation(chosen)
    (tmp_path / "code.yaml").write_text("- !!python/object/apply:os.system ['true']")
    with pytest.raises(UserError, match=r"^augment_pipeline: expected JSON or YAML"):
        make_augmentation(str(tmp_path / "code.yaml"))


def test_pipeline_is_identified_by_its_content(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a.yaml", STEPS), saved(tmp_path / "b.json", STEPS)
    assert (
        resolve_pipeline(first) == resolve_pipeline(second) != resolve_pipeline(saved(tmp_path / "c.json", STEPS[:1]))
    )
    assert resolve_pipeline("light") != resolve_pipeline("strong")
