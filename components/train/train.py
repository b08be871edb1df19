"""The train step: from tensors to a committed model."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..dataset.fingerprint import fingerprint
from ..dataset.kinds import ModelExtra, NetworkExtra, WarmStart
from ..dataset.manifest import Dataset, Manifest, Totals, commit, read_dataset
from ..dataset.shards import publish_bytes
from ..models.artifact import (
    ModelSpec,
    build_network,
    describe_preprocessing,
    image_size_error,
    pick_device,
    set_torch_threads,
)
from ..models.ood import OodDetector
from ..step.step import CACHED, RAN, RANK_RECORDS, Context, Outcome
from ..storage import uri as uris
from ..storage.errors import UserError
from .artifact.publish import collect_facts, publish_onnx_and_card, read_samples
from .augment.external import resolve_pipeline
from .config import VERSION, WEIGHTS, TrainConfig
from .expected_input import describe_conversion
from .features import make_features
from .loop.checkpoint import TrainingState, discard_checkpoints
from .loop.distributed import Communicator, StopRequest, choose_processes, count_processes, run_processes
from .loop.domain_adversary import describe_target, open_target
from .loop.head_solver import VERSION as SOLVER_VERSION
from .loop.head_solver import HeadSolution, solve_head
from .loop.history import diagnose, publish_history
from .loop.validation import fit_detector
from .mlflow_run import NONE, MlflowRun, choose_experiment, open_run
from .preflight import find_warnings
from .pretrained_weights import find_initial_model, identify_weights, load_pretrained
from .recipes import describe_recipe, explain_choice, explain_epochs, resolve
from .warm_start import apply_start, check_exists, find_start

if TYPE_CHECKING:
    import torch


def train(config: TrainConfig, context: Context) -> Outcome:
    """Return the model of these tensors and this config: the existing one, or trained in one process or several."""
    tensors = context.parent("tensors", config.tensors, "tensors")
    requested, start = config, find_start(config, tensors, context)
    config = resolve(apply_start(config, start, context), tensors.manifest)
    counting = config.fingerprint_values() | context.rerun_salt()
    counting |= {"start": start.weights_sha256} if start else identify_weights(config)
    counting |= describe_conversion(config, tensors.manifest.image_spec)
    if config.head == "solved":
        counting |= {"solver": SOLVER_VERSION}
    if config.augment_pipeline:  # counts by its content, wherever it is stored
        counting |= {"augment_pipeline": resolve_pipeline(config.augment_pipeline)[1]}
    target = open_target(config, tensors, context)
    if target:
        counting |= {"domain_adversarial": target.fingerprint}
    number = count_processes(config)
    if number > 1:  # gives other weights
        counting |= {"processes": number}
    uri = context.workspace.dataset("model", fingerprint("model", VERSION, [tensors.fingerprint], counting))
    stop = StopRequest()
    with stop.handle_signals():
        comm = Communicator.join(config.device, stop)
        is_cached = bool(comm.broadcast(float(context.find(uri) is not None))[0])
        if not is_cached and choose_processes(config) > comm.world_size:
            run_processes(requested, context.run, number, stop)
        elif not is_cached:
            reasons = explain_choice(apply_start(requested, start, context), tensors.manifest)
            reasons += explain_epochs(requested, config, tensors.manifest)
            mlflow = open_run(config.mlflow if comm.is_main else NONE, uris.basename(uri))
            with mlflow.mark_failures():
                _train_and_commit(tensors, target, start, uri, config, context, comm, reasons, mlflow)
        comm.close()
    dataset = read_dataset(uri, "model")
    extra = ModelExtra.of(dataset.manifest)
    if comm.is_main and RANK_RECORDS not in os.environ:  # else the process that started this one does it
        context.note_latest(config.name or tensors.name, dataset)
        if not extra.metrics:
            context.say("there are no validation images: the last epoch is kept")
        else:
            context.say(f"best epoch {extra.best_epoch}: validation macro-F1 {extra.metrics['macro_f1']:.3f}")
    return Outcome(uri, dataset.fingerprint, CACHED if is_cached else RAN, extra.metrics)


def _train_and_commit(
    tensors: Dataset,
    target: Dataset | None,
    start: WarmStart | None,
    uri: str,
    config: TrainConfig,
    context: Context,
    comm: Communicator,
    reasons: list[str],
    mlflow: MlflowRun,
) -> None:
    """Train a network, and let the main process commit the model.

    `target`: the dataset of `domain_adversarial`. `reasons`: lines on the choice of the recipe.
    """
    import torch

    from .loop.trainer import Trainer

    _check_enough_images(tensors, comm.world_size)
    if start:
        check_exists(start, context)
    initial = find_initial_model(config, context.workspace)
    device = _set_up_device(config, comm)
    torch.manual_seed(config.seed)
    image = tensors.manifest.image_spec.for_model()
    converts = describe_conversion(config, image).get("transform_input")
    extra = NetworkExtra(converts, describe_preprocessing(tensors))
    spec = ModelSpec(config.backbone, tensors.manifest.classes, image, tensors.manifest.task, extra=extra)
    network = build_network(spec, config.dropout, config.drop_path)
    _check_image_size(network, spec)
    origin = load_pretrained(network, spec, config)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    devices = f"{comm.world_size} processes, each on {device.type}" if comm.world_size > 1 else str(device)
    context.say(
        f"{config.backbone} {origin}, {parameters / 1e6:.1f} M parameters, {len(spec.classes)} classes, on {devices}"
    )
    recipe = [*reasons, *describe_recipe(config), *([describe_target(target)] if target else [])]
    for line in recipe:
        context.say(line)
    for line in find_warnings(config, tensors.manifest, spec):
        context.say(f"warning: {line}")
    events_uri = context.workspace.run_file(context.run, "tensorboard") if config.tensorboard else ""
    tags = {"imagemill.run": context.run, "imagemill.tensors": tensors.uri}
    mlflow.start(choose_experiment(config.name or tensors.name), context.run, config.manifest_values(), tags)
    started = time.monotonic()
    features = make_features(network, tensors, config, device, context, comm) if comm.is_main else None
    is_final = config.head == "solved" and config.epochs == 1 and comm.world_size == 1
    solution = solve_head(features, device, is_final) if features else None
    if solution:
        recipe.append(solution.describe())
        context.say(recipe[-1])
    trainer = Trainer(network, tensors, config, device, uri, context, comm, events_uri, solution, target)
    trainer.log_epoch = mlflow.log_epoch
    trainer.preparation_seconds = time.monotonic() - started
    state = trainer.run()
    if comm.is_main:
        seconds = round(time.monotonic() - started, 1)
        training = ModelExtra(parameters=parameters, origin=origin, seconds=seconds, start=start)
        has_hard_targets = not (config.label_smoothing or config.mixup_probability or config.cutmix_probability)
        if diagnosis := diagnose(state.history, state.best_epoch, has_hard_targets):
            context.say(f"warning: {diagnosis}")
        if comm.world_size > 1:  # one without SyncBatchNorm, to be exported
            network = build_network(spec, config.dropout, config.drop_path).to(device)
        network.load_state_dict(state.best_weights)
        if solution and solution.out_of_fold:
            temperature = solution.out_of_fold.temperature
        else:
            temperature = trainer.validator.fit_temperature(network)
        spec = replace(spec, extra=replace(spec.extra, temperature=temperature))
        detector = fit_detector(network, trainer.validator, config.ood_rate, context)
        training = replace(training, recipe=recipe, probe=solution.summarize() if solution else None)
        parents = tuple(dataset.as_parent(uri) for dataset in (tensors, target, initial, features) if dataset)
        manifest = _publish_files(
            tensors, initial, uri, config, spec, state, training, network, solution, detector, comm.world_size
        )
        commit(uri, replace(manifest, parents=parents))
        discard_checkpoints(uri)
        mlflow.finish(uri, ModelExtra.of(manifest).metrics, state.best_epoch)
    comm.wait_for_main()  # it has committed


def _check_enough_images(tensors: Dataset, processes: int) -> None:
    rows = tensors.manifest.totals.by_split
    if rows.get("train", 0) < 2 * processes:
        per_process = f" for each of {processes} processes" if processes > 1 else ""
        raise UserError(f"tensors: expected at least two training images{per_process}, found {rows}")


def _set_up_device(config: TrainConfig, comm: Communicator) -> torch.device:
    """Return this process's device, and set torch's threads and kernels up for training."""
    import torch

    device = pick_device(config.device)
    set_torch_threads()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TensorFloat-32 for what is not computed in bfloat16
        torch.backends.cudnn.benchmark = True
        if comm.world_size > 1:
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
    return device


def _check_image_size(network: Any, spec: ModelSpec) -> None:
    """Run the network on one empty image: UserError where its layers can't take the size."""
    import torch

    size, _, channels = spec.image.shape
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, channels, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise image_size_error(spec, error) from None


