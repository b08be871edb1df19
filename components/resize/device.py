"""Where images are resized: on the CPU, or on a GPU where that is asked for or worth it and there is one.

What it comes to is part of a dataset's name when it is the GPU, whose pixels are a little different. So it is decided
before anything else, and without importing torch where the images are small.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..store import uri as uris
from ..store.errors import MillError
from ..store.manifest import MANIFEST, Dataset, File
from ..store.parallel import map_ordered
from ..store.shards import open_parquet, read_row_group
from .config import ResizeConfig

CPU, CUDA = "cpu", "cuda"
SAMPLED_FILES, SAMPLED_GROUPS = 32, 8
"""What is looked at to know how large the images are: their rows are in shuffled order."""
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvgpu")
"""Where a GPU of NVIDIA's shows itself, without any library: Linux, WSL, Tegra."""


def choose_device(config: ResizeConfig, clean: Dataset, say: Callable[[str], None], gpus: int | None = None) -> str:
    """`cpu` or `cuda`: a function of the config, of the images and of whether there is a GPU.

    `gpus`: how many there will be where the work is done; None: look, here or in the cluster.
    """
    asked = config.device == CUDA
    if config.device == CPU or not (asked or _may_be_worth_it(config, clean, gpus)):
        return CPU
    reason = _unfit(config) or (_missing(config, clean) if gpus is None else "" if gpus else "none in Ray's workers")
    if not reason:
        say("device: cuda, large JPEGs are decoded and resampled on the GPU")
        return CUDA
    if asked:
        say(f"device: expected a GPU, found {reason}: images are resized on the CPU, and the tensors are those of cpu")
    return CPU


def _may_be_worth_it(config: ResizeConfig, clean: Dataset, gpus: int | None) -> bool:
    """By what costs nothing to know, then by the images."""
    if gpus == 0 or (gpus is None and not config.ray_address and not any(Path(name).exists() for name in _DRIVERS)):
        return False
    return mean_pixels(clean) >= config.gpu_pixels


def mean_pixels(clean: Dataset) -> float:
    """Pixels of an image, the mean of a sample that depends on the dataset alone: some row groups of some files."""
    files = clean.files()
    step = max(1, -(-len(files) // SAMPLED_FILES))
    found = list(map_ordered(files[::step], lambda file: _pixels(clean, file), 8, lambda file: 0))
    rows = sum(number for number, _ in found)
    return sum(pixels for _, pixels in found) / max(1, rows)


def _pixels(clean: Dataset, file: File) -> tuple[int, float]:
    """Images looked at, and their pixels in all."""
    uri, rows, pixels = clean.locate(file), 0, 0.0
    with open_parquet(uri) as parquet:
        for group in range(min(SAMPLED_GROUPS, parquet.num_row_groups)):
            table = read_row_group(parquet, group, uri, ["width", "height"])
            width, height = (table.column(name).to_numpy().astype(np.float64) for name in ("width", "height"))
            rows, pixels = rows + table.num_rows, pixels + float(width @ height)
    return rows, pixels


def _unfit(config: ResizeConfig) -> str:
    """Why the GPU's kernel can't do what is asked for, or nothing."""
    from .gpu import INTERPOLATIONS

    if config.copies:
        return "copies to make, which are made on the CPU"
    if config.interpolation not in INTERPOLATIONS:
        return f"interpolation {config.interpolation}, which only the CPU has"
    return ""


def _missing(config: ResizeConfig, clean: Dataset) -> str:
    """Why there is no GPU to be had, or nothing."""
    if not config.ray_address:
        return _missing_here()
    try:
        found = _cluster_gpus(config, clean)
    except MillError as error:
        return f"no answer about its GPUs from the Ray cluster ({error})"
    return "" if found else "none in the Ray cluster"


def _missing_here() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    try:
        from torchvision.io import decode_jpeg  # noqa: F401
    except ImportError:
        return "a torchvision that no longer decodes on it"
    return ""


def gpus_here() -> int:
    """GPUs of this machine that torch can use."""
    import torch

    return torch.cuda.device_count()


def _cluster_gpus(config: ResizeConfig, clean: Dataset) -> int:
    """GPUs of the cluster that the config names, as Ray counts them."""
    if uris.is_http(config.ray_address):
        return _dashboard_gpus(config.ray_address)
    from .on_ray import ray_session

    with ray_session(config.ray_address, None, uris.join(clean.uri, MANIFEST)):
        import ray

        return int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]


def _dashboard_gpus(address: str) -> int:
    """GPUs by the state API of a cluster's dashboard."""
    from .reach import use_token

    use_token()
    from ray.util.state import list_nodes

    try:
        nodes = list_nodes(address, filters=[("state", "=", "ALIVE")], detail=True)
    except Exception as error:  # from ConnectionError to Ray's own, each with its own long text
        raise MillError(str(error).strip().partition("\n")[0]) from None
    return int(sum((node.resources_total or {}).get("GPU", 0) for node in nodes))
