"""How KFP's service is reached and logged in to, and what is said while it is away or another answers."""

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


def test_following_survives_drops_errors_and_pages_that_are_none(mill: Commands) -> None:
    mill.service.scripts = [script()]
    look = "/runs/[^/]+$"
    for kind in ("drop", "500", "503", "drop after", "429"):
        mill.service.fail(kind, 2, "GET", look)
    ran = mill("submit")
    assert ran.code == 0, ran.err
    assert ran.err.count("waiting for the service") == 1 and ran.err.count("the service is back after") == 1
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


def test_the_wait_is_given_up_in_the_end(mill: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "MAX_OUTAGE_S", 0.2)
    mill.service.fail("502", 1000, "GET", "/runs/[^/]+$")
    ran = mill("submit", "--json")
    run = mill.service.runs[0]["run_id"]
    assert ran.code == 75 and f"the run goes on: {mill.service.url}/#/runs/details/{run}" in ran.json["error"]
    assert ran.json["run"] == run and ran.json["exit_code"] == 75


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/pipelines$"), ("POST", "/upload_version$"), ("POST", "/experiments$"), ("POST", "/runs$")],
)
@pytest.mark.parametrize("kind", ["drop", "drop after", "500"])
def test_nothing_is_made_twice_when_an_answer_is_lost(mill: Commands, method: str, path: str, kind: str) -> None:
    mill.service.fail(kind, 1, method, path)
    ran = mill("submit", "--no-wait")
    assert ran.code == 0, ran.err
    made = (mill.service.pipelines, mill.service.versions, mill.service.experiments, mill.service.runs)
    assert [len(items) for items in made] == [1, 1, 1, 1]
    assert mill.service.faults[0].times == 0


def test_what_the_login_must_be_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = KfpService(token=SECRET)
    with commands(tmp_path, monkeypatch, capsys, service) as mill:
        ran = mill("submit", "--no-wait")
        assert ran.code == 2 and "expected a valid login, found it refused (401:" in ran.err
        assert "KF_PIPELINES_COOKIE" in ran.err and "kubectl port-forward" in ran.err
        monkeypatch.setenv("KF_PIPELINES_TOKEN", "wrong-" + SECRET)
        ran = mill("submit", "--no-wait", "--json")
        assert ran.code == 2 and SECRET not in ran.err + ran.out
        monkeypatch.setenv("KF_PIPELINES_TOKEN", SECRET)
        ran = mill("submit", "--json")
        assert ran.code == 0 and SECRET not in ran.err + ran.out
        monkeypatch.delenv("KF_PIPELINES_TOKEN")
        (tmp_path / "token").write_text(SECRET + "\n")
        assert mill("runs", "--token-file", str(tmp_path / "token")).code == 0
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))  # as in a pod
        assert mill("runs").code == 0
    assert not service.pipelines[1:] and all(SECRET not in path for _, path, _ in service.requests)


def test_a_login_that_runs_out_while_a_run_is_followed(
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
        ran = mill("submit", "--cookie-file", str(file))
        assert ran.code == 0, ran.err
        assert f"waiting for a new login in {file}" in ran.err and SECRET not in ran.err
        service.cookie, service.on_request = old, run_out
        monkeypatch.setenv("KF_PIPELINES_COOKIE", old)
        ran = mill("submit")
        run = service.runs[-1]["run_id"]
        assert ran.code == 2 and f"imagemill runs {run} --follow" in ran.err and SECRET not in ran.err
        file.write_text(SECRET)
        ran = mill("runs", "--cookie-file", str(file))
        assert ran.code == 2 and "expected one line, name=value" in ran.err and SECRET not in ran.err


def test_a_mounted_token_that_runs_out_is_waited_for(
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
        ran = mill("submit")
        assert ran.code == 0 and f"waiting for a new login in {file}" in ran.err, ran.err


@pytest.mark.parametrize(
    ("kind", "code", "said"),
    [
        ("html", 2, "found a web page (to log in?)"),
        ("404 plain", 2, "--host: expected Kubeflow Pipelines' API, found nothing at "),
        ("403", 2, "expected a login that may do this"),
        ("500", 75, "answers 500: no healthy upstream"),
    ],
)
def test_what_answers_instead_of_the_service_is_told_apart(mill: Commands, kind: str, code: int, said: str) -> None:
    mill.service.fail(kind, 1000)
    ran = mill("submit", "--no-wait", "--json")
    assert ran.code == code and said in ran.err and ran.json["exit_code"] == code
    assert not mill.service.runs


def test_a_service_that_never_answers_is_not_waited_for(mill: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagemill.pipelines.kfp.client.TIMEOUT_S", (1, 0.5))
    mill.service.fail("hang", 1, "GET", "/runs$")
    ran = mill("submit", "--no-wait")
    assert ran.code == 0 and "Read timed out" in ran.err and len(mill.service.runs) == 1


def test_a_service_that_is_not_there_is_transient(mill: Commands) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as closed:
        host = f"http://127.0.0.1:{closed.server_address[1]}"
    ran = mill("submit", "--no-wait", host=host)
    [tries, error] = ran.err.splitlines()
    said = f"{host} can't be reached: [Errno 111] Connection refused"
    assert ran.code == 75 and tries.startswith(f"looking for the service: {said}") and "trying again for 2 s" in tries
    assert error.startswith(f"imagemill: error: {said}")


@pytest.mark.parametrize("host", ["localhost:8080", "ftp://x", "http://user:pass@x"])
def test_an_address_that_is_none_is_refused(mill: Commands, host: str) -> None:
    ran = mill("runs", host=host)
    assert ran.code == 2 and "--host: expected an address" in ran.err and "pass" not in ran.err


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


def test_where_there_are_several_users_everything_is_in_ones_own_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = KfpService(multi_user=True)
    with commands(tmp_path, monkeypatch, capsys, service) as mill:
        assert mill("submit", "--no-wait", "--namespace", "team").code == 0
        assert [one["namespace"] for one in (*service.pipelines, *service.experiments)] == ["team", "team"]
        assert mill("submit", "--no-wait", "--cluster", str(tmp_path / "cluster.yaml")).code == 0  # that file's
        assert service.pipelines[1]["namespace"] == "imagemill"
        ran = mill("runs", "--namespace", "team")
        assert ran.code == 0 and service.runs[0]["run_id"] in ran.out and service.runs[1]["run_id"] not in ran.out
        ran = mill("runs")
        assert ran.code == 2 and "--namespace: expected the namespace of your profile" in ran.err
