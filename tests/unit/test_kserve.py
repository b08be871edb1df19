"""A real KServe server process answers by the Open Inference Protocol v2 as `imagemill predict` does."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import photos
import pytest
from test_predict_command import CLASSES, SPEC
from test_predict_command import commit_model as model_of

from imagemill.components.dataset.manifest import Manifest, commit
from imagemill.components.dataset.shards import publish_bytes
from imagemill.components.models.artifact import Preprocessing, load_model
from imagemill.components.train.artifact.onnx_export import export
from imagemill.pipelines.cli.main import main
from imagemill.pipelines.serving.repository import render_triton_config

PYTHON = os.environ.get("KSERVE_PYTHON", "") or (sys.executable if importlib.util.find_spec("kserve") else "")
"""An interpreter with kserve and onnxruntime, which may be that of another environment."""


@pytest.mark.proof
@pytest.mark.skipif(not PYTHON, reason="needs kserve (pip install kserve), here or in the interpreter KSERVE_PYTHON")
def test_kserve_answers_as_predict_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights_only = model_of(tmp_path / "ws")
    network, spec = load_model(weights_only)
    onnx = publish_bytes(weights_only.uri, export(network, spec, {}), "model-", ".onnx", "onnx")
    files = (*weights_only.manifest.files, onnx)
    uri = str(tmp_path / "ws" / "model" / "cafe")
    published = [publish_bytes(uri, (Path(weights_only.uri) / f.uri).read_bytes(), "model-", Path(f.uri).suffix, f.role)
                 for f in files]  # fmt: skip
    commit(uri, Manifest("model", "cafe", classes=CLASSES, files=tuple(published), image=SPEC.image))
    photo = tmp_path / "photo.png"
    photo.write_bytes(photos.saved(photos.made(4, 70, 50), "PNG"))
    assert main(["export-model", uri, "--output", str(tmp_path / "out"), "--name", "pets"]) == 0
    capsys.readouterr()
    assert main(["predict", "--model", uri, str(photo), "--top", str(len(CLASSES)), "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    pixels = Preprocessing.from_record(spec.extra.preprocessing or {}, spec.geometry, uri)(photo.read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).parents[1] / "kserve_server.py"
    command = [PYTHON, str(script), str(tmp_path / "out" / "models"), "pets", str(port)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        address = f"http://127.0.0.1:{port}/v2/models/pets"
        _wait_for(f"{address}/ready", server, tmp_path / "server.log")
        tensor = {"name": "images", "shape": [1, *pixels.shape], "datatype": "UINT8", "data": pixels.ravel().tolist()}
        answer = _request(f"{address}/infer", {"inputs": [tensor]})
    finally:
        server.terminate()
        server.wait(30)
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["probabilities"]["shape"] == [1, len(CLASSES)]
    served = dict(zip(CLASSES, outputs["probabilities"]["data"], strict=True))
    expected = {row["class"]: row["probability"] for row in predicted["predictions"]}
    assert served == pytest.approx(expected, abs=2e-5)


@pytest.mark.proof
@pytest.mark.skipif(not PYTHON, reason="needs tritonclient[grpc] in the interpreter KSERVE_PYTHON")
def test_the_configuration_is_a_message_of_tritons_schema(tmp_path: Path) -> None:
    if subprocess.run([PYTHON, "-c", "import tritonclient.grpc"], capture_output=True, check=False).returncode:
        pytest.skip(f"tritonclient[grpc] is not installed in {PYTHON}")
    _, spec = load_model(model_of(tmp_path / "ws"))
    config = tmp_path / "config.pbtxt"
    config.write_text(render_triton_config("pets", spec))
    code = (
        "import sys; from google.protobuf import text_format\n"
        "from tritonclient.grpc.model_config_pb2 import ModelConfig\n"
        "config = text_format.Parse(open(sys.argv[1]).read(), ModelConfig())\n"
        "print(config.name, config.backend, list(config.input[0].dims), [list(o.dims) for o in config.output])"
    )
    printed = subprocess.run([PYTHON, "-c", code, str(config)], capture_output=True, text=True, check=True).stdout
    shape, classes = list(SPEC.image.shape), [len(CLASSES)]
    assert printed.strip() == f"pets onnxruntime {shape} {[classes, classes]}"


def _request(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.loads(response.read())


def _wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            _request(url)
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(log.read_text()[-3000:])
            time.sleep(0.3)
