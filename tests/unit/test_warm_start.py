"""`--start champion`: the initial weights of a training, adapted to its classes, and recorded once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_recipes import make_manifest
from trained import IMAGE, command, finish, make_tensors, start, weights_sha256

from imagemill.components.dataset.manifest import Dataset, Manifest, commit, read_dataset
from imagemill.components.dataset.records import Promotion
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.models.artifact import ModelSpec, build_network
from imagemill.components.step.step import NotCached
from imagemill.components.storage.errors import UserError
from imagemill.components.train import STEP, warm_start
from imagemill.components.train.artifact import publish
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.recipe_values import WARM
from imagemill.components.train.recipes import resolve
from imagemill.components.train.warm_start import adapt_champion

NAME = "small"
QUICK = {"recipe": "plain", "epochs": 1, "batch_size": 8, "backbone": "shufflenet_v2_x0_5", "tensorboard": False,
         "weights": "none"}  # fmt: skip
CHAMPION = QUICK | {"start": "champion"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For the arithmetic of steps in this process, as `trained.start` gives to others. They write no ONNX file, which
    would take longer than their training and which no test here reads."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(publish, "_export_and_compare", lambda *_: (b"", "there is none. Of another one:"))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def first_week(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the first week's tensors and their champion, trained with QUICK: for `after_first_week`."""
    folder = tmp_path_factory.mktemp("weeks") / "first"
    tensors = make_tensors(folder)
    promote(tensors, train(tensors, **QUICK))
    return folder


def after_first_week(first_week: Path, folder: Path) -> tuple[Dataset, str]:
    """Copy the workspace of the first week; return its tensors and the champion's fingerprint."""
    shutil.copytree(first_week, folder, dirs_exist_ok=True)
    (champion,) = (folder / "model").iterdir()
    return read_dataset(str(folder / "tensors" / "01"), "tensors"), champion.name


def next_week(tensors: Dataset, classes: tuple[str, ...] = ("a", "b")) -> Dataset:
    """Commit the same images as the next week's tensors dataset, with these classes."""
    uri = f"{tensors.uri[:-2]}02"
    shutil.copytree(tensors.uri, uri, ignore=shutil.ignore_patterns("_manifest.json"))
    return commit(uri, replace(tensors.manifest, fingerprint="02", classes=classes))


def train(tensors: Dataset, code: int = 0, **values: Any) -> str:
    """Train in this process; return the model's fingerprint, empty after an error."""
    result = Path(tensors.uri).parent.parent / "result.json"
    assert STEP.main([*command(tensors, **values)[3:], "--result", str(result)]) == code
    return str(json.loads(result.read_text())["fingerprint"])


def promote(tensors: Dataset, fingerprint: str) -> None:
    workspace = open_workspace(tensors)
    number = len(workspace.promotion_numbers(NAME)) + 1
    assert workspace.append_promotion(NAME, number, Promotion(model=f"model/{fingerprint}"))


def open_workspace(tensors: Dataset) -> Workspace:
    return Workspace.open(str(Path(tensors.uri).parent.parent))


def read_model(tensors: Dataset, fingerprint: str) -> Dataset:
    return read_dataset(open_workspace(tensors).dataset_uri("model", fingerprint), "model")


