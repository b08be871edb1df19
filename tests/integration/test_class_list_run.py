"""A class list that changes between two weeks: a class renamed, two merged, one removed and one added."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mill
import numpy as np
import pytest

from imagemill.components.dataset.kinds import EvaluationExtra
from imagemill.components.dataset.manifest import Dataset, read_dataset
from imagemill.components.dataset.shards import read_columns
from imagemill.pipelines.cli.main import main

COLORS = {"cat": "blue", "ant": "green", "bee": "green", "dog": "red", "eel": "red", "okapi": "blue"}
FIRST = ("ant", "bee", "cat", "dog", "eel")
SECOND = ("insect", "feline", "eel", "okapi")
OPTIONS = ["--test-fraction", "0.3", "--near-duplicates", "off"]


def read_rows(dataset: Dataset) -> list[dict[str, Any]]:
    columns = ["image_id", "label", "label_id", "split", "shuffle_index", "sha256"]
    rows = [row for table in read_columns(dataset, "data", columns) for row in table.to_pylist()]
    return sorted(rows, key=lambda row: str(row["image_id"]))


def test_champion_and_class_list_of_last_week_speak_todays_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, workspace, random = tmp_path / "photos", tmp_path / "ws", np.random.default_rng(3)

    def add(label: str, number: int) -> None:
        for index in range(number):
            mill.add_photo(photos / label / f"{index}.jpg", COLORS[label], random)

    def run(*more: str) -> mill.Result:
        source = ["run", "--json", "--dataset", "folder", "--source", str(photos), "--workspace", str(workspace)]
        result = mill.run(*source, *mill.QUICK, *mill.CROWN, *OPTIONS, *more)
        assert result.rc == 0, result.stderr
        return result

    for label in FIRST:
        add(label, 12)
    first = run()
    assert read_dataset(first.json["clean"]).manifest.classes == FIRST and "class list:" not in first.stderr

    shutil.rmtree(photos / "dog")
    add("okapi", 15)
    label_map = tmp_path / "map.csv"
    label_map.write_text("old,new\ncat,feline\nant,insect\nbee,insect\nemu,bird\n")
    options = ["--map-labels", str(label_map), "--start", "champion"]
    second = run(*options)
    clean, evaluation = (read_dataset(second.json[kind]) for kind in ("clean", "evaluation"))
    assert clean.manifest.classes == read_dataset(second.json["model"]).manifest.classes == SECOND
    assert dict(clean.manifest.totals.by_class) == {"insect": 24, "feline": 12, "eel": 12, "okapi": 15}
    for line in (
        "class 'okapi' is new: 15 images", "class 'dog' is gone", "class 'cat' is called 'feline' now",
        "classes 'ant', 'bee' are one now: 'insect'",
    ):  # fmt: skip
        assert f"[clean] class list: {line}" in second.stderr
    assert "[clean] class 'dog' is gone: 12 images then" in second.stderr  # since the champion's data
    assert "map_labels: no image has the label emu" in second.stderr
    assert "the head knows 3 of 4 classes" in second.stderr
    assert "called &#39;feline&#39; now" in Path(clean.locate(clean.files("report")[0])).read_text()

    tensors = read_dataset(second.json["tensors"])
    ids = {row["image_id"]: row["label_id"] for row in read_rows(clean)}
    for table in read_columns(tensors, "data", ["image_id", "label_id"]):
        assert all(ids[row["image_id"]] == row["label_id"] for row in table.to_pylist())

    # The champion is evaluated in today's names: what it knows as ant or bee is an insect.
    evaluations = [read_dataset(str(folder)) for folder in (workspace / "evaluation").iterdir() if folder.is_dir()]
    (champion,) = [
        e for e in evaluations if e.manifest.parents[1] == evaluation.manifest.parents[1] and e.uri != evaluation.uri
    ]
    extra = EvaluationExtra.of(champion.manifest)
    assert extra.model_classes == ["insect", "feline", "dog", "eel"]
    assert champion.manifest.classes == (*SECOND, "dog")
    tables = read_columns(champion, "data", ["top_ids", "top_probabilities"])
    for row in (row for table in tables for row in table.to_pylist()):
        assert sorted(row["top_ids"]) == [0, 1, 2, 4] and sum(row["top_probabilities"]) == pytest.approx(1)

    # The same map under another name changes nothing; another content does.
    shutil.move(label_map, tmp_path / "renamed.csv")
    again = run("--map-labels", str(tmp_path / "renamed.csv"), "--start", "champion", "--keep-classes")
    assert set(again.states.values()) == {"cached"}, again.stderr

    # A dataset that was built from nothing with this class list has the same rows and ids.
    (tmp_path / "classes.txt").write_text("\n".join(SECOND))
    fresh: dict[str, Any] = {}
    for step, arguments in (
        ("download", ["--dataset", "folder", "--source", str(photos)]),
        (
            "clean",
            ["--class-list", str(tmp_path / "classes.txt"), "--map-labels", str(tmp_path / "renamed.csv"), *OPTIONS],
        ),
    ):
        parents = ["--raw", fresh["download"]] if fresh else []
        file = tmp_path / f"{step}.json"
        assert main([step, "--workspace", str(tmp_path / "fresh"), "--result", str(file), *parents, *arguments]) == 0
        fresh[step] = json.loads(file.read_text())["uri"]
    rebuilt = read_dataset(fresh["clean"])
    assert rebuilt.fingerprint == clean.fingerprint and read_rows(rebuilt) == read_rows(clean)
    assert {row["label"]: row["label_id"] for row in read_rows(clean)} == {name: n for n, name in enumerate(SECOND)}
