"""`imagemill gc` on the datasets of whole runs, and on a real S3 server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import downloading
import pytest
from histories import check_intact, datasets_of, files_of, make_week, paths_of

from imagemill.components.dataset.workspace import Workspace
from imagemill.components.storage import s3
from imagemill.components.storage.errors import TransientError, UserError
from imagemill.pipelines.cli.main import main

if TYPE_CHECKING:
    pass


def run_gc(workspace: Workspace, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["gc", "--workspace", workspace.uri, "--json", *flags]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def test_gc_on_s3(s3_workspace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = Workspace.open(s3_workspace)
    weeks = [make_week(workspace, week) for week in range(5)]
    source = downloading.write(tmp_path / "source", downloading.images(4))
    record = downloading.run(s3_workspace, source, tmp_path, "--name", "weekly")
    before = files_of(workspace)
    assert run_gc(workspace, capsys)["goes"] == [], "all is young"
    listed = run_gc(workspace, capsys, "--min-age", "0")
    assert files_of(workspace) == before
    deleted = run_gc(workspace, capsys, "--min-age", "0", "--delete")
    assert deleted == listed | {"deleted": True}
    after = files_of(workspace)
    assert after.items() < before.items() and len(before) - len(after) == deleted["totals"]["goes"]["files"]
    newest_week = [d for kind, d in weeks[4].items()]
    assert set(datasets_of(workspace)) == paths_of(*newest_week, downloading.dataset_of(record))
    assert not any(dataset.missing() for dataset in datasets_of(workspace).values())
    check_intact(workspace)
    assert downloading.run(s3_workspace, source, tmp_path, "--name", "weekly")["state"] == "cached"
    assert run_gc(workspace, capsys, "--min-age", "0")["goes"] == []


def test_many_objects_are_deleted_in_batches(s3_workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MAX_DELETED_KEYS", 7)
    store = Workspace.open(s3_workspace).store
    names = [f"{s3_workspace}/many/{number} é+&<.txt" for number in range(30)]
    for name in names:
        store.put(name, b"x")
    store.delete([*names[:-1], f"{s3_workspace}/many/none"])
    assert [entry.uri for entry in store.list(f"{s3_workspace}/many")] == names[-1:]
    store.delete([])


@pytest.mark.parametrize(
    ("codes", "error"), [(["AccessDenied"], UserError), (["SlowDown"] * 99, TransientError), (["SlowDown"], None)]
)
def test_keys_that_were_not_deleted_are_retried_or_reported(
    codes: list[str], error: type[Exception] | None, s3_workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to delete many succeeds also where some of the keys are left: its answer names them."""
    from imagemill.components.storage import errors

    monkeypatch.setattr(errors.with_retry, "__defaults__", (0.5,))
    store = s3.shared_s3()
    uris = [f"{s3_workspace}/{number}" for number in range(3)]
    for uri in uris:
        store.put(uri, b"x")
    delete_objects, requests = store._client.delete_objects, []

    def leave_one(**request: Any) -> dict[str, Any]:
        keys = [entry["Key"] for entry in request["Delete"]["Objects"]]
        requests.append(keys)
        code = codes[len(requests) - 1 : len(requests)]
        left = keys[-1:] if code else []
        request["Delete"]["Objects"] = [{"Key": key} for key in keys if key not in left]
        answer = delete_objects(**request) if request["Delete"]["Objects"] else {}
        return answer | {"Errors": [{"Key": key, "Code": code[0], "Message": ""} for key in left]}

    monkeypatch.setattr(store._client, "delete_objects", leave_one)
    if error:
        with pytest.raises(error, match=f"{uris[2]}: "):
            store.delete(uris)
        assert [entry.uri for entry in store.list(s3_workspace) if entry.uri in uris] == uris[2:]
    else:
        store.delete(uris)
        assert not [entry for entry in store.list(s3_workspace) if entry.uri in uris]
        assert requests[1:] == [requests[0][2:]]


def test_missing_permission_to_delete_is_a_user_error(
    s3_workspace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3.shared_s3.cache_clear()
    assert main(["gc", "--workspace", s3_workspace, "--delete"]) == 2
    assert "credentials" in capsys.readouterr().err
