"""The pipeline's versions in KFP: what they are called, and the table of parameters that describes them."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import kfp_commands
import yaml
from kfp_commands import Commands, compiled_once
from packages import documents

from imagemill.components.dataset.manifest import code_version
from imagemill.pipelines.kfp.uploads import read_package
from imagemill.pipelines.parameters import FORM_PARAMETERS, format_form_value, list_form_parameters

mill = kfp_commands.mill


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
    assert summary.startswith("Labelled images in, a better classifier out (") and sha256[:16] in summary
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
