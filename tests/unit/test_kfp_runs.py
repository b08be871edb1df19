"""`imagemill runs` by KFP's own client against a server that speaks its API."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import kfp_commands
import pytest
import yaml
from kfp_commands import Commands, commands, compiled_once, record, script
from kfp_state import KfpService
from packages import documents

from imagemill.components.dataset.manifest import code_version
from imagemill.components.dataset.records import StepRecord
from imagemill.pipelines.kfp.uploads import read_package
from imagemill.pipelines.parameters import FORM_PARAMETERS, format_form_value, list_form_parameters

mill, records = kfp_commands.mill, kfp_commands.records


def test_only_runs_of_imagemill_are_listed_newest_first(mill: Commands, records: dict[str, StepRecord]) -> None:
    """A pipeline of somebody else's is told by the name that it was compiled with."""
    gate = {"verdict": "kept", "promoted": False, "report": ""}
    records |= {"evaluate": record("evaluate", metrics={"macro_f1": 0.91}), "promote": record("promote", metrics=gate)}
    assert mill("submit", "--pipeline-name", "another", "--no-wait").code == 0
    mill.service.versions[0] |= {"pipeline_spec": {"pipelineInfo": {"name": "somebody-elses"}}}
    mill.service.scripts = [script(), script(last="FAILED"), [("RUNNING", {"train": "RUNNING"})]]
    for _ in range(3):
        mill("submit", "--no-wait")
    for run in mill.service.runs[1:]:
        mill("runs", run["run_id"], *(["--follow"] if run is not mill.service.runs[3] else []))
    lines = mill("runs").out.splitlines()
    states = [line.split()[1] for line in lines[1:]]
    assert lines[0].split()[0] == "run" and states == ["running", "failed", "succeeded"]
    assert "0.910" in lines[3] and "kept" in lines[3]
    assert mill.service.runs[3]["run_id"] in lines[1]
    parsed = [json.loads(line) for line in mill("runs", "--last", "1", "--json").out.splitlines()]
    assert [entry["run"] for entry in parsed] == [mill.service.runs[3]["run_id"]]
    assert mill("runs", "--last", "0").code == 2 and mill("runs", "--follow").code == 2
    assert "no runs of nothing" in mill("runs", "--pipeline-name", "nothing").out


def test_many_runs_come_in_pages(mill: Commands) -> None:
    mill("submit", "--no-wait")
    first = mill.service.runs[0]
    mill.service.runs += [
        first | {"run_id": f"other-{i}", "created_at": f"2027-01-01T00:{i // 60:02}:{i % 60:02}Z",
                 "pipeline_version_reference": {"pipeline_id": "other"}} for i in range(230)
    ]  # fmt: skip
    assert [json.loads(line)["run"] for line in mill("runs", "--json").out.splitlines()] == [first["run_id"]]
    assert mill.service.asked("GET", "/runs$") == 1 + 3  # one to know its namesakes, three pages


def test_a_run_whose_version_was_deleted_is_shown_without_its_results(
    mill: Commands, records: dict[str, StepRecord]
) -> None:
    """Without a workspace among its parameters only its version says where its records are."""
    records["evaluate"] = record("evaluate", metrics={"macro_f1": 0.91})
    mill.service.scripts = [script()]
    assert mill("submit").code == 0
    run = mill.service.runs[0]["run_id"]
    assert "0.910" in mill("runs").out
    mill.service.versions.clear()
    listed = mill("runs")
    assert listed.code == 0 and "succeeded" in listed.out and "0.910" not in listed.out
    details = mill("runs", run)
    assert details.code == 0 and "the run doesn't say its workspace" in details.err
    followed = mill("runs", run, "--follow", "--json")
    assert followed.code == 0 and followed.json["status"] == "succeeded"


