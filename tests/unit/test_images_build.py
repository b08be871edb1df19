"""Building images, but for Docker itself: what counts as input, what docker is told, and how its progress is read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from imagemill.components.storage.errors import MillError, UserError
from imagemill.pipelines.docker import image_build
from imagemill.pipelines.docker.image_build import (
    BuildOptions,
    find_cli,
    find_root,
    hash_code,
    hash_inputs,
    make_command,
    pip_secrets,
    run_build,
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Something with the files that count."""
    for name in ("docker/Dockerfile", "docker/cpu.lock", "docker/gpu.lock", "components/a.py", "pipelines/b/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize("name", ["docker/Dockerfile", "docker/cpu.lock", "components/a.py", "pipelines/b/new.html.j2"])
def test_input_files_change_the_hash_of_an_image(checkout: Path, name: str) -> None:
    before = hash_inputs(BuildOptions(checkout), "cpu")
    assert before == hash_inputs(BuildOptions(checkout), "cpu") and len(before) == 16
    with (checkout / name).open("a") as file:
        file.write("more")
    assert hash_inputs(BuildOptions(checkout), "cpu") != before


def test_a_moved_file_changes_the_hash(checkout: Path) -> None:
    before = hash_inputs(BuildOptions(checkout), "cpu")
    (checkout / "components/a.py").rename(checkout / "components/z.py")
    assert hash_inputs(BuildOptions(checkout), "cpu") != before


def test_other_files_do_not_change_the_hash(checkout: Path) -> None:
    before = hash_inputs(BuildOptions(checkout), "cpu")
    for name in (
        "components/__pycache__/a.pyc",
        "components/m.egg-info/PKG-INFO",
        "components/README.md",
        "pipelines/b/README.md",
        "tests/t.py",
        "k8s/base.yaml",
        "docker/gpu.lock",
    ):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("new")
    os.utime(checkout / "components/a.py", (1, 1))
    assert hash_inputs(BuildOptions(checkout), "cpu") == before


def test_the_code_is_that_of_the_modules_alone(checkout: Path) -> None:
    before = hash_code(checkout)
    for name in ("docker/cpu.lock", "components/__pycache__/a.pyc", "pipelines/b/page.html"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("new")
    assert hash_code(checkout) == before and len(before) == 16
    (checkout / "pipelines/b/c.py").write_text("new")
    assert hash_code(checkout) != before


def test_each_target_has_its_own_inputs(checkout: Path) -> None:
    plain, of_index = BuildOptions(checkout), BuildOptions(checkout, torch_index="https://index.example/cpu")
    assert hash_inputs(plain, "ray") != hash_inputs(of_index, "ray")
    assert hash_inputs(plain, "gpu") == hash_inputs(of_index, "gpu") and hash_inputs(plain, "cpu") == hash_inputs(
        of_index, "cpu"
    )
    before = hash_inputs(plain, "cpu"), hash_inputs(plain, "ray")
    (checkout / "docker/gpu.lock").write_text("ray shares a layer with gpu, so it counts for both")
    assert (hash_inputs(plain, "cpu"), hash_inputs(plain, "ray")) == (before[0], hash_inputs(plain, "ray"))
    assert hash_inputs(plain, "ray") != before[1]
    assert hash_inputs(BuildOptions(checkout, base_image="other:1"), "cpu") != before[0]


def test_arguments_of_docker_build(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy.example:3128")
    options = BuildOptions(checkout, "base:1", "https://index.example/cpu", "host", rebuild=True)
    words = make_command(
        "/usr/bin/docker", options, "ray", "r.example/imagemill-ray:1", {"a": "b"}, {"pip.conf": Path("/x")}
    )
    text = " ".join(words)
    for part in (
        "--target ray", "--tag r.example/imagemill-ray:1", "--label a=b", "--build-arg BASE_IMAGE=base:1",
        "--build-arg TORCH_INDEX=https://index.example/cpu", "--secret id=pip.conf,src=/x", "--network host",
        "--no-cache",
    ):  # fmt: skip
        assert part in text
    assert "--build-arg HTTPS_PROXY" in text and "password" not in text  # docker takes its value from the environment
    assert "TORCH_INDEX" not in " ".join(make_command("docker", options, "gpu", "t", {}, {}))
    assert words[-1] == str(checkout)


def test_settings_for_pip_travel_as_secrets(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificates = checkout / "ca.pem"
    certificates.write_text("-----BEGIN CERTIFICATE-----")
    for name in ("SSL_CERT_FILE", "PIP_CERT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST"):
        monkeypatch.delenv(name, raising=False)
    with pip_secrets(BuildOptions(checkout)) as secrets:
        assert secrets == {}
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:password@index.example/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "index.example")
    monkeypatch.setenv("PIP_CERT", str(certificates))
    with pip_secrets(BuildOptions(checkout)) as secrets:
        assert secrets["ca.pem"] == certificates
        path = secrets["pip.conf"]
        assert path.read_text().splitlines() == [
            "[global]", "index-url = https://user:password@index.example/simple", "trusted-host = index.example"
        ]  # fmt: skip
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()
    with pip_secrets(BuildOptions(checkout, pip_config=str(certificates))) as secrets:
        assert secrets["pip.conf"] == certificates
    with (
        pytest.raises(UserError, match=r"--pip-config: expected .*found 'nowhere'"),
        pip_secrets(BuildOptions(checkout, pip_config="nowhere")),
    ):
        pass


def script(folder: Path, text: str) -> str:
    """A command named docker."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "docker"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_build_that_fails_ends_with_its_last_lines_and_its_log(tmp_path: Path) -> None:
    wrong = script(tmp_path, 'for i in $(seq 40); do echo "#9 $i.0 line $i of $DOCKER_BUILDKIT"; done; exit 3')
    with pytest.raises(MillError, match=r"building cpu failed \(exit code 3\)") as error:
        run_build([wrong], "cpu")
    assert error.value.exit_code == 1
    first, *last = str(error.value).splitlines()
    assert last[-1].strip() == "#9 40.0 line 40 of 1" and len(last) == 15
    log = Path(first.rpartition(" ")[2])
    assert log.read_text().count("\n") == 40
    log.unlink()
    run_build([script(tmp_path, "echo fine")], "cpu")
    assert not log.exists()


OLD = 'case "$1" in version) echo 20.10.24; exit 1 ;; *) exit 1 ;; esac'  # exit 1: no daemon answers
NEW = 'case "$1" in version) echo 28.2.2 ;; *) exit 1 ;; esac'
PLUGIN = 'case "$1" in version) echo 28.2.2 ;; buildx) echo github.com/docker/buildx v0.24.0 ;; esac'


@pytest.mark.parametrize("able", [OLD, PLUGIN])
def test_the_docker_that_has_buildkit_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: str) -> None:
    script(tmp_path / "one", NEW)
    chosen = script(tmp_path / "two", able)
    monkeypatch.setenv("PATH", f"{tmp_path}/one:{tmp_path}/two")
    assert find_cli() == chosen


def test_missing_docker_or_buildkit_is_reported_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="install Docker"):
        find_cli()
    script(tmp_path, NEW)
    with pytest.raises(UserError, match="install its plugin buildx"):
        find_cli()


def test_the_source_is_a_checkout(tmp_path: Path) -> None:
    assert (find_root("") / "pyproject.toml").exists()
    with pytest.raises(UserError, match=r"--source: expected a checkout of imagemill, with docker/Dockerfile, found"):
        find_root(str(tmp_path))


def test_of_an_installed_package_the_source_is_where_the_command_is_called(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "pyproject.toml").write_text("")
    monkeypatch.setattr(
        image_build, "__file__", str(tmp_path / "site-packages/imagemill/pipelines/docker/image_build.py")
    )
    monkeypatch.chdir(checkout)
    assert find_root("") == checkout
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match=r"--source: expected a checkout .*, found '?.*site-packages/imagemill, /"):
        find_root("")
