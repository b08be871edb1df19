"""The values of the recipes, each with the reason for it.

Sources, by the mark in a line's comment: N practitioners' rules of thumb (which strengths and shares work for how many
images a class); T torchvision's reference recipes (references/classification/README.md; "How to Train State-Of-The-Art
Models Using TorchVision's Latest Primitives", 2021); S Steiner et al., "How to train your ViT?", 2021; H He et al.,
"Bag of Tricks", 2019; M measured; O our own judgement.
"""

from __future__ import annotations

from typing import Any

Values = dict[str, Any]

PLAIN: Values = {
    "epochs": 8, "learning_rate": 0.001, "optimizer": "adamw", "weight_decay": 0.01, "warmup": 0.1, "clip_norm": 1.0,
    "layer_decay": 1.0, "backbone_rate": 1.0, "probe_epochs": 0, "unfreeze_epochs": 0, "early_stopping": 0,
    "label_smoothing": 0.05, "ema": 0.0, "dropout": 0.0, "drop_path": 0.0, "class_balance": "none",
    "rotate": 0.0, "translate": 0.0, "zoom": 0.0, "shear": 0.0, "perspective": 0.0,
    "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0,
    "blur": 0.0, "noise": 0.0, "jpeg_artifacts": 0.0, "erasing": 0.0, "policy": "none",
    "mixup": 0.2, "mixup_probability": 0.0, "cutmix": 1.0, "cutmix_probability": 0.0,
}  # fmt: skip
"""Every option that a recipe may set, with its value in `plain`: crops and flips alone."""

GEOMETRY = ("rotate", "translate", "zoom", "shear", "perspective")
COLOR = ("brightness", "contrast", "saturation", "hue", "grayscale")
DEGRADATION = ("blur", "noise", "jpeg_artifacts", "erasing")
PER_IMAGE = (*GEOMETRY, *COLOR, *DEGRADATION, "policy")

_JITTER: Values = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}  # N
_AFFINE: Values = {"rotate": 10.0, "translate": 0.05, "zoom": 0.05, "shear": 5.0}  # N

STANDARD: Values = PLAIN | _AFFINE | _JITTER | {
    "weight_decay": 0.05,  # T for AdamW (ConvNeXt, Swin)
    "rotate": 15.0,  # O: RandAugment at 9 turns by 9 degrees, photographs in the wild are turned further
    "grayscale": 0.05,  # N has 0.1, with no policy of colors beside it
    "blur": 0.1, "noise": 0.1, "jpeg_artifacts": 0.1,  # N: what cameras and the web do, each to few images
    "erasing": 0.25,  # N; T has 0.1 for long trainings
    "policy": "randaugment",  # N, at 2/9, its paper's values for ImageNet (Cubuk et al., 2020)
    "mixup_probability": 0.1, "cutmix_probability": 0.1,  # N has 0.4 each; ten epochs are too short for that (O)
}  # fmt: skip
"""Thousands to tens of thousands of images. From scratch the epochs are by their number."""
LONG_ENOUGH = ("small", "standard", "finetune")
"""Recipes whose epochs are by the number of images, unless the weights have others."""
MIN_UPDATES, MIN_EPOCHS, MAX_EPOCHS = 1_000, 30, 300
"""Of these, from scratch. Batches of `UPDATE_IMAGES` that it takes at least, whatever the number of images (O; M:
on the demo's 560, 140 of them give 0.56 macro-F1 on its harder test images and 280 give 0.65, one seed, 64 pixels).
Epochs at least: small networks learn CIFAR-10's 50,000 images in about 30 (entries of DAWNBench, Coleman et al., 2017);
and at most, for a hundred images and fewer."""
UPDATE_IMAGES = 32

SMALL: Values = PLAIN | {
    "weight_decay": 0.05,
    "early_stopping": 8,  # N; from scratch a third of the training, since validation of few images wavers
    "rotate": 20.0, "translate": 0.1, "zoom": 0.15, "shear": 8.0, "perspective": 0.1,  # N: strong geometry
    "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05, "grayscale": 0.1,  # N: and color
    "blur": 0.1, "noise": 0.1, "jpeg_artifacts": 0.1, "erasing": 0.25,  # N
    "policy": "trivialaugment",  # N; nothing to tune (Müller and Hutter, 2021)
    "mixup_probability": 0.4, "cutmix_probability": 0.1,  # N: MixUp often, CutMix rarely
}  # fmt: skip
"""Under 50 images a class."""

LARGE: Values = PLAIN | {
    "epochs": 90,  # T: ResNet-50's first recipe; and what gains by mixing needs long
    "weight_decay": 0.1,  # N "strong"; S: 0.03 to 0.3 for AdamW, the more the more data and augmentation
    "warmup": 0.05,  # T: 5 epochs of 90, H
    "policy": "autoaugment",  # N, T
    "erasing": 0.1,  # T
    "mixup_probability": 0.4, "cutmix_probability": 0.4,  # N, never both in a batch
    "dropout": 0.1,  # N; S finds it of use where the training is long
    "drop_path": 0.2,  # N; T: 0.1 to 0.5 by the size of the network
}  # fmt: skip
"""From 100,000 images on. All color and geometry come by the policy; the crop comes by the preset."""

