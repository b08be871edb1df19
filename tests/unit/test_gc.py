"""`imagemill gc`: what it keeps and why, what goes, in which order, and what it never touches."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from histories import age, check_intact, datasets_of, files_of, make, make_week, paths_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagemill.components.dataset import garbage as garbage_module
from imagemill.components.dataset.garbage import find_garbage
from imagemill.components.dataset.leases import DeleteLease
from imagemill.components.dataset.manifest import KINDS, Dataset
from imagemill.components.dataset.records import StepRecord
from imagemill.components.dataset.retention import Policy
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.storage.errors import TransientError
from imagemill.components.storage.store import LocalStore
from imagemill.pipelines.cli.gc import parse_age
from imagemill.pipelines.cli.main import main


def gc(workspace: Workspace, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["gc", "--workspace", workspace.uri, "--json", *flags]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def kept_reasons(facts: dict[str, Any]) -> dict[str, list[str]]:
    return {f"{entry['kind']}/{entry['fingerprint']}": entry["why"] for entry in facts["kept"]}


def goes(facts: dict[str, Any]) -> set[str]:
    return {entry["path"] for entry in facts["goes"]}


def test_the_latest_and_the_last_of_each_name_stay(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    weeks = [make_week(workspace, week) for week in range(6)]
    other = make_week(workspace, 0, "other")
    age(workspace, 2)
    before = files_of(workspace)
    facts = gc(workspace, capsys)
    assert files_of(workspace) == before, "without --delete nothing is touched"
    staying = [d for datasets in (*weeks[3:], other) for d in datasets.values()]
    assert set(kept_reasons(facts)) == paths_of(*staying)
    raw = kept_reasons(facts)[paths_of(weeks[5]["raw"]).pop()]
    assert raw == ["the latest of weekly", "of the last 3 of weekly"]
    assert goes(facts) == paths_of(*(d for datasets in weeks[:3] for d in datasets.values())) | {
        "raw/_shards", "clean/_shards"
    }  # fmt: skip
    assert facts["deleted"] is False and facts["totals"]["goes"]["files"] == 3 * 11 + 2


def test_listed_garbage_is_deleted_and_kept_datasets_stay_intact(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    for week in range(6):
        make_week(workspace, week, promote=week == 1)
    workspace.store.put(workspace.at("names", "weekly", "latest", "listing.parquet"), b"no JSON")
    age(workspace, 2)
    listed, deleted = gc(workspace, capsys), gc(workspace, capsys, "--delete")
    assert deleted == listed | {"deleted": True}
    check_intact(workspace)
    assert set(datasets_of(workspace)) == set(kept_reasons(listed))
    folders = {f"{kind}/{path.name}" for kind in KINDS for path in Path(workspace.uri, kind).iterdir()}
    assert folders == {"raw/_shards", "clean/_shards"} | kept_reasons(listed).keys(), "no empty folder is left"
    second = gc(workspace, capsys, "--delete")
    assert second["goes"] == [] and kept_reasons(second) == kept_reasons(listed)


def test_champions_are_kept(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The reigning one and the one before with all that they were made from, earlier ones without."""
    weeks = [make_week(workspace, week, promote=week < 3) for week in range(8)]
    age(workspace, 2)
    facts = gc(workspace, capsys, "--keep-last", "1", "--delete")
    remaining = set(datasets_of(workspace))
    assert remaining == paths_of(
        *(d for week in (1, 2, 7) for d in weeks[week].values()), weeks[0]["model"], weeks[0]["evaluation"]
    )
    for week, word in ((0, "an earlier"), (1, "the previous"), (2, "the")):
        (path,) = paths_of(weeks[week]["model"])
        assert kept_reasons(facts)[path] == [f"{word} champion of weekly"]
    check_intact(workspace)
    # After a rollback to the previous one, it reigns; the one that was taken back is none to return to.
    workspace.append_promotion("weekly", 4, replace(
        workspace.promotion("weekly", 2), rolled_back=[workspace.relative(weeks[2]["model"].uri)]
    ))  # fmt: skip
    age(workspace, 2)
    gc(workspace, capsys, "--keep-last", "1", "--delete")
    deleted_paths = paths_of(*(weeks[2][kind] for kind in ("raw", "clean", "tensors", "features")))
    assert set(datasets_of(workspace)) == remaining - deleted_paths


