"""The end-to-end tests' own logic that needs no cluster: table, selection, needs, deadlines, options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from e2e import __main__ as command
from e2e import table
from e2e.options import Options, for_tests, in_pods, with_rayjob, without_gpus
from e2e.scenario import FAILED, PASSED, SKIPPED, Deadline, Late, Registry, Row, Scenario, unmet
from e2e.scenarios import REGISTRY

from imagemill.components.storage.errors import UserError
from imagemill.pipelines.cluster import cluster_file as clusters

IMAGE = "registry/mill@sha256:" + "0" * 64
ROWS = [
    Row("argo-submit", PASSED, 83.25, "download 12 s, train 30 s"),
    Row("argo-kill-train", FAILED, 1.0, "word " * 40, saved="out/argo-kill-train"),
    Row("kfp-submit", SKIPPED, 0.0, "needs kfp, which was skipped: none here"),
]


def make_registry() -> Registry:
    registry = Registry()
    for name, needs in (("api", ()), ("store", ("api",)), ("argo", ("api",)), ("run", ("store", "argo")), ("kfp", ())):
        registry.add(Scenario(name, f"about {name}", lambda trial: None, needs))
    return registry


def test_table_fits_the_terminal() -> None:
    lines = table.render(ROWS, 84.25, 80).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[2].split() == ["argo-submit", "pass", "83.2", *ROWS[0].note.split()]
    assert " ".join(lines).count("word") == 40 and "(see out/argo-kill-train)" in " ".join(lines)
    assert lines[-1] == "1 passed, 1 failed, 1 skipped in 1 min 24 s"


def test_an_empty_table() -> None:
    assert table.render([], 0) == "nothing was tried\n"
    assert table.exit_code([]) == 1


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [((PASSED,), 0), ((PASSED, SKIPPED), 0), ((PASSED, FAILED), 1), ((SKIPPED, SKIPPED), 1)],
)
def test_only_passed_scenarios_are_a_success(outcomes: tuple[str, ...], code: int) -> None:
    assert table.exit_code([Row(str(n), outcome, 0.0) for n, outcome in enumerate(outcomes)]) == code


def test_json_holds_the_rows_of_the_table(tmp_path: Path) -> None:
    table.write_json(tmp_path / "table.json", ROWS, {"namespace": "tests"})
    parsed = json.loads((tmp_path / "table.json").read_text())
    assert (parsed["namespace"], parsed["exit_code"]) == ("tests", 1)
    assert [(row["name"], row["outcome"], row["seconds"]) for row in parsed["scenarios"]] == [
        ("argo-submit", "passed", 83.2), ("argo-kill-train", "failed", 1.0), ("kfp-submit", "skipped", 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        ([], ["api", "store", "argo", "run", "kfp"]),
        (["run"], ["api", "store", "argo", "run"]),
        (["k*"], ["kfp"]),
        (["argo", "kfp"], ["api", "argo", "kfp"]),
    ],
)
def test_selection_includes_dependencies(only: list[str], expected: list[str]) -> None:
    assert [scenario.name for scenario in make_registry().select(only)] == expected


def test_an_unknown_scenario_is_named() -> None:
    with pytest.raises(ValueError, match=r"--only agro-\*: expected one of api, store"):
        make_registry().select(["agro-*"])


def test_needs_come_first_and_names_once() -> None:
    registry = make_registry()
    with pytest.raises(ValueError, match="two scenarios"):
        registry.add(Scenario("api", "", lambda trial: None))
    with pytest.raises(ValueError, match="must come before"):
        registry.add(Scenario("new", "", lambda trial: None, ("later",)))


def test_unmet_requirements_have_a_reason() -> None:
    run = make_registry().scenarios["run"]
    rows = [Row("store", PASSED, 1.0), Row("argo", SKIPPED, 0.1, "none here")]
    assert unmet(run, rows) == "needs argo, which was skipped: none here"
    assert unmet(run, rows[:1]) == "needs argo, which was not tried"
    assert unmet(run, [rows[0], Row("argo", PASSED, 0.1)]) == ""


def test_a_deadline_counts_down() -> None:
    time = [100.0]
    deadline = Deadline(10, clock=lambda: time[0])
    time[0] = 104.0
    assert deadline.left() == 6.0
    deadline.check("the end")
    time[0] = 111.0
    assert deadline.left() == 0.0
    with pytest.raises(Late, match="not within 10 s: the end"):
        deadline.check("the end")


def test_every_required_scenario_exists_for_both_engines() -> None:
    both = ["submit", "nothing-left", "clean-on-ray", "cpu-only", "gpu", "gpu-absent", "wrong-input", "deleted",
            "kill-steps", "kill-rayjob", "kill-ray-head", "lost-pod", "transient", "out-of-memory", "policies", "demo",
            "unchanged", "left-after-deletion", "other-policy", "second-week"]  # fmt: skip
    expected = {f"{engine}-{name}" for engine in ("argo", "kfp") for name in both}
    expected |= {"argo-cron", "argo-two-at-once", "argo-resizing", "argo-retrainings", "images", "store", "controller"}
    expected |= {"kfp-recurring", "kfp-sdk", "kfp-sdk-recurring", "kfp-pages"}
    assert set(REGISTRY.scenarios) == expected | PREFLIGHT


PREFLIGHT = {"api", "pod-security", "secret", "images", "store", "dataset", "argo", "controller", "kuberay", "resizing",
             "kfp", "gpus"}  # fmt: skip


def test_measured_scenarios_run_alone() -> None:
    alone = {name for name, scenario in REGISTRY.scenarios.items() if scenario.alone}
    measured = {"argo-demo", "argo-unchanged", "argo-resizing", "kfp-demo", "kfp-unchanged"}
    assert alone == measured | {"argo-other-policy", "kfp-other-policy"}  # which changes the cluster
    assert {name for name, scenario in REGISTRY.scenarios.items() if scenario.preflight} == PREFLIGHT


def test_cluster_of_the_tests_has_its_own_workspace_and_limits() -> None:
    images = {"cpu": IMAGE, "ray": IMAGE, "gpu": IMAGE}
    cluster = clusters.parse_cluster({"images": images, "steps": {"train": {"memory": "64Gi", "shm": "8Gi"}}})
    adapted = for_tests(cluster, "abc123", full_pods=False)
    assert adapted.storage.workspace == f"{cluster.storage.workspace}/e2e-abc123"
    assert adapted.argo.mutex != cluster.argo.mutex and adapted.labels == {"imagemill.io/e2e": "abc123"}
    assert (adapted.steps["train"].memory, adapted.steps["train"].shm, adapted.steps["clean"].cpu) == (
        "3Gi",
        "256Mi",
        "500m",
    )
    assert adapted.steps["promote"].memory == "1Gi" and adapted.ray.mode == cluster.ray.mode
    assert with_rayjob(adapted).ray.workers.minimum == 1 and in_pods(with_rayjob(adapted)).ray.mode == "pod"
    assert for_tests(cluster, "abc123", full_pods=True).steps == cluster.steps
    assert clusters.parse_cluster_json(adapted.to_json()) == adapted
    assert [pod.gpu for pod in adapted.steps.values()].count(1) == 2
    assert not any(pod.gpu for pod in without_gpus(adapted).steps.values())


def test_a_cluster_without_digests_or_with_a_folder_is_refused() -> None:
    with pytest.raises(UserError, match="image by its digest"):
        for_tests(clusters.parse_cluster({}), "abc123", full_pods=False)
    with pytest.raises(UserError, match="s3://bucket/prefix"):
        for_tests(clusters.parse_cluster({"storage": {"workspace": "/data"}}), "abc123", full_pods=False)


def test_missing_kubeconfig_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert command.run(Options(suffix="abc123")) == 2
    assert "KUBECONFIG is not set" in capsys.readouterr().err


def test_list_needs_no_cluster(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert command.main(["--list", "--only", "argo-cron"]) == 0
    assert "argo-cron" in (listed := capsys.readouterr().out) and "kfp" not in listed
