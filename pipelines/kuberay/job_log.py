"""The log of a RayJob, printed while the job runs.

KubeRay's submitter prints the job's output. Its log is read from the beginning each time that the connection breaks;
lines that were printed before are recognized by their timestamps.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime

from ...components.engine.ray_job import forward_log_line
from ...components.step.progress import say
from ...components.storage.errors import MillError, UserError
from ..cluster.kube_client import Json, KubeClient, StreamInterrupted

POLL_S = 1.0
MAX_LINES = 100
"""Lines at the end of the log that are kept to explain a failure without a record."""
_TIMESTAMPED_LINE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) (.*)", re.DOTALL)
"""A line of a log with timestamps, which are of the node's clock, in the node's zone."""


class JobLog:
    """A thread that prints the logs of a job's submitter pods, one after the other."""

    def __init__(self, kube: KubeClient, job: str, step: str) -> None:
        self._kube, self._job, self._step = kube, job, step
        self._ended = threading.Event()
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._last_times: dict[str, tuple[float, str]] = {}
        self._complete: set[str] = set()
        self._thread = threading.Thread(target=self._follow, name="job-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Print the rest of the log after the job has ended, for some seconds at most."""
        self._ended.set()
        self._thread.join(seconds)

    def tail(self) -> str:
        """Return the last lines of the log, at most MAX_LINES."""
        return "\n".join(list(self._lines))

    def _follow(self) -> None:
        while True:
            is_last = self._ended.is_set()
            try:
                self._read_logs()
            except UserError as error:  # no reason to fail: the record says how the job ended
                say(self._step, f"the job's log can't be followed: {error}")
                return
            except MillError:
                pass
            if is_last:
                return
            self._ended.wait(POLL_S)

    def _read_logs(self) -> None:
        pods = self._kube.list_pods(f"job-name={self._job}")
        for pod in sorted(pods, key=lambda item: str(item["metadata"].get("creationTimestamp"))):
            if pod["metadata"]["uid"] not in self._complete and _get_phase(pod) not in ("", "Pending", "Unknown"):
                self._read_log(pod)

    def _read_log(self, pod: Json) -> None:
        """Print a pod's log to where it breaks off or ends. An incomplete last line counts once the pod has ended."""
        uid, has_ended = str(pod["metadata"]["uid"]), _get_phase(pod) in ("Succeeded", "Failed")
        try:
            for line in _split_lines(self._kube.stream_pod_log(str(pod["metadata"]["name"])), has_ended):
                self._print_line(uid, line)
        except StreamInterrupted:
            return
        if has_ended:
            self._complete.add(uid)

    def _print_line(self, uid: str, line: bytes) -> None:
        if not (match := _TIMESTAMPED_LINE.fullmatch(line)):
            return
        seconds = datetime.fromisoformat((match[1] + match[3]).decode()).timestamp()
        timestamp = seconds, (match[2] or b"").decode().ljust(9, "0")
        if timestamp <= self._last_times.get(uid, (0.0, "")):
            return
        self._last_times[uid] = timestamp
        text = match[4].decode(errors="replace").rstrip("\r")
        self._lines.append(text)
        forward_log_line(self._step, text)


def _get_phase(pod: Json) -> str:
    return str((pod.get("status") or {}).get("phase") or "")


def _split_lines(chunks: Iterable[bytes], with_rest: bool) -> Iterator[bytes]:
    """Yield complete lines, without their ends, and with `with_rest` an incomplete last one."""
    incomplete = b""
    for chunk in chunks:
        *complete, incomplete = (incomplete + chunk).split(b"\n")
        yield from complete
    if with_rest and incomplete:
        yield incomplete
