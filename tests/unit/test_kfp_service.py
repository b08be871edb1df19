"""Connection and login to KFP's service, and messages while it is unreachable or another server answers."""

from __future__ import annotations

import http.server
import re
import socket
import threading
from pathlib import Path

import kfp_commands
import pytest
from kfp_commands import Commands, commands, compiled_once, script
from kfp_server import KfpService, serving

from imagemill.components.step import progress
from imagemill.pipelines.cli import main as cli
from imagemill.pipelines.kfp import following

SECRET = "s3cr3t-0f-somebody"
mill = kfp_commands.mill


def test_following_survives_lost_connections_and_server_errors(mill: Commands) -> None:
    mill.service.scripts = [script()]
    run_path = "/runs/[^/]+$"
    for kind in ("drop", "500", "503", "drop after", "429"):
        mill.service.fail(kind, 2, "GET", run_path)
    result = mill("submit")
    assert result.code == 0, result.err
    assert result.err.count("waiting for the service") == 1 and result.err.count("the service is back after") == 1
    assert mill.service.asked("POST", "/runs$") == 1


def test_following_survives_a_service_that_starts_again(mill: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    service = KfpService(scripts=[[("RUNNING", {})]])
    followed, missed, result = threading.Event(), threading.Event(), []

    def say(step: str, text: str) -> None:
        progress.say(step, text)
        if "waiting for the service" in text:
            missed.set()

    monkeypatch.setattr(following, "say", say)
    with socket.socket() as held:  # nobody else gets the port while the service is away
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with serving(service, port):
            service.on_request = lambda method, path: (
                followed.set() if path.count("/") == 4 and method == "GET" else None
            )

            def work() -> None:
                result.append(mill("submit", host=service.url))

            thread = threading.Thread(target=work)
            thread.start()
            assert followed.wait(60)
        assert missed.wait(60)
        service.runs[0]["_script"] = [("SUCCEEDED", {"promote": "SUCCEEDED"})]
        with serving(service, port):
            thread.join(60)
    assert result and result[0].code == 0, result
    assert re.search(r"can't be reached: .+; the run goes on, waiting for the service", result[0].err)
    assert len(service.runs) == 1


def test_following_ends_after_a_long_outage(mill: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MAX_OUTAGE_S", 0.2)
    mill.service.fail("502", 1000, "GET", "/runs/[^/]+$")
    result = mill("submit", "--json")
    run = mill.service.runs[0]["run_id"]
    assert result.code == 75 and f"the run goes on: {mill.service.url}/#/runs/details/{run}" in result.json["error"]
    assert result.json["run"] == run and result.json["exit_code"] == 75


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/pipelines$"), ("POST", "/upload_version$"), ("POST", "/experiments$"), ("POST", "/runs$")],
)
@pytest.mark.parametrize("kind", ["drop", "drop after", "500"])
def test_nothing_is_created_twice_when_a_response_is_lost(mill: Commands, method: str, path: str, kind: str) -> None:
    mill.service.fail(kind, 1, method, path)
    result = mill("submit", "--no-wait")
    assert result.code == 0, result.err
    collections = (mill.service.pipelines, mill.service.versions, mill.service.experiments, mill.service.runs)
    assert [len(items) for items in collections] == [1, 1, 1, 1]
    assert mill.service.faults[0].times == 0


def test_required_login_is_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = KfpService(token=SECRET)
    with commands(tmp_path, monkeypatch, capsys, service) as mill:
        result = mill("submit", "--no-wait")
        assert result.code == 2 and "expected a valid login, found it refused (401:" in result.err
        assert "KF_PIPELINES_COOKIE" in result.err and "kubectl port-forward" in result.err
        monkeypatch.setenv("KF_PIPELINES_TOKEN", "wrong-" + SECRET)
        result = mill("submit", "--no-wait", "--json")
        assert result.code == 2 and SECRET not in result.err + result.out
        monkeypatch.setenv("KF_PIPELINES_TOKEN", SECRET)
        result = mill("submit", "--json")
        assert result.code == 0 and SECRET not in result.err + result.out
        monkeypatch.delenv("KF_PIPELINES_TOKEN")
        (tmp_path / "token").write_text(SECRET + "\n")
        assert mill("runs", "--token-file", str(tmp_path / "token")).code == 0
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))  # as in a pod
        assert mill("runs").code == 0
    assert not service.pipelines[1:] and all(SECRET not in path for _, path, _ in service.requests)


def test_expired_login_is_waited_for_while_a_run_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = f"authservice_session={SECRET}", "authservice_session=renewed"
    service = KfpService(cookie=old, scripts=[script(), script()])
    file = tmp_path / "cookie"
    file.write_text(old + "\n")

    def run_out(method: str, path: str) -> None:
        if path.count("/") == 4 and method == "GET":
            service.cookie, service.on_request = new, refused

    def refused(method: str, path: str) -> None:
        if service.asked("GET", "/runs/[^/]+$") > 4:  # somebody has logged in again
            file.write_text(new)

    with commands(tmp_path, monkeypatch, capsys, service) as mill:
        service.on_request = run_out
        result = mill("submit", "--cookie-file", str(file))
        assert result.code == 0, result.err
        assert f"waiting for a new login in {file}" in result.err and SECRET not in result.err
        service.cookie, service.on_request = old, run_out
        monkeypatch.setenv("KF_PIPELINES_COOKIE", old)
        result = mill("submit")
        run = service.runs[-1]["run_id"]
        assert result.code == 2 and f"imagemill runs {run} --follow" in result.err and SECRET not in result.err
        file.write_text(SECRET)
        result = mill("runs", "--cookie-file", str(file))
        assert result.code == 2 and "expected one line, name=value" in result.err and SECRET not in result.err


