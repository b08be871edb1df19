"""Serve a model repository's ONNX file with KServe's own ModelServer on a CPU: kserve_server.py MODELS NAME PORT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import kserve
import onnxruntime


class OnnxModel(kserve.Model):  # type: ignore[misc]
    def __init__(self, models: Path, name: str) -> None:
        super().__init__(name)
        file = models / name / "1" / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.ready = True

    def load(self) -> bool:
        return True

    async def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        names = [output.name for output in self.session.get_outputs()]
        arrays = self.session.run(names, {value.name: value.as_numpy() for value in payload.inputs})
        outputs = []
        for name, array in zip(names, arrays, strict=True):
            output = kserve.InferOutput(name, list(array.shape), "FP32")
            output.set_data_from_numpy(array, binary_data=False)
            outputs.append(output)
        return kserve.InferResponse(payload.id or "1", self.name, outputs)


if __name__ == "__main__":
    models, name, port = sys.argv[1:]
    kserve.ModelServer(http_port=int(port), enable_grpc=False, workers=1).start([OnnxModel(Path(models), name)])
