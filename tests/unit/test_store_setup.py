"""Job that makes the store's keys and bucket, against HTTP servers of the Kubernetes API and S3."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest

SCRIPT = Path(__file__).parents[2] / "k8s" / "components" / "seaweedfs" / "setup.py"
TOKEN = "token-of-the-job"


class Api:
    """Secrets of one namespace, as Kubernetes' API server answers; `deny`: status of every answer."""

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, str]] = {}
        self.requests: list[str] = []
        self.deny = 0
        self.first: dict[str, str] | None = None
        """Secret that another Job creates between this one's GET and POST."""

    def answer(self, method: str, path: str, token: str, body: Any) -> tuple[int, dict[str, Any]]:
        self.requests.append(f"{method} {path}")
        folder = "/api/v1/namespaces/mill/secrets"
        if self.deny or token != f"Bearer {TOKEN}":
            return self.deny or 401, {"kind": "Status", "message": "secrets is forbidden"}
        if method == "POST" and path == folder:
            name = body["metadata"]["name"]
            if self.first is not None:
                self.secrets[name] = self.first
            if name in self.secrets:
                return 409, {"kind": "Status", "reason": "AlreadyExists"}
            self.secrets[name] = {
                key: base64.b64encode(value.encode()).decode() for key, value in body["stringData"].items()
            }
            return 201, {"kind": "Secret"}
        name = path.removeprefix(f"{folder}/")
        if method == "GET" and name in self.secrets:
            return 200, {"kind": "Secret", "data": self.secrets[name]}
        return 404, {"kind": "Status", "message": f"secrets {name} not found"}


def serve(api: Api, certificate: Path, key: Path) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, document = api.answer(self.command, self.path, self.headers.get("Authorization", ""), body)
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _answer

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 with its key, which is its own authority, and a token: a pod's folder."""
    folder = tmp_path_factory.mktemp("account")
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed: no certificate for an API server")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=api", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem",
         "-out", folder / "ca.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    (folder / "token").write_text(TOKEN + "\n")
    return folder


@pytest.fixture
def api(identity: Path) -> Iterator[tuple[Api, dict[str, str]]]:
    """The API and the environment that finds it."""
    server_state = Api()
    server = serve(server_state, identity / "ca.crt", identity / "key.pem")
    host, port = server.server_address[:2]
    yield (
        server_state,
        {"KUBERNETES_SERVICE_HOST": str(host), "KUBERNETES_SERVICE_PORT": str(port), "ACCOUNT": str(identity)},
    )
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def run_setup(environment: dict[str, str], bucket: str, endpoint: str, patience: str = "20") -> Any:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    settings = {"NAMESPACE": "mill", "SECRET": "store", "BUCKET": bucket, "PATIENCE_S": patience}
    settings |= {"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint}
    return subprocess.run(
        [sys.executable, SCRIPT], env=inherited | environment | settings, capture_output=True, text=True
    )


def decode_keys(api: Api) -> tuple[str, ...]:
    return tuple(base64.b64decode(api.secrets["store"][field]).decode() for field in ("accesskey", "secretkey"))


def list_buckets(endpoint: str) -> set[str]:
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a",
                          aws_secret_access_key="b")  # fmt: skip
    return {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}


def test_keys_and_bucket_are_made_once(api: tuple[Api, dict[str, str]], s3: str) -> None:
    api_state, environment = api
    first = run_setup(environment, "first", s3)
    assert first.returncode == 0, first.stderr
    access_key, secret_key = decode_keys(api_state)
    assert re.fullmatch(r"[0-9a-f]{20}", access_key) and len(secret_key) == 40
    assert "first" in list_buckets(s3)
    assert access_key not in first.stdout + first.stderr and secret_key not in first.stdout + first.stderr
    api_state.requests.clear()
    second = run_setup(environment, "first", s3)
    assert second.returncode == 0, second.stderr
    assert api_state.requests == ["GET /api/v1/namespaces/mill/secrets/store"]
    assert decode_keys(api_state) == (access_key, secret_key)
    api_state.secrets.clear()
    assert run_setup(environment, "first", s3).returncode == 0
    assert decode_keys(api_state) != (access_key, secret_key)


def test_keys_made_concurrently_are_used(api: tuple[Api, dict[str, str]], s3: str) -> None:
    api_state, environment = api
    api_state.first = {field: base64.b64encode(b"theirs").decode() for field in ("accesskey", "secretkey")}
    process = run_setup(environment, "second", s3)
    assert process.returncode == 0, process.stderr
    assert decode_keys(api_state) == ("theirs", "theirs") and "made the secret" not in process.stdout


@pytest.mark.parametrize("status", [403, 500])
def test_error_of_the_api_is_reported(api: tuple[Api, dict[str, str]], s3: str, status: int) -> None:
    api_state, environment = api
    api_state.deny = status
    process = run_setup(environment, "third", s3)
    assert process.returncode == 1 and f"{status} secrets is forbidden" in process.stderr
    assert "third" not in list_buckets(s3)


def test_secret_without_keys_is_not_changed(api: tuple[Api, dict[str, str]], s3: str) -> None:
    api_state, environment = api
    api_state.secrets["store"] = {"accesskey": base64.b64encode(b"a").decode()}
    process = run_setup(environment, "fourth", s3)
    assert process.returncode == 1 and "has no secretkey" in process.stderr
    assert set(api_state.secrets["store"]) == {"accesskey"}


def test_untrusted_api_gets_no_token(api: tuple[Api, dict[str, str]], s3: str, tmp_path: Path, identity: Path) -> None:
    api_state, environment = api
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-subj", "/CN=other", "-keyout", tmp_path / "key", "-out", tmp_path / "ca.crt"],
                   check=True, capture_output=True)  # fmt: skip
    shutil.copy(identity / "token", tmp_path)
    process = run_setup(environment | {"ACCOUNT": str(tmp_path)}, "fifth", s3)
    assert process.returncode == 1 and "CERTIFICATE_VERIFY_FAILED" in process.stderr
    assert api_state.requests == []


def test_unreachable_store_is_an_error(api: tuple[Api, dict[str, str]]) -> None:
    _, environment = api
    process = run_setup(environment, "sixth", "http://127.0.0.1:9", patience="0.1")
    assert process.returncode == 1 and "the bucket sixth can't be made" in process.stderr
