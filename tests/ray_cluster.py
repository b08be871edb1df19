"""A real Ray cluster on this machine: a head and further raylets in processes of their own, with token authentication.

Every port is a free one and everything lies in one folder, so that several clusters can live side by side. It ends by
the ids of its own processes: `ray stop` would end every Ray of the machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import mill
from cleaned import Row, cleaned, picture, raw_dataset, raw_row

from imagemill.components.dataset.manifest import read_dataset
from imagemill.components.dataset.splits import compute_shuffle_index

STORE_BYTES = 80 * 2**20
MARK = "IMAGEMILL_TEST_CLUSTER"
"""In the environment of every process of a cluster."""
STARTED = "Ray runtime started"


@dataclass
class Raylet:
    """A `ray start --block` process, the leader of a process group."""

    process: subprocess.Popen[bytes]
    mark: str
    log: Path

    def pids(self, part: str = "") -> list[int]:
        """Its living processes whose command line has `part`; the workers too."""
        return [pid for pid, line in mill.processes_with(MARK, self.mark).items() if part in line]

    def lines(self) -> list[str]:
        """Their command lines; a worker at work is called `ray::` and its task's name."""
        return list(mill.processes_with(MARK, self.mark).values())

    def kill(self) -> None:
        """SIGKILL for all of it at once, as when a machine is gone."""
        for _ in range(50):
            if not (pids := self.pids()):
                break
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.process.wait()


