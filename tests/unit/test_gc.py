"""`imagemill gc`: what it keeps and why, what goes, in which order, and what it never touches."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from histories import DAY, age, check_intact, datasets_of, files_of, make, make_week, paths_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagemill.components.dataset.garbage import find_garbage
from imagemill.components.dataset.manifest import KINDS
from imagemill.components.dataset.workspace import Workspace
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


def test_the_latest_of_each_name_stays(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    weeks = [make_week(workspace, week) for week in range(6)]
    other = make_week(workspace, 0, "other")
    age(workspace, 8)
    before = files_of(workspace)
    facts = gc(workspace, capsys)
    assert files_of(workspace) == before, "without --delete nothing is touched"
    assert set(kept_reasons(facts)) == paths_of(*weeks[5].values(), *other.values())
    raw = kept_reasons(facts)[paths_of(weeks[5]["raw"]).pop()]
    assert "the latest of weekly" in raw
    assert goes(facts) == {"parts/raw", "parts/clean"} | paths_of(*(d for week in weeks[:5] for d in week.values()))
    # Six datasets a week with a manifest, and all but raw a file; three weeks of parts and records, of two kinds.
    assert facts["deleted"] is False and facts["totals"]["goes"]["files"] == 5 * 11 + 2 * 2 * 3


def test_champions_are_kept(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The reigning one and the one before with all that they were made from, earlier ones without."""
    weeks = [make_week(workspace, week, promote=week < 3) for week in range(8)]
    age(workspace, 8)
    facts = gc(workspace, capsys, "--delete")
    remaining = set(datasets_of(workspace))
    assert remaining == paths_of(
        *(d for week in (1, 2, 7) for d in weeks[week].values()), weeks[0]["model"], weeks[0]["evaluation"]
    )
    for week, word in ((0, "an earlier"), (1, "the previous"), (2, "the")):
        (path,) = paths_of(weeks[week]["model"])
        assert f"{word} champion of weekly" in kept_reasons(facts)[path]
    check_intact(workspace)
    # After a rollback to the previous one, it reigns; the one that was taken back is none to return to.
    workspace.append_promotion("weekly", 4, replace(
        workspace.promotion("weekly", 2), rolled_back=[workspace.relative(weeks[2]["model"].uri)]
    ))  # fmt: skip
    age(workspace, 8)
    gc(workspace, capsys, "--delete")
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
    age(workspace, 8)
    facts = gc(workspace, capsys)
    assert set(kept_reasons(facts)) == paths_of(*weeks[0].values(), *weeks[2].values(), model, compared)
    assert f"needed by {paths_of(model).pop()}" in kept_reasons(facts)[paths_of(weeks[0]["model"]).pop()]
    assert kept_reasons(facts)[paths_of(compared).pop()] == ["of a kept model on kept images"]


def test_recent_files_are_kept(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    old, young, newest = (make_week(workspace, week)["raw"] for week in range(3))
    age(workspace, 8)
    age(workspace, 0.9, *paths_of(young))
    assert set(kept_reasons(gc(workspace, capsys))) >= paths_of(young)
    assert kept_reasons(gc(workspace, capsys))[paths_of(young).pop()] == ["young"]
    facts = gc(workspace, capsys, "--min-age", "12h")
    assert paths_of(old, young) <= goes(facts) and paths_of(newest) <= set(kept_reasons(facts))


def test_a_place_that_is_no_workspace_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "photo.jpg").write_bytes(b"x")
    assert main(["gc", "--workspace", str(tmp_path), "--delete", "--min-age", "0"]) == 2
    assert "--workspace: expected a workspace" in capsys.readouterr().err
    assert (tmp_path / "raw" / "photo.jpg").exists()


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"format": "imagemill", "version": 1, "kind": "raw"}'])
def test_unreadable_manifest_stops_the_deletion(
    data: bytes, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    for week in range(6):
        make_week(workspace, week)
    workspace.store.put(workspace.at("raw", "0" * 16, "_manifest.json"), data)
    age(workspace, 8)
    before = files_of(workspace)
    assert main(["gc", "--workspace", workspace.uri, "--delete"]) == 2
    assert f"raw/{'0' * 16}/_manifest.json" in (message := capsys.readouterr().err) and "restore or remove" in message
    assert files_of(workspace) == before


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (["--min-age", "1"], "--min-age"), (["--min-age", "d"], "--min-age"),
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


WEEK = 7 * DAY
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["week", "week", "week", "promote", "age", "gc"]),
        st.sampled_from(["a", "b"]),
        st.integers(0, 10**6),
    ),
    min_size=4, max_size=14,
)  # fmt: skip


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_kept_datasets_are_intact_after_any_history(history: list[tuple[str, str, int]]) -> None:
    check_history(history)


def check_history(history: list[tuple[str, str, int]]) -> None:
    """Assert that only listed garbage is deleted, kept datasets are intact, and a second run finds nothing."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(f"{folder}/mill")
        workspace.store.put(workspace.at("notes.txt"), b"mine")
        for week, (action, name, _) in enumerate([*history, ("gc", "a", 0)]):
            if action in ("week", "promote"):
                make_week(workspace, week, name, promote=action == "promote")
            elif action == "age":
                age(workspace, 8)
            else:
                before = files_of(workspace)
                garbage = find_garbage(workspace, WEEK, lambda _: None)
                garbage.delete(workspace, lambda _: None)
                after = files_of(workspace)
                assert after.items() <= before.items() and "notes.txt" in after
                assert len(before) - len(after) == sum(tally.files for tally in garbage.going.values())
                check_intact(workspace)
                assert set(datasets_of(workspace)) == set(garbage.reasons)
                assert not find_garbage(workspace, WEEK, lambda _: None).going
                latest = [workspace.latest_uri(n, kind) for n in "ab" for kind in KINDS]
                assert set(map(workspace.relative, filter(None, latest))) <= set(datasets_of(workspace))
