"""The stored history of a training: Parquet, TensorBoard events, and a diagnosis of clear curves."""

from __future__ import annotations

import errno
import io
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from trained import make_tensors, settings, trainer

from imagemill.components.dataset.manifest import Dataset
from imagemill.components.storage.store import get_store
from imagemill.components.train.loop.history import TIMES, EventFile, diagnose, open_events, publish_history
from imagemill.components.train.recipes import describe_recipe


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_tensors(tmp_path_factory.mktemp("tensors"), train=13, val=4)


def read_events(uri: str, tmp_path: Path) -> list[tuple[str, int, float]]:
    """(tag, step, value) as TensorBoard itself reads them from all event files of a place."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "read"
    folder.mkdir(exist_ok=True)
    for entry in get_store(uri).list(uri):
        (folder / entry.uri.rpartition("/")[2]).write_bytes(get_store(uri).read(entry.uri))
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    accumulator.Reload()
    return [
        (tag, event.step, event.value) for tag in accumulator.Tags()["scalars"] for event in accumulator.Scalars(tag)
    ]


ROW = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.75, "learning_rate": 0.25, "images_per_second": 100.0, "seconds": 3}


def test_tensorboard_reads_the_numbers_of_a_row(tmp_path: Path) -> None:
    uri = str(tmp_path / "events")
    with open_events(uri, 0) as events:
        assert events
        events.add(10, ROW)
        events.publish()
        first = read_events(uri, tmp_path)
        events.add(20, ROW | {"val_macro_f1": 0.5})
    assert first == [("loss/train", 10, 0.5), ("loss/validation", 10, 0.75), ("learning_rate", 10, 0.25),
                     ("speed/images_per_second", 10, 100.0)]  # fmt: skip
    assert ("metrics/macro_f1", 20, 0.5) in read_events(uri, tmp_path)


def test_events_after_the_checkpoint_of_a_killed_training_are_replaced(tmp_path: Path) -> None:
    uri = str(tmp_path / "events")
    for start, steps in ((0, (10, 20, 30)), (20, (25,))):
        events = EventFile(uri, start)
        for step in steps:
            events.add(step, {"train_loss": float(step + start)})
        events.close()
        time.sleep(1.1)  # TensorBoard reads files by their names, which tell the second: another try is never so quick
    assert [step for _, step, _ in read_events(uri, tmp_path)] == [10, 25]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_full_disk_stops_the_events_and_not_the_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The writer's own thread ends with the error, and gives it to whoever writes next."""

    def full(_: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_events(str(tmp_path), 0) as events:
        assert events is not None
        events._writer.flush()
        events._writer._async_writer._writer.write = full
        for step in range(3):
            events.add(step, {"train_loss": 1.0})
            events.publish()
    assert capfd.readouterr().err.count("warning: the TensorBoard events could not be written: [Errno 28]") == 1


def test_no_events_are_written_without_a_uri(tmp_path: Path) -> None:
    with open_events("", 0) as events:
        assert events is None


def test_events_on_s3_are_written_after_each_epoch(s3_workspace: str, tmp_path: Path) -> None:
    uri = f"{s3_workspace}/runs/r/tensorboard"
    events = EventFile(uri, 0)
    for step in (1, 2):
        events.add(step, ROW)
        events.publish()
        assert len([tag for tag, *_ in read_events(uri, tmp_path) if tag == "loss/train"]) == step
    events.close()


def test_a_trainer_writes_events_and_the_history_is_a_table(tensors: Dataset, tmp_path: Path) -> None:
    training = trainer(tensors, tmp_path, settings(tensors, epochs=2, ema=0.9))
    training.events_uri = str(tmp_path / "runs" / "r" / "tensorboard")
    state = training.run()
    scalars = read_events(training.events_uri, tmp_path)
    assert [(step, pytest.approx(value, rel=1e-6)) for tag, step, value in scalars if tag == "metrics/macro_f1"] == [
        (row["updates"], row["val_macro_f1"]) for row in state.history
    ]
    file = publish_history(training.uri, state.history)
    assert (
        (file.role, file.rows) == ("history", 2) and file.uri.startswith("history-") and file.uri.endswith(".parquet")
    )
    assert pq.read_table(io.BytesIO((Path(training.uri) / file.uri).read_bytes())).to_pylist() == [
        {name: value for name, value in row.items() if name not in TIMES} for row in state.history
    ]
    assert all(row["ema"] and 0 <= row["waiting"] <= 1 and row["images_per_second"] > 0 for row in state.history)


def rows(train: list[float], val: list[float], f1: list[float]) -> list[dict[str, Any]]:
    return [
        {"epoch": n + 1, "train_loss": t, "val_loss": v, "val_macro_f1": f}
        for n, (t, v, f) in enumerate(zip(train, val, f1, strict=True))
    ]


HEART = rows([1.0, 0.5, 0.2, 0.1, 0.05, 0.02], [1.0, 0.8, 0.7, 0.9, 1.1, 1.3], [0.3, 0.5, 0.6, 0.59, 0.58, 0.58])
MIXED = rows([1.8, 1.6, 1.5, 1.4, 1.3, 1.25], [1.0, 0.8, 0.7, 0.9, 1.1, 1.3], [0.3, 0.5, 0.6, 0.59, 0.58, 0.58])
HARDLY = rows([1.61, 1.61, 1.6, 1.6, 1.6], [1.61, 1.61, 1.6, 1.6, 1.61], [0.07, 0.07, 0.08, 0.07, 0.07])
SOUND = rows([1.0, 0.6, 0.4, 0.3, 0.2], [1.0, 0.7, 0.5, 0.45, 0.44], [0.3, 0.5, 0.6, 0.7, 0.72])


@pytest.mark.parametrize(
    ("history", "best", "hard", "expected"),
    [
        (HEART, 3, True, "by heart"), (MIXED, 3, False, "by heart"), (MIXED, 3, True, ""), (HEART, 6, True, ""),
        (HARDLY, 3, True, "hardly learned"), (SOUND, 5, True, ""), (HEART[:3], 1, True, ""),
        ([{"epoch": n, "train_loss": 1.0} for n in range(9)], 8, True, ""),
    ],
)  # fmt: skip
def test_curves_are_diagnosed_only_where_they_are_clear(
    history: list[dict[str, Any]], best: int, hard: bool, expected: str
) -> None:
    diagnosis = diagnose(history, best, hard)
    assert (expected in diagnosis) if expected else not diagnosis


def test_recipe_description_lists_enabled_options_only(tensors: Dataset) -> None:
    plain = "\n".join(
        describe_recipe(settings(tensors, label_smoothing=0.0, epochs=7, learning_rate=0.001, flip="true"))
    )
    assert "recipe plain: 7 epochs in batches of 8, adamw with a learning rate of 0.001" in plain
    assert "regularization: none" in plain and "augmentation: crops of 0.6 to 1 of the area, flips" in plain
    config = settings(
        tensors, accumulate=4, weights="somewhere", probe_epochs=2, unfreeze_epochs=3, early_stopping=5, ema=0.99,
        mixup_probability=0.5, policy="randaugment", hue=0.1, erasing=0.25, class_balance="sampling", layer_decay=0.7,
    )  # fmt: skip
    text = "\n".join(describe_recipe(config))
    for words in (
        "4 batches a step", "the head alone for 2 epochs", "then unfreezing over 3", "after 5 epochs without",
        "moving average of the weights 0.99", "MixUp 0.2 in 50% of the batches", "balanced by sampling",
        "RandAugment 2/9", "hue 0.1", "25% with a box erased", "layer decay 0.7",
    ):  # fmt: skip
        assert words in text
    secret = settings(tensors, augment_pipeline="s3://key:secret@bucket/one.yaml")
    assert "secret" not in "\n".join(describe_recipe(secret))
