"""`imagemill images build` without Docker: the images' part of the cluster file is written, errors are clear."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import yaml

from imagemill.components.storage.errors import EXIT_USER, MillError, TransientError, UserError
from imagemill.pipelines.cli import images
from imagemill.pipelines.cli.main import main
from imagemill.pipelines.cluster import cluster_file as cluster
from imagemill.pipelines.docker import image_build
from imagemill.pipelines.docker.image_build import Checkout, find_root, format_part, hash_code, make_command, set_images

DIGESTS = {
    name: f"r.example:5000/mill/imagemill-{name}@sha256:{n * 64}"
    for n, name in zip("abc", ("cpu", "ray", "gpu"), strict=True)
}
OTHERS = """\
# Ours.
namespace: mill   # not default
images:  # written by a program
  # the small one
  cpu: ""
  tags_allowed: false # never
  gpu: 'old@sha256:%s'   # the large one
storage:
  region: eu-central-1
""" % ("0" * 64)


def test_only_the_images_change_and_comments_stay() -> None:
    edited = set_images(OTHERS, DIGESTS, "c.yaml")
    assert edited.splitlines() == [
        "# Ours.",
        "namespace: mill   # not default",
        "images:  # written by a program",
        f'  ray: "{DIGESTS["ray"]}"',
        "  # the small one",
        f'  cpu: "{DIGESTS["cpu"]}"',
        "  tags_allowed: false # never",
        f'  gpu: "{DIGESTS["gpu"]}"   # the large one',
        "storage:",
        "  region: eu-central-1",
    ]
    assert set_images(edited, DIGESTS, "c.yaml") == edited
    newer = DIGESTS | {"cpu": DIGESTS["cpu"].replace("aaaa", "dddd")}
    assert set_images(edited, {"cpu": newer["cpu"]}, "c.yaml") == edited.replace(DIGESTS["cpu"], newer["cpu"])


@pytest.mark.parametrize("text", ["# nothing yet\n", "namespace: mill", "images:\nnamespace: mill\n"])
def test_images_are_added(text: str) -> None:
    before = yaml.safe_load(text) or {}
    assert yaml.safe_load(set_images(text, DIGESTS, "c.yaml")) == before | {"images": DIGESTS}


def test_the_documented_file_keeps_every_comment() -> None:
    text = cluster.Cluster().documented()
    edited = set_images(text, DIGESTS, "c.yaml")
    changed = [(a, b) for a, b in zip(text.splitlines(), edited.splitlines(), strict=True) if a != b]
    assert [a.split(":")[0].strip() for a, _ in changed] == ["cpu", "ray", "gpu"]
    assert cluster.parse_cluster(yaml.safe_load(edited)).images.ray == DIGESTS["ray"]


def test_tags_are_written_only_where_they_are_allowed() -> None:
    tags: dict[str, object] = {"cpu": "imagemill-cpu:dev"}
    with pytest.raises(UserError, match="tags_allowed"):
        set_images(OTHERS, tags, "c.yaml")
    assert "tags_allowed: true # never" in set_images(OTHERS, tags | {"tags_allowed": True}, "c.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "--cluster c.yaml: expected a part images with a line for each image"),
        ("- a\n", "write there:\nimages:\n  cpu: "),
        ("images: {cpu: ''}\n", "write there:\nimages:\n  cpu: "),
        ("nmespace: mill\n", "is it namespace?"),
    ],
)
def test_invalid_cluster_files_are_rejected(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        set_images(text, DIGESTS, "c.yaml")
    assert message in str(error.value)


def test_the_file_is_written_whole_with_its_mode(tmp_path: Path) -> None:
    path, link = tmp_path / "cluster.yaml", tmp_path / "link.yaml"
    path.write_text(OTHERS)
    path.chmod(0o640)
    link.symlink_to(path)
    image_build.update_file(str(link), DIGESTS)
    assert path.read_text() == set_images(OTHERS, DIGESTS, "") and path.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ["cluster.yaml", "link.yaml"]


def test_the_part_alone_is_a_cluster_file() -> None:
    assert cluster.parse_cluster(yaml.safe_load(format_part(DIGESTS))).images.gpu == DIGESTS["gpu"]


# What Docker 20.10 and 28 tell of a push, shortened.
PUSHED = [
    {"status": "The push refers to repository [127.0.0.1:5000/imagemill-cpu]"},
    {"status": "Preparing", "progressDetail": {}, "id": "89e4769e2ba2"},
    {
        "status": "Pushing",
        "progressDetail": {"current": 512, "total": 3812},
        "progress": "[==> ]",
        "id": "89e4769e2ba2",
    },
    {"status": "dev: digest: sha256:" + "c" * 64 + " size: 1373"},
    {"progressDetail": {}, "aux": {"Tag": "dev", "Digest": "sha256:" + "c" * 64, "Size": 1373}},
]


def test_the_digest_comes_from_the_push() -> None:
    assert image_build.read_digest(PUSHED, "x") == "sha256:" + "c" * 64
    with pytest.raises(MillError, match="named no digest"):
        image_build.read_digest(PUSHED[:-1], "x")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("denied: requested access to the resource is denied", UserError),
        ("no basic auth credentials", UserError),
        ("unauthorized: authentication required", UserError),
        ('Get "https://r.example/v2/": dial tcp 127.0.0.1:5000: connect: connection refused', TransientError),
        ("received unexpected HTTP status: 503 Service Unavailable", TransientError),
    ],
)
def test_errors_of_a_registry_are_user_or_transient_errors(text: str, kind: type[MillError]) -> None:
    with pytest.raises(kind) as error:
        image_build.read_digest(
            [PUSHED[0], {"errorDetail": {"message": text}, "error": text}], "r.example/imagemill-cpu:1"
        )
    assert type(error.value) is kind and text in str(error.value) and "r.example" in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--registry: expected where to push"),
        (["--registry", "https://r.example/you"], "--registry: expected host"),
        (["--registry", "r.example/You"], "--registry: expected host"),
        (["--registry", "r.example", "--tag", "latest"], "--tag: expected"),
        (["--no-push", "--tag", "a/b"], "--tag: expected"),
        (["--no-push", "--only", "cpu,gpux"], "--only: expected some of cpu, ray, gpu, found 'gpux'"),
        (["--no-push", "--source", "/"], "--source: expected a checkout"),
        (["--no-push", "--cluster", "/nowhere.yaml"], "--cluster: expected a YAML file that can be read"),
    ],
)
def test_wrong_flags_are_rejected_before_the_build(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["images", "build", *arguments]) == EXIT_USER
    assert message in capsys.readouterr().err


def test_missing_docker_engine_is_reported_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert main(["images", "build", "--no-push"]) == EXIT_USER
    captured = capsys.readouterr()
    assert (
        f"expected a Docker engine at unix://{tmp_path}/none.sock" in captured.err
        and "systemctl start docker" in captured.err
    )
    assert captured.out == ""


def test_only_some_in_their_order() -> None:
    assert images.parse_targets("gpu, cpu") == ("cpu", "gpu") and images.parse_targets("") == ("cpu", "ray", "gpu")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://user:token@git.example/mill.git", "https://git.example/mill.git"),
        ("git@git.example:mill.git", "git@git.example:mill.git"),
        ("ssh://git@git.example:22/mill.git", "ssh://git.example:22/mill.git"),
        ("/srv/mill.git", ""),
        ("file:///srv/mill.git", ""),
        ("", ""),
    ],
)
def test_the_source_label_has_no_password(address: str, expected: str) -> None:
    assert image_build.remove_login(address) == expected


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("docker/Dockerfile", "pyproject.toml", "components/a.py", "pipelines/b/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def test_the_code_is_that_of_the_modules_alone(checkout: Path) -> None:
    before = hash_code(checkout)
    (checkout / "pipelines/b/page.html").write_text("new")
    assert hash_code(checkout) == before and len(before) == 16
    (checkout / "pipelines/b/c.py").write_text("new")
    assert hash_code(checkout) != before


def test_arguments_of_docker_build(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy.example:3128")
    settings = Checkout(checkout, "base:1", "https://index.example/cpu", "host")
    words = make_command("docker", settings, "ray", "r.example/imagemill-ray:1", {"pip.conf": Path("/x")}, True)
    text = " ".join(words)
    for part in (
        "--target ray", "--tag r.example/imagemill-ray:1", "--label io.imagemill.code=",
        "--build-arg BASE_IMAGE=base:1", "--build-arg TORCH_INDEX=https://index.example/cpu",
        "--secret id=pip.conf,src=/x", "--network host", "--no-cache",
    ):  # fmt: skip
        assert part in text
    assert "--build-arg HTTPS_PROXY" in text and "password" not in text  # docker takes its value from the environment
    assert "--pull" not in text, "a base image of this machine is in no registry"
    assert "TORCH_INDEX" not in " ".join(make_command("docker", settings, "gpu", "t", {}, False))
    assert words[-1] == str(checkout)


def write_docker(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a command named docker first on PATH."""
    (folder / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_settings_for_pip_travel_as_secrets(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does the engine: the command line may be set to another one than the SDK's, which is DOCKER_HOST's."""
    for name in ("SSL_CERT_FILE", "PIP_CERT", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:password@index.example/simple")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "index.example")
    monkeypatch.setenv("DOCKER_CONTEXT", "desktop-linux")
    folder = tmp_path / "bin"
    folder.mkdir()
    copy = 'for word in "$@"; do case $word in id=pip.conf,src=*) cp -p "${word#*src=}" %s;; esac; done'
    write_docker(folder, f"{copy % (tmp_path / 'seen')}; echo $DOCKER_BUILDKIT $DOCKER_CONTEXT > {tmp_path}/told",
                 monkeypatch)  # fmt: skip
    image_build.build(Checkout(checkout), "cpu", "imagemill-cpu:1")
    assert (tmp_path / "seen").read_text().splitlines() == [
        "[global]", "index-url = https://user:password@index.example/simple", "trusted-host = index.example"
    ]  # fmt: skip
    assert stat.S_IMODE((tmp_path / "seen").stat().st_mode) & 0o077 in (0, 0o044)
    assert (tmp_path / "told").read_text() == "1 default\n"
    with pytest.raises(UserError, match=r"--pip-config: expected .*found 'nowhere'"):
        image_build.build(Checkout(checkout, pip_config="nowhere"), "cpu", "imagemill-cpu:1")


def test_a_build_that_fails_is_an_error_of_ours(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    write_docker(folder, "echo why; exit 3", monkeypatch)
    with pytest.raises(MillError, match=r"building cpu failed \(exit code 3\)") as error:
        image_build.build(Checkout(checkout), "cpu", "imagemill-cpu:1")
    assert error.value.exit_code == 1
    assert capfd.readouterr() == ("", "why\n")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="install Docker"):
        image_build.build(Checkout(checkout), "cpu", "imagemill-cpu:1")


def test_the_source_is_a_checkout(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (find_root("") / "pyproject.toml").exists() and find_root(str(checkout)) == checkout
    with pytest.raises(UserError, match=r"--source: expected a checkout of imagemill, with docker/Dockerfile, found"):
        find_root("/nowhere")
    installed = tmp_path / "site-packages/imagemill/pipelines/docker/image_build.py"
    monkeypatch.setattr(image_build, "__file__", str(installed))
    monkeypatch.chdir(checkout)
    assert find_root("") == checkout
