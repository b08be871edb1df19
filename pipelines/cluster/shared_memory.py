"""The size of /dev/shm in pods.

A pod has 64 MiB by default, and PyTorch's worker processes and NCCL fail as soon as a batch does not fit. A larger one
is an emptyDir in memory, which counts against the container's memory limit: so it is sized by need.
"""

from __future__ import annotations

import math

from ...components.clean.config import CleanConfig
from ...components.resize.config import ResizeConfig
from ...components.train.config import TrainConfig
from ..parameters import RunParameters
from ..settings import parse_quantity
from .cluster_file import Pod

MIB = 2**20
BASE_BYTES = 512 * MIB
"""The use of NCCL and PyTorch themselves, with room to spare."""
STEP_BYTES = 256 * MIB
"""Sizes are multiples of it."""
MAX_MEMORY_SHARE = 0.5
"""Of the memory limit."""
QUEUED_BATCHES = 2
"""Batches that the loader keeps ready, beside one under way for each core."""


def shm_size(step: str, pod: Pod, parameters: RunParameters) -> str:
    """Return the size of a step's /dev/shm as a quantity; empty where the pod's 64 MiB suffice.

    `pod.shm` if it is set. Else for train, by the configured batch size: room for every batch that is loaded ahead
    (one a core and two that are ready), twice, for a copy of each may be under way; at least 512 MiB, in steps of
    256 MiB, and never above half of the memory limit.
    """
    if pod.shm or step != "train":
        return pod.shm
    train, resize = parameters.config("train"), parameters.config("resize")
    assert isinstance(train, TrainConfig) and isinstance(resize, ResizeConfig)
    clean = parameters.config("clean")
    assert isinstance(clean, CleanConfig)
    batch = train.batch_size * image_bytes(resize, clean.color)
    cores = math.ceil(parse_quantity(pod.cpu_limit or pod.cpu))
    required = BASE_BYTES + 2 * (cores + QUEUED_BATCHES) * batch
    limit = int(parse_quantity(pod.memory_limit or pod.memory) * MAX_MEMORY_SHARE)
    size = min(math.ceil(required / STEP_BYTES) * STEP_BYTES, limit // STEP_BYTES * STEP_BYTES or limit)
    return f"{size // MIB}Mi" if size >= MIB else ""


def image_bytes(config: ResizeConfig, color: str) -> int:
    """Return the bytes of one decoded image, uint8 [H, W, C]."""
    height, width, channels = config.geometry(color).shape
    return height * width * channels
