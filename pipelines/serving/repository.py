"""Write a folder that Triton and KServe serve: a model repository, an InferenceService, and what clients have to know.

<output>/README.md, measurement.json, inferenceservice.yaml
<output>/models/<name>/config.pbtxt, labels.txt, 1/model.onnx

The model's ONNX file may be converted to fp16 or int8; inputs and outputs stay uint8 pixels and float32 numbers.
`int8` is onnxruntime's static quantization: nodes that quantize and dequantize (QDQ) at convolutions and products,
weights signed, symmetric, per output channel and in 7 bits (`reduce_range`: in 8 bits the sums of processors without
VNNI saturate), activations unsigned with the range that calibration images show (MinMax). Normalization, temperature
and probabilities stay float32. `fp16` halves the file; a CPU computes it in float32, so that it pays on a GPU alone.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...components.dataset.manifest import Dataset, find_dataset
from ...components.imaging.decoder import Pixels
from ...components.models.artifact import ModelSpec, Preprocessing
from ...components.promote.score_difference import METRIC_TITLES
from ...components.step.progress import format_size
from ...components.storage import uri as uris
from ...components.storage.errors import UserError, first_line, wrong
from ...components.storage.store import get_store
from ...components.train.artifact.onnx_export import INPUT, OUTPUTS
from .measurement import Measurement, measure, read_images

FP32, FP16, INT8 = "fp32", "fp16", "int8"
PRECISIONS = (FP32, FP16, INT8)
CALIBRATION_IMAGES = 300
_BATCH = 16
_QUANTIZED = ["Conv", "Gemm", "MatMul"]


def convert(data: bytes, precision: str, calibration: Pixels) -> bytes:
    """Return the ONNX file at `precision`. `calibration`: uint8 [N, H, W, C], of which int8 takes its ranges.

    Raises UserError for a graph that the library can't convert.
    """
    if precision == FP32:
        return data
    if precision == INT8 and not len(calibration):
        raise UserError("--precision int8: expected images of the validation or training split to calibrate on, found "
                        "none")  # fmt: skip
    try:
        return _to_fp16(data) if precision == FP16 else _to_int8(data, calibration)
    except Exception as error:  # onnxruntime's tools raise any exception
        raise UserError(
            f"--precision {precision}: onnxruntime can't convert this network: {first_line(error)}"
        ) from error


def _to_fp16(data: bytes) -> bytes:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load_from_string(data), keep_io_types=True)
    return bytes(model.SerializeToString(deterministic=True))


def _to_int8(data: bytes, calibration: Pixels) -> bytes:
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Pixels] = (
                calibration[start : start + _BATCH] for start in range(0, len(calibration), _BATCH)
            )

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        source, prepared, target = (Path(folder) / name for name in ("source.onnx", "prepared.onnx", "target.onnx"))
        source.write_bytes(data)
        # Folds batch normalizations into convolutions, so that they are quantized as one.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared, target, Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=_QUANTIZED,
            per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip
        model = onnx.load_from_string(target.read_bytes())
    del model.metadata_props[:]
    for metadata in onnx.load_from_string(data).metadata_props:
        model.metadata_props.add(key=metadata.key, value=metadata.value)
    return bytes(model.SerializeToString(deterministic=True))


MAX_BATCH = 32
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
STORAGE = "s3://BUCKET/models"
"""The place in the InferenceService that a person fills in where `--storage` says none."""


@dataclass(frozen=True)
class ServingConfig:
    """Options of the repository.

    Args:
        model: URI of a model with an ONNX file.
        output: an empty or new local folder.
        name: of the model in requests, and of the InferenceService: a DNS label.
        precision: fp32, fp16 or int8.
        max_loss: largest loss of top-1 or macro-F1 against fp32, in [0, 1].
        storage: URI that `models/` will have where the server reads it.
    """

    model: str
    output: str
    name: str
    precision: str = FP32
    max_loss: float = 0.01
    storage: str = STORAGE

    def check(self) -> None:
        """Raise UserError for an invalid value."""
        if self.precision not in PRECISIONS:
            raise wrong("--precision", f"one of {', '.join(PRECISIONS)}", self.precision)
        if not _NAME.fullmatch(self.name):
            raise wrong("--name", "a DNS label: small letters, digits and '-', 63 at most", self.name)
        if not 0 <= self.max_loss <= 1:
            raise wrong("--max-loss", "a number in [0, 1]", self.max_loss)
        folder = Path(self.output)
        if uris.scheme(self.output) or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
            raise wrong("--output", "an empty or new folder of this machine", self.output)


def write_repository(config: ServingConfig, model: Dataset) -> Measurement | None:
    """Write the folder; return the measurement, None for fp32, which is the file as training compared it.

    Raises UserError where the model has no ONNX file, its tensors are gone, or the loss is above `max_loss`.
    """
    config.check()
    spec, data = _read_model(model)
    measurement = None
    if config.precision != FP32:
        tensors = find_dataset(model.parent_uri("tensors"))
        if tensors is None or tensors.missing():
            raise UserError(f"--precision {config.precision}: expected the tensors that {model.uri} was trained on, to "
                            "measure the loss on, found them gone")  # fmt: skip
        converted = convert(data, config.precision, _read_calibration_images(tensors))
        measurement = measure(data, converted, tensors)
        check_loss(measurement, config)
        data = converted
    files = {
        "README.md": render_readme(config, spec, model.fingerprint, measurement),
        "inferenceservice.yaml": render_inference_service(config),
        f"models/{config.name}/config.pbtxt": render_triton_config(config.name, spec),
        f"models/{config.name}/labels.txt": "".join(f"{_one_line(name)}\n" for name in spec.classes),
    }
    if measurement:
        files["measurement.json"] = json.dumps(asdict(measurement), indent=2) + "\n"
    folder = Path(config.output)
    version = folder / "models" / config.name / "1"
    version.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    (version / "model.onnx").write_bytes(data)
    return measurement


def check_loss(measurement: Measurement, config: ServingConfig) -> None:
    """Raise UserError where a metric falls by more than `max_loss`."""
    for metric, loss in measurement.losses.items():
        if -loss.gain > config.max_loss:
            low, high = loss.interval
            raise UserError(
                f"--max-loss: expected {config.precision} to lose at most {config.max_loss:g} of "
                f"{METRIC_TITLES[metric]} against fp32, found {-loss.gain:.4f} ({-high:.4f} to {-low:.4f}) on "
                f"{measurement.images:,} {measurement.split} images; nothing is written"
            )


def _read_model(model: Dataset) -> tuple[ModelSpec, bytes]:
    files = {uris.basename(file.uri).rpartition(".")[2]: model.locate(file) for file in model.manifest.files}
    if "onnx" not in files:
        raise wrong("MODEL", "one with an ONNX file (its card says why it has none)", model.uri)
    where = files["json"]
    return ModelSpec.from_json(get_store(where).read(where), where), get_store(files["onnx"]).read(files["onnx"])


def _read_calibration_images(tensors: Dataset) -> Pixels:
    """Return up to `CALIBRATION_IMAGES` of the validation split, or else of the training split."""
    batches, number = [], 0
    split = "val" if tensors.files("data", "val") else "train"
    for images, _ in read_images(tensors, split):
        batches.append(images)
        number += len(images)
        if number >= CALIBRATION_IMAGES:
            break
    if not batches:
        return np.zeros((0, *tensors.manifest.image_spec.shape), np.uint8)
    return np.concatenate(batches)[:CALIBRATION_IMAGES]


def render_triton_config(name: str, spec: ModelSpec) -> str:
    """Return Triton's config.pbtxt. The batch dimension is not among the dims, since `max_batch_size` is set."""
    shape = ", ".join(map(str, spec.image.shape))
    outputs = ",\n".join(
        f'  {{ name: "{output}" data_type: TYPE_FP32 dims: [ {len(spec.classes)} ] label_filename: "labels.txt" }}'
        for output in OUTPUTS
    )
    return (
        f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: {MAX_BATCH}\n'
        f'input [\n  {{ name: "{INPUT}" data_type: TYPE_UINT8 dims: [ {shape} ] }}\n]\n'
        f"output [\n{outputs}\n]\ndynamic_batching {{ }}\n"
    )