@dataclass
class RayCluster:
    """The head, as a context; `add` starts further raylets. `cpus` are the head's."""

    cpus: int = 2
    python: str = sys.executable
    environment: dict[str, str] = field(default_factory=dict)
    nodes: list[Raylet] = field(default_factory=list)

    def __enter__(self) -> RayCluster:
        self.folder = Path(tempfile.mkdtemp(prefix="mr-", dir="/tmp"))  # short: sockets lie in it
        self.token = self.folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.gcs_port, self.client_port, self.dashboard_port, agent = free_ports(4)
        head = ["--head", "--port", self.gcs_port, "--ray-client-server-port", self.client_port]
        head += ["--dashboard-host", "127.0.0.1", "--dashboard-port", self.dashboard_port, "--include-dashboard=true"]
        try:
            self.start(*head, "--temp-dir", self.folder / "r", "--dashboard-agent-listen-port", agent, cpus=self.cpus)
            mill.wait_until(lambda: answers(self.client_port), "the port of Ray Client", 60)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def add(self, cpus: int = 1) -> Raylet:
        """Start a further raylet and wait until it is ready."""
        (agent,) = free_ports(1)
        return self.start("--address", self.gcs, "--dashboard-agent-listen-port", agent, cpus=cpus)

    def start(self, *arguments: object, cpus: int) -> Raylet:
        mark = secrets.token_hex(8)
        log = self.folder / f"{mark}.log"
        common = ["--block", "--num-cpus", cpus, "--num-gpus", 0, "--object-store-memory", STORE_BYTES]
        common += ["--min-worker-port", 0, "--max-worker-port", 0, "--disable-usage-stats", "--log-style=record"]
        ray = Path(self.python).with_name("ray")
        with log.open("wb") as out:
            process = subprocess.Popen(
                [str(argument) for argument in (ray, "start", *arguments, *common)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._make_environment(mark), cwd=self.folder,
                start_new_session=True,
            )  # fmt: skip
        node = Raylet(process, mark, log)
        self.nodes.append(node)

        def started() -> bool:
            assert process.poll() is None, log.read_text()
            return STARTED in log.read_text()

        mill.wait_until(started, "a raylet", 180)
        return node

    def _make_environment(self, mark: str) -> dict[str, str]:
        """Return this environment without variables of the tests; `python` is the one whose Ray is started."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "IMAGEMILL_", "PYTEST_"))}
        environment["PATH"] = f"{Path(self.python).parent}:{environment['PATH']}"
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0"}
        environment |= {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_TMPDIR": str(self.folder / "r")}
        # A raylet that is gone is missed within seconds, not after half a minute.
        environment |= {"RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000"}
        environment |= {"RAY_health_check_timeout_ms": "3000", "RAY_health_check_failure_threshold": "3"}
        return environment | {MARK: mark} | self.environment

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def lines(self) -> list[str]:
        return [line for node in self.nodes for line in node.lines()]

    def runs_tasks_on_all_nodes(self) -> bool:
        return all(any("ray::_run_on_node" in line for line in node.lines()) for node in self.nodes)

    def request(self, method: str, path: str) -> dict[str, Any]:
        """Ask the dashboard, as its owner."""
        import requests

        login = {"Authorization": f"Bearer {self.token.read_text()}"}
        response: dict[str, Any] = requests.request(method, self.jobs + path, headers=login, timeout=30).json()
        return response

    @property
    def gcs(self) -> str:
        return f"127.0.0.1:{self.gcs_port}"

    @property
    def client(self) -> str:
        return f"ray://127.0.0.1:{self.client_port}"

    @property
    def jobs(self) -> str:
        """The address for job submission."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def login(self) -> dict[str, str]:
        """The environment of a command that is let in."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}


def answers(port: int) -> bool:
    """Whether something on this machine listens on the port."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def free_ports(number: int) -> list[int]:
    """Ports that were free a moment ago, all different; from below those that the kernel gives to outgoing connections,
    and above those that Ray Client's servers take by themselves (23000 to 23999)."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < number:
            port = 24000 + secrets.randbelow(8000)
            try:
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
        return ports


# Work for it


@dataclass(frozen=True)
class Slow:
    """A workspace with a clean dataset of which every image takes some milliseconds to resize."""

    workspace: Path
    clean: str

    def copy(self, folder: Path) -> Slow:
        """The same in another workspace, of which nothing was made yet."""
        copy_dataset(self.clean, folder)
        return Slow(folder, str(folder / "clean" / Path(self.clean).name))


def copy_dataset(uri: str, folder: Path) -> str:
    """Copy a dataset and the parts of its kind to another workspace; its URI there."""
    kind, name = Path(uri).parent.name, Path(uri).name
    shutil.copytree(Path(uri).parent.parent / "parts" / kind, folder / "parts" / kind)
    return str(shutil.copytree(uri, folder / kind / name))


def slow_clean(folder: Path, rows: int, size: tuple[int, int] = (600, 450), parts: int = 1, **more: Any) -> Slow:
    """Rows of a few pictures, each with bytes of its own (after a JPEG's end), in the order that clean writes."""
    pictures = [picture(f"slow {n}", size) for n in range(4)]
    splits = ("train", "train", "train", "train", "train", "train", "val", "test")
    clean_rows = [
        Row(f"{n:05d}.jpg", ("cat", "dog")[n % 2], splits[n % 8], pictures[n % 4] + b"%08d" % n, splits[n % 8])
        for n in range(rows)
    ]
    clean_rows.sort(key=lambda row: compute_shuffle_index(hashlib.sha256(row.data).hexdigest()))
    dataset = cleaned(f"{folder}/clean/0123456789abcdef", clean_rows, classes=("cat", "dog"), parts=parts, **more)
    return Slow(folder, dataset.uri)


def descendants(pid: int) -> list[tuple[int, str]]:
    """All processes below one: (pid, start time). Ray's agents, once they have a title, show no environment, and a
    process whose parent is gone is nobody's: so who is to end has to be known before."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append((int(entry.name), fields[19]))
    processes, pending = [], [pid]
    while pending:
        child_processes = children.get(pending.pop(), [])
        processes += child_processes
        pending += [child for child, _ in child_processes]
    return processes


def still_there(processes: list[tuple[int, str]]) -> list[str]:
    """The command lines of those that have not ended."""
    command_lines = []
    for pid, started in processes:
        if (fields := _stat(pid)) and fields[19] == started and fields[0] not in "ZX":
            with contextlib.suppress(OSError):
                command_lines.append(
                    Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
                )
    return command_lines


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def without_ray(slow: Slow, folder: Path) -> list[tuple[str, str, int, str]]:
    """Resize on threads of one process, in another workspace."""
    copy = slow.copy(folder)
    return content(copy, mill.finish(start_resize(copy, "--executor", "threads"), time.monotonic()))


def content(slow: Slow, result: mill.Result) -> list[tuple[str, str, int, str]]:
    """The tensors' files, as `mill.content` tells of them."""
    assert result.rc == 0, result.stderr
    (manifest,) = slow.workspace.glob("tensors/*/_manifest.json")
    return mill.content(read_dataset(str(manifest.parent), "tensors"))


def start_resize(
    slow: Slow,
    *more: str,
    env: Mapping[str, str] | None = None,
    script: str = "",
    cwd: Path | None = None,
) -> subprocess.Popen[str]:
    """The step as a process of its own, on Ray."""
    start = ["-c", script] if script else ["-m", "imagemill.components.resize"]
    arguments = ["--workspace", str(slow.workspace), "--clean", slow.clean, "--image-size", "32", "--executor", "ray"]
    return _start_python([*start, *arguments, *more], env, cwd)


def _start_python(
    arguments: list[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment | dict(env or {}), cwd=cwd, start_new_session=True,
    )  # fmt: skip


def raw_of_parts(workspace: Path, number: int) -> str:
    """A raw dataset of so many parts with two pictures each, of which one is broken; its URI."""
    images = [picture(f"slice {n}") for n in range(2 * number - 1)] + [b"broken"]
    rows = [raw_row(f"{n}.jpg", data, ("cat", "dog")[n % 2]) for n, data in enumerate(images)]
    return raw_dataset(workspace, rows, parts=number, name="0123456789abcdef", row_group_rows=2).uri


CLEAN_SLOWLY = """
import sys, time
from imagemill.components.clean import STEP, clean
seconds = float(sys.argv.pop())
def clean_part(*arguments, work=clean.clean_part):
    time.sleep(seconds)
    return work(*arguments)
clean.clean_part = clean_part if seconds else clean.clean_part
sys.exit(STEP.main())
"""
"""The step, each of whose parts lasts some seconds longer."""


def start_clean(
    workspace: Path, raw: str, *more: str, env: Mapping[str, str] | None = None, seconds: float = 0
) -> subprocess.Popen[str]:
    """The step as a process of its own."""
    return _start_python(["-c", CLEAN_SLOWLY, "--workspace", str(workspace), "--raw", raw, *more, str(seconds)], env)
