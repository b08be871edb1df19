"""The runner `docker`: each step's own command line in its image, as restricted as a cluster's pods.

A container runs as an ordinary user without capabilities, on a read-only root file system; it may write the workspace
and one scratch folder, and reads what the parameters name. How a step ended stands in its record; a container without
one ended before it could write it.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...components.dataset.records import StepRecord
from ...components.dataset.workspace import STEPS, Workspace
from ...components.step.config import StepConfig, name_flag
from ...components.step.progress import say
from ...components.storage.errors import EXIT_INTERNAL, EXIT_USER, TransientError, UserError, error_for_exit_code
from ..cluster.cluster_file import LABELS, RUN_LABEL, SCRATCH, Cluster
from ..parameters import RunParameters
from ..run_log import RunLog
from ..steps import PIPELINE
from .client import STEP_LABEL, connect_engine, engine_errors, remove_containers, remove_never_started
from .environment import (
    Credentials,
    RequiredAccess,
    User,
    choose_network_mode,
    choose_user,
    find_certificates,
    find_required_access,
    list_endpoints,
    make_run_folder,
    make_s3_credentials,
    make_writable,
    read_security_options,
    select_variables,
)
from .image_build import CODE_LABEL, hash_code

FLAG = "--runner docker"
CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Engine:
    """A Docker engine of this machine, and the image of each step."""

    client: Any
    info: Mapping[str, Any]
    images: Mapping[str, str]
    without_init: frozenset[str] = frozenset()
    """Images without an entry point that reaps the orphaned processes of a step."""

    @property
    def user(self) -> User:
        return choose_user(self.info, (os.getuid(), os.getgid()))

    def make_writable(self, workspace: str) -> None:
        make_writable(workspace, self.user)


def open_engine(cluster: Cluster) -> Engine:
    """Connect to the engine, and look up the images of `cluster` (by default those of this version).

    UserError when either is missing, TransientError when the engine does not answer.
    """
    client = connect_engine(FLAG)
    images = {step: cluster.image_of(step) for step in STEPS}
    with engine_errors(FLAG):
        info = client.info()
        inspected = {image: _inspect_image(client, image) for image in dict.fromkeys(images.values())}
    configs = {image: attributes["Config"] or {} for image, attributes in inspected.items() if attributes is not None}
    if missing := [image for image in inspected if image not in configs]:
        raise _missing_images(missing)
    _warn_of_other_code({image: config.get("Labels") or {} for image, config in configs.items()})
    return Engine(client, info, images, frozenset(image for image in configs if not configs[image].get("Entrypoint")))


def _inspect_image(client: Any, image: str) -> dict[str, Any] | None:
    import docker

    try:
        attributes: dict[str, Any] = client.images.get(image).attrs
    except docker.errors.ImageNotFound:
        return None
    return attributes


def _warn_of_other_code(labels: Mapping[str, Mapping[str, str]]) -> None:
    # Images are named by version: after a change of the code, images of the old code still have that name.
    own_hash = hash_code(Path(__file__).resolve().parents[2])
    if outdated := [name for name, image in labels.items() if image.get(CODE_LABEL, own_hash) != own_hash]:
        say("docker", f"{', '.join(outdated)}: made from other code than this command's; the steps run the images' "
            "(anew: imagemill images build --no-push)")  # fmt: skip


def _missing_images(images: Sequence[str]) -> UserError:
    pulled = [image for image in images if "@" in image]
    commands = "; ".join(f"docker pull {image}" for image in pulled) or "imagemill images build --no-push"
    return UserError(f"{FLAG}: expected the images {', '.join(images)}, found none of that name; get: {commands}")


def make_run_arguments(info: Mapping[str, Any], user: User, access: RequiredAccess, environment: Mapping[str, str],
                       scratch: str, network_mode: str) -> dict[str, Any]:  # fmt: skip
    """Return the arguments of docker's `containers.create` that all containers of a run share."""
    from docker.types import Mount

    mounts = [Mount(place, place, type="bind", read_only=True) for place in access.read]
    mounts += [Mount(place, place, type="bind") for place in access.written]
    security = ["no-new-privileges:true"]
    options = read_security_options(info)
    if "name=selinux" in options:
        security.append("label=disable")  # else the mounted folders would have to be relabeled
    return {
        "user": f"{user[0]}:{user[1]}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": security,
        "mounts": [*mounts, Mount(SCRATCH, scratch, type="bind")],
        "environment": dict(environment),
        "network_mode": network_mode,
        "shm_size": int(info.get("MemTotal") or 0) // 2 or "1g",  # a limit; Linux' own default for /dev/shm
        "working_dir": SCRATCH,
        "labels": dict(LABELS),
        **({"userns_mode": "host"} if "name=userns" in options else {}),  # else the uid would be remapped
    }


