"""Merging of very many clean files before resize: the same tensors, whatever was merged or tried again."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import mill
import numpy as np
import photos
import pyarrow as pa
import pytest
from copied import resized, run_in_this_process, without_ray  # noqa: F401 (a fixture)
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.clean.schema import CLEAN
from imagemill.components.dataset.kinds import CleanExtra, CleanImage
from imagemill.components.dataset.manifest import Dataset, File, Manifest, Totals, commit, read_dataset
from imagemill.components.dataset.shards import Layout, ShardWriter, read_columns
from imagemill.components.resize import resize
from imagemill.components.resize import tasks as tasks_module
from imagemill.components.resize.plan import RowSlice, count_rows_read, index_files, locate_rows
from imagemill.components.resize.tasks import MergeTask, describe_merged, merge_sorted, rechunk, write_merged
from imagemill.components.resize.tensor_shards import read_rows
from imagemill.components.storage.errors import MillError

COLUMNS = ["image_id", "image.bytes", "label_id", "shuffle_index"]


@functools.cache
def encode_jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (12 + number % 5, 15, 3), dtype=np.uint8)
    return photos.saved(pixels, "JPEG")


def make_clean_files(folder: Path | str, files: dict[str, int], rows: int = 24, fingerprint: str = "01") -> Dataset:
    """Commit `files` clean files per split of up to `rows` rows each, in small row groups; some indices occur several
    times, within a file and between files."""
    uri, listed, totals = f"{folder}/clean/{fingerprint}", [], dict.fromkeys(files, 0)
    random = np.random.default_rng(0)
    for split, count in files.items():
        for file in range(count):
            file_rows = []
            for n in range(int(random.integers(1, rows + 1))):
                index = int(random.integers(0, 12)) if n % 4 == 0 else int(random.integers(0, 2**63 - 1))
                data = encode_jpeg(int(random.integers(0, 40)))
                file_rows.append({"image_id": f"{split}-{file:03d}-{n:03d}", "label_id": n % 2, "shuffle_index": index,
                              "image": {"bytes": data, "path": "x"}})  # fmt: skip
            with ShardWriter(uri, Layout(CLEAN, row_group_rows=5)) as writer:
                for row in sorted(file_rows, key=lambda r: (r["shuffle_index"], r["image_id"])):
                    writer.add(row, len(row["image"]["bytes"]))
                listed.append(writer.publish(f"data/{split}", "data", split))
            totals[split] += len(file_rows)
    number = sum(totals.values())
    total = Totals(number, 600 * number, by_split=totals, by_class={"a": number, "b": 0})
    manifest = Manifest(
        "clean", fingerprint, classes=("a", "b"), files=tuple(listed), totals=total,
        image=CleanImage("rgb", 3), extra=CleanExtra(dataset_name="x"),
    )  # fmt: skip
    return commit(uri, manifest)


@pytest.fixture
def merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limits, so that files are merged as for a million images; tensor files of 7 rows."""
    monkeypatch.setattr("imagemill.components.resize.plan.MAX_SHARD_ROWS", 7)
    monkeypatch.setattr(tasks_module, "MIN_BYTES_TO_MERGE", 0)
    monkeypatch.setattr(tasks_module, "MERGED_GROUP_BYTES", 3500)
    monkeypatch.setattr(tasks_module, "MERGED_FILE_BYTES", 9000)
    monkeypatch.setattr(tasks_module, "MIN_FAN_IN", 2)
    monkeypatch.setattr(tasks_module, "MAX_EXTRA_READ", 1e9)  # as many runs as the least fan-in gives
    monkeypatch.setattr(tasks_module, "MAX_READ_AMPLIFICATION", 1.2)
    for limit in ("TASK_ENCODED_BYTES", "MAX_TASK_ENCODED_BYTES"):
        monkeypatch.setattr(tasks_module, limit, 7 * 600 * 3)


def list_run_files(tensors: Dataset) -> list[Path]:
    return sorted(path for path in Path(tensors.uri, "_work", "runs").rglob("*") if path.is_file())


FILES = {"train": 13, "val": 5, "test": 1}


@pytest.fixture
def undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_ray: None) -> list[tuple[str, str, int, str]]:  # noqa: F811
    """Return the content of the tensors without a merge, one file per task."""
    with monkeypatch.context() as patch:
        patch.setattr("imagemill.components.resize.plan.MAX_SHARD_ROWS", 7)
        patch.setattr(tasks_module, "MAX_READ_AMPLIFICATION", 1e9)
        patch.setattr(tasks_module, "MIN_BYTES_TO_MERGE", 2**60)
        tensors = resized(make_clean_files(tmp_path / "plain", FILES))
    assert not Path(tensors.uri, "_work", "runs").exists()
    return mill.content(tensors)


