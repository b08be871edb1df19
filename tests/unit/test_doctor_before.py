"""`submit` and `schedule` look at the cluster before they upload, where it is the one that KUBECONFIG names."""

from __future__ import annotations

from pathlib import Path

import kfp_commands
import pytest
import yaml
from cluster_api import ClusterApi, installed, serving
from kfp_commands import Commands

IMAGES = {"cpu": "imagemill-cpu:dev", "ray": "imagemill-ray:dev", "gpu": "imagemill-gpu:dev"}
COMMANDS = {"submit": ["submit", "--no-wait"], "schedule": ["schedule", "--cron", "0 3 * * 1"]}
mill = kfp_commands.mill


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterApi:
    """A cluster that is ready, and its file."""
    values = {"namespace": "kubeflow", "images": {**IMAGES, "tags_allowed": True}}
    values["steps"] = {step: {"gpu": 0} for step in ("train", "evaluate")}
    values["storage"] = {"workspace": "s3://mill/work"}
    (tmp_path / "ready.yaml").write_text(yaml.safe_dump(values))
    return installed("kubeflow", tuple(IMAGES.values()))


@pytest.mark.parametrize("command", COMMANDS)
def test_cluster_that_is_not_ready_gets_no_run(
    command: str, api: ClusterApi, mill: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.remove("Secret", "mlpipeline-minio-artifact", "kubeflow")
    arguments = [*COMMANDS[command], "--cluster", str(tmp_path / "ready.yaml")]
    with serving(api, tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        result = mill(*arguments)
        assert result.code == 2 and not mill.service.versions and not mill.service.runs
        assert "[doctor] error: secrets: there is no secret mlpipeline-minio-artifact in kubeflow" in result.err
        assert "is not ready for a run" in result.err and "--no-check" in result.err
        assert mill(*arguments, "--no-check").code == 0 and len(mill.service.versions) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_ready_cluster_gets_its_run_without_messages(
    command: str, api: ClusterApi, mill: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(api, tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        result = mill(*COMMANDS[command], "--cluster", str(tmp_path / "ready.yaml"))
    assert result.code == 0 and len(mill.service.versions) == 1, result.err
    assert "warning" not in result.err and any("/nodes" in request for request in api.requests)


def test_warnings_do_not_stop_the_run(
    api: ClusterApi, mill: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.forbidden.append("/secrets/")  # what can't be seen is not worth a word here
    api.get("Node", "one")["status"]["images"].clear()
    with serving(api, tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        result = mill(*COMMANDS["submit"], "--cluster", str(tmp_path / "ready.yaml"))
    assert (
        result.code == 0
        and "[doctor] error: images: images.cpu: imagemill-cpu:dev is known on 0 of 1 nodes" in result.err
    )
    assert "can't be seen" not in result.err


@pytest.mark.parametrize("host", ["http://kubeflow.example.com", "https://10.1.2.3/pipeline"])
def test_another_cluster_than_kubeflows_is_not_looked_at(
    host: str, api: ClusterApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imagemill.pipelines.cluster.cluster_file import load_cluster
    from imagemill.pipelines.doctor.command import check_before_run
    from imagemill.pipelines.kfp.client import Connection

    api.remove("Secret", "mlpipeline-minio-artifact", "kubeflow")
    with serving(api, tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        check_before_run(load_cluster(str(tmp_path / "ready.yaml")), Connection(host, "kubeflow"))
    assert not api.requests


def test_a_cluster_that_does_not_answer_holds_nothing_up(
    api: ClusterApi, mill: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(api, tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    assert mill(*COMMANDS["submit"], "--cluster", str(tmp_path / "ready.yaml")).code == 0
