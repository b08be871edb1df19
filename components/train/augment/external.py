"""Augmentation by another library: a pipeline of albumentations or of torchvision, or a function.

A pipeline comes as data (a name, or the URI of JSON or YAML: one saved by albumentations, or a list of torchvision's v2
transforms with plain arguments, `[{RandomRotation: {degrees: 10}}, {RandomApply: {transforms: [...], p: 0.3}}]`), from
which only classes of the two libraries are made; or, in a user's own program, as an object.

Every image has a seed of its own, so that threads change nothing. torchvision samples from one generator for the whole
process; here it is given the image's generator, in this thread alone (`torch.overrides.TorchFunctionMode`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...dataset.manifest import canonical_json
from ...imaging.albumentations_pipelines import (
    PIPELINES,
    describe_array,
    load_pipeline,
    parse_saved_pipeline,
    read_document,
    run_pipeline,
    summarize_exception,
)
from ...imaging.decoder import Pixels
from ...storage.errors import UserError, wrong
from ...storage.uri import redact
from .params import AugmentParams

if TYPE_CHECKING:
    import torch

FIELD = "augment_pipeline"
CONTAINERS = ("Compose", "RandomApply", "RandomChoice", "RandomOrder")
"""Of other transforms, in their argument `transforms`."""
TRANSFORMS = (
    *CONTAINERS, "AugMix", "AutoAugment", "CenterCrop", "ColorJitter", "ElasticTransform", "GaussianBlur",
    "GaussianNoise", "Grayscale", "Identity", "JPEG", "Pad", "RandAugment", "RandomAdjustSharpness", "RandomAffine",
    "RandomAutocontrast", "RandomChannelPermutation", "RandomCrop", "RandomEqualize", "RandomErasing",
    "RandomGrayscale", "RandomHorizontalFlip", "RandomInvert", "RandomPerspective", "RandomPhotometricDistort",
    "RandomPosterize", "RandomResize", "RandomResizedCrop", "RandomRotation", "RandomShortestSize", "RandomSolarize",
    "RandomVerticalFlip", "RandomZoomOut", "Resize", "ScaleJitter", "TrivialAugmentWide",
)  # fmt: skip
"""Names in torchvision.transforms.v2: one image of uint8 in, one out. Not Lambda, which is code."""
_RANDOM_FUNCTIONS = (
    "rand", "randint", "randn", "randperm", "normal", "multinomial", "bernoulli", "poisson", "_sample_dirichlet",
    "uniform_", "normal_", "random_", "bernoulli_", "exponential_",
)  # fmt: skip
"""Functions of torch, and methods of its tensors, that take a generator."""
_TRIAL_SEEDS = 4
"""With which a pipeline is tried before any image is read."""

Pipeline = Callable[[Pixels, np.random.Generator], Any]
"""A function of an image, uint8 [H, W, C], and the generator for everything random."""
_ImageFunction = Callable[[Pixels, int], Any]


class ExternalEngine:
    """Applies a pipeline with `params.seeds` to images as they are stored: uint8 [B, H, W, C] → uint8 [B, S, S, C]. A
    result larger than S is cropped at a random position.

    UserError where a pipeline does not give such images, already when it is constructed.
    """

    def __init__(self, pipeline: str | Pipeline | Any, shape: tuple[int, int, int], size: int) -> None:
        self._function, self._size = _make_function(pipeline), size
        gradient = np.linspace(0, 255, int(np.prod(shape))).astype(np.uint8).reshape(shape)
        for seed in range(_TRIAL_SEEDS):
            self._augment(gradient, seed)

    def __call__(self, images: Pixels, params: AugmentParams) -> Pixels:
        outputs = np.empty((len(images), self._size, self._size, images.shape[3]), np.uint8)
        for image, out, seed in zip(images, outputs, params.seeds.tolist(), strict=True):
            out[...] = self._augment(image, seed)
        return outputs

    def _augment(self, image: Pixels, seed: int) -> Pixels:
        try:
            result = self._function(image, seed)
        except (MemoryError, UserError):
            raise
        except Exception as error:  # an operation that does not suit the image
            raise UserError(f"{FIELD}: fails on {describe_array(image)}: {summarize_exception(error)}") from None
        size, channels = self._size, image.shape[2]
        is_image = isinstance(result, np.ndarray) and result.dtype == np.uint8 and result.ndim == 3
        if not is_image or min(result.shape[:2]) < size or result.shape[2] != channels:
            expected = f"uint8 [{size}, {size}, {channels}] or larger"
            raise UserError(
                f"{FIELD}: expected a pipeline that makes {expected} of {describe_array(image)}, "
                f"found {describe_array(result)}"
            )
        if result.shape[:2] == (size, size):
            return np.asarray(result)
        margin = np.array(result.shape[:2]) - size
        top, left = np.random.default_rng([seed, 1]).integers(margin + 1)
        return np.asarray(result[top : top + size, left : left + size], np.uint8)


def resolve_pipeline(pipeline: str) -> tuple[str, str]:
    """Return the library and the canonical JSON of a pipeline, which is given by name or as the URI of a saved one.
    UserError as `ExternalEngine`."""
    if pipeline in PIPELINES:
        return "albumentations", load_pipeline(pipeline, FIELD)
    expected = (
        f"{', '.join(PIPELINES)}, or the URI of a pipeline that albumentations saved or of a list of torchvision's "
        "transforms"
    )
    body = read_document(pipeline, FIELD, expected)
    if isinstance(body, dict) and "transform" in body:
        return "albumentations", parse_saved_pipeline(body, pipeline, FIELD)
    if not isinstance(body, list):
        raise UserError(f"{FIELD}: expected {redact(pipeline)} to hold {expected}, found {type(body).__name__}")
    _make_transforms(body, FIELD)
    return "torchvision", canonical_json(body).decode()


def _make_function(pipeline: str | Pipeline | Any) -> _ImageFunction:
    if isinstance(pipeline, str):
        library, text = resolve_pipeline(pipeline)
        return _make_albumentations(text) if library == "albumentations" else _make_torchvision(text)
    if hasattr(pipeline, "to_dict") and hasattr(pipeline, "set_random_state"):
        return _make_albumentations(parse_saved_pipeline(pipeline.to_dict(), "this pipeline", FIELD))
    import torch

    if isinstance(pipeline, torch.nn.Module):
        return _seed_module(pipeline)
    if not callable(pipeline):
        raise wrong(FIELD, "a name, a URI, a pipeline of albumentations or torchvision, or a function", pipeline)
    return lambda image, seed: pipeline(image, np.random.default_rng(seed))


def _make_albumentations(text: str) -> _ImageFunction:
    def run(image: Pixels, seed: int) -> Any:
        return run_pipeline(text, image, np.random.default_rng(seed), FIELD)["image"]

    return run


def _make_torchvision(text: str) -> _ImageFunction:
    from torchvision.transforms import v2

    return _seed_module(v2.Compose(_make_transforms(json.loads(text), FIELD)))


def _make_transforms(items: Any, field: str) -> list[Any]:
    """Construct torchvision's transforms from a list of JSON. UserError names an invalid one by its path in `field`."""
    if not isinstance(items, list) or not items:
        raise wrong(field, "a list of transforms", items)
    return [_make_transform(item, f"{field}[{index}]") for index, item in enumerate(items)]