def _publish_files(
    tensors: Dataset, initial: Dataset | None, uri: str, config: TrainConfig, spec: ModelSpec, state: TrainingState,
    training: ModelExtra, network: torch.nn.Module, solution: HeadSolution | None, detector: OodDetector | None,
    processes: int,
) -> Manifest:  # fmt: skip
    """Write all files of the model, and return its manifest, without parents.

    `initial`: the model that training started from; `training`: parameters, origin, seconds, recipe, and the champion.
    """
    from safetensors.torch import save

    weights = save({name: value.contiguous() for name, value in state.best_weights.items()}, {"format": "pt"})
    best = state.history[state.best_epoch - 1]
    metrics = {name: best[f"val_{name}"] for name in ("top1", "macro_f1", "loss") if f"val_{name}" in best}
    facts = collect_facts(
        tensors, initial, config, training, metrics=metrics, best=best, epochs=state.epoch,
    )  # fmt: skip
    files = (
        publish_bytes(uri, weights, "model-", ".safetensors"),
        publish_bytes(uri, spec.to_json(), "model-", ".json"),
        publish_history(uri, state.history),
        *publish_onnx_and_card(uri, network, spec, facts, read_samples(tensors)),
        *([solution.probe.publish(uri)] if solution else []),
        *([detector.publish(uri)] if detector else []),
    )
    return Manifest(
        kind="model",
        fingerprint=uris.basename(uri),
        config=config.manifest_values() | ({"processes": processes} if processes > 1 else {}),
        task=spec.task,
        classes=spec.classes,
        files=files,
        totals=Totals(bytes=sum(file.bytes for file in files)),
        image=spec.image,
        extra=replace(
            training,
            dataset_name=tensors.name,
            backbone=spec.backbone,
            weights=uris.basename(config.weights) if config.weights and config.start == WEIGHTS else "",
            metrics=metrics,
            best_epoch=state.best_epoch,
            epochs=state.epoch,
            history=state.history,
            **vars(spec.extra),
        ),
    )
