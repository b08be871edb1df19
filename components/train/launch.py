"""A training in several processes of this machine: torchrun starts them, and their records say how it ended."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import IO, Any

from ..store.errors import EXIT_OK, EXIT_OURS, EXIT_TRANSIENT, EXIT_USER, MillError, error_for_exit_code, wrong
from ..store.model import pick_device
from ..store.parallel import cores
from ..store.runner import RUNNER_PID
from ..store.step import RANK_RECORDS
from .config import TrainConfig
from .ranks import LOST, StopSign

GRACE_S = 120
"""For writing a checkpoint after SIGTERM."""
_LOG = re.compile(r"[IWEF]\d{4} [\d:.]+ \d+ .*torch")
_WORST_FIRST = (EXIT_USER, EXIT_OURS)


def processes(config: TrainConfig) -> int:
    """How many processes shall train here: 1 in a process that torchrun has started. UserError for more than there are
    GPUs, or images in a batch for two each."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return 1
    number = config.processes or 0
    if config.device != "cpu" and pick_device(config.device).type == "cuda":
        import torch

        gpus = torch.cuda.device_count()
        if number > gpus:
            raise wrong("processes", f"at most one for each of {gpus} GPUs", number)
        number = number or gpus
    number = number or 1
    if config.batch_size < 2 * number:
        raise wrong("batch_size", f"at least two images for each of {number} processes", config.batch_size)
    return number


def launch(config: TrainConfig, run: str, number: int, stop: StopSign) -> None:
    """Train in `number` processes to the end. The error that ended one of them is raised here as its own would be."""
    with tempfile.TemporaryDirectory(prefix="imagemill-ranks-") as folder:
        environment = {**os.environ, RANK_RECORDS: folder, RUNNER_PID: str(os.getpid())}
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // number)))
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={number}",
            f"--shutdown-timeout={GRACE_S}", "-m", "--", "imagemill.components.train", *flags(config, run),
        ]  # fmt: skip
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, errors="replace",
            env=environment,
        )  # fmt: skip
        assert process.stderr
        last: deque[str] = deque(maxlen=20)
        reader = threading.Thread(target=_forward, args=(process.stderr, last), daemon=True)
        reader.start()
        try:
            _wait(process, stop)
        finally:
            if process.poll() is None:  # an error of this process
                process.terminate()
                process.wait()
        reader.join()
        if process.returncode != EXIT_OK:
            raise _error(Path(folder), number, list(last))


def flags(config: TrainConfig, run: str) -> list[str]:
    """The config as a command line: what differs from the defaults, and the run that the processes belong to."""
    values = {one.name: getattr(config, one.name) for one in dataclasses.fields(config)}
    usual = {one.name: one.default for one in dataclasses.fields(config)}
    values |= {"run": run, "processes": usual["processes"]}
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value != usual[name]]


def _wait(process: subprocess.Popen[str], stop: StopSign) -> None:
    """Until it has ended; SIGTERM is passed on, once."""
    told = False
    while True:
        try:
            process.wait(0.2)
            return
        except subprocess.TimeoutExpired:
            if stop.asked and not told:
                process.terminate()
                told = True


def _forward(lines: IO[str], last: deque[str]) -> None:
    """What the ranks say, as it comes; torchrun's own account of an error is kept for when there is no better one."""
    failed = False
    for line in lines:
        log = _LOG.match(line)
        failed = failed or bool(log and line.startswith("E"))
        if log or (failed and not line.startswith("[")):
            last.append(line.rstrip())
        else:
            print(line, end="", file=sys.stderr, flush=True)


def _error(folder: Path, number: int, last: list[str]) -> MillError:
    """The error of the rank that has one of its own: the others ended because of it."""
    records: list[dict[str, Any]] = []
    for rank in range(number):
        path = folder / f"{rank}.json"
        if path.exists():
            records.append(json.loads(path.read_text()))
    bad = [record for record in records if record["exit_code"] != EXIT_OK]
    for code in _WORST_FIRST:
        for record in bad:
            if record["exit_code"] == code:
                return error_for_exit_code(code, record["error"])
    own = [record["error"] for record in bad if not record["error"].startswith(LOST)]
    if own:
        return error_for_exit_code(EXIT_TRANSIENT, own[0])
    signals = [line.strip() for line in last if "Signal" in line]
    if len(records) < number and (records or signals):  # killed: there is a checkpoint to go on from
        ended = f"{number - len(records)} of {number} processes were killed" + "".join(
            f" ({line})" for line in signals[:1]
        )
        return error_for_exit_code(EXIT_TRANSIENT, ended)
    if bad:
        return error_for_exit_code(EXIT_TRANSIENT, bad[0]["error"])
    return MillError(f"torchrun failed: {' '.join(last[-3:])}")
