"""The cluster's file inside a pod: an environment variable of the KFP package's and of the Argo templates' pods.

A parameter would do as well, but KFP's executor prints every input of a step at the top of its log, and a command line
is the first thing that people look at.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace

from .cluster import Cluster, from_json
from .rayjob import ray_version
from .settings import to_plain

VARIABLE = "IMAGEMILL_CLUSTER"
_PARTS: Sequence[str] = ("namespace", "images", "storage", "labels", "ray", "limits", "argo", "steps", "small")
"""The fields that a pod reads: what a RayJob is made of and found by, and what it is compared with."""


def cluster_variable(cluster: Cluster) -> dict[str, str]:
    """Return the environment variable by which `cluster_of_pod` knows the cluster in a pod: {name: JSON}.

    Ray's version is written out, because the images of the small pods have no Ray.
    """
    told = replace(cluster, ray=replace(cluster.ray, version=ray_version(cluster)))
    values = {name: to_plain(getattr(told, name)) for name in _PARTS}
    return {VARIABLE: json.dumps(values, sort_keys=True, separators=(",", ":"))}


def cluster_of_pod() -> Cluster | None:
    """Return the cluster that this process was told of; None outside a cluster.

    UserError where the variable was written by another imagemill.
    """
    text = os.environ.get(VARIABLE, "")
    return from_json(text) if text else None
