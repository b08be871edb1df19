"""`imagemill run --runner docker` in the real images: the same datasets as in subprocesses, and nothing left behind.

The images are those tagged `dev`, with this checkout's code as their last layer. Containers are looked at from outside,
in the engine and in /proc, while they run.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker_engine
import mill
import pytest
from rgw import CephRGW

from imagemill.components.dataset.manifest import read_dataset
from imagemill.pipelines.cluster.cluster_file import RUN_LABEL
from imagemill.pipelines.docker.runner import STEP_LABEL

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "pets"
pytestmark = pytest.mark.proof
PETS = ["--dataset", "pets", "--source", str(SAMPLE), "--image-size", "64", "--epochs", "1", "--model-preset", ""]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster file that names the images."""
    images = docker_engine.with_this_code()
    file = tmp_path_factory.mktemp("cluster") / "cluster.yaml"
    file.write_text(json.dumps({"images": {**images, "tags_allowed": True}}))
    yield file
    for image in images.values():
        docker_engine.client().images.remove(image)


@pytest.fixture
def run_docker(cluster: Path) -> list[str]:
    """The words that run the pipeline in Docker."""
    return ["run", "--json", "--runner", "docker", "--cluster", str(cluster)]


@pytest.fixture(autouse=True)
def no_containers_left() -> Iterator[None]:
    """Check that no container outlives a test."""
    before = _list_containers()
    yield
    mill.wait_until(lambda: _list_containers() <= before, "the containers to be removed", timeout=30)


def _list_containers() -> set[str]:
    if docker_engine.missing():
        return set()
    containers = docker_engine.client().containers.list(all=True, filters={"label": RUN_LABEL})
    return {container.name for container in containers}


class ContainerWatch:
    """Attributes of the containers of this machine's runs, and their processes in /proc, while it is open."""

    def __init__(self) -> None:
        self.attributes: dict[str, dict[str, Any]] = {}
        self.processes: dict[str, list[dict[str, str]]] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> ContainerWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        client = docker_engine.client()
        while not self._end.wait(0.05):
            for container in client.containers.list(filters={"label": RUN_LABEL}, ignore_removed=True):
                step = container.labels[STEP_LABEL]
                self.attributes[step] = container.attrs
                try:
                    pids = [int(line[1]) for line in container.top()["Processes"]]
                except Exception:  # it has just ended
                    continue
                self.processes.setdefault(step, []).extend(filter(None, map(_status, pids)))


