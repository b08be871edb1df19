"""What the augmentation benchmark times: each cell is made of its library's name and a task's, and augments images.

A cell is a function of no argument that augments `number` images, uint8 of 224 pixels a side, in the form that its
library takes them: ours uint8 [B, H, W, 3]; `torchvision` a uint8 tensor [3, H, W] each, `pillow` the same functions on
PIL images; `albumentations` uint8 [H, W, 3] each; `kornia` a batch of floats in [0, 1] (what it takes to make those
of uint8 is left out). `None`: that library has nothing like it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from imagemill.components.dataset.kinds import ImageSpec

SIZE = 224
Cell = Callable[[], Any]
IMAGE = ImageSpec((SIZE, SIZE, 3), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

OPERATIONS = (
    "Flip", "Crop", "Rotate", "ShearX", "TranslateX", "Perspective", "Brightness", "Contrast", "Color", "Hue",
    "Grayscale", "Posterize", "Solarize", "Invert", "AutoContrast", "Equalize", "Sharpness", "Blur", "Noise", "Jpeg",
    "Erase",
)  # fmt: skip
POLICIES = ("crop + flip", "color jitter", "RandAugment 2/9", "TrivialAugmentWide", "AutoAugment ImageNet")
"""The last three after a random resized crop and a flip."""
_VALUE = {
    "Brightness": 1.27, "Contrast": 1.27, "Color": 1.27, "Hue": 0.1, "Posterize": 5, "Solarize": 178.5,
    "Sharpness": 1.27, "Blur": 1.0, "Noise": 12.0, "Jpeg": 60,
}  # fmt: skip
BOX = (30, 20, 150, 170)
"""top, left, height, width of the crop that is timed."""
_OFF: dict[str, Any] = {"crop_scale": 1.0, "flip": "false", "vertical_flip": "false"}
_POLICY: dict[str, dict[str, Any]] = {
    "crop + flip": {}, "RandAugment 2/9": {"policy": "randaugment"}, "TrivialAugmentWide": {"policy": "trivialaugment"},
    "AutoAugment ImageNet": {"policy": "autoaugment"},
}  # fmt: skip


def config(**wanted: Any) -> Any:
    from imagemill.components.train.config import TrainConfig
    from imagemill.components.train.recipe_values import PLAIN

    return replace(TrainConfig(), **{**PLAIN, **_OFF, **wanted})


def _config_of(task: str) -> Any:
    if task == "color jitter":
        return config(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    return config(crop_scale=0.25, flip="true", **_POLICY[task])


def drawn(task: str, count: int) -> Any:
    """What was drawn where every image gets the same one operation."""
    from imagemill.components.train.augment import matrices
    from imagemill.components.train.augment.params import OPERATION_IDS, make_seed_params

    what = make_seed_params(0, 0, 0, count)
    every = np.ones(count)
    if task in OPERATION_IDS:
        value = np.full((count, 1), _VALUE.get(task, 0), np.float32)
        return replace(what, operations=np.full((count, 1), OPERATION_IDS[task], np.int8), values=value)
    if task == "Erase":
        return replace(what, erase=np.tile(np.array([40, 60, 70, 70], np.int32), (count, 1)))
    corners = np.array([[10, 14], [210, 8], [218, 205], [4, 216]], np.float64)
    made = {
        "Flip": lambda: matrices.make_flip(every > 0, SIZE, 0),
        "Crop": lambda: matrices.make_crop(np.tile(BOX, (count, 1)), SIZE),
        "Rotate": lambda: matrices.make_affine(
            20 * every, 0 * every, 0 * every, every, 0 * every, 0 * every, 112 * every
        ),
        "ShearX": lambda: matrices.make_affine(
            0 * every, 0 * every, 0 * every, every, 11 * every, 0 * every, 0 * every
        ),
        "TranslateX": lambda: matrices.make_affine(
            0 * every, 30 * every, 0 * every, every, 0 * every, 0 * every, every
        ),
        "Perspective": lambda: matrices.make_perspective(np.tile(corners, (count, 1, 1)), SIZE),
    }
    return replace(what, matrix=made[task]())


def ours(task: str, images: Any) -> Cell:
    from imagemill.components.train.augment.augmentation import Augmentation

    if task in OPERATIONS:
        augmentation, what = Augmentation(config(), IMAGE), drawn(task, len(images))
        return lambda: augmentation.apply(images, what)
    augmentation, number = Augmentation(_config_of(task), IMAGE), iter(range(10**9))
    return lambda: augmentation.apply(images, augmentation.make_params(0, next(number), len(images)))


def torchvision(task: str, images: Any) -> Cell:
    import torch

    tensors = [torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in images]
    function = _torchvision(task)
    return lambda: [function(image) for image in tensors]


def pillow(task: str, images: Any) -> Cell | None:
    from PIL import Image

    if task == "Noise":
        return None
    pictures = [Image.fromarray(image) for image in images]
    if task == "Erase":
        return None
    function = _torchvision(task)
    return lambda: [function(image) for image in pictures]


def _torchvision(task: str) -> Callable[[Any], Any]:
    import torch
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as tv

    how: dict[str, Any] = {"interpolation": v2.InterpolationMode.BILINEAR}
    crop = [v2.RandomResizedCrop(SIZE, (0.25, 1.0), antialias=True), v2.RandomHorizontalFlip()]
    policies = {
        "crop + flip": lambda: v2.Compose(crop), "color jitter": lambda: v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
        "RandAugment 2/9": lambda: v2.Compose([*crop, v2.RandAugment(2, 9, **how)]),
        "TrivialAugmentWide": lambda: v2.Compose([*crop, v2.TrivialAugmentWide(**how)]),
        "AutoAugment ImageNet": lambda: v2.Compose([*crop, v2.AutoAugment(**how)]),
    }  # fmt: skip
    if task in policies:
        return policies[task]()  # type: ignore[no-any-return]
    value, gray = _VALUE.get(task, 0), torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None]
    starts, ends = [[0, 0], [224, 0], [224, 224], [0, 224]], [[10, 14], [210, 8], [218, 205], [4, 216]]
    calls: dict[str, Callable[[Any], Any]] = {
        "Flip": tv.horizontal_flip, "Crop": lambda x: tv.resized_crop(x, *BOX, [SIZE, SIZE], antialias=True, **how),
        "Rotate": lambda x: tv.rotate(x, -20, **how),
        "ShearX": lambda x: tv.affine(x, 0.0, [0, 0], 1.0, [11.0, 0.0], center=[0, 0], **how),
        "TranslateX": lambda x: tv.affine(x, 0.0, [30, 0], 1.0, [0.0, 0.0], **how),
        "Perspective": lambda x: tv.perspective(x, starts, ends, **how),
        "Brightness": lambda x: tv.adjust_brightness(x, value), "Contrast": lambda x: tv.adjust_contrast(x, value),
        "Color": lambda x: tv.adjust_saturation(x, value), "Hue": lambda x: tv.adjust_hue(x, value),
        "Grayscale": lambda x: tv.rgb_to_grayscale(x, 3), "Posterize": lambda x: tv.posterize(x, int(value)),
        "Solarize": lambda x: tv.solarize(x, value), "Invert": tv.invert, "AutoContrast": tv.autocontrast,
        "Equalize": tv.equalize, "Sharpness": lambda x: tv.adjust_sharpness(x, value),
        "Blur": lambda x: tv.gaussian_blur(x, [5, 5], [value, value]),
        "Noise": lambda x: tv.gaussian_noise(x, 0.0, value / 255), "Jpeg": lambda x: tv.jpeg(x, int(value)),
        "Erase": lambda x: tv.erase(x, 40, 60, 70, 70, gray),
    }  # fmt: skip
    return calls[task]


def albumentations(task: str, images: Any) -> Cell | None:
    from imagemill.components.imaging.albumentations_pipelines import import_albumentations

    a = import_albumentations()
    v, fixed = _VALUE.get(task, 0.0), {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}
    hole = (0.3125, 0.3125)

    def jitter(**wanted: Any) -> Any:
        return a.ColorJitter(**{**fixed, **wanted}, p=1)

    made: dict[str, Callable[[], list[Any]]] = {
        "Flip": lambda: [a.HorizontalFlip(p=1)],
        "Crop": lambda: [a.RandomResizedCrop((SIZE, SIZE), scale=(0.5, 0.5), p=1)],
        "Rotate": lambda: [a.Affine(rotate=(20, 20), p=1)],
        "ShearX": lambda: [a.Affine(shear={"x": (11, 11), "y": (0, 0)}, p=1)],
        "TranslateX": lambda: [a.Affine(translate_px={"x": (30, 30), "y": (0, 0)}, p=1)],
        "Perspective": lambda: [a.Perspective(scale=(0.05, 0.05), p=1)],
        "Brightness": lambda: [jitter(brightness=(v, v))], "Contrast": lambda: [jitter(contrast=(v, v))],
        "Color": lambda: [jitter(saturation=(v, v))], "Hue": lambda: [jitter(hue=(v, v))],
        "Grayscale": lambda: [a.ToGray(p=1)], "Posterize": lambda: [a.Posterize(num_bits=(5, 5), p=1)],
        "Solarize": lambda: [a.Solarize(threshold_range=(0.7, 0.7), p=1)], "Invert": lambda: [a.InvertImg(p=1)],
        "AutoContrast": lambda: [a.AutoContrast(p=1)], "Equalize": lambda: [a.Equalize(mode="pil", p=1)],
        "Sharpness": lambda: [a.Sharpen(alpha=(0.3, 0.3), lightness=(1, 1), p=1)],
        "Blur": lambda: [a.GaussianBlur(blur_limit=(5, 5), sigma_limit=(1, 1), p=1)],
        "Noise": lambda: [a.GaussNoise(std_range=(v / 255, v / 255), p=1)],
        "Jpeg": lambda: [a.ImageCompression(quality_range=(60, 60), p=1)],
        "Erase": lambda: [a.CoarseDropout((1, 1), hole, hole, fill=(124, 116, 104), p=1)],
        "crop + flip": lambda: [a.RandomResizedCrop((SIZE, SIZE), scale=(0.25, 1.0)), a.HorizontalFlip()],
        "color jitter": lambda: [a.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), p=1)],
    }  # fmt: skip
    if task not in made:
        return None
    pipeline = a.Compose(made[task]())
    return lambda: [pipeline(image=image)["image"] for image in images]


def kornia(task: str, images: Any) -> Cell | None:
    import kornia.augmentation as k
    import torch
    from kornia.augmentation import auto

    v = _VALUE.get(task, 0.0)
    crop = [k.RandomResizedCrop((SIZE, SIZE), scale=(0.25, 1.0)), k.RandomHorizontalFlip()]
    made: dict[str, Callable[[], list[Any]]] = {
        "Flip": lambda: [k.RandomHorizontalFlip(p=1)],
        "Crop": lambda: [k.RandomResizedCrop((SIZE, SIZE), scale=(0.5, 0.5))],
        "Rotate": lambda: [k.RandomRotation((20.0, 20.0), p=1)], "ShearX": lambda: [k.RandomShear((11.0, 11.0), p=1)],
        "TranslateX": lambda: [k.RandomTranslate((0.134, 0.134), p=1)],
        "Perspective": lambda: [k.RandomPerspective(0.1, p=1)],
        "Brightness": lambda: [k.RandomBrightness((v, v), p=1)], "Contrast": lambda: [k.RandomContrast((v, v), p=1)],
        "Color": lambda: [k.RandomSaturation((v, v), p=1)], "Hue": lambda: [k.RandomHue((v, v), p=1)],
        "Grayscale": lambda: [k.RandomGrayscale(p=1)], "Posterize": lambda: [k.RandomPosterize((5, 5), p=1)],
        "Solarize": lambda: [k.RandomSolarize((0.2, 0.2), p=1)], "Invert": lambda: [k.RandomInvert(p=1)],
        "AutoContrast": lambda: [k.RandomAutoContrast(p=1)], "Equalize": lambda: [k.RandomEqualize(p=1)],
        "Sharpness": lambda: [k.RandomSharpness((v, v), p=1)],
        "Blur": lambda: [k.RandomGaussianBlur((5, 5), (1.0, 1.0), p=1)],
        "Noise": lambda: [k.RandomGaussianNoise(0.0, v / 255, p=1)], "Jpeg": lambda: [k.RandomJPEG((60.0, 60.0), p=1)],
        "Erase": lambda: [k.RandomErasing((0.1, 0.1), (1.0, 1.0), p=1)],
        "crop + flip": lambda: crop, "color jitter": lambda: [k.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1)],
        "RandAugment 2/9": lambda: [*crop, auto.RandAugment(n=2, m=9)],
        "TrivialAugmentWide": lambda: [*crop, auto.TrivialAugment()],
        "AutoAugment ImageNet": lambda: [*crop, auto.AutoAugment("imagenet")],
    }  # fmt: skip
    batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float().div_(255)
    steps = made[task]()

    def run() -> None:
        found = batch
        with torch.no_grad():
            for step in steps:
                found = step(found)

    return run


LIBRARIES: dict[str, Callable[[str, Any], Cell | None]] = {
    "ours": ours, "torchvision": torchvision, "pillow": pillow, "albumentations": albumentations, "kornia": kornia,
}  # fmt: skip
NEEDS = {"kornia": "kornia", "albumentations": "albumentations"}


def orders(images: Any) -> dict[str, Cell]:
    """The same result by several orders of its steps; the cheapest one is what params.py says."""
    from imagemill.components.train.augment.cpu_colors import LazyImage, apply_color_operations
    from imagemill.components.train.augment.cpu_engine import warp
    from imagemill.components.train.augment.matrices import make_affine, make_crop
    from imagemill.components.train.augment.params import OPERATION_IDS

    half = [np.ascontiguousarray(cv2.resize(image, (112, 112), interpolation=cv2.INTER_AREA)) for image in images]
    large = [np.ascontiguousarray(cv2.resize(image, (320, 320))) for image in images]
    one = np.ones(1)

    def turn(side: int) -> Any:
        return make_affine(20 * one, 0 * one, 0 * one, one, 0 * one, 0 * one, side / 2 * one)[0]

    def scaled(side: int) -> Any:
        return make_crop(np.array([[0, 0, side, side]]), SIZE)[0]

    def moved(image: Any, matrix: Any, size: int) -> Any:
        out = np.empty((size, size, 3), np.uint8)
        warp(image, matrix, out)
        return out

    numbers = [OPERATION_IDS[name] for name in ("Brightness", "Contrast", "Color", "Hue")]
    crop = make_crop(np.array([[40, 30, 240, 250]]), SIZE)[0]

    def colored(image: Any) -> Any:
        return apply_color_operations(LazyImage(image.copy(), np.empty_like(image), 0), numbers, [1.2, 0.8, 1.3, 0.05])

    return {
        "112 → 224: rotated, then made larger": lambda: [
            moved(moved(image, turn(112), 112), scaled(112), SIZE) for image in half
        ],
        "112 → 224: made larger, then rotated": lambda: [
            moved(moved(image, scaled(112), SIZE), turn(SIZE), SIZE) for image in half
        ],
        "112 → 224: both in one warp": lambda: [moved(image, scaled(112) @ turn(SIZE), SIZE) for image in half],
        "320 → 224: color jitter, then the crop": lambda: [moved(colored(image), crop, SIZE) for image in large],
        "320 → 224: the crop, then color jitter": lambda: [colored(moved(image, crop, SIZE)) for image in large],
        "224: crop, then rotated": lambda: [
            moved(moved(image, make_crop(np.array([BOX]), SIZE)[0], SIZE), turn(SIZE), SIZE) for image in images
        ],
        "224: crop and rotation in one warp": lambda: [
            moved(image, make_crop(np.array([BOX]), SIZE)[0] @ turn(SIZE), SIZE) for image in images
        ],
    }
