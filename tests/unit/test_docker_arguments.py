"""Arguments of the containers of `--runner docker`, and errors of a missing engine or image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import conftest
import mill
import pytest

from imagemill.components.step.runner_exit import boot_id
from imagemill.components.storage.errors import UserError
from imagemill.pipelines.cluster.cluster_file import Cluster
from imagemill.pipelines.docker import environment as docker_environment
from imagemill.pipelines.docker import environment as docker_mounts
from imagemill.pipelines.docker import runner as in_docker
from imagemill.pipelines.docker.environment import RequiredAccess
from imagemill.pipelines.parameters import resolve_parameters

ROOT = {"SecurityOptions": ["name=seccomp,profile=default"], "MemTotal": 8 * 2**30, "Runtimes": {"runc": {}}}
IMAGE_USER = (10001, 10001)


def required_access(tmp_path: Path, **options: str) -> RequiredAccess:
    parameters = docker_mounts.make_absolute(
        resolve_parameters({"dataset": "folder", "workspace": str(tmp_path / "work"), **options})
    )
    return docker_mounts.find_required_access(parameters, str(parameters.pipeline["workspace"]))


def arguments(info: dict[str, Any], sight: RequiredAccess, network: str = "bridge") -> dict[str, Any]:
    user = docker_mounts.choose_user(info, (0, 0))
    return in_docker.make_run_arguments(info, user, sight, {"A": "1"}, "/tmp/run/scratch", network)


def bind_mounts(container_arguments: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Target → (source, read-only)."""
    assert all(mount["Type"] == "bind" for mount in container_arguments["mounts"])
    return {mount["Target"]: (mount["Source"], mount["ReadOnly"]) for mount in container_arguments["mounts"]}


def test_a_container_has_no_rights_and_writes_only_workspace_and_scratch(tmp_path: Path) -> None:
    photos = mill.make_photos(tmp_path / "photos", each=1)
    container_arguments = arguments(ROOT, required_access(tmp_path, source=str(photos)))
    assert bind_mounts(container_arguments) == {
        str(photos): (str(photos), True),
        str(tmp_path / "work"): (str(tmp_path / "work"), False),
        "/scratch": ("/tmp/run/scratch", False),
    }
    assert (
        container_arguments["user"] == "10001:10001"
        and container_arguments["read_only"]
        and container_arguments["cap_drop"] == ["ALL"]
    )
    assert container_arguments["security_opt"] == ["no-new-privileges:true"]
    assert container_arguments["shm_size"] == 4 * 2**30
    assert (
        "volumes" not in container_arguments
        and "privileged" not in container_arguments
        and "cap_add" not in container_arguments
    )


def test_nothing_of_a_run_on_s3_is_mounted(tmp_path: Path) -> None:
    access = required_access(tmp_path, source="s3://photos/all", workspace="s3://bucket/work")
    assert access == RequiredAccess((), (), ("s3://bucket/work", "s3://photos/all")) and access.uses_s3()
    assert list(bind_mounts(arguments(ROOT, access))) == ["/scratch"]


@pytest.mark.parametrize(
    ("caller", "options", "expected"),
    [
        ((0, 0), [], IMAGE_USER),
        ((1000, 100), ["name=seccomp,profile=default"], (1000, 100)),
        ((1000, 100), ["name=rootless"], (0, 0)),
        ((0, 0), ["name=userns"], IMAGE_USER),
    ],
)
def test_user_of_containers(caller: tuple[int, int], options: list[str], expected: tuple[int, int]) -> None:
    assert docker_mounts.choose_user({"SecurityOptions": options}, caller) == expected


def test_engines_that_map_users_or_label_files(tmp_path: Path) -> None:
    plain = arguments(ROOT, required_access(tmp_path, source="s3://b/c"))
    other = arguments(
        {**ROOT, "SecurityOptions": ["name=userns", "name=selinux"]}, required_access(tmp_path, source="s3://b/c")
    )
    assert "userns_mode" not in plain and other["userns_mode"] == "host"
    assert other["security_opt"] == ["no-new-privileges:true", "label=disable"]


