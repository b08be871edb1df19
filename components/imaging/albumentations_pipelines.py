"""Pipelines of albumentations, by name or saved by albumentations, for offline copies and for training.

A pipeline travels as the JSON of its dictionary form (`A.to_dict`), and is only ever created from that by
`A.from_dict`, which calls albumentations' own classes and nothing else: no pickle, no `Lambda`, no code. `field` is the
option that named a pipeline, for messages.
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

from ..dataset.manifest import canonical_json
from ..storage.errors import UserError, first_line, wrong
from ..storage.store import get_store
from ..storage.uri import normalize, redact
from .decoder import Pixels

MAX_BYTES = 2**20
"""Size of the largest file that may be a saved pipeline."""
_SMALL = 16
"""Numbers in the largest array that is recorded; of a larger one only its shape is."""
_IGNORED_PARAMETERS = ("shape", "cols", "rows", "bbox_matrix", "fill_mask", "output_shape")
"""Parameters that albumentations reports of an operation although they do not describe its effect."""

_local = threading.local()


def import_albumentations(field: str = "albumentations") -> Any:
    """Import albumentations without its version check, which asks the package index."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    try:
        import albumentations
    except ImportError:
        raise UserError(f"{field}: albumentations is not installed here; pip install 'imagemill[resize]'") from None
    return albumentations


def _light(a: Any) -> list[Any]:
    """Photographs, hardly changed: a little geometry, a little light."""
    return [
        a.Affine(
            **_AFFINE, scale=(0.95, 1.05), translate_percent=(-0.05, 0.05), rotate=(-10, 10), shear=(-5, 5), p=0.8
        ),
        a.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.7),
        a.GaussianBlur(blur_limit=(3, 5), sigma_limit=(0.1, 1.0), p=0.2),
    ]


def _strong(a: Any) -> list[Any]:
    """Photographs of few images a class: strong geometry, light and color, blur or noise or compression, holes."""
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
    """Outdoor photographs: rain, fog, shadows or low sun, one of them on every copy. In color only.

    No snow: albumentations 2.0.8 renders it as flat white areas, or with its textures overflows levels to black.
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
    """Images whose color is a property (products, fashion, bands): shape and position only, no level is changed."""
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
"""Name → builder of its operations, whose docstring describes it. None mirrors: `copy_flip` does, where allowed."""


def load_pipeline(name: str, field: str) -> str:
    """Load a pipeline by its name or the URI of a saved one, as JSON of its dictionary.

    UserError where there is no such pipeline, or it can't be created from data alone.
    """
    if name in PIPELINES:
        a = import_albumentations(field)
        return _check_serialized(a.to_dict(a.Compose(PIPELINES[name](a)))["transform"], field)
    expected = f"{', '.join(PIPELINES)}, or the URI of a pipeline that albumentations saved"
    return parse_saved_pipeline(read_document(name, field, expected), name, field)


def parse_saved_pipeline(body: Any, uri: str, field: str) -> str:
    """Return the JSON of a pipeline from the content of a saved file, as `load_pipeline`."""
    if not isinstance(body, dict) or not isinstance(body.get("transform"), dict):
        raise UserError(f"{field}: expected {redact(uri)} to hold a pipeline that albumentations saved, found none")
    return _check_serialized(body["transform"], field)


def _check_serialized(body: dict[str, Any], field: str) -> str:
    text = canonical_json(body).decode()
    with warnings.catch_warnings():
        # By default albumentations leaves out an argument that it does not know, and warns.
        warnings.simplefilter("error", UserWarning)
        _build(text, field)
    return text


def read_document(uri: str, field: str, expected: str) -> Any:
    """Read a small file of JSON or YAML. UserError says what was `expected`."""
    if "/" not in uri and "." not in uri:
        raise wrong(field, expected, uri)
    absolute = normalize(uri, field)
    try:
        entry = get_store(absolute).stat(absolute)
        if entry is None or entry.size > MAX_BYTES:
            raise wrong(field, expected, f"{uri} ({'no such file' if entry is None else f'{entry.size:,} bytes'})")
        data = get_store(absolute).read(absolute)
    except FileNotFoundError:
        raise wrong(field, expected, uri) from None
    return _parse_document(data, uri, field)


def _parse_document(data: bytes, uri: str, field: str) -> Any:
    import yaml

    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        expected = f"expected JSON or YAML in {redact(uri)}"
        raise UserError(f"{field}: {expected}, found neither: {first_line(error)}") from None


def _class_names(body: Any) -> Iterator[str]:
    """Yield the names of all classes in a pipeline's dictionary, at any depth."""
    if isinstance(body, dict):
        if "__class_fullname__" in body:
            yield str(body["__class_fullname__"])
        for value in body.values():
            yield from _class_names(value)
    elif isinstance(body, list):
        for value in body:
            yield from _class_names(value)


