"""Runs with nothing to do are recognized before a step starts; any change makes a run work."""

from __future__ import annotations

import builtins
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished

from imagemill.components.dataset.workspace import PRODUCTS, STEPS, Workspace
from imagemill.pipelines.argo import download as argo_download
from imagemill.pipelines.cluster.check_and_download import Records, find_cached_records
from imagemill.pipelines.parameters import RunParameters, resolve_parameters

RUN = "photos-again"


def make_parameters(finished: Finished, **flags: Any) -> RunParameters:
    """The parameters of the finished run, with other values for some."""
    words = [word for word in finished.arguments[1:] if word != "--json"]
    names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
    values = dict(zip(names, words[1::2], strict=True))
    return resolve_parameters(values | flags)


def find_cached(finished: Finished, **flags: Any) -> Records | None:
    return find_cached_records(make_parameters(finished, **flags), RUN, {})


def list_files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


def test_cached_records_are_found_without_writing(finished: Finished) -> None:
    before = list_files(finished.workspace)
    records = find_cached(finished)
    assert records is not None and tuple(records) == STEPS
    assert {record.state for record in records.values()} == {"cached"}
    for step, kind in PRODUCTS.items():
        assert records[step].uri.rpartition("/")[2] == finished.result.json[kind].rpartition("/")[2]
    assert records["evaluate"].metrics["macro_f1"] == finished.result.json["metrics"]["macro_f1"]
    assert records["promote"].metrics["report"].endswith(f"{finished.result.json['run']}/report.html")
    assert list_files(finished.workspace) == before


def test_cached_records_need_no_training_library(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pod's image has neither PyTorch nor Ray."""
    for name in ("torch", "torchvision", "timm", "ray", "sklearn", "cleanlab"):
        monkeypatch.setitem(sys.modules, name, None)
    assert find_cached(finished) is not None


def _delete_manifests(kind: str) -> Callable[[Finished], None]:
    def delete(finished: Finished) -> None:
        for manifest in finished.workspace.glob(f"{kind}/*/_manifest.json"):
            manifest.unlink()

    return delete


def _add_photo(finished: Finished) -> None:
    first = next(path for path in finished.photos.rglob("*") if path.is_file())
    shutil.copy(first, first.with_name(f"another{first.suffix}"))


def _promote_another(finished: Finished) -> None:
    log = finished.workspace / "names" / "photos" / "promotions"
    record = json.loads((log / "1.json").read_text())
    (log / "2.json").write_text(json.dumps(record | {"model": "model/0123456789abcdef"}))


def _delete_report(finished: Finished) -> None:
    for report in finished.workspace.glob("runs/*/report.html"):
        report.unlink()


CHANGES: dict[str, Callable[[Finished], None]] = {
    **{f"no {kind}": _delete_manifests(kind) for kind in PRODUCTS.values()},
    "another source": _add_photo, "another champion": _promote_another, "no report": _delete_report,
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_missing_or_changed_input_is_not_cached(finished: Finished, change: str) -> None:
    CHANGES[change](finished)
    assert find_cached(finished) is None


@pytest.mark.parametrize(
    "flags", [{"color": "gray"}, {"image_size": "40"}, {"epochs": "2"}, {"tta": "flip"}, {"min_gain": "0.2"},
              *({"rerun": step} for step in STEPS)], ids=str,
)  # fmt: skip
def test_another_parameter_is_not_cached(finished: Finished, flags: dict[str, str]) -> None:
    records = find_cached(finished, **flags)
    # The champion's own model is compared with nobody, so the gate's bar decides nothing.
    assert (records is None) == (flags != {"min_gain": "0.2"}), flags


def test_cached_run_starts_no_step(finished: Finished, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    original_import = builtins.__import__

    def refuse_kfp(name: str, *rest: Any, **more: Any) -> Any:
        assert name.partition(".")[0] != "kfp", "KFP was started"
        return original_import(name, *rest, **more)

    from imagemill.pipelines.cli import main as cli

    monkeypatch.setattr(builtins, "__import__", refuse_kfp)
    assert cli.main(finished.arguments) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {step["state"] for step in result["steps"].values()} == {"cached"} and len(result["steps"]) == len(STEPS)
    assert result["metrics"] == finished.result.json["metrics"]
    assert set(Workspace(str(finished.workspace)).step_records(result["run"])) == set(STEPS)


@pytest.mark.parametrize("change", ["", "no model"])
def test_first_pod_reports_whether_anything_changed(finished: Finished, change: str, tmp_path: Path) -> None:
    if change:
        CHANGES[change](finished)
    arguments = make_parameters(finished).arguments()
    words = [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]
    outputs = tmp_path / "outputs"
    assert argo_download.main([*words, f"--run={RUN}", f"--outputs={outputs}"]) == 0
    assert (outputs / "changed").read_text() == ("true" if change else "false")
    assert (outputs / "uri").read_text().rpartition("/")[2] == finished.result.json["raw"].rpartition("/")[2]
    records = Workspace(str(finished.workspace)).step_records(RUN)
    assert tuple(records) == (("download",) if change else STEPS)


def test_first_pod_refuses_invalid_parameters_of_later_steps(finished: Finished, tmp_path: Path) -> None:
    arguments = make_parameters(finished).arguments() | {"backbone": "resnet9000"}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in arguments.items()]
    with pytest.raises(SystemExit) as ended:
        argo_download.main([*words, f"--run={RUN}", f"--outputs={tmp_path / 'o'}"])
    record = Workspace(str(finished.workspace)).step_record(RUN, "download")
    assert ended.value.code == 2 and record and record.exit_code == 2 and "resnet9000" in record.error
