"""How many images a second: what the network takes alone, and the whole with reading and counting."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..store.parallel import cores

if TYPE_CHECKING:
    import torch


@dataclass
class Speed:
    """Images and the network's seconds, for one view and for all of them."""

    device: torch.device
    started: float = field(default_factory=time.perf_counter)
    batches: int = 0
    _sums: tuple[int, float, float] = (0, 0.0, 0.0)
    _first: tuple[int, float, float] = (0, 0.0, 0.0)

    def now(self) -> float:
        """The time when all that was asked of the device is done."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def add(self, images: int, one: float, every: float) -> None:
        """A batch: the seconds of its first view and of all of them."""
        if not self.batches:
            self._first = (images, one, every)
        self.batches += 1
        self._sums = (self._sums[0] + images, self._sums[1] + one, self._sums[2] + every)

    def described(self, images: int, batch_size: int) -> dict[str, Any]:
        """Images a second of the `network` alone, with one view (`network_one_view`), and of the `whole`. The first of
        several batches does not count for the network's: it pays for memory and for the choice of kernels."""
        left_out = self._first if self.batches > 1 else (0, 0.0, 0.0)
        done, one, every = (a - b for a, b in zip(self._sums, left_out, strict=True))
        spent = {
            "network": (done, every),
            "network_one_view": (done, one),
            "whole": (images, self.now() - self.started),
        }
        about = {"device": named(self.device), "batch_size": batch_size}
        return about | {name: round(number / max(1e-9, seconds), 1) for name, (number, seconds) in spent.items()}


def named(device: torch.device) -> str:
    """A device for people: the name of a GPU, or how many cores of what kind."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()} CPU, {cores()} core{'s' if cores() > 1 else ''}"


def told(speed: dict[str, Any]) -> str:
    """The line about it, with what other views than one cost."""
    cost = ""
    if speed["tta"] != "none":
        times = speed["network_one_view"] / max(1e-9, speed["network"])
        cost = f"; {speed['network_one_view']:,.0f} without tta {speed['tta']}, which costs {times:.1f} times as much"
    rates = f"{speed['network']:,.0f} images/s of the network, {speed['whole']:,.0f} of the whole"
    return f"{rates} on {speed['device']}{cost}"
