"""Training in several processes of this machine: torchrun starts them, their records tell the error if one fails, and
signals ask them to stop.

Gradients travel by DistributedDataParallel (NCCL between GPUs, gloo between CPUs); all other values by a gloo group of
their own, so that no GPU is waited for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ...dataset.records import StepRecord
from ...models.artifact import pick_device
from ...models.timm_models import is_timm
from ...step.runner_exit import RUNNER_PID, handles_sigterm
from ...step.step import RANK_RECORDS
from ...storage.errors import (
    EXIT_INTERNAL,
    EXIT_OK,
    EXIT_TRANSIENT,
    EXIT_USER,
    MillError,
    TransientError,
    error_for_exit_code,
    wrong,
)
from ...storage.parallel import cores
from ..config import TrainConfig

if TYPE_CHECKING:
    import torch

LOST = "another process of this training ended"
TIMEOUT = timedelta(days=1)
"""Of every collective: ranks wait while the main one saves. When one process ends, all are ended."""
GRACE_S = 120
"""Seconds for writing a checkpoint after SIGTERM."""
_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Files of NVIDIA's driver, of the one under Windows, and of AMD's."""
_TORCHRUN_LOG = re.compile(r"[IWEF]\d{4} [\d:.]+ \d+ .*torch")


@dataclass
class StopRequest:
    """A request to end the training at the next batch, made by SIGTERM (the machine is taken away) or Ctrl-C."""

    is_requested: bool = False
    signal_name: str = "SIGTERM"

    @contextlib.contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Let SIGTERM and the first Ctrl-C set `is_requested` instead of ending the process."""
        if threading.current_thread() is not threading.main_thread():  # Python allows handlers in the main thread only
            yield
            return

        def request(number: int, frame: Any) -> None:
            self.is_requested = True
            if number == signal.SIGINT:
                self.signal_name = "Ctrl-C"
                signal.signal(number, previous[signal.SIGINT])  # a second Ctrl-C ends the process at once

        previous = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with handles_sigterm():
                yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


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


def count_processes(config: TrainConfig) -> int:
    """Return the number of processes that train: one for each GPU unless configured, torchrun's number in its own.

    torch is imported only beside a GPU's driver: to find that a model is there already takes no torch, and the image of
    a cluster's first pod has none.
    """
    if (world_size := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        return world_size
    if config.processes or config.recipe == "probe":  # one solves the head, and there is nothing else to do
        return config.processes or 1
    if config.device != "cpu" and any(Path(file).exists() for file in _GPU_DRIVERS):
        with contextlib.suppress(ImportError):
            import torch

            return max(1, torch.cuda.device_count())
    return 1


def choose_processes(config: TrainConfig) -> int:
    """Return `count_processes`; UserError for more processes than GPUs, or than pairs of images in a batch."""
    number = count_processes(config)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        return number
    if config.device != "cpu" and pick_device(config.device).type == "cuda":
        import torch

        if number > (gpus := torch.cuda.device_count()):
            raise wrong("processes", f"at most one for each of {gpus} GPUs", number)
    if config.batch_size < 2 * number:
        raise wrong("batch_size", f"at least two images for each of {number} processes", config.batch_size)
    return number


def run_processes(config: TrainConfig, run: str, number: int, stop: StopRequest) -> None:
    """Train in `number` processes to the end. The error that ended one of them is raised here as its own would be."""
    with tempfile.TemporaryDirectory(prefix="imagemill-ranks-") as folder:
        environment = {**os.environ, RANK_RECORDS: folder, RUNNER_PID: str(os.getpid())}
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // number)))
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}",
            f"--shutdown-timeout={GRACE_S}", "-m", "--", "imagemill.components.train", *make_flags(config, run),
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, errors="replace",
            env=environment,
        )  # fmt: skip
        assert process.stderr
        last_lines: deque[str] = deque(maxlen=20)
        reader = threading.Thread(target=_forward_lines, args=(process.stderr, last_lines), daemon=True)
        reader.start()
        try:
            _wait(process, stop)
        finally:
            if process.poll() is None:  # an error of this process
                process.terminate()
                process.wait()
        reader.join()
        if process.returncode != EXIT_OK:
            raise _find_error(Path(folder), number, list(last_lines))


def make_flags(config: TrainConfig, run: str) -> list[str]:
    """Return the config as a command line of each process, with the run that the processes belong to."""
    return dataclasses.replace(config, run=run, processes=None).to_flags()


def _wait(process: subprocess.Popen[str], stop: StopRequest) -> None:
    """Wait until the process has ended; a request to stop is passed on to it, once."""
    is_terminated = False
    while True:
        try:
            process.wait(0.2)
            return
        except subprocess.TimeoutExpired:
            if stop.is_requested and not is_terminated:
                process.terminate()
                is_terminated = True


def _forward_lines(lines: IO[str], last_lines: deque[str]) -> None:
    """Print the lines of the ranks; torchrun's own log and its account of an error are kept in `last_lines`."""
    has_failed = False
    for line in lines:
        log = _TORCHRUN_LOG.match(line)
        has_failed = has_failed or bool(log and line.startswith("E"))
        if log or (has_failed and not line.startswith("[")):
            last_lines.append(line.rstrip())
        else:
            print(line, end="", file=sys.stderr, flush=True)


def _find_error(folder: Path, number: int, last_lines: list[str]) -> MillError:
    """Return the error that ended the training: that of a rank which failed by itself, as the others ended because of
    it; else that the missing ranks were killed, or torchrun's own last lines."""
    paths = [folder / f"{rank}.json" for rank in range(number)]
    records = [StepRecord.read(path) for path in paths if path.exists()]
    failed = [record for record in records if record.exit_code != EXIT_OK]
    for code in (EXIT_USER, EXIT_INTERNAL):
        for record in failed:
            if record.exit_code == code:
                return error_for_exit_code(code, record.error)
    own_errors = [record.error for record in failed if not record.error.startswith(LOST)]
    if own_errors:
        return error_for_exit_code(EXIT_TRANSIENT, own_errors[0])
    signals = [line.strip() for line in last_lines if "Signal" in line]
    if len(records) < number and (records or signals):  # killed: there is a checkpoint to go on from
        first_signal = f" ({signals[0]})" if signals else ""
        message = f"{number - len(records)} of {number} processes were killed{first_signal}"
        return error_for_exit_code(EXIT_TRANSIENT, message)
    if failed:
        return error_for_exit_code(EXIT_TRANSIENT, failed[0].error)
    return MillError(f"torchrun failed: {' '.join(last_lines[-3:])}")
