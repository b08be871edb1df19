"""The real images: built on a local base, run as pods run them, weighed, listed, pushed and pulled by digest.

Run by hand (`tests/run -m proof tests/integration/test_container_images.py`): the first build takes some five minutes
and needs 20 GB of disk.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import docker_engine
import images
import pytest
import yaml

from imagemill.components.storage.errors import EXIT_INTERNAL, EXIT_TRANSIENT, EXIT_USER
from imagemill.pipelines.cluster.cluster_file import UID
from imagemill.pipelines.steps import PIPELINE

pytestmark = pytest.mark.proof
ROOT = Path(__file__).parents[2]
MODULES = {
    "cpu": "boto3 cv2 google_crc32c jinja2 kubernetes matplotlib.pyplot pyarrow simplejpeg",
    "ray": "albumentations ray ray.dashboard ray.job_submission ray.util.client torch "
           "torchvision",
    "gpu": "albumentations cleanlab matplotlib.pyplot onnx onnxruntime onnxscript safetensors "
           "tensorboard timm torch torch.utils.tensorboard torchvision",
}  # fmt: skip
COMPILERS = "cc gcc g++ c++ clang tcc ld as make nvcc pip pip3"


@pytest.fixture(scope="module")
def built() -> dict[str, str]:
    if why := images.missing():
        pytest.skip(why)
    return images.built()


@pytest.fixture(scope="module", autouse=True)
def no_containers_left() -> Iterator[None]:
    """Check that no test leaves a container or a volume; every container of our images has one for /scratch."""
    if docker_engine.missing():
        yield
        return
    client = docker_engine.client()
    before = [
        {resource.id for resource in resources}
        for resources in (client.volumes.list(), client.containers.list(all=True))
    ]
    yield
    after = [
        {resource.id for resource in resources}
        for resources in (client.volumes.list(), client.containers.list(all=True))
    ]
    assert [new - old for new, old in zip(after, before, strict=True)] == [set(), set()]


def run_restricted(
    image: str, *words: str, scratch: str = "tmpfs", network: str = "none"
) -> subprocess.CompletedProcess[str]:
    """Run a command in an image as Pod Security `restricted` and a read-only root have it."""
    start = ["docker", "run", "--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    start += ["--network", network, "--user", f"{UID}:{UID}", "--shm-size", "1g"]
    start += ["--tmpfs", f"/scratch:uid={UID},gid={UID},mode=700,exec"] if scratch == "tmpfs" else []
    name = f"imagemill-test-{secrets.token_hex(4)}"
    try:
        return subprocess.run(
            [*start, "--name", name, image, *words], capture_output=True, text=True, timeout=300, check=False
        )
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)


def inspect_image(image: str) -> dict[str, Any]:
    attributes: dict[str, Any] = docker_engine.client().images.get(image).attrs
    return attributes


@pytest.mark.parametrize("step", PIPELINE)
def test_each_step_starts_in_its_image(built: dict[str, str], step: str) -> None:
    target = PIPELINE[step].image
    result = run_restricted(built[target], "python", "-m", f"imagemill.components.{step}", "--help")
    assert result.returncode == 0, result.stderr
    assert f"usage: python -m imagemill.components.{step}" in result.stdout
    refused = run_restricted(built[target], "python", "-m", f"imagemill.components.{step}", "--workspace=gs://x")
    assert refused.returncode == EXIT_USER, refused.stderr


@pytest.mark.parametrize("target", MODULES)
def test_required_modules_can_be_imported(built: dict[str, str], target: str) -> None:
    names = MODULES[target].split()
    code = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    result = run_restricted(built[target], "python", "-W", "ignore", "-c", code)
    assert result.returncode == 0, result.stderr


def test_image_holds_every_module_of_the_package(built: dict[str, str]) -> None:
    """The images have no module that another lacks: the package as it is built holds all of it."""
    code = (
        "import imagemill.components, pathlib; root = pathlib.Path(list(imagemill.components.__path__)[0]);"
        "print('\\n'.join(sorted(p.relative_to(root.parent).as_posix() for p in root.parent.rglob('*')"
        " if p.suffix in ('.py', '.j2'))))"
    )
    for target, image in built.items():
        inside = run_restricted(image, "python", "-c", code).stdout.split()
        expected = sorted(
            path.relative_to(ROOT).as_posix()
            for folder in ("components", "pipelines")
            for path in (ROOT / folder).rglob("*")
            if path.suffix in (".py", ".j2")
        )
        assert inside == expected, target


@pytest.mark.parametrize("target", MODULES)
def test_image_is_unprivileged_without_compiler_and_writes_to_scratch_only(built: dict[str, str], target: str) -> None:
    script = f"""
        id -u; id -g
        for tool in {COMPILERS}; do command -v $tool; done
        python -m pip --version 2>/dev/null
        echo "written:"
        for folder in / /tmp /var/tmp /etc /usr /opt/imagemill /opt/imagemill/lib /home /root /run; do
          (echo x > $folder/probe) 2>/dev/null && echo $folder
        done
        find / -xdev -perm /6000 -type f -user 0 -writable 2>/dev/null
        echo x > /scratch/probe && echo /scratch
    """
    for scratch in ("tmpfs", "volume"):
        result = run_restricted(built[target], "sh", "-c", script, scratch=scratch)
        assert result.stdout.split() == [str(UID), str(UID), "written:", "/scratch"], (scratch, result)
    # Even on a root that can be written, what is in the image belongs to root.
    words = ["docker", "run", "--rm", "--network", "none", built[target], "sh", "-c", "echo x > /opt/imagemill/probe"]
    assert subprocess.run(words, capture_output=True, check=False).returncode != 0
    assert inspect_image(built[target])["Config"]["User"] == f"{UID}:{UID}"


def test_ray_runs_in_its_image(built: dict[str, str]) -> None:
    code = (
        "import os, ray; ray.init(address='local', num_cpus=1, include_dashboard=False, object_store_memory=10**8);"
        "print(ray.get(ray.remote(lambda: os.getuid()).remote()))"
    )
    result = run_restricted(built["ray"], "python", "-c", code)
    assert result.stdout.split()[-1:] == [str(UID)], result.stderr
    assert run_restricted(built["ray"], "sh", "-c", "ray --version && wget --version").returncode == 0


def test_training_starts_ranks_in_its_image(built: dict[str, str]) -> None:
    code = (
        "import torch.distributed as d; d.init_process_group('gloo');"
        "print('rank', d.get_rank(), 'of', d.get_world_size())"
    )
    script = f'echo "{code}" > /scratch/t.py && torchrun --standalone --nproc-per-node 2 /scratch/t.py'
    result = run_restricted(
        built["gpu"], "sh", "-c", script, network="bridge"
    )  # ranks find each other by the host's name
    assert sorted(re.findall(r"rank \d of 2", result.stdout)) == ["rank 0 of 2", "rank 1 of 2"], result.stderr


def test_pods_command_runs_in_the_image(built: dict[str, str]) -> None:
    """As KFP's launcher runs it: the executor input is JSON, and names the file of outputs."""
    values = {"workspace": "/scratch/work", "run": "r", "status": {"state": "FAILED"}}
    summary = {"name": "summary", "uri": "minio://bucket/summary"}
    outputs = {"artifacts": {"summary": {"artifacts": [summary]}}, "outputFile": "/scratch/outputs.json"}
    executor_input = json.dumps({"inputs": {"parameterValues": values}, "outputs": outputs})
    script = (
        'python3 -m imagemill.pipelines.pod finish --kfp "$1" --artifact summary /scratch/deep/summary\n'
        "cat /scratch/outputs.json /scratch/deep/summary"
    )
    for image in built.values():
        result = run_restricted(image, "sh", "-ec", script, "sh", executor_input)
        assert result.returncode == 0, result.stderr
        assert "minio://bucket/summary" in result.stdout and "failed at download" in result.stdout
        assert run_restricted(image, "python3", "-c", "import kfp").returncode == 1


