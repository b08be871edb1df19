"""`imagemill images build` without Docker: the images' part of the cluster file is written, errors are clear."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from imagemill.components.storage.errors import EXIT_USER, MillError, TransientError, UserError
from imagemill.pipelines.cli import images
from imagemill.pipelines.cli.main import main
from imagemill.pipelines.cluster import cluster_file as cluster
from imagemill.pipelines.docker import image_pins
from imagemill.pipelines.docker.image_pins import set_images

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
        "  # the small one",
        f'  ray: "{DIGESTS["ray"]}"',
        f'  cpu: "{DIGESTS["cpu"]}"',
        "  tags_allowed: false # never",
        f'  gpu: "{DIGESTS["gpu"]}"   # the large one',
        "storage:",
        "  region: eu-central-1",
    ]
    assert set_images(edited, DIGESTS, "c.yaml") == edited
    newer = DIGESTS | {"cpu": DIGESTS["cpu"].replace("aaaa", "dddd")}
    assert set_images(edited, {"cpu": newer["cpu"]}, "c.yaml") == edited.replace(DIGESTS["cpu"], newer["cpu"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing yet\n",
        "namespace: mill",
        "images:\nnamespace: mill\n",
        "images: {}\n",
        "images: {cpu: '', pull_policy: Always}  # short\n",
        "images: {pull_policy: Always}\nnamespace: mill\n",
        "images:\n    cpu:\n    ray: ''\nnamespace: mill\n",
        'namespace: mill\nimages:\n  gpu: "some@sha256:%s"\n...\n' % ("1" * 64),
        "{namespace: mill, images: {cpu: ''}}\n",
    ],
)
def test_images_are_set_in_any_form_of_yaml(text: str) -> None:
    before = yaml.safe_load(text) or {}
    written = yaml.safe_load(set_images(text, DIGESTS, "c.yaml"))
    assert written == before | {"images": (before.get("images") or {}) | DIGESTS}


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
        ("a: [", "--cluster: expected YAML in c.yaml"),
        ("- a\n", "expected names and values"),
        ("nmespace: mill\n", "is it namespace?"),
        ("images: &a {cpu: ''}\nlabels: {x: y}\nray: *b\n", "--cluster: expected YAML"),
        ("images: [1]\n", "(images): expected names and values"),
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
    image_pins.update_file(str(link), DIGESTS)
    assert path.read_text() == set_images(OTHERS, DIGESTS, "") and path.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ["cluster.yaml", "link.yaml"]


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
    assert images.read_digest(PUSHED, "x") == "sha256:" + "c" * 64
    with pytest.raises(MillError, match="named no digest"):
        images.read_digest(PUSHED[:-1], "x")
    built = images.BuiltImage("cpu", "127.0.0.1:5000/mill/imagemill-cpu:dev", 1, "sha256:" + "c" * 64)
    assert built.reference == "127.0.0.1:5000/mill/imagemill-cpu@sha256:" + "c" * 64
    assert images.BuiltImage("cpu", "imagemill-cpu:dev", 1).reference == "imagemill-cpu:dev"


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
        images.read_digest([PUSHED[0], {"errorDetail": {"message": text}, "error": text}], "r.example/imagemill-cpu:1")
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
        (["--no-push", "--only", "cpu", "--rebuild"], "--rebuild: expected all images"),
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
    assert images.remove_login(address) == expected
