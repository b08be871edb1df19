"""Merged runs on S3: the same tensors as on disk, and no run left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mill
import pytest
from copied import resized, without_ray  # noqa: F401 (a fixture)
from test_runs import FILES, make_clean_files, merging  # noqa: F401 (a fixture)

from imagemill.components.resize import resize
from imagemill.components.storage.store import get_store


@pytest.mark.usefixtures("merging", "without_ray", "s3_environment")
def test_runs_on_s3(tmp_path: Path, s3_workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    remove_merged_files = resize.remove_merged_files

    def record_and_remove(uri: str) -> None:
        removed.extend(entry.uri for entry in get_store(uri).list(f"{uri}/_work/runs"))
        remove_merged_files(uri)

    local: Any = resized(make_clean_files(tmp_path, FILES))
    monkeypatch.setattr(resize, "remove_merged_files", record_and_remove)
    remote = resized(make_clean_files(s3_workspace, FILES))
    assert mill.content(remote) == mill.content(local)
    assert len(removed) > 5 and not list(get_store(remote.uri).list(f"{remote.uri}/_work/runs"))