def _status(pid: int) -> dict[str, str]:
    """Return the kernel's status of a process: user, capabilities, seccomp."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {key: " ".join(value.split()) for key, _, value in (line.partition(":") for line in lines)}


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the pets sample (../shared/data/pets) is not there")
def test_datasets_on_s3_equal_those_of_subprocesses(run_docker: list[str], rgw: CephRGW, s3_workspace: str) -> None:
    other = s3_workspace.replace("/work", "/other")
    with ContainerWatch() as watch:
        inside = mill.run(*run_docker, *PETS, "--workspace", s3_workspace, timeout=1800)
    assert inside.rc == 0, inside.stderr
    outside = mill.run("run", "--json", *PETS, "--workspace", other, timeout=1800)
    assert outside.rc == 0, outside.stderr
    for kind in mill.PRODUCTS:
        a, b = (mill.dataset_of(result, kind) for result in (inside, outside))
        assert a.fingerprint == b.fingerprint, kind
        assert a.manifest.config == b.manifest.config and a.manifest.totals == b.manifest.totals, kind
    for kind in ("raw", "clean", "tensors"):
        a, b = (mill.dataset_of(result, kind) for result in (inside, outside))
        assert [f.uri for f in a.manifest.files] == [f.uri for f in b.manifest.files], kind
        assert mill.content(a) == mill.content(b), kind
    assert inside.json["metrics"]["top1"] == outside.json["metrics"]["top1"]
    _assert_same_log_lines(inside, outside)
    _assert_unprivileged(watch)
    _assert_credentials_only_in_the_environment(watch, rgw)


def _assert_same_log_lines(inside: mill.Result, outside: mill.Result) -> None:
    """Check that steps and the prefixes of log lines equal those of subprocesses."""
    assert set(inside.states) == set(outside.states) == set(mill.STEPS)
    prefixes = [
        [line.split("]")[0] for line in result.stderr.splitlines() if line.startswith("[")]
        for result in (inside, outside)
    ]
    assert set(prefixes[0]) == set(prefixes[1]) == {f"[{step}" for step in mill.STEPS}
    assert any(line.startswith("[clean] 337 rows in") for line in inside.stderr.splitlines())


def _assert_unprivileged(watch: ContainerWatch) -> None:
    assert set(watch.attributes) == set(mill.STEPS)
    for step, attributes in watch.attributes.items():
        host = attributes["HostConfig"]
        assert attributes["Config"]["User"] == "10001:10001" and host["ReadonlyRootfs"], step
        assert host["CapDrop"] == ["ALL"] and not host["CapAdd"] and not host["Privileged"], step
        assert {mount["Type"] for mount in attributes["Mounts"]} == {"bind"}, step  # a volume would be left
        assert host["NetworkMode"] == "host"  # the server listens on loopback
        assert not any(mount["RW"] for mount in attributes["Mounts"] if mount["Destination"] == str(SAMPLE)), step
    statuses = [status for processes in watch.processes.values() for status in processes]
    assert all(watch.processes[step] for step in ("clean", "resize", "train", "evaluate"))
    for status in statuses:
        assert status["Uid"] == "10001 10001 10001 10001" and status["Gid"] == "10001 10001 10001 10001", status
        assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2", status
        assert {status[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}, status


def _assert_credentials_only_in_the_environment(watch: ContainerWatch, rgw: CephRGW) -> None:
    for attributes in watch.attributes.values():
        words = json.dumps(
            [attributes["Config"]["Cmd"], attributes["Config"]["Labels"], attributes["Name"], attributes["Args"]]
        )
        assert rgw.secret_key not in words and rgw.access_key not in words
        assert f"AWS_SECRET_ACCESS_KEY={rgw.secret_key}" in attributes["Config"]["Env"]


def test_credentials_are_read_from_a_profile(
    run_docker: list[str], rgw: CephRGW, s3_workspace: str, small_photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "credentials").write_text(
        f"[mill]\naws_access_key_id = {rgw.access_key}\naws_secret_access_key = {rgw.secret_key}\n"
    )
    (tmp_path / "config").write_text(f"[profile mill]\nregion = us-east-1\nendpoint_url = {rgw.endpoint}\n")
    environment = rgw.environment()
    inherited = {key: value for key, value in os.environ.items() if key not in environment}
    files = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"), "AWS_CONFIG_FILE": str(tmp_path / "config")}
    words = [*mill.COMMAND, *run_docker, "--dataset", "folder", "--source", str(small_photos), *mill.QUICK]
    process = subprocess.run(
        [*words, "--workspace", s3_workspace], env={**inherited, **files, "AWS_PROFILE": "mill"}, capture_output=True,
        text=True, timeout=900, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert rgw.secret_key not in process.stdout + process.stderr


def test_links_out_of_the_source_are_followed(run_docker: list[str], small_photos: Path, tmp_path: Path) -> None:
    """Links that lead out of the source are images here as there; a relative path is one of the caller's folder."""
    elsewhere = tmp_path / "elsewhere"
    (small_photos / "red").rename(elsewhere)
    (small_photos / "red").symlink_to(elsewhere)
    far = tmp_path / "far"
    far.mkdir()
    (small_photos / "blue" / "000.png").rename(far / "0.png")
    (small_photos / "blue" / "000.png").symlink_to("../../far/0.png")
    words = ["--dataset", "folder", "--source", small_photos.name, *mill.QUICK]
    inside = mill.run(*run_docker, *words, "--workspace", "inside", cwd=tmp_path, timeout=900)
    assert inside.rc == 0, inside.stderr
    outside = mill.run("run", "--json", *words, "--workspace", "outside", cwd=tmp_path, timeout=900)
    assert mill.dataset_of(inside, "raw").manifest.totals.rows == 60
    for kind in ("raw", "clean", "tensors"):
        assert mill.content(mill.dataset_of(inside, kind)) == mill.content(mill.dataset_of(outside, kind))
    assert {path.stat().st_uid for path in (tmp_path / "inside").glob("*/*/*") if path.name != "log.txt"} == {10001}
    assert (tmp_path / "inside").stat().st_mode & 0o002 == 0
    second = mill.run(*run_docker, *words, "--workspace", "inside", cwd=tmp_path, timeout=900)
    assert set(second.states.values()) == {"cached"} or second.states["promote"] == "ran", second.states


