"""Steps and `imagemill gc` at the same time: neither takes from the other what it needs."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import downloading
import mill
import pytest
from histories import age, check_intact, datasets_of, files_of, make_week, paths_of

from imagemill.components.dataset import leases
from imagemill.components.dataset.leases import (
    DeleteLease,
    Lease,
    RunningStep,
    hold_step_lease,
    list_running_steps,
)
from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.download import STEP, raw
from imagemill.components.storage.errors import TransientError
from imagemill.components.storage.store import LocalStore
from imagemill.pipelines.cli.main import main

DELETE = ["--delete", "--keep-last", "1"]


def leases_in(workspace: Workspace) -> list[str]:
    return [entry.uri.rpartition("/")[2] for entry in workspace.store.list(workspace.at("running"))]


@contextmanager
def step_in_thread(workspace: Workspace, source: Path, run: str) -> Iterator[list[int]]:
    """The download step beside this test; its exit code is in the list afterwards."""
    config = STEP.config.from_values(
        {"dataset": "folder", "source": str(source), "workspace": workspace.uri, "run": run, "name": "weekly"}
    )
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(STEP.execute(config)))
    thread.start()
    yield codes
    thread.join(60)
    assert not thread.is_alive()


def stop_before_commit(workspace: Workspace, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that was killed two days ago, when all shards were written: no manifest lists them."""

    def killed(*_: Any) -> None:
        raise TransientError("killed")

    monkeypatch.setattr(raw, "SHARD_BYTES", 4000)
    with monkeypatch.context() as patch:
        patch.setattr(raw, "commit", killed)
        with step_in_thread(workspace, source, "killed") as codes:
            pass
    assert codes == [75] and not leases_in(workspace)
    age(workspace, 2)
    assert len([path for path in files_of(workspace) if path.startswith("raw/_shards/_work/")]) == 4