def test_following_waits_for_the_renewal_of_a_mounted_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pod the kubelet renews it."""
    service = KfpService(token=SECRET, scripts=[script()])
    file = tmp_path / "token"
    file.write_text(SECRET)

    def run_out(method: str, path: str) -> None:
        if path.count("/") == 4 and method == "GET":
            service.token, service.on_request = "renewed", refused

    def refused(method: str, path: str) -> None:
        if service.asked("GET", "/runs/[^/]+$") > 4:
            file.write_text("renewed")

    monkeypatch.setattr("imagemill.pipelines.kfp.client.MOUNTED_TOKEN_FILE", str(file))
    with commands(tmp_path, monkeypatch, capsys, service) as mill:
        service.on_request = run_out
        result = mill("submit")
        assert result.code == 0 and f"waiting for a new login in {file}" in result.err, result.err


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("html", 2, "found a web page (to log in?)"),
        ("404 plain", 2, "--host: expected Kubeflow Pipelines' API, found nothing at "),
        ("403", 2, "expected a login that may do this"),
        ("500", 75, "answers 500: no healthy upstream"),
    ],
)
def test_responses_of_other_services_are_recognized(mill: Commands, kind: str, code: int, message: str) -> None:
    mill.service.fail(kind, 1000)
    result = mill("submit", "--no-wait", "--json")
    assert result.code == code and message in result.err and result.json["exit_code"] == code
    assert not mill.service.runs


def test_unresponsive_service_times_out(mill: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagemill.pipelines.kfp.client.TIMEOUT_S", (1, 0.5))
    mill.service.fail("hang", 1, "GET", "/runs$")
    result = mill("submit", "--no-wait")
    assert result.code == 0 and "Read timed out" in result.err and len(mill.service.runs) == 1


def test_unreachable_service_is_a_transient_error(mill: Commands) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as closed:
        host = f"http://127.0.0.1:{closed.server_address[1]}"
    result = mill("submit", "--no-wait", host=host)
    [tries, error] = result.err.splitlines()
    message = f"{host} can't be reached: [Errno 111] Connection refused"
    assert (
        result.code == 75
        and tries.startswith(f"looking for the service: {message}")
        and "trying again for 2 s" in tries
    )
    assert error.startswith(f"imagemill: error: {message}")


@pytest.mark.parametrize("host", ["localhost:8080", "ftp://x", "http://user:pass@x"])
def test_invalid_addresses_are_rejected(mill: Commands, host: str) -> None:
    result = mill("runs", host=host)
    assert result.code == 2 and "--host: expected an address" in result.err and "pass" not in result.err


def test_without_any_address_the_ways_in_are_named(mill: Commands) -> None:
    assert cli.main(["runs"]) == 2
    assert "kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80" in mill.capsys.readouterr().err


def test_the_environment_names_the_service(mill: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", mill.service.url + "/")
    monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example/_/pipeline")
    monkeypatch.setenv("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME", "ours")
    assert cli.main(["submit", "--no-wait", "--package", str(compiled_once())]) == 0
    run = mill.service.runs[0]["run_id"]
    assert f"https://kubeflow.example/_/pipeline/#/runs/details/{run}" in mill.capsys.readouterr().out
    assert mill.service.experiments[0]["display_name"] == "ours"
    assert not (mill.folder / ".config").exists()  # KFP's client would keep there what it found out


def test_in_a_pod_the_service_is_found_and_the_mounted_token_used(
    mill: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kfp
    from kubernetes.config import incluster_config

    for name in ("token", "ca.crt", "kfp-token"):
        (tmp_path / name).write_text(SECRET if name == "kfp-token" else "of the API server")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(kfp.Client, "_IN_CLUSTER_DNS_NAME", mill.service.url.removeprefix("http://"))
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "kfp-token"))
    mill.service.token = SECRET
    assert cli.main(["submit", "--no-wait", "--package", str(compiled_once())]) == 0
    printed = mill.capsys.readouterr()
    assert "http://localhost:8080/#/runs/details/" in printed.out and SECRET not in printed.out + printed.err


def test_kubectls_cluster_is_spoken_to_through_its_api_server(
    mill: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(f"""
apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: here, user: me}}}}]
clusters: [{{name: here, cluster: {{server: {mill.service.url}}}}}]
users: [{{name: me, user: {{token: {SECRET}}}}}]
""")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    mill.service.token, mill.service.prefix = SECRET, "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy/"
    assert cli.main(["submit", "--no-wait", "--package", str(compiled_once())]) == 0
    assert len(mill.service.runs) == 1
    (tmp_path / "config").write_text("apiVersion: v1")
    assert cli.main(["runs"]) == 2 and "--host: expected" in mill.capsys.readouterr().err


def test_multi_user_mode_uses_the_namespace_of_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = KfpService(multi_user=True)
    with commands(tmp_path, monkeypatch, capsys, service) as mill:
        assert mill("submit", "--no-wait", "--namespace", "team").code == 0
        assert [resource["namespace"] for resource in (*service.pipelines, *service.experiments)] == ["team", "team"]
        assert mill("submit", "--no-wait", "--cluster", str(tmp_path / "cluster.yaml")).code == 0  # that file's
        assert service.pipelines[1]["namespace"] == "imagemill"
        result = mill("runs", "--namespace", "team")
        assert (
            result.code == 0 and service.runs[0]["run_id"] in result.out and service.runs[1]["run_id"] not in result.out
        )
        result = mill("runs")
        assert result.code == 2 and "--namespace: expected the namespace of your profile" in result.err
