"""Pretrained weights by name: of torchvision from its server, of timm from the Hugging Face hub, safetensors only."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

from ..store import timm_models
from ..store.errors import MillError, TransientError, wrong

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

_FILES = ("model.safetensors", "open_clip_model.safetensors")
"""What a repository on the hub names them: timm's own, then OpenCLIP's."""


def published(backbone: str, weights: str) -> State:
    """The named weights of a backbone, downloaded or from the library's cache. UserError for a name that is none,
    TransientError when they can't be had now."""
    return _timms(backbone, weights) if timm_models.is_timm(backbone) else _torchvisions(backbone, weights)


def full_name(backbone: str, weights: str) -> str:
    """A name that stays when a library chooses other defaults: of timm's weights their tag."""
    if not timm_models.is_timm(backbone):
        return weights
    timm_models.check_tag(backbone, weights)
    return str(timm_models.pretrained_config(backbone, weights).tag)


def _torchvisions(backbone: str, weights: str) -> State:
    from torchvision.models import get_model_weights

    known = get_model_weights(backbone)
    if weights not in known.__members__:
        raise wrong("weights", f"one of {', '.join(known.__members__)} for {backbone}", weights)
    try:
        state: State = known[weights].get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, TimeoutError, ConnectionError) as error:
        raise _unreachable(f"{weights} of {backbone}", error) from None
    return state


def _timms(backbone: str, weights: str) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    timm_models.check_tag(backbone, weights)
    about = timm_models.pretrained_config(backbone, weights)
    name = f"{about.tag} of {backbone}"
    if not about.hf_hub_id:
        raise wrong("weights", "weights that timm has on the hub, or the URI of a .safetensors file", name)
    path = _downloaded(about.hf_hub_id, name)
    try:
        state: State = load_file(path)
    except SafetensorError as error:
        raise MillError(f"weights: {path}: expected the weights {name}, found a broken file: {error}") from None
    return state


def _downloaded(repository: str, name: str) -> Path:
    """The file of a repository on the hub (`owner/name`, or `owner/name@revision`)."""
    from huggingface_hub import errors, hf_hub_download

    broken: tuple[type[Exception], ...] = (OSError, *_transport_errors())
    where, _, revision = repository.partition("@")
    for file in _FILES:
        try:
            return Path(hf_hub_download(where, file, revision=revision or None))
        except errors.LocalEntryNotFoundError as error:  # not in the cache, and the hub does not answer
            raise _unreachable(name, error) from None
        except errors.EntryNotFoundError:
            continue
        except (
            errors.RepositoryNotFoundError,
            errors.RevisionNotFoundError,
        ) as error:  # also one that asks who you are
            raise wrong("weights", f"{name} on the hub, open to you", str(error).splitlines()[0]) from None
        except broken as error:
            raise _unreachable(name, error) from None
    raise wrong("weights", f"a .safetensors file of {name} on the hub", f"none in {repository}")


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises when a connection breaks: httpx's, or, before its version 1, OSErrors."""
    try:
        error: type[Exception] = importlib.import_module("httpx").HTTPError
    except ImportError:
        return ()
    return (error,)


def _unreachable(name: str, error: Exception) -> TransientError:
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return TransientError(
        f"weights: {name} could not be downloaded ({said}); a .safetensors file can be given by its URI instead"
    )