def test_ancestors_of_kept_datasets_are_kept(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The model that a training started from and evaluations of kept models on kept datasets stay, too."""
    weeks = [make_week(workspace, week) for week in range(3)]
    start = {"model": workspace.relative(weeks[0]["model"].uri), "weights_sha256": "0" * 64, "promotion": 1}
    model = make(workspace, "model", 9, [weeks[2]["tensors"]], start=start)
    workspace.note_latest("weekly", model, "r")
    compared = make(workspace, "evaluation", -1, [weeks[0]["model"], weeks[2]["clean"]])
    make(workspace, "evaluation", -2, [weeks[1]["model"], weeks[2]["clean"]])
    age(workspace, 2)
    facts = gc(workspace, capsys, "--keep-last", "1")
    assert set(kept_reasons(facts)) == paths_of(*weeks[0].values(), *weeks[2].values(), model, compared)
    assert kept_reasons(facts)[paths_of(weeks[0]["model"]).pop()] == [f"{paths_of(model).pop()} was made from it"]
    assert kept_reasons(facts)[paths_of(compared).pop()] == ["of a kept model on kept images"]


def test_recent_files_are_kept(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    old, young, newest = (make_week(workspace, week)["raw"] for week in range(3))
    age(workspace, 2)
    age(workspace, 0.9, *paths_of(young))
    assert set(kept_reasons(gc(workspace, capsys, "--keep-last", "1"))) >= paths_of(young)
    assert kept_reasons(gc(workspace, capsys, "--keep-last", "1"))[paths_of(young).pop()] == ["young"]
    facts = gc(workspace, capsys, "--keep-last", "1", "--min-age", "12h")
    assert paths_of(old, young) <= goes(facts) and paths_of(newest) <= set(kept_reasons(facts))


def test_the_results_of_a_young_run_stay(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that went back to an old dataset, of which nothing else is new."""
    weeks = [make_week(workspace, week) for week in range(3)]
    age(workspace, 2)
    record = StepRecord(weeks[0]["evaluation"].uri, metrics={"champion_evaluation": weeks[1]["evaluation"].uri})
    workspace.write_step_record("again", "evaluate", record)
    facts = gc(workspace, capsys, "--keep-last", "1")
    assert set(kept_reasons(facts)) == set(datasets_of(workspace))
    assert kept_reasons(facts)[paths_of(weeks[0]["evaluation"]).pop()] == ["of the young run again"]
    age(workspace, 2, "runs")
    assert paths_of(*weeks[0].values()) <= goes(gc(workspace, capsys, "--keep-last", "1"))


def test_files_of_kept_datasets_are_kept_in_every_folder(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make(workspace, "tensors", 1, own=("a", "b", "c"))
    second = make(workspace, "tensors", 2, own=("d",), also=[(first, file) for file in first.manifest.files[:2]])
    workspace.note_latest("weekly", second, "r")
    age(workspace, 2)
    facts = gc(workspace, capsys, "--keep-last", "1", "--delete")
    assert goes(facts) == paths_of(first) and facts["totals"]["goes"]["files"] == 2  # its manifest, and c
    check_intact(workspace)
    assert [path for path in files_of(workspace) if path.startswith(paths_of(first).pop())] == [
        f"{paths_of(first).pop()}/{file.uri}" for file in sorted(first.manifest.files[:2], key=lambda f: f.uri)
    ]
    assert gc(workspace, capsys, "--keep-last", "1")["goes"] == []
    # When nothing lists them any more, they go.
    third = make(workspace, "tensors", 3)
    workspace.note_latest("weekly", third, "r")
    age(workspace, 2)
    gc(workspace, capsys, "--keep-last", "1", "--delete")
    assert set(datasets_of(workspace)) == paths_of(third)
    assert not [path for path in files_of(workspace) if path.startswith(paths_of(first).pop())]


def write_record(workspace: Workspace, pool: str, key: str, *files: str) -> str:
    """A record of work that names files of the pool, as clean's do."""
    data = [{"uri": file, "sha256": "0" * 64, "bytes": 1} for file in files]
    workspace.write_work_record(workspace.at(pool), key, {"data": data, "rejected": []})
    return f"{pool}/_work/{key}.json"


def test_work_records_are_deleted_with_their_files(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """All records of a sequence in raw are deleted; in clean those whose files are all deleted."""
    old, new = make_week(workspace, 0), make_week(workspace, 5)
    raw_going, raw_staying = (d["raw"].manifest.files[0].uri.rpartition("/")[2] for d in (old, new))
    going, staying = (d["clean"].manifest.files[1].uri.rpartition("/")[2] for d in (old, new))
    deleted_paths = {
        write_record(workspace, "raw/_shards", "old/000000", raw_staying),
        write_record(workspace, "raw/_shards", "old/000001", raw_going),
        write_record(workspace, "clean/_shards", "slices/one", going),
        write_record(workspace, "clean/_shards", "rewritten/two", going, "part-gone.parquet"),
    }
    remaining = {
        write_record(workspace, "raw/_shards", "new/000000", raw_staying),
        write_record(workspace, "clean/_shards", "slices/three", staying),
        write_record(workspace, "clean/_shards", "slices/four", staying, going),
        write_record(workspace, "clean/_shards", "slices/without"),
    }
    age(workspace, 2)
    gc(workspace, capsys, "--keep-last", "1", "--delete")
    files = set(files_of(workspace))
    assert not deleted_paths & files and remaining <= files
    assert not {f"raw/_shards/{raw_going}", f"clean/_shards/{going}"} & files
    check_intact(workspace)


def test_a_file_that_a_young_record_names_stays(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """Work that has gone on for longer than a day, of which only the last record is young."""
    old, _ = make_week(workspace, 0), make_week(workspace, 5)
    name = old["raw"].manifest.files[0].uri.rpartition("/")[2]
    first = write_record(workspace, "raw/_shards", "listing/000000", name)
    age(workspace, 2)
    write_record(workspace, "raw/_shards", "listing/000001")
    gc(workspace, capsys, "--keep-last", "1", "--delete")
    assert {first, f"raw/_shards/{name}"} <= set(files_of(workspace))
    assert not paths_of(old["raw"]) & set(datasets_of(workspace))


def test_leftovers_go(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    week = make_week(workspace, 1)
    model, clean, tensors = (workspace.relative(week[kind].uri) for kind in ("model", "clean", "tensors"))
    part = "part-0123456789abcdef.parquet"
    given_up, killed = "clean/00000000000000aa", "tensors/00000000000000bb"
    finished = [
        f"{model}/_work/checkpoint-a.safetensors", f"{tensors}/_work/runs/train/{part}",
        f"{tensors}/_work/backgrounds-0123456789abcdef.json", f"{clean}/_work/0123456789abcdef-0000.json",
        f"{clean}/data/train/{part}", f"{clean}/.{part}.0123456789ab.tmp", f"{clean}/_work/.scratch-x1/shard.parquet",
        "raw/_shards/_work/.scratch-x2/shard.parquet", "raw/_shards/_work/.scratch-x3/file.json",
    ]  # fmt: skip
    abandoned = [f"{given_up}/_work/0.json", f"{given_up}/data/train/{part}", "running/r.train.json"]
    going_on = [f"{killed}/_work/1.json", f"{killed}/data/test/{part}"]
    unknown = [
        "notes.txt", "exports/a/b.tar", f"{model}/README.md", f"{given_up}/mine.txt", "raw/readme", "clean/mine/file",
        "sources/mine.txt", "sources/odd.json", "raw/_shards/mine.parquet", "clean/_manifest.json",
    ]  # fmt: skip
    for file in (*finished, *abandoned, *going_on, *unknown):
        workspace.store.put(workspace.at(file), b"{}")
    age(workspace, 2)
    workspace.store.put(workspace.at(going_on[0]), b"{}")
    before = set(files_of(workspace))
    facts = gc(workspace, capsys, "--delete")
    assert before - set(files_of(workspace)) == {*finished, *abandoned}
    assert facts["unknown_files"] == sorted(unknown) and facts["totals"]["unknown"]["files"] == len(unknown)
    assert facts["totals"]["young"] == {"files": 2, "bytes": 4}
    check_intact(workspace)


def test_records_of_sources_go_with_their_raw_datasets(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = make_week(workspace, 0)["raw"], make_week(workspace, 5)["raw"]
    for key, raw in {"old": workspace.relative(old.uri), "new": workspace.relative(new.uri), "gone": "raw/00"}.items():
        workspace.add_source_record(key, {"raw": raw, "source": "x"})
    age(workspace, 2)
    gc(workspace, capsys, "--keep-last", "1", "--delete")
    assert [path for path in files_of(workspace) if path.startswith("sources/")] == ["sources/new.json"]


def test_an_empty_workspace_has_nothing(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", "--workspace", workspace.uri, "--delete"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "deleted 0 B in 0 files"


def test_a_place_that_is_no_workspace_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "photo.jpg").write_bytes(b"x")
    assert main(["gc", "--workspace", str(tmp_path), "--delete", "--min-age", "0"]) == 2
    assert "--workspace: expected a workspace" in capsys.readouterr().err
    assert (tmp_path / "raw" / "photo.jpg").exists()


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"format": "imagemill", "version": 2, "kind": "raw"}'])
def test_unreadable_manifest_stops_the_deletion(
    data: bytes, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    for week in range(6):
        make_week(workspace, week)
    workspace.store.put(workspace.at("raw", "0" * 16, "_manifest.json"), data)
    age(workspace, 2)
    before = files_of(workspace)
    assert main(["gc", "--workspace", workspace.uri, "--delete"]) == 2
    assert f"raw/{'0' * 16}/_manifest.json" in (message := capsys.readouterr().err) and "restore or remove" in message
    assert files_of(workspace) == before


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--keep-last", "0"], "--keep-last"), (["--keep-last", "-1"], "--keep-last"),
        (["--keep-last", "all"], "--keep-last"), (["--min-age", "1"], "--min-age"), (["--min-age", "d"], "--min-age"),
        (["--min-age", "-1d"], "--min-age"), (["--min-age", "1w"], "--min-age"),
    ],
)  # fmt: skip
def test_wrong_flags_are_refused(
    flags: list[str], field: str, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gc", "--workspace", workspace.uri, *flags]) == 2
    assert f"{field}: expected" in capsys.readouterr().err


def test_ages() -> None:
    assert [parse_age(text) for text in ("0", "90m", "36h", "7d")] == [0, 5400, 129_600, 604_800]


def test_text_lists_kept_and_deleted_datasets(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    weeks = [make_week(workspace, week) for week in range(3)]
    workspace.store.put(workspace.at("a\x1b[31m.txt"), b"1234")
    age(workspace, 2)
    assert main(["gc", "--workspace", workspace.uri, "--keep-last", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == workspace.uri and "kept:" in lines and "would go:" in lines
    (line,) = [line for line in lines if weeks[0]["clean"].fingerprint in line]
    assert line.split()[:4] == ["clean", "weekly", weeks[0]["clean"].fingerprint, "2026-09-01"]
    assert line.endswith("2 newer of weekly, nothing kept was made from it")
    assert "  a\\x1b[31m.txt" in lines
    assert lines[-1].startswith("would delete") and lines[-1].endswith("(--delete does it)")
    assert main(["gc", "--workspace", workspace.uri, "--keep-last", "2", "--delete"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == lines[-1].replace("would delete", "deleted").partition(" (")[0]


class Interrupted(Exception):
    """The process ends here."""


def check_order(workspace: Workspace) -> None:
    """No manifest names a file that is gone, no source a raw dataset that is, and no record of work outlives its
    files."""
    check_intact(workspace)
    files = files_of(workspace)
    for path in files:
        record = json.loads(workspace.store.read(workspace.at(path))) if path.endswith(".json") else {}
        if "/_work/" in path:
            named = [f"{path.partition('/_work/')[0]}/{file['uri']}" for file in record["data"]]
            assert set(named) <= files.keys() if path.startswith("raw/") else set(named) & files.keys(), path
        elif path.startswith("sources/"):
            assert f"{record['raw']}/_manifest.json" in files


def test_interrupted_deletion_leaves_no_dangling_references(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for week in range(4):
        datasets = make_week(workspace, week)
        for kind in ("raw", "clean"):
            names = [file.uri.rpartition("/")[2] for file in datasets[kind].manifest.files if "_shards" in file.uri]
            write_record(workspace, f"{kind}/_shards", f"{week}/0", *names)
        workspace.add_source_record(f"{week}", {"raw": workspace.relative(datasets["raw"].uri)})
    given_up = workspace.at("clean", "0" * 16)
    workspace.store.put(f"{given_up}/part-{'0' * 16}.parquet", b"1")
    write_record(workspace, f"clean/{'0' * 16}", "0", f"part-{'0' * 16}.parquet")
    age(workspace, 2)
    monkeypatch.setattr(garbage_module, "BATCH", 1)
    delete, interruptions = LocalStore.delete, 0

    def delete_and_end(store: LocalStore, uris: Any) -> None:
        delete(store, uris)
        raise Interrupted

    monkeypatch.setattr(LocalStore, "delete", delete_and_end)
    while True:
        try:
            assert main(["gc", "--workspace", workspace.uri, "--keep-last", "1", "--delete"]) == 0
            break
        except Interrupted:
            interruptions += 1
            check_order(workspace)
    assert interruptions > 20 and len(datasets_of(workspace)) == len(KINDS)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["week", "week", "week", "promote", "share", "age", "gc"]),
        st.sampled_from(["a", "b"]),
        st.integers(0, 10**6),
    ),
    min_size=4, max_size=14,
)  # fmt: skip


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.integers(1, 3))
def test_kept_datasets_are_intact_after_any_history(history: list[tuple[str, str, int]], keep_last: int) -> None:
    check_history(history, keep_last)


@pytest.mark.proof
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS, st.integers(1, 3))
def test_kept_datasets_are_intact_after_many_histories(history: list[tuple[str, str, int]], keep_last: int) -> None:
    check_history(history, keep_last)


def check_history(history: list[tuple[str, str, int]], keep_last: int) -> None:
    """Assert that only listed garbage is deleted, kept datasets are intact, and a second run finds nothing."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(f"{folder}/mill")
        workspace.store.put(workspace.at("notes.txt"), b"mine")
        tensors: list[Dataset] = []
        for week, (action, name, number) in enumerate([*history, ("gc", "a", 0)]):
            if action in ("week", "promote"):
                tensors.append(make_week(workspace, week, name, promote=action == "promote")["tensors"])
            elif action == "share" and tensors:
                other = tensors[number % len(tensors)]
                if not other.missing():
                    shared = make(workspace, "tensors", week, also=[(other, other.manifest.files[0])], name=name)
                    workspace.note_latest(name, shared, "r")
            elif action == "age":
                age(workspace, 2)
            else:
                before = files_of(workspace)
                with DeleteLease(workspace) as lease:
                    garbage = find_garbage(workspace, Policy(keep_last), lambda _: None)
                    garbage.delete(workspace, lease, lambda _: None)
                after = files_of(workspace)
                assert after.items() <= before.items() and "notes.txt" in after
                assert len(before) - len(after) == garbage.going.files
                check_intact(workspace)
                assert set(datasets_of(workspace)) == set(garbage.retention.reasons)
                assert not find_garbage(workspace, Policy(keep_last), lambda _: None).groups
                latest = [workspace.latest_uri(n, kind) for n in "ab" for kind in KINDS]
                assert set(map(workspace.relative, filter(None, latest))) <= set(datasets_of(workspace))


def test_nothing_is_deleted_after_the_lease_has_expired(workspace: Workspace) -> None:
    for week in range(6):
        make_week(workspace, week)
    age(workspace, 2)
    before = files_of(workspace)
    with DeleteLease(workspace) as lease:
        garbage = find_garbage(workspace, Policy(), lambda _: None)
        lease.renewed -= 31
        with pytest.raises(TransientError, match="stood still"):
            garbage.delete(workspace, lease, lambda _: None)
    assert files_of(workspace) == before


def test_a_model_of_another_workspace_is_no_reference(workspace: Workspace, tmp_path: Path) -> None:
    model = make(
        workspace,
        "model",
        0,
        start={"model": str(tmp_path / "other" / "model" / "00"), "weights_sha256": "", "promotion": 1},
    )
    garbage = find_garbage(workspace, Policy(), lambda _: None)
    (dataset,) = garbage.retention.datasets.values()
    assert set(garbage.retention.reasons) == paths_of(model) and dataset.references == ()


def test_broken_record_stops_the_deletion(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    make_week(workspace, 0)
    workspace.store.put(workspace.at("names", "weekly", "latest", "raw.json"), b"{")
    assert main(["gc", "--workspace", workspace.uri, "--delete"]) == 1
    assert "names/weekly/latest/raw.json: expected JSON" in capsys.readouterr().err
