"""Pretrained weights by default: from the workspace, a library's cache or their site, and what is said without any."""

from __future__ import annotations

import hashlib
import http.server
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import get_model_weights, shufflenet_v2_x0_5
from trained import command, make_tensors, model_of

from imagemill.components.dataset.kinds import ModelExtra, TensorsExtra
from imagemill.components.dataset.manifest import Dataset, commit
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.models import published_weights
from imagemill.components.models.torchvision_models import name_default_weights
from imagemill.components.step.step import Context
from imagemill.components.storage.errors import DatasetError, TransientError
from imagemill.components.train import STEP
from imagemill.components.train.artifact import publish
from imagemill.components.train.config import TrainConfig
from imagemill.components.train.pretrained_weights import choose_weights
from imagemill.pipelines.cli.main import main

BACKBONE = "shufflenet_v2_x0_5"
QUICK = {"recipe": "plain", "epochs": 1, "batch_size": 8, "backbone": BACKBONE, "tensorboard": False}
pytestmark = pytest.mark.usefixtures("one_thread", "without_onnx")


@pytest.fixture
def without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """No ONNX files, which take longer than these trainings."""
    monkeypatch.setattr(publish, "_export_and_compare", lambda *_: (b"", "there is none. Of another one:"))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A file as torchvision's site has it: named by the first digits of its sha256."""
    torch.manual_seed(5)
    path = tmp_path / "published" / "new.pth"
    path.parent.mkdir()
    torch.save(shufflenet_v2_x0_5().state_dict(), path)
    return path.rename(path.with_name(f"{BACKBONE}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"))


@pytest.fixture
def site(published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """A server of that file in place of torchvision's, to a machine with internet; yields its requests."""
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(published.parent))

        def log_request(self, *_: Any) -> None:
            requests.append(self.command)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_torchvision_to(monkeypatch, f"http://127.0.0.1:{server.server_port}/{published.name}")
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        yield requests
        server.shutdown()


def point_torchvision_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    member = get_model_weights(BACKBONE)["IMAGENET1K_V1"]
    monkeypatch.setattr(member, "_value_", replace(member.value, url=url))


def find_cached(tensors: Dataset, **values: Any) -> str:
    workspace = str(Path(tensors.uri).parent.parent)
    config = TrainConfig.from_values(
        {"tensors": tensors.uri, "workspace": workspace, "device": "cpu", **QUICK, **values}
    )
    return STEP.execute_cached(config).uri


