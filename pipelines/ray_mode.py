"""Choose where a run resizes: in the step's own pod, as a RayJob, or on a Ray cluster that is there.

A RayJob's pods take 35 to 60 s before they do any work (measured on a node of two busy cores, with the images there),
Ray in the step's own pod about 10 s: so a small dataset is done sooner there. The estimate is a line through three
measurements of the resize step on two cores (images to 224 x 224, start-up apart):

| images | file | measured | estimated |
|---|---|---|---|
| 500 x 375 | 34 kB | 1,400 to 1,700 images/s | 1,570 images/s |
| 1600 x 1200 | 231 kB | 420 to 430 images/s | 430 images/s |
| 4000 x 3000 | 1 MB | 119 images/s | 113 images/s |
"""

from __future__ import annotations

from typing import Literal, cast

from ..components.store.manifest import Totals
from .cluster import Cluster, Pod
from .settings import bytes_of

Mode = Literal["pod", "rayjob", "address"]
SECONDS_PER_IMAGE = 0.7e-3
"""Core-seconds for each image, whatever its size: resampling, writing, hashing."""
SECONDS_PER_BYTE = 17e-9
"""Core-seconds for each byte of an image file: reading and decoding."""


def choose_mode(cluster: Cluster, totals: Totals, copies: int = 0, device: str = "cpu") -> Mode:
    """Return where the tensors of a clean dataset are made. A pure function, so that a retry decides alike.

    Args:
        cluster: the cluster's file; `ray.mode` decides unless it is `auto`.
        totals: those of the clean manifest.
        copies: augmented copies of every training image, `ResizeConfig.copies`.
        device: `cpu`, or `cuda` where the workers' GPUs are used: the step's own pod has none.
    """
    if cluster.ray.mode != "auto":
        return cast(Mode, cluster.ray.mode)
    seconds = estimate_seconds(cluster.steps["resize"], totals, copies)
    return "pod" if device == "cpu" and seconds <= cluster.ray.auto_seconds else "rayjob"


def estimate_seconds(pod: Pod, totals: Totals, copies: int = 0) -> float:
    """Return how long a pod resizes on the cores that it is promised, without the start of Ray (about 8 s)."""
    images = totals.rows + copies * totals.by_split.get("train", 0)
    per_image = SECONDS_PER_IMAGE + SECONDS_PER_BYTE * totals.bytes / max(1, totals.rows)
    return images * per_image / bytes_of(pod.cpu)
