"""Published pretrained weights: torchvision's and timm's, from the workspace, a library's cache or their own site.

A workspace keeps the weights that a training used or `imagemill weights fetch` put there, as safetensors: later weeks,
retries and pods without internet start from the same ones.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import threading
from datetime import UTC, datetime
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from ..dataset.records import WeightsRecord
from ..dataset.shards import publish_bytes
from ..dataset.workspace import Workspace
from ..storage import uri as uris
from ..storage.errors import DatasetError, MillError, TransientError, UserError, first_line, wrong
from ..storage.store import get_store
from . import timm_models
from .torchvision_models import name_default_weights

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

SITE_TIMEOUT_S = 5.0
"""Seconds that the site of weights has to answer before a machine counts as one without internet."""
_HUB_FILES = ("model.safetensors", "open_clip_model.safetensors")
"""Names of the weights in a repository on the hub: timm's own, then OpenCLIP's."""


class DownloadError(TransientError):
    """Weights can't be downloaded now, or not from here."""


def resolve_weights_name(backbone: str, weights: str) -> str:
    """Return the name of weights that DEFAULT means, so that it holds when a library chooses others; all other names as
    they are, without a check. Of timm's, timm is imported where the backbone carries no tag.

    UserError for a backbone without weights.
    """
    if weights != "DEFAULT":
        return weights
    if not timm_models.is_timm(backbone):
        if name := name_default_weights(backbone):
            return name
        raise UserError(f"weights: torchvision has none for {backbone} (--weights none)")
    if tag := timm_models.split_name(backbone)[1]:
        return tag
    timm_models.check_tag(backbone, weights)
    return str(timm_models.pretrained_config(backbone).tag)


def fetch_weights(workspace: Workspace, backbone: str, weights: str) -> WeightsRecord:
    """Put the named weights of a backbone into the workspace, and return the record that is to be written of them.

    UserError for an unknown name, DownloadError where they can't be had now.
    """
    from safetensors.torch import save

    name = resolve_weights_name(backbone, weights)
    state, source = download_weights(backbone, name)
    data = save({key: value.detach().clone().contiguous() for key, value in state.items()}, {"format": "pt"})
    return put_weights(workspace, backbone, data, name, source)


def put_weights(workspace: Workspace, backbone: str, data: bytes, weights: str, source: str) -> WeightsRecord:
    """Put a safetensors file of a backbone's weights into the workspace; return the record that is to be written."""
    name = backbone.replace(":", "-")
    file = publish_bytes(workspace.weights_uri, data, f"{name}.{weights}-" if weights else f"{name}-", ".safetensors")
    uri = workspace.relative(uris.join(workspace.weights_uri, file.uri))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return WeightsRecord(backbone, weights, uri, file.sha256, file.bytes, source, created)


def read_weights(workspace: Workspace, backbone: str, weights: str) -> State:
    """Return the named weights of a backbone: the workspace's where it has these, else as `download_weights`."""
    record = workspace.weights(backbone)
    if record is None or record.weights != resolve_weights_name(backbone, weights):
        return download_weights(backbone, weights)[0]
    from safetensors.torch import load

    uri = workspace.absolute(record.uri)
    try:
        data = get_store(uri).read(uri)
    except FileNotFoundError:
        data = b""
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise DatasetError(
            f"weights: expected {record.weights} of {backbone} as fetched on {record.created}, found another file or "
            f"none at {uri}; `imagemill weights fetch --backbone {backbone}` puts them there again"
        )
    state: State = load(data)
    return state


def download_weights(backbone: str, weights: str) -> tuple[State, str]:
    """Return the named weights of a backbone and their URL, from the library's cache where they are in it.

    UserError for an unknown name, DownloadError where they can't be downloaded now.
    """
    if timm_models.is_timm(backbone):
        return _download_from_timm(backbone, weights)
    return _download_from_torchvision(backbone, weights)


