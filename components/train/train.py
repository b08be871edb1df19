"""Train, from tensors to a committed model."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..store import uri as uris
from ..store.errors import UserError
from ..store.fingerprint import fingerprint
from ..store.manifest import Dataset, Manifest, Totals, commit, read_dataset
from ..store.model import ModelSpec, build_network, image_size_error, pick_device
from ..store.parallel import cores
from ..store.preprocessing import EXTRA_KEY, describe_preprocessing
from ..store.shards import publish_bytes
from ..store.step import CACHED, RAN, RANK_RECORDS, Context, Outcome
from ..store.tensors import model_input_image
from .agreement import conversion
from .artifact import artifact_files, facts_of, samples
from .checkpoint import TrainingState, discard_checkpoints
from .config import VERSION, TrainConfig
from .external import resolve_pipeline
from .history import publish_history, verdict
from .launch import launch, processes
from .preflight import warnings
from .ranks import Ranks, StopSign
from .recipe_text import recipe_lines
from .recipes import resolve
from .weights import load_pretrained, weights_identity

if TYPE_CHECKING:
    import torch


def train(config: TrainConfig, context: Context) -> Outcome:
    """Find the model that these tensors and this config give, or train it, in one process or several."""
    tensors = context.parent("tensors", config.tensors, "tensors")
    asked, config = config, resolve(config, tensors.manifest)
    counting = config.fingerprint_values() | weights_identity(config) | context.attempt()
    counting |= conversion(config, tensors.manifest.image) | _pipeline_identity(config)
    uri = context.workspace.dataset("model", fingerprint("model", VERSION, [tensors.fingerprint], counting))
    stop = StopSign()
    with stop.raised_by_signals():
        ranks = Ranks.join(config.device, stop)
        there = bool(ranks.from_first(float(context.find(uri) is not None))[0])
        if not there and (number := processes(config)) > 1:
            launch(asked, context.run, number, stop)
        elif not there:
            _build(tensors, uri, config, context, ranks)
        ranks.leave()
    dataset = read_dataset(uri, "model")
    extra = dataset.manifest.extra
    if ranks.first and RANK_RECORDS not in os.environ:  # else the process that started this one does it
        context.note_latest(config.name or tensors.manifest.extra["dataset_name"], dataset)
        if not extra["metrics"]:
            context.say("there are no validation images: the last epoch is kept")
        else:
            context.say(f"best epoch {extra['best_epoch']}: validation macro-F1 {extra['metrics']['macro_f1']:.3f}")
    return Outcome(uri, dataset.fingerprint, CACHED if there else RAN, extra["metrics"])


def _build(tensors: Dataset, uri: str, config: TrainConfig, context: Context, ranks: Ranks) -> None:
    """Train, and let the first rank commit what came of it."""
    import torch

    from .loop import Trainer

    _check_there_is_enough(tensors, ranks.number)
    device = _device(config, ranks)
    torch.manual_seed(config.seed)
    image = model_input_image(tensors.manifest.image)
    extra = conversion(config, image) | {EXTRA_KEY: describe_preprocessing(tensors)}
    spec = ModelSpec(config.backbone, tensors.manifest.classes, image, tensors.manifest.task, extra=extra)
    network = build_network(spec, config.dropout, config.drop_path)
    _check_takes_the_images(network, spec)
    origin = load_pretrained(network, spec, config)
    parameters = sum(p.numel() for p in network.parameters())
    on = f"{ranks.number} processes, each on {device.type}" if ranks.number > 1 else str(device)
    context.say(
        f"{config.backbone} {origin}, {parameters / 1e6:.1f} M parameters, {len(spec.classes)} classes, on {on}"
    )
    for line in recipe_lines(config):
        context.say(line)
    for line in warnings(config, tensors.manifest, spec):
        context.say(f"warning: {line}")
    started = time.monotonic()
    events = context.workspace.run_file(context.run, "tensorboard") if config.tensorboard else ""
    trainer = Trainer(network, tensors, config, device, uri, context, ranks, events)
    state = trainer.run()
    if ranks.first:
        about = {"parameters": parameters, "origin": origin, "seconds": round(time.monotonic() - started, 1)}
        hard = not (config.label_smoothing or config.mixup_probability or config.cutmix_probability)
        if said := verdict(state.history, state.best_epoch, hard):
            context.say(f"warning: {said}")
        network.load_state_dict(state.best)
        spec = replace(spec, extra=spec.extra | {"temperature": trainer.validation.temperature(network)})
        commit(uri, _manifest(tensors, uri, config, spec, state, about, network))
        discard_checkpoints(uri)
    ranks.from_first(0.0)  # it is committed


def _pipeline_identity(config: TrainConfig) -> dict[str, str]:
    """What of somebody else's augmentation counts: what it does, wherever it was saved."""
    return {"augment_pipeline": resolve_pipeline(config.augment_pipeline)[1]} if config.augment_pipeline else {}


def _check_there_is_enough(tensors: Dataset, processes: int) -> None:
    rows = tensors.manifest.totals.by_split
    if rows.get("train", 0) < 2 * processes:
        each = f" for each of {processes} processes" if processes > 1 else ""
        raise UserError(f"tensors: expected at least two training images{each}, found {rows}")


def _device(config: TrainConfig, ranks: Ranks) -> torch.device:
    """This process's own, set up for training."""
    import torch

    device = pick_device(config.device)
    asked = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(int(asked) if asked.isdecimal() else share)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TensorFloat-32, where bfloat16 is not wanted
        torch.backends.cudnn.benchmark = True
        if ranks.number > 1:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    return device


def _check_takes_the_images(network: Any, spec: ModelSpec) -> None:
    """One empty image through the network: UserError where its layers can't take the size."""
    import torch

    size, _, channels = spec.image["shape"]
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, channels, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise image_size_error(spec, error) from None


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
        publish_history(uri, state.history),
        *artifact_files(uri, network, spec, facts, samples(tensors)),
    )
    return Manifest(
        kind="model",
        fingerprint=uris.basename(uri),
        parents=(tensors.as_parent(uri),),
        config=config.manifest_values(),
        task=spec.task,
        classes=spec.classes,
        files=files,
        totals=Totals(bytes=sum(f.bytes for f in files)),
        image=spec.image,
        extra={
            "dataset_name": tensors.manifest.extra["dataset_name"],
            "backbone": spec.backbone,
            "weights": uris.basename(config.weights) if config.weights else "",
            "recipe": recipe_lines(config),
            "metrics": metrics,
            "best_epoch": state.best_epoch,
            "epochs": state.epoch,
            "history": state.history,
            **spec.extra,
            **about,
        },
    )
