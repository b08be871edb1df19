"""Tensors of a dataset that has grown: what was there is listed again, and all is as if it were built from nothing."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import copied
import grown
import pytest
from grown import clean_of, content, generations, relabelled, replaced, resized, several
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagemill.components.dataset.manifest import Dataset, Manifest, find_intact_dataset
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.resize import STEP as RESIZE
from imagemill.components.resize import generations as generations_module
from imagemill.components.resize import plan, tensor_shards
from imagemill.components.resize import resize as resize_module
from imagemill.components.resize.config import ResizeConfig
from imagemill.components.resize.ray_job import build_command
from imagemill.components.step.config import StepConfig
from imagemill.components.step.step import Context, Step


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards of a few images."""
    monkeypatch.setattr(plan, "MAX_SHARD_ROWS", 7)
    monkeypatch.setattr(resize_module, "report_estimate", lambda *_: None)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.open(str(tmp_path / "mill"))


@contextmanager
def decoded() -> Iterator[list[int]]:
    """The number of images that are decoded meanwhile."""
    count, decode = [0], tensor_shards.decode_and_resize
    with pytest.MonkeyPatch.context() as patch:

        def counted(*arguments: Any) -> Any:
            count[0] += 1
            return decode(*arguments)

        patch.setattr(tensor_shards, "decode_and_resize", counted)
        yield count


def from_nothing(clean_photos: grown.Photos, folder: Path, **options: Any) -> Dataset:
    """The tensors of the same photos in a workspace of their own."""
    return resized(clean_of(Workspace.open(str(folder)), clean_photos), **options)


def assert_equal(tensors: Dataset, expected: Dataset) -> None:
    assert tensors.fingerprint == expected.fingerprint
    assert content(tensors) == content(expected)
    assert tensors.manifest.totals == expected.manifest.totals
    assert tensors.manifest.image == expected.manifest.image
    assert tensors.manifest.classes == expected.manifest.classes and not tensors.missing()


EDITS = st.lists(st.sampled_from(["add", "add", "remove", "relabel", "replace", "move"]), min_size=0, max_size=9)
OPTIONS = st.sampled_from(
    [{}, {"normalization": "dataset"}, {"encoding": "jpeg"}, {"encoding": "jpeg", "normalization": "dataset"}]
)


