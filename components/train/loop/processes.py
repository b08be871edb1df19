"""Train in several processes of this machine: torchrun starts them, and their records tell the error if one fails."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import IO

from ...dataset.records import StepRecord
from ...models.artifact import pick_device
from ...step.runner_exit import RUNNER_PID, StopRequest
from ...step.step import RANK_RECORDS
from ...storage.errors import (
    EXIT_INTERNAL,
    EXIT_OK,
    EXIT_TRANSIENT,
    EXIT_USER,
    MillError,
    error_for_exit_code,
    wrong,
)
from ...storage.parallel import cores
from ..config import TrainConfig
from .distributed import LOST

GRACE_S = 120
"""Seconds for writing a checkpoint after SIGTERM."""
_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Files of NVIDIA's driver, of the one under Windows, and of AMD's."""
_TORCHRUN_LOG = re.compile(r"[IWEF]\d{4} [\d:.]+ \d+ .*torch")


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
