"""Resize, clean and predict on a real Ray cluster: as a job, by Ray Client, from a node; wrong addresses and tokens."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import mill
import photos
import pytest
from PIL import Image
from ray_cluster import (
    RayCluster,
    Slow,
    content,
    copy_dataset,
    raw_of_parts,
    slow_clean,
    start_clean,
    start_resize,
    without_ray,
)
from trained import commit_model

from imagemill.components.dataset.kinds import CleanImage
from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.engine import ray_connection, ray_job
from imagemill.components.imaging.geometry import Geometry
from imagemill.components.models.artifact import ModelSpec
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.storage.errors import EXIT_TRANSIENT, EXIT_USER, TransientError, UserError
from imagemill.pipelines.cli.main import main

ODD_RUN = """run '"$(touch x)`touch x`;touch x&"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(cpus=2) as running:
        yield running


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Slow:
    """Work for some seconds, in a folder with a name that a shell would misread."""
    return slow_clean(tmp_path_factory.mktemp('it\'s $(touch x) "here"'), rows=160, parts=24)


@pytest.fixture(scope="module")
def expected(slow: Slow, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, int, str]]:
    """Content of the same jobs without Ray."""
    return without_ray(slow, tmp_path_factory.mktemp("expected"))


def resize(slow: Slow, *more: str, env: Mapping[str, str] | None = None, timeout: float = 300) -> mill.Result:
    started = time.monotonic()
    return mill.finish(start_resize(slow, *more, env=env), started, timeout)


def assert_one_error(result: mill.Result, *parts: str) -> None:
    """Check that the error names the address, what was expected and what was found, and that every line is ours."""
    assert all(part in result.error for part in parts), result.stderr
    assert "expected" in result.error and "found" in result.error
    assert all(line.startswith("[resize] ") for line in result.stderr.splitlines()), result.stderr


# Job submission


def test_retry_adopts_the_running_job(
    cluster: RayCluster, slow: Slow, expected: list[tuple[str, str, int, str]], tmp_path: Path
) -> None:
    """The step that submitted it is gone; the next try goes on with the same job, and both give what Ray here gives."""
    copy = slow.copy(tmp_path / "it's $(touch x)")
    job = ["--ray-address", cluster.jobs, "--run", ODD_RUN]
    first = start_resize(copy, *job, env=cluster.login, cwd=tmp_path)
    submitted = mill.wait_for_line(first, "submitted to")
    first.kill()
    first.communicate()
    result = resize(copy, *job, env=cluster.login)
    assert content(copy, result) == expected
    assert submitted.split()[3] in result.stderr and "is there already" in result.stderr
    assert "[resize] Ray with 2 cores" in result.stderr and "images/s" in result.stderr
    assert not [p for folder in (tmp_path, cluster.folder, Path.cwd()) for p in folder.rglob("x")]
    record = read_record(copy, ODD_RUN)
    assert (record["state"], record["exit_code"]) == ("ran", 0) and record["metrics"]["rows"] == 160
    third = resize(copy, *job, env=cluster.login)
    assert third.rc == 0 and "cached" in third.error and "submitted" not in third.stderr


def test_error_of_a_job_is_the_steps_error(cluster: RayCluster, tmp_path: Path) -> None:
    """Wrong input that only the job finds: the same exit code and message; a retry finds it without another job."""
    copy = slow_clean(tmp_path, rows=4, image=CleanImage("lab", 3))
    more = ["--ray-address", cluster.jobs, "--encoding", "jpeg", "--run", "wrong"]
    result = resize(copy, *more, env=cluster.login)
    assert result.rc == EXIT_USER
    assert "encoding: expected raw" in result.error and result.stderr.count("error:") == 1
    assert read_record(copy, "wrong")["error"] in result.error
    assert not list(copy.workspace.glob("tensors/*/_manifest.json"))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.proof)])
