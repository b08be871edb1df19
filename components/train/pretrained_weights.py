"""Pretrained weights: chosen, by name or from a URI (safetensors, never pickle), and fitted to the network.

The first convolution is fitted to the channels of the images. One channel gets the RGB filters' sum, which sees
in a gray image what they see in its R = G = B. Three channels of another color get the filters as they are.
Edge channels that the weights do not know start at zero: the network starts as the pretrained one, and learns what
edges add. Position embeddings of a transformer that saw images of another size are resampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from ..dataset.kinds import TensorsExtra
from ..dataset.manifest import Dataset, find_dataset, read_dataset
from ..dataset.workspace import Workspace
from ..imaging.geometry import Geometry
from ..imaging.pixel_options import COLORS
from ..models import timm_models
from ..models.artifact import ModelSpec, build_network, find_first_convolution
from ..models.blocks import head_modules
from ..models.presets import find as find_preset
from ..models.published_weights import DownloadError, fetch_weights, read_weights, resolve_weights_name
from ..step.step import Context
from ..storage import uri as uris
from ..storage.errors import UserError, wrong
from ..storage.store import get_store, hash_object
from .config import AUTO, CHAMPION, NO_WEIGHTS, TrainConfig
from .warm_start import adapt_champion

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

MIN_MATCHED_SHARE = 0.5
"""Share of a network's tensors that its pretrained weights must fit."""


def choose_weights(config: TrainConfig, tensors: Dataset, context: Context) -> tuple[TrainConfig, str]:
    """Return the config with the weights that `auto` and `none` mean, empty for a start from scratch; and a line why
    `auto` starts from scratch, else an empty one.

    `auto` takes those that the workspace holds, else puts them there, from the library's cache or their own site. A
    step that may make nothing goes by the workspace alone, and so needs neither torch nor the network.
    """
    if config.weights != AUTO:
        return replace(config, weights="" if config.weights == NO_WEIGHTS else config.weights), ""
    workspace, backbone, scratch = context.workspace, config.backbone, replace(config, weights="")
    epochs = TensorsExtra.of(tensors.manifest).epochs
    if epochs and not config.needs_weights:
        return scratch, (
            f"from scratch: the source of these images recommends that, in {epochs} epochs (--weights DEFAULT starts "
            "from pretrained weights)"
        )
    record = workspace.weights(backbone)
    if record is None and context.only_cached:
        if config.needs_weights:
            context.refuse_if_only_cached(f"weights of {backbone}")
        return scratch, ""
    if record is None:
        try:
            workspace.add_weights(fetch_weights(workspace, backbone, "DEFAULT"))
        except (DownloadError, UserError) as error:
            if config.needs_weights:
                raise
            reason = str(error).removeprefix("weights: ")
            return scratch, f"warning: from scratch, without pretrained weights (--weights none): {reason}"
        record = workspace.weights(backbone)  # another process may have been first
        assert record is not None
        context.say(f"pretrained weights {record.weights} of {backbone} from {record.source} are in the workspace now")
    return replace(config, weights=record.weights or workspace.absolute(record.uri)), ""


def identify_weights(config: TrainConfig) -> dict[str, str]:
    """Return what a model's fingerprint counts of the weights: their name, or the sha256 of their file."""
    if not config.weights:
        return {}
    if config.weights_are_named:
        return {"weights": resolve_weights_name(config.backbone, config.weights)}
    return {"weights": hash_object(find_weights_file(config.weights))}