def _make_transform(item: Any, field: str) -> Any:
    from torchvision.transforms import v2

    name, arguments = item, None
    if isinstance(item, dict) and len(item) == 1:
        name, arguments = next(iter(item.items()))
    if name not in TRANSFORMS or not isinstance(arguments or {}, dict):
        raise wrong(field, f"one of {', '.join(sorted(TRANSFORMS))} with its arguments (no Lambda)", item)
    arguments = dict(arguments or {})
    field = f"{field}.{name}"
    for key, value in arguments.items():
        if not (name in CONTAINERS and key == "transforms") and not _is_plain(value):
            raise wrong(f"{field}.{key}", "numbers, words or lists of them", value)
    if name in CONTAINERS:
        arguments["transforms"] = _make_transforms(arguments.get("transforms"), f"{field}.transforms")
    try:
        if name == "AutoAugment" and "policy" in arguments:
            arguments["policy"] = v2.AutoAugmentPolicy(arguments["policy"])
        return getattr(v2, name)(**arguments)
    except Exception as error:  # constructors raise errors of any type for invalid values
        raise UserError(f"{field}: torchvision can't make this: {summarize_exception(error)}") from None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _seed_module(module: torch.nn.Module) -> _ImageFunction:
    """Make a transform of torchvision on uint8 [C, H, W] sample from a generator with the image's seed."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Seeded(TorchFunctionMode):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self._generator = torch.Generator().manual_seed(seed)

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs, name = kwargs or {}, getattr(func, "__name__", "")
            if name in _RANDOM_FUNCTIONS:
                return func(*args, **{"generator": self._generator, **kwargs})
            if name in ("randn_like", "rand_like"):  # they take no generator in older versions of torch
                options = {"dtype": args[0].dtype, "device": args[0].device, **kwargs}
                return getattr(torch, name.removesuffix("_like"))(args[0].shape, generator=self._generator, **options)
            return func(*args, **kwargs)

    def run(image: Pixels, seed: int) -> Any:
        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        with Seeded(seed), torch.no_grad():
            result = module(planes)
        if not isinstance(result, torch.Tensor) or result.ndim != 3:
            return result
        return np.ascontiguousarray(result.permute(1, 2, 0).numpy())

    return run
