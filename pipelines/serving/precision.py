"""Convert a model's ONNX file to fp16 or int8. Inputs and outputs stay as they are: uint8 pixels, float32 numbers.

`int8` is onnxruntime's static quantization: nodes that quantize and dequantize (QDQ) at convolutions and products,
weights signed, symmetric, per output channel and in 7 bits (`reduce_range`: in 8 bits the sums of processors without
VNNI saturate), activations unsigned with the range that calibration images show (MinMax). Normalization, temperature
and probabilities stay float32. `fp16` halves the file; a CPU computes it in float32, so that it pays on a GPU alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...components.imaging.decoder import Pixels
from ...components.storage.errors import UserError, first_line
from ...components.train.artifact.onnx_export import INPUT

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
