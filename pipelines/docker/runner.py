"""The runner `docker`: KFP's DockerRunner, with containers that are as restricted as a cluster's pods.

A container runs as an ordinary user without capabilities, on a read-only root file system; it may write the workspace
and one scratch folder, and reads what the parameters name. KFP starts the containers one after another; how a step
ended is taken from the container's exit code and from the step's record, never from KFP.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...components.dataset.workspace import STEPS, Workspace
from ...components.step.progress import say
from ...components.storage.errors import EXIT_TRANSIENT, UserError
from ..cluster.cluster_file import LABELS, RUN_LABEL, SCRATCH, Cluster
from ..compat import replace_docker_tasks
from ..parameters import RunParameters
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
GPU_STEPS = ("train", "evaluate")
_KFP_SHELL_COMMAND, _EXEC_COMMAND = "_KFP_RUNTIME=true python3 -m", "export _KFP_RUNTIME=true; exec python3 -m"


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
    if step in GPU_STEPS and "nvidia" in (info.get("Runtimes") or {}):
        arguments["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return arguments


@dataclass
class Containers:
    """The containers of one run, each created, run to its end and removed."""

    engine: Engine
    run: str
    workspace: Workspace
    run_arguments: dict[str, Any]
    scratch: Path
    credentials: Credentials
    _nested: Iterable[str] = field(default=())
    """Mounted places that lie in the scratch folder, which then needs a mount point for each."""
    exit_codes: dict[str, int] = field(default_factory=dict)
    """The exit codes of containers that have ended, by step."""

    def make_runner(self) -> Any:
        """Return KFP's runner with the arguments that all containers share."""
        from kfp import local

        return local.DockerRunner(**self.run_arguments)

    def execute(self, step: str, command: list[str], volumes: dict[str, Any], arguments: Mapping[str, Any]) -> int:
        """Run one step's container to its end, printing its output line by line; return its exit code.

        `arguments`: those of `containers.create` that KFP passes on.
        """
        self._reset_scratch()
        image = self.engine.images[step]
        options = {**arguments, **make_step_arguments(self.engine.info, self.run, step)}
        options["environment"] = {**arguments["environment"], **self.credentials()}
        options["init"] = image in self.engine.without_init
        with engine_errors(step, UserError):
            container = self._create(image, command, volumes=volumes, auto_remove=True, **options)
            waiter = _ExitWaiter(container)
            output = container.attach(stream=True, logs=True)
            container.start()
            for line in _split_lines(output):
                print(line)
            code = waiter.wait()
        self.exit_codes[step] = self._read_recorded_code(step) if code is None else code
        return self.exit_codes[step]

    def _create(self, image: str, command: list[str], **arguments: Any) -> Any:
        import docker

        try:
            return self.engine.client.containers.create(image, command, **arguments)
        except docker.errors.ImageNotFound:
            raise _missing_images([image]) from None

    def _read_recorded_code(self, step: str) -> int:
        """Return the exit code of the step's record, for a container that was removed before the engine was asked."""
        record = self.workspace.step_record(self.run, step)
        return record.exit_code if record else EXIT_TRANSIENT

    def _reset_scratch(self) -> None:
        """Empty the scratch folder of files that the step before left, and create the mount points in it."""
        for path in self.scratch.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for place in self._nested:
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
def prepare_containers(
    engine: Engine, parameters: RunParameters, workspace: Workspace, run: str, folder: str
) -> Iterator[Containers]:
    """Let KFP run its Docker tasks in the containers of one run; remove those that are left at the end.

    `folder`: a temporary folder of the run, in which `kfp` becomes KFP's pipeline root and `scratch` the containers'
    scratch folder.
    """
    user = engine.user
    scratch, root = Path(folder, "scratch"), Path(folder, "kfp")
    for created in (scratch, root):
        created.mkdir()
        if os.getuid() == 0 and user[0] != 0:
            os.chown(created, *user)
    access = find_required_access(parameters, workspace.uri)
    credentials: Credentials = make_s3_credentials() if access.uses_s3() else dict
    addresses = list_endpoints(access.addresses, os.environ, credentials().get("AWS_ENDPOINT_URL", ""))
    access = replace(access, read=(*access.read, *find_certificates(os.environ)))
    pipe = root / "runner"
    environment = select_variables(run, str(pipe), os.environ, access.uses_s3())
    with engine_errors(FLAG):
        remove_never_started(engine.client, engine.info)
    arguments = make_run_arguments(
        engine.info, user, access, environment, str(scratch), choose_network_mode(addresses)
    )  # fmt: skip
    nested = [place for place in (*access.read, *access.written) if place.startswith(f"{SCRATCH}/")]
    containers = Containers(engine, run, workspace, arguments, scratch, credentials, nested)
    make_run_folder(workspace.uri, run, user)  # not before: a run that is refused leaves none
    with _open_pipe(pipe), _use_for_kfp_tasks(containers):
        try:
            yield containers
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


def replace_shell(command: Sequence[str]) -> list[str]:
    """Return KFP's command line with `exec`, so that the step replaces its shell: SIGTERM would end the shell, and the
    container with it, before training has saved what the next run goes on from."""
    script = command.index("-ec") + 1 if "-ec" in command else 0
    return [part.replace(_KFP_SHELL_COMMAND, _EXEC_COMMAND) if i == script else part for i, part in enumerate(command)]


def _use_for_kfp_tasks(containers: Containers) -> contextlib.AbstractContextManager[None]:
    """Let KFP's Docker tasks run in these containers."""

    def execute(handler: Any) -> int:
        step = handler.full_command[handler.full_command.index("--function_to_execute") + 1]
        volumes = handler.get_volumes_to_mount(containers.engine.client)
        arguments = {**handler.runner.container_run_args, "environment": handler.env_vars}
        return containers.execute(step, replace_shell(handler.full_command), volumes, arguments)

    return replace_docker_tasks(execute)
