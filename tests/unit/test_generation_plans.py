"""Choice of the earlier tensors that are continued: same config, same choice in every process, limited additions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grown
import pytest
from copied import without_ray  # noqa: F401 (a fixture)
from grown import assert_equal, clean_of, content, decoded, from_nothing, generations, resized, several

from imagemill.components.dataset.manifest import Dataset, Manifest, find_intact_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.engine.ray_job import build_command
from imagemill.components.resize import STEP as RESIZE
from imagemill.components.resize import generations as generations_module
from imagemill.components.resize import plan, tasks
from imagemill.components.resize import resize as resize_module
from imagemill.components.resize import target as target_module
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.step.config import StepConfig
from imagemill.components.step.step import Context, Step

pytestmark = pytest.mark.usefixtures("small_shards")


@pytest.mark.parametrize(
    "change", ["size", "rerun", "damaged", "clean_gone", "clean_pixels", "name", "no_entries", "clean_file_gone"]
)
def test_tensors_that_cannot_be_continued_are_built(workspace: Workspace, change: str, tmp_path: Path) -> None:
    photos = several(40)
    clean = clean_of(workspace, photos)
    first = resized(clean)
    more = photos | several(2, "new")
    options: dict[str, Any] = {}
    if change == "size":
        options["image_size"] = 24
    elif change == "damaged":
        Path(first.locate(first.files()[0])).unlink()
    elif change == "clean_gone":
        shutil.rmtree(clean.uri)
    elif change == "clean_file_gone":
        for file in clean.files():
            Path(clean.locate(file)).unlink()
    elif change == "name":
        options["name"] = "other"
    elif change == "no_entries":  # as an older imagemill wrote it
        manifest = Path(first.uri) / "_manifest.json"
        manifest.write_text(manifest.read_text().replace('"shards"', '"parts"'))
    grown_clean = clean_of(workspace, more, **({"trim": "on"} if change == "clean_pixels" else {}))
    with decoded() as count:
        second = resized(grown_clean, rerun=change == "rerun", **options)
    assert count == [42] and generations(second) == {0: 42}
    assert set(content(second)) == set(more)


def test_many_added_rows_are_built_with_all_others(workspace: Workspace) -> None:
    photos = several(60)
    resized(clean_of(workspace, photos))
    photos |= several(12, "some")
    assert generations(resized(clean_of(workspace, photos))) == {0: 60, 1: 12}
    photos |= several(4, "more")
    third = resized(clean_of(workspace, photos))
    assert generations(third) == {0: 76}, "16 of 76 rows are more than a fifth"
    assert not any(file.uri.startswith("../") for file in third.files())


def test_a_fifth_is_not_too_many(workspace: Workspace) -> None:
    resized(clean_of(workspace, several(60)))
    assert generations(resized(clean_of(workspace, several(60) | several(15, "new")))) == {0: 60, 1: 15}


def test_tensors_with_many_generations_are_built_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "MAX_ADDED_GENERATIONS", 3)
    photos = several(60)
    num_generations = []
    for week in range(6):
        num_generations.append(len(generations(resized(clean_of(workspace, photos)))))
        photos |= several(1, f"week{week}-")
    assert num_generations == [1, 2, 3, 4, 1, 2]


def record_tasks(patch: pytest.MonkeyPatch, kill_after: int = 0) -> list[str]:
    """Return a list of the keys of resize's tasks, filled as they finish; KeyboardInterrupt after so many."""
    run_tasks, keys = resize_module.run_tasks, list[str]()

    def run_and_record(tasks: Any, *arguments: Any) -> Iterator[Any]:
        for result in run_tasks(tasks, *arguments):
            yield result
            keys.append(result[0].key)
            if len(keys) == kill_after:
                raise KeyboardInterrupt

    patch.setattr(resize_module, "run_tasks", run_and_record)
    return keys


