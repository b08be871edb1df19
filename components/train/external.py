"""Somebody else's augmentation instead of ours: a pipeline of albumentations or of torchvision, or a function.

Either comes as data (a name, or the URI of JSON or YAML: what albumentations saved, or a list of torchvision's v2
transforms with plain arguments, `[{RandomRotation: {degrees: 10}}, {RandomApply: {transforms: [...], p: 0.3}}]`), from
which nothing but classes of the two libraries is made; or, in a program of one's own, as an object.

Every image has a seed of its own, so that threads change nothing. torchvision draws from one generator for the whole
process; here its draws are handed to one of the image's, in this thread alone (`torch.overrides.TorchFunctionMode`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..store.errors import UserError, wrong
from ..store.fingerprint import canonical_json
from ..store.images import Pixels
from ..store.pipelines import (
    PIPELINES,
    describe_array,
    load_pipeline,
    parse_saved_pipeline,
    read_document,
    run_pipeline,
    summarize_exception,
)
from ..store.uri import redact
from .drawn import Drawn

if TYPE_CHECKING:
    import torch

FIELD = "augment_pipeline"
HOLDERS = ("Compose", "RandomApply", "RandomChoice", "RandomOrder")
"""Of `transforms`."""
TRANSFORMS = (
    *HOLDERS, "AugMix", "AutoAugment", "CenterCrop", "ColorJitter", "ElasticTransform", "GaussianBlur",
    "GaussianNoise", "Grayscale", "Identity", "JPEG", "Pad", "RandAugment", "RandomAdjustSharpness", "RandomAffine",
    "RandomAutocontrast", "RandomChannelPermutation", "RandomCrop", "RandomEqualize", "RandomErasing",
    "RandomGrayscale", "RandomHorizontalFlip", "RandomInvert", "RandomPerspective", "RandomPhotometricDistort",
    "RandomPosterize", "RandomResize", "RandomResizedCrop", "RandomRotation", "RandomShortestSize", "RandomSolarize",
    "RandomVerticalFlip", "RandomZoomOut", "Resize", "ScaleJitter", "TrivialAugmentWide",
)  # fmt: skip
"""Of torchvision.transforms.v2: one image of uint8 in, one out. Not Lambda, which is code."""
_DRAWING = (
    "rand", "randint", "randn", "randperm", "normal", "multinomial", "bernoulli", "poisson", "_sample_dirichlet",
    "uniform_", "normal_", "random_", "bernoulli_", "exponential_",
)  # fmt: skip
"""Functions of torch, and methods of its tensors, that take a generator."""
_TRIES = 4
"""Images on which a pipeline is tried before any is read."""

Pipeline = Callable[[Pixels, np.random.Generator], Any]
"""A function of an image, uint8 [H, W, C], and the generator for all that is random about it."""
_Run = Callable[[Pixels, int], Any]


class External:
    """uint8 [B, H, W, C] → uint8 [B, S, S, C] by `drawn.seeds` and a pipeline, which gets images as they are stored. Of
    what comes out larger than S a square anywhere in it is taken.

    UserError where a pipeline can't do that, already when it is made.
    """

    def __init__(self, pipeline: str | Pipeline | Any, shape: tuple[int, int, int], size: int) -> None:
        self._run, self._size = _runner(pipeline), size
        grey = np.linspace(0, 255, int(np.prod(shape))).astype(np.uint8).reshape(shape)
        for seed in range(_TRIES):
            self._one(grey, seed)

    def __call__(self, images: Pixels, drawn: Drawn) -> Pixels:
        out = np.empty((len(images), self._size, self._size, images.shape[3]), np.uint8)
        for image, made, seed in zip(images, out, drawn.seeds.tolist(), strict=True):
            made[...] = self._one(image, seed)
        return out

    def _one(self, image: Pixels, seed: int) -> Pixels:
        try:
            found = self._run(image, seed)
        except (MemoryError, UserError):
            raise
        except Exception as error:  # of an operation that does not fit the picture
            raise UserError(f"{FIELD}: fails on {describe_array(image)}: {summarize_exception(error)}") from None
        size, channels = self._size, image.shape[2]
        fits = isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.ndim == 3
        if not fits or min(found.shape[:2]) < size or found.shape[2] != channels:
            expected = f"uint8 [{size}, {size}, {channels}] or larger"
            raise UserError(
                f"{FIELD}: expected a pipeline that makes {expected} of {describe_array(image)}, "
                f"found {describe_array(found)}"
            )
        if found.shape[:2] == (size, size):
            return np.asarray(found)
        spare = np.array(found.shape[:2]) - size
        top, left = np.random.default_rng([seed, 1]).integers(spare + 1)
        return np.asarray(found[top : top + size, left : left + size], np.uint8)


def pipeline_content(chosen: str) -> str:
    """A name, or the URI of a saved pipeline, as the JSON of what is applied: what counts. UserError as `External`."""
    return _text_of(chosen)[1]


def _runner(pipeline: str | Pipeline | Any) -> _Run:
    if isinstance(pipeline, str):
        library, text = _text_of(pipeline)
        return _albumentations(text) if library == "albumentations" else _torchvision(text)
    if hasattr(pipeline, "to_dict") and hasattr(pipeline, "set_random_state"):
        return _albumentations(parse_saved_pipeline(pipeline.to_dict(), "this pipeline", FIELD))
    import torch

    if isinstance(pipeline, torch.nn.Module):
        return _seeded_module(pipeline)
    if not callable(pipeline):
        raise wrong(FIELD, "a name, a URI, a pipeline of albumentations or torchvision, or a function", pipeline)
    return lambda image, seed: pipeline(image, np.random.default_rng(seed))


def _text_of(chosen: str) -> tuple[str, str]:
    """The library, and the pipeline as JSON."""
    if chosen in PIPELINES:
        return "albumentations", load_pipeline(chosen, FIELD)
    expected = (
        f"{', '.join(PIPELINES)}, or the URI of a pipeline that albumentations saved or of a list of torchvision's "
        "transforms"
    )
    body = read_document(chosen, FIELD, expected)
    if isinstance(body, dict) and "transform" in body:
        return "albumentations", parse_saved_pipeline(body, chosen, FIELD)
    if not isinstance(body, list):
        raise UserError(f"{FIELD}: expected {redact(chosen)} to hold {expected}, found {type(body).__name__}")
    _transforms(body, FIELD)
    return "torchvision", canonical_json(body).decode()


def _albumentations(text: str) -> _Run:
    def run(image: Pixels, seed: int) -> Any:
        return run_pipeline(text, image, np.random.default_rng(seed), FIELD)["image"]

    return run


def _torchvision(text: str) -> _Run:
    import json

    from torchvision.transforms import v2

    return _seeded_module(v2.Compose(_transforms(json.loads(text), FIELD)))


def _transforms(steps: Any, where: str) -> list[Any]:
    """A list as it was written → torchvision's transforms. UserError names what it does not know, and where."""
    if not isinstance(steps, list) or not steps:
        raise wrong(where, "a list of transforms", steps)
    return [_transform(step, f"{where}[{at}]") for at, step in enumerate(steps)]