def render_inference_service(config: ServingConfig) -> str:
    """Return KServe's InferenceService, which serves `models/` by Triton with the Open Inference Protocol v2."""
    body = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": config.name},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "triton"},
                    "protocolVersion": "v2",
                    "storageUri": config.storage,
                    "resources": {
                        "requests": {"cpu": "1", "memory": "2Gi"},
                        "limits": {"cpu": "1", "memory": "2Gi"},
                    },
                }
            }
        },
    }
    return f"# Copy models/ to {config.storage}, then: kubectl apply -f inferenceservice.yaml\n" + yaml.safe_dump(
        body, sort_keys=False
    )


def render_readme(config: ServingConfig, spec: ModelSpec, fingerprint: str, measurement: Measurement | None) -> str:
    """Return what a client and an operator have to know, with the measured loss and speed."""
    record = spec.extra.preprocessing or {}
    steps = Preprocessing.from_record(record, spec.geometry, "the model's description").steps()
    height, width, channels = spec.image.shape
    lines = [
        f"# {config.name}: {spec.backbone}, {config.precision}",
        "",
        f"Model `{fingerprint}`, {len(spec.classes):,} classes (`models/{config.name}/labels.txt`, by id).",
        "",
        f"Input `{INPUT}`: uint8 [N, {height}, {width}, {channels}], N up to {MAX_BATCH}. Normalization and "
        "temperature are in the graph. These are not, and a client does them first, as `imagemill predict` does:",
        "",
        *(f"{number}. {step}" for number, step in enumerate(steps, 1)),
        "",
        "Outputs, float32 [N, classes]: `logits`, `probabilities`.",
        "",
        *_render_measurement(config, measurement),
        "## Serve",
        "",
        "```sh",
        'docker run --rm -p 8000:8000 -v "$PWD/models:/models" nvcr.io/nvidia/tritonserver:<release>-py3 '
        "tritonserver --model-repository=/models",
        f"curl -s localhost:8000/v2/models/{config.name}",
        "```",
        "",
        f"On KServe: copy `models/` to `{config.storage}`, then `kubectl apply -f inferenceservice.yaml`.",
    ]
    return "\n".join(lines) + "\n"