@pytest.mark.parametrize("moment", ["between its look and its deletion", "after its deletion"])
def test_a_run_that_reuses_old_files_keeps_them(
    moment: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are old and listed by nobody; the run takes them over without writing one, and commits at that moment
    of the deletion."""
    source = downloading.write(tmp_path / "source", downloading.images(8))
    for week in range(3):
        make_week(workspace, week, "other")  # for something to go
    stop_before_commit(workspace, source, monkeypatch)
    reused, go_on, ended = threading.Event(), threading.Event(), threading.Event()
    commit, delete = raw.commit, LocalStore.delete

    def commit_later(*arguments: Any) -> Any:
        reused.set()
        assert go_on.wait(30)
        return commit(*arguments)

    def delete_later(store: LocalStore, uris: Any) -> None:
        if moment.startswith("between") and not go_on.is_set():
            go_on.set()
            mill.wait_until(lambda: any("again" in path for path in files_of(workspace)), "the run's record")
            assert ended.wait(30)
        delete(store, uris)

    monkeypatch.setattr(raw, "commit", commit_later)
    monkeypatch.setattr(LocalStore, "delete", delete_later)
    before = files_of(workspace)
    with step_in_thread(workspace, source, "again") as codes:
        assert reused.wait(30)
        assert {path for path in files_of(workspace) if path.endswith(".parquet")} <= before.keys()
        watcher = threading.Thread(target=lambda: (mill.wait_until(lambda: bool(codes), "the step"), ended.set()))
        watcher.start()
        assert main(["gc", "--workspace", workspace.uri, *DELETE]) == 0
        go_on.set()
    watcher.join()
    assert codes == [0]
    record = workspace.step_record("again", "download")
    assert record
    assert downloading.rows_of(downloading.dataset_of(record.to_dict())).keys() == downloading.images(8).keys()
    assert len(datasets_of(workspace)) < 3 * 5 and not leases_in(workspace)
    check_intact(workspace)


def test_a_step_that_begins_while_garbage_is_deleted_waits(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise it would use records and files that are about to be deleted."""
    source = downloading.write(tmp_path / "source", downloading.images(8))
    stop_before_commit(workspace, source, monkeypatch)
    monkeypatch.setattr(leases, "POLL_S", 0.01)
    delete, orders, deleting = LocalStore.delete, 0, threading.Event()
    asked: list[str] = []
    find = raw._find_known_dataset
    monkeypatch.setattr(raw, "_find_known_dataset", lambda *a: asked.append("look") or find(*a))  # type: ignore[func-returns-value]

    def delete_slowly(store: LocalStore, uris: Any) -> None:
        nonlocal orders
        deleting.set()
        mill.wait_until(lambda: "late.download.json" in leases_in(workspace), "the step's lease")
        time.sleep(0.3)
        assert not asked, "the step has begun"
        orders += 1
        delete(store, uris)

    monkeypatch.setattr(LocalStore, "delete", delete_slowly)

    def run_gc() -> None:
        assert main(["gc", "--workspace", workspace.uri, *DELETE]) == 0

    deleter = threading.Thread(target=run_gc)
    deleter.start()
    assert deleting.wait(60)  # not sooner: the deletion would wait for a step that it finds running
    with step_in_thread(workspace, source, "late") as codes:
        pass
    deleter.join()
    assert (codes, orders, asked) == ([0], 2, ["look"])
    assert "[download] waiting for `imagemill gc`" in capsys.readouterr().err
    check_intact(workspace)
    assert len(datasets_of(workspace)) == 1


def test_deleted_datasets_are_built_again(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Datasets that still exist are reused: a source that has its earlier content again."""
    monkeypatch.setattr(raw, "SHARD_BYTES", 4000)
    source = downloading.write(tmp_path / "source", downloading.images(8))
    first = downloading.run(workspace.uri, source, tmp_path, "--name", "weekly")
    other = downloading.write(tmp_path / "other", downloading.images(3))
    second = downloading.run(workspace.uri, other, tmp_path, "--name", "weekly")
    age(workspace, 2)
    assert main(["gc", "--workspace", workspace.uri, *DELETE]) == 0
    assert set(datasets_of(workspace)) == paths_of(downloading.dataset_of(second))
    assert len([path for path in files_of(workspace) if path.startswith("sources/")]) == 1
    assert downloading.run(workspace.uri, other, tmp_path, "--name", "weekly")["state"] == "cached"
    repeated = downloading.run(workspace.uri, source, tmp_path, "--name", "weekly")
    assert (repeated["state"], repeated["fingerprint"]) == ("ran", first["fingerprint"])
    check_intact(workspace)


def put_lease(workspace: Workspace, run: str, step: str, *uses: str) -> None:
    record = {"run": run, "step": step, "uses": [*uses]}
    workspace.store.put(workspace.at("running", f"{run}.{step}.json"), json.dumps(record).encode())


def list_garbage(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> set[str]:
    capsys.readouterr()
    assert main(["gc", "--workspace", workspace.uri, "--keep-last", "1", "--json"]) == 0
    return {entry["path"] for entry in json.loads(capsys.readouterr().out)["goes"]}


def test_datasets_that_a_running_step_may_use_are_kept(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its parents with theirs, and all of the kind that it makes; other old datasets go."""
    weeks = [make_week(workspace, week) for week in range(3)]
    age(workspace, 2)
    all_garbage = list_garbage(workspace, capsys)
    assert all_garbage >= paths_of(*weeks[0].values(), *weeks[1].values())
    put_lease(workspace, "weekly.2-x", "train", workspace.relative(weeks[0]["tensors"].uri))
    models = [week["model"] for week in weeks]
    used_paths = {path for path in all_garbage if path.startswith("features/")}  # a training makes both kinds
    used_paths |= paths_of(*models, *(weeks[0][kind] for kind in ("tensors", "clean", "raw", "evaluation")))
    assert list_garbage(workspace, capsys) == all_garbage - used_paths - {"raw/_shards", "clean/_shards"}
    assert main(["gc", "--workspace", workspace.uri, "--keep-last", "1"]) == 0
    assert "train of weekly.2-x is running (last sign of life 0 s ago): what is in model stays" in (
        capsys.readouterr().out
    )
    age(workspace, 0.9, "running")
    assert list_garbage(workspace, capsys) == all_garbage - used_paths - {"raw/_shards", "clean/_shards"}
    age(workspace, 1.1, "running")
    assert list_garbage(workspace, capsys) == all_garbage | {"running"}


def test_a_lease_older_than_the_steps_record_counts_no_more(workspace: Workspace) -> None:
    """Leases stay where steps may not delete files."""
    put_lease(workspace, "r1", "clean")
    put_lease(workspace, "r1", "train")
    age(workspace, 0.1, "running")
    renewed = [os.stat(workspace.at("running", f"r1.{step}.json")).st_mtime for step in ("clean", "train")]  # noqa: PTH116
    assert list_running_steps(workspace) == [
        RunningStep("r1", "clean", (), renewed[0]), RunningStep("r1", "train", (), renewed[1])
    ]  # fmt: skip
    workspace.write_step_record("r1", "clean", StepRecord())
    assert [lease.step for lease in list_running_steps(workspace)] == ["train"]
    put_lease(workspace, "r1", "clean")  # a retry
    assert [lease.step for lease in list_running_steps(workspace)] == ["clean", "train"]


def test_lease_names_the_inputs_and_is_removed_at_the_end(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[Any] = []

    def work(*_: Any) -> Any:
        running.extend(list_running_steps(workspace))
        raise TransientError("the store is away")

    source = downloading.write(tmp_path / "mill" / "photos", downloading.images(2))
    monkeypatch.setattr(raw, "download", work)
    monkeypatch.setenv("WORLD_SIZE", "1")
    record = downloading.run(workspace.uri, source, tmp_path, "--run", "r.1")
    assert record["exit_code"] == 75
    ((run, step, uses),) = [(lease.run, lease.step, lease.uses) for lease in running]
    assert (run, step, uses) == ("r.1", "download", ("photos",))
    assert leases_in(workspace) == []


@pytest.mark.parametrize(("old", "waits"), [(0.0, True), (1 / 24, False)])
def test_lease_of_a_killed_deletion_expires(
    old: float, waits: bool, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "DELETE_LEASE_S", 0.4)
    monkeypatch.setattr(leases, "POLL_S", 0.02)
    workspace.store.put(workspace.at("running", "gc-0123.json"), b"{}")
    age(workspace, old, "running")
    messages: list[str] = []
    started = time.monotonic()
    with hold_step_lease(workspace, "r", "clean", [], messages.append):
        seconds = time.monotonic() - started
    assert (seconds > 0.4, len(messages)) == (waits, int(waits))


def test_lease_is_renewed_despite_errors_of_the_store(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    put, fails = LocalStore.put, [False]

    def put_or_fail(store: LocalStore, uri: str, data: bytes) -> None:
        if fails[0]:
            fails[0] = False
            raise TransientError("the store is away")
        put(store, uri, data)

    monkeypatch.setattr(LocalStore, "put", put_or_fail)
    with Lease(workspace, "r.clean", {"run": "r"}, 0.02) as lease:
        (first,) = workspace.store.list(workspace.at("running"))
        renewed = lease.renewed
        fails[0] = True
        wait: Callable[[], bool] = lambda: not fails[0] and lease.renewed > renewed  # noqa: E731
        mill.wait_until(wait, "a renewal after the error")
        assert next(workspace.store.list(workspace.at("running"))).validator != first.validator
    assert leases_in(workspace) == []


def test_of_two_deletions_neither_ends_the_others_lease(workspace: Workspace) -> None:
    with DeleteLease(workspace):
        with DeleteLease(workspace):
            assert len(leases_in(workspace)) == 2
        assert len(leases_in(workspace)) == 1