def test_a_service_that_fails_after_the_runs_end_leaves_its_result(
    mill: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagemill.pipelines.kfp.client.RETRY_S", 0.1)
    mill.service.scripts = [script()]
    mill.service.fail("503", 1000, "GET", "/versions/")
    result = mill("submit", "--json")
    assert result.code == 0 and result.json["status"] == "succeeded"
    assert "the run's workspace can't be found" in result.err and "answers 503" in result.err
    listed = mill("runs")
    assert listed.code == 0 and "succeeded" in listed.out


def test_run_is_shown_step_by_step(mill: Commands, records: dict[str, StepRecord]) -> None:
    records |= {"download": record("download", state="cached"), "clean": record("clean", exit_code=75, error="gone")}
    mill.service.scripts = [script("download", "clean", last="FAILED")]
    mill("submit", "--no-wait")
    run = mill.service.runs[0]["run_id"]
    mill("runs", run, "--follow")
    result = mill("runs", run)
    assert result.code == 0 and "download  succeeded, cached" in result.out and "gone" in result.out
    assert mill("runs", run, "--json").json["tasks"]["clean"]["state"] == "FAILED"
    assert mill("runs", run, "--follow").code == 75
    missing = mill("runs", "no-such-run")
    assert missing.code == 2 and "RUN_ID: expected a run that there is, found 'no-such-run'" in missing.err


def test_the_namespace_of_a_profile_comes_from_the_clusters_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = tmp_path / "profile.yaml"
    cluster.write_text("namespace: team\nimages: {tags_allowed: true}\n")
    with commands(tmp_path, monkeypatch, capsys, KfpService(multi_user=True)) as mill:
        submitted = mill("submit", "--no-wait", "--namespace", "team", "--json").json
        for words in (("runs",), ("schedule", "--list")):
            assert mill(*words, "--cluster", str(cluster)).code == 0
        assert [json.loads(mill("runs", "--cluster", str(cluster), "--json").out)["run"]] == [submitted["run"]]
        assert mill("runs", "--cluster", str(cluster), "--namespace", "other").out.startswith("no runs of")
        assert mill("runs", "--cluster", str(tmp_path / "none.yaml")).code == 2


# The pipeline's versions in KFP: what they are called, and the table of parameters that describes them.


def test_version_is_named_by_release_date_and_content(mill: Commands) -> None:
    result = mill("submit", "--no-wait")
    assert result.code == 0, result.err
    (version,) = mill.service.versions
    sha256 = hashlib.sha256(compiled_once().read_bytes()).hexdigest()
    version_name = rf"{re.escape(code_version())} · 20\d\d-\d\d-\d\d \d\d:\d\d · {sha256[:6]}"
    assert re.fullmatch(version_name, version["display_name"])
    assert f"version {version['display_name']}\n" in result.err
    assert version["name"] == f"{code_version()}-{sha256[:16]}"
    assert re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", version["name"])  # what KFP asks for, with its store in CRDs
    summary, _, header, line, *rows = version["description"].splitlines()
    assert summary.startswith("Labeled images in, a better classifier out (") and sha256[:16] in summary
    assert header == "| parameter | meaning | default | choices |" and line == "|---|---|---|---|"
    table = {cells[0]: cells[1:] for cells in (cells_of(row) for row in rows)}
    assert list(table) == [*FORM_PARAMETERS, "config"]
    for name, parameter in list_form_parameters().items():
        default = "s3://mill/work" if name == "workspace" else format_form_value(parameter.default)
        assert table[name] == [parameter.help, default, ", ".join(parameter.choices)]
    assert len(quote(version["description"])) < 7_000  # it is a part of a URL, of which proxies take 8 kB


def cells_of(row: str) -> list[str]:
    """The cells of a row of a Markdown table, as they are shown."""
    return [re.sub(r"\\(.)", r"\1", cell).strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def test_a_long_default_is_cut_in_the_description(tmp_path: Path) -> None:
    config = json.dumps({"clean": {"other_class": "x|" * 5_000}})
    (tmp_path / "p.yaml").write_text(
        compiled_once().read_text().replace("defaultValue: ''", f"defaultValue: {config!r}")
    )
    described = read_package(tmp_path / "p.yaml").description
    assert len(quote(described)) < 9_000
    assert {len(cells_of(row)) for row in described.splitlines()[2:]} == {4}


def test_a_package_of_an_older_imagemill_has_a_name_too(tmp_path: Path) -> None:
    spec, platform = documents(compiled_once())
    del spec["pipelineInfo"]["description"]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump_all([spec, platform]))
    package = read_package(tmp_path / "p.yaml")
    sha256 = hashlib.sha256((tmp_path / "p.yaml").read_bytes()).hexdigest()
    assert package.version_name == sha256[:16]
    assert package.display_name(datetime(2026, 11, 22, 14, 5, tzinfo=UTC)) == f"2026-11-22 14:05 · {sha256[:6]}"
