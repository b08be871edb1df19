"""Merged runs on S3: the tensors that a folder would hold, and nothing left beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mill
import pytest
from test_edges import resized, without_ray  # noqa: F401 (a fixture)
from test_runs import FILES, make_clean_files, merging  # noqa: F401 (a fixture)

from imagemill.components.resize import resize
from imagemill.components.storage.store import get_store


@pytest.mark.usefixtures("merging", "without_ray", "s3_environment")
def test_runs_on_s3(tmp_path: Path, s3_workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    real = resize.remove_merged_files

    def seen(uri: str) -> None:
        removed.extend(entry.uri for entry in get_store(uri).list(f"{uri}/_work/runs"))
        real(uri)

    here: Any = resized(make_clean_files(tmp_path, FILES))
    monkeypatch.setattr(resize, "remove_merged_files", seen)
    there = resized(make_clean_files(s3_workspace, FILES))
    assert mill.content(there) == mill.content(here)
    assert len(removed) > 5 and not list(get_store(there.uri).list(f"{there.uri}/_work/runs"))
