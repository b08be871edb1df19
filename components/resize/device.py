"""Choose the device that resizes the images: the CPU, or a GPU if there is one and it is asked for or faster.

The GPU's pixels differ a little, so it counts in the fingerprint: the choice is made before anything else, and without
importing torch if the images are small.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

from ..dataset.manifest import MANIFEST, Dataset, Part
from ..dataset.shards import read_file
from ..storage import uri as uris
from ..storage.errors import MillError
from ..storage.parallel import map_ordered
from .config import ResizeConfig

CPU, CUDA = "cpu", "cuda"
SAMPLED_PARTS, SAMPLED_GROUPS = 32, 8
"""Most parts, and row groups of each, that are sampled for the images' size: rows are in shuffled order."""
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvgpu")
"""Device files of NVIDIA's GPUs on Linux, WSL and Tegra."""


def choose_device(config: ResizeConfig, clean: Dataset, say: Callable[[str], None], gpus: int | None = None) -> str:
    """Return `cpu` or `cuda`, by the config, the images and whether there is a GPU.

    `gpus`: their number where the work will be done; None to count them, here or in the cluster.
    """
    is_required = config.device == CUDA
    if config.device == CPU or not (is_required or _may_be_faster(config, clean, gpus)):
        return CPU
    reason = _find_unsupported_option(config)
    if not reason and gpus is None:
        reason = _find_missing_gpu(config, clean)
    elif not reason and not gpus:
        reason = "none in Ray's workers"
    if not reason:
        say("device: cuda, large JPEGs are decoded and resampled on the GPU")
        return CUDA
    if is_required:
        say(f"device: expected a GPU, found {reason}: images are resized on the CPU, and the tensors are those of cpu")
    return CPU


def _may_be_faster(config: ResizeConfig, clean: Dataset, gpus: int | None) -> bool:
    # The images are sampled last, since that reads files.
    if gpus == 0 or (gpus is None and not config.ray_address and not any(Path(name).exists() for name in _DRIVERS)):
        return False
    return sample_mean_pixels(clean) >= config.gpu_pixels


def sample_mean_pixels(clean: Dataset) -> float:
    """Return the mean number of pixels of an image, from some row groups of some parts; the same at every call."""
    parts = clean.manifest.parts
    step = max(1, -(-len(parts) // SAMPLED_PARTS))
    counts = list(map_ordered(parts[::step], lambda part: _count_pixels(clean, part), 8, lambda part: 0))
    rows = sum(number for number, _ in counts)
    return sum(pixels for _, pixels in counts) / max(1, rows)


def _count_pixels(clean: Dataset, part: Part) -> tuple[int, float]:
    """Return the number of sampled images of a part, and the sum of their pixels."""
    rows, pixels = 0, 0.0
    for table in islice(read_file(clean.locate_part(part), ["width", "height"]), SAMPLED_GROUPS):
        width, height = (table.column(name).drop_null().to_numpy().astype(np.float64) for name in ("width", "height"))
        rows, pixels = rows + len(width), pixels + float(width @ height)
    return rows, pixels


def _find_unsupported_option(config: ResizeConfig) -> str:
    """Return the option that the GPU's kernel lacks, as part of a message; empty if there is none."""
    from .gpu import INTERPOLATIONS

    if config.copies:
        return "copies to make, which are made on the CPU"
    if config.interpolation not in INTERPOLATIONS:
        return f"interpolation {config.interpolation}, which only the CPU has"
    return ""


def _find_missing_gpu(config: ResizeConfig, clean: Dataset) -> str:
    """Return the reason why no GPU can be used, as part of a message; empty if one can."""
    if not config.ray_address:
        return _find_missing_local_gpu()
    try:
        gpus = _count_cluster_gpus(config, clean)
    except MillError as error:
        return f"no answer about its GPUs from the Ray cluster ({error})"
    return "" if gpus else "none in the Ray cluster"


def _find_missing_local_gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    try:
        from torchvision.io import decode_jpeg  # noqa: F401
    except ImportError:
        return "a torchvision that no longer decodes on it"
    return ""


def count_local_gpus() -> int:
    """Return the number of this machine's GPUs that torch can use."""
    import torch

    return torch.cuda.device_count()


def _count_cluster_gpus(config: ResizeConfig, clean: Dataset) -> int:
    """Return the number of GPUs in the cluster at `ray_address`, as Ray counts them."""
    if uris.is_http(config.ray_address):
        return _count_dashboard_gpus(config.ray_address)
    from ..engine.ray_session import open_ray_session

    with open_ray_session("resize", config.ray_address, None, uris.join(clean.uri, MANIFEST)):
        import ray

        return int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]


def _count_dashboard_gpus(address: str) -> int:
    """Return the number of GPUs by the state API of a cluster's dashboard."""
    from ..engine.ray_connection import enable_token_auth

    enable_token_auth()
    from ray.util.state import list_nodes

    try:
        nodes = list_nodes(address, filters=[("state", "=", "ALIVE")], detail=True)
    except Exception as error:  # list_nodes raises anything from ConnectionError to Ray's own errors
        raise MillError(str(error).strip().partition("\n")[0]) from None
    return int(sum((node.resources_total or {}).get("GPU", 0) for node in nodes))