def test_each_step_has_its_name_and_labels_and_only_networks_get_gpus() -> None:
    with_gpu = {**ROOT, "Runtimes": {"runc": {}, "nvidia": {}}}
    train, clean = (in_docker.make_step_arguments(with_gpu, "pets-2026-3f9a", step) for step in ("train", "clean"))
    assert train["name"] == "imagemill-pets-2026-3f9a-train"
    assert train["labels"]["imagemill.io/run"] == "pets-2026-3f9a" and train["labels"]["imagemill.io/step"] == "train"
    assert train["device_requests"] == [{"Driver": "", "Count": -1, "DeviceIDs": [], "Capabilities": [["gpu"]],
                                         "Options": {}}]  # fmt: skip
    assert "device_requests" not in clean
    assert "device_requests" not in in_docker.make_step_arguments(ROOT, "pets", "train")
    assert in_docker.make_step_arguments(ROOT, "größe", "train")["name"] == "imagemill-gr--e-train"


def test_links_that_leave_the_source_are_mounted_too(tmp_path: Path) -> None:
    photos = mill.make_photos(tmp_path / "photos", each=1)
    store = mill.make_photos(tmp_path / "store", each=1)
    (photos / "blue" / "more.jpg").symlink_to(store / "blue" / "000.png")
    (store / "blue" / "one.jpg").symlink_to(tmp_path / "last" / "000.jpg")  # of a link to a link, all must be there
    (photos / "blue" / "once.jpg").symlink_to("../../store/blue/one.jpg")
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "000.jpg").write_bytes(b"")
    (tmp_path / "hop").symlink_to(store / "red")
    (photos / "purple").symlink_to("../hop")
    (photos / "nowhere.jpg").symlink_to("/nowhere/1.jpg")
    (photos / "red" / "itself.jpg").symlink_to("itself.jpg")
    expected = {str(path) for path in (photos, store / "blue", tmp_path / "hop", tmp_path / "last")}
    assert set(required_access(tmp_path, source=str(photos)).read) == expected


def test_the_folders_of_a_tables_rows_are_mounted(tmp_path: Path) -> None:
    mill.make_photos(tmp_path / "a" / "photos", each=1)
    mill.make_photos(tmp_path / "b", each=1)
    table = tmp_path / "a" / "tables" / "labels.csv"
    table.parent.mkdir()
    table.write_text(f"path,label\n../photos/blue/000.png,blue\n{tmp_path}/b/red/000.png,red\ns3://b/x/1.jpg,red\n")
    access = required_access(tmp_path, dataset="csv", source=str(table))
    assert set(access.read) == {f"{tmp_path}/b/red", str(table), f"{tmp_path}/a/photos/blue"}
    assert access.addresses == ("s3://b",) and access.uses_s3()


def test_paths_become_absolute_and_the_workspace_is_mounted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mill.make_photos(tmp_path / "work" / "photos", each=1)
    (tmp_path / "classes.txt").write_text("blue\n")
    (tmp_path / "names.csv").write_text("old,new\nazure,blue\n")
    flags = {
        "source": "work/photos",
        "class_list": "classes.txt",
        "map_labels": "names.csv",
        "augment_pipeline": "light",
        "weights": "DEFAULT",
    }
    parameters = docker_mounts.make_absolute(
        resolve_parameters({"dataset": "folder", "workspace": "work", "backbone": "resnet18", **flags})
    )
    assert parameters.pipeline["source"] == f"{tmp_path}/work/photos" and parameters.pipeline["weights"] == "DEFAULT"
    assert parameters.sections["train"]["augment_pipeline"] == "light"
    access = docker_mounts.find_required_access(parameters, f"{tmp_path}/work")
    assert access.read == (f"{tmp_path}/classes.txt", f"{tmp_path}/names.csv") and access.written == (
        f"{tmp_path}/work",
    )


def test_a_source_that_would_hide_the_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "all").symlink_to("/usr")
    with pytest.raises(UserError, match="/usr"):
        required_access(tmp_path, source=str(tmp_path / "all"))


