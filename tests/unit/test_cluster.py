"""The cluster's YAML: what is left out keeps its default, what is wrong is named."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from imagemill.components.storage.errors import UserError
from imagemill.pipelines.cluster.cluster_file import Cluster, Pod, load_cluster, parse_cluster, parse_cluster_json
from imagemill.pipelines.settings import parse_quantity

DIGEST = "registry.example/imagemill-cpu@sha256:" + "a" * 64


def test_the_printed_file_explains_every_field_and_reads_back() -> None:
    text = Cluster().documented()
    assert parse_cluster(yaml.safe_load(text)) == Cluster()
    lines = text.splitlines()
    keys: set[str] = set()
    for before, line in itertools.pairwise(lines):
        key = line.strip().partition(":")[0]
        if line.strip().startswith("#") or not line.strip() or key in keys:
            continue
        step = key in ("download", "clean", "resize", "train", "evaluate", "promote")
        assert step or before.strip().startswith("#"), f"{key} is not explained"
        keys.add(key)
    assert len(keys) > 50


def test_partial_group_keeps_the_other_defaults() -> None:
    cluster = parse_cluster({"steps": {"train": {"gpu": 2}}, "ray": {"workers": {"pod": {"cpu": 2}}}})
    default = Cluster()
    assert cluster.steps["train"].gpu == 2
    assert cluster.steps["train"].memory == default.steps["train"].memory
    assert cluster.steps["clean"] == default.steps["clean"]
    assert cluster.ray.workers.pod.cpu == "2"
    assert cluster.ray.workers.pod.memory == default.ray.workers.pod.memory
    assert cluster.ray.head == default.ray.head


def test_a_cluster_travels_to_a_pod_in_one_line() -> None:
    taint = {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}
    cluster = parse_cluster(
        {
            "images": {"cpu": DIGEST, "pull_secrets": ["login"]},
            "labels": {"team": "vision", "on": True},
            "steps": {"train": {"tolerations": [taint], "node_selector": {"gpu": "a100"}}},
        }
    )
    assert "\n" not in cluster.to_json()
    assert parse_cluster_json(cluster.to_json()) == cluster
    assert cluster.labels == {"team": "vision", "on": "true"}
    assert cluster.image_of("promote") == DIGEST


def train(toleration: dict[str, Any]) -> dict[str, Any]:
    return {"steps": {"train": {"tolerations": [toleration]}}}


WRONG: list[tuple[Any, str]] = [
    ({"namespaces": "a"}, "c.yaml (namespaces): expected one of namespace, "),
    ({"namespaces": "a"}, "is it namespace?"),
    ({"namespace": "Upper"}, "c.yaml (namespace): expected a name of lower-case letters"),
    ({"images": {"cpu": "imagemill:latest"}}, "c.yaml (images.cpu): expected an image by its digest"),
    ({"images": {"cpu": DIGEST.replace("@", "@@")}}, "c.yaml (images.cpu): expected an image by its digest"),
    ({"steps": {"trian": {}}}, "c.yaml (steps.trian): expected a step"),
    ({"steps": {"train": {"memory": "16GB"}}}, "c.yaml (steps.train.memory): expected a quantity"),
    ({"steps": {"train": {"memory": "0"}}}, "c.yaml (steps.train.memory): expected a quantity above 0"),
    ({"steps": {"train": {"cpu_limit": "1"}}}, "c.yaml (steps.train.cpu_limit): expected at least cpu, 4"),
    ({"steps": {"train": {"shm": "16Gi"}}}, "c.yaml (steps.train.shm): expected less than memory"),
    ({"steps": {"train": {"gpu": "one"}}}, "c.yaml (steps.train.gpu): expected a whole number"),
    ({"steps": {"train": {"gpu": True}}}, "c.yaml (steps.train.gpu): expected a whole number"),
    (
        {"steps": {"train": {"tolerations": ["gpu"]}}},
        "c.yaml (steps.train.tolerations): expected a list of names and values",
    ),
    ({"steps": {"train": {"tolerations": "gpu"}}}, "c.yaml (steps.train.tolerations): expected a list"),
    ({"steps": {"train": {"node_selector": ["a"]}}}, "c.yaml (steps.train.node_selector): expected names and values"),
    ({"steps": {"train": 3}}, "c.yaml (steps.train): expected names and values"),
    ({"ray": {"mode": "cluster"}}, "c.yaml (ray.mode): expected one of auto, pod, rayjob, address"),
    ({"steps": {"resize": {"gpu": 1}}}, "c.yaml (steps.resize.gpu): expected 0 with ray.mode auto"),
    ({"ray": {"mode": "address"}}, "c.yaml (ray.address): expected an address with mode address"),
    ({"ray": {"address": "http://head:8265"}}, "c.yaml (ray.address): expected an address with mode address"),
    ({"ray": {"workers": {"minimum": 5}}}, "c.yaml (ray.workers.maximum): expected at least 1"),
    ({"images": {"tags_allowed": "yes"}}, "c.yaml (images.tags_allowed): expected true or false"),
    ({"storage": {"secret": None}}, "c.yaml (storage.secret): expected a text"),
    (["namespace"], "c.yaml: expected names and values"),
    ({"storage": {"endpoint": "seaweedfs:9000"}}, "c.yaml (storage.endpoint): expected http://host:port"),
    ({"storage": {"endpoint": "http://:9000"}}, "c.yaml (storage.endpoint): expected http://host:port"),
    ({"storage": {"endpoint": "http://host:port"}}, "c.yaml (storage.endpoint): expected http://host:port"),
    ({"storage": {"endpoint": "s3://host"}}, "c.yaml (storage.endpoint): expected http://host:port"),
    ({"images": {"pull_secrets": [1]}}, "c.yaml (images.pull_secrets): expected a list of texts"),
    ({"images": {"pull_secrets": [{"name": "x"}]}}, "c.yaml (images.pull_secrets): expected a list of texts"),
    ({"images": {"pull_secrets": ["A b"]}}, "c.yaml (images.pull_secrets): expected a name of lower-case letters"),
    (train({"operator": 3}), "(steps.train.tolerations): expected operator as a text, found 3"),
    (train({"operator": "Has", "key": "a"}), "(steps.train.tolerations): expected operator Exists or Equal"),
    (train({"key": "a", "effect": "nosuch"}), "(steps.train.tolerations): expected effect NoSchedule, "),
    (train({"key": "a", "tolerationSeconds": "x"}), "expected tolerationSeconds as a whole number, found 'x'"),
    (train({"key": "a", "tolerationSeconds": True}), "expected tolerationSeconds as a whole number, found 'true'"),
    (train({"key": "a", "effect": "NoSchedule", "tolerationSeconds": 3}), "tolerationSeconds only with NoExecute"),
    (train({"key": "a", "operator": "Exists", "value": "b"}), "expected no value with operator Exists"),
    (train({"key": "bad key"}), "(steps.train.tolerations): expected the name of a taint, such as nvidia.com/gpu"),
    (train({"value": "b"}), "(steps.train.tolerations): expected the name of a taint"),
    (train({"key": "a", "value": "b c"}), "(steps.train.tolerations): expected a value of up to 63 letters"),
    ({"labels": {"bad key!": "x"}}, "c.yaml (labels): expected a label's name, such as example.com/team"),
    ({"labels": {"Example.com/team": "x"}}, "c.yaml (labels): expected a label's name"),
    ({"labels": {"a" * 64: "x"}}, "c.yaml (labels): expected a label's name"),
    ({"labels": {"team": "x y"}}, "c.yaml (labels.team): expected up to 63 letters, digits, '-', '_' and '.'"),
    ({"labels": {"team": ["x"]}}, "c.yaml (labels.team): expected a text"),
    ({"labels": {True: "x"}}, "c.yaml (labels): expected names that are texts"),
    ({"steps": {"train": {"node_selector": {"a": None}}}}, "c.yaml (steps.train.node_selector.a): expected a text"),
    ({"steps": {"train": {"node_selector": {"a": "b c"}}}}, "c.yaml (steps.train.node_selector.a): expected up to 63"),
    ({"steps": {"train": {"gpu_type": ""}}}, "c.yaml (steps.train.gpu_type): expected the resource's whole name"),
    ({"steps": {"train": {"gpu_type": "a100"}}}, "c.yaml (steps.train.gpu_type): expected the resource's whole name"),
    ({"ray": {"version": "abc"}}, "c.yaml (ray.version): expected a release, such as 2.60.0"),
    (
        {"ray": {"head": {"deadline_seconds": 5}}},
        "c.yaml (ray.head.deadline_seconds): expected 0: ray.deadline_seconds",
    ),
    ({"ray": {"workers": {"pod": {"deadline_seconds": 5}}}}, "c.yaml (ray.workers.pod.deadline_seconds): expected 0"),
    ({"small": {"shm": "64Mi"}}, "c.yaml (small.shm): expected none"),
    ({"storage": {"workspace": "./here"}}, "c.yaml (storage.workspace): expected s3://bucket/prefix, which every pod"),
    ({"storage": {"workspace": "s3://"}}, "c.yaml (storage.workspace): expected s3://bucket/prefix, found 's3://'"),
    ({"storage": {"secret": "My Secret"}}, "c.yaml (storage.secret): expected a name of lower-case letters"),
    ({"storage": {"access_key": ""}}, "c.yaml (storage.access_key): expected a key of letters"),
    ({"argo": {"service_account": ""}}, "c.yaml (argo.service_account): expected a name of lower-case letters"),
    ({"argo": {"launcher_service_account": "a b"}}, "c.yaml (argo.launcher_service_account): expected a name"),
    (
        {"images": {"tags_allowed": True, "cpu": "Mill CPU:1"}},
        "c.yaml (images.cpu): expected an image's name: registry/name:tag or registry/name@sha256:…",
    ),
    ({"ray": {"mode": "address", "address": "head:8265"}}, "c.yaml (ray.address): expected http://head:8265 or ray://"),
    ({"ray": {"mode": "address", "address": "ray://head"}}, "c.yaml (ray.address): expected http://head:8265 or ray"),
    (
        {"ray": {"mode": "address", "address": "http://head", "token_secret": "T"}},
        "c.yaml (ray.token_secret): expected a name",
    ),
    ({"steps": {"train": {"memory": "512m"}}}, "c.yaml (steps.train.memory): expected at least 1Mi"),
    ({"steps": {"train": {"ephemeral_storage": 0}}}, "c.yaml (steps.train.ephemeral_storage): expected at least 1Mi"),
    ({"limits": {"lost_pod_retries": 2**31}}, "c.yaml (limits.lost_pod_retries): expected a whole number of at most"),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=range(len(WRONG)))
def test_invalid_fields_are_named(values: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_cluster(values, "c.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("group", "field", "value"),
    [
        ("storage", "endpoint", "http://key:hunter2@host:9000"),
        ("storage", "endpoint", "https://host/?X-Amz-Signature=hunter2"),
        ("storage", "endpoint", "key:hunter2@host:9000"),
        ("storage", "workspace", "s3://key:hunter2@bucket/data"),
        ("ray", "address", "http://user:hunter2@head:8265"),
        ("ray", "address", "http://head:8265/?token=hunter2"),
        ("ray", "address", "user:hunter2@head:6379"),
    ],
)
@pytest.mark.parametrize("mode", ["rayjob", "address"])
def test_a_login_is_refused_and_not_repeated(group: str, field: str, value: str, mode: str) -> None:
    values: dict[str, Any] = {"ray": {"mode": mode}} if group == "ray" else {}
    values.setdefault(group, {})[field] = value
    with pytest.raises(UserError, match=rf"c\.yaml \({group}\.{field}\)") as error:
        parse_cluster(values, "c.yaml")
    assert "hunter2" not in str(error.value)


def test_valid_kubernetes_values_are_accepted() -> None:
    tolerations: list[dict[str, Any]] = [
        {"operator": "Exists"},
        {"key": "spot", "value": True, "effect": "NoExecute", "tolerationSeconds": 30},
        {"key": "example.com/dedicated_to", "operator": "Equal", "value": "", "effect": "PreferNoSchedule"},
    ]
    cluster = parse_cluster(
        {
            "images": {"pull_secrets": ["my.login-1"]},
            "storage": {"endpoint": "https://store.example:8333/s3", "secret": ""},
            "labels": {"example.com/cost.centre_1": 4711, "empty": ""},
            "steps": {"train": {"tolerations": tolerations, "gpu_type": "nvidia.com/mig-1g.5gb"}},
            "ray": {"version": "3.0.0.dev0", "head": {"deadline_seconds": 0}},
        }
    )
    assert cluster.steps["train"].tolerations[1]["value"] == "true"
    assert cluster.labels == {"example.com/cost.centre_1": "4711", "empty": ""}
    assert parse_cluster_json(cluster.to_json()) == cluster
    assert parse_cluster({"storage": {"endpoint": ""}, "ray": {"version": "2.51"}}).ray.version == "2.51"


def test_images_are_required_by_digest_unless_tags_are_allowed() -> None:
    with pytest.raises(UserError, match=r"images\.cpu.*imagemill images build"):
        Cluster().require_images("c.yaml")
    parse_cluster({"images": {"tags_allowed": True}}).require_images("c.yaml")


def test_unreadable_cluster_files_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a YAML file that can be read"):
        load_cluster(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match="expected YAML"):
        load_cluster(str(tmp_path / "bad.yaml"))
    (tmp_path / "twice.yaml").write_text("images: {}\nray:\n  mode: pod\n  mode: rayjob\n")
    with pytest.raises(UserError, match=r"twice.yaml \(line 4\): expected each name once, found 'mode'"):
        load_cluster(str(tmp_path / "twice.yaml"))
    for text, message in (
        ("cron: 0 25 * * 1", r"\(schedule.cron\) \(hour\): expected numbers from 0 to 23"),
        ("cron: 0 3 * *", r"\(schedule.cron\): expected five fields"),
        ("timezone: Europe/Berlim", r"\(schedule.timezone\): expected a time zone"),
    ):
        (tmp_path / "schedule.yaml").write_text(f"schedule:\n  {text}\n")
        with pytest.raises(UserError, match=rf"schedule\.yaml {message}"):
            load_cluster(str(tmp_path / "schedule.yaml"))
    (tmp_path / "merged.yaml").write_text(
        "steps:\n  clean: &a {cpu: 2, memory: 3Gi}\n  resize: &b {<<: *a, cpu: 5}\n  evaluate: {<<: *b, cpu: 6}\n"
    )
    steps = load_cluster(str(tmp_path / "merged.yaml")).steps
    assert [(steps[name].cpu, steps[name].memory) for name in ("clean", "resize", "evaluate")] == [
        ("2", "3Gi"), ("5", "3Gi"), ("6", "3Gi"),
    ]  # fmt: skip
    (tmp_path / "empty.yaml").write_text("")
    assert load_cluster(str(tmp_path / "empty.yaml")) == Cluster()


def test_quantities() -> None:
    assert [parse_quantity(q) for q in ("500m", "2", "1k", "1Ki", "1.5Gi")] == [0.5, 2, 1000, 1024, 1.5 * 2**30]
    assert parse_quantity(Pod().memory) == 2 * 2**30
