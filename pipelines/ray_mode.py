"""Choose where a run resizes: in the step's own pod, as a RayJob, or on a Ray cluster that is there.

A RayJob's pods take 35 to 60 s before they do any work (measured on a node of two busy cores, with the images there),
Ray in the step's own pod about 10 s: so a small dataset is done sooner there. What the work takes is
estimated in components/resize/threads.py.
"""

from __future__ import annotations

from typing import Literal, cast

from ..components.resize.threads import work_seconds
from ..components.store.manifest import Totals
from .cluster import Cluster, Pod
from .settings import parse_quantity

Mode = Literal["pod", "rayjob", "address"]


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
    return work_seconds(totals, copies) / parse_quantity(pod.cpu)
