"""`imagemill compare` on real trainings: a planted difference is significant, and equal work is done once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import experimented
import pytest
from html_page import Page

from imagemill.components.dataset.workspace import Workspace
from imagemill.components.storage.errors import EXIT_USER
from imagemill.pipelines.cli.main import main


class Experiment:
    """Workspace with a source, and `compare` of two configurations in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = folder / "mill"
        self.source = experimented.make_colors(folder / "photos")
        self.ran: list[str] = []

    def config(self, name: str, **values: Any) -> str:
        shared = {"dataset": "folder", "source": str(self.source), "workspace": str(self.workspace)}
        return experimented.write_config(self.folder / name, **shared, **experimented.QUICK, **values)

    def compare(self, *words: str) -> int:
        self.ran.clear()
        with experimented.counted_steps(self.ran):
            return main(["compare", *words])


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return Experiment(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def finished(experiment: Experiment) -> tuple[dict[str, Any], Counter[str]]:
    """The result of color against gray, as JSON, and how often each step ran."""
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        words = (experiment.config("color.yaml"), experiment.config("gray.yaml", color="gray"))
        assert experiment.compare(*words, "--seeds", "2", "--json") == 0
    result: dict[str, Any] = json.loads(output.getvalue().splitlines()[-1])
    return result, Counter(experiment.ran)


def test_planted_difference_is_significant(finished: tuple[dict[str, Any], Counter[str]]) -> None:
    """Without colors nothing tells the classes apart: half of the images are right by chance, with them nearly all."""
    result, _ = finished
    assert result["verdict"] == "worse" and "credibly worse" in result["reason"], result["reason"]
    low, high = result["differences"]["macro_f1"]["interval"]
    assert low < result["differences"]["macro_f1"]["gain"] < high < 0
    assert result["lost"] > result["won"] and result["changes"]
    assert [(row["step"], row["name"], row["A"], row["B"]) for row in result["parameters"]] == [
        ("clean", "color", "rgb", "gray")
    ]


def test_equal_work_is_done_once(finished: tuple[dict[str, Any], Counter[str]]) -> None:
    result, ran = finished
    assert ran == {"download": 1, "clean": 2, "resize": 2, "train": 4, "evaluate": 4}
    sides = result["configurations"]
    assert sides["A"]["shared"] == sides["B"]["shared"] == ["download"]
    assert all(side["seconds"][step] > 0 for side in sides.values() for step in ("clean", "train", "evaluate"))
    assert sides["B"]["bytes"]["tensors"] < 0.5 * sides["A"]["bytes"]["tensors"], "one channel of three"
    assert len(set(sides["A"]["models"] + sides["B"]["models"])) == 4


def test_champion_and_hints_do_not_change(
    experiment: Experiment, finished: tuple[dict[str, Any], Counter[str]]
) -> None:
    workspace = Workspace.from_uri(str(experiment.workspace))
    assert workspace.promotion_numbers("photos") == [] and workspace.latest_uri("photos", "model") == ""
    assert workspace.latest_uri("photos.compare", "model")


def test_second_call_repeats_no_work(
    experiment: Experiment, finished: tuple[dict[str, Any], Counter[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(experiment.folder / name) for name in ("color.yaml", "gray.yaml")]
    assert experiment.compare(*words, "--seeds", "2", "--json") == 0
    second = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert experiment.ran == []
    per_run = {"run", "report"}
    assert {k: v for k, v in second.items() if k not in per_run} == {
        k: v for k, v in finished[0].items() if k not in per_run
    }


def test_table_and_report_show_the_result(
    experiment: Experiment, finished: tuple[dict[str, Any], Counter[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(experiment.folder / name) for name in ("color.yaml", "gray.yaml")]
    assert experiment.compare(*words, "--seeds", "2") == 0
    text = capsys.readouterr().out
    assert "credibly worse" in text and "color (rgb | gray)" in text
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert {"macro-F1", "top-1", "balanced accuracy", "clean", "train, each seed", "model, stored"} <= set(lines)
    assert "done once for both" in lines["download"] and "times" in lines["tensors, stored"]
    page = Page(Path(text.rpartition("report ")[2].strip()).read_text())
    assert "B is worse" in page.text and finished[0]["reason"] in page.text
    assert [tag for tag, _ in page.tags].count("svg") == 1 and not page.values("src")


def test_single_seed_is_pointed_out(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(experiment.folder / name) for name in ("color.yaml", "gray.yaml")]
    assert experiment.compare(*words, "--seeds", "1") == 0
    assert experiment.ran == [] and "One seed says nothing of other trainings" in capsys.readouterr().out


def test_equal_configurations_have_equal_models(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    first = str(experiment.folder / "color.yaml")
    other = experiment.config("threads.yaml", clean_workers=1)
    assert experiment.compare(first, other, "--seeds", "2", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert experiment.ran == [] and result["verdict"] == "same_models"
    assert result["differences"]["top1"]["gain"] == 0 and result["won"] == result["lost"] == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "/elsewhere"}, "source: expected the same in"),
        ({"test_fraction": 0.2}, "test_fraction: expected the same in"),
        ({"metric": "top1"}, "metric: expected the same in"),
        ({"seed": 4}, "seed: expected the same in"),
        ({"rerun": "train"}, "(rerun): expected nothing"),
        ({}, "configurations: expected two that differ"),
        ({"epoch": 4}, "(epoch): expected a parameter or a step; is it epochs?"),
    ],
)
def test_incomparable_configurations_are_refused(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], values: dict[str, Any], message: str
) -> None:
    first, second = experiment.config("first.yaml"), experiment.config("second.yaml", **{})
    second = experiment.config("second.yaml") if not values else _overridden(experiment, values)
    assert experiment.compare(first, second) == EXIT_USER
    assert message in capsys.readouterr().err and experiment.ran == []


def _overridden(experiment: Experiment, values: dict[str, Any]) -> str:
    path = Path(experiment.config("second.yaml"))
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return str(path)


def test_other_classes_are_refused_before_training(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    second = _overridden(experiment, {"near_duplicates": "off", "min_side": 41})
    assert experiment.compare(str(experiment.folder / "color.yaml"), second) == EXIT_USER
    assert "train" not in experiment.ran, capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--seeds=0", "--seeds=many", "--seeds=101", "--seeds=-1", "--folds=1", "--folds=some",
                                  "--folds=21"])  # fmt: skip
def test_invalid_number_of_seeds_or_folds_is_refused(experiment: Experiment, flag: str) -> None:
    first = experiment.config("first.yaml")
    assert experiment.compare(first, first, flag) == EXIT_USER


@pytest.mark.proof
def test_folds_test_every_image_once_and_reuse_cleaned_images(
    experiment: Experiment, finished: tuple[dict[str, Any], Counter[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(experiment.folder / name) for name in ("color.yaml", "gray.yaml")]
    assert experiment.compare(*words, "--folds", "2", "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert Counter(experiment.ran) == {"clean": 4, "resize": 4, "train": 4, "evaluate": 4}
    assert captured.err.count("120 of 120 images were cleaned before") == 4
    assert (result["images"], result["left_out"], result["folds"], result["seeds"]) == (120, 0, 2, [0])
    assert result["verdict"] == "worse" and "over 120 images, tested in 2 folds" in result["reason"]
    assert experiment.compare(*words, "--folds", "2") == 0
    assert experiment.ran == [] and "120 test images, 1 seed, 2 folds" in capsys.readouterr().out
