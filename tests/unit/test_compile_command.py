"""`imagemill compile` and `imagemill cluster`: what they write, and that what no pod can take is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packages import IMAGES

from imagemill.components.storage.errors import UserError
from imagemill.pipelines.cli.main import main
from imagemill.pipelines.cluster.cluster_file import Cluster, parse_cluster
from imagemill.pipelines.compile import compile_pipeline
from imagemill.pipelines.parameters import resolve_parameters

LOGIN = "https://me:hunter2@photos.example/x.zip"


@pytest.mark.parametrize("target", ["kfp", "argo"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset": "folder", "source": "./here"}, r"--source: expected s3://… or http\(s\)://…: the pods don't see"),
        ({"dataset": "folder", "source": "file:///here"}, "--source: expected"),
        ({"dataset": "csv", "source": "s3://b/t.csv", "annotations": "/a"}, "--annotations: expected s3://… or http"),
        ({"weights": "model.safetensors"}, "--weights: expected s3://…: the pods"),
        ({"class_list": "classes.txt"}, "--class-list: expected s3://…: the pods"),
        ({"map_labels": "names.csv"}, "--map-labels: expected s3://…: the pods"),
    ],
)
def test_local_paths_are_rejected(target: str, flags: dict[str, str], message: str, cluster_file: Path) -> None:
    out = cluster_file.with_name("p.yaml")
    with pytest.raises(UserError, match=f"^{message}"):
        compile_pipeline(target, resolve_parameters(flags), out, str(cluster_file))
    assert not out.exists()


@pytest.mark.parametrize("target", ["kfp", "argo"])
@pytest.mark.parametrize("flag", ["label_pattern", "other_class"])
def test_values_with_argo_variables_are_rejected(target: str, flag: str, cluster_file: Path) -> None:
    """Another of the run's values would stand there, or, without an end, the run would be refused."""
    parameters = resolve_parameters({flag: "({{workflow.name}})"})
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')}: expected a text without {{{{, by which Argo's"):
        compile_pipeline(target, parameters, cluster_file.with_name("p.yaml"), str(cluster_file))


@pytest.mark.parametrize("target", ["kfp", "argo"])
def test_more_than_a_command_line_takes_is_refused(target: str, cluster_file: Path) -> None:
    out = cluster_file.with_name("p.yaml")
    with pytest.raises(UserError, match="config: expected parameters of 100,000 characters at most"):
        compile_pipeline(target, resolve_parameters({"other_class": "x" * 100_000}), out, str(cluster_file))
    compile_pipeline(target, resolve_parameters({"other_class": "x" * 90_000}), out, str(cluster_file))
    assert "x" * 90_000 in out.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workspace: ./here", "(workspace): expected s3://bucket/prefix, which every pod"),
        ("dataset: folder\ndownload: {source: ./here}", "(download.source): expected s3://"),
        ("train: {weights: ./here.safetensors}", "(train.weights): expected s3://"),
        ("dataset: folder\nsource: http://me:hunter2@here", "(source): expected a URL without a login"),
        ("clean: {other_class: '{{x}}'}", "(clean.other_class): expected a text without {{"),
    ],
)
def test_values_that_pods_cannot_use_are_rejected_with_file_and_field(
    text: str, message: str, cluster_file: Path
) -> None:
    config = cluster_file.with_name("mill.yaml")
    config.write_text(text)
    with pytest.raises(UserError) as error:
        compile_pipeline(
            "argo", resolve_parameters({}, str(config)), cluster_file.with_name("p.yaml"), str(cluster_file)
        )
    assert str(error.value).startswith(f"{config} {message}") and "hunter2" not in str(error.value)


def test_names_and_addresses_are_no_paths(cluster_file: Path) -> None:
    parameters = {"dataset": "folder", "source": "https://photos.example/x.zip", "weights": "DEFAULT",
             "class_list": "s3://bucket/classes.txt", "map_labels": "s3://bucket/names.csv"}  # fmt: skip
    compile_pipeline("argo", resolve_parameters(parameters), cluster_file.with_name("p.yaml"), str(cluster_file))
    assert "https://photos.example/x.zip" in cluster_file.with_name("p.yaml").read_text()


@pytest.mark.parametrize("target", ["kfp", "argo"])
@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ({"dataset": "folder", "source": LOGIN}, "source"),
        ({"dataset": "folder", "source": "https://photos.example/x.zip?signature=hunter2"}, "source"),
        ({"backgrounds": LOGIN}, "backgrounds"),
        ({"class_list": "https://me:hunter2@photos.example/classes.txt"}, "class-list"),
        ({"ray_address": "http://me:hunter2@head:8265"}, "ray-address"),
        ({"workspace": "s3://me:hunter2@bucket/mill"}, "workspace"),
    ],
)
def test_a_login_among_the_parameters_is_refused(
    target: str, flags: dict[str, str], name: str, cluster_file: Path
) -> None:
    out = cluster_file.with_name("p.yaml")
    with pytest.raises(UserError, match=f"^--{name}: expected a URL without a login or query") as error:
        compile_pipeline(target, resolve_parameters(flags), out, str(cluster_file))
    assert "hunter2" not in str(error.value) and "s3://" in str(error.value) and not out.exists()


@pytest.fixture
def cluster_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"images": IMAGES, "storage": {"workspace": "s3://here/mill"}}))
    yield path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--target", "kfp", "-o", "p.yaml"],
            "which object store, found none; `imagemill cluster -o FILE` writes one",
        ),
        (["--target", "airflow", "-o", "p.yaml"], "--target: expected one of kfp, argo, found 'airflow'"),
        (["--target", "kfp", "--cluster", "none.yaml", "-o", "p.yaml"], "--cluster: expected a YAML file"),
        (["--target", "kfp", "--cluster", "FILE", "-o", "p.json"], "-o: expected a file that ends in .yaml"),
        (["--target", "argo", "--cluster", "FILE", "-o", "no/p.yaml"], "-o: expected a file in a folder that is there"),
        (["--target", "argo", "--cluster", "FILE", "-o", "p.yaml", "--workspace", "./x"], "workspace: expected s3://"),
    ],
)
def test_invalid_options_are_reported(
    arguments: list[str], message: str, cluster_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(cluster_file.parent)
    assert main(["compile", *(str(cluster_file) if word == "FILE" else word for word in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert list(cluster_file.parent.iterdir()) == [cluster_file]


def test_the_documented_file_is_the_default_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster"]) == 0
    text = capsys.readouterr().out
    assert parse_cluster(yaml.safe_load(text)) == Cluster()
    assert main(["cluster", "-o", str(tmp_path / "c.yaml")]) == 0 and (tmp_path / "c.yaml").read_text() == text
    assert main(["cluster", "-o", str(tmp_path / "c.yaml")]) == 2  # somebody has filled it in
