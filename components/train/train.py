"""Train, from tensors to a committed model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..store import uri as uris
from ..store.errors import UserError
from ..store.fingerprint import fingerprint
from ..store.manifest import Dataset, Manifest, Totals, commit, ready
from ..store.model import ModelSpec, build_network, pick_device, wrong_size
from ..store.parallel import cores
from ..store.preprocessing import KEY, preprocessing_of
from ..store.shards import publish_bytes
from ..store.step import CACHED, RAN, Context, Outcome
from ..store.tensors import input_image
from .agreement import conversion, disagreements, expected_by
from .artifact import artifact_files, facts_of, samples
from .checkpoint import TrainingState, discard_checkpoints
from .config import VERSION, TrainConfig
from .recipes import resolve
from .weights import load_pretrained, weights_identity

if TYPE_CHECKING:
    import torch


def train(config: TrainConfig, context: Context) -> Outcome:
    """Find the model that these tensors and this config give, or train it."""
    tensors = context.parent("tensors", config.tensors, "tensors")
    config = resolve(config, tensors.manifest)
    counting = config.counting() | weights_identity(config) | context.attempt()
    counting |= conversion(config, tensors.manifest.image)
    uri = context.workspace.dataset("model", fingerprint("model", VERSION, [tensors.fingerprint], counting))
    there = ready(uri)
    dataset = there or _build(tensors, uri, config, context)
    context.workspace.note_latest(config.name or tensors.manifest.extra["dataset_name"], dataset, context.run)
    extra = dataset.manifest.extra
    if not extra["metrics"]:
        context.say("there are no validation images: the last epoch is kept")
    else:
        context.say(f"best epoch {extra['best_epoch']}: validation macro-F1 {extra['metrics']['macro_f1']:.3f}")
    return Outcome(uri, dataset.fingerprint, CACHED if there else RAN, extra["metrics"])


def _build(tensors: Dataset, uri: str, config: TrainConfig, context: Context) -> Dataset:
    import torch

    from .loop import Trainer

    if tensors.manifest.totals.by_split.get("train", 0) < 2:
        raise UserError(f"tensors: expected at least two training images, found {tensors.manifest.totals.by_split}")
    torch.manual_seed(config.seed)
    torch.set_num_threads(cores())
    image = input_image(tensors.manifest.image)
    extra = conversion(config, image) | {KEY: preprocessing_of(tensors)}
    spec = ModelSpec(config.backbone, tensors.manifest.classes, image, tensors.manifest.task, extra=extra)
    network = build_network(spec)
    _check_takes_the_images(network, spec)
    if expected := expected_by(config, image):
        for line in disagreements(image, expected, config.backbone):
            context.say(f"warning: {line}")
    origin = load_pretrained(network, spec, config)
    device = pick_device(config.device)
    parameters = sum(p.numel() for p in network.parameters())
    context.say(
        f"{config.backbone} {origin}, {parameters / 1e6:.1f} M parameters, {len(spec.classes)} classes, on {device}"
    )
    started = time.monotonic()
    state = Trainer(network, tensors, config, device, uri, context).run()
    about = {"parameters": parameters, "origin": origin, "seconds": round(time.monotonic() - started, 1)}
    network.load_state_dict(state.best)
    dataset = commit(uri, _manifest(tensors, uri, config, spec, state, about, network))
    discard_checkpoints(uri)
    return dataset


def _check_takes_the_images(network: Any, spec: ModelSpec) -> None:
    """One empty image through the network: UserError where its layers can't take the size."""
    import torch

    size, _, channels = spec.image["shape"]
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, channels, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise wrong_size(spec, error) from None


def _manifest(
    tensors: Dataset, uri: str, config: TrainConfig, spec: ModelSpec, state: TrainingState, about: dict[str, Any],
    network: torch.nn.Module,
) -> Manifest:  # fmt: skip
    from safetensors.torch import save

    weights = save({key: value.contiguous() for key, value in state.best.items()}, {"format": "pt"})
    best = state.history[state.best_epoch - 1]
    metrics = {name: best[f"val_{name}"] for name in ("top1", "macro_f1", "loss") if f"val_{name}" in best}
    facts = facts_of(tensors, config, about | {"metrics": metrics, "best": best, "epochs": state.epoch})
    files = (
        publish_bytes(uri, weights, "model-", ".safetensors"),
        publish_bytes(uri, spec.to_json(), "model-", ".json"),
        *artifact_files(uri, network, spec, facts, samples(tensors)),
    )
    return Manifest(
        kind="model",
        fingerprint=uris.last_part(uri),
        parents=(tensors.as_parent(uri),),
        config=config.effective(),
        task=spec.task,
        classes=spec.classes,
        files=files,
        totals=Totals(bytes=sum(f.bytes for f in files)),
        image=spec.image,
        extra={
            "dataset_name": tensors.manifest.extra["dataset_name"],
            "backbone": spec.backbone,
            "weights": uris.last_part(config.weights) if config.weights else "",
            "metrics": metrics,
            "best_epoch": state.best_epoch,
            "epochs": state.epoch,
            "history": state.history,
            **spec.extra,
            **about,
        },
    )
