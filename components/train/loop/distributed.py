"""Communication between the processes of a training.

Gradients travel by DistributedDataParallel (NCCL between GPUs, gloo between CPUs); all other values by a gloo group of
their own, so that no GPU is waited for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ...models.artifact import pick_device
from ...models.timm_models import is_timm
from ...step.runner_exit import StopRequest
from ...storage.errors import TransientError

if TYPE_CHECKING:
    import torch

LOST = "another process of this training ended"
TIMEOUT = timedelta(days=1)
"""Of every collective: ranks wait while the main one saves. When one process ends, all are ended."""


@dataclass
class Communicator:
    """The process `rank` of `world_size`. Of a single process every method is local."""

    rank: int = 0
    world_size: int = 1
    stop: StopRequest = field(default_factory=StopRequest)
    _group: Any = None
    _stop_check: Any = None

    @classmethod
    def join(cls, device: str, stop: StopRequest) -> Communicator:
        """Join the group that torchrun's variables name (RANK, WORLD_SIZE, MASTER_ADDR and _PORT), if they are set.

        `device` as the config names it: NCCL for GPUs, gloo for CPUs.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls(stop=stop)
        import torch.distributed as dist

        backend = "nccl" if pick_device(device).type == "cuda" else "gloo"
        with _catch_lost_peers():
            if not dist.is_initialized():
                dist.init_process_group(backend, timeout=TIMEOUT)
            return cls(dist.get_rank(), world_size, stop, dist.new_group(backend="gloo", timeout=TIMEOUT))

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, the process that saves, commits and reports."""
        return self.rank == 0

    def broadcast(self, *values: float) -> list[float]:
        """Return the main process's values."""
        if self.world_size == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64)
        with _catch_lost_peers():
            dist.broadcast(tensor, 0, group=self._group)
        return [float(value) for value in tensor.tolist()]

    def wait_for_main(self) -> None:
        """Block until the main process gets here too."""
        self.broadcast(0.0)

    def check_equal(self, name: str, *values: float) -> None:
        """Raise TransientError unless all ranks have the same values: one could not read what all others read."""
        if self.broadcast(*values) != [float(value) for value in values]:
            raise TransientError(
                f"{name}: expected the same in all processes of a training, found others in {self.rank}"
            )

    def sum(self, value: torch.Tensor) -> float:
        """Return the sum over the ranks of a scalar tensor on any device."""
        if self.world_size == 1:
            return float(value.item())
        import torch
        import torch.distributed as dist

        total = torch.tensor([value.item()], dtype=torch.float64)
        with _catch_lost_peers():
            dist.all_reduce(total, group=self._group)
        return float(total.item())

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of the ranks; it travels pickled."""
        if self.world_size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world_size
        with _catch_lost_peers():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast_tensors(self, tensors: Iterable[torch.Tensor]) -> None:
        """Set tensors on any device to the main process's."""
        if self.world_size == 1:
            return
        import torch.distributed as dist

        for tensor in tensors:
            value = tensor.detach().cpu()
            with _catch_lost_peers():
                dist.broadcast(value, 0, group=self._group)
            tensor.detach().copy_(value)

    def should_stop(self) -> bool:
        """Return whether any rank was asked to stop, the same on all ranks after the same optimizer step.

        Of several ranks the answer is that of the step before: it travels while they compute.
        """
        if self.world_size == 1:
            return self.stop.is_requested
        import torch
        import torch.distributed as dist

        with _catch_lost_peers():
            should_stop = False
            if self._stop_check is not None:
                work, requests = self._stop_check
                work.wait()
                should_stop = bool(requests.item())
                self._stop_check = None
            if not should_stop:
                requests = torch.tensor([float(self.stop.is_requested)])
                self._stop_check = (dist.all_reduce(requests, group=self._group, async_op=True), requests)
        return should_stop

    def finish_stop_check(self) -> None:
        """Wait for the exchange that the last `should_stop` started."""
        if self._stop_check is not None:
            with _catch_lost_peers():
                self._stop_check[0].wait()
            self._stop_check = None

    def close(self) -> None:
        """Leave the process group after a training without errors."""
        if self.world_size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def catch_lost_peers(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the end of another process raises TransientError."""
        return _catch_lost_peers() if self.world_size > 1 else contextlib.nullcontext()


@contextlib.contextmanager
def _catch_lost_peers() -> Iterator[None]:
    """Raise errors of communication as TransientError: the rank that caused them reports its own error."""
    try:
        yield
    except RuntimeError as error:
        import torch.distributed as dist

        message = str(error)
        is_lost = isinstance(error, dist.DistError) or any(
            word in message for word in ("gloo", "NCCL", "Connection", "Socket")
        )
        if not is_lost:
            raise
        raise TransientError(f"{LOST}: {message.splitlines()[0]}") from None


def synchronize_batch_norm(network: torch.nn.Module, backbone: str, device: torch.device) -> str:
    """Let batch normalizations take mean and variance of the images of all processes, as one process does.

    Modules are replaced in the network; parameters, buffers and their names stay. torch's SyncBatchNorm computes on
    GPUs only: elsewhere nothing is changed, each process normalizes by its own share of a batch, and the running
    statistics are those of the main process, which DistributedDataParallel sends to all before each batch.

    Returns a line for the log; empty for a network without batch normalization.
    """
    import torch

    if not any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return ""
    if device.type != "cuda":
        return (
            "batch normalization: each process normalizes by its own share of a batch, since torch synchronizes "
            "processes (SyncBatchNorm) on GPUs only; small shares learn worse, and a larger batch_size helps"
        )
    if is_timm(backbone):  # some of its normalizations include the activation, which torch's function would lose
        from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]

        convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    else:
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return "batch normalization: by the images of all processes (SyncBatchNorm)"