def test_retry_uses_the_plan_of_the_first_attempt(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = several(60)
    first = resized(clean_of(workspace, photos))
    del photos["p003"], photos["p011"]
    grown_clean = clean_of(workspace, photos | several(9, "new"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        finished_keys = record_tasks(patch, kill_after=3)
        resized(grown_clean)
    other = resized(clean_of(workspace, several(50) | several(6, "strange")))
    assert workspace.latest_uri("zoo", "tensors") == other.uri
    retried_keys = record_tasks(monkeypatch)
    tensors = resized(grown_clean)
    assert retried_keys and not set(retried_keys) & set(finished_keys), "what was done is not done again"
    assert {file.uri.split("/")[1] for file in tensors.files() if file.uri.startswith("../")} == {first.fingerprint}
    assert set(content(tensors)) == set(photos | several(9, "new"))


def test_concurrent_plans_are_equal(workspace: Workspace) -> None:
    """Another pod reads the plan from the record of the first."""
    photos = several(40)
    resized(clean_of(workspace, photos))
    grown_clean = clean_of(workspace, photos | several(3, "new"))
    config = grown.make_config(grown_clean)
    context = Context("resize", workspace, "r", False)
    target = target_module.find_target(config, context)
    spec = resize_module._make_spec(grown_clean, target.config, None)
    first_plan = generations_module.plan_growth(target, spec, context)
    other = Dataset(workspace.dataset_uri("tensors", "f" * 16), Manifest("tensors", "f" * 16), "")
    workspace.note_latest("zoo", other, "another")
    second_plan = generations_module.plan_growth(target, spec, Context("resize", workspace, "r2", False))
    assert first_plan and second_plan and (first_plan.tensors, first_plan.shards, first_plan.generation) == (
        second_plan.tensors, second_plan.shards, second_plan.generation,
    )  # fmt: skip
    assert {uri: rows.tolist() for uri, rows in first_plan.added.items()} == {
        uri: rows.tolist() for uri, rows in second_plan.added.items()
    }


def test_tensors_with_lost_files_are_repaired(workspace: Workspace) -> None:
    photos = several(40)
    resized(clean_of(workspace, photos))
    grown_clean = clean_of(workspace, photos | several(3, "new"))
    second = resized(grown_clean)
    before = content(second)
    for path in Path(second.uri, "data").rglob("*.parquet"):
        path.unlink()
    assert find_intact_dataset(second.uri) is None
    with decoded() as count:
        repaired = resized(grown_clean)
    assert count == [3] and content(repaired) == before and repaired.manifest == second.manifest


def test_the_work_is_estimated_by_the_files_that_are_new(workspace: Workspace) -> None:
    """The estimate decides between a pod and a RayJob."""

    def estimate(photos: grown.Photos) -> tuple[int, int]:
        clean = clean_of(workspace, photos, buckets=20)
        context = Context("resize", workspace, "r", False)
        target = target_module.find_target(grown.make_config(clean), context)
        totals = target_module.estimate_totals(target, context)
        return totals.rows, totals.bytes * 100 // clean.manifest.totals.bytes

    photos = several(60)
    assert estimate(photos) == (60, 100)
    resized(clean_of(workspace, photos, buckets=20))
    rows, share = estimate(photos | {"new": grown.Photo("emu", "train")})
    assert 1 < rows < 15 and share == pytest.approx(100 * rows / 61, abs=1.1), "the file that it lies in"
    assert estimate(photos | several(40, "many")) == (100, 100), "all is built again"


@pytest.mark.usefixtures("without_ray")
def test_ray_job_continues_the_tensors_chosen_by_the_pod(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job runs its command line in another process, though other tensors were made meanwhile."""
    photos = several(60)
    first = resized(clean_of(workspace, photos, buckets=20))
    grown_clean = clean_of(workspace, photos | several(3, "new"), buckets=20)
    config = grown.make_config(grown_clean, executor="auto", resize_workers=1)
    context = Context("resize", workspace, "r", False)
    target = target_module.find_target(config, context, 0)
    assert target_module.estimate_totals(target, context).rows < 15, "those in files that are new"
    resized(clean_of(workspace, several(30) | several(3, "strange")))
    job = parse_job_config(build_command("resize", target.make_job_config(context))[3:], monkeypatch)
    assert job.ray_address == "auto" and job.clean == grown_clean.uri
    with decoded() as count:
        outcome = resize_module.resize(job, Context("resize", workspace, "r", False))
    tensors = grown.read_dataset(outcome.uri)
    assert outcome.uri == target.uri and count == [3] and generations(tensors) == {0: 60, 1: 3}
    assert {file.uri.split("/")[1] for file in tensors.files() if file.uri.startswith("../")} == {first.fingerprint}


def parse_job_config(words: list[str], monkeypatch: pytest.MonkeyPatch) -> ResizeConfig:
    """Return the config that the step's command line gives."""
    configs: list[Any] = []

    def execute(step: Step, config: StepConfig, result: str = "") -> int:
        configs.append(config)
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(Step, "execute", execute)
        assert RESIZE.main(words) == 0
    config = configs[0]
    assert isinstance(config, ResizeConfig)
    return config


@pytest.mark.proof
def test_new_rows_that_lie_amid_others_are_merged_like_any(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are so many that reading them a few at a time would take longer."""
    monkeypatch.setattr(tasks, "MIN_BYTES_TO_MERGE", 0)
    monkeypatch.setattr(tasks, "MIN_FAN_IN", 2)
    monkeypatch.setattr(tasks, "MAX_READ_AMPLIFICATION", 0.5)
    monkeypatch.setattr(plan, "MAX_SHARD_ROWS", 3)
    keys = record_tasks(monkeypatch)
    photos = several(60)
    resized(clean_of(workspace, photos))
    keys.clear()
    photos |= several(14, "new")
    with decoded() as count:
        tensors = resized(clean_of(workspace, photos))
    assert count == [14] and any("-run-train-1-" in key for key in keys)
    assert generations(tensors) == {0: 60, 1: 14}
    assert_equal(tensors, from_nothing(photos, tmp_path / "nothing"))
