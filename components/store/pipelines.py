"""Pipelines of albumentations: some by name, or one that albumentations saved, as plain data; for copies made offline
and for training. `field` is the option that named one, for messages.

A pipeline travels as the JSON of its dictionary form (`A.to_dict`), and is only ever made of that by `A.from_dict`,
which knows albumentations' own classes and calls nothing else: no pickle, no `Lambda`, no code.
"""

from __future__ import annotations

import json
import os
import random as py_random
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .errors import UserError, wrong
from .filesystem import store_for
from .fingerprint import canonical_json
from .images import Pixels
from .uri import normalize, safe

MAX_BYTES = 2**20
"""Of a saved pipeline: a file that is larger is none."""
_SMALL = 16
"""Numbers in an array that is written down; of a larger one only its shape is."""
_NEUTRAL = ("shape", "cols", "rows", "bbox_matrix", "fill_mask", "output_shape")
"""What albumentations says of an operation, and says nothing of what it does to a picture."""

_local = threading.local()


def library(field: str = "albumentations") -> Any:
    """albumentations, without its question to the package index."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    try:
        import albumentations
    except ImportError:
        raise UserError(f"{field}: albumentations is not installed here; pip install 'imagemill[resize]'") from None
    return albumentations


def _light(a: Any) -> list[Any]:
    """Photographs, so that nobody would call them changed: a little geometry, a little light."""
    return [
        a.Affine(
            **_AFFINE, scale=(0.95, 1.05), translate_percent=(-0.05, 0.05), rotate=(-10, 10), shear=(-5, 5), p=0.8
        ),
        a.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.7),
        a.GaussianBlur(blur_limit=(3, 5), sigma_limit=(0.1, 1.0), p=0.2),
    ]


def _strong(a: Any) -> list[Any]:
    """Photographs of few images a class: strong geometry, light and colour, blur or noise or compression, holes."""
    return [
        a.Affine(
            **_AFFINE, scale=(0.75, 1.25), translate_percent=(-0.12, 0.12), rotate=(-25, 25), shear=(-10, 10), p=0.9
        ),
        a.Perspective(scale=(0.03, 0.1), p=0.4, **_EDGE),
        a.ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.05, 0.05), p=0.8),
        a.OneOf(
            [
                a.GaussianBlur(blur_limit=(3, 7), sigma_limit=(0.5, 2.0)),
                a.GaussNoise(std_range=(0.02, 0.1)),
                a.ImageCompression(quality_range=(30, 80)),
            ],
            p=0.5,
        ),
        a.CoarseDropout(num_holes_range=(1, 4), hole_height_range=(0.08, 0.25), hole_width_range=(0.08, 0.25), p=0.4),
    ]


def _weather(a: Any) -> list[Any]:
    """Outdoors: rain, fog, shadows or low sun, one of them on every copy. In colour only.

    No snow: albumentations 2.0.8 makes flat white areas of it, or with its textures levels that overflow to black.
    """
    return [
        a.OneOf(
            [
                a.RandomRain(drop_length=8, blur_value=3, brightness_coefficient=0.85),
                a.RandomFog(fog_coef_range=(0.1, 0.3), alpha_coef=0.1),
                a.RandomShadow(num_shadows_limit=(1, 1), shadow_dimension=4, shadow_intensity_range=(0.25, 0.45)),
                a.RandomSunFlare(flare_roi=(0, 0, 1, 0.4), src_radius=80, method="physics_based"),
            ],
            p=1,
        ),
        a.RandomBrightnessContrast(brightness_limit=0.1, contrast_limit=0.1, p=0.5),
    ]


def _ocr(a: Any) -> list[Any]:
    """Text, digits, arrows: as a scanner or a telephone would see them; never mirrored, hardly turned."""
    return [
        a.Affine(**_AFFINE, scale=(0.95, 1.05), translate_percent=(-0.02, 0.02), rotate=(-3, 3), shear=(-3, 3), p=0.7),
        a.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.3, p=0.8),
        a.OneOf(
            [
                a.GaussianBlur(blur_limit=(3, 3), sigma_limit=(0.3, 0.9)),
                a.GaussNoise(std_range=(0.01, 0.06)),
                a.ImageCompression(quality_range=(40, 85)),
            ],
            p=0.7,
        ),
    ]


def _medical(a: Any) -> list[Any]:
    """Scans and slides: left stays left and up stays up, hues stay; small shifts, exposure and grain."""
    return [
        a.Affine(**_AFFINE, scale=(0.97, 1.03), translate_percent=(-0.03, 0.03), rotate=(-5, 5), p=0.8),
        a.RandomBrightnessContrast(brightness_limit=0.08, contrast_limit=0.08, p=0.6),
        a.GaussNoise(std_range=(0.005, 0.02), p=0.4),
    ]


def _geometry(a: Any) -> list[Any]:
    """Where colour is a property (products, fashion, bands): shape and place only, no level is changed."""
    return [
        a.Affine(
            **_AFFINE, scale=(0.85, 1.15), translate_percent=(-0.08, 0.08), rotate=(-15, 15), shear=(-5, 5), p=0.9
        ),
        a.Perspective(scale=(0.02, 0.07), p=0.4, **_EDGE),
    ]


_EDGE = {"border_mode": 4}
"""cv2.BORDER_REFLECT_101: no black corners that a model could learn."""
_AFFINE = {"keep_ratio": True, **_EDGE}
PIPELINES: dict[str, Callable[[Any], list[Any]]] = {
    "light": _light, "strong": _strong, "weather": _weather, "ocr": _ocr, "medical": _medical, "geometry": _geometry,
}  # fmt: skip
"""By name, each said in a sentence by its function. None mirrors: `copy_flip` does, where that is allowed."""


def pipeline_text(chosen: str, field: str) -> str:
    """A name, or the URI of a saved pipeline, as JSON of its dictionary: what is applied, and what counts.

    UserError where there is no such pipeline, or one that can't be made of data alone.
    """
    if chosen in PIPELINES:
        a = library(field)
        return _checked(a.to_dict(a.Compose(PIPELINES[chosen](a)))["transform"], field)
    expected = f"{', '.join(PIPELINES)}, or the URI of a pipeline that albumentations saved"
    return saved_text(read_document(chosen, field, expected), chosen, field)


def saved_text(body: Any, uri: str, field: str) -> str:
    """What `read_document` found at a URI, as `pipeline_text`."""
    if not isinstance(body, dict) or not isinstance(body.get("transform"), dict):
        raise UserError(f"{field}: expected {safe(uri)} to hold a pipeline that albumentations saved, found none")
    return _checked(body["transform"], field)


def _checked(body: dict[str, Any], field: str) -> str:
    text = canonical_json(body).decode()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", UserWarning
        )  # an argument that albumentations does not know is left out, it says
        _made(text, field)
    return text


def read_document(uri: str, field: str, expected: str) -> Any:
    """What a file of JSON or YAML holds: a pipeline is a small one. UserError says what was `expected`."""
    if "/" not in uri and "." not in uri:
        raise wrong(field, expected, uri)
    place = normalize(uri, field)
    try:
        entry = store_for(place).stat(place)
        if entry is None or entry.size > MAX_BYTES:
            raise wrong(field, expected, f"{uri} ({'no such file' if entry is None else f'{entry.size:,} bytes'})")
        data = store_for(place).read(place)
    except FileNotFoundError:
        raise wrong(field, expected, uri) from None
    return _parsed(data, uri, field)


def _parsed(data: bytes, uri: str, field: str) -> Any:
    import yaml

    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = str(error).splitlines()[0]
        raise UserError(f"{field}: expected JSON or YAML in {safe(uri)}, found neither: {said}") from None


def _classes(body: Any) -> Iterator[str]:
    """The names of all classes in a pipeline's dictionary, at any depth."""
    if isinstance(body, dict):
        if "__class_fullname__" in body:
            yield str(body["__class_fullname__"])
        for value in body.values():
            yield from _classes(value)
    elif isinstance(body, list):
        for value in body:
            yield from _classes(value)


