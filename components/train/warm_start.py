"""Warm start: find the champion whose weights a training starts from, and fit them to today's classes.

The champion is looked up once for a name, tensors and config, and recorded below the name: every later attempt, and a
run that has not changed, starts from that model and so finds its checkpoint or its result, whoever was promoted since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..dataset.kinds import CleanExtra, ModelExtra, WarmStart
from ..dataset.manifest import Dataset, Manifest, digest, find_dataset, find_intact_dataset
from ..models.artifact import ModelSpec
from ..models.blocks import head_modules
from ..step.step import Context
from ..storage.errors import UserError
from .config import AUTO, CHAMPION, NO_WEIGHTS, VERSION, WEIGHTS, TrainConfig

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

MAX_GROWTH = 1.5
"""With more images, relative to the champion's, the user is warned: with 1.9 times as many a warm start was 0.23 below
a training from nothing, with 1.1 times the same (tests/benchmarks/warm_start.py; the limit between is a choice)."""


def check_exists(start: WarmStart, context: Context) -> None:
    """Raise UserError where the model that a training started from is gone."""
    if find_intact_dataset(context.workspace.absolute(start.model)) is None:
        raise UserError(
            f"start: expected the champion of promotion {start.promotion}, from which this training began, at "
            f"{start.model}, found no intact model: --rerun train starts from today's champion"
        )


def find_start(config: TrainConfig, tensors: Dataset, context: Context) -> WarmStart | None:
    """Return the champion that this training starts from, None where it starts as without `--start champion`.

    UserError for a champion with another backbone. NotCached where it would have to be looked up now and must not be.
    """
    if config.start != CHAMPION:
        return None
    name = config.name or tensors.name
    key = _make_key(config, tensors, context)
    record = context.workspace.start(name, key)
    if record is None:
        context.refuse_if_only_cached(f"a start of {name}")
        start = _find_champion(config, name, tensors, context)
        context.workspace.add_start(name, key, start.to_dict() if start else {}, context.run)
        record = context.workspace.start(name, key)  # another process may have been first
        assert record is not None
    return WarmStart.from_dict(record, f"the start {key} of {name}") if record["model"] else None


def apply_start(config: TrainConfig, start: WarmStart | None, context: Context) -> TrainConfig:
    """Return the config of a training that starts from `start`: from the champion's weights if there is one, else as
    without `--start champion`."""
    if start is not None:
        return replace(config, weights=context.workspace.absolute(start.model))
    return replace(config, start=WEIGHTS)


def _make_key(config: TrainConfig, tensors: Dataset, context: Context) -> str:
    """Return the name of the record: of the tensors and all that a user can set that changes the model."""
    values = config.fingerprint_values() | {"recipe": config.recipe, "preset": config.preset, "weights": config.weights}
    values |= {"domain_adversarial": config.domain_adversarial} if config.domain_adversarial else {}
    return digest({"version": VERSION, "tensors": tensors.fingerprint, "config": values | context.rerun_salt()})


def _find_champion(config: TrainConfig, name: str, tensors: Dataset, context: Context) -> WarmStart | None:
    """Return today's champion, None where there is none or its model is gone. Say so, and warn if it saw few images."""
    otherwise = {AUTO: "as without --start", NO_WEIGHTS: "from nothing"}.get(config.weights, f"from {config.weights}")
    promotion = context.workspace.last_promotion(name)
    if promotion is None or not promotion.model:
        context.say(f"{name} has no champion yet: training starts {otherwise}")
        return None
    number, model = promotion.n, promotion.model
    dataset = find_intact_dataset(context.workspace.absolute(model))
    if dataset is None:
        context.say(f"the model of promotion {number}, {model}, is gone: training starts {otherwise}")
        return None
    backbone = ModelExtra.of(dataset.manifest).backbone
    if backbone != config.backbone:
        raise UserError(
            f"start: expected a champion with the backbone {config.backbone}, found {backbone} (promotion {number}, "
            f"{model}); say --backbone {backbone}, or --start {WEIGHTS} until a {config.backbone} is champion"
        )
    earlier = find_dataset(dataset.parent_uri("tensors"))
    seen = earlier.manifest.totals.by_split.get("train", 0) if earlier else 0
    images = tensors.manifest.totals.by_split.get("train", 0)
    if 0 < seen * MAX_GROWTH < images:
        context.say(
            f"warning: the champion was trained on {seen:,} images, and there are {images:,} now: the few epochs of a "
            f"start from it may not be enough, expected at most {MAX_GROWTH:g} times as many; give it more (--epochs), "
            f"or train from the beginning (--start {WEIGHTS})"
        )
    (file,) = [file for file in dataset.files() if file.uri.endswith(".safetensors")]
    return WarmStart(model, file.sha256, number)


def find_label_map(tensors: Dataset) -> dict[str, str]:
    """Return the new names of classes by old ones, by which clean has renamed labels; empty where its dataset is
    gone."""
    clean = find_dataset(tensors.parent_uri("clean"))
    return CleanExtra.of(clean.manifest).label_map if clean else {}


def adapt_champion(
    state: State,
    fitting: State,
    network: torch.nn.Module,
    spec: ModelSpec,
    champion: Manifest,
    label_map: Mapping[str, str],
) -> tuple[State, list[str]]:
    """Return the tensors to load into the network, and notes on them.

    The head gets the champion's rows of the classes that both know, by the new
    names of `label_map`; rows of new classes stay as they are initialized, and so does the head of a model for another
    task (single, multi).

    Args:
        state: the champion's tensors.
        fitting: those that fit as they are; without the head's where the classes differ.
        network: initialized, of which all else is taken.
    """
    fresh = network.state_dict()
    heads = tuple(f"{name}." for name in head_modules(network))
    old_classes = [label_map.get(name, name) for name in champion.classes] if champion.task == spec.task else []
    adapted: State = {name: value for name, value in fitting.items() if old_classes or not name.startswith(heads)}
    for name, _ in network.named_parameters():
        if name not in adapted and name in state and name.startswith(heads):
            rows = match_head_rows(state[name], fresh[name], old_classes, spec.classes)
            adapted |= {name: rows} if rows is not None else {}
    known = len(set(old_classes).intersection(spec.classes))
    notes = [f"the head knows {known} of {len(spec.classes)} classes"] if known < len(spec.classes) else []
    return adapted, notes


def match_head_rows(
    value: torch.Tensor, fresh: torch.Tensor, old_classes: Sequence[str], classes: Sequence[str]
) -> torch.Tensor | None:
    """Return a head's tensor for `classes`, [classes, …]: known classes have their rows of `value`, new ones
    those of `fresh`; several old classes of one name their mean. None for tensors without a row for each class."""
    if len(value) != len(old_classes) or len(fresh) != len(classes) or value.shape[1:] != fresh.shape[1:]:
        return None
    sources: dict[str, list[int]] = {}
    for row, name in enumerate(old_classes):
        sources.setdefault(name, []).append(row)
    matched = fresh.clone()
    for row, name in enumerate(classes):
        if name in sources:
            matched[row] = value[sources[name]].mean(0)
    return matched
