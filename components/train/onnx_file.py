"""The model as one ONNX file: pixels in, logits and probabilities out, so that nothing has to be known to use it.

Input `images` uint8 [N, H, W, C], any N, just what resize stores and `imagemill predict` makes; outputs `logits` and
`probabilities`, float32 [N, classes]. Normalization and temperature are in the graph; what comes before the input
(geometry, colour, clean's work on pixels) is in the metadata, as text and as JSON.
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

from ..store.images import Pixels
from ..store.labels import probabilities
from ..store.model import ModelSpec, Normalize
from ..store.preprocessing import EXTRA_KEY, Preprocessing

if TYPE_CHECKING:
    import onnx
    import torch

OPSET = 18
"""What every runtime of the last years reads, and the lowest that torch's exporter writes without a conversion."""
LARGEST = 2**31 - 2**24
"""Bytes of weights in one file: a protobuf message ends at 2 GB, graph and names included."""
INPUT, OUTPUTS = "images", ("logits", "probabilities")
AGREES = 1e-3
"""Largest difference of a probability between network and file; float32 arithmetic in another order makes 1e-6."""


class NotExported(Exception):
    """There is no ONNX file of this network; the message says why."""


def export(network: torch.nn.Module, spec: ModelSpec, about: dict[str, str]) -> bytes:
    """The file. `about` is added to its metadata. The network itself stays as it is. Raises NotExported.

    The same weights give the same bytes: what torch's exporter tells of places in source files is left out.
    """
    import torch

    size, _, channels = spec.image["shape"]
    weights = sum(one.numel() * 4 for one in network.state_dict().values())
    if weights > LARGEST:
        raise NotExported(f"its weights have {weights / 1e9:.1f} GB, and one file can hold 2 GB")
    whole = _Whole(network, spec).module()
    example = torch.zeros(2, size, size, channels, dtype=torch.uint8)
    errors = []
    for exporter in (_by_faithful_trace, _by_dynamo, *((_by_trace,) if can_compare() else ())):
        try:
            with _quietly():
                made = exporter(whole, example)
            break
        except Exception as error:  # an exporter raises whatever a network's code makes it raise
            errors.append(f"{type(error).__name__}: {_first_line(error)}")
    else:
        raise NotExported("; ".join(dict.fromkeys(errors)))
    _tidy(made)
    for key, value in sorted({**metadata(spec), **about}.items()):
        made.metadata_props.add(key=key, value=value)
    return bytes(made.SerializeToString(deterministic=True))


def metadata(spec: ModelSpec) -> dict[str, str]:
    """What the file says of itself: texts, and JSON where it is more than a word."""
    said = spec.extra.get(EXTRA_KEY, {})
    before = Preprocessing.from_record(said, spec.geometry, "the model's description")
    found: dict[str, Any] = {
        "format": "imagemill-onnx 1",
        "backbone": spec.backbone,
        "task": spec.task,
        "classes": list(spec.classes),
        "temperature": temperature(spec),
        "input": f"{INPUT}: uint8 [N, {', '.join(map(str, spec.image['shape']))}], N images of height, width, channels",
        "mean": spec.image["mean"],
        "std": spec.image["std"],
        "preprocessing": {**spec.geometry.to_dict(), **said, "steps": before.steps()},
    }
    return {key: one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for key, one in found.items()}


def temperature(spec: ModelSpec) -> float:
    """What logits are divided by before they become probabilities; 1 where nothing was fitted."""
    return float(spec.extra.get("temperature", 1.0))


def difference(data: bytes, network: torch.nn.Module, spec: ModelSpec, images: Pixels) -> float | None:
    """The largest difference of a probability between file and network on uint8 [N, H, W, C]; None where onnxruntime is
    not installed. Raises NotExported for a file that onnxruntime can't run."""
    if not can_compare():
        return None
    import torch

    whole = _Whole(network, spec).module()
    with torch.inference_mode():
        expected = whole(torch.from_numpy(images))[1].numpy()
    try:
        found = run(data, images)[1]
    except Exception as error:  # onnxruntime has a tree of exceptions of its own, below Exception alone
        raise NotExported(f"onnxruntime can't run it: {_first_line(error)}") from None
    return float(np.abs(found - expected).max())


def can_compare() -> bool:
    """Whether onnxruntime is installed."""
    return find_spec("onnxruntime") is not None


def run(data: bytes, images: Pixels) -> list[Any]:
    """Logits and probabilities, float32 [N, classes], by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(list(OUTPUTS), {INPUT: images}))


class _Whole:
    """The network between its input and its probabilities, as one module on the CPU in evaluation mode."""

    def __init__(self, network: torch.nn.Module, spec: ModelSpec) -> None:
        self._network, self._spec = network, spec

    def module(self) -> torch.nn.Module:
        import torch

        spec = self._spec
        # torch's modules can't be defined before torch is imported, which other commands need not wait for.

        class Whole(torch.nn.Module):
            def __init__(self, inner: torch.nn.Module) -> None:
                super().__init__()
                self.inner, self.normalize = inner, Normalize(spec.image, torch.device("cpu"))

            def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                logits = self.inner(self.normalize(images)).float()
                return logits, probabilities(logits / temperature(spec), spec.task)

        inner = copy.deepcopy(self._network).to("cpu", torch.float32)
        inner = inner.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return Whole(inner).eval()


def _by_faithful_trace(whole: torch.nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    """As `_by_trace`, of a network whose Python code decides nothing by the numbers in a tensor, its sizes included:
    then one run shows all that there is to see, in a tenth of the time that `_by_dynamo` takes."""
    from torch.jit import TracerWarning  # type: ignore[attr-defined]

    warnings.simplefilter("error", TracerWarning)
    return _by_trace(whole, example)


def _by_dynamo(whole: torch.nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    """By torch.export, which follows the code itself, and onnxscript."""
    import torch

    program = torch.onnx.export(
        whole, (example,), dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS), opset_version=OPSET,
        dynamic_shapes=({0: torch.export.Dim("N", min=1)},), external_data=False, verbose=False,
    )  # fmt: skip
    assert program is not None
    return program.model_proto


def _by_trace(whole: torch.nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    """By TorchScript's trace of one run, the older way. It may take a decision for the only one there is, so that it is
    the last resort, and only where its file can be compared with the network."""
    import onnx
    import torch

    axes = {name: {0: "N"} for name in (INPUT, *OUTPUTS)}
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            whole, (example,), path, dynamo=False, input_names=[INPUT], output_names=list(OUTPUTS), opset_version=OPSET,
            dynamic_axes=axes,
        )  # fmt: skip
        return onnx.load_from_string(path.read_bytes())


def _tidy(model: onnx.ModelProto) -> None:
    """Leave out what tells of this machine's files, and what no runtime reads."""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "imagemill", ""
    del graph.metadata_props[:]
    for one in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        one.doc_string = ""
        del one.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


@contextmanager
def _quietly() -> Iterator[None]:
    """Exporters warn of what is theirs to mend, by warnings and by their loggers."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