PROBE: Values = PLAIN | {"epochs": 1, "probe_epochs": 1}
"""A solved head on a frozen network, for which most values of PLAIN have no meaning."""

FINETUNE: Values = STANDARD
"""Fine-tuning from a solved head, as far as validation gains (Kumar et al., 2022)."""

RECIPES = {"plain": PLAIN, "probe": PROBE, "finetune": FINETUNE, "small": SMALL, "standard": STANDARD, "large": LARGE}

PRETRAINED: dict[str, Values] = {
    "plain": {},
    "probe": {},
    # Few images: a random head would spoil what the layers below know (Kumar et al., 2022), so it is solved first.
    "small": {"epochs": 20, "weight_decay": 0.01, "probe_epochs": 1, "unfreeze_epochs": 5, "backbone_rate": 0.3},
    # N: 20 epochs is the users' reference run.
    "standard": {
        "epochs": 20,
        "probe_epochs": 1,
        "weight_decay": 0.01,
        "backbone_rate": 0.3,
        "mixup_probability": 0.2,
        "cutmix_probability": 0.2,
    },
    "large": {"weight_decay": 0.05, "backbone_rate": 0.5},
}
PRETRAINED["finetune"] = PRETRAINED["standard"] | {"early_stopping": 4}
"""Values that pretrained weights change: little weight decay, since the weights are good already (N has 1e-4, timm
0.05), and a head with three times the learning rate of the layers below (Howard and Ruder, 2018)."""

WARM: dict[str, Values] = {
    "plain": {"epochs": 3},
    "probe": {},
    "finetune": {"epochs": 8, "weight_decay": 0.01, "early_stopping": 4},
    "small": {"epochs": 8, "weight_decay": 0.01, "early_stopping": 4},
    "standard": {"weight_decay": 0.01},
    "large": {"epochs": 30, "weight_decay": 0.05},
}
"""Values that a start from the champion changes: about a third of the epochs (O; of `standard` a third of
`MIN_EPOCHS`), little weight decay as above."""

SOLVED_HEADS = ("probe", "finetune", "small", "standard")
"""Recipes that begin with a solved head where there are pretrained weights; 100,000 images soon leave such a start."""

SGD_DECAY = 1e-4
"""Weight decay of sgd in every recipe (T, H): it is part of the gradient, unlike adamw's."""

_NO_COLOR: Values = {"saturation": 0.0, "hue": 0.0, "grayscale": 0.0}
BY_PRESET: dict[str, Values] = {
    # The policies change saturation, posterize and solarize: color is a property of the product.
    "fashion": _NO_COLOR | {"policy": "none"},
    # N: little rotation, contrast and noise instead; nothing that covers or swaps letters.
    "ocr": _NO_COLOR | {
        "rotate": 5.0, "translate": 0.05, "zoom": 0.1, "shear": 3.0, "perspective": 0.05,
        "contrast": 0.3, "noise": 0.3, "blur": 0.2, "policy": "none", "erasing": 0.0, "cutmix_probability": 0.0,
    },
    # N: conservative. A box may hide the finding, and a patch of another patient may be one.
    "medical": _NO_COLOR | {
        "rotate": 5.0, "translate": 0.02, "zoom": 0.05, "shear": 0.0, "perspective": 0.0,
        "brightness": 0.1, "contrast": 0.1, "blur": 0.0, "noise": 0.1, "jpeg_artifacts": 0.0, "policy": "none",
        "erasing": 0.0, "cutmix_probability": 0.0,
    },
    # Seen from above every direction is as likely: with both flips 45 degrees reach them all. Bands are no colors.
    "satellite": _NO_COLOR | {"rotate": 45.0, "perspective": 0.0},
}  # fmt: skip
"""Values that a preset changes, in every recipe but `plain`."""

TINY: Values = {"perspective": 0.0, "blur": 0.0, "noise": 0.0, "jpeg_artifacts": 0.0, "erasing": 0.1}
"""Upper limits for tiny images: a blur of two pixels or an erased box leaves too little of the object."""
TINY_SIZE = 48
"""Side in pixels up to which images are tiny (CIFAR's have 32)."""

OWN_DROPOUT = {
    "alexnet": 0.5, "vgg": 0.5, "squeezenet": 0.5, "inception_v3": 0.5, "googlenet": 0.2, "mobilenet": 0.2,
    "mnasnet": 0.2, "efficientnet_b0": 0.2, "efficientnet_b1": 0.2, "efficientnet_b2": 0.3, "efficientnet_b3": 0.3,
    "efficientnet_b4": 0.4, "efficientnet_b5": 0.4, "efficientnet_b6": 0.5, "efficientnet_b7": 0.5,
    "efficientnet_v2_s": 0.2, "efficientnet_v2_m": 0.3, "efficientnet_v2_l": 0.4,
}  # fmt: skip
"""Dropout before the head that is part of a network, by the beginning of its name: T, as in the papers."""
