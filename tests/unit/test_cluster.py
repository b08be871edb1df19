"""The cluster's YAML: what is left out keeps its default, what is wrong is named."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagemill.components.store.errors import UserError
from imagemill.pipelines.cluster import Cluster, Pod, from_file, from_json, from_values
from imagemill.pipelines.settings import bytes_of

DIGEST = "registry.example/imagemill-cpu@sha256:" + "a" * 64


def test_the_printed_file_explains_every_field_and_reads_back() -> None:
    text = Cluster().documented()
    assert from_values(yaml.safe_load(text)) == Cluster()
    lines = text.splitlines()
    seen: set[str] = set()
    for before, line in itertools.pairwise(lines):
        key = line.strip().partition(":")[0]
        if line.strip().startswith("#") or not line.strip() or key in seen:
            continue
        step = key in ("download", "clean", "resize", "train", "evaluate", "promote")
        assert step or before.strip().startswith("#"), f"{key} is not explained"
        seen.add(key)
    assert len(seen) > 50


def test_a_part_of_a_group_leaves_the_rest_as_it_is() -> None:
    found = from_values({"steps": {"train": {"gpu": 2}}, "ray": {"workers": {"pod": {"cpu": 2}}}})
    plain = Cluster()
    assert found.steps["train"].gpu == 2
    assert found.steps["train"].memory == plain.steps["train"].memory
    assert found.steps["clean"] == plain.steps["clean"]
    assert found.ray.workers.pod.cpu == "2"
    assert found.ray.workers.pod.memory == plain.ray.workers.pod.memory
    assert found.ray.head == plain.ray.head


def test_a_cluster_travels_to_a_pod_in_one_line() -> None:
    taint = {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}
    cluster = from_values(
        {
            "images": {"cpu": DIGEST, "pull_secrets": ["login"]},
            "labels": {"team": "vision", "on": True},
            "steps": {"train": {"tolerations": [taint], "node_selector": {"gpu": "a100"}}},
        }
    )
    assert "\n" not in cluster.to_json()
    assert from_json(cluster.to_json()) == cluster
    assert cluster.labels == {"team": "vision", "on": "true"}
    assert cluster.image_of("promote") == DIGEST


WRONG: list[tuple[Any, str]] = [
    ({"namespaces": "a"}, "c.yaml (namespaces): expected one of namespace, "),
    ({"namespaces": "a"}, "is it namespace?"),
    ({"namespace": "Upper"}, "c.yaml (namespace): expected a name of lower-case letters"),
    ({"images": {"cpu": "imagemill:latest"}}, "c.yaml (images.cpu): expected an image by its digest"),
    ({"steps": {"trian": {}}}, "c.yaml (steps.trian): expected a step"),
    ({"steps": {"train": {"memory": "16GB"}}}, "c.yaml (steps.train.memory): expected a quantity"),
    ({"steps": {"train": {"memory": "0"}}}, "c.yaml (steps.train.memory): expected a quantity above 0"),
    ({"steps": {"train": {"cpu_limit": "1"}}}, "c.yaml (steps.train.cpu_limit): expected at least cpu, 4"),
    ({"steps": {"train": {"shm": "16Gi"}}}, "c.yaml (steps.train.shm): expected less than memory"),
    ({"steps": {"train": {"gpu": "one"}}}, "c.yaml (steps.train.gpu): expected a whole number"),
    ({"steps": {"train": {"gpu": True}}}, "c.yaml (steps.train.gpu): expected a whole number"),
    ({"steps": {"train": {"tolerations": ["gpu"]}}}, "c.yaml (steps.train.tolerations): expected a list of {key"),
    ({"steps": {"train": {"tolerations": "gpu"}}}, "c.yaml (steps.train.tolerations): expected a list"),
    ({"steps": {"train": {"node_selector": ["a"]}}}, "c.yaml (steps.train.node_selector): expected names and values"),
    ({"steps": {"train": 3}}, "c.yaml (steps.train): expected names and values"),
    ({"ray": {"mode": "cluster"}}, "c.yaml (ray.mode): expected one of rayjob, pod, address"),
    ({"ray": {"mode": "address"}}, "c.yaml (ray.address): expected an address with mode address"),
    ({"ray": {"address": "http://head:8265"}}, "c.yaml (ray.address): expected an address with mode address"),
    ({"ray": {"workers": {"minimum": 5}}}, "c.yaml (ray.workers.maximum): expected at least 1"),
    ({"images": {"tags_allowed": "yes"}}, "c.yaml (images.tags_allowed): expected true or false"),
    ({"storage": {"secret": None}}, "c.yaml (storage.secret): expected a text"),
    (["namespace"], "c.yaml: expected names and values"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named(values: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        from_values(values, "c.yaml")
    assert message in str(error.value)


def test_images_are_required_by_digest_unless_tags_are_allowed() -> None:
    with pytest.raises(UserError, match=r"images\.cpu.*imagemill images build"):
        Cluster().require_images("c.yaml")
    from_values({"images": {"tags_allowed": True}}).require_images("c.yaml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a YAML file that can be read"):
        from_file(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="expected YAML"):
        from_file(str(tmp_path / "bad.yaml"))
    (tmp_path / "empty.yaml").write_text("")
    assert from_file(str(tmp_path / "empty.yaml")) == Cluster()


def test_quantities() -> None:
    assert [bytes_of(q) for q in ("500m", "2", "1k", "1Ki", "1.5Gi")] == [0.5, 2, 1000, 1024, 1.5 * 2**30]
    assert bytes_of(Pod().memory) == 2 * 2**30