def list_modification_times(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_training_without_a_champion_starts_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = make_tensors(tmp_path)
    first = train(tensors, **CHAMPION)
    assert "small has no champion yet: training starts from nothing" in capsys.readouterr().err
    assert first == train(tensors, **QUICK), "the same model as without the option"
    promote(tensors, first)
    assert train(tensors, **CHAMPION) == first, "nothing has changed but the champion"
    assert "there already" in capsys.readouterr().err
    assert read_model(tensors, first).manifest.extra.start is None


def test_champion_of_the_first_attempt_is_used(
    first_week: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, first = after_first_week(first_week, tmp_path)
    later = next_week(tensors)
    second = train(later, **CHAMPION)
    assert f"from the champion {first}" in capsys.readouterr().err
    manifest = read_model(tensors, second).manifest
    sha256 = weights_sha256(read_model(tensors, first))
    assert manifest.extra.start.to_dict() == {"model": f"model/{first}", "weights_sha256": sha256, "promotion": 1}
    assert [parent.uri for parent in manifest.parents] == ["../../tensors/02", f"../{first}"]
    assert f"from the champion {first}" in manifest.extra.origin and manifest.extra.weights == ""
    card = next(Path(read_model(tensors, second).uri).glob("card-*.md")).read_text()
    assert f"| model | `{first}` | the weights that training started from" in card

    promote(tensors, second)
    assert train(later, **CHAMPION) == second, "the new champion changes nothing for these images"
    assert train(later, **CHAMPION, seed=1) not in (second, "")
    newest = max((tmp_path / "model").glob("*/_manifest.json"), key=lambda path: path.stat().st_mtime)
    assert json.loads(newest.read_text())["extra"]["start"]["promotion"] == 2, "another config looks anew"
    rerun = train(later, **CHAMPION, rerun="train", run="r2")
    assert read_model(tensors, rerun).manifest.extra.start.model == f"model/{second}", "and so does --rerun train"


def test_model_depends_on_the_initial_weights(first_week: Path, tmp_path: Path) -> None:
    """The same tensors and config from three champions: other models. The retry of a run has its first one's."""
    tensors, _ = after_first_week(first_week, tmp_path / "first")
    other = make_tensors(tmp_path / "other")
    promote(other, train(other, **QUICK, seed=1))
    without = make_tensors(tmp_path / "none")
    assert len({train(next_week(dataset), **CHAMPION) for dataset in (tensors, other, without)}) == 3


def test_cached_lookup_records_no_start(tmp_path: Path) -> None:
    tensors = make_tensors(tmp_path)
    values = {**CHAMPION, "tensors": tensors.uri, "workspace": str(tmp_path), "device": "cpu", "load_threads": 1}
    config = TrainConfig.from_values(values)
    before = list_modification_times(tmp_path)
    with pytest.raises(NotCached, match="a start of small"):
        STEP.execute_cached(config)
    assert list_modification_times(tmp_path) == before
    first = train(tensors, **CHAMPION)
    promote(tensors, first)
    before = list_modification_times(tmp_path)
    assert STEP.execute_cached(config).fingerprint == first
    assert list_modification_times(tmp_path) == before


def test_resumed_training_keeps_its_champion(first_week: Path, tmp_path: Path) -> None:
    """It goes on from its checkpoint to the very weights of an undisturbed training."""
    models = []
    for folder in (tmp_path / "whole", tmp_path / "stopped"):
        tensors, _ = after_first_week(first_week, folder)
        later = next_week(tensors)
        values = CHAMPION | {"epochs": 6, "checkpoint_minutes": 0.001, "ema": 0.9}
        if folder.name == "stopped":
            process = start(command(later, **values, run="r1"))
            assert process.stderr
            assert any("epoch 1/6" in line for line in process.stderr)
            time.sleep(0.05)
            os.kill(process.pid, signal.SIGTERM)
            assert finish(process)[0] == 75
            promote(tensors, train(tensors, **QUICK, seed=5))
        models.append(read_model(tensors, train(later, **values, run="r2")))
    assert models[0].fingerprint == models[1].fingerprint
    assert weights_sha256(models[0]) == weights_sha256(models[1])
    assert models[1].manifest.extra.start.promotion == 1


def test_champion_of_another_backbone_fails(
    first_week: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, _ = after_first_week(first_week, tmp_path)
    assert train(next_week(tensors), 2, **CHAMPION | {"backbone": "squeezenet1_1"}) == ""
    stderr = capsys.readouterr().err
    assert "start: expected a champion with the backbone squeezenet1_1, found shufflenet_v2_x0_5 (promotion 1" in stderr
    assert not list((tmp_path / "names" / NAME / "starts").glob("*")), "nothing is decided by an error"


def test_missing_champion(first_week: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, first = after_first_week(first_week, tmp_path)
    later = next_week(tensors)
    second = train(later, **CHAMPION)
    manifest_file = tmp_path / "model" / first / "_manifest.json"
    moved_manifest = manifest_file.rename(tmp_path / "manifest.json")
    assert train(later, **CHAMPION) == second, "its result is there all the same"
    (tmp_path / "model" / second / "_manifest.json").unlink()
    train(later, 2, **CHAMPION)
    assert f"at model/{first}, found no intact model: --rerun train" in capsys.readouterr().err
    train(later, **CHAMPION, seed=2)
    assert f"the model of promotion 1, model/{first}, is gone: training starts from nothing" in capsys.readouterr().err
    moved_manifest.rename(manifest_file)


def test_head_of_a_new_class_is_untrained(first_week: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, _ = after_first_week(first_week, tmp_path)
    second = train(next_week(tensors, ("a", "b", "c")), **CHAMPION)
    assert "the head knows 2 of 3 classes" in capsys.readouterr().err
    assert read_model(tensors, second).manifest.classes == ("a", "b", "c")


def test_champion_that_has_seen_too_few_images_is_warned_of(
    first_week: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, _ = after_first_week(first_week, tmp_path)
    later = next_week(tensors)
    images = later.manifest.totals.by_split["train"]
    train(later, **CHAMPION)
    assert "warning: the champion was trained on" not in capsys.readouterr().err, "as many images as the champion's"
    monkeypatch.setattr(warm_start, "MAX_GROWTH", 0.99)
    train(later, **CHAMPION, seed=1)
    stderr = capsys.readouterr().err
    assert f"warning: the champion was trained on {images} images, and there are {images} now" in stderr


def make_network(classes: tuple[str, ...], seed: int, backbone: str) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_network(ModelSpec(backbone, classes, IMAGE))


@pytest.mark.parametrize("backbone", ["shufflenet_v2_x0_5", "squeezenet1_1", "timm:test_resnet"])
def test_head_rows_are_mapped_by_class_name(backbone: str) -> None:
    old, new = ("a", "b", "c"), ("c", "new", "a")
    champion, network = make_network(old, 0, backbone), make_network(new, 1, backbone)
    state, fresh = champion.state_dict(), network.state_dict()
    *_, (name, _) = network.named_parameters()
    head = f"{name.rpartition('.')[0]}."
    body = {name: value for name, value in state.items() if not name.startswith(head)}
    spec = ModelSpec(backbone, new, IMAGE)
    adapted, notes = adapt_champion(state, body, network, spec, Manifest("model", "0", classes=old), {})
    assert adapted.keys() == state.keys()
    for name, value in adapted.items():
        if name.startswith(head):
            for row, source in ((0, 2), (2, 0)):
                torch.testing.assert_close(value[row], state[name][source])
            assert torch.equal(value[1], fresh[name][1])
        else:
            torch.testing.assert_close(value, state[name])
    assert notes == ["the head knows 2 of 3 classes"]


def test_head_rows_of_renamed_classes_are_kept_and_those_of_merged_ones_averaged() -> None:
    old, new, backbone = ("ant", "cat", "bee"), ("insect", "new", "feline"), "shufflenet_v2_x0_5"
    champion, network = make_network(old, 0, backbone), make_network(new, 1, backbone)
    state, spec = champion.state_dict(), ModelSpec(backbone, new, IMAGE)
    names = {"ant": "insect", "bee": "insect", "cat": "feline"}
    adapted, notes = adapt_champion(state, {}, network, spec, Manifest("model", "0", classes=old), names)
    for name in ("fc.weight", "fc.bias"):
        torch.testing.assert_close(adapted[name][0], (state[name][0] + state[name][2]) / 2)
        assert torch.equal(adapted[name][2], state[name][1])
        assert torch.equal(adapted[name][1], network.state_dict()[name][1])
    assert notes == ["the head knows 2 of 3 classes"]


def test_weights_are_unchanged_by_default_and_the_head_of_another_task_is_dropped() -> None:
    classes, backbone = ("a", "b"), "shufflenet_v2_x0_5"
    champion, network = make_network(classes, 0, backbone), make_network(classes, 1, backbone)
    state = champion.state_dict()
    spec = ModelSpec(backbone, classes, IMAGE)
    adapted, notes = adapt_champion(state, state, network, spec, Manifest("model", "0", classes=classes), {})
    assert not notes and all(torch.equal(value, state[name]) for name, value in adapted.items())
    other = Manifest("model", "0", classes=classes, task="multi")
    adapted, notes = adapt_champion(state, state, network, spec, other, {})
    assert state.keys() - adapted.keys() == {"fc.weight", "fc.bias"} and notes == ["the head knows 0 of 2 classes"]


@pytest.mark.parametrize("recipe", sorted(WARM))
def test_recipe_from_the_champion_has_fewer_epochs_and_a_lower_rate(recipe: str) -> None:
    weights = {"weights": "/w/model/0", "recipe": recipe}
    warm = resolve(TrainConfig(start="champion", **weights), make_manifest())
    needs_weights = recipe in ("probe", "finetune")
    from_nothing = resolve(TrainConfig(recipe=recipe, weights="DEFAULT" if needs_weights else ""), make_manifest())
    assert warm.learning_rate < from_nothing.learning_rate or needs_weights  # which have that rate already
    assert warm.epochs < from_nothing.epochs or recipe == "probe"
    assert warm.head == ("solved" if recipe == "probe" else None)
    assert warm.probe_epochs == (recipe == "probe") and warm.unfreeze_epochs == 0
    chosen = resolve(TrainConfig(start="champion", epochs=7, learning_rate=0.5, **weights), make_manifest())
    assert (chosen.epochs, chosen.learning_rate) == (7, 0.5)
    assert resolve(warm, make_manifest()) == warm


def test_champion_options_do_not_count_without_a_champion() -> None:
    assert not {"start"} & resolve(TrainConfig(weights=""), make_manifest()).fingerprint_values().keys()
    assert not {"start"} & resolve(TrainConfig(weights=""), make_manifest()).manifest_values().keys()


@pytest.mark.parametrize(
    ("values", "message"),
    [({"start": "last"}, "start: expected one of weights, champion")],
)  # fmt: skip
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig.from_values(values)
