"""Grad-CAM lights up where a planted patch decides, of convolutional networks alone, and reaches the report."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reported import Mill, evaluated, jpeg, render, trained

from imagemill.components.dataset.manifest import Dataset
from imagemill.components.dataset.shards import Layout, ShardWriter
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.evaluate import grad_cam
from imagemill.components.evaluate.grad_cam import MostConfidentMistakes, NoFeatureMap, compute_grad_cam, draw_overlay
from imagemill.components.evaluate.inference import InputBatch

pytestmark = pytest.mark.usefixtures("one_thread")


def make_patch_detector() -> Any:
    """A network whose class 1 is decided by red alone and class 0 by blue: weights set, not trained."""
    import torch

    convolution = torch.nn.Conv2d(3, 2, 4, stride=4, bias=False)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[0, 2], convolution.weight[1, 0] = 1 / 16, 1 / 16
    relu, pool = torch.nn.ReLU(inplace=True), torch.nn.AdaptiveAvgPool2d(1)
    head = torch.nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
    return torch.nn.Sequential(convolution, relu, pool, torch.nn.Flatten(), head).eval()


def test_the_map_lights_up_where_the_patch_decides() -> None:
    """Exact: the map is 1 inside the patch of the class, and 0 away from it, for each of two classes in one image."""
    import torch

    images = torch.zeros(2, 3, 64, 64)
    images[:, 0, 8:24, 40:56], images[:, 2, 40:56, 8:24] = 1, 1
    red, blue = compute_grad_cam(make_patch_detector(), images, torch.tensor([1, 0]))
    for heat, (top, left) in ((red, (8, 40)), (blue, (40, 8))):
        assert heat.shape == (64, 64) and heat.max() == 1
        assert heat[top + 2 : top + 14, left + 2 : left + 14].min() > 0.99
        heat[top - 4 : top + 20, left - 4 : left + 20] = 0
        assert heat.max() == 0


@pytest.mark.parametrize(
    ("backbone", "shape"),
    [
        ("resnet18", (512, 2, 2)),
        ("densenet121", (1024, 2, 2)),
        ("mobilenet_v3_small", (576, 2, 2)),
        ("timm:tf_efficientnet_lite0", (1280, 2, 2)),
    ],
)
def test_the_last_feature_map_of_real_backbones(
    backbone: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from test_onnx_file import CLASSES

    from imagemill.components.imaging.geometry import Geometry
    from imagemill.components.models.artifact import ModelSpec, build_network

    image = Geometry(64).describe("raw", [0.5] * 3, [0.5] * 3)
    network = build_network(ModelSpec(backbone, CLASSES, image)).eval()
    shapes: list[tuple[int, ...]] = []
    find = grad_cam.find_feature_map

    def note_shape(outputs: Any, has_channels_last: bool) -> Any:
        feature_map = find(outputs, has_channels_last)
        shapes.append(tuple(feature_map.shape[1:]))
        return feature_map

    monkeypatch.setattr(grad_cam, "find_feature_map", note_shape)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = network(images).detach()
    heat = compute_grad_cam(network, images, torch.tensor([0, 1]))
    assert shapes == [shape]
    assert heat.shape == (2, 64, 64) and np.isfinite(heat).all() and heat.min() >= 0 and heat.max() <= 1
    assert torch.equal(network(images).detach(), before), "the network is left as it was"


def test_a_transformer_has_no_feature_map() -> None:
    import torch
    from torchvision.models import VisionTransformer

    network = VisionTransformer(32, 8, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8, num_classes=2).eval()
    with pytest.raises(NoFeatureMap, match="a transformer's tokens are no feature map"):
        compute_grad_cam(network, torch.zeros(1, 3, 32, 32), torch.tensor([0]))


def test_the_surest_mistakes_are_kept_over_batches() -> None:
    surest = MostConfidentMistakes(limit=3, side=4)
    for start in (0, 5):
        images = np.full((5, 6, 6, 3), 0, np.uint8) + np.arange(start, start + 5, dtype=np.uint8)[:, None, None, None]
        rows = [
            {"image_id": str(n), "label_id": 0, "predicted_id": n % 2, "confidence": n / 10}
            for n in range(start, start + 5)
        ]
        surest.add(rows, InputBatch(images, np.zeros(5, np.int64), [str(n) for n in range(start, start + 5)]))
    assert [row["image_id"] for row, _ in surest.mistakes] == ["9", "7", "5"]
    assert [image.shape for _, image in surest.mistakes] == [(4, 4, 3)] * 3 and surest.mistakes[0][1].max() == 9


def test_overlay_is_tinted_where_the_map_is_high() -> None:
    heat = np.zeros((200, 200), np.float32)
    heat[:100] = 1
    picture = np.asarray(Image.open(io.BytesIO(draw_overlay(np.full((200, 200, 1), 128, np.uint8), heat))), np.int64)
    assert picture.shape == (128, 128, 3)
    assert picture[10, 64, 0] - picture[10, 64, 2] > 50, "red"
    assert np.abs(picture[118, 64] - 128).max() < 6, "gray as it was"


def test_the_report_shows_the_overlay_at_its_mistake(tmp_path: Path) -> None:
    mill = Mill(Workspace.open(str(tmp_path / "ws")), ["cat", "dog", "owl"])
    assert "Grad-CAM" not in mill.page().text, "an evaluation of an earlier release"
    clean = mill.clean()
    evaluation = evaluated(mill.workspace, trained(mill.workspace, clean), clean, mill.predictions(clean), "e1")
    row = {"image_id": "test/cat/5.jpg", "predicted_id": 1, "overlay": jpeg((250, 0, 0))}
    with ShardWriter(evaluation.uri, Layout(grad_cam.SCHEMA, row_group_rows=100)) as writer:
        writer.add(row, 0)
        file = writer.publish(grad_cam.ROLE, grad_cam.ROLE, "test")
    manifest = evaluation.manifest
    explained = Dataset(evaluation.uri, replace(manifest, files=(*manifest.files, file)), "")
    page = render(mill.workspace, explained)
    assert base64.b64encode(jpeg((250, 0, 0))).decode() in page.html
    assert "spoke for the predicted class (Grad-CAM)" in page.text