def _download_from_torchvision(backbone: str, weights: str) -> tuple[State, str]:
    from torch import hub
    from torchvision.models import get_model_weights

    names = get_model_weights(backbone)
    if weights not in names.__members__:
        raise wrong("weights", f"one of {', '.join(names.__members__)} for {backbone}", weights)
    member, title = names[weights], f"{weights} of {backbone}"
    if not (Path(hub.get_dir()) / "checkpoints" / Path(urlparse(member.url).path).name).exists():
        _check_site(member.url, title)
    try:
        state: State = member.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, HTTPException) as error:  # URLError and TimeoutError are OSErrors
        raise _make_download_error(title, error) from None
    return state, member.url


def _download_from_timm(backbone: str, weights: str) -> tuple[State, str]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    timm_models.check_tag(backbone, weights)
    pretrained_cfg = timm_models.pretrained_config(backbone, weights)
    name = f"{pretrained_cfg.tag} of {backbone}"
    if not pretrained_cfg.hf_hub_id:
        raise wrong("weights", "weights that timm has on the hub, or the URI of a .safetensors file", name)
    path = _find_in_hub_cache(pretrained_cfg.hf_hub_id) or _download_from_hub(pretrained_cfg.hf_hub_id, name)
    try:
        state: State = load_file(path)
    except SafetensorError as error:
        raise MillError(f"weights: {path}: expected the weights {name}, found a broken file: {error}") from None
    return state, f"huggingface.co/{pretrained_cfg.hf_hub_id}"


def _find_in_hub_cache(hub_id: str) -> Path | None:
    """Return the local path of a hub repository's weights if they were downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    repository, _, revision = hub_id.partition("@")
    paths = (try_to_load_from_cache(repository, file, revision=revision or None) for file in _HUB_FILES)
    return next((Path(path) for path in paths if isinstance(path, str)), None)


def _download_from_hub(hub_id: str, name: str) -> Path:
    """Return the local path of a hub repository's weights (`owner/name`, or `owner/name@revision`)."""
    from huggingface_hub import errors, hf_hub_download, hf_hub_url

    network_errors: tuple[type[Exception], ...] = (OSError, *_list_transport_errors())
    repository, _, revision = hub_id.partition("@")
    _check_site(hf_hub_url(repository, _HUB_FILES[0], revision=revision or None), name)
    for file in _HUB_FILES:
        try:
            return Path(hf_hub_download(repository, file, revision=revision or None))
        except errors.LocalEntryNotFoundError as error:  # not in the cache, and the hub does not answer
            raise _make_download_error(name, error) from None
        except errors.EntryNotFoundError:
            continue
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:  # also: not authorized
            raise wrong("weights", f"{name} on the hub, open to you", str(error).splitlines()[0]) from None
        except network_errors as error:
            raise _make_download_error(name, error) from None
    raise wrong("weights", f"a .safetensors file of {name} on the hub", f"none in {hub_id}")


def _list_transport_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a broken connection that huggingface_hub raises from version 1 on (httpx's); earlier ones
    are OSErrors."""
    try:
        error: type[Exception] = importlib.import_module("httpx").HTTPError
    except ImportError:
        return ()
    return (error,)


def _check_site(url: str, name: str) -> None:
    """Raise DownloadError unless the site of a file answers, with whatever, within `SITE_TIMEOUT_S`.

    In a thread, since looking up a host's name knows no time limit; torchvision's own download has none either.
    HF_HUB_OFFLINE, by which the Hugging Face hub is told so, says that there is no internet.
    """
    host = urlparse(url).netloc
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise _make_download_error(name, ConnectionError("HF_HUB_OFFLINE is set"), host)
    answer: list[Exception | None] = []

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=SITE_TIMEOUT_S).close()
        except HTTPError:
            answer.append(None)
        except (OSError, HTTPException) as error:
            answer.append(error)
        else:
            answer.append(None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(SITE_TIMEOUT_S)
    error = answer[0] if answer else TimeoutError(f"no answer in {SITE_TIMEOUT_S:g} s")
    if error is not None:
        raise _make_download_error(name, error, host)


def _make_download_error(name: str, error: Exception, host: str = "") -> DownloadError:
    reason = first_line(error.reason) if isinstance(error, URLError) and isinstance(error.reason, Exception) else ""
    place = f" from {host}" if host else ""
    return DownloadError(
        f"weights: {name} could not be downloaded{place} ({reason or first_line(error)}); `imagemill weights fetch` "
        "puts them into the workspace from a machine with internet, or from a file"
    )
