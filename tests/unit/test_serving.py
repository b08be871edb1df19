"""Model repository: fp16 and int8 outputs close to the network's, measured loss, and refusal of a too large one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from sklearn.metrics import accuracy_score, f1_score
from test_onnx_file import CLASSES, make_images, make_network
from trained import make_tensors

from imagemill.components.dataset.manifest import Dataset, Manifest, commit
from imagemill.components.dataset.shards import publish_bytes
from imagemill.components.imaging.decoder import Pixels
from imagemill.components.models.artifact import build_network
from imagemill.components.storage.errors import UserError
from imagemill.components.train.artifact.onnx_export import export, run
from imagemill.pipelines.cli.main import main
from imagemill.pipelines.serving.measurement import Loss, Measurement, read_images
from imagemill.pipelines.serving.repository import FP16, INT8, ServingConfig, check_loss, convert

pytestmark = pytest.mark.usefixtures("one_thread")


def commit_model_with_onnx(tmp_path: Path) -> tuple[Dataset, Any, bytes]:
    network, spec = make_network("shufflenet_v2_x0_5", 32)
    data = export(network, spec, {"fingerprint": "feed"})
    uri = str(tmp_path / "ws" / "model" / "feed")
    files = (publish_bytes(uri, spec.to_json(), "model-", ".json"), publish_bytes(uri, data, "model-", ".onnx", "onnx"))
    manifest = Manifest("model", "feed", classes=spec.classes, task=spec.task, files=files, image=spec.image)
    return commit(uri, manifest), spec, data


@pytest.mark.parametrize(("precision", "share", "tolerance"), [(FP16, 0.6, 0.01), (INT8, 0.5, 0.15)])
def test_converted_model_has_similar_outputs(precision: str, share: float, tolerance: float) -> None:
    """Both are far inside: fp16 has 11 bits; int8's bound is that of a random network on noise, its worst case."""
    network, spec = make_network("resnet18", 32)
    data = export(network, spec, {"fingerprint": "feed"})
    images: Pixels = make_images(spec, 48)
    converted = convert(data, precision, images[:32])
    onnx.checker.check_model(onnx.load_from_string(converted), full_check=True)
    before, after = run(data, images), run(converted, images)
    assert [output.dtype for output in after] == [np.float32] * 2
    assert np.abs(before[1] - after[1]).max() < tolerance
    assert len(converted) < share * len(data)
    properties = [{p.key: p.value for p in onnx.load_from_string(file).metadata_props} for file in (data, converted)]
    assert properties[0] == properties[1]


def test_export_writes_a_model_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _, data = commit_model_with_onnx(tmp_path)
    output = tmp_path / "out"
    flags = ["--output", str(output), "--name", "pets", "--storage", "s3://b/models"]
    assert main(["export-model", model.uri, *flags]) == 0
    assert (output / "models/pets/1/model.onnx").read_bytes() == data
    assert (output / "models/pets/labels.txt").read_text().splitlines() == list(CLASSES)
    assert (output / "models/pets/config.pbtxt").read_text() == (
        'name: "pets"\nbackend: "onnxruntime"\nmax_batch_size: 32\n'
        'input [\n  { name: "images" data_type: TYPE_UINT8 dims: [ 32, 32, 3 ] }\n]\n'
        'output [\n  { name: "logits" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels.txt" },\n'
        '  { name: "probabilities" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels.txt" }\n]\n'
        "dynamic_batching { }\n"
    )
    service = yaml.safe_load((output / "inferenceservice.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictor = service["spec"]["predictor"]["model"]
    assert predictor["modelFormat"] == {"name": "triton"} and predictor["protocolVersion"] == "v2"
    assert predictor["storageUri"] == "s3://b/models"
    readme = (output / "README.md").read_text()
    assert "uint8 [N, 32, 32, 3]" in readme and "center 32 x 32 taken" in readme
    capsys.readouterr()
    assert main(["export-model", model.uri, *flags]) == 2
    assert "expected an empty or new folder" in capsys.readouterr().err


def test_int8_requires_tensors(tmp_path: Path) -> None:
    model, _, _ = commit_model_with_onnx(tmp_path)
    assert main(["export-model", model.uri, "--output", str(tmp_path / "out"), "--precision", "int8"]) == 2
    assert not (tmp_path / "out").exists()


def test_too_large_loss_is_refused() -> None:
    loss = Loss(0.9, 0.85, -0.05, (-0.08, -0.02))
    measurement = Measurement("test", 400, 0.9, {"top1": loss}, 0.3, (4, 1), {1: (1.0, 0.5)})
    config = ServingConfig("m", "out", "pets", INT8, 0.01)
    with pytest.raises(UserError, match=r"at most 0.01 of top-1 .* found 0.0500 \(0.0200 to 0.0800\) on 400 test"):
        check_loss(measurement, config)
    assert json.dumps(measurement.milliseconds)
    check_loss(measurement, ServingConfig("m", "out", "pets", INT8, 0.05))


def test_int8_loss_is_measured_on_the_models_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = make_tensors(tmp_path / "ws", train=40, val=12)
    _, spec, _ = commit_model_with_onnx(tmp_path)
    classes, image = tensors.manifest.classes, tensors.manifest.image_spec
    spec = replace(spec, classes=classes, image=image)
    data = export(build_network(spec).eval(), spec, {"fingerprint": "beef"})
    uri = str(tmp_path / "ws" / "model" / "beef")
    files = (publish_bytes(uri, spec.to_json(), "model-", ".json"), publish_bytes(uri, data, "model-", ".onnx", "onnx"))
    parents = (tensors.as_parent(uri),)
    commit(uri, Manifest("model", "beef", parents, classes=classes, task=spec.task, files=files, image=image))
    flags = ["--output", str(tmp_path / "out"), "--precision", "int8", "--max-loss", "1", "--json"]
    assert main(["export-model", uri, *flags]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out/measurement.json").read_text())
    assert printed["images"] == 12 and printed["split"] == "val"
    assert printed["bytes"][1] < printed["bytes"][0] and set(printed["milliseconds"]) == {"1", "32"}
    gain, (low, high) = printed["losses"]["top1"]["gain"], printed["losses"]["top1"]["interval"]
    assert low < gain < high, "an interval, also where both files agree"
    expected = {name: printed["losses"][name]["float32"] for name in ("top1", "macro_f1")}
    images, labels = map(np.concatenate, zip(*read_images(tensors, "val"), strict=True))
    predicted = run(data, images)[1].argmax(1)
    macro_f1 = f1_score(labels, predicted, labels=np.unique(labels), average="macro")
    assert expected == pytest.approx({"top1": accuracy_score(labels, predicted), "macro_f1": macro_f1})
    assert "## Against fp32" in (tmp_path / "out/README.md").read_text()