def _transform(step: Any, where: str) -> Any:
    from torchvision.transforms import v2

    name, arguments = (step, {}) if isinstance(step, str) else next(iter(step.items())) if _is_one(step) else ("", {})
    if name not in TRANSFORMS or not isinstance(arguments or {}, dict):
        raise wrong(where, f"one of {', '.join(sorted(TRANSFORMS))} with its arguments (no Lambda)", step)
    arguments = dict(arguments or {})
    inside = f"{where}.{name}"
    for key, value in arguments.items():
        if not (name in HOLDERS and key == "transforms") and not _is_plain(value):
            raise wrong(f"{inside}.{key}", "numbers, words or lists of them", value)
    if name in HOLDERS:
        arguments["transforms"] = _transforms(arguments.get("transforms"), f"{inside}.transforms")
    try:
        if name == "AutoAugment" and "policy" in arguments:
            arguments["policy"] = v2.AutoAugmentPolicy(arguments["policy"])
        return getattr(v2, name)(**arguments)
    except Exception as error:  # whatever a constructor says of values that it does not like
        raise UserError(f"{inside}: torchvision can't make this: {summarize_exception(error)}") from None


def _is_one(step: Any) -> bool:
    return isinstance(step, dict) and len(step) == 1


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(one) for one in value)
    return value is None or isinstance(value, bool | int | float | str)


def _seeded_module(module: torch.nn.Module) -> _Run:
    """A transform of torchvision on uint8 [C, H, W], random by the image's seed."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Seeded(TorchFunctionMode):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self._generator = torch.Generator().manual_seed(seed)

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs, name = kwargs or {}, getattr(func, "__name__", "")
            if name in _DRAWING:
                return func(*args, **{"generator": self._generator, **kwargs})
            if name in ("randn_like", "rand_like"):  # which took no generator for long
                about = {"dtype": args[0].dtype, "device": args[0].device, **kwargs}
                return getattr(torch, name.removesuffix("_like"))(args[0].shape, generator=self._generator, **about)
            return func(*args, **kwargs)

    def run(image: Pixels, seed: int) -> Any:
        planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        with Seeded(seed), torch.no_grad():
            found = module(planes)
        if not isinstance(found, torch.Tensor) or found.ndim != 3:
            return found
        return np.ascontiguousarray(found.permute(1, 2, 0).numpy())

    return run