def test_signal_stops_the_job(cluster: RayCluster, slow: Slow, tmp_path: Path, number: int) -> None:
    copy = slow.copy(tmp_path / "work")
    process = start_resize(copy, "--ray-address", cluster.jobs, "--run", f"stop{number}", env=cluster.login)
    mill.wait_for_line(process, "[resize] Ray with")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert "stopping the Ray job imagemill-resize-" in stderr
    if number == signal.SIGTERM:
        assert process.returncode == EXIT_TRANSIENT and "stopped by a signal" in stderr
    assert process.returncode != 0

    def job_has_ended() -> bool:
        return not any(f"--run=stop{number}" in line for line in cluster.lines())

    mill.wait_until(job_has_ended, "the end of the job", 120)
    assert not list(copy.workspace.glob("tensors/*/_manifest.json"))


def test_command_line_of_a_job_has_no_secret(tmp_path: Path) -> None:
    slow = slow_clean(tmp_path, rows=2)
    with pytest.raises(UserError, match="backgrounds: expected an address without login") as caught:
        ray_job._refuse_secrets(ResizeConfig(backgrounds="https://me:hunter2@host/pictures"))
    assert "hunter2" not in str(caught.value)
    result = resize(slow, "--ray-address", "http://me:hunter2@127.0.0.1:1")
    assert result.rc == EXIT_USER and "ray_address" in result.error and "hunter2" not in result.stderr


def test_job_without_access_to_the_workspace_fails_before_the_step(tmp_path: Path) -> None:
    config = ResizeConfig(workspace=f'{tmp_path}/it\'s not "there"', run="r")
    line = ray_job.build_entrypoint("resize", config, f"{config.workspace}/runs/r/resize.json")
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert result.returncode == EXIT_USER and not list(tmp_path.iterdir())
    assert "[resize] error: workspace: expected" in result.stderr and 'not "there"' in result.stderr
    (result_file := tmp_path / "runs").touch()
    line = ray_job.build_entrypoint(
        "resize", replace(config, image_size=9999), str(result_file)
    )  # the step itself complains now
    line = line.replace("exec python", f"exec {shlex.quote(sys.executable)}")
    result = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert result.returncode == EXIT_USER and "image_size: expected" in result.stderr
    assert "test -f" not in ray_job.build_entrypoint(
        "resize", replace(config, workspace="s3://b/p"), "s3://b/p/runs/r/resize.json"
    )


@pytest.mark.parametrize(
    "code, log, kind, part",
    [
        (127, "sh: 1: exec: python: not found", EXIT_USER, "python: not found"),
        (1, "/usr/bin/python: Error while finding: No module named 'imagemill'", EXIT_USER, "imagemill in its image"),
        (2, "[resize] error: clean: expected it, found nothing\n", EXIT_USER, "clean: expected it, found nothing"),
        (75, "x\n[resize] error: s3 is gone\n", EXIT_TRANSIENT, "s3 is gone"),
        (-9, "half a li", EXIT_TRANSIENT, "was lost"),
        (137, "", EXIT_TRANSIENT, "was lost"),
        (None, "", EXIT_TRANSIENT, "was lost"),
        (1, "ValueError: x", 1, "exit code 1: ValueError: x"),
    ],
)
def test_error_of_a_job_without_a_record(code: int | None, log: str, kind: int, part: str) -> None:
    error = ray_job._error_without_record("resize", "job-1", code, log)
    assert (error.exit_code, part in str(error)) == (kind, True), error


# Ray Client, and from a node


SLOWLY = """
import sys, time
from imagemill.components.resize import STEP, resize
def write_tensors(*given, work=resize.write_tensors):
    time.sleep(0.5)
    return work(*given)
resize.write_tensors = write_tensors
sys.exit(STEP.main())
"""
"""Jobs that last long enough for both nodes to start their workers."""


def test_lost_node_does_not_change_the_tensors(cluster: RayCluster, slow: Slow, tmp_path: Path) -> None:
    """By Ray Client: both nodes work; one is killed in the middle; the bytes are those of an undisturbed run."""
    copy = slow.copy(tmp_path / "disturbed")
    expected = without_ray(slow, tmp_path / "plain")
    node = cluster.add(cpus=2)
    process = start_resize(copy, "--ray-address", cluster.client, env=cluster.login, script=SLOWLY)
    mill.wait_for_line(process, "[resize] Ray with 4 cores")
    mill.wait_until(cluster.runs_tasks_on_all_nodes, "tasks on both nodes", every=0.01)
    node.kill()
    cluster.nodes.remove(node)
    result = mill.finish(process, time.monotonic())
    assert content(copy, result) == expected and len(expected) > 20
    assert "rows are done again" in result.stderr


