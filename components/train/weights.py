"""Pretrained weights: by torchvision name, by URI (safetensors, never pickle), or none."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.error import URLError

from ..store import uri as uris
from ..store.errors import TransientError, UserError, wrong
from ..store.filesystem import store_for
from ..store.manifest import find_dataset
from ..store.model import ModelSpec
from .config import TrainConfig

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

MATCHED_SHARE = 0.5


def weights_identity(config: TrainConfig) -> dict[str, str]:
    """What of the weights counts in a model's fingerprint: a name, or the sha256 of the file."""
    if not config.weights:
        return {}
    if config.weights_are_named:
        return {"weights": config.weights}
    import hashlib

    return {"weights": hashlib.sha256(_read(weights_uri(config.weights))).hexdigest()}


def weights_uri(weights: str) -> str:
    """The .safetensors file that a URI means: itself, or that of a model dataset. UserError when it is not there."""
    uri = uris.normalize(weights, "weights")
    if uri.endswith(".safetensors"):
        if store_for(uri).stat(uri) is None:
            raise wrong("weights", "a .safetensors file that is there", weights)
        return uri
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
    state = _named(config) if config.weights_are_named else _from_uri(config.weights)
    head = _head(network) if not _has_our_classes(config, spec) else ""
    target = network.state_dict()
    fitting = {
        key: fitted
        for key, value in state.items()
        if key in target and not (head and key.startswith(head)) and (fitted := _fit(value, target[key])) is not None
    }
    if len(fitting) < MATCHED_SHARE * len(target):
        wanted, found = f"weights of {config.backbone}, {len(target)} tensors", f"{len(fitting)} that fit"
        raise wrong("weights", wanted, f"{found} in {config.weights}")
    network.load_state_dict({**target, **fitting})
    return f"from {config.weights}, {len(fitting)} of {len(target)} tensors"


def _head(network: torch.nn.Module) -> str:
    """The prefix of the last layer's tensors: in torchvision's classifiers it makes the logits."""
    *_, (name, _) = network.named_parameters()
    return name.rpartition(".")[0] + "."


def _has_our_classes(config: TrainConfig, spec: ModelSpec) -> bool:
    """Only a model dataset says what its outputs mean; any other head, of ImageNet or of a bare file, is unknown."""
    if config.weights_are_named:
        return False
    uri = uris.normalize(config.weights, "weights")
    dataset = None if uri.endswith(".safetensors") else find_dataset(uri)
    return dataset is not None and dataset.manifest.classes == spec.classes


def _fit(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
    """The tensor if it has the target's shape; the first convolution's RGB filters summed for one channel."""
    if value.shape == target.shape:
        return value
    if value.ndim == 4 and value.shape[1] == 3 and target.shape[1:2] == (1,) and value.shape[2:] == target.shape[2:]:
        return value.sum(dim=1, keepdim=True)
    return None


def _named(config: TrainConfig) -> State:
    from torchvision.models import get_model_weights

    known = get_model_weights(config.backbone)
    if config.weights not in known.__members__:
        raise wrong("weights", f"one of {', '.join(known.__members__)} for {config.backbone}", config.weights)
    try:
        state: State = known[config.weights].get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, TimeoutError, ConnectionError) as error:
        raise TransientError(
            f"weights: {config.weights} of {config.backbone} could not be downloaded ({error}); a .safetensors file "
            "can be given by its URI instead"
        ) from None
    return state


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
        return store_for(uri).read(uri)
    except FileNotFoundError:
        raise wrong("weights", "a file that is there", uri) from None
