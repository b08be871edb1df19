"""One of the processes of a training: its place among them, and what they tell one another.

Gradients travel by DistributedDataParallel (NCCL between GPUs, gloo between CPUs); what all must agree on (whether to
stop, whether an epoch was the last) by a group of gloo's own, so that no GPU is waited for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..store.errors import TransientError
from ..store.model import pick_device
from ..store.runner import handles_sigterm

if TYPE_CHECKING:
    import torch

LOST = "another process of this training ended"
PATIENCE = timedelta(days=1)
"""How long a rank waits for another one: the first one validates and saves alone. When one ends, all are ended."""


@dataclass
class StopSign:
    """Set by SIGTERM or Ctrl-C: the machine is taken away, or somebody has had enough."""

    asked: bool = False
    by: str = "SIGTERM"

    @contextlib.contextmanager
    def raised_by_signals(self) -> Iterator[None]:
        """From now on SIGTERM and the first Ctrl-C only raise the sign; whoever works looks at it between two steps."""
        if threading.current_thread() is not threading.main_thread():  # only there signals can be handled
            yield
            return

        def ask(number: int, frame: Any) -> None:
            self.asked = True
            if number == signal.SIGINT:
                self.by = "Ctrl-C"
                signal.signal(number, before[signal.SIGINT])  # a second one means at once

        before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with handles_sigterm():
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class Ranks:
    """This process is `rank` of `number`; alone it is 0 of 1, and nothing here does anything."""

    rank: int = 0
    number: int = 1
    stop: StopSign = field(default_factory=StopSign)
    _control: Any = None
    _asking: Any = None

    @classmethod
    def join(cls, device: str, stop: StopSign) -> Ranks:
        """The group that torchrun's variables name (RANK, WORLD_SIZE, MASTER_ADDR and _PORT), or this process alone.
        `device` as the config names it: NCCL for GPUs, gloo for CPUs."""
        number = int(os.environ.get("WORLD_SIZE", "1"))
        if number == 1:
            return cls(stop=stop)
        import torch.distributed as dist

        backend = "nccl" if pick_device(device).type == "cuda" else "gloo"
        with _together():
            if not dist.is_initialized():
                dist.init_process_group(backend, timeout=PATIENCE)
            return cls(dist.get_rank(), number, stop, dist.new_group(backend="gloo", timeout=PATIENCE))

    @property
    def first(self) -> bool:
        """Validates, saves, commits and speaks."""
        return self.rank == 0

    def from_first(self, *values: float) -> list[float]:
        """What the first one says."""
        if self.number == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        told = torch.tensor(values, dtype=torch.float64)
        with _together():
            dist.broadcast(told, 0, group=self._control)
        return [float(value) for value in told.tolist()]

    def same(self, what: str, *values: float) -> None:
        """TransientError where the ranks do not have the same numbers: one of them could not read what all read."""
        if self.from_first(*values) != [float(value) for value in values]:
            raise TransientError(
                f"{what}: expected the same in all processes of a training, found others in {self.rank}"
            )

    def summed(self, value: torch.Tensor) -> float:
        """The sum over the ranks of a number on the device."""
        if self.number == 1:
            return float(value.item())
        import torch
        import torch.distributed as dist

        total = torch.tensor([value.item()], dtype=torch.float64)
        with _together():
            dist.all_reduce(total, group=self._control)
        return float(total.item())

    def stopping(self) -> bool:
        """Between two steps: has anyone been asked to stop? All get the same answer at the same step, which is one step
        late where there are several: it travels while they compute."""
        if self.number == 1:
            return self.stop.asked
        import torch
        import torch.distributed as dist

        with _together():
            answer = False
            if self._asking is not None:
                work, told = self._asking
                work.wait()
                answer = bool(told.item())
                self._asking = None
            if not answer:
                told = torch.tensor([float(self.stop.asked)])
                self._asking = (dist.all_reduce(told, group=self._control, async_op=True), told)
        return answer

    def settle(self) -> None:
        """What is still on its way when there are no more steps."""
        if self._asking is not None:
            with _together():
                self._asking[0].wait()
            self._asking = None

    def leave(self) -> None:
        """At the end, when nothing went wrong."""
        if self.number > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around what the ranks do together: when another one has ended, that is no error of this one's."""
        with _together() if self.number > 1 else contextlib.nullcontext():
            yield


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Errors of communication as TransientError: the rank that caused them says what happened to it."""
    try:
        yield
    except RuntimeError as error:
        import torch.distributed as dist

        said = str(error)
        lost = isinstance(error, dist.DistError) or any(
            word in said for word in ("gloo", "NCCL", "Connection", "Socket")
        )
        if not lost:
            raise
        raise TransientError(f"{LOST}: {said.splitlines()[0]}") from None
