"""Slices of the raw shards, cleaned in this process or by processes of their own: the same files either way."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from cleaned import raw_dataset
from test_clean_rules import run_clean, toy_rows

from imagemill.components.clean import reuse
from imagemill.components.clean import slices as slicing
from imagemill.components.clean.config import CleanConfig
from imagemill.components.clean.labels import LabelRules
from imagemill.components.clean.reuse import clean_slices
from imagemill.components.clean.slices import CleanedSlice, RowRules, Slice
from imagemill.components.dataset.manifest import Dataset
from imagemill.components.step.progress import Progress
from imagemill.components.storage.errors import MillError

RULES = RowRules(CleanConfig.resolve(preset="ocr", clean_workers=2, rare_below=3), LabelRules({"a": 0, "b": 1}))


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice a row group, and never too little for processes."""
    monkeypatch.setattr(slicing, "SLICE_BYTES", 1)
    monkeypatch.setattr(reuse, "SLICE_BYTES", 1)


def raw_of(folder: Path) -> Dataset:
    return raw_dataset(folder, toy_rows(), shards=6)


def test_slices_cover_every_row_group_once_and_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_of(tmp_path)
    slices = slicing.plan_slices(raw)
    assert [(part.first, part.last) for part in slices] == [(0, 1)] * 6
    assert sum(part.rows for part in slices) == raw.manifest.totals.rows
    path = raw.locate(raw.files()[0])
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=4, compression="none")
    sizes = [
        pq.ParquetFile(path).metadata.row_group(n).total_byte_size for n in range(pq.ParquetFile(path).num_row_groups)
    ]
    monkeypatch.setattr(slicing, "SLICE_BYTES", sizes[0] + sizes[1])
    first = [part for part in slicing.plan_slices(raw) if part.file == raw.files()[0]]
    assert len(first) > 1 and [part.first for part in first[1:]] == [part.last for part in first[:-1]]
    assert first[-1].last == len(sizes) and sum(part.rows for part in first) == table.num_rows
    assert all(part.bytes <= sizes[0] + sizes[1] or part.last - part.first == 1 for part in first)
    assert len({part.key for part in slicing.plan_slices(raw)}) == len(slicing.plan_slices(raw))


@pytest.mark.parametrize(
    "options", [{"workers": 2}, {"workers": 3}, {"executor": "threads"}, {"executor": "processes"}]
)
def test_every_executor_gives_the_same_dataset(options: dict[str, Any], tmp_path: Path, small_slices: None) -> None:
    expected = run_clean(tmp_path / "plain", raw_of(tmp_path / "plain"), workers=1)
    threads_before = threading.active_count()
    dataset = run_clean(tmp_path / "other", raw_of(tmp_path / "other"), **options)
    assert dataset.fingerprint == expected.fingerprint and dataset.manifest.totals == expected.manifest.totals
    assert dataset.manifest.files == expected.manifest.files
    assert threading.active_count() <= threads_before + 1


@pytest.mark.parametrize(
    ("options", "slices", "workers", "kind"),
    [
        ({}, 3, 2, "processes"),
        ({}, 1, 8, "threads"),
        ({}, 3, 1, "threads"),
        ({"executor": "threads"}, 3, 2, "threads"),
        ({"executor": "processes"}, 1, 1, "processes"),
        ({"executor": "ray"}, 1, 1, "ray"),
        ({"ray_address": "ray://head:10001"}, 1, 1, "ray"),
        ({"ray_address": "http://head:8265"}, 3, 2, "processes"),  # takes jobs only, and those are resize's
    ],
)
def test_the_executor_is_chosen_by_the_work_and_the_address(
    options: dict[str, Any], slices: int, workers: int, kind: str, tmp_path: Path, small_slices: None
) -> None:
    parts = slicing.plan_slices(raw_of(tmp_path))[:slices]
    assert reuse._choose_executor(CleanConfig(**options), parts, workers) == kind


def test_without_ray_processes_clean(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ray is missing in the image of clean's containers, where the same options are meant for resize."""
    monkeypatch.setattr(reuse, "find_spec", {"ray": None}.get)
    assert reuse._choose_executor(CleanConfig(executor="ray"), [], 2) == "processes"
    assert "Ray is not installed here" in capsys.readouterr().err


def clean(raw: Dataset, folder: Path, rules: RowRules = RULES) -> tuple[list[tuple[Slice, CleanedSlice]], Progress]:
    progress = Progress("clean", total=raw.manifest.totals.rows)
    parts = clean_slices(raw, slicing.plan_slices(raw), str(folder / "clean" / "00"), rules, progress)
    return list(parts), progress


def test_progress_counts_rows_of_worker_processes(tmp_path: Path, small_slices: None) -> None:
    raw = raw_of(tmp_path)
    parts, progress = clean(raw, tmp_path)
    assert sorted(part.key for part, _ in parts) == sorted(part.key for part in slicing.plan_slices(raw))
    assert progress.done == raw.manifest.totals.rows


def test_error_in_a_worker_process_is_raised_by_the_step(tmp_path: Path, small_slices: None) -> None:
    raw = raw_of(tmp_path)
    slices = slicing.plan_slices(raw)
    Path(raw.locate(raw.files()[-1])).write_bytes(b"PAR1, or so")
    progress = Progress("clean")
    with pytest.raises(MillError, match="expected a Parquet file") as error:
        list(clean_slices(raw, slices, str(tmp_path / "clean" / "00"), RULES, progress))
    assert error.value.exit_code == 1


def test_unexpected_error_in_a_worker_process_is_internal(tmp_path: Path, small_slices: None) -> None:
    raw = raw_of(tmp_path)
    broken = dataclasses.replace(RULES, labels=LabelRules({"a": 0, "b": 1}, separator=5))  # type: ignore[arg-type]
    with pytest.raises(MillError, match="internal error") as error:
        clean(raw, tmp_path, broken)
    assert error.value.exit_code == 1


def list_children() -> set[int]:
    """The processes that this one has started, by /proc."""
    pids = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            pids.add(int(path.parent.name))
    return pids


def test_only_the_slice_of_a_killed_process_is_repeated(
    tmp_path: Path, small_slices: None, capfd: pytest.CaptureFixture[str]
) -> None:
    raw, before = raw_of(tmp_path), list_children()
    expected, _ = clean(raw, tmp_path)
    capfd.readouterr()
    killed: list[int] = []

    def kill() -> None:
        while not (new := list_children() - before):
            time.sleep(0.01)
        killed.append(min(new))
        os.kill(killed[0], signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    parts, _ = clean(raw, tmp_path)
    assert killed and list_children() <= before
    assert {part.key: result for part, result in parts} == {part.key: result for part, result in expected}
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "done again" in line]
    assert "[clean] its process was killed by SIGKILL (perhaps memory ran out)" in line
    assert any(part.key in line for part in slicing.plan_slices(raw)) and "attempt 2 of 20" in line


def test_worker_processes_end_with_the_generator(tmp_path: Path, small_slices: None) -> None:
    raw, before = raw_of(tmp_path), list_children()
    results: Any = clean_slices(raw, slicing.plan_slices(raw), str(tmp_path / "clean" / "00"), RULES, Progress("clean"))
    next(results)
    assert list_children() - before
    results.close()
    assert list_children() <= before
