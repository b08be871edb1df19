"""A real S3 server for the tests: a throw-away one-node Ceph with its RADOS Gateway, on loopback.

    with CephRGW() as server:
        server.make_bucket("mill")
        subprocess.run([...], env=os.environ | server.environment())

By hand, `python tests/rgw.py` starts one, prints the `export AWS_...` lines and runs until Ctrl-C. The Debian packages
come with `tests/install-system`; any user may run this, root or not. Objects live in memory, as many as fit, and go
with the server.
"""

from __future__ import annotations

import base64
import http.client
import os
import secrets
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
REGION = "us-east-1"
BINARIES = {  # and the Debian package each comes with
    "monmaptool": "ceph-base",
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "ceph": "ceph-common",
    "radosgw-admin": "ceph-common",
    "radosgw": "radosgw",
}
USERS = ("mon.", "osd.0", "client.admin", "client.rgw")  # of the cluster itself, each with its own cephx secret

# One of everything, no copies, and none of the waits that pay off only in a cluster of many machines. There is no
# ceph-mgr: it only gathers statistics (so `ceph -s` has none to show). What S3 clients see is unchanged: conditional
# writes, listings, multipart uploads and authentication are the gateway's own.
CONFIG = """\
[global]
fsid = {fsid}
mon_host = [v2:{host}:{mon_port}]
public_addr = {host}
cluster_addr = {host}
ms_bind_msgr1 = false
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {root}/keyring
run_dir = {root}
crash_dir = {root}
admin_socket =
log_file =
log_to_stderr = true
debug_rocksdb = 0/0
mon_cluster_log_to_file = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = {pgs}
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
[mon]
mon_data = {root}/mon
mon_data_avail_crit = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 10000
auth_allow_insecure_global_id_reclaim = false
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
[osd]
osd_data = {root}/osd
osd_objectstore = memstore
memstore_device_bytes = 1099511627776
[client]
objecter_tick_interval = 0.25
rgw_data = {root}/rgw
rgw_frontends = beast endpoint={host}:{port} tcp_nodelay=1
rgw_rados_pool_pg_num_min = {pgs}
rgw_thread_pool_size = 64
rgw_run_sync_thread = false
rgw_dynamic_resharding = false
rgw_gc_max_objs = 2
"""