LIST_PACKAGES = "from importlib.metadata import distributions as d; print(*(f'{p.name}=={p.version}' for p in d()))"


def list_packages(image: str) -> dict[str, str]:
    """Return the version of each Python package in an image."""
    names = run_restricted(image, "python", "-c", LIST_PACKAGES).stdout.split()
    return {name.lower().replace("_", "-").replace(".", "-"): version for name, _, version in
            (word.partition("==") for word in names)}  # fmt: skip


@pytest.mark.parametrize("target", MODULES)
def test_packages_equal_the_lock_file(built: dict[str, str], target: str) -> None:
    lock = (ROOT / "docker" / f"{target}.lock").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))
    packages = list_packages(built[target])
    assert packages.pop("imagemill")
    assert {name: version.split("+")[0] for name, version in packages.items()} == pinned


@pytest.mark.parametrize("target", MODULES)
def test_labels_describe_the_image_and_hold_no_secret(built: dict[str, str], target: str) -> None:
    attributes = inspect_image(built[target])
    labels = attributes["Config"]["Labels"]
    for name, pattern in {"title": f"imagemill-{target}", "licenses": "Apache-2.0", "version": r"\d+\.\d+\.\d+",
                         "revision": r"[0-9a-f]{40}(-modified)?", "created": r"20\d\d-.*"}.items():  # fmt: skip
        assert re.fullmatch(pattern, labels[f"org.opencontainers.image.{name}"]), name
    assert re.fullmatch("[0-9a-f]{16}", labels["io.imagemill.code"])
    history = subprocess.run(
        ["docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", built[target]],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert not re.search(
        r"PIP_|index-url|password|ca\.pem|_proxy", history + json.dumps(attributes["Config"]), re.IGNORECASE
    )


def test_sizes_and_shared_layers(built: dict[str, str]) -> None:
    attributes = {target: inspect_image(image) for target, image in built.items()}
    print({target: f"{details['Size'] / 1e6:.0f} MB" for target, details in attributes.items()})
    assert attributes["cpu"]["Size"] < 1e9
    layers = {target: details["RootFS"]["Layers"] for target, details in attributes.items()}
    assert layers["cpu"][:-1] == layers["ray"][: len(layers["cpu"]) - 1] == layers["gpu"][: len(layers["cpu"]) - 1]
    shared = len(layers["cpu"])  # its own, with torch's instead of its last one
    assert layers["ray"][:shared] == layers["gpu"][:shared]
    for details in attributes.values():  # what differs from code to code is small
        history = docker_engine.client().images.get(details["Id"]).history()
        assert next(entry["Size"] for entry in history if entry["Size"]) < 10e6


def test_a_signal_reaches_the_process(built: dict[str, str]) -> None:
    """Process 1 would ignore SIGTERM; tini is that, so a step ends at once, and orderly where it has a handler."""
    code = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('told', flush=True), sys.exit(75)));"
        "print('up', flush=True); time.sleep(60)"
    )
    for words, exit_code in ((["python", "-c", code], 75), (["sleep", "60"], 143)):
        container = docker_engine.client().containers.run(built["cpu"], words, detach=True, read_only=True)
        try:
            time.sleep(2)
            started = time.monotonic()
            container.stop(timeout=30)
            assert time.monotonic() - started < 5
            assert container.wait()["StatusCode"] == exit_code
        finally:
            container.remove(force=True, v=True)