def edit(photos: dict[str, grown.Photo], edits: list[str], seed: int) -> dict[str, grown.Photo]:
    photos, chance = dict(photos), random.Random(seed)
    for number, word in enumerate(edits):
        name = chance.choice(sorted(photos))
        if word == "add":
            photos[f"new-{seed}-{number}"] = grown.Photo(chance.choice(grown.CLASSES), chance.choice(["train", "test"]))
        elif word == "remove":
            del photos[name]
        elif word == "relabel":
            photos[name] = relabelled(photos[name])
        elif word == "replace":
            photos[name] = replaced(photos[name])
        else:
            photos[name] = grown.replace(photos[name], split="val" if photos[name].split == "train" else "train")
    return photos


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(EDITS, min_size=1, max_size=3), options=OPTIONS, seed=st.integers(0, 10**6))
def test_after_any_edits_the_tensors_are_those_of_a_build_from_nothing(
    history: list[list[str]], options: dict[str, Any], seed: int
) -> None:
    """Row for row and pixel for pixel; and only what is new was decoded, unless everything was built again."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(f"{folder}/mill")
        photos = several(60)
        tensors = resized(clean_of(workspace, photos), **options)
        for number, edits in enumerate(history):
            earlier, before = photos, generations(tensors)
            photos = edit(photos, edits, seed + number)
            with decoded() as count:
                tensors = resized(clean_of(workspace, photos), **options)
            assert_equal(tensors, from_nothing(photos, Path(folder) / f"nothing-{number}", **options))
            new = sum(earlier.get(name) != photo for name, photo in photos.items())
            if count[0] not in (0, new):
                assert count[0] == len(photos), "everything, or what is new"
                gone = any(photos.get(name) != photo for name, photo in earlier.items())
                too_many = sum(before.values()) - before[0] + new > 0.2 * len(photos) - len(edits)
                assert (too_many or (gone and len(options) == 2)) and generations(tensors) == {0: len(photos)}


def test_new_rows_are_a_generation_and_the_others_are_listed_again(workspace: Workspace) -> None:
    photos = several(60)
    first = resized(clean_of(workspace, photos))
    with decoded() as count:
        second = resized(clean_of(workspace, photos | several(4, "new", "emu")))
    assert count == [4] and generations(second) == {0: 60, 1: 4}
    files = {first.locate(file): file.sha256 for file in first.files()}
    again = {
        second.locate(file): file.sha256 for file in second.files() if file.uri.startswith(f"../{first.fingerprint}/")
    }
    assert again == files, "by URIs relative to the dataset"
    with decoded() as count:
        third = resized(clean_of(workspace, photos | several(4, "new", "emu") | several(3, "more", "emu")))
    assert count == [3] and generations(third) == {0: 60, 1: 4, 2: 3}
    folders = {file.uri.split("/")[1] for file in third.files() if file.uri.startswith("../")}
    assert folders == {first.fingerprint, second.fingerprint}, "each where it really is"
    stored = sum(path.stat().st_size for path in Path(third.uri).rglob("*.parquet"))
    assert stored < 0.2 * sum(file.bytes for file in third.files())


def test_a_line_says_what_is_done(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    photos = several(120)
    first = resized(clean_of(workspace, photos))
    del photos["p000"], photos["p007"]
    capsys.readouterr()
    photos["p001"] = relabelled(photos["p001"])
    resized(clean_of(workspace, photos | several(5, "new")))
    said = capsys.readouterr().err
    assert f"[resize] 123 images: 117 as in tensors/{first.fingerprint}, 6 new, 3 left" in said


def test_a_shard_is_written_again_only_where_rows_left(workspace: Workspace) -> None:
    photos = several(60)
    first = resized(clean_of(workspace, photos), normalization="dataset")
    del photos["p010"]
    with decoded() as count:
        second = resized(clean_of(workspace, photos), normalization="dataset")
    assert count == [0] and generations(second) == {0: 59}
    own = [file for file in second.files() if not file.uri.startswith("../")]
    assert len(own) == 1 and len(second.files()) == len(first.files())
    assert second.manifest.image["mean"] != first.manifest.image["mean"], "of the images that are there"


def test_a_shard_of_which_nothing_stays_is_left_out(workspace: Workspace) -> None:
    photos = several(60)
    first = resized(clean_of(workspace, photos))
    shard = first.files("data", "test")[0]
    ids = {row["image_id"] for table in grown.row_groups(first, shard, ["image_id"]) for row in table.to_pylist()}
    photos = {name: photo for name, photo in photos.items() if name not in ids}
    second = resized(clean_of(workspace, photos))
    assert len(second.files("data", "test")) == len(first.files("data", "test")) - 1
    assert set(content(second)) == set(photos)


@pytest.mark.parametrize(
    "change", ["size", "rerun", "damaged", "clean_gone", "clean_pixels", "name", "no_entries", "clean_file_gone"]
)
def test_what_can_not_be_continued_is_built(workspace: Workspace, change: str, tmp_path: Path) -> None:
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


def test_many_generations_are_built_anew(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations_module, "MAX_ADDED_GENERATIONS", 3)
    photos = several(60)
    found = []
    for week in range(6):
        found.append(len(generations(resized(clean_of(workspace, photos)))))
        photos |= several(1, f"week{week}-")
    assert found == [1, 2, 3, 4, 1, 2]


def test_a_retry_plans_as_the_first_attempt_though_the_latest_tensors_are_others(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = several(60)
    first = resized(clean_of(workspace, photos))
    del photos["p003"], photos["p011"]
    grown_clean = clean_of(workspace, photos | several(9, "new"))
    run_tasks, begun = resize_module.run_tasks, []

    def killed(tasks: Any, *arguments: Any) -> Iterator[Any]:
        for result in run_tasks(tasks, *arguments):
            yield result
            begun.append(result[0].key)
            if len(begun) == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(resize_module, "run_tasks", killed)
        resized(grown_clean)
    other = resized(clean_of(workspace, several(50) | several(6, "strange")))
    assert workspace.latest("zoo", "tensors") == other.uri
    done: list[str] = []

    def watched(tasks: Any, *arguments: Any) -> Iterator[Any]:
        for result in run_tasks(tasks, *arguments):
            done.append(result[0].key)
            yield result

    monkeypatch.setattr(resize_module, "run_tasks", watched)
    tensors = resized(grown_clean)
    assert done and not set(done) & set(begun), "what was done is not done again"
    assert {file.uri.split("/")[1] for file in tensors.files() if file.uri.startswith("../")} == {first.fingerprint}
    assert set(content(tensors)) == set(photos | several(9, "new"))


def test_two_that_plan_at_once_agree(workspace: Workspace) -> None:
    """And one in another pod, by the record of the first."""
    photos = several(40)
    resized(clean_of(workspace, photos))
    grown_clean = clean_of(workspace, photos | several(3, "new"))
    config = grown.make_config(grown_clean)
    context = Context("resize", workspace, "r", False)
    target = resize_module.find_target(config, context)
    spec = resize_module._make_spec(grown_clean, target.config, None)
    mine = generations_module.plan_growth(target, spec, context)
    other = Dataset(workspace.dataset("tensors", "f" * 16), Manifest("tensors", "f" * 16), "")
    workspace.note_latest("zoo", other, "another")
    theirs = generations_module.plan_growth(target, spec, Context("resize", workspace, "r2", False))
    assert mine and theirs and (mine.tensors, mine.shards, mine.generation) == (
        theirs.tensors, theirs.shards, theirs.generation,
    )  # fmt: skip
    assert {uri: rows.tolist() for uri, rows in mine.added.items()} == {
        uri: rows.tolist() for uri, rows in theirs.added.items()
    }


def test_tensors_that_lost_their_own_files_get_them_back(workspace: Workspace) -> None:
    photos = several(40)
    resized(clean_of(workspace, photos))
    grown_clean = clean_of(workspace, photos | several(3, "new"))
    second = resized(grown_clean)
    before = content(second)
    for path in Path(second.uri, "data").rglob("*.parquet"):
        path.unlink()
    assert find_intact_dataset(second.uri) is None
    with decoded() as count:
        again = resized(grown_clean)
    assert count == [3] and content(again) == before and again.manifest == second.manifest


def test_files_that_both_clean_datasets_list_are_not_read(workspace: Workspace) -> None:
    photos = several(60)
    earlier, later = clean_of(workspace, photos), clean_of(workspace, photos | {"new": grown.Photo("emu", "train")})
    shared = {file.sha256 for file in earlier.files()} & {file.sha256 for file in later.files()}
    assert len(shared) > 10
    for dataset in (earlier, later):
        for file in dataset.files():
            if file.sha256 in shared:
                Path(dataset.locate(file)).unlink()
    added, left = generations_module.compare_rows(earlier, later)
    assert sum(map(len, added.values())) == 1 and not left


def test_the_work_is_estimated_by_the_files_that_are_new(workspace: Workspace) -> None:
    """By which a cluster decides between a pod and a RayJob."""

    def estimate(photos: grown.Photos) -> tuple[int, int]:
        clean = clean_of(workspace, photos, buckets=20)
        context = Context("resize", workspace, "r", False)
        totals = resize_module.find_target(grown.make_config(clean), context).estimate_totals(context)
        return totals.rows, totals.bytes * 100 // clean.manifest.totals.bytes

    photos = several(60)
    assert estimate(photos) == (60, 100)
    resized(clean_of(workspace, photos, buckets=20))
    rows, share = estimate(photos | {"new": grown.Photo("emu", "train")})
    assert 1 < rows < 15 and share == pytest.approx(100 * rows / 61, abs=1.1), "the file that it lies in"
    assert estimate(photos | several(40, "many")) == (100, 100), "all is built again"


def test_a_ray_job_continues_what_the_pod_that_planned_it_saw(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own command line, in a process of its own, though other tensors were made meanwhile."""
    photos = several(60)
    first = resized(clean_of(workspace, photos, buckets=20))
    grown_clean = clean_of(workspace, photos | several(3, "new"), buckets=20)
    config = grown.make_config(grown_clean, executor="auto", resize_workers=1)
    context = Context("resize", workspace, "r", False)
    target = resize_module.find_target(config, context, 0)
    assert target.estimate_totals(context).rows < 15, "those in files that are new"
    resized(clean_of(workspace, several(30) | several(3, "strange")))
    job = parse_job_config(build_command(target.make_job_config(context))[3:], monkeypatch)
    assert job.ray_address == "auto" and job.clean == grown_clean.uri
    copied.without_ray(monkeypatch)
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


def rows_with_copies(tensors: Dataset) -> dict[tuple[str, int], tuple[str, int, bytes, str]]:
    return {
        (row["image_id"], row["copy"]): (file.split, row["label_id"], row["image"], row["augmentation"])
        for file in tensors.files()
        for table in grown.row_groups(tensors, file)
        for row in table.to_pylist()
    }


def test_augmented_copies_stay_with_their_images(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied.without_ray(monkeypatch)
    options = {"copies": 2, "copy_policy": "randaugment", "executor": "auto", "normalization": "dataset"}
    photos = several(60)
    resized(clean_of(workspace, photos), **options)
    del photos["p000"], photos["p005"]
    photos |= several(5, "new")
    grown_clean = clean_of(workspace, photos)
    tensors = resized(grown_clean, **options)
    expected = from_nothing(photos, tmp_path / "nothing", **options)
    assert set(generations(tensors)) == {0, 1}
    assert rows_with_copies(tensors) == rows_with_copies(expected)
    assert tensors.manifest.totals == expected.manifest.totals and tensors.manifest.image == expected.manifest.image
    assert tensors.manifest.extra["copies"] == expected.manifest.extra["copies"]
