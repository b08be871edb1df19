"""Export a model as one ONNX file from pixels to probabilities, which needs no other knowledge of the model.

Input `images` uint8 [N, H, W, C], any N, just what resize stores and `imagemill predict` makes; outputs `logits` and
`probabilities`, float32 [N, classes]. Normalization and temperature are in the graph; what comes before the input
(geometry, color, clean's work on pixels) is in the metadata, as text and as JSON.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...dataset.labels import probabilities
from ...imaging.decoder import Pixels
from ...models.artifact import ModelSpec, Normalize, Preprocessing

if TYPE_CHECKING:
    import onnx
    import torch

OPSET = 18
"""Read by every runtime of the last years, and the lowest that torch's exporter writes without a conversion."""
MAX_BYTES = 2**31 - 2**24
"""Bytes of weights in one file: a protobuf message ends at 2 GB, graph and names included."""
INPUT, OUTPUTS = "images", ("logits", "probabilities")
_NOT_GEOMETRY = ("dtype", "encoding", "mean", "std")
"""Fields of an image that are no part of its geometry."""
TOLERANCE = 1e-3
"""Largest difference of a probability between network and file; float32 arithmetic in another order makes 1e-6."""


class ExportError(Exception):
    """A network can't be exported as ONNX; the message says why."""


def export(network: torch.nn.Module, spec: ModelSpec, more_metadata: dict[str, str]) -> bytes:
    """Return the network as an ONNX file, with `more_metadata` added to that of `spec`; raise ExportError.

    The network is left as it is. The same weights give the same bytes: paths of source files, which torch's exporter
    records, are removed.
    """
    import torch

    size, _, channels = spec.image.shape
    weight_bytes = sum(value.numel() * 4 for value in network.state_dict().values())
    if weight_bytes > MAX_BYTES:
        raise ExportError(f"its weights have {weight_bytes / 1e9:.1f} GB, and one file can hold 2 GB")
    module = _make_module(network, spec)
    example = torch.zeros(2, size, size, channels, dtype=torch.uint8)
    errors = []
    for exporter in (_export_by_strict_trace, _export_by_dynamo, *((_export_by_trace,) if can_compare() else ())):
        try:
            with _silence_exporters():
                model = exporter(module, example)
            break
        except Exception as error:  # an exporter raises any exception that a network's code raises
            errors.append(f"{type(error).__name__}: {_first_line(error)}")
    else:
        raise ExportError("; ".join(dict.fromkeys(errors)))
    _remove_source_locations(model)
    for key, value in sorted({**make_metadata(spec), **more_metadata}.items()):
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString(deterministic=True))


def make_metadata(spec: ModelSpec) -> dict[str, str]:
    """Return the file's metadata: text as it is, all other values as JSON."""
    record = spec.extra.preprocessing or {}
    geometry = {key: value for key, value in spec.image.to_dict().items() if key not in _NOT_GEOMETRY}
    preprocessing = Preprocessing.from_record(record, spec.geometry, "the model's description")
    values: dict[str, Any] = {
        "format": "imagemill-onnx 1",
        "backbone": spec.backbone,
        "task": spec.task,
        "classes": list(spec.classes),
        "temperature": get_temperature(spec),
        "input": f"{INPUT}: uint8 [N, {', '.join(map(str, spec.image.shape))}], N images of height, width, channels",
        "mean": spec.image.mean,
        "std": spec.image.std,
        "preprocessing": {**geometry, **record, "steps": preprocessing.steps()},
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in values.items()
    }


def get_temperature(spec: ModelSpec) -> float:
    """Return the temperature that logits are divided by; 1 where none was fitted."""
    return 1.0 if spec.extra.temperature is None else spec.extra.temperature


def measure_difference(data: bytes, network: torch.nn.Module, spec: ModelSpec, images: Pixels) -> float | None:
    """Return the largest difference of a probability between file and network on uint8 [N, H, W, C]; None where
    onnxruntime is not installed. ExportError for a file that onnxruntime can't run."""
    if not can_compare():
        return None
    import torch

    module = _make_module(network, spec)
    with torch.inference_mode():
        expected = module(torch.from_numpy(images))[1].numpy()
    try:
        actual = run(data, images)[1]
    except Exception as error:  # onnxruntime's exceptions have no common class but Exception
        raise ExportError(f"onnxruntime can't run it: {_first_line(error)}") from None
    return float(np.abs(actual - expected).max())


def can_compare() -> bool:
    """Return whether onnxruntime is installed."""
    return find_spec("onnxruntime") is not None


def run(data: bytes, images: Pixels) -> list[Any]:
    """Return logits and probabilities, float32 [N, classes], by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(list(OUTPUTS), {INPUT: images}))


def _make_module(network: torch.nn.Module, spec: ModelSpec) -> torch.nn.Module:
    """Return a copy of the network with normalization and temperature, on the CPU, in float32 and evaluation mode."""
    import torch

    # torch's modules can't be defined before torch is imported, which other commands need not wait for.
    class CalibratedNetwork(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner, self.normalize = inner, Normalize(spec.image, torch.device("cpu"))

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.inner(self.normalize(images)).float()
            return logits, probabilities(logits / get_temperature(spec), spec.task)

    inner = copy.deepcopy(network).to("cpu", torch.float32)
    inner = inner.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return CalibratedNetwork(inner).eval()


def _export_by_strict_trace(module: torch.nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    """Export by a trace that refuses networks whose Python code depends on values or sizes of tensors.

    Of all others one run shows everything, in a tenth of the time that `_export_by_dynamo` takes.
    """
    from torch.jit import TracerWarning  # type: ignore[attr-defined]

    warnings.simplefilter("error", TracerWarning)
    return _export_by_trace(module, example)


def _export_by_dynamo(module: torch.nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    """Export by torch.export, which follows the code itself, and onnxscript."""
    import torch

    program = torch.onnx.export(
        module, (example,), dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS), opset_version=OPSET,
        dynamic_shapes=({0: torch.export.Dim("N", min=1)},), external_data=False, verbose=False,
    )  # fmt: skip
    assert program is not None
    return program.model_proto


def _export_by_trace(module: torch.nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    """Export by TorchScript's trace of one run.

    Branches that the example does not take are missing in the file, so this is the last resort, and only where the file
    can be compared with the network.
    """
    import onnx
    import torch

    axes = {name: {0: "N"} for name in (INPUT, *OUTPUTS)}
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            module, (example,), path, dynamo=False, input_names=[INPUT], output_names=list(OUTPUTS),
            opset_version=OPSET, dynamic_axes=axes,
        )  # fmt: skip
        return onnx.load_from_string(path.read_bytes())


def _remove_source_locations(model: onnx.ModelProto) -> None:
    """Remove documentation strings and metadata, which name files of this machine and which no runtime reads."""
    graph = model.graph
    graph.name = "imagemill"
    del model.metadata_props[:]
    nodes = [node for function in model.functions for node in function.node]
    values = (*graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for part in (graph, *graph.node, *values, *model.functions, *nodes):
        part.doc_string = ""
        del part.metadata_props[:]


@contextmanager
def _silence_exporters() -> Iterator[None]:
    """Suppress warnings and log messages, in which exporters report on their own code."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
