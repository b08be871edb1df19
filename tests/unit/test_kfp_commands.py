"""Commands that speak to Kubeflow Pipelines: what they refuse before any request, and what they read of its answers.

Runs, schedules and logins themselves are tried on a real cluster (tests/e2e).
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest

from imagemill.components.dataset.manifest import code_version
from imagemill.components.storage.errors import MillError
from imagemill.pipelines.cli import main as cli
from imagemill.pipelines.cluster.cluster_file import load_cluster
from imagemill.pipelines.compile import compile_kfp
from imagemill.pipelines.kfp import ui
from imagemill.pipelines.kfp.uploads import read_package
from imagemill.pipelines.parameters import FORM_PARAMETERS, RunParameters, format_form_value, list_form_parameters

SECRET = "s3cr3t-0f-somebody"
CLUSTER = "images:\n  tags_allowed: true\nstorage:\n  workspace: s3://mill/work\n"
NOBODY = ["--host", "http://127.0.0.1:9"]
"""Nothing listens there: a command that sent a request would exit with 75."""
GOLDEN = Path(__file__).parent / "golden" / "metadata_store.json"
"""Requests and answers of ML Metadata's own engine (1.17), in which two tasks were recorded as KFP's launcher does."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a cluster's file and the pipeline compiled for it."""
    folder = tmp_path_factory.mktemp("kfp")
    (folder / "cluster.yaml").write_text(CLUSTER)
    compile_kfp(RunParameters({}, {}), folder / "pipeline.yaml", load_cluster(str(folder / "cluster.yaml")))
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["submit", "--target", "argo"], "argo submit --from workflowtemplate/"),
        (["submit", "--workspace", "./here"], "workspace: expected s3://bucket/prefix"),
        (["submit", "--dataset", "folder", "--source", "./photos"], "--source: expected s3://… or http(s)://…"),
        (["submit", "--epoch", "3"], "is it --epochs?"),
        (["submit", "--pipeline-name", " "], "--pipeline-name: expected"),
        (["submit", "--token-file", "/no/such/file"], "--token-file: expected a file"),
        (["submit", "--namespace", "My Team"], "--namespace: expected a name of lower-case letters, digits and '-'"),
        (["schedule"], "schedule: expected --cron, or one of"),
        (["schedule", "--list", "--delete"], "found '--list, --delete'"),
        (["schedule", "--cron", "0 3 * * 1", "--delete"], "found '--cron, --delete'"),
        (["schedule", "--cron", "61 3 * * 1"], "--cron (minute): expected numbers from 0 to 59"),
        (["schedule", "--cron", "0 0 3 * * 1"], "--cron: expected five fields"),
        (["schedule", "--cron", "0 3 * * 1", "--dataset", "folder", "--source", "./photos"], "expected s3://"),
    ],
)
def test_wrong_arguments_are_refused_without_a_request(
    words: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--package", str(folder / "pipeline.yaml"), *NOBODY]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--dataset", "folder", "--source", f"https://me:{SECRET}@photos.example/x.zip"],
        ["--dataset", "folder", "--source", f"https://photos.example/x.zip?signature={SECRET}"],
        ["--ray-address", f"http://me:{SECRET}@head:8265"],
        ["--workspace", f"s3://me:{SECRET}@bucket/work"],
    ],
)
def test_credentials_in_a_parameter_are_refused(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's parameters are there for everyone who may see the run."""
    assert cli.main(["submit", *words, "--package", str(folder / "pipeline.yaml"), *NOBODY]) == 2
    printed = capsys.readouterr()
    assert f"{words[-2]}: expected a URL without a login or query" in printed.err
    assert SECRET not in printed.err + printed.out


@pytest.mark.parametrize("host", ["localhost:8080", "ftp://x", "http://user:pass@x"])
def test_invalid_addresses_are_refused(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", "--host", host]) == 2
    error = capsys.readouterr().err
    assert "--host: expected an address" in error and "pass" not in error


def test_unreachable_service_is_a_transient_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagemill.pipelines.kfp.client.RETRY_S", 0.2)
    assert cli.main(["runs", *NOBODY]) == 75
    assert "http://127.0.0.1:9 can't be reached: [Errno 111] Connection refused" in capsys.readouterr().err


def test_version_is_named_by_release_date_and_content(folder: Path) -> None:
    package = read_package(folder / "pipeline.yaml")
    sha256 = hashlib.sha256((folder / "pipeline.yaml").read_bytes()).hexdigest()
    assert package.version_name == f"{code_version()}-{sha256[:16]}"
    assert re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", package.version_name)  # what KFP asks for
    name = package.display_name(datetime(2026, 11, 22, 14, 5, tzinfo=UTC))
    assert name == f"{code_version()} · 2026-11-22 14:05 · {sha256[:6]}"


def test_version_is_described_by_its_parameters(folder: Path) -> None:
    description = read_package(folder / "pipeline.yaml").description
    table = {cells[0]: cells[1:] for cells in (cells_of(row) for row in description.splitlines()[4:])}
    assert list(table) == [*FORM_PARAMETERS, "config"]
    for name, parameter in list_form_parameters().items():
        default = "s3://mill/work" if name == "workspace" else format_form_value(parameter.default)
        assert table[name] == [parameter.help, default, ", ".join(parameter.choices)]
    assert len(quote(description)) < 7_000  # it is a part of a URL, of which proxies take 8 kB


def test_a_long_default_is_cut_in_the_description(folder: Path, tmp_path: Path) -> None:
    config = json.dumps({"clean": {"other_class": "x|" * 5_000}})
    package = (folder / "pipeline.yaml").read_text().replace("defaultValue: ''", f"defaultValue: {config!r}")
    (tmp_path / "p.yaml").write_text(package)
    described = read_package(tmp_path / "p.yaml").description
    assert len(quote(described)) < 9_000
    assert {len(cells_of(row)) for row in described.splitlines()[2:]} == {4}


def cells_of(row: str) -> list[str]:
    """The cells of a row of a Markdown table, as they are shown."""
    return [re.sub(r"\\(.)", r"\1", cell).strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_the_metadata_store_is_read_as_its_own_engine_answers() -> None:
    golden = json.loads(GOLDEN.read_text())

    def call(method: str, request: bytes) -> bytes:
        assert request.hex() == golden[method]["request"]
        return bytes.fromhex(golden[method]["answer"])

    manifest, log, report = ui.read_artifacts(call, "run-1")
    assert (manifest.type, manifest.uri) == ("system.Dataset", "minio://mlpipeline/v2/m")
    assert (report.id, report.type) == (3, ui.HTML_TYPE)
    clean, promote = ui.read_executions(call, "run-1")
    assert (clean.task, clean.state, clean.logs) == ("clean", "COMPLETE", (log,))
    assert (promote.task, promote.state, promote.namespace) == ("promote", "FAILED", "kubeflow")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (ui.frame(b"grpc-status: 14\r\ngrpc-message:away\r\n", 0x80), "status 14: away"),
        (b"<!DOCTYPE html><html>log in</html>", "something else"),
        (ui.frame(b"x" * 9)[:-3], "something else"),
    ],
)
def test_invalid_answers_of_the_metadata_store_are_errors(body: bytes, message: str) -> None:
    with pytest.raises(MillError, match=message):
        ui.unframe(body)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("http://localhost:8080", "http://localhost:8080"),
        ("https://kubeflow.example.com/pipeline/", "https://kubeflow.example.com/pipeline"),
        ("http://ml-pipeline.kubeflow.svc.cluster.local:8888", "http://ml-pipeline-ui.kubeflow.svc.cluster.local"),
    ],
)
def test_the_pages_are_where_the_api_is(host: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KF_PIPELINES_UI_ENDPOINT", raising=False)
    assert ui.resolve_ui_address(host) == address
