"""Recipes: chosen by the dataset's numbers, fitted to weights, network and pictures, and overruled by anybody."""

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
from imagemill.components.train.recipes import choose_epochs, choose_layer_decay, explain_epochs, resolve

FROM_SCRATCH = tuple(recipe for recipe in RECIPES if recipe not in ("probe", "finetune"))
"""Recipes that need no pretrained weights."""


def tensors(
    train: int = 560, classes: int = 6, size: int = 128, color: str = "rgb", copies: int = 0, labels: int = 1
) -> Manifest:
    """What a manifest says of so many training images (`copies` of them copies) and a quarter as many others."""
    channels = 1 if color == "gray" else 3
    rows = train + train // 4
    by_class = {f"class {n}": rows * labels // classes for n in range(classes)}
    return Manifest(
        "tensors", "01", classes=tuple(by_class), task="single" if labels == 1 else "multi",
        totals=Totals(rows=rows, by_split={"train": train, "val": rows - train}, by_class=by_class),
        image=ImageSpec((size, size, channels), color=color), extra=TensorsExtra(copies=StoredCopies(rows=copies)),
    )  # fmt: skip


def resolved(manifest: Manifest | None = None, **values: Any) -> TrainConfig:
    config = resolve(TrainConfig.from_values(values), manifest or tensors())
    config.check()
    return config


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (tensors(), "standard"),  # the demo set
        (tensors(3680, 37), "standard"),  # the Pets
        (tensors(1800, 37), "small"),
        (tensors(198, 2), "small"),  # enough a class, but few
        (tensors(300, 6), "standard"),
        (tensors(294, 6), "small"),
        (tensors(600, 6, copies=400), "small"),  # a copy is no new image
        (tensors(300, 20, labels=4), "standard"),  # an image with four labels is one of each class
        (tensors(99_999, 1000), "standard"),
        (tensors(100_000, 1000), "large"),
        (tensors(100_000, 5000), "large"),
    ],
)
def test_auto_goes_by_the_datasets_numbers(manifest: Manifest, expected: str) -> None:
    assert resolved(manifest).recipe == expected
    assert resolved(manifest, recipe="plain").recipe == "plain"


def test_plain_is_crops_and_flips_alone() -> None:
    for more in ({}, {"weights": "DEFAULT"}, {"preset": "ocr"}, {"backbone": "convnext_tiny"}):
        found = resolved(recipe="plain", **more)
        assert {one: getattr(found, one) for one in PER_IMAGE} == {**dict.fromkeys(PER_IMAGE, 0.0), "policy": "none"}
        assert found.mixup_probability == found.cutmix_probability == found.drop_path == found.dropout == found.ema == 0
        assert found.epochs == 8 and found.probe_epochs == found.unfreeze_epochs == found.early_stopping == 0
        assert found.class_balance == "none" and found.layer_decay == found.backbone_rate == 1


def test_epochs_of_standard_from_scratch_are_by_the_number_of_images() -> None:
    """A thousand batches of 32 at least, in 30 to 90 epochs; the source may recommend others, users overrule both."""
    for images, epochs in ((300, 90), (560, 58), (1_066, 31), (1_067, 30), (5_000, 30), (99_999, 30)):
        manifest = tensors(images, 2)
        found = resolved(manifest, recipe="standard")
        assert found.epochs == choose_epochs(images) == epochs
        [line] = explain_epochs(TrainConfig(recipe="standard"), found, manifest)
        assert line.startswith(f"{epochs} epochs: ") and f"{images:,} images" in line
        assert resolved(manifest, recipe="standard", epochs=4).epochs == 4
        assert not explain_epochs(TrainConfig(epochs=4), resolved(manifest, recipe="standard", epochs=4), manifest)
        assert resolved(manifest, recipe="standard", weights="DEFAULT").epochs == 20
    demo = replace(tensors(), extra=TensorsExtra(epochs=8))
    assert resolved(demo).epochs == 8
    assert "the source" in explain_epochs(TrainConfig(), resolved(demo), demo)[0]
    assert resolved(demo, recipe="small").epochs == 20


