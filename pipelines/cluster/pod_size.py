"""Sizes of containers and pods in the cluster file: requests and limits, GPUs, node selectors and tolerations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...components.storage.errors import wrong
from ..settings import parse_quantity, setting
from . import validation

Place = Callable[..., str]
"""Returns the name of a field of the file for a message."""
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Size:
    """The resources of a container: requests, and limits, which for CPU are optional."""

    cpu: str = setting("1", "cores that it is promised", quantity=True)
    cpu_limit: str = setting("", "cores that it may take (empty: as many as are free)", quantity=True)
    memory: str = setting("2Gi", "memory that it is promised, and that it may take", quantity=True)
    memory_limit: str = setting("", "memory that it may take, if more than promised", quantity=True)
    ephemeral_storage: str = setting("4Gi", "disk of the node that it is promised, and may take for scratch "
                                     "(KFP: only the latter)", quantity=True)  # fmt: skip

    def check(self, place: Place) -> None:
        for name, limit in (("cpu", self.cpu_limit), ("memory", self.memory_limit)):
            request = getattr(self, name)
            if not request or not parse_quantity(request):
                raise wrong(place(name), "a quantity above 0", request)
            if limit and parse_quantity(limit) < parse_quantity(request):
                raise wrong(place(f"{name}_limit"), f"at least {name}, {request}", limit)
        for name in ("memory", "ephemeral_storage"):
            _check_bytes(place(name), getattr(self, name))

    def resources(self) -> dict[str, dict[str, str]]:
        """Return requests and limits as the `resources` of a container."""
        disk = {"ephemeral-storage": self.ephemeral_storage} if self.ephemeral_storage else {}
        cpu_limit = {"cpu": self.cpu_limit} if self.cpu_limit else {}
        return {
            "requests": {"cpu": self.cpu, "memory": self.memory, **disk},
            "limits": {**cpu_limit, "memory": self.memory_limit or self.memory, **disk},
        }


@dataclass(frozen=True)
class Pod(Size):
    """The resources of a pod of one container, and the nodes that it may run on."""

    gpu: int = setting(0, "GPUs")
    gpu_type: str = setting("nvidia.com/gpu", "which: the resource's name")
    shm: str = setting("", "size of /dev/shm, as a part of the memory (empty: by the batch for train, else none)",
                       quantity=True)  # fmt: skip
    node_selector: dict[str, str] = setting(dict, "labels that the node must have")
    tolerations: tuple[dict[str, Any], ...] = setting(
        tuple, "taints that it tolerates, as Kubernetes writes them: {key, operator, value, effect}"
    )
    deadline_seconds: int = setting(0, "the longest that one try may take (0: as long as the run)")

    def check(self, place: Place) -> None:
        super().check(place)
        _check_bytes(place("shm"), self.shm)
        if self.shm and parse_quantity(self.shm) >= parse_quantity(self.memory_limit or self.memory):
            raise wrong(place("shm"), f"less than memory, {self.memory}, which it is a part of", self.shm)
        validation.check_resource(place("gpu_type"), self.gpu_type)
        validation.check_labels(place("node_selector"), self.node_selector)
        for toleration in self.tolerations:
            validation.check_toleration(place("tolerations"), toleration)

    def resources(self) -> dict[str, dict[str, str]]:
        gpu = {self.gpu_type: str(self.gpu)} if self.gpu else {}
        return {kind: {**sizes, **gpu} for kind, sizes in super().resources().items()}


def _check_bytes(place: str, size: str) -> None:
    if size and parse_quantity(size) < _MEBIBYTE:  # the usual mistake: 512m, which is half a byte
        raise wrong(place, "at least 1Mi (Mi: 2²⁰ bytes; m: a thousandth of one)", size)
