"""Recipes: chosen by the dataset's size, fitted to weights, network and images, and overridden by explicit values."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.dataset.kinds import ImageSpec, StoredCopies, TensorsExtra
from imagemill.components.dataset.manifest import Manifest, Totals
from imagemill.components.models.torchvision_models import backbones, has_drop_path
from imagemill.components.step.presets import NAMES
from imagemill.components.train.config import RECIPES, TrainConfig
from imagemill.components.train.recipe_values import BY_PRESET, COLOR, OWN_DROPOUT, PER_IMAGE, PLAIN, PRETRAINED
from imagemill.components.train.recipe_values import RECIPES as TABLES
from imagemill.components.train.recipes import choose_epochs, choose_layer_decay, chooses_epochs, resolve

FROM_SCRATCH = tuple(recipe for recipe in RECIPES if recipe not in ("probe", "finetune"))
"""Recipes that need no pretrained weights."""


def make_manifest(
    train: int = 560, classes: int = 6, size: int = 128, color: str = "rgb", copies: int = 0, labels: int = 1
) -> Manifest:
    """Return the manifest of that many training images (`copies` of them copies) and a quarter as many others."""
    channels = 1 if color == "gray" else 3
    rows = train + train // 4
    by_class = {f"class {n}": rows * labels // classes for n in range(classes)}
    return Manifest(
        "tensors", "01", classes=tuple(by_class), task="single" if labels == 1 else "multi",
        totals=Totals(rows=rows, by_split={"train": train, "val": rows - train}, by_class=by_class),
        image=ImageSpec((size, size, channels), color=color), extra=TensorsExtra(copies=StoredCopies(rows=copies)),
    )  # fmt: skip


def resolve_config(manifest: Manifest | None = None, **values: Any) -> TrainConfig:
    config = resolve(TrainConfig.from_values({"weights": ""} | values), manifest or make_manifest())
    config.check()
    return config


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (make_manifest(), "standard"),  # the demo set
        (make_manifest(3680, 37), "standard"),  # the Pets
        (make_manifest(1800, 37), "small"),
        (make_manifest(198, 2), "small"),  # enough a class, but few
        (make_manifest(300, 6), "standard"),
        (make_manifest(294, 6), "small"),
        (make_manifest(600, 6, copies=400), "small"),  # a copy is no new image
        (make_manifest(300, 20, labels=4), "standard"),  # an image with four labels is one of each class
        (make_manifest(99_999, 1000), "standard"),
        (make_manifest(100_000, 1000), "large"),
        (make_manifest(100_000, 5000), "large"),
    ],
)
def test_auto_chooses_the_recipe_by_the_dataset_size(manifest: Manifest, expected: str) -> None:
    assert resolve_config(manifest).recipe == expected
    assert resolve_config(manifest, recipe="plain").recipe == "plain"


def test_plain_recipe_has_crops_and_flips_only() -> None:
    for more in ({}, {"weights": "DEFAULT"}, {"preset": "ocr"}, {"backbone": "convnext_tiny"}):
        config = resolve_config(recipe="plain", **more)
        assert {name: getattr(config, name) for name in PER_IMAGE} == dict.fromkeys(PER_IMAGE, 0.0) | {"policy": "none"}
        off = ("mixup_probability", "cutmix_probability", "drop_path", "dropout", "ema")
        assert {getattr(config, name) for name in off} == {0}
        assert config.epochs == 8 and config.probe_epochs == config.unfreeze_epochs == config.early_stopping == 0
        assert config.class_balance == "none" and config.layer_decay == config.backbone_rate == 1


def test_epochs_from_scratch_are_by_the_number_of_images() -> None:
    """A thousand batches of 32 at least, in 30 to 300 epochs; the source may recommend others, users overrule both."""
    for images, epochs in ((30, 300), (325, 99), (560, 58), (1_066, 31), (1_067, 30), (5_000, 30), (99_999, 30)):
        manifest = make_manifest(images, 2)
        assert choose_epochs(images) == epochs
        for recipe in ("small", "standard"):
            config = resolve_config(manifest, recipe=recipe)
            assert config.epochs == epochs and chooses_epochs(TrainConfig(), config, manifest)
            assert not chooses_epochs(TrainConfig(epochs=4), config, manifest)
            assert resolve_config(manifest, recipe=recipe, epochs=4).epochs == 4
            with_weights = resolve_config(manifest, recipe=recipe, weights="DEFAULT")
            assert with_weights.epochs == 20 and not chooses_epochs(TrainConfig(), with_weights, manifest)
    assert resolve_config(make_manifest(325, 2), recipe="small").early_stopping == 33, "a third"
    demo = replace(make_manifest(), extra=TensorsExtra(epochs=8))
    assert resolve_config(demo).epochs == 8 and not chooses_epochs(TrainConfig(), resolve_config(demo), demo)


def test_recipes_set_every_unset_option_and_no_other() -> None:
    unset = {field.name for field in fields(TrainConfig) if field.metadata["help"].endswith("by the recipe)")}
    unset.add("learning_rate")  # by the recipe, the optimizer and the weights
    assert set(PLAIN) - {"mixup", "cutmix"} <= unset | {"optimizer"}
    assert unset <= set(PLAIN), "an option would stay unset"
    for table in (*TABLES.values(), *PRETRAINED.values(), *BY_PRESET.values()):
        assert set(table) <= set(PLAIN)


CHOSEN: dict[str, Any] = {
    "epochs": 3, "learning_rate": 0.02, "optimizer": "sgd", "weight_decay": 0.0, "warmup": 0.0, "clip_norm": 0.0,
    "layer_decay": 0.5, "backbone_rate": 0.0, "probe_epochs": 0, "unfreeze_epochs": 0, "early_stopping": 0,
    "label_smoothing": 0.0, "ema": 0.0, "dropout": 0.0, "drop_path": 0.0, "class_balance": "none", "rotate": 0.0,
    "translate": 0.0, "zoom": 0.0, "shear": 0.0, "perspective": 0.0, "brightness": 0.0, "contrast": 0.0,
    "saturation": 0.7, "hue": 0.4, "grayscale": 0.0, "blur": 0.0, "noise": 0.0, "jpeg_artifacts": 0.0, "erasing": 0.0,
    "policy": "none", "mixup": 0.0, "mixup_probability": 0.0, "cutmix": 0.0, "cutmix_probability": 0.0,
}  # fmt: skip
"""Explicit values, zero above all: a recipe must not take them for unset."""


@settings(max_examples=80, deadline=None)
@given(
    recipe=st.sampled_from(FROM_SCRATCH), preset=st.sampled_from(NAMES), weights=st.sampled_from(["", "DEFAULT"]),
    backbone=st.sampled_from(["resnet18", "vit_b_16", "swin_t", "efficientnet_b0", "timm:convnext_tiny", "vgg11"]),
    rows=st.sampled_from([0, 1, 40, 560, 5000, 2_000_000]), size=st.sampled_from([8, 32, 64, 224, 600]),
    color=st.sampled_from(["rgb", "gray", "lab", "red"]), batch=st.sampled_from([2, 32, 4096]),
    chosen=st.sets(st.sampled_from(sorted(CHOSEN))),
)  # fmt: skip
def test_explicit_values_are_kept_and_the_others_are_filled_in(
    recipe: str, preset: str, weights: str, backbone: str, rows: int, size: int, color: str, batch: int,
    chosen: set[str],
) -> None:  # fmt: skip
    manifest = make_manifest(rows, 4, size, "gray" if color == "red" else color)
    values = {"recipe": recipe, "preset": preset, "weights": weights, "backbone": backbone, "batch_size": batch}
    config = resolve_config(manifest, **values, **{key: CHOSEN[key] for key in chosen})
    assert {key: getattr(config, key) for key in chosen} == {key: CHOSEN[key] for key in chosen}
    for field in fields(TrainConfig):
        if field.name in PLAIN and field.name not in chosen:
            value = getattr(config, field.name)
            assert value != field.default, f"{field.name} is still unset"
            low, high = field.metadata["low"], field.metadata["high"]
            assert (low is None or value >= low) and (high is None or value <= high)
    assert resolve(config, manifest) == config, "what is resolved stays as it is"


def test_learning_rate_depends_on_optimizer_weights_and_batch() -> None:
    rates = [
        ({}, 1e-3), ({"weights": "DEFAULT"}, 3e-4), ({"batch_size": 128}, 2e-3), ({"batch_size": 4096}, 3e-3),
        ({"batch_size": 16, "accumulate": 2}, 1e-3), ({"batch_size": 8}, 5e-4),
        ({"optimizer": "sgd", "batch_size": 256}, 0.1), ({"optimizer": "sgd", "batch_size": 32}, 0.0125),
        ({"optimizer": "sgd", "batch_size": 256, "weights": "DEFAULT"}, 0.01),
    ]  # fmt: skip
    for values, expected in rates:
        for recipe in FROM_SCRATCH:
            assert resolve_config(recipe=recipe, **values).learning_rate == pytest.approx(expected, rel=0.01)
    assert {resolve_config(recipe=recipe, optimizer="sgd").weight_decay for recipe in FROM_SCRATCH} == {1e-4}


def test_moving_average_spans_a_tenth_of_the_training() -> None:
    assert resolve_config(epochs=10).ema == pytest.approx(1 - 10 / (10 * 17), abs=1e-4)
    assert resolve_config(epochs=100).ema == pytest.approx(1 - 10 / (100 * 17), abs=1e-4)
    assert resolve_config(make_manifest(1_300_000, 1000), batch_size=256).ema == 0.9999
    assert resolve_config(make_manifest(2, 2), epochs=20).ema == 0.9


def test_head_is_trained_first_on_few_images_with_weights() -> None:
    small = resolve_config(make_manifest(180), weights="DEFAULT", recipe="small")
    assert small.head == "solved"
    assert (small.recipe, small.probe_epochs, small.unfreeze_epochs, small.backbone_rate) == ("small", 1, 5, 0.3)
    assert small.probe_epochs + small.unfreeze_epochs < small.epochs / 2 and small.early_stopping
    alone = resolve_config(make_manifest(180))
    assert (alone.head, alone.probe_epochs, alone.unfreeze_epochs, alone.backbone_rate) == (None, 0, 0, 1.0)
    standard = resolve_config(weights="DEFAULT", recipe="standard")
    assert (standard.head, standard.probe_epochs) == ("solved", 1) and standard.backbone_rate < 1
    assert standard.weight_decay < resolve_config().weight_decay


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [("resnet50", 1.0), ("vit_b_16", 0.75), ("vit_l_32", 0.85), ("timm:vit_base_patch16_224.augreg_in21k", 0.75),
     ("timm:eva02_large_patch14_448", 0.85), ("swin_t", 0.9), ("timm:convnext_tiny", 1.0)],
)  # fmt: skip
def test_layer_decay_of_pretrained_transformers(backbone: str, expected: float) -> None:
    assert choose_layer_decay(backbone) == resolve_config(backbone=backbone, weights="DEFAULT").layer_decay == expected
    assert resolve_config(backbone=backbone).layer_decay == 1.0
    assert expected**30 > 0.003 or "_l" not in backbone, "the first layers still learn"


def test_stochastic_depth_is_set_only_for_networks_that_have_it() -> None:
    from imagemill.components.models.artifact import ModelSpec, build_network

    for backbone in ("resnet18", "vit_b_16", "timm:vgg11"):
        assert not has_drop_path(backbone) and resolve_config(backbone=backbone, recipe="large").drop_path == 0
    for backbone in ("efficientnet_b0", "timm:test_resnet", "timm:test_vit"):
        assert has_drop_path(backbone)
        config = resolve_config(backbone=backbone)
        assert 0 < config.drop_path < resolve_config(backbone=backbone, recipe="large").drop_path
        spec = ModelSpec(backbone, ("a", "b"), ImageSpec((64, 64, 3)))
        build_network(spec, config.dropout, config.drop_path)  # UserError where it can't be


def test_default_dropout_is_torchvisions() -> None:
    import torch
    from torchvision.models import get_model

    for name in ("alexnet", "vgg11", "squeezenet1_1", "mobilenet_v3_small", "mnasnet0_5", "efficientnet_b0",
                 "efficientnet_b3", "efficientnet_v2_s"):  # fmt: skip
        with torch.device("meta"):
            network = get_model(name, weights=None)
        own = {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)}
        assert own == {resolve_config(backbone=name).dropout}, name
    assert all(any(name.startswith(start) for name in backbones()) for start in OWN_DROPOUT)


def test_presets_turn_off_unsuitable_augmentation() -> None:
    for recipe in ("small", "standard", "large"):
        fashion = resolve_config(recipe=recipe, preset="fashion")
        assert fashion.hue == fashion.saturation == fashion.grayscale == 0 and fashion.policy == "none"
        for preset in ("ocr", "medical"):
            config = resolve_config(recipe=recipe, preset=preset)
            assert config.rotate <= 5 and config.shear <= 3 and config.perspective <= 0.05
            assert config.erasing == config.cutmix_probability == config.hue == 0 and config.policy == "none"
            assert config.flip == "false"
        assert resolve_config(recipe=recipe, preset="satellite").vertical_flip == "true"
    assert resolve_config(preset="fashion", hue=0.1, policy="randaugment").hue == 0.1


def test_augmentation_is_reduced_for_gray_lab_and_small_images() -> None:
    gray = resolve_config(make_manifest(color="gray"))
    assert gray.hue == gray.saturation == gray.grayscale == 0 and gray.brightness > 0 and gray.policy == "randaugment"
    lab = resolve_config(make_manifest(color="lab"))
    assert {getattr(lab, name) for name in COLOR} == {0.0} and lab.policy == "none" and lab.rotate > 0
    tiny, usual = resolve_config(make_manifest(size=32)), resolve_config()
    assert tiny.erasing < usual.erasing and tiny.blur == tiny.perspective == tiny.jpeg_artifacts == 0
    assert tiny.rotate == usual.rotate


def test_external_pipeline_replaces_per_image_augmentation() -> None:
    config = resolve_config(augment_pipeline="light")
    assert {getattr(config, name) for name in PER_IMAGE} == {0.0, "none"}
    assert config.mixup_probability == resolve_config().mixup_probability > 0, "which is done to batches"