def test_every_table_has_every_value_and_no_other() -> None:
    unset = {one.name for one in fields(TrainConfig) if one.metadata["help"].endswith("by the recipe)")}
    unset.add("learning_rate")  # by the recipe, the optimizer and the weights
    assert set(PLAIN) - {"mixup", "cutmix"} <= unset | {"optimizer"}
    assert unset <= set(PLAIN), "what nobody chose would stay unset"
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
"""Whatever somebody says, zero above all: a recipe must not take it for unsaid."""


@settings(max_examples=80, deadline=None)
@given(
    recipe=st.sampled_from(FROM_SCRATCH), preset=st.sampled_from(NAMES), weights=st.sampled_from(["", "DEFAULT"]),
    backbone=st.sampled_from(["resnet18", "vit_b_16", "swin_t", "efficientnet_b0", "timm:convnext_tiny", "vgg11"]),
    rows=st.sampled_from([0, 1, 40, 560, 5000, 2_000_000]), size=st.sampled_from([8, 32, 64, 224, 600]),
    color=st.sampled_from(["rgb", "gray", "lab", "red"]), batch=st.sampled_from([2, 32, 4096]),
    chosen=st.sets(st.sampled_from(sorted(CHOSEN))),
)  # fmt: skip
def test_what_is_chosen_stays_and_everything_else_is_filled_in(
    recipe: str, preset: str, weights: str, backbone: str, rows: int, size: int, color: str, batch: int,
    chosen: set[str],
) -> None:  # fmt: skip
    manifest = tensors(rows, 4, size, "gray" if color == "red" else color)
    values = {"recipe": recipe, "preset": preset, "weights": weights, "backbone": backbone, "batch_size": batch}
    found = resolved(manifest, **values, **{key: CHOSEN[key] for key in chosen})
    assert {key: getattr(found, key) for key in chosen} == {key: CHOSEN[key] for key in chosen}
    for one in fields(TrainConfig):
        if one.name in PLAIN and one.name not in chosen:
            value = getattr(found, one.name)
            assert value != one.default, f"{one.name} is still unset"
            low, high = one.metadata["low"], one.metadata["high"]
            assert (low is None or value >= low) and (high is None or value <= high)
    assert resolve(found, manifest) == found, "what is resolved stays as it is"


def test_the_learning_rate_goes_by_optimizer_weights_and_batch() -> None:
    rates = [
        ({}, 1e-3), ({"weights": "DEFAULT"}, 3e-4), ({"batch_size": 128}, 2e-3), ({"batch_size": 4096}, 3e-3),
        ({"batch_size": 16, "accumulate": 2}, 1e-3), ({"batch_size": 8}, 5e-4),
        ({"optimizer": "sgd", "batch_size": 256}, 0.1), ({"optimizer": "sgd", "batch_size": 32}, 0.0125),
        ({"optimizer": "sgd", "batch_size": 256, "weights": "DEFAULT"}, 0.01),
    ]  # fmt: skip
    for values, expected in rates:
        for recipe in FROM_SCRATCH:
            assert resolved(recipe=recipe, **values).learning_rate == pytest.approx(expected, rel=0.01)
    assert {resolved(recipe=recipe, optimizer="sgd").weight_decay for recipe in FROM_SCRATCH} == {1e-4}


def test_the_average_reaches_over_a_tenth_of_the_training() -> None:
    assert resolved(epochs=10).ema == pytest.approx(1 - 10 / (10 * 17), abs=1e-4)
    assert resolved(epochs=100).ema == pytest.approx(1 - 10 / (100 * 17), abs=1e-4)
    assert resolved(tensors(1_300_000, 1000), batch_size=256).ema == 0.9999
    assert resolved(tensors(2, 2)).ema == 0.9


