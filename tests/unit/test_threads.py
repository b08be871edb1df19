"""Resizing in threads of this process: what is little is done there, and as Ray would do it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chain import clean_photos, resize_module, resized
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.resize.config import USUAL_SIZE, ResizeConfig
from imagemill.components.resize.threads import Threads, run_in_threads
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import UserError


@settings(max_examples=50, deadline=None)
@given(jobs=st.lists(st.integers(), max_size=40), threads=st.integers(1, 6))
def test_every_job_is_done_once_with_its_arguments(jobs: list[int], threads: int) -> None:
    def work(job: int, factor: int) -> dict[str, Any]:
        return {"product": job * factor}

    results = list(run_in_threads(jobs, work, (3,), Threads(threads)))
    assert sorted(job for job, _ in results) == sorted(jobs)
    assert all(result == {"product": 3 * job} for job, result in results)


def test_jobs_are_done_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=20)
    assert len(list(run_in_threads(range(3), lambda job: {"at": together.wait()}, (), Threads(3)))) == 3


def test_an_error_ends_the_work_and_begins_no_further_job() -> None:
    begun: list[int] = []

    def work(job: int) -> dict[str, Any]:
        begun.append(job)
        if job == 2:
            raise ValueError("the third")
        return {}

    with pytest.raises(ValueError, match="the third"):
        list(run_in_threads(range(100), work, (), Threads(1)))
    time.sleep(0.1)
    assert begun == [0, 1, 2]


def test_jobs_are_taken_as_threads_are_free() -> None:
    """However many there are, no more are taken than threads can work on."""
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for job in range(1000):
            taken.append(job)
            yield job

    results = run_in_threads(jobs(), lambda job: time.sleep(0.01) or {}, (), Threads(2))
    next(results)
    results.close()  # type: ignore[attr-defined]
    time.sleep(0.1)
    assert len(taken) < 10


def test_little_work_needs_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors are those that the jobs give one after the other."""

    def no_ray(*_: Any, **__: Any) -> Any:
        raise AssertionError("Ray was started")

    workspace = Workspace.open(str(tmp_path / "first"))
    clean = clean_photos(workspace)
    expected = resized(workspace, clean, image_size=24)
    monkeypatch.setattr(resize_module, "open_ray_session", no_ray)
    other = Workspace.open(str(tmp_path / "other"))
    clean = clean_photos(other)
    config = ResizeConfig.from_values({"workspace": other.uri, "clean": clean.uri, "image_size": 24})
    made = read_dataset(resize_module.resize(config, Context("resize", other, "r", False)).uri, "tensors")
    assert made.fingerprint == expected.fingerprint
    assert sorted(file.sha256 for file in made.manifest.files) == sorted(f.sha256 for f in expected.manifest.files)
    with pytest.raises(AssertionError, match="Ray was started"):
        asked = ResizeConfig.from_values({"workspace": other.uri, "clean": clean.uri, "executor": "ray"})
        resize_module.resize(asked, Context("resize", other, "r", False))


def test_copies_are_made_on_ray() -> None:
    with pytest.raises(UserError, match="executor: expected ray or auto for copies and for GPUs, found 'threads'"):
        ResizeConfig.from_values({"executor": "threads", "copies": 2})


@pytest.mark.parametrize(
    ("values", "recommended", "size"),
    [
        ({}, None, USUAL_SIZE),
        ({}, 64, 64),
        ({"image_size": 128}, 64, 128),
        ({"model_preset": "resnet18"}, 64, 224),
        ({"store_size": 140}, 64, USUAL_SIZE),
    ],
)
def test_the_size_is_what_is_asked_for_else_what_the_source_recommends(
    values: dict[str, Any], recommended: int | None, size: int
) -> None:
    config = ResizeConfig.from_values(values).for_images(recommended)
    assert config.image_size == size
    config.check()


def test_an_image_size_that_is_not_set_yet_does_not_count() -> None:
    assert ResizeConfig.from_values({}).fingerprint_values() == {}
    assert ResizeConfig.from_values({}).for_images(64).fingerprint_values() == {"image_size": 64}