def test_unchanged_code_gives_the_same_image_and_a_changed_lock_none(built: dict[str, str], tmp_path: Path) -> None:
    before = inspect_image(built["cpu"])["Id"]
    subprocess.run(images.command("--no-push", "--tag", "dev", "--only", "cpu"), check=True, stdout=subprocess.DEVNULL)
    assert inspect_image(built["cpu"])["Id"] == before
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", "tests", "__pycache__", "imagemill-data"))
    lock = copy / "docker/cpu.lock"
    lock.write_text(re.sub(r"(sha256:)[0-9a-f]{8}", r"\g<1>00000000", lock.read_text()))
    words = images.command("--no-push", "--tag", "changed", "--only", "cpu", "--source", str(copy))
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert refused.returncode == EXIT_INTERNAL and "DO NOT MATCH THE HASHES" in refused.stderr


def test_no_other_file_enters_an_image(tmp_path: Path) -> None:
    """docker/Dockerfile.dockerignore keeps secrets and settings out."""
    if why := images.missing():
        pytest.skip(why)
    copy = tmp_path / "copy"
    for folder in ("components", "pipelines", "docker"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    for name in (".env", "cluster.yaml", ".git/config", "imagemill-data/a", "docker/.env", "docker/key.pem",
                 "components/.env", "components/.aws/credentials", "components/__pycache__/a.pyc",
                 "pipelines/mill.egg-info/PKG-INFO"):  # fmt: skip
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("secret")
    (copy / "docker/Probe").write_text("FROM scratch\nCOPY . /\n")
    shutil.copy(ROOT / "docker/Dockerfile.dockerignore", copy / "docker/Probe.dockerignore")
    words = ["docker", "build", "--quiet", "--file", str(copy / "docker/Probe"), "--output", str(tmp_path / "out")]
    subprocess.run([*words, str(copy)], check=True, capture_output=True, env=os.environ | {"DOCKER_BUILDKIT": "1"})
    entered = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(entered) > 100 and not [path for path in entered if path.read_bytes() == b"secret"]


@contextlib.contextmanager
def run_registry(folder: Path, users: str = "") -> Iterator[str]:
    """Debian's registry on loopback: `127.0.0.1:port`, which Docker takes without TLS."""
    if not shutil.which("docker-registry"):
        pytest.skip("no registry here: docker-registry (Debian's package) is missing")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir()
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    if users:
        (folder / "htpasswd").write_text(users)
        config["auth"] = {"htpasswd": {"realm": "mill", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    process = subprocess.Popen(
        ["docker-registry", "serve", str(folder / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_push_and_pull_by_digest(built: dict[str, str], tmp_path: Path) -> None:
    client = docker_engine.client()
    path = tmp_path / "cluster.yaml"
    path.write_text("# Ours.\nnamespace: mill\nimages:\n  cpu: ''  # small\n")
    with run_registry(tmp_path / "registry") as host:
        words = images.command("--registry", f"{host}/mill", "--tag", "t1", "--only", "cpu", "--cluster", str(path))
        process = subprocess.run(words, capture_output=True, text=True, check=False)
        assert process.returncode == 0 and process.stdout == "", process.stderr
        reference = yaml.safe_load(path.read_text())["images"]["cpu"]
        assert re.fullmatch(re.escape(f"{host}/mill/imagemill-cpu") + "@sha256:[0-9a-f]{64}", reference)
        assert path.read_text() == f'# Ours.\nnamespace: mill\nimages:\n  cpu: "{reference}"  # small\n'
        client.images.remove(f"{host}/mill/imagemill-cpu:t1")
        assert not docker_engine.is_there(reference)
        pulled = client.images.pull(reference)
        try:
            assert pulled.id == inspect_image(built["cpu"])["Id"]
            assert run_restricted(reference, "imagemill", "--version").returncode == 0
        finally:
            client.images.remove(reference)
    away = subprocess.run(words, capture_output=True, text=True, check=False)
    assert away.returncode == EXIT_TRANSIENT and "connection refused" in away.stderr
    assert yaml.safe_load(path.read_text())["images"]["cpu"] == reference  # as it was
    client.images.remove(f"{host}/mill/imagemill-cpu:t1")


def test_missing_registry_login_is_reported(built: dict[str, str], tmp_path: Path) -> None:
    users = "someone:$2y$05$" + "a" * 53 + "\n"
    with run_registry(tmp_path / "registry", users) as host:
        words = images.command("--registry", f"{host}/mill", "--tag", "t1", "--only", "cpu")
        result = subprocess.run(words, capture_output=True, text=True, check=False)
        docker_engine.client().images.remove(f"{host}/mill/imagemill-cpu:t1")
    assert result.returncode == EXIT_USER, result.stderr
    assert f"docker login {host}" in result.stderr


def write_wheel(folder: Path, name: str, version: str, needs: str = "") -> None:
    """Write a wheel of metadata and one module."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"__version__ = '{version}'\n")
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + (
            f"Requires-Dist: {needs}\n" if needs else ""
        )
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_torch_index_leaves_cuda_out(built: dict[str, str], tmp_path: Path) -> None:
    """An index with stand-ins of the CPU wheels, as no network but PyPI's can be counted on: what is seen is which
    packages come from where, and that the rest of the image is complete without CUDA."""
    lock = (ROOT / "docker/ray.lock").read_text()
    versions = dict(re.findall(r"^(torch|torchvision)==(\S+)", lock, re.MULTILINE))
    for name, version in versions.items():
        (tmp_path / name).mkdir()
        needs = f"torch=={versions['torch']}" if name == "torchvision" else ""
        write_wheel(tmp_path / name, name, f"{version}+cpu", needs)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        index = f"http://127.0.0.1:{server.server_address[1]}/"
        words = images.command("--no-push", "--tag", "of-index", "--json", "--only", "ray", "--torch-index", index)
        process = subprocess.run(words, capture_output=True, text=True, check=False)
    finally:
        server.shutdown()
        server.server_close()
    assert process.returncode == 0, process.stderr
    try:
        assert "warning" not in process.stderr
        names = list_packages("imagemill-ray:of-index")
        assert names["torch"] == f"{versions['torch']}+cpu" and names["torchvision"] == f"{versions['torchvision']}+cpu"
        assert not [name for name in names if name.startswith(("nvidia-", "cuda-", "triton"))]
        assert run_restricted("imagemill-ray:of-index", "python", "-c", "import ray, albucore, cv2").returncode == 0
        assert inspect_image("imagemill-ray:of-index")["Size"] < 1.5e9  # and 0.8 GB of a real torch for CPUs
    finally:
        docker_engine.client().images.remove("imagemill-ray:of-index")