def test_with_weights_the_head_learns_first_where_images_are_few() -> None:
    small = resolved(tensors(180), weights="DEFAULT", recipe="small")
    assert small.head == "solved"
    assert (small.recipe, small.probe_epochs, small.unfreeze_epochs, small.backbone_rate) == ("small", 1, 5, 0.3)
    assert small.probe_epochs + small.unfreeze_epochs < small.epochs / 2 and small.early_stopping
    alone = resolved(tensors(180))
    assert (alone.head, alone.probe_epochs, alone.unfreeze_epochs, alone.backbone_rate) == (None, 0, 0, 1.0)
    standard = resolved(weights="DEFAULT", recipe="standard")
    assert (
        (standard.head, standard.probe_epochs) == ("solved", 1)
        and standard.backbone_rate < 1
        and standard.weight_decay < resolved().weight_decay
    )


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [("resnet50", 1.0), ("vit_b_16", 0.75), ("vit_l_32", 0.85), ("timm:vit_base_patch16_224.augreg_in21k", 0.75),
     ("timm:eva02_large_patch14_448", 0.85), ("swin_t", 0.9), ("timm:convnext_tiny", 1.0)],
)  # fmt: skip
def test_layers_of_pretrained_transformers_learn_the_slower_the_deeper(backbone: str, expected: float) -> None:
    assert choose_layer_decay(backbone) == resolved(backbone=backbone, weights="DEFAULT").layer_decay == expected
    assert resolved(backbone=backbone).layer_decay == 1.0
    assert expected**30 > 0.003 or "_l" not in backbone, "the first layers still learn"


def test_stochastic_depth_only_where_the_network_has_it() -> None:
    from imagemill.components.models.artifact import ModelSpec, build_network

    for backbone in ("resnet18", "vit_b_16", "timm:vgg11"):
        assert not has_drop_path(backbone) and resolved(backbone=backbone, recipe="large").drop_path == 0
    for backbone in ("efficientnet_b0", "timm:test_resnet", "timm:test_vit"):
        assert has_drop_path(backbone)
        found = resolved(backbone=backbone)
        assert 0 < found.drop_path < resolved(backbone=backbone, recipe="large").drop_path
        spec = ModelSpec(backbone, ("a", "b"), ImageSpec((64, 64, 3)))
        build_network(spec, found.dropout, found.drop_path)  # UserError where it can't be


def test_a_networks_own_dropout_is_torchvisions() -> None:
    import torch
    from torchvision.models import get_model

    for name in ("alexnet", "vgg11", "squeezenet1_1", "mobilenet_v3_small", "mnasnet0_5", "efficientnet_b0",
                 "efficientnet_b3", "efficientnet_v2_s"):  # fmt: skip
        with torch.device("meta"):
            network = get_model(name, weights=None)
        own = {one.p for one in network.modules() if isinstance(one, torch.nn.Dropout)}
        assert own == {resolved(backbone=name).dropout}, name
    assert all(any(name.startswith(start) for name in backbones()) for start in OWN_DROPOUT)


def test_what_a_kind_of_picture_can_not_bear_is_off() -> None:
    for recipe in ("small", "standard", "large"):
        fashion = resolved(recipe=recipe, preset="fashion")
        assert fashion.hue == fashion.saturation == fashion.grayscale == 0 and fashion.policy == "none"
        for preset in ("ocr", "medical"):
            found = resolved(recipe=recipe, preset=preset)
            assert found.rotate <= 5 and found.shear <= 3 and found.perspective <= 0.05
            assert found.erasing == found.cutmix_probability == found.hue == 0 and found.policy == "none"
            assert found.flip == "false"
        assert resolved(recipe=recipe, preset="satellite").vertical_flip == "true"
    assert resolved(preset="fashion", hue=0.1, policy="randaugment").hue == 0.1


def test_grey_and_other_colours_and_few_pixels() -> None:
    grey = resolved(tensors(color="gray"))
    assert grey.hue == grey.saturation == grey.grayscale == 0 and grey.brightness > 0 and grey.policy == "randaugment"
    lab = resolved(tensors(color="lab"))
    assert {getattr(lab, name) for name in COLOR} == {0.0} and lab.policy == "none" and lab.rotate > 0
    tiny, usual = resolved(tensors(size=32)), resolved()
    assert tiny.erasing < usual.erasing and tiny.blur == tiny.perspective == tiny.jpeg_artifacts == 0
    assert tiny.rotate == usual.rotate


def test_a_pipeline_of_somebody_elses_stands_alone() -> None:
    found = resolved(augment_pipeline="light")
    assert {getattr(found, one) for one in PER_IMAGE} == {0.0, "none"}
    assert found.mixup_probability == resolved().mixup_probability > 0, "which is done to batches"
