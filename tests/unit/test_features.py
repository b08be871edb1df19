"""Frozen features: the head's inputs in the tensors' order, computed once for a file of tensors and weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from stored import commit_tensors, make_rows
from trained import make_tensors, pictures, settings

from imagemill.components.dataset.index import make_tensors_index, read_index, read_rows, write_index
from imagemill.components.dataset.manifest import Dataset, commit
from imagemill.components.dataset.workspace import Workspace
from imagemill.components.models.artifact import ModelSpec, Normalize, build_network
from imagemill.components.models.features import LinearProbe, find_features, read_features, read_image_ids
from imagemill.components.step.step import Context
from imagemill.components.train import features as features_module
from imagemill.components.train.features import FeatureComputer, identify_features
from imagemill.components.train.loop.head_solver import get_linear_head

IDENTITY = {"backbone": "shufflenet_v2_x0_5", "weights": "w"}


class Stopped(Exception):
    pass


def make_network(tensors: Dataset) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(ModelSpec(IDENTITY["backbone"], tensors.manifest.classes, tensors.manifest.image))


def compute_features(
    tensors: Dataset, identity: dict[str, Any] = IDENTITY, stop_after: int = 10**6
) -> tuple[Dataset, int]:
    """The features, and in how many batches they were computed; Stopped before one too many."""
    batches = 0

    def count() -> None:
        nonlocal batches
        if batches == stop_after:
            raise Stopped
        batches += 1

    workspace = tensors.uri.rpartition("/tensors/")[0]
    context = Context("train", Workspace.open(workspace), "run", False)
    network = make_network(tensors)
    device = torch.device("cpu")
    features = FeatureComputer(network, tensors, identity, device, context, 1, before_batch=count).run()
    assert not any(module._forward_pre_hooks for module in network.modules())
    return features, batches


def add_part(tensors: Dataset, rows: int = 6) -> Dataset:
    """The tensors of the next week: the same parts, and one more."""
    uri = tensors.uri.replace("/01", "/02")
    added = commit_tensors(f"{uri}0", make_rows("train", pictures(rows, 32), [0] * rows, "new"), (32, 32, 3))
    index = pa.concat_tables([read_index(dataset).cast(make_tensors_index("single")) for dataset in (tensors, added)])
    totals = replace(tensors.manifest.totals, by_split={"train": 40 + rows, "val": 10}, rows=50 + rows)
    parts = (*tensors.manifest.parts, *added.manifest.parts)
    files = tuple(write_index(uri, index))
    return commit(uri, replace(tensors.manifest, fingerprint="02", parts=parts, files=files, totals=totals))


def test_features_are_the_heads_inputs_in_the_tensors_order(tmp_path: Path) -> None:
    tensors = make_tensors(tmp_path)
    features, _ = compute_features(tensors)
    network = make_network(tensors).eval()
    head_inputs: list[torch.Tensor] = []
    layer = get_linear_head(network)
    assert layer is not None
    layer.register_forward_pre_hook(lambda _, inputs: head_inputs.append(inputs[0]))
    for split, number in (("train", 40), ("val", 10)):
        values, labels = read_features(features, split)
        tables = list(read_rows(tensors, ["image", "label_id", "image_id"], split))
        pixels = np.concatenate([np.frombuffer(b"".join(t.column("image").to_pylist()), np.uint8) for t in tables])
        with torch.inference_mode():
            images = torch.from_numpy(pixels.reshape(number, 32, 32, 3))
            logits = network(Normalize(tensors.manifest.image, torch.device("cpu"))(images)).numpy()
        assert np.allclose(values, head_inputs.pop().numpy(), atol=1e-4)
        assert labels.tolist() == [label for t in tables for label in t.column("label_id").to_pylist()]
        probe = LinearProbe(layer.weight.detach().numpy(), layer.bias.detach().numpy())
        assert np.allclose(probe(values), logits, atol=1e-4)
        ids = read_image_ids(features, (split,))
        assert ids == [i for t in tables for i in t.column("image_id").to_pylist()]
    assert features.parent_uris("tensors") == [tensors.uri] and not features.missing()
    assert len(read_features(features, "train", 7)[0]) == 7 and len(read_features(features, "test")[0]) == 0


def test_only_new_files_are_computed(tmp_path: Path) -> None:
    tensors = make_tensors(tmp_path)
    first, batches = compute_features(tensors)
    assert batches == 2 and compute_features(tensors)[1] == 0
    second, added = compute_features(add_part(tensors))
    assert added == 1 and second.manifest.totals.by_split == {"train": 46, "val": 10, "test": 0}
    assert {part.sha256 for part in first.manifest.parts} < {part.sha256 for part in second.manifest.parts}
    assert np.array_equal(read_features(first, "train")[0], read_features(second, "train")[0][:40])
    assert compute_features(tensors, IDENTITY | {"weights": "other"})[1] == 2, "other weights, other features"


def test_interrupted_pass_continues_and_a_lost_file_is_computed_again(tmp_path: Path) -> None:
    tensors = make_tensors(tmp_path / "a")
    expected = compute_features(make_tensors(tmp_path / "b"))[0]
    with pytest.raises(Stopped):
        compute_features(tensors, stop_after=1)
    features, batches = compute_features(tensors)
    assert batches == 1 and features.manifest.parts == expected.manifest.parts
    Path(features.locate_part(features.manifest.parts[0])).unlink()
    recomputed, batches = compute_features(tensors)
    assert batches == 1 and recomputed.manifest_sha256 == features.manifest_sha256 and not recomputed.missing()


def test_of_many_images_the_first_files_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "MAX_IMAGES", 40)
    features, batches = compute_features(add_part(make_tensors(tmp_path)))
    assert batches == 2 and features.manifest.totals.by_split == {"train": 40, "val": 10, "test": 0}


def test_features_are_identified_by_backbone_and_weights(tmp_path: Path) -> None:
    tensors = make_tensors(tmp_path)
    config = settings(tensors, weights="IMAGENET1K_V1", backbone="resnet18")
    assert identify_features(config, tensors.manifest) == {"backbone": "resnet18", "weights": "IMAGENET1K_V1"}
    assert identify_features(settings(tensors), tensors.manifest) == {}, "from scratch"
    champion = replace(config, start="champion")
    assert identify_features(champion, tensors.manifest) == {}, "it has seen the labels"
    solved = identify_features(replace(champion, head="solved"), tensors.manifest)
    assert solved["start"] == "champion"
    assert identify_features(config, replace(tensors.manifest, task="multi")) == {}
    assert find_features(tensors) is None