def find_weights_file(weights: str) -> str:
    """Return the URI of the .safetensors file that a URI means: itself, or that of a model dataset.

    UserError where there is none.
    """
    uri = uris.normalize(weights, "weights")
    if uri.endswith(".safetensors"):
        if get_store(uri).stat(uri) is None:
            raise wrong("weights", "a .safetensors file that is there", weights)
        return uri
    if get_store(uri).stat(uri) is not None:
        kinds = "a .safetensors file or a model (what torch.save writes can run code, and is not opened)"
        raise wrong("weights", kinds, weights)
    dataset = find_dataset(uri)
    files = [file for file in dataset.files() if file.uri.endswith(".safetensors")] if dataset else []
    if dataset is None or not files:
        raise wrong("weights", "a torchvision name, or the URI of a .safetensors file or of a model", weights)
    return dataset.locate(files[0])


def find_model_dataset(config: TrainConfig) -> Dataset | None:
    """Return the model dataset that the URI of the weights means, None for a file, for named weights and for none."""
    if not config.weights or config.weights_are_named or config.weights.endswith(".safetensors"):
        return None
    return find_dataset(uris.normalize(config.weights, "weights"))


def find_initial_model(config: TrainConfig, workspace: Workspace) -> Dataset | None:
    """Return the model of this workspace whose weights training starts from, None where it starts from others."""
    if not config.weights or config.weights_are_named:
        return None
    uri = uris.normalize(config.weights, "weights")
    uri = uri.rpartition("/")[0] if uri.endswith(".safetensors") else uri
    return find_dataset(uri) if uri.startswith(workspace.at("model", "")) else None