def make_step_arguments(info: Mapping[str, Any], run: str, step: str) -> dict[str, Any]:
    """Return the arguments of one step's container: name, labels, and GPUs where the engine has the NVIDIA runtime."""
    from docker.types import DeviceRequest

    arguments: dict[str, Any] = {
        "name": re.sub(r"[^\w.-]", "-", f"imagemill-{run}-{step}", flags=re.ASCII),
        "labels": {**LABELS, RUN_LABEL: run, STEP_LABEL: step},
    }
    if PIPELINE[step].uses_gpu and "nvidia" in (info.get("Runtimes") or {}):
        arguments["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return arguments


@dataclass
class Containers:
    """The containers of one run, each created, run to its end and removed. `log` gets what they print."""

    engine: Engine
    run: str
    workspace: Workspace
    log: RunLog
    run_arguments: dict[str, Any]
    volumes: dict[str, Any]
    scratch: Path
    credentials: Credentials
    nested: Sequence[str] = ()
    """Mounted places that lie in the scratch folder, which then needs a mount point for each."""

    def run_step(self, step: str, config: StepConfig) -> StepRecord:
        """Run a step's container to its end; return its record, or raise its error."""
        self._reset_scratch()
        code = self._execute(step, self._make_command(step, config))
        record = self.workspace.step_record(self.run, step)
        if record is None and code in (EXIT_INTERNAL, EXIT_USER):  # before the step had read its parameters
            raise error_for_exit_code(
                code, f"{step}: exited with code {code} before it wrote its record; the log is {self.log.uri}"
            )
        if record is None:
            raise TransientError(
                f"{step}: was killed (out of memory?); the same command continues from what is finished; the log is "
                f"{self.log.uri}"
            )
        if record.exit_code:
            raise error_for_exit_code(record.exit_code, f"{step}: {record.error}")
        return record

    def _make_command(self, step: str, config: StepConfig) -> list[str]:
        """Return the step's command line. The config is in a file, since it may hold a URL with a password."""
        parents = {name: getattr(config, name) for name in type(config).PARENTS}
        values = {
            option.name: value
            for option in fields(config)
            if option.name not in parents
            and (value := getattr(config, option.name)) is not None
            and (value != option.default or option.metadata["by_preset"])  # a preset overrules both
        }
        (self.scratch / CONFIG_FILE).write_text(json.dumps({step: values}), encoding="utf-8")  # JSON is YAML
        flags = [f"{name_flag(name)}={value}" for name, value in parents.items()]
        module = type(config).__module__.rpartition(".")[0]
        return ["python3", "-m", module, f"--config={SCRATCH}/{CONFIG_FILE}", *flags]

    def _execute(self, step: str, command: list[str]) -> int | None:
        """Run a command in the step's image, logging its output line by line; return its exit code, None where the
        engine has forgotten it."""
        image = self.engine.images[step]
        options = {**self.run_arguments, **make_step_arguments(self.engine.info, self.run, step)}
        options["environment"] = {**options["environment"], **self.credentials()}
        options["init"] = image in self.engine.without_init
        with engine_errors(step, UserError):
            container = self._create(image, command, volumes=self.volumes, auto_remove=True, **options)
            waiter = _ExitWaiter(container)
            output = container.attach(stream=True, logs=True)
            container.start()
            for line in _split_lines(output):
                self.log.write_line(line)
            return waiter.wait()

    def _create(self, image: str, command: list[str], **arguments: Any) -> Any:
        import docker

        try:
            return self.engine.client.containers.create(image, command, **arguments)
        except docker.errors.ImageNotFound:
            raise _missing_images([image]) from None

    def _reset_scratch(self) -> None:
        """Empty the scratch folder of files that the step before left, and create the mount points in it."""
        for path in self.scratch.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for place in self.nested:
            mount_point = self.scratch / Path(place).relative_to(SCRATCH)
            if Path(place).is_dir():
                mount_point.mkdir(parents=True, exist_ok=True)
            else:
                mount_point.parent.mkdir(parents=True, exist_ok=True)
                mount_point.touch()


class _ExitWaiter:
    """A thread that waits for a container, from before its start: once removed, the engine forgets its exit code."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self._code: int | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._wait_for_removal, daemon=True, name="container-wait")
        self._thread.start()

    def _wait_for_removal(self) -> None:
        import docker

        try:
            self._code = self._container.wait(condition="removed", timeout=None)["StatusCode"]
        except docker.errors.NotFound:
            pass
        except Exception as error:  # raised by `wait`, in the thread that asks
            self._error = error

    def wait(self) -> int | None:
        """Wait until the container is removed and return its exit code; None if the engine has forgotten it."""
        self._thread.join()
        if self._error:
            raise self._error
        return self._code


def _split_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a UTF-8 stream whose chunks may end within a line, and within a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for chunk in chunks:
        *lines, text = (text + decoder.decode(chunk)).split("\n")
        yield from lines
    if text:
        yield text


@contextlib.contextmanager
def open_containers(
    engine: Engine, parameters: RunParameters, workspace: Workspace, run: str, log: RunLog
) -> Iterator[Containers]:
    """Give the containers of one run; those that are left at the end are removed."""
    user = engine.user
    access = find_required_access(parameters, workspace.uri)
    credentials: Credentials = make_s3_credentials() if access.uses_s3() else dict
    addresses = list_endpoints(access.addresses, os.environ, credentials().get("AWS_ENDPOINT_URL", ""))
    access = replace(access, read=(*access.read, *find_certificates(os.environ)))
    with engine_errors(FLAG):
        remove_never_started(engine.client, engine.info)
    nested = [place for place in (*access.read, *access.written) if place.startswith(f"{SCRATCH}/")]
    with tempfile.TemporaryDirectory(prefix="imagemill-run-") as folder:
        scratch, pipe = Path(folder, "scratch"), Path(folder, "pipe", "runner")
        for created in (scratch, pipe.parent):
            created.mkdir()
            if os.getuid() == 0 and user[0] != 0:
                os.chown(created, *user)
        environment = select_variables(str(pipe), os.environ, access.uses_s3())
        arguments = make_run_arguments(
            engine.info, user, access, environment, str(scratch), choose_network_mode(addresses)
        )
        volumes = {str(pipe.parent): {"bind": str(pipe.parent), "mode": "ro"}}
        make_run_folder(workspace.uri, run, user)  # not before: a run that is refused leaves none
        with _open_pipe(pipe):
            try:
                yield Containers(engine, run, workspace, log, arguments, volumes, scratch, credentials, nested)
            finally:
                remove_containers(engine.client, run)


@contextlib.contextmanager
def _open_pipe(path: Path) -> Iterator[None]:
    """Hold a named pipe open, whose end tells the containers that this process has ended, also when it was killed."""
    os.mkfifo(path)
    path.chmod(0o644)
    descriptor = os.open(path, os.O_RDWR)
    try:
        yield
    finally:
        os.close(descriptor)
