"""The train step: from tensors to a committed model."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..dataset.kinds import ModelExtra, NetworkExtra, WarmStart
from ..dataset.manifest import Dataset, Manifest, Totals, commit, fingerprint, read_dataset
from ..dataset.shards import publish_bytes
from ..models.artifact import (
    ModelSpec,
    build_network,
    describe_preprocessing,
    image_size_error,
    pick_device,
    set_torch_threads,
)
from ..models.features import OodDetector
from ..step.step import CACHED, RAN, RANK_RECORDS, Context, Outcome
from ..storage import uri as uris
from ..storage.errors import UserError
from .artifact.publish import collect_facts, publish_onnx_and_card, read_samples
from .augment.external import resolve_pipeline
from .config import AUTO, CPU_SECONDS, VERSION, WEIGHTS, TrainConfig
from .expected_input import describe_conversion
from .features import make_features
from .loop.checkpoint import TrainingState, discard_checkpoints
from .loop.distributed import Communicator
from .loop.domain_adversary import describe_target, open_target
from .loop.head_solver import VERSION as SOLVER_VERSION
from .loop.head_solver import HeadSolution, solve_head
from .loop.history import diagnose, publish_history
from .loop.processes import choose_processes, count_processes, run_processes
from .loop.validation import Validator, fit_detector
from .mirror_probe import probe_flips
from .mlflow_run import NONE, MlflowRun, choose_experiment, open_run
from .preflight import find_warnings
from .pretrained_weights import choose_weights, find_initial_model, identify_weights, load_pretrained
from .recipes import chooses_epochs, describe_recipe, explain_choice, resolve
from .warm_start import apply_start, check_exists, find_label_map, find_start

if TYPE_CHECKING:
    import torch


def train(asked: TrainConfig, context: Context) -> Outcome:
    """Train a model on a tensors dataset, in one process or several, unless there is one with this fingerprint."""
    tensors = context.parent("tensors", asked.tensors, "tensors")
    start, weights_line = find_start(asked, tensors, context), ""
    requested = apply_start(asked, start, context)
    if start is None:  # decided here once, for all processes of the training
        requested, weights_line = choose_weights(requested, tensors, context)
    config = resolve(requested, tensors.manifest)
    fingerprint_values = config.fingerprint_values() | context.rerun_salt()
    fingerprint_values |= {"start": start.weights_sha256} if start else identify_weights(config)
    fingerprint_values |= describe_conversion(config, tensors.manifest.image_spec)
    if config.head == "solved":
        fingerprint_values |= {"solver": SOLVER_VERSION}
        fingerprint_values |= {"solver_metric": config.metric} if config.metric != "macro_f1" else {}
    if config.augment_pipeline:  # counts by its content, wherever it is stored
        fingerprint_values |= {"augment_pipeline": resolve_pipeline(config.augment_pipeline)[1]}
    if requested.epochs is None and not config.time:  # planned by machine and validation
        fingerprint_values |= {"planned": True}
    target = open_target(config, tensors, context)
    if target:
        fingerprint_values |= {"domain_adversarial": target.fingerprint}
    processes = count_processes(config)
    if processes > 1:  # gives other weights
        fingerprint_values |= {"processes": processes}
    uri = context.workspace.dataset_uri(
        "model", fingerprint("model", VERSION, [tensors.fingerprint], fingerprint_values)
    )
    with context.stop.handle_signals():
        comm = Communicator.join(config.device, context.stop)
        is_cached = bool(comm.broadcast(float(context.find(uri) is not None))[0])
        if not is_cached and choose_processes(config) > comm.world_size:
            if weights_line:
                context.say(weights_line)
            run_processes(asked if start else requested, context.run, processes, context.stop)
        elif not is_cached:
            mlflow = open_run(config.mlflow if comm.is_main else NONE, uris.basename(uri))
            with mlflow.mark_failures():
                job = _Job(tensors, target, start, uri, asked, requested, config, context, comm, mlflow, weights_line)
                _train_and_commit(job)
        comm.close()
    dataset = read_dataset(uri, "model")
    extra = ModelExtra.of(dataset.manifest)
    if comm.is_main and RANK_RECORDS not in os.environ:  # in a process of several, the one that started it does this
        context.note_latest(config.name or tensors.name, dataset)
        if not extra.metrics:
            context.say("there are no validation images: the last epoch is kept")
        else:
            context.say(f"best epoch {extra.best_epoch}: validation macro-F1 {extra.metrics['macro_f1']:.3f}")
    return Outcome(uri, dataset.fingerprint, CACHED if is_cached else RAN, extra.metrics)


@dataclass(frozen=True)
class _Job:
    """The inputs of one training.

    Attributes:
        target: the dataset of `domain_adversarial`.
        start: the champion whose weights initialize the network.
        uri: URI of the model to commit.
        asked: the options as the user set them.
        requested: these with what `start` and `weights` mean now.
        config: resolved, every option has a value.
        weights_line: why `--weights auto` starts from scratch, or an empty text.
    """

    tensors: Dataset
    target: Dataset | None
    start: WarmStart | None
    uri: str
    asked: TrainConfig
    requested: TrainConfig
    config: TrainConfig
    context: Context
    comm: Communicator
    mlflow: MlflowRun
    weights_line: str


@dataclass(frozen=True)
class _TrainedModel:
    """A trained network and what is published with it. `extra`: all fields but those of `_publish_files`."""

    network: torch.nn.Module
    spec: ModelSpec
    state: TrainingState
    solution: HeadSolution | None
    detector: OodDetector | None
    extra: ModelExtra


def _train_and_commit(job: _Job) -> None:
    """Train a network, and let the main process commit the model."""
    import torch

    from .loop.trainer import Trainer

    _check_enough_images(job.tensors, job.comm.world_size)
    job, flip_line = _decide_flips(job)
    config, context, comm = job.config, job.context, job.comm
    if job.start:
        check_exists(job.start, context)
    initial = find_initial_model(config, context.workspace)
    device = _set_up_device(config, comm)
    torch.manual_seed(config.seed)
    spec = _make_spec(config, job.tensors)
    network = build_network(spec, config.dropout, config.drop_path)
    _check_image_size(network, spec)
    origin = load_pretrained(network, spec, config, find_label_map(job.tensors))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    recipe_lines = flip_line + _report_beginning(job, spec, f"{origin}, {parameters / 1e6:.1f} M parameters", device)
    events_uri = context.workspace.run_file_uri(context.run, "tensorboard") if config.tensorboard else ""
    started = time.monotonic()
    features = make_features(network, job.tensors, config, device, context, comm) if comm.is_main else None
    head_is_final = config.head == "solved" and config.epochs == 1 and comm.world_size == 1
    solution = solve_head(features, head_is_final, config.metric) if features else None
    if solution:
        recipe_lines.append(solution.describe())
        context.say(recipe_lines[-1])
    trainer = Trainer(network, job.tensors, config, device, job.uri, context, comm, events_uri, solution, job.target)
    trainer.log_epoch = job.mlflow.log_epoch
    trainer.preparation_seconds = time.monotonic() - started
    trainer.goes_on = chooses_epochs(job.requested, config, job.tensors.manifest)
    if device.type == "cpu" and job.requested.epochs is None and not config.time:
        trainer.seconds = CPU_SECONDS
    state = trainer.run()
    if comm.is_main:
        probe = solution.summarize() if solution else None
        seconds = round(time.monotonic() - started, 1)
        extra = ModelExtra(
            parameters=parameters, origin=origin, seconds=seconds, start=job.start, recipe=recipe_lines, probe=probe
        )
        if comm.world_size > 1:  # without SyncBatchNorm, which can't be exported
            network = build_network(spec, config.dropout, config.drop_path).to(device)
        model = _TrainedModel(network, spec, state, solution, None, extra)
        model = _load_best_and_calibrate(job, model, trainer.validator)
        _commit_model(job, initial, features, model)
    comm.wait_for_main()  # until it has committed


def _decide_flips(job: _Job) -> tuple[_Job, list[str]]:
    """Return the job with `flip` true or false, and a line on what the images showed where they turned flips off."""
    if job.config.flip != AUTO:
        return job, []
    is_used = not job.config.augment_pipeline and job.config.recipe != "probe"
    result = probe_flips(job.tensors) if is_used and job.comm.is_main else None
    hurts = bool(job.comm.broadcast(float(result is not None and result.flips_hurt))[0])
    job = replace(job, config=replace(job.config, flip="false" if hurts else "true"))
    if hurts and result:
        job.context.say(result.describe())
    return job, [result.describe()] if hurts and result else []


def _make_spec(config: TrainConfig, tensors: Dataset) -> ModelSpec:
    image = tensors.manifest.image_spec.for_model()
    converts = describe_conversion(config, image).get("transform_input")
    extra = NetworkExtra(converts, describe_preprocessing(tensors))
    return ModelSpec(config.backbone, tensors.manifest.classes, image, tensors.manifest.task, extra=extra)


def _report_beginning(job: _Job, spec: ModelSpec, network_summary: str, device: torch.device) -> list[str]:
    """Say what is trained, and start the run of MLflow; return the lines on the recipe.

    `network_summary`: the origin of its weights and its size, in words.
    """
    config, context, processes = job.config, job.context, job.comm.world_size
    share = config.batch_size // processes
    devices = (
        f"{processes} processes, each on {device.type} with {share} images a batch" if processes > 1 else str(device)
    )
    context.say(f"{config.backbone} {network_summary}, {len(spec.classes)} classes, on {devices}")
    lines = [
        *([job.weights_line] if job.weights_line else []),
        *explain_choice(job.requested, job.tensors.manifest),
        *describe_recipe(config),
        *([describe_target(job.target)] if job.target else []),
    ]
    for line in lines:
        context.say(line)
    for line in find_warnings(config, job.tensors.manifest, spec):
        context.say(f"warning: {line}")
    tags = {"imagemill.run": context.run, "imagemill.tensors": job.tensors.uri}
    experiment = choose_experiment(config.name or job.tensors.name)
    job.mlflow.start(experiment, context.run, config.manifest_values(), tags)
    return lines


def _load_best_and_calibrate(job: _Job, model: _TrainedModel, validator: Validator) -> _TrainedModel:
    """Give the network its best weights; return the model with its temperature and out-of-distribution detector."""
    config, state, solution = job.config, model.state, model.solution
    has_hard_targets = not (config.label_smoothing or config.mixup_probability or config.cutmix_probability)
    if diagnosis := diagnose(state.history, state.best_epoch, has_hard_targets):
        job.context.say(f"warning: {diagnosis}")
    model.network.load_state_dict(state.best_weights)
    if solution and solution.out_of_fold:
        temperature = solution.out_of_fold.temperature
    else:
        temperature = validator.fit_temperature(model.network)
    spec = replace(model.spec, extra=replace(model.spec.extra, temperature=temperature))
    detector = fit_detector(model.network, validator, config.ood_rate, job.context)
    return replace(model, spec=spec, detector=detector)


def _commit_model(job: _Job, initial: Dataset | None, features: Dataset | None, model: _TrainedModel) -> None:
    """Publish and commit the model. `initial`: the model that training started from."""
    manifest = _publish_files(job, initial, model)
    datasets = (job.tensors, job.target, initial, features)
    parents = tuple(dataset.as_parent(job.uri) for dataset in datasets if dataset)
    commit(job.uri, replace(manifest, parents=parents))
    discard_checkpoints(job.uri)
    job.mlflow.finish(job.uri, ModelExtra.of(manifest).metrics, model.state.best_epoch)


def _check_enough_images(tensors: Dataset, processes: int) -> None:
    images = tensors.manifest.totals.by_split.get("train", 0)
    if images < 2 * processes:
        per_process = f" for each of {processes} processes" if processes > 1 else ""
        raise UserError(f"tensors: expected at least two training images{per_process}, found {images}")


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


def _list_asked(asked: TrainConfig) -> dict[str, Any]:
    """Return the options that count and that the user, or a preset, has set to other values than the defaults."""
    others = {name: getattr(asked, name) for name in ("recipe", "start", "weights")}
    changed = {name: uris.basename(value) for name, value in others.items() if value != getattr(TrainConfig, name)}
    return asked.fingerprint_values() | changed


def _publish_files(job: _Job, initial: Dataset | None, model: _TrainedModel) -> Manifest:
    """Write all files of the model, and return its manifest, without parents."""
    from safetensors.torch import save

    uri, config, spec, state = job.uri, job.config, model.spec, model.state
    weights = save({name: value.contiguous() for name, value in state.best_weights.items()}, {"format": "pt"})
    best_row = state.history[state.best_epoch - 1]
    metrics = {name: best_row[f"val_{name}"] for name in ("top1", "macro_f1", "loss") if f"val_{name}" in best_row}
    facts = collect_facts(
        job.tensors, initial, config, model.extra, metrics=metrics, best=best_row, epochs=state.epoch,
    )  # fmt: skip
    files = (
        publish_bytes(uri, weights, "model-", ".safetensors"),
        publish_bytes(uri, spec.to_json(), "model-", ".json"),
        publish_history(uri, state.history),
        *publish_onnx_and_card(uri, model.network, spec, facts, read_samples(job.tensors)),
        *([model.solution.probe.publish(uri)] if model.solution else []),
        *([model.detector.publish(uri)] if model.detector else []),
    )
    processes = job.comm.world_size
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
            model.extra,
            dataset_name=job.tensors.name,
            backbone=spec.backbone,
            weights=uris.basename(config.weights) if config.weights and config.start == WEIGHTS else "",
            metrics=metrics,
            best_epoch=state.best_epoch,
            epochs=state.epoch,
            history=state.history,
            requested=_list_asked(job.asked),
            **vars(spec.extra),
        ),
    )
