"""How large /dev/shm has to be.

A pod has 64 MiB of it, on which PyTorch's worker processes and NCCL fail as soon as a batch does not fit. It is given
as an emptyDir in memory, which counts against the container's memory: so it is asked for by need, and stays below.
"""

from __future__ import annotations

import math

from ..components.clean.config import CleanConfig
from ..components.resize.config import ResizeConfig
from ..components.train.config import TrainConfig
from .cluster import Pod
from .parameters import RunParameters
from .settings import bytes_of

MI = 2**20
FLOOR = 512 * MI
"""What NCCL and PyTorch take for themselves, with room to spare."""
MULTIPLE = 256 * MI
"""Sizes are multiples of it."""
SHARE = 0.5
"""Of the memory limit, at most: the rest is the process's own."""
WAITING = 2
"""Batches that wait beside those under way, one for each core: as the loader keeps them."""


def shm_size(step: str, pod: Pod, parameters: RunParameters) -> str:
    """The size of a step's /dev/shm as a quantity; empty where the pod's 64 MiB will do.

    `pod.shm` if it says one. Else for train, and by the default batch, which the pod is sized for: room for every
    batch that is loaded ahead (one a core and two that wait), twice, for a copy may be under way beside each; at least
    512 MiB, in steps of 256 MiB, and never above half of the memory limit.
    """
    if pod.shm or step != "train":
        return pod.shm
    train, resize = parameters.config("train"), parameters.config("resize")
    assert isinstance(train, TrainConfig) and isinstance(resize, ResizeConfig)
    batch = train.batch_size * image_bytes(resize, _color(parameters))
    cores = math.ceil(bytes_of(pod.cpu_limit or pod.cpu))
    wanted = FLOOR + 2 * (cores + WAITING) * batch
    most = int(bytes_of(pod.memory_limit or pod.memory) * SHARE)
    size = min(math.ceil(wanted / MULTIPLE) * MULTIPLE, most // MULTIPLE * MULTIPLE or most)
    return f"{size // MI}Mi" if size >= MI else ""


def image_bytes(config: ResizeConfig, color: str) -> int:
    """Bytes of one stored image as the loader hands it on: uint8 [H, W, C], decoded."""
    height, width, channels = config.geometry(color).shape
    return height * width * channels


def _color(parameters: RunParameters) -> str:
    """The colour that clean gives."""
    clean = parameters.config("clean")
    assert isinstance(clean, CleanConfig)
    return clean.color