def _made(text: str, field: str, say: bool = True) -> Any:
    """The pipeline of its JSON. Every random number comes from the generators that it is given for each picture."""
    a = library(field)
    from albumentations.core.serialization import SERIALIZABLE_REGISTRY, shorten_class_name

    body = json.loads(text)
    for name in _classes(body):
        if shorten_class_name(name) not in SERIALIZABLE_REGISTRY:
            raise wrong(field, "operations that albumentations can make of data alone (no Lambda)", name)
    try:
        made = a.from_dict({"transform": body})
        return a.Compose([made], save_applied_params=say)
    except Exception as error:  # whatever a constructor says of values that it does not like
        raise UserError(f"{field}: albumentations {a.__version__} can't make this pipeline: {short(error)}") from None


def apply_pipeline(
    text: str, pixels: Pixels, random: np.random.Generator, field: str
) -> tuple[Pixels, list[dict[str, Any]]]:
    """uint8 [H, W, 1 or 3] → the same shape, and the operations that were applied with their parameters."""
    done = run_pipeline(text, pixels, random, field, say=True)
    image = done["image"]
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != pixels.shape:
        raise UserError(f"{field}: expected a pipeline that leaves {said(pixels)} as such, found {said(image)}")
    return np.ascontiguousarray(image), [_record(name, about) for name, about in done.get("applied_transforms", [])]


