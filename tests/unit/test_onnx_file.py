"""ONNX export: the network's outputs for any batch size, and the same bytes for the same weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest

from imagemill.components.dataset.kinds import NetworkExtra
from imagemill.components.dataset.labels import probabilities
from imagemill.components.imaging.decoder import Pixels
from imagemill.components.imaging.geometry import Geometry
from imagemill.components.models.artifact import ModelSpec, Normalize, build_network
from imagemill.components.train.artifact import onnx_export as onnx_file
from imagemill.components.train.artifact.onnx_export import ExportError, export, measure_difference, run

CLASSES = ("cat", "dog", 'Führer\'s "ünï"', "emu")
CLOSE = 2e-5
"""Of probabilities, and of logits as a share of the largest: float32 sums in another order."""


pytestmark = pytest.mark.usefixtures("one_thread")


def make_network(
    backbone: str, size: int = 48, task: str = "single", color: str = "rgb", **more: Any
) -> tuple[Any, ModelSpec]:
    """A network with weights of every size, none of them 0 (torchvision's transformers begin with a head of zeros)."""
    import torch

    geometry = Geometry(size, color=color, edges=more.pop("edges", ()))
    channels = geometry.shape[2]
    mean, std = ([0.1 * (n + 3) for n in range(channels)], [0.2 + 0.02 * n for n in range(channels)])
    image = geometry.describe("raw", mean, std)
    spec = ModelSpec(backbone, CLASSES, image, task, extra=NetworkExtra(**more))
    torch.manual_seed(1)
    if backbone.startswith("timm:"):
        import timm

        name = backbone.removeprefix("timm:")
        network = timm.create_model(name, num_classes=len(CLASSES), img_size=size, depth=2)
    else:
        network = build_network(spec)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer) * 0.5)
    return network.eval(), spec


def make_images(spec: ModelSpec, number: int) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, (number, *spec.image.shape), np.uint8)


def compute_expected(network: Any, spec: ModelSpec, images: Pixels) -> tuple[Any, Any]:
    """Return logits and probabilities as evaluate computes them."""
    import torch

    with torch.inference_mode():
        logits = network(Normalize(spec.image, torch.device("cpu"))(torch.from_numpy(images)))
        return logits.numpy(), probabilities(logits / (spec.extra.temperature or 1.0), spec.task).numpy()


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "resnet18", "temperature": 1.7},
        {"backbone": "shufflenet_v2_x0_5", "color": "gray"},
        {"backbone": "mobilenet_v3_small", "edges": ("sobel", "canny"), "color": "lab"},
        {"backbone": "shufflenet_v2_x0_5", "task": "multi", "temperature": 0.6},
        {"backbone": "timm:vit_tiny_patch16_224", "size": 32},
        {"backbone": "googlenet", "transform_input": True},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_outputs_match_the_network(options: dict[str, Any]) -> None:
    network, spec = make_network(**options)
    data = export(network, spec, {"fingerprint": "0123"})
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    for number in (1, 2, 5):
        images = make_images(spec, number)
        logits, scores = run(data, images)
        expected_logits, expected_scores = compute_expected(network, spec, images)
        assert logits.shape == scores.shape == (number, len(CLASSES))
        assert np.abs(logits - expected_logits).max() <= CLOSE * np.abs(expected_logits).max()
        assert np.abs(scores - expected_scores).max() <= CLOSE
        assert np.ptp(expected_logits) > 1e-3  # or agreement would mean nothing
    difference = measure_difference(data, network, spec, make_images(spec, 3))
    assert difference is not None and difference <= CLOSE


def make_branching_network() -> Any:
    """Return a network whose Python code branches by a tensor's size, which a trace would fix."""
    import torch

    class Branching(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = torch.nn.Linear(3, len(CLASSES))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            mean = images.mean((2, 3)) if images.shape[3] > 20 else images.amax((2, 3))
            logits: torch.Tensor = self.last(mean)
            return logits

    return Branching().eval()


def test_branching_network_is_exported_by_dynamo(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(onnx_file, "_export_by_dynamo", record_call(calls, "dynamo", onnx_file._export_by_dynamo))
    _, spec = make_network("shufflenet_v2_x0_5")
    network = make_branching_network()
    data = export(network, spec, {})
    assert calls == ["dynamo"]
    assert data == export(network, spec, {})
    images = make_images(spec, 3)
    assert np.abs(run(data, images)[1] - compute_expected(network, spec, images)[1]).max() <= CLOSE


def test_trace_of_a_branching_network_requires_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no way through")

    monkeypatch.setattr(onnx_file, "_export_by_dynamo", fail)
    _, spec = make_network("shufflenet_v2_x0_5")
    network = make_branching_network()
    data = export(network, spec, {})
    difference = measure_difference(data, network, spec, make_images(spec, 3))
    assert difference is not None and difference <= CLOSE
    monkeypatch.setattr(onnx_file, "can_compare", lambda: False)
    with pytest.raises(ExportError, match="no way through"):
        export(network, spec, {})
    assert measure_difference(data, network, spec, make_images(spec, 3)) is None


def record_call(calls: list[str], name: str, function: Any) -> Any:
    def call(*arguments: Any) -> Any:
        calls.append(name)
        return function(*arguments)

    return call


def test_same_weights_give_the_same_bytes_without_paths() -> None:
    (first, spec), (second, _) = make_network("shufflenet_v2_x0_5"), make_network("shufflenet_v2_x0_5")
    data = export(first, spec, {"fingerprint": "ab"})
    assert export(second, spec, {"fingerprint": "ab"}) == data
    model = onnx.load_from_string(data)
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert b"site-packages" not in data and b"/home/" not in data and b"/root/" not in data
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [onnx_file.OPSET]


def test_metadata_describes_the_model() -> None:
    network, spec = make_network("shufflenet_v2_x0_5", temperature=1.25, preprocessing={"clean": {"equalize": "clahe"}})
    model = onnx.load_from_string(export(network, spec, {"fingerprint": "feed"}))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["fingerprint"] == "feed" and metadata["task"] == "single"
    assert json.loads(metadata["temperature"]) == 1.25
    assert json.loads(metadata["classes"]) == list(CLASSES)
    assert json.loads(metadata["mean"]) == [*spec.image.mean] and json.loads(metadata["std"]) == [*spec.image.std]
    preprocessing = json.loads(metadata["preprocessing"])
    assert preprocessing["mode"] == "crop" and preprocessing["clean"] == {"equalize": "clahe"}
    assert any("clahe" in step for step in preprocessing["steps"])
    (images,) = model.graph.input
    shape = [dimension.dim_value or dimension.dim_param for dimension in images.type.tensor_type.shape.dim]
    assert images.name == "images" and images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert isinstance(shape[0], str) and shape[1:] == [48, 48, 3]
    assert [output.name for output in model.graph.output] == ["logits", "probabilities"]


def test_export_does_not_change_the_network() -> None:
    import torch

    network, spec = make_network("shufflenet_v2_x0_5")
    network.train().to(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    export(network, spec, {})
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_export_error_is_raised() -> None:
    import torch

    class Failing(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no such thing\nand more")

    _, spec = make_network("shufflenet_v2_x0_5")
    with pytest.raises(ExportError, match="no such thing"):
        export(Failing(), spec, {})


def test_too_large_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network, spec = make_network("shufflenet_v2_x0_5")
    monkeypatch.setattr(onnx_file, "MAX_BYTES", 10_000)
    with pytest.raises(ExportError, match="one file can hold 2 GB"):
        export(network, spec, {})