def test_weights_are_downloaded_once_and_stay_in_the_workspace(
    tmp_path: Path, site: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second training has neither cache nor site, the look for its result not even torch."""
    tensors = make_tensors(tmp_path)
    assert STEP.main(command(tensors, **QUICK)[3:]) == 0
    model = model_of(tmp_path)
    extra = model.manifest.extra
    assert isinstance(extra, ModelExtra) and extra.weights == "IMAGENET1K_V1"
    assert extra.origin and extra.origin.startswith("from IMAGENET1K_V1, ")
    assert site == ["HEAD", "GET"]
    assert "pretrained weights IMAGENET1K_V1 of shufflenet_v2_x0_5 from http://127" in capsys.readouterr().err
    record = Workspace.open(str(tmp_path)).weights(BACKBONE)
    assert record and (tmp_path / record.uri).name == f"{BACKBONE}.IMAGENET1K_V1-{record.sha256[:16]}.safetensors"
    point_torchvision_to(monkeypatch, "http://127.0.0.1:9/gone.pth")
    for name in ("DEFAULT", "IMAGENET1K_V1", "auto"):
        with monkeypatch.context() as patch:
            for module in ("torch", "torchvision", "timm"):
                patch.setitem(sys.modules, module, None)
            assert find_cached(tensors, weights=name) == model.uri
    assert STEP.main(command(tensors, **QUICK, seed=1)[3:]) == 0
    assert "from IMAGENET1K_V1, " in capsys.readouterr().err
    (tmp_path / record.uri).write_bytes(b"other")
    with pytest.raises(DatasetError, match="expected IMAGENET1K_V1 of shufflenet_v2_x0_5 as fetched on"):
        published_weights.read_weights(Workspace(str(tmp_path)), BACKBONE, "IMAGENET1K_V1")


def test_weights_of_the_librarys_cache_need_no_site(
    tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    published.rename(cache / published.name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    point_torchvision_to(monkeypatch, f"http://127.0.0.1:9/{published.name}")
    words = ["weights", "fetch", "--backbone", BACKBONE, "--workspace", str(tmp_path), "--json"]
    facts = []
    for _ in range(2):
        assert main(words) == 0
        facts.append(json.loads(capsys.readouterr().out))
    assert [fact["state"] for fact in facts] == ["fetched", "there already"]
    assert facts[0]["weights"] == "IMAGENET1K_V1" and Path(facts[0]["uri"]).stat().st_size == facts[0]["bytes"]


def test_without_any_weights_training_starts_from_scratch_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = make_tensors(tmp_path)
    assert STEP.main(command(tensors, **QUICK)[3:]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning: from scratch" in line]
    (line,) = lines
    assert "IMAGENET1K_V1 of shufflenet_v2_x0_5 could not be downloaded from download.pytorch.org" in line
    assert "(HF_HUB_OFFLINE is set); `imagemill weights fetch` puts them into the workspace" in line
    model = model_of(tmp_path)
    assert model.manifest.extra.recipe[0] == line.removeprefix("[train] ")  # type: ignore[attr-defined]
    assert find_cached(tensors) == find_cached(tensors, weights="none") == find_cached(tensors, weights="") == model.uri
    assert not (tmp_path / "models").exists()


def test_recipe_that_needs_weights_ends_as_transient_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = make_tensors(tmp_path)
    assert STEP.main(command(tensors, **QUICK | {"recipe": "probe"})[3:]) == 75
    assert "could not be downloaded" in capsys.readouterr().err.splitlines()[-1]


def test_source_that_recommends_epochs_is_trained_from_scratch(
    tmp_path: Path, site: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = make_tensors(tmp_path)
    extra = TensorsExtra(dataset_name="demo", epochs=8)
    demo = commit(f"{tensors.uri[:-2]}02", replace(tensors.manifest, fingerprint="02", extra=extra, files=()))
    config = TrainConfig.from_values({"tensors": demo.uri, "workspace": str(tmp_path), **QUICK})
    context = Context("train", Workspace.open(str(tmp_path)), "r", False)
    chosen, line = choose_weights(config, demo, context)
    assert chosen.weights == "" and line.startswith("from scratch: the source of these images recommends that, in 8 ep")
    assert not site
    chosen, line = choose_weights(replace(config, recipe="probe"), demo, context)
    assert (chosen.weights, line) == ("IMAGENET1K_V1", "") and site == ["HEAD", "GET"]


def test_fetched_file_is_what_auto_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = make_tensors(tmp_path)
    torch.manual_seed(6)
    save_file(shufflenet_v2_x0_5().state_dict(), tmp_path / "own.safetensors")
    save_file({"conv1.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    torch.save({}, tmp_path / "own.pth")
    fetch = ["weights", "fetch", "--workspace", str(tmp_path), "--backbone", BACKBONE]
    for words, message in (
        (["--file", str(tmp_path / "other.safetensors")], "--file: expected weights of shufflenet_v2_x0_5"),
        (["--file", str(tmp_path / "own.pth")], "--file: expected a .safetensors file or a model"),
        (["--file", str(tmp_path / "none.safetensors")], "--file: expected a .safetensors file that is there"),
        (["--file", "x", "--weights", "DEFAULT"], "--weights: expected no value with --file"),
        (["--weights", "IMAGENET1K_V7"], "weights: expected one of IMAGENET1K_V1, DEFAULT for shufflenet"),
        (["--backbone", "shufflenet"], "backbone: expected a torchvision classification model"),
    ):
        assert main([*fetch, *words]) == 2
        assert message in capsys.readouterr().err
    assert main(fetch) == 75
    assert main(["weights", "list", "--workspace", str(tmp_path)]) == 0
    assert "no weights in" in capsys.readouterr().out
    assert main([*fetch, "--file", str(tmp_path / "own.safetensors")]) == 0
    uri = capsys.readouterr().out.strip()
    assert Path(uri).read_bytes() == (tmp_path / "own.safetensors").read_bytes()
    assert main(["weights", "list", "--workspace", str(tmp_path), "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["backbone"], listed["weights"], listed["uri"]) == (BACKBONE, "", uri)
    assert STEP.main(command(tensors, **QUICK)[3:]) == 0
    assert f"from {uri}, " in capsys.readouterr().err
    assert find_cached(tensors) == find_cached(tensors, weights=str(tmp_path / "own.safetensors"))
    assert main(["gc", "--workspace", str(tmp_path), "--min-age", "0", "--delete"]) == 0
    assert Path(uri).exists()


def test_site_that_never_answers_costs_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(published_weights, "SITE_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        with pytest.raises(
            TransientError, match=r"w could not be downloaded from 127.0.0.1:\d+ \(.*(no answer|timed out)"
        ):
            published_weights._check_site(f"http://127.0.0.1:{server.getsockname()[1]}/w.pth", "w")
        assert time.monotonic() - started < 5


def test_an_error_of_the_site_is_an_answer(site: list[str], published: Path) -> None:
    url = get_model_weights(BACKBONE)["IMAGENET1K_V1"].url
    published_weights._check_site(url.replace(".pth", ".none"), "w")
    assert site == ["HEAD"]


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "vit_h_14", "efficientnet_b1", "mobilenet_v3_large"])
def test_default_weights_are_torchvisions(backbone: str) -> None:
    assert name_default_weights(backbone) == get_model_weights(backbone)["DEFAULT"].name
