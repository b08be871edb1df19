"""A clearly better model is promoted, one trained on broken labels is not, and a champion can be taken back.

Written so that it holds for a gate that asks for a better model and for one that refuses only a worse one.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import layout
import numpy as np
import pictures
import pytest
from commands import FROM_SCRATCH, PROMOTE_ALWAYS, PROMOTE_NEVER, Finished, Workspace, refuse, succeed

LABELS = ("blue", "green", "red")
SIZES = {"train": 30, "val": 8, "test": 24}
"""Pictures of each class and split."""
LEARNER = ["--image-size", "32", "--backbone", "resnet18", "--recipe", "plain", "--batch-size", "16", *FROM_SCRATCH,
           "--review", "false"]  # fmt: skip
UNTRAINED = ["--epochs", "1", "--learning-rate", "0.00000001"]
TRAINED = ["--epochs", "5", "--learning-rate", "0.001"]


@dataclass(frozen=True)
class History:
    """Runs of one name: an untrained champion, a trained challenger, one that was trained on broken labels."""

    workspace: Workspace
    table: Path
    untrained: Finished
    trained: Finished
    broken: Finished

    def copy(self, folder: Path) -> Workspace:
        shutil.copytree(self.workspace.folder, folder / "work")
        return Workspace(str(folder / "work"), self.workspace.name)


def write_source(folder: Path) -> tuple[Path, Path]:
    """Write pictures, a table with their labels, and one in which those of training and validation are shuffled."""
    rows = []
    for split, each in SIZES.items():
        for label in LABELS:
            for number in range(each):
                data = pictures.encode(pictures.noisy_pixels(f"{split}-{label}-{number}", label, noise=60))
                path = pictures.write(folder / split / f"{label}{number}.png", data)
                rows.append({"path": str(path.relative_to(folder)), "label": label, "split": split})
    random.Random(1).shuffle(rows)
    learned = [row for row in rows if row["split"] != "test"]
    shuffled = [LABELS[(LABELS.index(row["label"]) + 1 + number % 2) % 3] for number, row in enumerate(learned)]
    broken = [row | {"label": label} for row, label in zip(learned, shuffled, strict=True)]
    kept = [row for row in rows if row["split"] == "test"]
    return pictures.write_table(folder / "right.csv", rows), pictures.write_table(folder / "wrong.csv", broken + kept)


def run_table(workspace: Workspace, table: Path, *more: str) -> Finished:
    return succeed("run", "--json", *workspace.flags, "--dataset", "csv", "--source", str(table), *LEARNER, *more)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    folder = tmp_path_factory.mktemp("promotion")
    right, wrong = write_source(folder / "photos")
    workspace = Workspace(str(folder / "work"), "weekly")
    untrained = run_table(workspace, right, *UNTRAINED, *PROMOTE_ALWAYS)
    trained = run_table(workspace, right, *TRAINED)
    return History(workspace, right, untrained, trained, run_table(workspace, wrong, *TRAINED))


def fingerprint(finished: Finished) -> str:
    return Path(finished.json["model"]).name


def test_better_model_is_promoted(history: History) -> None:
    assert history.trained.json["metrics"]["macro_f1"] > 0.9 > history.untrained.json["metrics"]["macro_f1"] + 0.2
    assert history.trained.json["promoted"]
    assert Path(history.trained.json["champion"]).name == fingerprint(history.trained)


def test_model_trained_on_broken_labels_is_not_promoted(history: History) -> None:
    assert history.broken.json["metrics"]["macro_f1"] < 0.5
    assert not history.broken.json["promoted"]
    assert history.broken.json["verdict"] and Path(history.broken.json["champion"]).name == fingerprint(history.trained)


def test_log_of_promotions_holds_those_that_were_promoted(history: History) -> None:
    log = layout.promotions(history.workspace.folder, "weekly")
    models = [Path(entry["model"]).name for entry in log]
    assert models == [fingerprint(history.untrained), fingerprint(history.trained)]
    assert [entry["n"] for entry in log] == [1, 2]


def test_report_of_each_run_tells_the_verdict(history: History) -> None:
    for finished in (history.untrained, history.trained, history.broken):
        report = Path(finished.json["report"]).read_text()
        assert finished.json["verdict"].replace("_", " ").split()[-1] in report.lower()
        assert 'src="http' not in report, "the page needs no network"


def test_champion_commands_tell_the_log(history: History) -> None:
    flags = ["--workspace", history.workspace.uri, "--name", "weekly"]
    listed = json.dumps(succeed("champion", "list", *flags, "--json").json)
    assert fingerprint(history.untrained) in listed and fingerprint(history.trained) in listed
    assert fingerprint(history.trained) in succeed("champion", "show", *flags).stdout


def test_rollback_brings_the_champion_before_back(history: History, tmp_path: Path) -> None:
    workspace = history.copy(tmp_path)
    succeed("champion", "rollback", *workspace.flags)
    assert layout.champion(workspace.folder, "weekly") == fingerprint(history.untrained)
    assert len(layout.promotions(workspace.folder, "weekly")) == 3, "the log is append-only"
    # The one that was taken back is not promoted by itself, though it is better.
    again = run_table(workspace, history.table, *TRAINED)
    assert not again.json["promoted"]
    assert layout.champion(workspace.folder, "weekly") == fingerprint(history.untrained)


def test_never_compares_only_and_always_overrules(history: History, tmp_path: Path) -> None:
    workspace = history.copy(tmp_path)
    evaluation = str(workspace.folder / "evaluation" / Path(history.broken.json["evaluation"]).name)
    workspace.step("promote", "--evaluation", evaluation, *PROMOTE_NEVER)
    assert layout.champion(workspace.folder, "weekly") == fingerprint(history.trained)
    workspace.step("promote", "--evaluation", evaluation, *PROMOTE_ALWAYS)
    assert layout.champion(workspace.folder, "weekly") == fingerprint(history.broken)


def test_merged_and_renamed_classes_are_judged_in_todays_names(history: History, tmp_path: Path) -> None:
    workspace = history.copy(tmp_path)
    names = pictures.write_table(
        tmp_path / "names.csv", [{"old": old, "new": new} for old, new in (("blue", "cold"), ("green", "cold"))]
    )
    merged = run_table(workspace, history.table, *TRAINED, "--map-labels", str(names))
    assert merged.json["metrics"]["macro_f1"] > 0.9 and merged.json["promoted"]
    assert {row["class"] for row in layout.per_class(merged.json["evaluation"])} == {"cold", "red"}
    assert "blue → cold, green → cold" in Path(merged.json["report"]).read_text()


def test_champion_predicts(history: History) -> None:
    photo = history.table.parent / "test" / "red0.png"
    flags = ["--workspace", history.workspace.uri, "--name", "weekly"]
    by_champion = succeed("predict", *flags, str(photo)).stdout
    by_model = succeed("predict", "--model", history.trained.json["model"], str(photo)).stdout
    assert by_champion == by_model and "red" in by_champion


def test_prediction_without_a_champion_is_refused(history: History) -> None:
    photo = str(history.table.parent / "test" / "red0.png")
    refuse("predict", "--workspace", history.workspace.uri, "--name", "nobody", photo, words=("nobody",))


def test_names_are_apart(history: History, tmp_path: Path) -> None:
    """Another name in the same workspace has a log of its own, and finds the datasets that are there."""
    workspace = Workspace(history.copy(tmp_path).uri, "other")
    finished = run_table(workspace, history.table, *TRAINED)
    assert {step: state for step, state in finished.states.items() if step != "promote"} == dict.fromkeys(
        ("download", "clean", "resize", "train", "evaluate"), "cached"
    )
    assert len(layout.promotions(workspace.folder, "weekly")) == 2


def test_warm_start_begins_with_the_champion(history: History, tmp_path: Path) -> None:
    """After one epoch at a tiny rate the network still does what the champion does."""
    workspace = history.copy(tmp_path)
    finished = run_table(
        workspace, history.table, "--start", "champion", "--epochs", "1", "--learning-rate", "0.0000001"
    )
    assert finished.json["metrics"]["top1"] > 0.8


def test_test_images_are_the_same_for_all_three(history: History) -> None:
    ids = [
        sorted(row["image_id"] for row in layout.predictions(finished.json["evaluation"]))
        for finished in (history.untrained, history.trained, history.broken)
    ]
    assert ids[0] == ids[1] == ids[2] and len(ids[0]) == 3 * SIZES["test"]


def test_trained_weights_are_finite_and_differ(history: History) -> None:
    from safetensors.numpy import load_file

    first, second = (load_file(layout.weights_file(run.json["model"])) for run in (history.untrained, history.trained))
    assert first.keys() == second.keys()
    assert all(np.isfinite(value).all() for value in second.values())
    assert any((first[name] != second[name]).any() for name in first)