def test_environment_of_a_container() -> None:
    host_variables = {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_PROFILE": "me", "AWS_CA_BUNDLE": "/ca.pem",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "HTTPS_PROXY": "http://proxy:3128", "no_proxy": "local",
        "PATH": "/bin", "HOME": "/root", "TMPDIR": "/var/tmp", "IMAGEMILL_RUNNER_PID": "17", "HF_HOME": "/cache",
        "HF_TOKEN": "token", "PASSWORD": "mine",
    }  # fmt: skip
    fixed = {"USER": "imagemill", "LOGNAME": "imagemill", "PYTHONUNBUFFERED": "1",
              "IMAGEMILL_RUNNER_PIPE": "/pipe", "IMAGEMILL_RUNNER_BOOT": boot_id()}  # fmt: skip
    forwarded = {key: host_variables[key] for key in ("AWS_CA_BUNDLE", "HTTPS_PROXY", "no_proxy", "HF_TOKEN")}
    assert docker_environment.select_variables("/pipe", host_variables, s3=False) == fixed | forwarded
    s3 = docker_environment.select_variables("/pipe", host_variables, s3=True)
    assert s3 == fixed | forwarded | {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required"}


def test_credentials_of_a_profile_become_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        "[mill]\naws_access_key_id = AKIA\naws_secret_access_key = hush\naws_session_token = token\n"
    )
    (tmp_path / "config").write_text("[profile mill]\nregion = eu-north-1\nendpoint_url = http://127.0.0.1:9\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mill")
    conftest.forget_s3_clients()
    try:
        variables = docker_environment.make_s3_credentials()()
    finally:
        conftest.forget_s3_clients()
    assert variables == {
        "AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_SESSION_TOKEN": "token",
        "AWS_REGION": "eu-north-1", "AWS_DEFAULT_REGION": "eu-north-1", "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://127.0.0.1:9000", "host"), ("http://localhost:9000/x", "host"), ("http://[::1]:9000", "host"),
        ("127.0.0.1:6379", "host"), ("http://192.0.2.7:9000", "bridge"), ("http://no-such-host.invalid", "bridge"),
    ],
)  # fmt: skip
def test_the_machines_network_only_for_its_loopback(address: str, expected: str) -> None:
    assert docker_environment.choose_network_mode([address]) == expected


def test_endpoints_of_a_run_are_listed() -> None:
    endpoints = docker_environment.list_endpoints(
        ["s3://bucket/x", "http://127.0.0.1:1/a.tar", "head:6379"],
        {"https_proxy": "http://proxy:3128", "NO_PROXY": "localhost"}, "http://store:9000",
    )  # fmt: skip
    assert endpoints == ["http://127.0.0.1:1/a.tar", "head:6379", "http://proxy:3128", "http://store:9000"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders away")
def test_new_workspace_belongs_to_the_container_user_and_an_existing_one_is_checked(tmp_path: Path) -> None:
    workspace = tmp_path / "new" / "work"
    docker_mounts.make_writable(str(workspace), IMAGE_USER)
    status = workspace.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (*IMAGE_USER, 0o755)
    docker_mounts.make_run_folder(str(workspace), "run-1", IMAGE_USER)
    assert (workspace / "runs" / "run-1").stat().st_uid == 10001
    docker_mounts.make_writable(str(workspace), IMAGE_USER)  # again: it is his
    (workspace / "names" / "photos" / "latest").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        docker_mounts.make_writable(str(workspace), IMAGE_USER)
    assert f"chown -R 10001:10001 {workspace}" in str(error.value) and f"{workspace}/names" in str(error.value)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders away")
def test_finished_datasets_of_another_user_are_no_hindrance(tmp_path: Path) -> None:
    os.chown(tmp_path, *IMAGE_USER)
    finished = tmp_path / "raw" / "0123456789abcdef"
    finished.mkdir(parents=True)
    os.chown(tmp_path / "raw", *IMAGE_USER)
    with pytest.raises(UserError):
        docker_mounts.make_writable(str(tmp_path), IMAGE_USER)
    (finished / "_manifest.json").write_text("{}")
    docker_mounts.make_writable(str(tmp_path), IMAGE_USER)


def test_a_line_may_come_in_pieces() -> None:
    pieces = ["[clean] grö".encode()[:-1], "ö".encode()[1:] + b"\nnext\n", b"\xff last"]
    assert list(in_docker._split_lines(pieces)) == ["[clean] grö", "next", "� last"]


def test_missing_docker_engine_is_an_error_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", host := f"unix://{tmp_path}/docker.sock")
    with pytest.raises(UserError) as error:
        in_docker.open_engine(Cluster())
    assert f"expected a Docker engine at {host}" in str(error.value) and "systemctl start docker" in str(error.value)


def test_the_commands_own_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    from imagemill.pipelines.cli.main import main

    assert main(["run", "--runner", "podman"]) == 2
    assert "expected local or docker, found 'podman'" in capsys.readouterr().err
    assert main(["run", "--cluster", "mine.yaml"]) == 2
    assert "--cluster" in capsys.readouterr().err