@pytest.mark.usefixtures("merging", "without_ray")
def test_merging_gives_the_same_tensors(
    tmp_path: Path, undisturbed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[Any] = []

    def record_tasks(shards: Iterable[Any], *others: Any) -> Iterator[Any]:
        for job, result in run_in_this_process(shards, *others):
            tasks.append(job)
            yield job, result

    monkeypatch.setattr(resize, "run_tasks", record_tasks)
    tensors = resized(make_clean_files(tmp_path, FILES))
    merges = [task for task in tasks if isinstance(task, MergeTask)]
    levels = {task.key.split("-")[2] for task in merges}
    assert levels >= {"1", "2", "3"} and {task.split for task in merges} == {"train", "val"}
    assert max(len(files) for task in merges for files in task.inputs) > 1, "runs of several files are merged again"
    assert max(len(task.shards) for task in tasks if not isinstance(task, MergeTask)) > 1, "several files a task"
    assert mill.content(tensors) == undisturbed
    assert not list_run_files(tensors)


@pytest.mark.usefixtures("merging", "without_ray")
def test_retry_resumes_finished_merges(tmp_path: Path, undisturbed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed again and again, after every third result; between two tries a run is lost, and one is damaged."""
    finished_keys: list[str] = []

    class Killed(Exception):
        pass

    def fail_after_three(shards: Iterable[Any], *others: Any) -> Iterator[Any]:
        for number, (job, result) in enumerate(run_in_this_process(shards, *others)):
            if number == 3:
                raise Killed
            finished_keys.append(job.key if isinstance(job, MergeTask) else job.shards[0].key)
            yield job, result

    monkeypatch.setattr(resize, "run_tasks", fail_after_three)
    clean = make_clean_files(tmp_path, FILES)
    tries, lost = 0, 0
    while True:
        tries += 1
        try:
            tensors = resized(clean)
            break
        except Killed:
            assert tries < 100
        if tries in (2, 4):
            path = sorted(Path(clean.uri).parents[1].glob("tensors/*/_work/runs/*/*.parquet"))[0]
            path.unlink() if tries == 2 else path.write_bytes(b"PAR1 no more")
            lost += 1
    assert tries > 8 and mill.content(tensors) == undisturbed and not list_run_files(tensors)
    assert len(finished_keys) - len(set(finished_keys)) <= lost, "what was finished is not done again"


@pytest.mark.usefixtures("without_ray")
def test_small_datasets_are_never_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "MAX_READ_AMPLIFICATION", 0)
    tensors = resized(make_clean_files(tmp_path, FILES))
    assert not Path(tensors.uri, "_work", "runs").exists() and tensors.manifest.totals.rows > 100


@pytest.mark.usefixtures("merging", "without_ray")
def test_tensors_committed_by_another_run_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run commits while this one works, and removes the runs that it reads."""
    clean = make_clean_files(tmp_path, FILES)

    def run_after_another(shards: Iterable[Any], *others: Any) -> Iterator[Any]:
        todo = list(shards)
        if not isinstance(todo[0], MergeTask):
            monkeypatch.setattr(resize, "run_tasks", run_in_this_process)
            assert read_dataset(resized(clean).uri)
        yield from run_in_this_process(todo, *others)

    monkeypatch.setattr(resize, "run_tasks", run_after_another)
    tensors = resized(clean)
    assert tensors.manifest.totals.rows == clean.manifest.totals.rows and not list_run_files(tensors)


def test_rows_are_in_the_order_of_the_manifest(tmp_path: Path, merging: None, without_ray: None) -> None:  # noqa: F811
    clean = make_clean_files(tmp_path, FILES)
    index = {
        row["image_id"]: row["shuffle_index"]
        for table in read_columns(clean, "data", ["image_id", "shuffle_index"])
        for row in table.to_pylist()
    }
    tensors = resized(clean)
    for split in FILES:
        ids = [i for table in read_columns(tensors, "data", ["image_id"], split) for i in table["image_id"].to_pylist()]
        assert ids == sorted((i for i in index if i.startswith(split)), key=lambda i: (index[i], i))


@given(
    st.lists(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=4), min_size=1, max_size=5),
    st.integers(1, 400),
)
@settings(max_examples=60, deadline=None)
def test_merge_is_a_stable_order_by_index(inputs: list[list[list[int]]], group_bytes: int) -> None:
    """Any sequences of row groups, with copies of an index within and between them."""
    schema = pa.schema([("image_id", pa.string()), ("shuffle_index", pa.int64())])
    expected, sequences = [], []
    for number, groups in enumerate(inputs):
        ordered = iter(sorted(index for group in groups for index in group))
        tables = []
        for group, _ in enumerate(groups):
            rows = [
                {"image_id": f"{number}-{group}-{n}", "shuffle_index": next(ordered)} for n in range(len(groups[group]))
            ]
            expected += [(row["shuffle_index"], row["image_id"]) for row in rows]
            tables.append(pa.Table.from_pylist(rows, schema))
        if tables:
            sequences.append((tables[0], iter(tables[1:])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks_module, "MERGED_GROUP_BYTES", group_bytes)
        tables = list(rechunk(merge_sorted(sequences, schema)))
    merged = [(row["shuffle_index"], row["image_id"]) for table in tables for row in table.to_pylist()]
    assert sorted(merged) == sorted(expected) and [index for index, _ in merged] == sorted(index for index, _ in merged)
    assert all(table.num_rows for table in tables)


def test_merged_run_holds_the_rows_of_its_inputs(tmp_path: Path, merging: None) -> None:
    """By its own files: any part of it is read as from the inputs; other columns than those wanted are left out."""
    clean = make_clean_files(tmp_path, {"train": 9})
    sources = index_files(clean, "train")
    rows = sum(len(source.indices) for source in sources)
    inputs = tuple(tuple(source.locate(0, len(source.indices))) for source in sources)
    task = MergeTask("run", "train", rows, inputs, tuple(COLUMNS))
    record = json.loads(json.dumps(write_merged(task, str(tmp_path / "tensors" / "02"))))
    run = describe_merged(record, sources, str(tmp_path / "tensors" / "02"))
    assert len(run.uris) > 2 and len(run.starts) > 2 * len(run.uris)
    ends = run.indices[[0, 3, 10, len(run.indices) // 2, -2, -1]]
    ranges = np.array([(low, high) for low in ends for high in ends if low <= high], np.int64)
    for run_slices, source_slices in zip(locate_rows([run], ranges), locate_rows(sources, ranges), strict=True):
        assert read_rows(run_slices, COLUMNS) == read_rows(source_slices, COLUMNS)
    assert count_rows_read([run], ranges) < count_rows_read(sources, ranges)
    first = next(locate_rows([run], ranges))
    assert "width" not in read_rows(first, [*COLUMNS, "width"])[0]
    assert set(read_rows(first, [*COLUMNS, "image"])[0]["image"]) == {"bytes"}


def test_column_missing_in_some_files_is_null(tmp_path: Path) -> None:
    uri, listed = str(tmp_path / "clean" / "01"), []
    for number, columns in enumerate((COLUMNS[:1], ["image_id", "mask"])):
        fields = {"image_id": pa.string(), "mask": pa.binary(), "shuffle_index": pa.int64()}
        schema = pa.schema([(name, kind) for name, kind in fields.items() if name in [*columns, "shuffle_index"]])
        with ShardWriter(uri, Layout(schema)) as writer:
            writer.add({"image_id": str(number), "mask": b"m", "shuffle_index": 5 - number}, 1)
            listed.append(writer.publish("data", "data", "train"))
    task = MergeTask(
        "run", "train", 2, tuple((RowSlice(f"{uri}/{f.uri}", (0,), 0, 1),) for f in listed),
        ("image_id", "mask", "shuffle_index"),
    )  # fmt: skip
    record = write_merged(task, str(tmp_path / "tensors" / "02"))
    merged = Dataset(
        str(tmp_path / "tensors" / "02"), Manifest("tensors", "02", files=tuple(File(**f) for f in record["files"])), ""
    )
    rows = [row for table in read_columns(merged, "data", ["image_id", "mask"]) for row in table.to_pylist()]
    assert rows == [{"image_id": "1", "mask": b"m"}, {"image_id": "0", "mask": None}]


def test_missing_file_is_named(tmp_path: Path) -> None:
    task = MergeTask("run", "train", 2, ((RowSlice(str(tmp_path / "gone.parquet"), (0,), 0, 2),),), tuple(COLUMNS))
    with pytest.raises(MillError, match=r"gone\.parquet"):
        write_merged(task, str(tmp_path / "tensors" / "02"))


def test_run_of_other_rows_is_an_error(tmp_path: Path) -> None:
    sources = index_files(make_clean_files(tmp_path, {"train": 2}), "train")
    with pytest.raises(MillError, match="a merged run has"):
        describe_merged({"files": [{"uri": "x"}], "groups": [[1]]}, sources, "/x")