def _build(text: str, field: str, record: bool = True) -> Any:
    """Build a pipeline from its JSON. Every random number comes from the generators that it gets for each picture."""
    a = import_albumentations(field)
    from albumentations.core.serialization import SERIALIZABLE_REGISTRY, shorten_class_name

    body = json.loads(text)
    for name in _class_names(body):
        if shorten_class_name(name) not in SERIALIZABLE_REGISTRY:
            raise wrong(field, "operations that albumentations can make of data alone (no Lambda)", name)
    try:
        transform = a.from_dict({"transform": body})
        return a.Compose([transform], save_applied_params=record)
    except Exception as error:  # constructors raise anything for values that they refuse
        raise UserError(
            f"{field}: albumentations {a.__version__} can't make this pipeline: {summarize_exception(error)}"
        ) from None


def apply_pipeline(
    text: str, pixels: Pixels, random: np.random.Generator, field: str
) -> tuple[Pixels, list[dict[str, Any]]]:
    """Apply a pipeline to uint8 [H, W, 1 or 3]; return the same shape, and the applied operations with parameters."""
    result = run_pipeline(text, pixels, random, field, record=True)
    image = result["image"]
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != pixels.shape:
        raise UserError(
            f"{field}: expected a pipeline that leaves {describe_array(pixels)} as such, found {describe_array(image)}"
        )
    return np.ascontiguousarray(image), [_record(*applied) for applied in result.get("applied_transforms", [])]


def run_pipeline(
    text: str, pixels: Pixels, random: np.random.Generator, field: str, record: bool = False
) -> dict[str, Any]:
    """Return albumentations' result: `image`, of any shape and type, and `applied_transforms` if `record`."""
    pipeline = _thread_pipeline(text, field, record)
    # One generator for all operations: a seed for each would make all of them sample the same numbers.
    pipeline.set_random_state(random, py_random.Random(int(random.integers(2**63))))
    try:
        result: dict[str, Any] = pipeline(image=np.ascontiguousarray(pixels))
        return result
    except MemoryError:
        raise
    except Exception as error:  # of an operation that does not fit the picture
        raise UserError(f"{field}: fails on {describe_array(pixels)}: {summarize_exception(error)}") from None


def check_pipeline(text: str, height: int, width: int, channels: int, field: str) -> None:
    """Try a pipeline before anything is decoded; UserError as `apply_pipeline`."""
    gradient = np.linspace(0, 255, height * width * channels).astype(np.uint8).reshape(height, width, channels)
    for seed in range(4):
        apply_pipeline(text, gradient, np.random.default_rng(seed), field)


def _thread_pipeline(text: str, field: str, record: bool) -> Any:
    """Return this thread's own pipeline: a pipeline keeps state while it works."""
    if getattr(_local, "source", None) != (text, record):
        _local.pipeline, _local.source = _build(text, field, record), (text, record)
    return _local.pipeline


def _record(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"name": name} | {
        key: _to_json(value) for key, value in parameters.items() if key not in _IGNORED_PARAMETERS
    }


def _to_json(value: Any) -> Any:
    """Convert a parameter to JSON's types; a large array to its type and shape."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist() if value.size <= _SMALL else f"{value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value] if len(value) <= _SMALL else f"{len(value)} of {type(value).__name__}"
    return value if isinstance(value, str | int | float | bool) or value is None else type(value).__name__


def describe_array(image: Any) -> str:
    """Return dtype and shape of a picture, for messages."""
    return f"{image.dtype} {list(image.shape)}" if hasattr(image, "dtype") else type(image).__name__


def summarize_exception(error: Exception) -> str:
    """Return the class of a library's error and the first line of its text, 300 characters at most."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