@pytest.fixture(scope="module")
def cleaned_locally(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The clean dataset of a raw one with 24 parts, by processes of this machine."""
    workspace = tmp_path_factory.mktemp("here")
    return finish_clean(start_clean(workspace, raw_of_parts(workspace, 24), "--executor", "processes"))


def copy_raw(clean: Dataset, folder: Path) -> str:
    """Copy the raw dataset of a clean one to another workspace; its URI there."""
    return copy_dataset(clean.parent_uri("raw"), folder)


def finish_clean(process: subprocess.Popen[str], *parts: str) -> Dataset:
    result = mill.finish(process, time.monotonic())
    assert result.rc == 0 and all(part in result.stderr for part in parts), result.stderr
    return read_dataset(result.error.rpartition(" ")[2], "clean")


def assert_same_clean(dataset: Dataset, expected: Dataset) -> None:
    """The same files with the same bytes; the audit's page has the time of day in it."""
    assert dataset.fingerprint == expected.fingerprint and dataset.manifest.totals == expected.manifest.totals
    assert dataset.manifest.files == expected.manifest.files
    assert dataset.manifest.parts == expected.manifest.parts and len(dataset.manifest.parts) == 24
    for part in dataset.manifest.parts:
        assert Path(dataset.locate_part(part)).read_bytes() == Path(expected.locate_part(part)).read_bytes()


@pytest.mark.parametrize("place", [pytest.param("here", marks=pytest.mark.proof), "two raylets"])
def test_clean_on_ray_equals_local_clean(
    place: str, cluster: RayCluster, cleaned_locally: Dataset, tmp_path: Path
) -> None:
    raw = copy_raw(cleaned_locally, tmp_path)
    if place == "here":
        process = start_clean(tmp_path, raw, "--executor", "ray", "--clean-workers", "2")
        assert_same_clean(finish_clean(process, "[clean] Ray with 2 cores"), cleaned_locally)
        return
    node = cluster.add(cpus=1)
    try:
        process = start_clean(tmp_path, raw, "--ray-address", cluster.client, env=cluster.login)
        assert_same_clean(finish_clean(process, "[clean] Ray with 3 cores"), cleaned_locally)
    finally:
        node.kill()
        cluster.nodes.remove(node)


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a folder of 40 pictures, a broken one, other files among them, and what is predicted of these here."""
    folder = tmp_path_factory.mktemp("album")
    geometry = Geometry(32).describe("raw", [0.5] * 3, [0.1] * 3)
    commit_model(folder, ModelSpec("shufflenet_v2_x0_5", ("cat", "dog", "emu"), geometry), "feed")
    (folder / "in" / "deep").mkdir(parents=True)
    for number in range(40):
        Image.fromarray(photos.made(number, 90, 60)).save(folder / "in" / "deep" / f"{number:02d}.jpg")
        if number % 5 == 0:
            (folder / "in" / "deep" / f"{number:02d}.txt").write_text("no image")
    (folder / "in" / "broken.jpg").write_bytes(photos.saved(photos.made(9), "JPEG")[:700])
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as output:
        # As in Ray's workers: with another number of threads the last bits of some networks differ.
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        patch.chdir(folder)
        assert main(build_predict_command(folder, "here.parquet")) == 0
    (folder / "here.json").write_text(output.getvalue())
    return folder


PREDICT_IN_SMALL_TASKS = """
import sys
from imagemill.components.predict import predict
from imagemill.pipelines.cli.main import main
predict.TASK_IMAGES = 4
sys.exit(main())
"""


def build_predict_command(album: Path, output: str) -> list[str]:
    """Predict the album, and three files by name of which one is missing, in batches of four."""
    command = ["predict", "--model", f"{album}/model/feed", "--json", "--output", output, "--batch-size", "4"]
    return [*command, "in", "no-such.jpg", "in/deep/07.jpg", "in/deep/03.jpg"]


def start_predict(album: Path, output: str, *more: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    command = build_predict_command(album, output)
    return subprocess.Popen(
        [sys.executable, "-c", PREDICT_IN_SMALL_TASKS, *command, *more], cwd=album, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | dict(env or {}),
        start_new_session=True,
    )  # fmt: skip


def assert_same_predictions(album: Path, process: subprocess.Popen[str], output: str, *parts: str) -> None:
    """The same bytes on stdout and in the file as without Ray."""
    result = mill.finish(process, time.monotonic())
    assert result.rc == 0 and all(part in result.stderr for part in (*parts, "44 images", "2 not read")), result.stderr
    assert result.stdout == (album / "here.json").read_text() and len(result.stdout.splitlines()) == 44
    assert (album / output).read_bytes() == (album / "here.parquet").read_bytes()


@pytest.mark.proof
def test_predict_on_two_raylets_equals_local_predict(cluster: RayCluster, album: Path) -> None:
    node = cluster.add(cpus=1)
    try:
        process = start_predict(album, "ray.parquet", "--ray-address", cluster.gcs, env=cluster.login)
        assert_same_predictions(album, process, "ray.parquet", "[predict] Ray with 3 cores")
    finally:
        node.kill()
        cluster.nodes.remove(node)


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["auto", "gcs", "client"])
def test_address_forms(
    kind: str, cluster: RayCluster, slow: Slow, expected: list[tuple[str, str, int, str]], tmp_path: Path
) -> None:
    copy = slow.copy(tmp_path / "work")
    address = {"auto": "auto", "gcs": cluster.gcs, "client": cluster.client}[kind]
    # RAY_ADDRESS is set inside a job: `auto` means it, and no other address does
    variables = {"RAY_ADDRESS": cluster.gcs if kind == "auto" else "127.0.0.1:1"}
    result = resize(copy, "--ray-address", address, env=cluster.login | variables)
    assert content(copy, result) == expected
    assert "[resize] Ray with 2 cores" in result.stderr


def test_node_without_the_workspace_is_refused(cluster: RayCluster) -> None:
    script = (
        "import sys; from imagemill.components.engine.ray_session import open_ray_session\n"
        "with open_ray_session('resize', sys.argv[1], 0, '/not/there/_manifest.json'): print('joined')"
    )
    command = [sys.executable, "-c", script, cluster.client]
    result = subprocess.run(command, env={**os.environ, **cluster.login}, capture_output=True, text=True)
    assert "UserError: workspace: expected a place that every node of the Ray cluster sees" in result.stderr
    assert not result.stdout


# Wrong addresses


@pytest.mark.parametrize("kind", ["jobs", "client"])
def test_refused_token_is_a_user_error(kind: str, cluster: RayCluster, tmp_path: Path) -> None:
    """A line, from its own look at the door: Ray itself takes 30 s to say that nobody answers."""
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    result = resize(slow_clean(tmp_path, rows=4), "--ray-address", getattr(cluster, kind), env=env)
    assert result.rc == EXIT_USER and result.seconds < 28
    assert_one_error(result, "ray_address", "RAY_AUTH_TOKEN", "one that it refuses")


def test_token_path_without_auth_mode_is_used(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAY_AUTH_TOKEN_PATH without RAY_AUTH_MODE, which Ray itself takes for no token."""
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(cluster.token))
    with pytest.raises(UserError, match="found none"):
        ray_connection.check_port(cluster.client)
    ray_connection.enable_token_auth()
    ray_connection.check_port(cluster.client)
    monkeypatch.delenv("RAY_AUTH_MODE")


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "127.0.0.1:1", "ray://no.such.host.invalid:10001"])
def test_unreachable_cluster_is_transient(address: str) -> None:
    with pytest.raises(
        TransientError, match=f"^ray_address: expected a Ray cluster at {address}, found none"
    ) as caught:
        ray_connection.check_port(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["garbage", "foo://x:1", "127.0.0.1:99999", "host:0", "ray://host", "a b:1"])
def test_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"^ray_address: expected auto, host:6379"):
        ray_connection.check_address(address)


@pytest.mark.parametrize("address", ["auto", "head:6379", "10.0.0.1:6379", "[::1]:6379", "ray://head.ns.svc:10001"])
def test_valid_address_is_accepted(address: str) -> None:
    ray_connection.check_address(address)


def read_record(slow: Slow, run: str) -> dict[str, Any]:
    import json

    record: dict[str, Any] = json.loads((slow.workspace / "runs" / run / "resize.json").read_text())
    return record