def load_pretrained(
    network: torch.nn.Module, spec: ModelSpec, config: TrainConfig, label_map: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Load the weights that fit into the network, and return a description. A head for other classes is left as it is,
    except that it gets a champion's rows of the classes that both have, by the new names of `label_map`.

    UserError where less than half of the network's tensors fit: these are the weights of another network.
    """
    if not config.weights:
        return "from scratch"
    if config.weights_are_named:
        state = read_weights(Workspace.from_uri(config.workspace), config.backbone, config.weights)
    else:
        state = _read_state(config.weights)
    state, is_resampled = _resample_positions(state, network, spec)
    heads = () if _has_same_classes(config, spec) else tuple(f"{name}." for name in head_modules(network))
    target = network.state_dict()
    target_channels = Channels.of(spec.geometry)
    first = find_first_convolution(network, target_channels.number) + ".weight"
    source_channels = _find_channels(config, state.get(first), target_channels)
    fitting = {
        name: fitted
        for name, value in state.items()
        if name in target
        and not name.startswith(heads)
        and (fitted := _fit_channels(value, source_channels, target_channels) if name == first else value) is not None
        and fitted.shape == target[name].shape
    }
    if len(fitting) < MIN_MATCHED_SHARE * len(target):
        expected = f"weights of {config.backbone}, {len(target)} tensors"
        raise wrong("weights", expected, f"{len(fitting)} that fit in {config.weights}")
    origin, notes = f"from {config.weights}", _describe_channels(source_channels, target_channels)
    if config.start == CHAMPION:
        origin, champion = f"from the champion {uris.basename(config.weights)}", read_dataset(config.weights, "model")
        fitting, adaptations = adapt_champion(state, fitting, network, spec, champion.manifest, label_map)
        notes = adaptations + notes
    network.load_state_dict({**target, **fitting})
    parts = [origin, f"{len(fitting)} of {len(target)} tensors", *notes]
    parts += ["position embeddings resampled"] if is_resampled else []
    return ", ".join(parts)


def check_fit(backbone: str, uri: str) -> None:
    """Raise UserError unless at least half of a backbone's tensors fit those of a .safetensors file or model."""
    preset = find_preset(backbone)
    size = preset.image_size if preset else 224
    image = Geometry.create(size).describe("raw", [0.5] * 3, [0.5] * 3)
    spec = ModelSpec(backbone, ("a", "b"), image)
    load_pretrained(build_network(spec), spec, TrainConfig(backbone=backbone, weights=uri))


@dataclass(frozen=True)
class Channels:
    """The channels of an image: those of a color space, then edges."""

    color: str = "rgb"
    edges: tuple[str, ...] = ()

    @classmethod
    def of(cls, geometry: Geometry) -> Channels:
        return cls(geometry.color, geometry.edges)

    @property
    def number(self) -> int:
        return COLORS[self.color] + len(self.edges)


def _find_channels(config: TrainConfig, first: torch.Tensor | None, target: Channels) -> Channels:
    """Return the channels that the weights were trained on, from the model dataset's manifest.

    Of a file alone the shape of the first convolution, float [filters, channels, height, width], tells RGB and gray;
    of any other number of channels `target` is assumed, which fits or not.
    """
    dataset = find_model_dataset(config)
    if dataset is not None and dataset.manifest.image:
        return Channels.of(Geometry.of(dataset.manifest.image_spec))
    number = 3 if first is None or first.ndim != 4 else first.shape[1]
    return {1: Channels("gray"), 3: Channels("rgb")}.get(number, target)


def _fit_channels(filters: torch.Tensor, source: Channels, target: Channels) -> torch.Tensor | None:
    """Return the first convolution's filters for the target's channels, None if the source's can't make them."""
    import torch

    source_colors, target_colors = COLORS[source.color], COLORS[target.color]
    if filters.ndim != 4 or filters.shape[1] != source.number or (source_colors, target_colors) == (1, 3):
        return None
    color = filters[:, :source_colors]
    if source_colors != target_colors:
        color = color.sum(dim=1, keepdim=True)
    edges = {name: filters[:, source_colors + i : source_colors + i + 1] for i, name in enumerate(source.edges)}
    return torch.cat([color, *(edges.get(name, torch.zeros_like(filters[:, :1])) for name in target.edges)], dim=1)


def _describe_channels(source: Channels, target: Channels) -> list[str]:
    """Return notes on weights that were trained on other channels."""
    notes = [f"trained on {source.color}"] if source.color != target.color else []
    if (COLORS[source.color], COLORS[target.color]) == (1, 3):
        return [*notes, "the first convolution from scratch"]
    new = [name for name in target.edges if name not in source.edges]
    return notes + ([f"{' and '.join(new)} from zero"] if new else [])


def _resample_positions(state: State, network: torch.nn.Module, spec: ModelSpec) -> tuple[State, bool]:
    """Return the weights with position embeddings for the size of the spec's images, and whether that changed them.

    Bicubic, the class token's left as it is (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, 3.2): by
    torchvision's `interpolate_embeddings`, or timm's own filter of the architecture.
    """
    positions = [name for name in ("encoder.pos_embedding", "pos_embed") if name in state]
    shapes = {name: state[name].shape for name in positions}
    if timm_models.is_timm(spec.backbone):
        state = timm_models.convert_weights(spec.backbone, state, network)
    elif spec.backbone.startswith("vit_") and positions:
        from torchvision.models.vision_transformer import interpolate_embeddings

        patch = cast(Any, network).patch_size
        try:
            state = interpolate_embeddings(spec.image.shape[0], patch, dict(state))  # type: ignore[arg-type]
        except ValueError as error:
            raise wrong("weights", f"weights of {spec.backbone}", f"others: {error}") from None
    return state, any(name in state and state[name].shape != shape for name, shape in shapes.items())


def _has_same_classes(config: TrainConfig, spec: ModelSpec) -> bool:
    """Return whether the weights' head is for these classes; False where that is unknown (ImageNet's, a file)."""
    dataset = find_model_dataset(config)
    return dataset is not None and dataset.manifest.classes == spec.classes


def _read_state(weights: str) -> State:
    """Return the tensors of the file that a URI means. UserError for a file that is not safetensors."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    uri = find_weights_file(weights)
    try:
        state: State = load(get_store(uri).read(uri))
    except FileNotFoundError:
        raise wrong("weights", "a file that is there", uri) from None
    except SafetensorError as error:
        raise UserError(f"weights: expected a safetensors file, found another in {uri}: {error}") from None
    return state
