"""`imagemill predict`: the files that it reads, its output, and its errors."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import photos
import pyarrow.parquet as pq
import pytest
from trained import commit_model

from imagemill.components.dataset.kinds import NetworkExtra
from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.dataset.records import Promotion, Verdict
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.engine.processes import Threads
from imagemill.components.imaging.geometry import Geometry
from imagemill.components.imaging.pixel_options import DecodeLimits
from imagemill.components.models.artifact import ModelSpec
from imagemill.components.predict import inputs
from imagemill.components.predict import predict as predicting
from imagemill.components.predict.inputs import find_images, find_inputs
from imagemill.components.predict.output import Prediction
from imagemill.components.storage.errors import TransientError, UserError
from imagemill.components.storage.store import LocalStore
from imagemill.pipelines.cli.main import main

CLASSES = ("cat", "dog", "emu\tbird", "fox", "gnu", "hen")
SPEC = ModelSpec(
    "shufflenet_v2_x0_5", CLASSES,
    Geometry(32).describe("raw", [0.5] * 3, [0.1] * 3),
    extra=NetworkExtra(preprocessing={"clean": {"equalize": "autocontrast"}}, temperature=0.5),
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return commit_model(tmp_path_factory.mktemp("mill"), SPEC).uri


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "cores", lambda: 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, a corrupt one, and files that are no image."""
    path = tmp_path / "in"
    (path / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.png", "deep/c.webp", "deep/d.gif", "e")):
        kind = {"jpg": "JPEG", "webp": "WEBP", "gif": "GIF"}.get(name.rpartition(".")[2], "PNG")
        (path / name).write_bytes(photos.saved(photos.made(number, 70, 50), kind))
    (path / "broken.jpg").write_bytes(photos.saved(photos.made(9), "JPEG")[:700])
    (path / "notes.txt").write_text("no image, and no promise of one")
    (path / ".hidden.jpg").write_bytes(photos.saved(photos.made(8)))
    return path


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main(["predict", *arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_probabilities_are_the_softmax_of_logits_over_temperature(model: str, folder: Path, command: Command) -> None:
    _, out, _ = command("--model", model, "--top", "9", "--json", str(folder / "a.jpg"))
    probabilities = {prediction["class"]: prediction["probability"] for prediction in json.loads(out)["predictions"]}
    import torch

    from imagemill.components.models.artifact import Normalize, load_model

    network, spec = load_model(read_dataset(model))
    preprocess = predicting.Preprocessing.from_record(spec.extra.preprocessing or {}, spec.geometry, "")
    pixels = preprocess((folder / "a.jpg").read_bytes())
    with torch.inference_mode():
        logits = network(Normalize(spec.image, torch.device("cpu"))(torch.from_numpy(pixels[None])))
        expected = (logits / 0.5).softmax(1)[0].tolist()
    assert [probabilities[name] for name in CLASSES] == pytest.approx(expected, abs=2e-6)
    assert np.ptp(expected) > 1e-3


def test_paths_are_read_from_stdin(model: str, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    stdin = "a.jpg\n\ndeep\r\n no such .png\n"
    _, out, _ = command("--model", model, "--json", "--top", "1", "b.png", "-", stdin=stdin)
    results = [json.loads(line) for line in out.splitlines()]
    assert [result["image"] for result in results] == ["b.png", "a.jpg", "deep/c.webp", "deep/d.gif", " no such .png"]
    assert results[-1]["error"] == "missing_file" and len(results[0]["predictions"]) == 1


def test_failed_command_keeps_the_output_file(model: str, folder: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "out.csv").write_text("kept")
    code, _, err = command("--model", model, "--output", str(tmp_path / "out.csv"), str(folder / "broken.jpg"))
    assert code == 2 and "at least one image that can be read" in err
    assert (tmp_path / "out.csv").read_text() == "kept" and [p.name for p in tmp_path.glob("*out*")] == ["out.csv"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--workspace", "/no/such", "x.jpg"],
            "--model: expected the URI of a model, or a --workspace with a champion, found no champion in /no/such",
        ),
        (["--model", "MODEL", "--name", "n", "x.jpg"], "--name: expected nothing beside --model"),
        (["--model", "MODEL", "--workspace", "w", "x.jpg"], "--workspace: expected nothing beside --model"),
        (["--model", "/no/such", "x.jpg"], "--model: expected the URI of a model (a folder with _manifest.json)"),
        (["--model", "MODEL", "--top", "0", "x.jpg"], "--top: expected a whole number of at least 1"),
        (["--model", "MODEL", "--batch-size", "some", "x.jpg"], "--batch-size: expected a whole number"),
        (["--model", "MODEL", "--device", "tpu", "x.jpg"], "--device: expected one of auto, cpu, cuda"),
        (["--model", "MODEL", "--output", "s3://b/x.csv", "x.jpg"], "--output: expected a file of this machine"),
        (["--model", "MODEL", "--output", "/no/such/x.csv", "x.jpg"], "--output: expected a file in a folder"),
        (["--model", "MODEL", "-", "-"], "IMAGE: expected - once"),
        (
            ["--model", "MODEL", "--ray-address", "http://me:hunter2@head:8265", "x.jpg"],
            "--ray-address: expected ray://host:10001, or auto or host:6379 from a node of the cluster, whose jobs "
            "can't write here, found 'http://head:8265'",
        ),
        (["--model", "MODEL", "--ray-address", "head", "x.jpg"], "--ray-address: expected ray://host:10001"),
        (
            ["--model", "MODEL", "--ray-address", "auto", "--device", "cuda", "x.jpg"],
            "--device: expected cpu or auto with --ray-address",
        ),
        (["--model", "MODEL", "http://x/y.jpg"], "IMAGE: expected a folder or s3://bucket/prefix"),
        (["--model", "MODEL", "no-such.jpg"], "IMAGE: expected at least one image that can be read"),
        (["--model", "MODEL", "-"], "no image in -"),
        (
            ["--workspace", "/no/such", "--name", "nobody", "x.jpg"],
            "--name: expected a name that has a champion in /no/such (no name has one), found 'nobody'",
        ),
        ([], "arguments are required: IMAGE (see imagemill predict --help)"),
        (["--model", "MODEL", "--tpo", "1", "x.jpg"], "--tpo: expected a known flag; is it --top?"),
    ],
)
def test_invalid_arguments_are_named(arguments: list[str], words: str, model: str, command: Command) -> None:
    code, out, err = command(*[model if argument == "MODEL" else argument for argument in arguments])
    assert (code, out) == (2, "") and words in err


def test_champion_is_found_by_name_without_writing(tmp_path: Path, folder: Path, command: Command) -> None:
    mill = Workspace(str(tmp_path / "mill"))
    commit_model(tmp_path / "mill", SPEC, "old")
    commit_model(tmp_path / "mill", SPEC, "new")
    for number, name in enumerate(("old", "new"), 1):
        mill.append_promotion("weekly", number, Promotion(model=f"model/{name}"))
    before = sorted(str(path) for path in (tmp_path / "mill").rglob("*"))
    code, _, err = command("--workspace", mill.uri, "--name", "weekly", str(folder / "a.jpg"))
    assert code == 0 and " new, 6 classes" in err
    assert sorted(str(path) for path in (tmp_path / "mill").rglob("*")) == before


def test_name_is_required_only_among_several_champions(
    tmp_path: Path, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    mill = Workspace(str(tmp_path / "imagemill-data"))
    commit_model(tmp_path / "imagemill-data", SPEC, "one")
    mill.append_promotion("weekly", 1, Promotion(model="model/one"))
    mill.add_verdict("daily", "0", Verdict())  # was compared, and never promoted
    monkeypatch.chdir(tmp_path)
    code, out, err = command("--json", str(folder / "a.jpg"))
    assert code == 0 and out and f"the champion of weekly in {mill.uri}\n" in err
    mill.append_promotion("daily", 1, Promotion(model="model/one"))
    code, out, err = command(str(folder / "a.jpg"))
    assert (code, out) == (2, "")
    assert f"--name: expected one of daily, weekly, which have a champion in {mill.uri}, found ''" in err
    code, _, err = command("--name", "dayly", str(folder / "a.jpg"))
    assert code == 2 and "(daily, weekly), found 'dayly'" in err


def test_labels_of_a_multi_label_model_are_those_above_one_half(tmp_path: Path, folder: Path, command: Command) -> None:
    spec = replace(SPEC, task="multi", extra=replace(SPEC.extra, temperature=0.05))
    model = commit_model(tmp_path / "mill", spec).uri
    output = tmp_path / "out.parquet"
    code, out, _ = command("--model", model, "--json", "--top", "6", "--output", str(output), str(folder))
    rows = pq.read_table(output).to_pylist()
    results = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and any(result.get("labels") for result in results)
    for result, row in zip(results, rows, strict=True):
        if "error" not in result:
            assert result["labels"] == [p["class"] for p in result["predictions"] if p["probability"] >= 0.5]
            assert row["labels"] == result["labels"]


def test_missing_boxes_and_masks_are_warned_about_once(tmp_path: Path, folder: Path, command: Command) -> None:
    clean = {"roi": "largest", "background": "fill"}
    model = commit_model(tmp_path / "mill", replace(SPEC, extra=NetworkExtra(preprocessing={"clean": clean}))).uri
    _, _, err = command("--model", model, str(folder))
    assert err.count("new images have no boxes and masks") == 1
    assert "the crop to the largest box and the fill of the background" in err


def test_model_without_recorded_cleaning_is_warned_about(tmp_path: Path, folder: Path, command: Command) -> None:
    model = commit_model(tmp_path / "mill", replace(SPEC, extra=NetworkExtra())).uri
    code, _, err = command("--model", model, str(folder / "a.jpg"))
    assert code == 0 and "warning: the model does not say what clean did" in err


def test_file_above_the_size_limit_is_not_read(folder: Path) -> None:
    with (folder / "a.jpg").open("r+b") as file:
        file.truncate(DecodeLimits().bytes + 1)  # sparse
    for argument in (str(folder / "a.jpg"), str(folder)):
        first = next(find_inputs([argument], ()))
        with pytest.raises(predicting.ImageRejected, match="too_many_bytes"):
            first.read()


def test_storage_error_is_transient(
    model: str, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = LocalStore.read

    def fail_for_one(self: LocalStore, uri: str) -> bytes:
        if uri.endswith("b.png"):
            raise TransientError(f"{uri}: the line is down")
        return read(self, uri)

    monkeypatch.setattr(LocalStore, "read", fail_for_one)
    code, out, err = command("--model", model, "--json", str(folder))
    assert code == 75 and "the line is down" in err and "error" not in out


def test_file_that_a_node_does_not_see_is_named(folder: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is gone here as well is only missing, as without Ray."""

    def find_none(task: predicting.PredictTask, *_: object) -> dict[str, Any]:
        missing = [Prediction(file.name, error=inputs.MISSING_FILE, detail="no such file") for file in task.files]
        return {"predictions": missing, "node": "node7"}

    monkeypatch.setattr(predicting, "predict_task", find_none)
    config = predicting.PredictConfig(("-",))
    with Threads("predict", 1) as executor:
        files = find_images(["no-such.jpg", str(folder / "a.jpg")], ())
        predictions = predicting.predict_on_nodes(read_dataset(model), files, config, executor)
        assert next(predictions).error == inputs.MISSING_FILE
        with pytest.raises(UserError, match=f"^IMAGE: .* every node .* found no {folder}/a.jpg on node node7"):
            next(predictions)