def _render_measurement(config: ServingConfig, measurement: Measurement | None) -> Sequence[str]:
    if measurement is None:
        return ()
    rows = [
        f"| {METRIC_TITLES[metric]} | {loss.float32:.4f} | {loss.converted:.4f} | {loss.gain:+.4f} "
        f"({loss.interval[0]:+.4f} to {loss.interval[1]:+.4f}) |"
        for metric, loss in measurement.losses.items()
    ]
    rows.append("| size | {} | {} | |".format(*map(format_size, measurement.bytes)))
    rows += [
        f"| ms an image, batch {size} | {first:.2f} | {second:.2f} | |"
        for size, (first, second) in measurement.milliseconds.items()
    ]
    method = (
        f" Calibrated on up to {CALIBRATION_IMAGES} images; weights per channel, static QDQ."
        if config.precision == INT8
        else ""
    )
    return (
        "## Against fp32", "", f"| | fp32 | {config.precision} | difference (95%) |", "|---|---:|---:|---:|", *rows, "",
        f"On {measurement.images:,} {measurement.split} images, paired; {100 * measurement.agreement:.1f}% have the "
        f"same predicted classes, and no probability differs by more than {measurement.largest_difference:.2g}. Times "
        f"are the median of 15 runs with one thread of the CPU that wrote this.{method}", "",
    )  # fmt: skip


def _one_line(name: str) -> str:
    return " ".join(name.split()) or name.strip()