class CephRGW:
    """A running server with one user; `stop()`, or the end of the `with` block, leaves nothing behind."""

    def __init__(self, timeout: float = 90.0) -> None:
        """Start a server; RuntimeError, with the ends of its logs, if it is not up in `timeout` seconds."""
        if missing := self.missing():
            raise RuntimeError(f"no Ceph here, missing: {', '.join(missing)}; run tests/install-system")
        self.access_key = secrets.token_hex(10).upper()
        self.secret_key = secrets.token_hex(20)
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        for attempts_left in (2, 1, 0):
            self._root = Path(tempfile.mkdtemp(prefix="rgw-"))
            try:
                self._start(time.monotonic() + timeout)
                return
            except BaseException as error:
                self.stop()
                # Someone else took one of the ports between the look and the use: take others.
                if not (attempts_left and isinstance(error, RuntimeError) and "already in use" in str(error)):
                    raise

    @staticmethod
    def missing() -> list[str]:
        """The binaries that are not there, each with its Debian package; empty when a server can be started."""
        return [f"{name} (package {package})" for name, package in BINARIES.items() if not shutil.which(name)]

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def environment(self) -> dict[str, str]:
        """The variables by which every AWS client, boto3 and pyarrow among them, finds the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            # pyarrow's client would otherwise upload in chunks of unknown length, which this server refuses (411).
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket; one that is there already is left as it is."""
        import boto3

        session = boto3.Session(self.access_key, self.secret_key, region_name=REGION)
        session.client("s3", endpoint_url=self.endpoint).create_bucket(Bucket=name)

    def stop(self) -> None:
        """End the processes that were started here and remove their directory; a second call does nothing."""
        for _, process in reversed(self._processes):
            process.kill()  # nothing in there is worth a tidy end
            process.wait()
        self._processes.clear()
        shutil.rmtree(self._root, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _start(self, deadline: float) -> None:
        self._deadline = deadline
        mon_port, self.port = _free_ports(2)
        for name in ("mon", "osd", "rgw"):
            (self._root / name).mkdir()
        fsid, osd, monmap = str(uuid.uuid4()), str(uuid.uuid4()), str(self._root / "monmap")
        settings = {"fsid": fsid, "host": HOST, "mon_port": mon_port, "port": self.port}
        (self._root / "ceph.conf").write_text(CONFIG.format(root=self._root, pgs=8, **settings))
        (self._root / "keyring").write_text("".join(map(_keyring_entry, USERS)))

        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:{HOST}:{mon_port}]", monmap)
        self._run("ceph-mon", "--id=a", "--mkfs", f"--monmap={monmap}")
        self._launch("ceph-mon", "--id=a", "-f")
        self._run("ceph-osd", "--id=0", "--mkfs", f"--osd-uuid={osd}")
        self._run("ceph", "osd", "new", osd, "0")
        self._launch("ceph-osd", "--id=0", "-f")
        # The user first: this also makes the default zone, which two programs at once would fight over.
        keys = [f"--access-key={self.access_key}", f"--secret-key={self.secret_key}"]
        self._run("radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests", *keys)
        self._launch("radosgw", "--name=client.rgw", "-f")
        while not self._answers():
            self._check("radosgw")

    def _launch(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a program of this cluster, its output going to its log."""
        command = [program, f"--conf={self._root}/ceph.conf", *arguments]
        if shutil.which("setpriv"):  # so that the server also goes when the tests are killed outright
            command = ["setpriv", "--pdeathsig=KILL", *command]
        # `ceph` is a Python program of the system's own Python, so this environment's settings are not for it.
        env = {name: value for name, value in os.environ.items() if not name.startswith(("CEPH_", "PYTHON"))}
        with (self._root / f"{program}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
            )
        self._processes.append((program, process))
        return process

    def _run(self, program: str, *arguments: str) -> None:
        """Run a program of this cluster to its end; RuntimeError if it fails, or if a server dies meanwhile."""
        process = self._launch(program, *arguments)
        while process.poll() is None:
            self._check(program, but=process)
        self._processes.remove((program, process))
        if process.returncode:
            raise RuntimeError(f"{program} ended with {process.returncode}\n{self._logs(program)}")

    def _check(self, waiting_for: str, but: subprocess.Popen[bytes] | None = None) -> None:
        for program, process in self._processes:
            if process is not but and process.poll() is not None:
                raise RuntimeError(f"{program} ended early with {process.returncode}\n{self._logs(program)}")
        if time.monotonic() > self._deadline:
            raise RuntimeError(f"timed out waiting for {waiting_for}\n{self._logs(waiting_for)}")
        time.sleep(0.01)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _logs(self, culprit: str, lines: int = 15) -> str:
        """The last lines of each program's log, the culprit's at the end."""
        text = ""
        for log in sorted(self._root.glob("*.log"), key=lambda log: (log.stem == culprit, log.stat().st_mtime_ns)):
            tail = [line for line in log.read_text(errors="replace").split("\n") if line.strip()][-lines:]
            text += "\n".join([f"--- {log.name}", *tail, ""])
        return text


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, from below the range the kernel hands out to outgoing connections."""
    ports: list[int] = []
    while len(ports) < count:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def _keyring_entry(user: str) -> str:
    """A user with a new random secret, in Ceph's packing: type AES, time of creation, length, 16 bytes."""
    key = base64.b64encode(struct.pack("<hIIh", 1, int(time.time()), 0, 16) + secrets.token_bytes(16)).decode()
    return f"[{user}]\n\tkey = {key}\n" + "".join(f'\tcaps {of} = "allow *"\n' for of in ("mon", "mgr", "osd"))


def main() -> None:
    def end(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with CephRGW() as server:
        for name, value in server.environment().items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
