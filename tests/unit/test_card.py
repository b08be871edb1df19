"""The card and the ONNX file as training publishes them: what they say, and that they fail no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from trained import commit_model

from imagemill.components.dataset.kinds import NetworkExtra
from imagemill.components.imaging.geometry import Geometry
from imagemill.components.models.artifact import ModelSpec, build_network, load_model
from imagemill.components.train.artifact import publish as artifact
from imagemill.components.train.artifact.model_card import CardFacts, render_card
from imagemill.components.train.artifact.publish import publish_onnx_and_card

CLASSES = ("cat", "a|b <b>", "_line\nbreak_", "empty")
CLEAN = {"equalize": "autocontrast", "color": "gray", "trim": "on"}


def made_spec(task: str = "single", **extra: Any) -> ModelSpec:
    geometry = Geometry(32, "letterbox", "gray", ("sobel",))
    image = geometry.describe("raw", (0.5, 0.1), (0.25, 0.2))
    return ModelSpec(
        "shufflenet_v2_x0_5", CLASSES, image, task, extra=NetworkExtra(**{"preprocessing": {"clean": CLEAN}} | extra)
    )


def made_facts(**options: Any) -> CardFacts:
    values: dict[str, Any] = {
        "dataset_name": "weekly *photos*", "origin": "from DEFAULT", "code_version": "9.9", "parameters": 1_250_000,
        "recipe": "standard", "epochs": 12, "metrics": {"top1": 0.91, "macro_f1": 0.875, "loss": 0.4},
        "best": {"epoch": 7}, "config": {"seed": 17, "learning_rate": 0.002, "augment_pipeline": ""},
        "parents": {"tensors": "aaaa", "clean": "bbbb", "raw": "cccc"},
        "counts": {"train": {"cat": 1200, "a|b <b>": 3, "_line\nbreak_": 5}, "val": {"cat": 9, "a|b <b>": 1}},
    }  # fmt: skip
    return CardFacts(**values | options)


def read_header(card: str) -> dict[str, Any]:
    _, header, _ = card.split("---\n", 2)
    parsed: dict[str, Any] = yaml.safe_load(header)
    return parsed


def test_header_is_valid_for_hugging_face() -> None:
    header = read_header(render_card(made_spec(), made_facts(), "feed", "…"))
    assert header["pipeline_tag"] == "image-classification" and "license" not in header
    (index,) = header["model-index"]
    (result,) = index["results"]
    assert result["dataset"]["split"] == "validation"
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("accuracy", 0.91), ("f1", 0.875)]
    bare = read_header(render_card(made_spec(), made_facts(metrics={}), "feed", "…"))
    assert bare["model-index"][0]["results"] == [] and bare["metrics"] == []


def test_huggingface_hub_parses_the_card() -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(render_card(made_spec(), made_facts(), "feed", "…"))
    assert {result.metric_value for result in card.data.eval_results} == {0.91, 0.875}


def test_card_lists_known_facts() -> None:
    card = render_card(made_spec(temperature=1.375), made_facts(), "feed", "said of ONNX:")
    assert r"# weekly \*photos\*: shufflenet_v2_x0_5" in card and "1.2 million" in card
    for fingerprint in ("feed", "aaaa", "bbbb", "cccc"):
        assert f"`{fingerprint}`" in card
    assert "| 0 | cat | 1,200 | 9 |" in card
    assert r"| 1 | a\|b \<b\> | 3 | 1 |" in card
    assert r"| 2 | \_line break\_ | 5 | 0 |" in card
    steps = [line for line in card.splitlines() if line[:1].isdigit()]
    assert [line[:2] for line in steps] == [f"{n}." for n in range(1, len(steps) + 1)]
    for words in ("trimmed", "one channel: gray", "autocontrast", "black around it", "sobel", "0.5, 0.1"):
        assert any(words in line for line in steps), words
    assert "12 epochs, of which epoch 7 was kept" in card and "| learning_rate | 0.002 |" in card
    assert "augment_pipeline" not in card
    assert "1.375" in card and "seed 17" in card and "said of ONNX:" in card and "0.8750" in card
    assert "Never seen in training: empty." in card
    assert r"in no metric above: \_line break\_, empty." in card


def test_several_labels_and_nothing_known() -> None:
    spec = made_spec("multi")
    card = render_card(spec, made_facts(counts={}, metrics={}, parents={"tensors": "aaaa"}), "feed", "…")
    assert "sigmoid(logits / temperature)" in card and "none of these" not in card
    assert "no validation images" in card and "`cccc`" not in card
    many = ModelSpec(spec.backbone, tuple(f"class {n}" for n in range(1000)), spec.image)
    assert "And 800 more" in render_card(many, made_facts(counts={}), "feed", "…")


def test_both_files_are_published_and_leave_the_model_readable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    torch.set_num_threads(1)
    spec, uri = made_spec(temperature=2.0), str(tmp_path / "model" / "feed")
    network = build_network(spec)
    images = np.random.default_rng(1).integers(0, 256, (3, *spec.image.shape), np.uint8)
    files = publish_onnx_and_card(uri, network, spec, made_facts(), images)
    assert [file.role for file in files] == ["onnx", "card"]
    assert publish_onnx_and_card(uri, network, spec, made_facts(), images) == files  # a retry makes the same
    assert "within 1e-" in capsys.readouterr().err
    dataset = commit_model(tmp_path, spec, network=network, files=files)
    assert not dataset.missing()
    assert load_model(dataset)[1] == spec
    card = Path(dataset.locate(dataset.files("card")[0])).read_text()
    assert "within 1e-" in card and "a temperature of 2," in card


@pytest.mark.parametrize("fault", ["export", "other outputs"])
def test_card_of_a_network_without_onnx_file_gives_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    def broken(*_: Any) -> bytes:
        raise artifact.ExportError("it is odd")

    if fault == "export":
        monkeypatch.setattr(artifact, "export", broken)
    else:
        monkeypatch.setattr(artifact, "export", lambda *_: b"data")
        monkeypatch.setattr(artifact, "measure_difference", lambda *_: 0.02)
    spec = made_spec()
    files = publish_onnx_and_card(str(tmp_path / "feed"), build_network(spec), spec, made_facts())
    assert [file.role for file in files] == ["card"]
    words = "it is odd" if fault == "export" else "0.02 from the network's"
    assert words in capsys.readouterr().err
    assert words in (tmp_path / "feed" / files[0].uri).read_text()


def test_missing_onnxruntime_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(artifact, "export", lambda *_: b"data")
    monkeypatch.setattr(artifact, "measure_difference", lambda *_: None)
    spec = made_spec()
    files = publish_onnx_and_card(str(tmp_path / "feed"), build_network(spec), spec, made_facts())
    assert [file.role for file in files] == ["onnx", "card"]
    assert "not compared" in capsys.readouterr().err


@pytest.mark.parametrize(("apart", "words"), [(0.0, "1e-7"), (3e-9, "1e-7"), (2e-6, "1e-5"), (9.9e-4, "1e-3")])
def test_difference_is_shown_as_a_power_of_ten(apart: float, words: str) -> None:
    assert artifact._describe_difference(apart) == f"within {words} of the network's"