def run_pipeline(
    text: str, pixels: Pixels, random: np.random.Generator, field: str, say: bool = False
) -> dict[str, Any]:
    """What albumentations gives for a picture: `image`, whatever it made of it; with `say` what it did, too."""
    pipeline = _of_this_thread(text, field, say)
    # One generator for all of it: a seed for each would have all of them draw the same numbers.
    pipeline.set_random_state(random, py_random.Random(int(random.integers(2**63))))
    try:
        done: dict[str, Any] = pipeline(image=np.ascontiguousarray(pixels))
        return done
    except MemoryError:
        raise
    except Exception as error:  # of an operation that does not fit the picture
        raise UserError(f"{field}: fails on {said(pixels)}: {short(error)}") from None


def check_pipeline(text: str, height: int, width: int, channels: int, field: str) -> None:
    """Try a pipeline before anything is decoded; UserError as `apply_pipeline`."""
    grey = np.linspace(0, 255, height * width * channels).astype(np.uint8).reshape(height, width, channels)
    for seed in range(4):
        apply_pipeline(text, grey, np.random.default_rng(seed), field)


def _of_this_thread(text: str, field: str, say: bool) -> Any:
    """A pipeline keeps state while it works, so each thread has its own."""
    if getattr(_local, "made_of", None) != (text, say):
        _local.pipeline, _local.made_of = _made(text, field, say), (text, say)
    return _local.pipeline


def _record(name: str, about: dict[str, Any]) -> dict[str, Any]:
    return {"name": name} | {key: _plain(value) for key, value in about.items() if key not in _NEUTRAL}


def _plain(value: Any) -> Any:
    """What JSON can hold of a parameter; of a large array its type and shape."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist() if value.size <= _SMALL else f"{value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value] if len(value) <= _SMALL else f"{len(value)} of {type(value).__name__}"
    return value if isinstance(value, str | int | float | bool) or value is None else type(value).__name__


def said(image: Any) -> str:
    """Type and shape of a picture, for messages."""
    return f"{image.dtype} {list(image.shape)}" if hasattr(image, "dtype") else type(image).__name__


def short(error: Exception) -> str:
    """The first line of what a library said."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
