"""Pretrained weights: by name (torchvision's, timm's), by URI (safetensors, never pickle), or none.

The first convolution is fitted to the channels of the images. One channel gets the RGB filters' sum, which sees
in a grey image what they see in its R = G = B. Three channels of another colour get the filters as they are.
Edge channels that the weights do not know start at zero: the network starts as the pretrained one, and learns what
edges add. Position embeddings of a transformer that saw images of another size are resampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..store import timm_models
from ..store import uri as uris
from ..store.blocks import head_modules
from ..store.choices import COLORS
from ..store.errors import UserError, wrong
from ..store.filesystem import get_store, hash_object
from ..store.manifest import Dataset, find_dataset
from ..store.model import ModelSpec, find_first_convolution
from ..store.resample import Geometry
from .config import TrainConfig
from .published import full_name, published

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

MATCHED_SHARE = 0.5


def weights_identity(config: TrainConfig) -> dict[str, str]:
    """What of the weights counts in a model's fingerprint: a name, or the sha256 of the file."""
    if not config.weights:
        return {}
    if config.weights_are_named:
        return {"weights": full_name(config.backbone, config.weights)}
    return {"weights": hash_object(weights_uri(config.weights))}


def weights_uri(weights: str) -> str:
    """The .safetensors file that a URI means: itself, or that of a model dataset. UserError when it is not there."""
    uri = uris.normalize(weights, "weights")
    if uri.endswith(".safetensors"):
        if get_store(uri).stat(uri) is None:
            raise wrong("weights", "a .safetensors file that is there", weights)
        return uri
    if get_store(uri).stat(uri) is not None:
        kinds = "a .safetensors file or a model (what torch.save writes can run code, and is not opened)"
        raise wrong("weights", kinds, weights)
    dataset = find_dataset(uri)
    files = [f for f in dataset.files() if f.uri.endswith(".safetensors")] if dataset else []
    if dataset is None or not files:
        raise wrong("weights", "a torchvision name, or the URI of a .safetensors file or of a model", weights)
    return dataset.locate(files[0])


def load_pretrained(network: torch.nn.Module, spec: ModelSpec, config: TrainConfig) -> str:
    """Load what fits into the network and say what was loaded; the head for other classes stays as it is.

    UserError when less than half of the network's tensors fit: these are the weights of another network.
    """
    if not config.weights:
        return "from scratch"
    state = published(config.backbone, config.weights) if config.weights_are_named else _from_uri(config.weights)
    state, resampled = _for_the_size(state, network, spec)
    heads = () if _has_our_classes(config, spec) else tuple(f"{name}." for name in head_modules(network))
    target = network.state_dict()
    wanted = Channels.of(spec.geometry)
    first = find_first_convolution(network, wanted.number) + ".weight"
    known = _channels_of(config, state.get(first), wanted)
    fitting = {
        key: fitted
        for key, value in state.items()
        if key in target
        and not key.startswith(heads)
        and (fitted := _fit_first(value, known, wanted) if key == first else value) is not None
        and fitted.shape == target[key].shape
    }
    if len(fitting) < MATCHED_SHARE * len(target):
        expected, found = f"weights of {config.backbone}, {len(target)} tensors", f"{len(fitting)} that fit"
        raise wrong("weights", expected, f"{found} in {config.weights}")
    network.load_state_dict({**target, **fitting})
    told = [*_told(known, wanted), *(["position embeddings resampled"] if resampled else [])]
    return ", ".join([f"from {config.weights}", f"{len(fitting)} of {len(target)} tensors", *told])


@dataclass(frozen=True)
class Channels:
    """What the channels of an image are: those of a colour, then edges."""

    color: str = "rgb"
    edges: tuple[str, ...] = ()

    @classmethod
    def of(cls, geometry: Geometry) -> Channels:
        return cls(geometry.color, geometry.edges)

    @property
    def number(self) -> int:
        return COLORS[self.color] + len(self.edges)