def test_user_error_has_the_exit_code_and_message_of_a_subprocess(run_docker: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "photos.tar.gz"
    broken.write_bytes(b"\x1f\x8b\x08\x00 this is no archive")
    words = ["--dataset", "folder", "--source", str(broken), *mill.QUICK]
    inside = mill.run(*run_docker, *words, "--workspace", str(tmp_path / "inside"))
    outside = mill.run("run", "--json", *words, "--workspace", str(tmp_path / "outside"))
    assert (inside.rc, inside.error) == (outside.rc, outside.error) and inside.rc == 2
    assert "photos.tar.gz" in inside.error and "download: " in inside.error
    assert inside.json["exit_code"] == 2 and inside.json["steps"]["download"]["state"] == "failed"


def _list_running(step: str) -> list[Any]:
    containers = docker_engine.client().containers.list(filters={"label": f"{STEP_LABEL}={step}"}, ignore_removed=True)
    return [container for container in containers if container.labels[RUN_LABEL].startswith("killed-")]


@pytest.fixture
def killed(small_photos: Path, tmp_path: Path, run_docker: list[str]) -> Callable[[Callable[..., None]], mill.Result]:
    """Start a run, do something to it while its training runs, and wait for its end."""
    words = [*run_docker, "--dataset", "folder", "--source", str(small_photos), "--name", "killed", *mill.QUICK]
    words += ["--workspace", str(tmp_path / "work")]

    def run(action: Callable[..., None]) -> mill.Result:
        started = time.monotonic()
        process = mill.start([*words, "--epochs", "3000"])
        checkpoints = (tmp_path / "work" / "model").glob
        mill.wait_until(lambda: any(checkpoints("*/_work/checkpoint*")), "the training's first epochs", timeout=600)
        assert _list_running("train")
        action(process)
        return mill.finish(process, started, 900)

    run.words = words  # type: ignore[attr-defined]
    return run


def test_killed_container_is_transient_and_the_next_run_resumes(killed: Any) -> None:
    def kill(_: Any) -> None:
        [container] = _list_running("train")
        docker_engine.client().containers.get(container.name).kill()
        assert container.name.startswith("imagemill-killed-") and container.name.endswith("-train")

    ended = killed(kill)
    assert ended.rc == 75 and "train: was killed (out of memory?)" in ended.error, ended.stderr
    second = mill.run(*killed.words, timeout=900)
    assert second.rc == 0, second.stderr
    assert {step: second.states[step] for step in mill.STEPS[:4]} == {
        "download": "cached", "clean": "cached", "resize": "cached", "train": "ran"
    }  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_containers_end_with_the_command(number: int, code: int, killed: Any, tmp_path: Path) -> None:
    """Also of one that had no time to say so: its containers see that it is gone. Others' containers stay. However it
    ends, training has the time to write down what the next run goes on from."""
    other = docker_engine.client().containers.run(
        f"imagemill-cpu:{docker_engine.TAG}", ["sleep", "600"], detach=True, labels={RUN_LABEL: "another-run"},
        name=f"other-{secrets.token_hex(4)}",
    )  # fmt: skip
    try:
        ended = killed(lambda process: process.send_signal(number))
        assert ended.rc == code, ended.stderr
        mill.wait_until(lambda: not _list_running("train"), "the container to end", timeout=10)
        (record,) = (json.loads(path.read_text()) for path in (tmp_path / "work" / "runs").glob("*/train.json"))
        assert record["exit_code"] == 75 and "stopped by SIGTERM" in record["error"], record
        other.reload()
        assert other.status == "running"
    finally:
        other.remove(force=True, v=True)


def test_containers_run_as_a_user_unknown_to_the_image(
    cluster: Path, small_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """As containers of a caller who is not root run: by his uid, which has no name and no home in the image."""
    from imagemill.pipelines.cluster.cluster_file import load_cluster
    from imagemill.pipelines.docker import runner as in_docker
    from imagemill.pipelines.local import run
    from imagemill.pipelines.parameters import resolve_parameters

    if os.getuid() != 0:
        pytest.skip("only root can run containers as another user")
    monkeypatch.setattr(in_docker, "choose_user", lambda info, caller: (12345, 23456))
    flags = {
        key.removeprefix("--").replace("-", "_"): value for key, value in zip(*[iter(mill.QUICK)] * 2, strict=True)
    }
    parameters = resolve_parameters(
        {"dataset": "folder", "source": str(small_photos), "workspace": str(tmp_path / "work"), **flags}
    )
    assert run(parameters, True, load_cluster(str(cluster))) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Path(result["model"]).stat().st_uid == 12345
    assert read_dataset(result["tensors"], "tensors").manifest.totals.rows


def test_missing_images_and_read_only_folders_fail(run_docker: list[str], small_photos: Path, tmp_path: Path) -> None:
    words = ["--dataset", "folder", "--source", str(small_photos), "--workspace"]
    absent = tmp_path / "absent.yaml"
    absent.write_text('images: {cpu: "nobody/has-this:1", tags_allowed: true}')
    result = mill.run("run", "--runner", "docker", "--cluster", str(absent), *words, str(tmp_path / "new"))
    assert result.rc == 2 and "nobody/has-this:1" in result.error
    assert "imagemill images build --no-push" in result.error and not (tmp_path / "new").exists()
    if os.getuid() == 0:
        (tmp_path / "roots").mkdir(mode=0o755)
        result = mill.run(*run_docker, *words, str(tmp_path / "roots"))
        assert result.rc == 2 and f"chown -R 10001:10001 {tmp_path}/roots" in result.error