def _channels_of(config: TrainConfig, first: torch.Tensor | None, wanted: Channels) -> Channels:
    """What the weights were trained on. A model dataset says it; of a file alone the shape of the first convolution
    (float [filters, channels, height, width]) tells RGB and grey, and anything else is what is wanted or won't fit."""
    dataset = None if config.weights_are_named else model_dataset(config.weights)
    if dataset is not None and dataset.manifest.image:
        return Channels.of(Geometry.from_dict(dataset.manifest.image))
    number = 3 if first is None or first.ndim != 4 else first.shape[1]
    return {1: Channels("gray"), 3: Channels("rgb")}.get(number, wanted)


def _fit_first(value: torch.Tensor, known: Channels, wanted: Channels) -> torch.Tensor | None:
    """The first convolution's filters for the channels that are wanted, if they can be made of those that are known."""
    import torch

    colors, ours = COLORS[known.color], COLORS[wanted.color]
    if value.ndim != 4 or value.shape[1] != known.number or (colors, ours) == (1, 3):
        return None
    color = value[:, :colors] if colors == ours else value[:, :colors].sum(dim=1, keepdim=True)
    by_name = {name: value[:, colors + at : colors + at + 1] for at, name in enumerate(known.edges)}
    return torch.cat([color, *(by_name.get(name, torch.zeros_like(value[:, :1])) for name in wanted.edges)], dim=1)


def _told(known: Channels, wanted: Channels) -> list[str]:
    """What one should know of weights that were trained on other channels."""
    said = [f"trained on {known.color}"] if known.color != wanted.color else []
    if (COLORS[known.color], COLORS[wanted.color]) == (1, 3):
        return [*said, "the first convolution from scratch"]
    new = [name for name in wanted.edges if name not in known.edges]
    return said + ([f"{' and '.join(new)} from zero"] if new else [])


def _for_the_size(state: State, network: torch.nn.Module, spec: ModelSpec) -> tuple[State, bool]:
    """The weights with position embeddings for the size of the spec's images, and whether they had others.

    Bicubic, the class token's left as it is (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, 3.2): by
    torchvision's `interpolate_embeddings`, or timm's own filter of the architecture.
    """
    positions = [name for name in ("encoder.pos_embedding", "pos_embed") if name in state]
    before = {name: state[name].shape for name in positions}
    if timm_models.is_timm(spec.backbone):
        state = timm_models.convert_weights(spec.backbone, state, network)
    elif spec.backbone.startswith("vit_") and positions:
        from torchvision.models.vision_transformer import interpolate_embeddings

        patch = cast(Any, network).patch_size
        try:
            state = interpolate_embeddings(spec.image["shape"][0], patch, dict(state))  # type: ignore[arg-type]
        except ValueError as error:
            raise wrong("weights", f"weights of {spec.backbone}", f"others: {error}") from None
    return state, any(name in state and state[name].shape != shape for name, shape in before.items())


def _has_our_classes(config: TrainConfig, spec: ModelSpec) -> bool:
    """Only a model dataset says what its outputs mean; any other head, of ImageNet or of a bare file, is unknown."""
    dataset = None if config.weights_are_named else model_dataset(config.weights)
    return dataset is not None and dataset.manifest.classes == spec.classes


def model_dataset(weights: str) -> Dataset | None:
    """The model dataset that a URI of weights means, if it is not that of a file."""
    uri = uris.normalize(weights, "weights")
    return None if uri.endswith(".safetensors") else find_dataset(uri)


def _from_uri(weights: str) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load

    uri = weights_uri(weights)
    try:
        state: State = load(_read(uri))
    except SafetensorError as error:
        raise UserError(f"weights: expected a safetensors file, found another in {uri}: {error}") from None
    return state


def _read(uri: str) -> bytes:
    try:
        return get_store(uri).read(uri)
    except FileNotFoundError:
        raise wrong("weights", "a file that is there", uri) from None
